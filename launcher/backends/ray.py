"""A Ray cluster: a task for each run, on cores and (parts of) GPUs that Ray gives it. What is lost with a node runs again."""

from __future__ import annotations

import argparse
import concurrent.futures
import logging
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED
from contextlib import contextmanager
from typing import Any, NamedTuple

# Ray reports its use to its makers unless this is set before it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, TaskCancelledError

from sf_fixpo.launcher.backend import Backend, BackendError, JobOptions, job_command
from sf_fixpo.launcher.backends.quantity import memory_fault, parse_quantity
from sf_fixpo.launcher.backends.tied import tied
from sf_fixpo.launcher.claims import HEARTBEAT_LIMIT, holder
from sf_fixpo.launcher.driver import say
from sf_fixpo.launcher.flags import gpu_of_rank_fault, one_machine_fault
from sf_fixpo.launcher.job import HELD
from sf_fixpo.launcher.secret_values import SECRET_VARIABLES
from sf_fixpo.launcher.sweep import Run, Sweep

NAME = "ray"
LOCAL = "local"

_AUTO = -1.0
_LOOK_SECONDS = 0.5
# A run whose node was lost stays claimed by the dead job until its heartbeat is too old, and a little longer.
_HELD_SECONDS = HEARTBEAT_LIMIT + 30.0
_HELD_LOOK_SECONDS = 2.0
# Of a cluster of our own. Nothing is kept in it, and trainings need /dev/shm themselves. Ray takes no less.
_OBJECT_STORE_BYTES = 80 * 1024**2
_CLOSE_MARGIN_SECONDS = 10.0
_ADDRESS = re.compile(r"auto|local|(?!\w+://)[^\s/]+:[0-9]+")


class _Task(NamedTuple):
    run: Run
    ref: ray.ObjectRef
    end: concurrent.futures.Future


class RayBackend(Backend):
    """Ray tasks on a cluster, or on this machine. They end with the launcher, as all tasks of a Ray driver do."""

    def __init__(self, sweep: Sweep, options: JobOptions, args: argparse.Namespace):
        """Starts nothing and connects to nothing before the first `submit`."""
        super().__init__(sweep, options, args)
        self._tasks: dict[str, _Task] = {}
        # the remote function, where there is a connection
        self._function: Any = None

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the cluster and of what a run needs."""
        group = parser.add_argument_group("ray")
        group.add_argument(
            "--ray_address", default="", help="auto, local or HOST:PORT of the head node; default: RAY_ADDRESS, or else local"
        )
        group.add_argument("--ray_gpus_per_run", default=_AUTO, type=float, help="May be a fraction; -1: 1 where there are GPUs")
        group.add_argument("--ray_cpus_per_run", default=1.0, type=float, help="Cores that Ray counts for each run")
        group.add_argument("--ray_memory", default="", help="Memory that Ray counts for each run, such as 16Gi; default: none")

    @staticmethod
    def faults(args: argparse.Namespace) -> list[str]:
        """Checks the flags, and RAY_ADDRESS where it is used."""
        found = []
        source = "--ray_address" if args.ray_address else "RAY_ADDRESS"
        if not _ADDRESS.fullmatch(address(args)):
            found.append(
                f"{source}={address(args)}: must be auto, local or HOST:PORT of a cluster's head node (not ray:// or "
                "http://: start the launcher on a host of the cluster)"
            )
        gpus, cpus = args.ray_gpus_per_run, args.ray_cpus_per_run
        if gpus != _AUTO and not (0 <= gpus <= 1 or (math.isfinite(gpus) and gpus > 1 and gpus == int(gpus))):
            found.append(f"--ray_gpus_per_run={gpus:g}: must be between 0 and 1, an integer above 1, or -1")
        if not (math.isfinite(cpus) and cpus >= 0):
            found.append(f"--ray_cpus_per_run={cpus:g}: must be a number >= 0")
        if args.ray_memory and (fault := memory_fault("ray_memory", args.ray_memory)):
            found.append(fault)
        found += gpu_of_rank_fault(args, "ray_gpus_per_run", _AUTO)
        return found + one_machine_fault(args, NAME, "a run is one task, on one node")

    def submit(self, runs: Sequence[Run]) -> None:
        """Hands tasks to Ray; connects to the cluster, or starts one, when called first."""
        if self._function is None:
            self._function = self._connect()
        env = {name: os.environ[name] for name in SECRET_VARIABLES if name in os.environ}
        for run in runs:
            command = job_command(self.sweep, run, self.options)
            ref = self._function.options(name=run.name).remote(command, env, os.getcwd())
            self._tasks[run.name] = _Task(run, ref, ref.future())
            self.sweep.record_job(run, NAME, ref.task_id().hex())

    def _connect(self) -> Any:
        where = address(self.args)
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES} if where == LOCAL else {}
        try:
            with _signals_kept():
                ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, OSError, RuntimeError, ValueError) as exc:
            raise BackendError(f"--backend=ray: cannot connect to a cluster at {where}: {exc}") from exc
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needed = resources(self.args, any(node.get("GPU") for node in nodes))
        self._check_room(needed, nodes, where)
        # -1: without limit. Only lost workers and nodes count: a task of ours returns the exit status of its job, whatever it is
        return ray.remote(max_retries=-1, retry_exceptions=False, **_as_options(needed))(run_in_task)

    def _check_room(self, needed: Mapping[str, float], nodes: Sequence[Mapping[str, float]], where: str) -> None:
        if any(all(node.get(name, 0.0) >= amount for name, amount in needed.items()) for node in nodes):
            return
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in needed.items())
        there = "; ".join(", ".join(f"{name} {node.get(name, 0.0):g}" for name in needed) for node in nodes)
        message = f"no node has what a run needs ({wanted}); there are: {there}"
        if where == LOCAL:
            raise BackendError(f"--backend=ray: {message}")
        say(f"launcher: {message}; the runs wait for one that has")

    def live(self) -> Collection[str]:
        """Pending and running tasks, and those that Ray will run again because it has lost a node."""
        for task in list(self._tasks.values()):
            if task.end.done():
                self._report(self._tasks.pop(task.run.name))
            elif self._is_off(task.run):
                # in a full cluster it might wait for long, only to find that it has nothing to do
                ray.cancel(task.ref)
        return set(self._tasks)

    def _is_off(self, run: Run) -> bool:
        wanted = self.sweep.stop_reason(run) is None and not self.sweep.state(run).has_ended
        return not wanted and holder(self.sweep, run) is None

    def _report(self, task: _Task) -> None:
        try:
            status, errors = task.end.result()
        except TaskCancelledError:
            return
        except RayError as exc:
            say(f"launcher: {task.run.name}: Ray: {type(exc).__name__}: {exc}")
            return
        if errors and not self.sweep.state(task.run).has_ended:
            say(f"launcher: {task.run.name}: its job exited with {status}: {errors}")

    def wait(self, seconds: float) -> None:
        """Until a task has ended."""
        if self._tasks:
            self._wait_for(FIRST_COMPLETED, seconds)
        else:
            time.sleep(seconds)

    def _wait_for(self, what: str, seconds: float) -> None:
        # not by `ray.wait`, where the exception of a signal handler becomes a SystemError
        concurrent.futures.wait([task.end for task in self._tasks.values()], seconds, what)

    def cancel(self, runs: Sequence[Run]) -> None:
        """Cancels tasks of this launcher; those of another one are its own affair (it has read their stop files)."""
        for run in runs:
            if run.name in self._tasks:
                ray.cancel(self._tasks[run.name].ref, force=True)

    def close(self) -> None:
        """Ends what runs: it saves and exits, or is killed after `stop_timeout` seconds, or at a second Ctrl-C."""
        if not ray.is_initialized():
            return
        try:
            for task in self._tasks.values():
                if holder(self.sweep, task.run) is not None:
                    self.sweep.ask_to_stop(task.run, "the launcher was stopped")
                else:
                    ray.cancel(task.ref)
            self._wait_for(ALL_COMPLETED, self.options.stop_timeout + _CLOSE_MARGIN_SECONDS)
        finally:
            # what is left loses its worker, and so gets SIGTERM
            ray.shutdown()
            self._tasks.clear()
            self._function = None


def address(args: argparse.Namespace) -> str:
    """Where the cluster is: the flag, RAY_ADDRESS, or one that the launcher starts."""
    return args.ray_address or os.environ.get("RAY_ADDRESS") or LOCAL


def resources(args: argparse.Namespace, has_gpus: bool) -> dict[str, float]:
    """What Ray is to count for a run, by its names of resources; memory in bytes.

    Args:
        args: checked flags.
        has_gpus: whether any node has one.
    """
    gpus = float(has_gpus) if args.ray_gpus_per_run == _AUTO else args.ray_gpus_per_run
    needed = {"CPU": args.ray_cpus_per_run, "GPU": gpus}
    if args.ray_memory:
        needed["memory"] = parse_quantity(args.ray_memory)
    return {name: amount * args.ranks for name, amount in needed.items()}


def _as_options(needed: Mapping[str, float]) -> dict[str, Any]:
    names = {"CPU": "num_cpus", "GPU": "num_gpus"}
    return {names.get(name, name): int(amount) if amount == int(amount) else amount for name, amount in needed.items()}


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts handlers of its own in the place of the launcher's, who would not learn any more that it is to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def run_in_task(command: Sequence[str], env: Mapping[str, str], folder: str) -> tuple[int, str]:
    """The task: runs a job on the node where Ray has put it, until the job has ended.

    Args:
        command: of `job_command`; its interpreter is replaced by that of the node.
        env: secrets, which so travel in memory only.
        folder: where relative paths start, as for a local run; left out where the node does not have it.

    Returns:
        The job's exit status, and what it had to say on stderr.
    """
    deadline = time.monotonic() + _HELD_SECONDS
    while True:
        status, errors = _run_tied([sys.executable, *command[1:]], env, folder)
        if status != HELD or time.monotonic() > deadline:
            return status, errors
        time.sleep(_HELD_LOOK_SECONDS)


def _run_tied(command: Sequence[str], env: Mapping[str, str], folder: str) -> tuple[int, str]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            tied(command),
            env={**os.environ, **env},
            cwd=folder if os.path.isdir(folder) else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        while process.returncode is None:
            try:
                # with a timeout, because `ray.cancel` cannot interrupt a system call
                process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
        errors.seek(0)
        return process.returncode, errors.read().decode(errors="replace").strip()[-2000:]
