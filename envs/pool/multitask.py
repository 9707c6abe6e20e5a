"""Several tasks of Meta-World in one run: a pool a task behind one batch. T tasks, N simulators in all, N / T of each.

A policy has to know its task: a one-hot of length T follows the observation, as in Meta-World's MT10 and MT50. The task's number
is an observation of its own, `task_id`, which the learner takes out before the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from sf_fixpo.envs.pool.simulators import Pool

TASK_ID = "task_id"


class TaskPools(gymnasium.Env):
    """Pools of the same spaces that sample-factory sees as one environment with N agents, the first task's simulators first.

    Attributes:
        num_agents: N.
        is_multiagent: always True.
        observation_space: Dict of `obs`, a Box of the tasks' own values and the one-hot, and `task_id`, (1,) int32.
        action_space: that of the tasks.
    """

    is_multiagent = True

    def __init__(self, pools: Sequence[Pool], names: Sequence[str], ids: Sequence[int], num_tasks: int):
        """Takes pools over.

        Args:
            pools: one for each task that is played.
            names: of these tasks.
            ids: their numbers.
            num_tasks: T, of which an evaluation plays one at a time.
        """
        self._pools = list(pools)
        self._names = [f"z_{task:02d}_{name}" for task, name in zip(ids, names, strict=True)]
        sizes = [pool.num_agents for pool in pools]
        self.num_agents = sum(sizes)
        ends = np.cumsum(sizes)
        self._parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._task_ids = np.repeat(np.asarray(ids, dtype=np.int32), sizes)[:, None]
        self._one_hot = np.eye(num_tasks, dtype=np.float32)[self._task_ids[:, 0]]
        own = pools[0].obs_dim
        obs = gymnasium.spaces.Box(-np.inf, np.inf, (own + num_tasks,), np.float32)
        task_id = gymnasium.spaces.Box(0, num_tasks - 1, (1,), np.int32)
        self.observation_space = gymnasium.spaces.Dict({"obs": obs, TASK_ID: task_id})
        self.action_space = pools[0].action_space

    def _observed(self, parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        own = np.concatenate([part["obs"] for part in parts])
        return {"obs": np.concatenate([own, self._one_hot], axis=1), TASK_ID: self._task_ids.copy()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict]:
        """Starts a new episode in every simulator; the arguments are ignored, as `Pool` does."""
        del seed, options
        return self._observed([pool.reset()[0] for pool in self._pools]), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every simulator once.

        Args:
            action: (N, A).

        Returns:
            As `Pool.step`. Where an episode of a task ended the info also has the mean return and success of these episodes,
            `z_<task id>_<name>_raw_score` and `..._success`, one number each.
        """
        results = [pool.step(action[part]) for pool, part in zip(self._pools, self._parts, strict=True)]
        obs, rewards, terminated, truncated, infos = zip(*results, strict=True)
        info: dict[str, Any] = {}
        finished = [ended | late for ended, late in zip(terminated, truncated, strict=True)]
        if any(infos):
            # of a task without an end what its simulators have so far: sample-factory reads those that have ended only
            for key in ("true_objective", "success"):
                info[key] = torch.cat([x.get(key, torch.zeros(p.num_agents)) for x, p in zip(infos, self._pools, strict=True)])
        for name, own, done in zip(self._names, infos, finished, strict=True):
            if done.any():
                info[f"{name}_raw_score"] = float(own["true_objective"][done].mean())
                info[f"{name}_success"] = float(own["success"][done].mean())
        return self._observed(obs), np.concatenate(rewards), np.concatenate(terminated), np.concatenate(truncated), info

    def render(self) -> None:
        """Refuses, as `Pool` does.

        Raises:
            gymnasium.error.Error: always.
        """
        self._pools[0].render()

    def close(self) -> None:
        """Ends the simulators' threads."""
        for pool in self._pools:
            pool.close()
