"""The tasks, as Gymnasium environments that write down each episode: the same record, whichever system plays.

`--env=gym_benchmarks.peers.tasks:CartPole` for ours. A line of a record is (seconds since the epoch, steps of the episode, its
return); each environment has a file of its own in the folder that `RECORDS` names. The first line, of no step, says when the
first step was.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import gymnasium
import numpy as np
from gymnasium.wrappers.transform_observation import TransformObservation

RECORDS = "FIXPO_PEERS_RECORDS"  # environment variable: the folder; without it nothing is written


class Recorded(gymnasium.Wrapper):
    """Writes down the episodes of an environment."""

    def __init__(self, env: gymnasium.Env):
        """Opens no file before the first step: environments are also made to be looked at."""
        super().__init__(env)
        self._file: TextIO | None = None
        self._steps, self._return = 0, 0.0

    def _write(self) -> None:
        if self._file is None:
            self._file = Path(os.environ[RECORDS], f"{uuid.uuid4().hex}.txt").open("a", buffering=1)  # noqa: SIM115 - `close`
        self._file.write(f"{time.time():.3f} {self._steps} {self._return:.6g}\n")

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        if self._file is None and RECORDS in os.environ:
            self._write()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        self._return += float(reward)
        if terminated or truncated:
            if self._file is not None:
                self._write()
            self._steps, self._return = 0, 0.0
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Closes the record too."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def positions(env: gymnasium.Env) -> gymnasium.Env:
    """CartPole's position and angle [2], without the velocities: a memory is needed."""
    seen = TransformObservation(env, lambda obs: obs[[0, 2]])
    low, high = (bound[[0, 2]] for bound in (env.observation_space.low, env.observation_space.high))  # type: ignore[attr-defined]
    seen.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
    return seen


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        make: of the environment; (render mode) -> environment.
        steps: of a run.
        threshold: a return to be reached.
        recurrent: whether a policy needs a memory.
    """

    make: Callable[[str | None], gymnasium.Env]
    steps: int
    threshold: float
    recurrent: bool = False


def _gym(env_id: str) -> Callable[[str | None], gymnasium.Env]:
    # without Gymnasium's own checker, which would cost every system the same again
    return lambda mode: gymnasium.make(env_id, render_mode=mode, disable_env_checker=True)


TASKS = {
    "CartPole": Task(_gym("CartPole-v1"), 100_000, 475.0),
    "Pendulum": Task(_gym("Pendulum-v1"), 100_000, -200.0),
    "Memory": Task(lambda mode: positions(_gym("CartPole-v1")(mode)), 100_000, 400.0, recurrent=True),
    "HalfCheetah": Task(_gym("HalfCheetah-v4"), 1_000_000, 3000.0),
}


def make(name: str, render_mode: str | None = None) -> gymnasium.Env:
    """A task's environment, recorded."""
    return Recorded(TASKS[name].make(render_mode))


def CartPole(render_mode: str | None = None) -> gymnasium.Env:  # noqa: N802 - named as an environment is, for `--env=gym_...`
    """CartPole-v1."""
    return make("CartPole", render_mode)


def Pendulum(render_mode: str | None = None) -> gymnasium.Env:  # noqa: N802
    """Pendulum-v1."""
    return make("Pendulum", render_mode)


def Memory(render_mode: str | None = None) -> gymnasium.Env:  # noqa: N802
    """CartPole-v1 without velocities."""
    return make("Memory", render_mode)


def HalfCheetah(render_mode: str | None = None) -> gymnasium.Env:  # noqa: N802
    """HalfCheetah-v4."""
    return make("HalfCheetah", render_mode)


def episodes(folder: Path) -> np.ndarray:
    """[n, 3] what the environments of a run have written: seconds since the first step, steps of all until then, return.

    Steps are those of episodes that had ended.
    """
    lines = [line.split() for path in folder.glob("*.txt") for line in path.read_text().splitlines()]
    rows = np.asarray([line for line in lines if len(line) == 3], dtype=float).reshape(-1, 3)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    start = rows[0, 0] if len(rows) else 0.0
    ended = rows[rows[:, 1] > 0]
    return np.column_stack([ended[:, 0] - start, np.cumsum(ended[:, 1]), ended[:, 2]])


def curve(ended: np.ndarray, total: int, bins: int) -> list[dict[str, float]]:
    """Steps, seconds and mean return of each part of a run in which an episode ended.

    Args:
        ended: of `episodes`.
        total: steps of the run.
        bins: parts.
    """
    edges = np.linspace(0, total, bins + 1)
    # the last episodes of a run may end a batch behind its last step
    part = np.minimum(np.searchsorted(edges, ended[:, 1], side="left"), bins)
    found = []
    for number in np.unique(part):
        inside = ended[part == number]
        found.append({"steps": int(edges[number]), "seconds": inside[-1, 0], "return": float(inside[:, 2].mean())})
    return found
