"""Slurm, through submitit: one job array a submission, requeued on preemption and at the time limit.

Two of submitit's habits do not suit a training that is a process of its own, with workers:

- its signal before the time limit is SIGUSR2. Slurm sends that to every process of a job step, and SIGUSR2 ends a training
  unsaved. It is SIGUSR1 here, by which a training saves and exits with 75; so does the SIGTERM of a preemption.
- it requeues inside the signal handler. Here its handler runs after the training has ended (`SlurmRun`).
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from sf_fixpo.launcher.backend import Backend, BackendError, JobOptions
from sf_fixpo.launcher.backends import slurm_ranks
from sf_fixpo.launcher.backends.quantity import times
from sf_fixpo.launcher.flags import gpu_of_rank_fault
from sf_fixpo.launcher.job import HELD, PREEMPTED, run_job
from sf_fixpo.launcher.secret_values import description_faults
from sf_fixpo.launcher.sweep import Run, Sweep

PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
NAME = "slurm"

# Slurm's default MaxArraySize: indices are below 1001.
_LARGEST_ARRAY = 1000
_COMMAND_TIMEOUT = 60.0
# What a job needs between the end of its training and Slurm's SIGKILL, to say that it is to be requeued.
_REQUEUE_MARGIN = 15.0
# Slurm may signal a minute early: it looks at the time limits no more often.
_SIGNAL_RESOLUTION = 60
# A job that is preempted or meets its time limit comes back as often as that happens; submitit counts down from here.
_UNLIMITED = 1_000_000
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<rest>\d+(?::\d+)?))?|(?P<clock>\d+(?::\d+){0,2}))")
_MEMORY = re.compile(r"\d+([KMGT]B?)?", re.IGNORECASE)
_KEY = re.compile(r"[a-z][a-z0-9-]*")
# sbatch's options that have a flag here, or that the requeueing relies on.
_OWN_KEYS = {
    "array": "--slurm_array_parallelism",
    "partition": "--slurm_partition",
    "account": "--slurm_account",
    "qos": "--slurm_qos",
    "gpus-per-node": "--slurm_gpus_per_run",
    "cpus-per-task": "--slurm_cpus_per_run",
    "mem": "--slurm_mem",
    "time": "--slurm_time",
    "constraint": "--slurm_constraint",
    "exclude": "--slurm_exclude",
    "signal": "--slurm_signal_delay",
    **dict.fromkeys(("job-name", "nodes", "ntasks-per-node", "output", "error", "open-mode", "requeue", "no-requeue"), ""),
}


@dataclass(frozen=True)
class SlurmRun:
    """What submitit pickles and calls in a job: the names of a sweep and a run, nothing of the environment.

    Attributes:
        sweep: folder of the sweep.
        run: name of the run.
        options: of the job.
        cpus: cores of each rank, where the run has several.
        gpus: of each rank, 0 or 1.
    """

    sweep: str
    run: str
    options: JobOptions
    cpus: int = 1
    gpus: int = 0

    def __call__(self) -> None:
        """Runs the run; requeues its job or ends the process with the job's exit status, so that Slurm's records show it."""
        sweep = Sweep.load(self.sweep)
        ranks, nodes = self.options.ranks, self.options.nodes
        starter = None if ranks == 1 else lambda _: slurm_ranks.starter(ranks, nodes, self.cpus, self.gpus)
        status = run_job(sweep, sweep.runs[self.run], self.options, starter)
        if _comes_back(status):
            # submitit's handler, which `run_job` has put back: it pickles `checkpoint()`, requeues the job and exits
            signal.raise_signal(signal.SIGUSR1)
        if status != 0:
            sys.exit(status)

    def checkpoint(self) -> DelayedSubmission:
        """The requeued job does the same again: what was learned is in the run's own checkpoint."""
        return DelayedSubmission(self)


def _comes_back(status: int) -> bool:
    """Whether a job that ends with this status asks Slurm to requeue it."""
    if status == HELD:
        # the claim of the job before its requeue, on a host that went away: until its heartbeat is old enough
        return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    return status == PREEMPTED and _is_running(submitit.JobEnvironment().job_id)


def _is_running(job_id: str) -> bool:
    """Whether Slurm has not decided about this job yet.

    A job that was cancelled, or is being requeued by Slurm itself, is completing already: `scontrol requeue` would bring back
    the cancelled one.
    """
    try:
        return _slurm("squeue", "--noheader", f"--jobs={job_id}", "--format=%T").strip() == "RUNNING"
    except BackendError as exc:
        print(f"launcher: {exc}", file=sys.stderr, flush=True)
        return True


def _slurm(*command: str) -> str:
    """Output of one of Slurm's programs.

    Raises:
        BackendError: it failed; the message is its own.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BackendError(f"{command[0]}: {exc}") from exc
    if done.returncode != 0:
        raise BackendError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


class SlurmBackend(Backend):
    """Job arrays of a Slurm cluster, whose jobs outlive the launcher."""

    poll_seconds = 15.0

    def __init__(self, sweep: Sweep, options: JobOptions, args: argparse.Namespace):
        """Asks Slurm nothing."""
        super().__init__(sweep, options, args)
        self.attached = not args.slurm_detach
        self._is_silent = False

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """Adds the flags of sbatch and submitit, by their own names."""
        group = parser.add_argument_group("slurm")
        group.add_argument("--slurm_partition", default="", help="Partition; default: the cluster's")
        group.add_argument("--slurm_account", default="", help="Account that is charged")
        group.add_argument("--slurm_qos", default="", help="Quality of service")
        group.add_argument("--slurm_gpus_per_run", default=1, type=int, help="GPUs of each run, or rank; 0: none")
        group.add_argument("--slurm_cpus_per_run", default=8, type=int, help="Cores of each run, or rank")
        group.add_argument("--slurm_mem", default="", help="Memory of each run, or rank, such as 32G; default: the cluster's")
        group.add_argument(
            "--slurm_time",
            default="1-00:00:00",
            help="Time limit, minutes or [D-]HH:MM:SS; a run that meets it is requeued and goes on from its checkpoint",
        )
        group.add_argument("--slurm_constraint", default="", help="Features that the nodes must have")
        group.add_argument("--slurm_exclude", default="", help="Nodes that are not used")
        group.add_argument("--slurm_array_parallelism", default=256, type=int, help="Runs at a time")
        group.add_argument(
            "--slurm_signal_delay",
            default=120,
            type=int,
            help="Seconds before the time limit at which a run saves",
        )
        group.add_argument("--slurm_setup", default=[], nargs="*", metavar="LINE", help="Shell lines in front of each job")
        group.add_argument(
            "--slurm_extra", default=[], nargs="*", metavar="KEY=VALUE", help="Other options of sbatch; KEY alone for a switch"
        )
        group.add_argument(
            "--slurm_detach",
            action=argparse.BooleanOptionalAction,
            default=False,
            help="Submit and leave instead of waiting for the runs",
        )

    @staticmethod
    def faults(args: argparse.Namespace) -> list[str]:
        """Checks the flags, and that Slurm's programs are here; what only the cluster knows, sbatch says."""
        found = [f"--backend=slurm: {name} is not in PATH: is this a host of a Slurm cluster?" for name in _missing()]
        for name, least in (("gpus_per_run", 0), ("cpus_per_run", 1), ("array_parallelism", 1)):
            value = getattr(args, f"slurm_{name}")
            if value < least:
                found.append(f"--slurm_{name}={value}: must be an integer >= {least}")
        for name in ("partition", "account", "qos", "constraint", "exclude"):
            value = getattr(args, f"slurm_{name}")
            if re.search(r"\s", value):
                found.append(f"--slurm_{name}={value!r}: must have no white space")
        if args.slurm_mem and not _MEMORY.fullmatch(args.slurm_mem):
            found.append(f"--slurm_mem={args.slurm_mem}: must be a number with K, M, G or T behind it, such as 32G")
        found += gpu_of_rank_fault(args, "slurm_gpus_per_run")
        return found + _time_faults(args) + _setup_faults(args.slurm_setup) + _extra_faults(args.slurm_extra)

    def submit(self, runs: Sequence[Run]) -> None:
        """Submits one array for up to 1000 runs (one run alone is a plain job); its logs lie in `<sweep>/.sweep/slurm/`.

        Raises:
            BackendError: sbatch refused.
        """
        executor = self._executor()
        for start in range(0, len(runs), _LARGEST_ARRAY):
            wave = runs[start : start + _LARGEST_ARRAY]
            try:
                with _outside_any_job():
                    jobs = executor.submit_array([self._slurm_run(run) for run in wave])
            except (FailedJobError, FailedSubmissionError) as exc:
                raise BackendError(f"sbatch: {exc}") from exc
            for run, job in zip(wave, jobs, strict=True):
                self.sweep.record_job(run, NAME, job.job_id)

    def _slurm_run(self, run: Run) -> SlurmRun:
        args = self.args
        return SlurmRun(str(self.sweep.folder), run.name, self.options, args.slurm_cpus_per_run, args.slurm_gpus_per_run)

    def _executor(self) -> submitit.SlurmExecutor:
        args, each = self.args, self.options.ranks_per_node
        executor = submitit.SlurmExecutor(self.sweep.state_folder / NAME, max_num_timeout=_UNLIMITED)
        optional = {name: getattr(args, f"slurm_{name}") for name in ("partition", "account", "qos", "constraint", "exclude")}
        optional["mem"] = times(args.slurm_mem, each) if args.slurm_mem else ""
        # the job process is one task on the first node; a step of its own has the ranks
        alone = [] if self.options.ranks == 1 else ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--overlap"]
        executor.update_parameters(
            job_name=self._job_name,
            nodes=self.options.nodes,
            ntasks_per_node=each,
            time=to_minutes(args.slurm_time),
            cpus_per_task=args.slurm_cpus_per_run,
            gpus_per_node=args.slurm_gpus_per_run * each or None,
            array_parallelism=args.slurm_array_parallelism,
            wckey=None,
            stderr_to_stdout=True,
            # since Slurm 22.05 a step takes over neither the job's cores per task nor, with --export=NONE, its environment
            srun_args=[f"--cpus-per-task={args.slurm_cpus_per_run}", "--export=ALL", *alone],
            setup=[*args.slurm_setup, "export SUBMITIT_PREEMPT_SIGNAL=USR1"],
            additional_parameters={
                **{key: value if has_value else True for key, has_value, value in map(_split_extra, args.slurm_extra)},
                "requeue": True,
                "signal": f"USR1@{args.slurm_signal_delay}",
            },
            **{name: value for name, value in optional.items() if value},
        )
        return executor

    @property
    def _job_name(self) -> str:
        return self.sweep.folder.name

    def live(self) -> Collection[str]:
        """Runs whose job squeue lists; every run with a job while squeue does not answer (slurmctld may be restarting)."""
        jobs = {name: job_id for name, run in self.sweep.runs.items() if (job_id := self.sweep.job_of(run, NAME)) is not None}
        if not jobs:
            return set()
        try:
            queued = self._queued()
        except BackendError as exc:
            if not self._is_silent:
                print(f"launcher: {exc}; waiting for it", file=sys.stderr, flush=True)
            self._is_silent = True
            return set(jobs)
        self._is_silent = False
        return {name for name, job_id in jobs.items() if job_id in queued}

    def _queued(self) -> set[str]:
        """Ids of this user's jobs of this sweep that are pending, running or completing.

        By user and name rather than by id: squeue fails for an id that it has forgotten, and ids begin again in a new cluster.
        """
        listed = _slurm("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %j")
        rows = (line.strip().split(" ", 1) for line in listed.splitlines() if line.strip())
        return {job_id for job_id, name in rows if name == self._job_name}

    def wait(self, seconds: float) -> None:
        """Just waits: squeue is asked no more often than every `poll_seconds`."""
        time.sleep(seconds)

    def cancel(self, runs: Sequence[Run]) -> None:
        """Cancels the jobs that squeue still lists.

        Raises:
            BackendError: Slurm does not answer.
        """
        recorded = {job_id for run in runs if (job_id := self.sweep.job_of(run, NAME)) is not None}
        if recorded and (ids := sorted(recorded & self._queued())):
            _slurm("scancel", "--quiet", *ids)


def _missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def to_minutes(text: str) -> int:
    """A time limit as sbatch reads it: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`.

    Returns:
        Minutes, rounded up.

    Raises:
        ValueError: it is none of these.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    if match["days"] is not None:
        minutes, _, seconds = (match["rest"] or "0").partition(":")
        hours = 24 * int(match["days"]) + int(match["day_hours"])
    else:
        parts = match["clock"].split(":")
        hours = int(parts.pop(0)) if len(parts) == 3 else 0
        minutes, seconds = parts if len(parts) == 2 else (parts[0], "0")
    return math.ceil((3600 * hours + 60 * int(minutes) + int(seconds or 0)) / 60)


def _time_faults(args: argparse.Namespace) -> list[str]:
    delay = args.slurm_signal_delay
    least = args.stop_timeout + _REQUEUE_MARGIN
    found = []
    if delay < least:
        found.append(
            f"--slurm_signal_delay={delay}: must be an integer >= --stop_timeout + {_REQUEUE_MARGIN:g} = {least:g}, seconds"
        )
    try:
        minutes = to_minutes(args.slurm_time)
    except ValueError:
        return [*found, f"--slurm_time={args.slurm_time}: must be minutes, H:MM:SS or D-HH:MM:SS"]
    if 60 * minutes <= delay + _SIGNAL_RESOLUTION:
        found.append(
            f"--slurm_time={args.slurm_time}: must be more than --slurm_signal_delay + {_SIGNAL_RESOLUTION} = "
            f"{delay + _SIGNAL_RESOLUTION} seconds, or every run is requeued as soon as it starts"
        )
    return found


def _split_extra(item: str) -> tuple[str, bool, str]:
    key, has_value, value = item.partition("=")
    return key, bool(has_value), value


def _secret_faults(flag: str, text: str) -> list[str]:
    words = [word.strip("'\"") for word in re.split(r"[\s,;]+", text)]
    if not description_faults("", words, {}):
        return []
    return [f"{flag}: seems to hold a secret; secrets go by environment (WANDB_API_KEY, HF_TOKEN) or --secrets_file"]


def _setup_faults(lines: Sequence[str]) -> list[str]:
    return [fault for line in lines for fault in _secret_faults("--slurm_setup", line)]


def _extra_faults(items: Sequence[str]) -> list[str]:
    found = []
    for item in items:
        key, _, value = _split_extra(item)
        if not _KEY.fullmatch(key):
            found.append(f"--slurm_extra {item!r}: must be KEY=VALUE or KEY, an option of sbatch without its dashes")
        elif key in _OWN_KEYS:
            instead = f"use {_OWN_KEYS[key]}" if _OWN_KEYS[key] else "set by the launcher"
            found.append(f"--slurm_extra {key}: {instead}")
        elif re.search(r"[\x00-\x1f]", value):
            found.append(f"--slurm_extra {key}: its value must be one line")
        else:
            found += _secret_faults(f"--slurm_extra {key}", item)
    return found


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hides what a job that the launcher itself runs in says about that job; how to reach the cluster stays."""
    kept: dict[str, Any] = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or key.startswith("SBATCH_")}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield
