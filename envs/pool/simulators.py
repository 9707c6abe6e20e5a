"""EnvPool behind sample-factory's batched interface. N is the number of simulators in the pool, A the action dimensions."""

from __future__ import annotations

from typing import Any

import envpool
import gymnasium
import numpy as np
import torch

from sf_fixpo.envs.cores import allowed_cores
from sf_fixpo.envs.seeding import env_seeds


class Pool(gymnasium.Env):
    """A vector of simulators that sample-factory sees as one environment with N agents.

    EnvPool starts a new episode one step late: after a last step it returns the last observation, and the next action is
    thrown away while the simulator resets. sample-factory expects the first observation of the new episode together with
    the end of the old one, so the finished simulators, and only they, are reset within the same step.

    Attributes:
        num_agents: N.
        is_multiagent: always True, for N = 1 too: whatever this class returns is a batch.
        observation_space: Dict with `obs`, a Box for one simulator: bytes, or float32 (EnvPool simulates in float64).
        obs_dim: length of an observation of one simulator, or of its first axis.
        action_space: for one simulator: the Box that actions are clipped to, or Discrete.
    """

    is_multiagent = True

    def __init__(self, pool: Any, num_agents: int):
        self.num_agents = num_agents
        self._pool: Any = pool
        box, actions = pool.observation_space, pool.action_space
        pixels = box.dtype == np.uint8
        self._dtype = np.uint8 if pixels else np.float32
        low, high = (0, 255) if pixels else (-np.inf, np.inf)
        self.observation_space = gymnasium.spaces.Dict(obs=gymnasium.spaces.Box(low, high, box.shape, self._dtype))
        self.obs_dim = int(box.shape[0])
        self._discrete = isinstance(actions, gymnasium.spaces.Discrete)
        if self._discrete:
            self.action_space: gymnasium.Space = gymnasium.spaces.Discrete(int(actions.n))
        else:
            self._low, self._high = actions.low, actions.high
            low, high = self._low.astype(np.float32), self._high.astype(np.float32)
            self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self._returns = np.zeros(num_agents, dtype=np.float64)
        self._successes = np.zeros(num_agents, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict]:
        """Starts a new episode in every simulator.

        Args:
            seed: ignored: EnvPool takes its seeds when it is made (see `make_pool`).
            options: ignored.

        Returns:
            The observations, `obs` (N, ...) float32, and an empty info.
        """
        del seed, options
        raw, _ = self._pool.reset()
        self._returns[:] = 0.0
        self._successes[:] = 0.0
        return {"obs": raw.astype(self._dtype)}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every simulator once, and starts a new episode in those that finished.

        Args:
            action: (N, A); the policy's Gaussian has no bounds, so it is clipped to the task's here. Or (N,), categories.

        Returns:
            Observations (`obs` (N, ...) float32; the first of the new episode where one ended), rewards (N,) float32,
            terminated (N,) bool, truncated (N,) bool (the time limit, and not terminated as well), and an info: empty, or,
            where an episode ended, `true_objective`, a (N,) tensor of the episodes' returns so far; of tasks that tell
            success also `success`, (N,), 1 where it was had at any step.
        """
        raw, rewards, terminated, truncated, engine_info = self._pool.step(self._engine_actions(action))
        obs = raw.astype(self._dtype)
        self._returns += engine_info.get("reward", rewards)  # of a game the score, of which the reward is the sign
        rewards = rewards.astype(np.float32)
        if (success := engine_info.get("success")) is not None:
            self._successes = np.maximum(self._successes, success.astype(np.float32))
        # A state that ends the task has no future to bootstrap from, even on the last step allowed.
        truncated = truncated & ~terminated
        finished = np.flatnonzero(terminated | truncated).astype(np.int32)
        info: dict[str, Any] = {}
        if finished.size:
            info["true_objective"] = torch.from_numpy(self._returns.astype(np.float32))
            if success is not None:
                info["success"] = torch.from_numpy(self._successes.copy())
            first, reset_info = self._pool.reset(finished)
            obs[reset_info["env_id"]] = first
            self._returns[finished] = 0.0
            self._successes[finished] = 0.0
        return {"obs": obs}, rewards, terminated, truncated, info

    def _engine_actions(self, action: np.ndarray) -> np.ndarray:
        if self._discrete:
            return np.asarray(action).reshape(self.num_agents).astype(np.int32)
        return np.clip(np.asarray(action, dtype=np.float64), self._low, self._high)

    def render(self) -> None:
        """Refuses: EnvPool draws only with a graphics context, which a training machine seldom has.

        Raises:
            gymnasium.error.Error: always; sample-factory's enjoy logs it and goes on.
        """
        raise gymnasium.error.Error("EnvPool draws no pictures here: add --no_render")

    def close(self) -> None:
        """Ends the simulators' threads."""
        # Not EnvPool's own close(): with gymnasium < 1.0 it reads VectorEnv.closed, which EnvPool never sets. The threads
        # belong to the object and end with it.
        self._pool = None


def num_threads(cfg: Any) -> int:
    """Threads for one pool: the flag, or this worker's share of the logical cores."""
    if cfg.envpool_num_threads > 0:
        return cfg.envpool_num_threads
    return max(1, allowed_cores() // max(1, cfg.num_workers))


def make_pool(task: str, cfg: Any, env_config: Any, **options: Any) -> Pool:
    """Makes the pool of one task.

    Args:
        task: EnvPool's name, such as `HalfCheetah-v4`.
        cfg: the parsed flags.
        env_config: sample-factory's record with `env_id`, or None.
        options: of EnvPool, for this task.

    Returns:
        The pool, whose simulators have seeds that depend on `--seed` and on the environment's number.
    """
    pool = envpool.make(
        task,
        env_type="gymnasium",
        num_envs=cfg.env_agents,
        num_threads=min(num_threads(cfg), cfg.env_agents),
        seed=env_seeds(cfg, env_config, cfg.env_agents),
        **options,
    )
    return Pool(pool, cfg.env_agents)
