"""The training program with places at which it can be broken from outside: `python -m benchmarks.faults.inside [flags]`.

A place is struck when the file `strike.PLACE` appears in the folder $FIXPO_FAULT; it holds the kind of the fault. Who is struck
renames it to `struck.PLACE`, whose time is that of the fault. Every place writes its process id to `pid.PLACE`.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType

import gymnasium
import psutil
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from sample_factory.algo.learning.batcher import Batcher
from sample_factory.algo.runners import runner
from sample_factory.algo.sampling import sampler
from sample_factory.algo.sampling.inference_worker import InferenceWorker
from sample_factory.algo.sampling.rollout_worker import RolloutWorker

FOLDER = "FIXPO_FAULT"
ENV_ID = "FaultyCartPole-v0"
_CLOCK, _LATE = "clock", "late"
_known: set[str] = set()
_real_time = time.time


def _folder() -> Path | None:
    name = os.environ.get(FOLDER)
    return Path(name) if name else None


def strike(place: str, own: dict[str, Callable[[], object]] | None = None) -> None:
    """Does here what the file says, if it is there.

    Args:
        place: where this is.
        own: faults that only this place can have.
    """
    folder = _folder()
    if folder is None:
        return
    if place not in _known:
        _known.add(place)
        (folder / f"pid.{place}").write_text(str(os.getpid()))
    order = folder / f"strike.{place}"
    if not order.exists():
        return
    kind = order.read_text()
    struck = folder / f"struck.{place}"
    try:
        order.rename(struck)
    except FileNotFoundError:  # another of these was faster
        return
    os.utime(struck)
    {**_KINDS, **(own or {})}[kind]()


def _raise() -> None:
    raise RuntimeError("the fault of the test")


def _sleep() -> None:
    while True:
        time.sleep(1)


def _exhaust() -> None:
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
    hoard = []
    while True:
        hoard.append(bytearray(16 << 20))


_KINDS: dict[str, Callable[[], object]] = {
    "exception": _raise,
    "sleep": _sleep,
    "memory": _exhaust,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class FaultyCartPole(CartPoleEnv):
    """CartPole with the places `env`, or `evaluation` in the processes of one."""

    _place = ""

    def step(self, action):
        """As CartPole's."""
        if not self._place:
            above = [os.getpid(), *(p.pid for p in psutil.Process().parents())]
            evaluates = any("sf_fixpo.evaluate" in _command(pid) for pid in above)
            self._place = "evaluation" if evaluates else "env"
        reward: list[float] = []
        strike(self._place, {"nan_reward": lambda: reward.append(float("nan")), "slow": lambda: time.sleep(20)})
        obs, usual, terminated, truncated, info = super().step(action)
        return obs, reward[0] if reward else usual, terminated, truncated, info


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, entry_point=f"{__name__}:FaultyCartPole", max_episode_steps=500)


class FaultyRolloutWorker(RolloutWorker):
    """The last of the workers has the place `rollout`."""

    def advance_rollouts(self, split_idx, policy_id):
        """As sample-factory's."""
        if self.worker_idx == self.cfg.num_workers - 1:
            strike("rollout")
        super().advance_rollouts(split_idx, policy_id)


class FaultyInferenceWorker(InferenceWorker):
    """Has the place `policy`."""

    def _handle_policy_steps(self, timing):
        strike("policy")
        super()._handle_policy_steps(timing)


class FaultyBatcher(Batcher):
    """Has the place `batcher`."""

    def on_new_trajectories(self, trajectory_dicts, device):
        """As sample-factory's."""
        strike("batcher")
        super().on_new_trajectories(trajectory_dicts, device)


def _faulty_learner() -> type:
    from sf_fixpo.baselines.registry import LEARNERS
    from sf_fixpo.learning.learner import FixPOLearner

    class FaultyLearner(FixPOLearner):
        """Has the place `learner`."""

        def train(self, batch):
            """As FixPO's."""
            strike("learner", {"nan_weights": lambda: next(self.actor_critic.parameters()).data.fill_(float("nan"))})
            return super().train(batch)

    FaultyLearner.__qualname__ = "FaultyLearner"
    FaultyLearner.__module__ = "benchmarks.faults.inside"
    LEARNERS["FIXPO"] = FaultyLearner
    return FaultyLearner


FaultyLearner = _faulty_learner()


def _jumping_time() -> float:
    folder = _folder()
    try:
        return _real_time() + float((folder / _CLOCK).read_text()) if folder else _real_time()
    except (OSError, ValueError):
        return _real_time()


def _late(action: Callable) -> Callable:
    def wrapped(*args, **kwargs):
        folder = _folder()
        if folder is not None and (folder / _LATE).exists() and any("checkpoint_" in str(arg) for arg in args[:1]):
            time.sleep(float((folder / _LATE).read_text()))
        return action(*args, **kwargs)

    return wrapped


# The wall clock and the renaming of a checkpoint, in every process of the run: all of them import this module.
# Once: this module is there as the program and by its name, and would jump, or be late, twice.
if _folder() is not None and isinstance(time.time, BuiltinFunctionType):
    time.time = _jumping_time
    os.replace = _late(os.replace)


def main() -> int:
    """Trains as `sf_fixpo.train` does."""
    from benchmarks.faults import inside  # by this name children find the classes; here it would be __main__
    from sf_fixpo import train

    sampler.RolloutWorker = inside.FaultyRolloutWorker
    sampler.InferenceWorker = inside.FaultyInferenceWorker
    runner.Batcher = inside.FaultyBatcher
    return train.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
