"""What the launcher's tests share: sweeps of quick runs, a backend that starts `launcher.job` processes, a check of the marks."""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from programs import REPO, json_lines

from sf_fixpo.launcher.backend import Backend, JobOptions, job_command
from sf_fixpo.launcher.backends.local import LocalBackend
from sf_fixpo.launcher.flags import add_job_args
from sf_fixpo.launcher.sweep import Run, RunState, Sweep

QUICK = REPO / "tests" / "helpers" / "sweep_run.py"


def quick_run(folder: Path, name: str, *flags: str) -> Run:
    """A run of sweep_run.py."""
    return Run(name, ("python", str(QUICK), f"--train_dir={folder}", f"--experiment={name}", *flags), name)


def make_sweep(folder: Path, **flags: Sequence[str]) -> Sweep:
    """A sweep of quick runs: name -> flags."""
    return Sweep.create(folder, [quick_run(folder, name, *extra) for name, extra in flags.items()], source="tests")


def states(sweep: Sweep) -> dict[str, RunState]:
    return {run.name: sweep.state(run) for run in sweep.runs.values()}


def statuses(sweep: Sweep) -> dict[str, str]:
    return {name: state.status for name, state in states(sweep).items()}


def starts(sweep: Sweep, name: str) -> list[str]:
    """A line for each start of a quick run: pid, cores, GPUs."""
    path = sweep.folder / name / "starts"
    return path.read_text().splitlines() if path.exists() else []


def steps_logged(sweep: Sweep, name: str) -> list[int]:
    """`env_steps` of every update that a run logged, in all its attempts."""
    path = sweep.folder / name / "updates.jsonl"
    return [row["env_steps"] for row in json_lines(path)] if path.exists() else []


def wait_until(condition: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"nothing after {timeout:.0f} s"
        time.sleep(0.05)


def local_backend(sweep: Sweep, *flags: str, options: JobOptions | None = None) -> LocalBackend:
    return LocalBackend(sweep, options or JobOptions(), local_args(*flags))


def local_args(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_job_args(parser)
    LocalBackend.add_args(parser)
    return parser.parse_args(flags)


class ProcessBackend(Backend):
    """Every job a `launcher.job` process, as a cluster starts them, all at once.

    Attributes:
        processes: every job so far, by run.
    """

    poll_seconds = 0.1

    def __init__(self, sweep: Sweep, options: JobOptions | None = None):
        super().__init__(sweep, options or JobOptions(), argparse.Namespace(backend="local"))
        self.processes: dict[str, list[subprocess.Popen]] = {}

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        pass

    @staticmethod
    def faults(args: argparse.Namespace) -> list[str]:
        return []

    def submit(self, runs: Sequence[Run]) -> None:
        for run in runs:
            process = subprocess.Popen(job_command(self.sweep, run, self.options), cwd=REPO)
            self.processes.setdefault(run.name, []).append(process)
            self.sweep.record_job(run, "process", str(process.pid))

    def live(self) -> Collection[str]:
        return {name for name, processes in self.processes.items() if processes[-1].poll() is None}

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def cancel(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self.processes[run.name][-1].terminate()

    def close(self) -> None:
        for processes in self.processes.values():
            for process in processes:
                process.kill()
                process.wait()
