"""The faults: where each strikes, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass

HEARTBEAT_SECONDS, SAVE_SECONDS = 30, 5  # of the runs here; the flags' defaults are 180 and 120
MODES = {
    "serial": ("--serial_mode=True", "--async_rl=False", "--num_workers=1", "--num_envs_per_worker=4"),
    "sync": ("--serial_mode=False", "--async_rl=False", "--num_workers=2", "--num_envs_per_worker=2"),
    "async": ("--serial_mode=False", "--async_rl=True", "--num_workers=2", "--num_envs_per_worker=2"),
}
GOES_ON = 75  # the run is asked to end once it has shown that it trains on, and this is what it then says
ALLOWED_TO_NOTICE = 2 * HEARTBEAT_SECONDS + 30


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        kind: what happens; a key of `trial.ACTIONS`, or a fault of `inside`.
        place: whom it happens to.
        mode: key of MODES.
        says: regular expression of the first cause, as the run must say it; "" where it has no chance to say anything.
        exit: exit status that it must end with; GOES_ON where it must train on.
        flags: more flags of the run.
        within: seconds in which it must be noticed.
    """

    kind: str
    place: str
    mode: str
    says: str
    exit: int
    flags: tuple[str, ...] = ()
    within: float = ALLOWED_TO_NOTICE

    @property
    def name(self) -> str:
        """Names the row."""
        return f"{self.mode}: {self.kind}, {self.place}"


KINDS = ("kill -9", "SIGSTOP", "exception", "memory", "sleep")
PLACES = ("rollout", "policy", "learner", "batcher", "evaluation")
_PROCESS = {"rollout": "rollout_proc1", "policy": "inference_proc0-0", "learner": "learner_proc0", "batcher": "learner_proc0"}
_CAUSE = {"exception": "RuntimeError: the fault of the test", "memory": "MemoryError"}
NOWHERE = {
    ("serial", "kill -9", "rollout, policy, learner, batcher"): "one process has them all: see the whole run",
    ("serial", "SIGSTOP", "rollout, policy, learner, batcher"): "one process has them all: see the whole run",
    ("sync, async", "kill -9", "batcher"): "a thread of the learner's process: see the learner",
    ("sync, async", "SIGSTOP", "batcher"): "a thread of the learner's process: see the learner",
}


def _of_a_process(kind: str, place: str, mode: str) -> Fault | None:
    if mode == "serial":
        if kind in ("kill -9", "SIGSTOP"):
            return None
        # the loop of the one process: it raises, or does not come round
        return Fault(kind, place, mode, _CAUSE.get(kind, "The run has not moved for"), 1)
    if place == "batcher" and kind in ("kill -9", "SIGSTOP"):
        return None
    if kind == "kill -9":
        says = rf"process {_PROCESS[place]} died \(exit code -9\); killed by SIGKILL"
    elif kind in _CAUSE:
        says = _CAUSE[kind]
    else:
        says = rf"no sign of life .*{_PROCESS[place]}"
    return Fault(kind, place, mode, says, GOES_ON if place in ("rollout", "policy") else 1)


def _of_an_evaluation(kind: str, mode: str) -> Fault:
    says = r"Evaluation at \d+ steps (failed|does nothing any more)"
    return Fault(kind, "evaluation", mode, says, GOES_ON, ("--eval_every=500", "--eval_episodes=1000"))


def matrix() -> list[Fault]:
    """Every kind at every place in every mode, where the combination exists."""
    found: list[Fault | None] = []
    for mode in ("async", "serial", "sync"):
        for place in PLACES:
            for kind in KINDS:
                found.append(_of_an_evaluation(kind, mode) if place == "evaluation" else _of_a_process(kind, place, mode))
    return [fault for fault in found if fault is not None]


def others() -> list[Fault]:
    """What happens to the machine, to files, and inside environments."""
    crash = r"environment \d+ crashed \(RuntimeError: the fault of the test\): its episode is lost"
    return [
        Fault("kill -9", "whole run", "serial", "", -9),
        Fault("kill -9", "whole run", "async", "", -9),
        *(Fault("suspended for longer than a heartbeat", "whole run", mode, "", GOES_ON) for mode in MODES),
        *(Fault("exception", "environment", mode, crash, GOES_ON) for mode in MODES),
        Fault("engine exits in a step", "environment", "serial", "", 3),
        Fault("engine exits in a step", "environment", "async", r"process rollout_proc\d died \(exit code 3\)", GOES_ON),
        Fault("NaN reward", "environment", "serial", "reward", 1),
        Fault("NaN reward", "environment", "async", "reward", 1),
        Fault("NaN weights", "learner", "serial", "was not finite; update undone", GOES_ON),
        Fault("disk full", "train_dir", "serial", "No space left on device", 1),
        Fault("disk full", "train_dir", "async", "No space left on device", 1),
        Fault("read-only from the start", "train_dir", "serial", r"--train_dir=\S+: ", 2),
        Fault("read-only from now on", "train_dir", "async", "Read-only file system", 1),
        Fault("newest truncated", "checkpoint", "serial", "cannot be read .*; trying the one before it", GOES_ON),
        Fault("newest with a bit flipped", "checkpoint", "serial", "cannot be read .*; trying the one before it", GOES_ON),
        Fault("all truncated", "checkpoint", "serial", r"none of the \d+ checkpoint\(s\)", 2),
        Fault("full", "shared memory", "async", "shared memory", 2),
        Fault("an hour forward", "clock", "async", "", GOES_ON),
        Fault("an hour back", "clock", "async", "", GOES_ON),
        Fault("an hour forward", "clock", "serial", "", GOES_ON),
        Fault("an hour back", "clock", "serial", "", GOES_ON),
        Fault("answers after 15 s", "file system", "async", "", GOES_ON),
        Fault("answers after 15 s", "file system", "serial", "", GOES_ON),
    ]


def all_faults() -> list[Fault]:
    """The whole table."""
    return [*matrix(), *others()]


# One of each way to be noticed, for the tests that always run.
QUICK = ("async: kill -9, rollout", "async: exception, environment")
