"""An environment that crashes costs an episode, not the run: it is made anew, so often and no more, and counted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from sample_factory.utils.utils import log

from sf_fixpo.envs import EnvError


def add_crash_args(parser: argparse._ArgumentGroup) -> None:
    """Adds the flags that bound what a run survives."""
    parser.add_argument(
        "--max_env_crashes",
        default=10,
        type=int,
        help="How often each environment may raise an error, lose its episode and be made anew, until the run ends; 0: never",
    )
    parser.add_argument(
        "--max_restarts",
        default=3,
        type=int,
        help="How often the run's processes are started anew, from what was saved, after a rollout or policy worker was lost",
    )


def crash_faults(cfg: Any) -> list[str]:
    """What is wrong with the flags, one line a fault."""
    flags = ("max_env_crashes", "max_restarts")
    return [f"--{flag}={getattr(cfg, flag)}: must be an integer >= 0" for flag in flags if getattr(cfg, flag) < 0]


class CrashCounts:
    """Crashes of each of E environments, in memory that processes share; only the process of an environment writes its count."""

    def __init__(self, num_envs: int):
        """All 0.

        Args:
            num_envs: E.
        """
        self._counts = torch.zeros(num_envs, dtype=torch.int64).share_memory_()

    def add(self, env_id: int) -> int:
        """Counts one; how many it is now for this environment."""
        self._counts.numpy()[env_id] += 1
        return int(self._counts[env_id])

    def total(self) -> int:
        """Of all environments."""
        return int(self._counts.sum())


class RemadeWhenItCrashes(gymnasium.Wrapper):
    """An environment of one agent that is closed and made anew where it raises an error.

    The episode ends there, truncated, with the last observation and a reward of 0: what was collected until then is trained on,
    and the value of that observation stands for the rest. An `EnvError` is no crash but a verdict, and goes through.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], name: str, env_id: int, counts: CrashCounts, most: int):
        """Makes the environment.

        Args:
            make: makes it; an error at the first time is the caller's.
            name: for messages.
            env_id: which of the run's environments this is.
            counts: where crashes are counted.
            most: crashes of this environment that are survived.
        """
        super().__init__(make())
        self._make, self._name, self._id, self._counts, self._most = make, name, env_id, counts, most
        self._broken = False
        self._last: Any = None

    def reset(self, **kwargs):
        """As the environment's, which is made anew first where it has crashed."""
        while True:
            try:
                if self._broken:
                    self.env, self._broken = self._make(), False
                self._last, info = self.env.reset(**kwargs)
                return self._last, info
            except EnvError:
                raise
            except Exception as exc:  # noqa: BLE001 - an engine may raise anything
                self._survive(exc)

    def step(self, action):
        """As the environment's; where that raises, the episode ends."""
        try:
            result = self.env.step(action)
        except EnvError:
            raise
        except Exception as exc:  # noqa: BLE001
            self._survive(exc)
            return self._last, 0.0, False, True, {}
        self._last = result[0]
        return result

    def _survive(self, exc: Exception) -> None:
        """Counts the crash, says so, and closes what is left.

        Raises:
            EnvError: it was one too many.
        """
        count = self._counts.add(self._id)
        cause = f"{type(exc).__name__}: {exc}"
        if count > self._most:
            log.error("%s, environment %d: the error that ends the run", self._name, self._id, exc_info=exc)
            raise EnvError(
                f"{self._name}: environment {self._id} crashed {count} times (--max_env_crashes={self._most}): {cause}"
            )
        log.warning(
            "%s, environment %d crashed (%s): its episode is lost and it is made anew, %d of --max_env_crashes=%d",
            *(self._name, self._id, cause, count, self._most),
            exc_info=exc if count == 1 else None,
        )
        self._broken = True
        try:
            self.env.close()
        except Exception as error:  # noqa: BLE001 - it is broken
            log.warning("%s, environment %d cannot be closed either (%s)", self._name, self._id, error)
