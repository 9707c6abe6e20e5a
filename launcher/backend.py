"""The one interface of all places a sweep can run: what a backend must do, and how one is found by name.

A backend starts jobs and says which of them exist; it decides nothing about runs. What a run's end means, how often it is run
again and who holds it is in `launcher.job`, the same for every backend; what is submitted, and again when a job vanished, is in
`launcher.driver`.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from sf_fixpo.launcher.sweep import Run, Sweep

# Backend -> where it is. Imported only when it is asked for, so that a missing extra is the error of its user alone.
BACKENDS = {
    "local": "sf_fixpo.launcher.backends.local:LocalBackend",
    "slurm": "sf_fixpo.launcher.backends.slurm:SlurmBackend",
    "ray": "sf_fixpo.launcher.backends.ray:RayBackend",
    "kubernetes": "sf_fixpo.launcher.backends.kubernetes:KubernetesBackend",
}


class BackendError(RuntimeError):
    """A backend cannot be had, or its engine refused; the message says what to do."""


@dataclass(frozen=True)
class JobOptions:
    """What `launcher.job` is told about every run of a launch.

    Attributes:
        max_retries: how often a run that crashed is run again, from its checkpoint.
        run_timeout: seconds without a new update or log line after which a run counts as hung; 0: never.
        stop_timeout: seconds a run gets to save and exit after SIGTERM, before it is killed.
        secrets_file: file of KEY=VALUE lines that the job reads on its own host; "" for none.
        ranks: learners of each run that train one policy together, each with actors of its own.
        nodes: machines that a run's ranks are spread over, equally many on each.
    """

    max_retries: int = 0
    run_timeout: float = 0.0
    stop_timeout: float = 45.0
    secrets_file: str = ""
    ranks: int = 1
    nodes: int = 1

    @property
    def ranks_per_node(self) -> int:
        """How many of a run's ranks are on one machine."""
        return self.ranks // self.nodes

    def to_flags(self) -> list[str]:
        """The options as flags of `launcher.job`."""
        return [f"--{name}={value}" for name, value in asdict(self).items() if value != ""]


class Backend(ABC):
    """A place where jobs run.

    Made in `launcher.run` and `launcher.resume` to submit, and in `launcher.stop`, in a process that submitted nothing, to
    cancel: whatever is needed for that goes through `Sweep.record_job`.

    Attributes:
        attached: whether the launcher stays until all runs have ended; False where it only submits (or renders) and leaves.
        poll_seconds: the longest that `wait` is asked to wait, and so the delay with which a vanished job is noticed.
    """

    attached: bool = True
    poll_seconds: float = 5.0

    def __init__(self, sweep: Sweep, options: JobOptions, args: argparse.Namespace):
        """Keeps the sweep, the options of its jobs and the parsed flags; starts nothing."""
        self.sweep = sweep
        self.options = options
        self.args = args

    @staticmethod
    @abstractmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """Adds the backend's own flags; values are checked in `faults`, not by argparse."""

    @staticmethod
    @abstractmethod
    def faults(args: argparse.Namespace) -> list[str]:
        """Everything wrong with the flags and with what they need here, one line a fault: flag, value, what is allowed."""

    @abstractmethod
    def submit(self, runs: Sequence[Run]) -> None:
        """Starts one job for each run and returns without waiting for them.

        Each job is `job_command(...)` as a process, or a call of `launcher.job.run_job`. A job that exits with
        `launcher.job.PREEMPTED` (75) wants to be run again: by the engine's own requeue, or by ending, after which the driver
        submits the run again. Every other exit status is final. Ids are kept with `Sweep.record_job`.

        Raises:
            BackendError: the engine refused.
        """

    @abstractmethod
    def live(self) -> Collection[str]:
        """Names of the runs that have a job of this sweep which is pending, running, or will be requeued by its engine.

        A run that has none and has not ended either is submitted again.
        """

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Returns when a job may have ended, after `seconds` at the latest."""

    @abstractmethod
    def cancel(self, runs: Sequence[Run]) -> None:
        """Takes back the jobs of these runs, started or not, by the ids in `Sweep.job_of`; what has no job is left alone.

        `launcher.stop` has already asked the runs to save and exit, and waited: what is still there may be ended hard.
        """

    def close(self) -> None:  # noqa: B027 - most engines outlive the launcher and have nothing to do here
        """Called once when the launcher ends, Ctrl-C included: ends what must not outlive it."""


def job_command(sweep: Sweep, run: Run, options: JobOptions, python: str = sys.executable) -> list[str]:
    """The command that runs one run anywhere the sweep's folder is mounted at the same path.

    Args:
        sweep: the sweep.
        run: one of its runs.
        options: of the job.
        python: interpreter on the host of the job, with this package installed.

    Returns:
        Arguments of a process. They hold no secret: secrets come from its environment or from `options.secrets_file`.
    """
    return [python, "-m", "sf_fixpo.launcher.job", str(sweep.folder), run.name, *options.to_flags()]


def job_script(sweep: Sweep, run: Run, options: JobOptions, python: str = sys.executable) -> str:
    """`job_command` as one line of shell."""
    return shlex.join(job_command(sweep, run, options, python))


def find_backend(name: str) -> type[Backend]:
    """Imports a backend.

    Raises:
        BackendError: there is none of that name, or its library is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(f"--backend={name}: must be one of {', '.join(BACKENDS)}")
    module, _, cls = BACKENDS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] == "sf_fixpo":
            raise
        raise BackendError(f"--backend={name}: needs {exc.name}; pip install 'sf_fixpo[cluster]'") from exc
