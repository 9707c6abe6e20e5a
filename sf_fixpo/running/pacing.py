"""Equal samples of all tasks of a run, and how well each goes. T tasks, E environments of the run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

_LONGEST_WAIT_SECONDS = 0.5  # of one step: a worker that waits must still hear that the run is over
_POLL_SECONDS = 0.005


def recent_returns(policy_avg_stats: Mapping[str, Sequence], policy_id: int, num_tasks: int) -> list[float | None]:
    """Mean undiscounted, unshaped return of each task's recent episodes; None where none has ended.

    Args:
        policy_avg_stats: the runner's, whose keys `z_<task id>_..._raw_score` come from the environments (`envs.suite.Suite`).
        policy_id: which policy of a population.
        num_tasks: T.
    """
    found: list[float | None] = [None] * num_tasks
    for key, values in policy_avg_stats.items():
        if key.startswith("z_") and key.endswith("_raw_score") and len(values[policy_id]):
            found[int(key.split("_")[1])] = float(np.mean(values[policy_id]))
    return found


class Pacer:
    """Counts every task's steps, so that a worker whose tasks all run ahead waits for the others.

    Where each worker plays all tasks they are in step anyway. Where each plays one, a level that renders four times as fast as
    another would fill the batches with four times as many samples. A worker that has the slowest task never waits, so that the
    run cannot come to a standstill.
    """

    def __init__(self, num_envs: int, num_tasks: int, slack: int):
        """Starts all counts at 0, in memory that processes share.

        Args:
            num_envs: E.
            num_tasks: T.
            slack: steps that a task may be ahead of the slowest.
        """
        self.slack = slack
        self.num_tasks = num_tasks
        self._counts = torch.zeros(num_envs, dtype=torch.int64).share_memory_()
        self._tasks = torch.full((num_envs,), -1, dtype=torch.int64).share_memory_()  # -1: not there yet

    def register(self, env_id: int, task: int) -> None:
        """Says which task an environment plays."""
        self._tasks[env_id] = task

    def add(self, env_id: int) -> None:
        """Counts a step; each environment has a counter of its own, which only its process writes."""
        self._counts.numpy()[env_id] += 1

    def steps(self) -> np.ndarray:
        """[T] steps of each task so far."""
        there = self._tasks.numpy() >= 0
        return np.bincount(self._tasks.numpy()[there], self._counts.numpy()[there], self.num_tasks)

    def ahead(self, envs: slice) -> float:
        """Steps by which the last of some environments' tasks is ahead of the last of all that this run plays.

        One rank of several need not play all tasks. Before all environments are there, the last has made no step.
        """
        steps, tasks = self.steps(), self._tasks.numpy()
        slowest = 0.0 if (tasks < 0).any() else steps[tasks].min()
        return float(steps[tasks[envs]].min() - slowest)

    def wait(self, envs: slice, longest: float = _LONGEST_WAIT_SECONDS) -> None:
        """Waits while all tasks of a worker's environments are too far ahead, but not for ever."""
        until = time.monotonic() + longest
        while self.ahead(envs) > self.slack and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)


class PacedEnv(gymnasium.Wrapper):
    """An environment whose steps a pacer counts; the first of each worker waits for all of them."""

    def __init__(self, env: gymnasium.Env, pacer: Pacer, env_id: int, envs_per_worker: int):
        """Registers the environment's task."""
        super().__init__(env)
        self._pacer, self._env_id = pacer, env_id
        first = env_id - env_id % envs_per_worker
        self._worker = slice(first, first + envs_per_worker) if env_id == first else None
        pacer.register(env_id, self.unwrapped.task_id)  # type: ignore[attr-defined]

    def step(self, action: Any):
        """As the environment's."""
        self._pacer.add(self._env_id)
        if self._worker is not None:
            self._pacer.wait(self._worker)
        return self.env.step(action)


def make_pacer(cfg: Any, num_tasks: int) -> Pacer | None:
    """The pacer of a run; None where it has one task, or one process that steps all environments in turn."""
    if num_tasks == 1 or cfg.serial_mode:
        return None
    num_envs = cfg.num_workers * cfg.num_envs_per_worker
    return Pacer(num_envs, num_tasks, slack=2 * cfg.rollout * max(1, num_envs // num_tasks))
