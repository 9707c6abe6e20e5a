"""This machine: runs packed on its GPUs and cores, each watched by a thread of the launcher (a process a run costs more)."""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sf_fixpo.launcher.backend import Backend, JobOptions
from sf_fixpo.launcher.flags import one_machine_fault
from sf_fixpo.launcher.job import Job
from sf_fixpo.launcher.sweep import Run, Sweep

_AUTO = -1


class LocalBackend(Backend):
    """Slots, each with a GPU and cores of its own, that take the runs in order."""

    poll_seconds = 1.0

    def __init__(self, sweep: Sweep, options: JobOptions, args: argparse.Namespace):
        """Starts nothing before the first `submit`."""
        super().__init__(sweep, options, args)
        self._changed = threading.Condition()
        self._queue: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._jobs: dict[str, Job] = {}
        self._ended = 0
        self._slots: list[threading.Thread] = []

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """Adds the flags of packing."""
        parser.add_argument("--max_parallel", default=_AUTO, type=int, help="Runs at a time; -1: as many as fit GPUs or cores")
        parser.add_argument("--num_gpus", default=_AUTO, type=int, help="GPUs to use; -1: all; 0: the runs see none")
        parser.add_argument("--experiments_per_gpu", default=1, type=int, help="Runs that share one GPU")
        parser.add_argument(
            "--cpus_per_run",
            default=_AUTO,
            type=int,
            help="Cores that each run, or rank, has to itself; -1: an equal share, where there is one for each; 0: any core",
        )

    @staticmethod
    def faults(args: argparse.Namespace) -> list[str]:
        """Checks the flags against this machine."""
        found = []
        for name in ("max_parallel", "num_gpus", "cpus_per_run"):
            value = getattr(args, name)
            least = 1 if name == "max_parallel" else 0
            if value < least and value != _AUTO:
                found.append(f"--{name}={value}: must be an integer >= {least}, or -1")
        if args.experiments_per_gpu < 1:
            found.append(f"--experiments_per_gpu={args.experiments_per_gpu}: must be an integer >= 1")
        gpus, cores = visible_gpus(), len(cores_in_order())
        if args.num_gpus > len(gpus):
            found.append(f"--num_gpus={args.num_gpus}: must be at most {len(gpus)}, those of this machine")
        found += one_machine_fault(args, "local", "its runs are on this machine")
        if found:
            return found
        used = len(gpus) if args.num_gpus == _AUTO else args.num_gpus
        if 0 < used < args.ranks:
            found.append(
                f"--ranks={args.ranks}: there are {used} GPU(s) for them, and each rank takes one; --num_gpus=0 trains on CPUs"
            )
        needed = args.cpus_per_run * args.ranks * max(args.max_parallel, 1)
        if needed > cores:
            found.append(
                f"--cpus_per_run={args.cpus_per_run}: {needed} cores are needed for all runs at a time, there are {cores}"
            )
        return found

    def submit(self, runs: Sequence[Run]) -> None:
        """Queues the runs; makes the slots when called first."""
        if not self._slots:
            for number, (env, cores) in enumerate(slots(self.args)):
                thread = threading.Thread(target=self._serve, args=(env, cores), name=f"slot {number}", daemon=True)
                self._slots.append(thread)
                thread.start()
        with self._changed:
            for run in runs:
                self._queued.add(run.name)
                self._queue.put(run)

    def _serve(self, env: dict[str, str], cores: Collection[int]) -> None:
        if cores:
            # of this thread alone: a process inherits it from the thread that starts it
            os.sched_setaffinity(0, cores)
        while (run := self._queue.get()) is not None:
            with self._changed:
                if run.name not in self._queued:
                    continue
                job = self._jobs[run.name] = Job(self.sweep, run, self.options, env)
                self._queued.remove(run.name)
            try:
                job.execute()
            except Exception as exc:  # noqa: BLE001 - a slot outlives whatever one run meets (a full disk, a removed folder)
                print(f"launcher: {run.name}: {type(exc).__name__}: {exc}", flush=True)
            finally:
                with self._changed:
                    del self._jobs[run.name]
                    self._ended += 1
                    self._changed.notify_all()

    def live(self) -> Collection[str]:
        """Queued and running ones."""
        with self._changed:
            return self._queued | self._jobs.keys()

    def wait(self, seconds: float) -> None:
        """Until a run has ended since the last look, or nothing did for some time."""
        with self._changed:
            if not self._ended:
                self._changed.wait(seconds)
            self._ended = 0

    def cancel(self, runs: Sequence[Run]) -> None:
        """Ends the runs of this launcher; those of another one are its own affair (it has read their stop files)."""
        with self._changed:
            for run in runs:
                self._queued.discard(run.name)
                if run.name in self._jobs:
                    self._jobs[run.name].kill()

    def close(self) -> None:
        """Ends what runs: it saves and exits, or is killed after `stop_timeout` seconds, or at a second Ctrl-C."""
        try:
            with self._changed:
                self._queued.clear()
            for job in self._running():
                job.interrupt(signal.SIGTERM, "the launcher was stopped")
            for _ in self._slots:
                self._queue.put(None)
            self._wait_for_all(self.options.stop_timeout + 5.0)
        finally:
            # a second Ctrl-C leaves the lines above
            for job in self._running():
                job.kill()
            self._wait_for_all(5.0)

    def _running(self) -> list[Job]:
        with self._changed:
            return list(self._jobs.values())

    def _wait_for_all(self, seconds: float) -> None:
        # not by Thread.join: interrupted by Ctrl-C, Python 3.11's takes the thread for ended
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs, seconds)


def slots(args: argparse.Namespace) -> list[tuple[dict[str, str], list[int]]]:
    """Splits this machine.

    Args:
        args: checked flags.

    Returns:
        For each run at a time, its environment variables and its cores; no cores: any.
    """
    gpus, cores = visible_gpus(), cores_in_order()
    gpus = gpus if args.num_gpus == _AUTO else gpus[: args.num_gpus]
    # what one run takes: a GPU for each of its ranks
    groups = [",".join(gpus[i : i + args.ranks]) for i in range(0, len(gpus) - args.ranks + 1, args.ranks)]
    cores_of_run = max(args.cpus_per_run, 1) * args.ranks
    fitting = len(groups) * args.experiments_per_gpu if gpus else max(1, len(cores) // cores_of_run)
    count = fitting if args.max_parallel == _AUTO else min(args.max_parallel, fitting) if gpus else args.max_parallel
    each = len(cores) // count if args.cpus_per_run == _AUTO else args.cpus_per_run * args.ranks
    made = []
    for number in range(count):
        env = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
        if gpus or args.num_gpus == 0:
            env["CUDA_VISIBLE_DEVICES"] = groups[number % len(groups)] if gpus else ""
        made.append((env, cores[number * each : (number + 1) * each]))
    return made


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold for one GPU each: what it holds now, or else all that the driver knows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run([program, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    return listed.stdout.split() if listed.returncode == 0 else []


def cores_in_order() -> list[int]:
    """The logical cores that this process may use, those of one physical core beside each other; none where it cannot choose."""
    if not hasattr(os, "sched_getaffinity"):
        return []

    def place(core: int) -> tuple[Any, ...]:
        topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
        try:
            return (*(int((topology / name).read_text()) for name in ("physical_package_id", "core_id")), core)
        except (OSError, ValueError):
            return (0, core, core)

    return sorted(os.sched_getaffinity(0), key=place)
