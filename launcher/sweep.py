"""A sweep: its runs, made from sample-factory's `RunDescription`, and the files that say how far each one is."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sf_fixpo.launcher.files import NUMBER, SweepError, read_json, write_json
from sf_fixpo.launcher.secret_values import description_faults

STATE_FOLDER = ".sweep"
SWEEP_LOG = "sweep_log.txt"
SEARCH_OPTIONS = "search.json"

QUEUED, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
ENDED = (FINISHED, FAILED, STOPPED)
PRUNED = "pruned"  # the reason of a stopped run that a search has given up

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")
NO_RUNS = "the description has no runs; it must have one at least"
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
        name: unique in the sweep; the experiment's name.
        command: arguments of its process; `python` in front stands for the interpreter of the job.
        folder: of the experiment, relative to the sweep's folder.
        env: environment variables on top of the job's own; none of them a secret.
    """

    name: str
    command: tuple[str, ...]
    folder: str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunState:
    """How far a run is: one file, written by the holder of the newest claim only.

    Attributes:
        status: `queued`, `running`, `finished`, `failed` or `stopped`.
        reason: what led to the status, in words; "" where there is nothing to say.
        attempt: how often the training was started, from 1; 0 before the first start.
        failures: how many attempts failed since the run was last queued by a launch; compared with `max_retries`.
        exit_code: of the last attempt, negative for a signal; None before one has ended.
        host: of the job.
        pid: of the training process.
        started: of the current or last attempt, seconds since 1970.
        ended: of the last attempt; None while it runs.
        steps: environment steps so far.
        mean_return: latest mean episode return; None where none is known yet.
        log: path of the run's output.
    """

    status: str = QUEUED
    reason: str = ""
    attempt: int = 0
    failures: int = 0
    exit_code: int | None = None
    host: str = ""
    pid: int | None = None
    started: float | None = None
    ended: float | None = None
    steps: int = 0
    mean_return: float | None = None
    log: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing is to be run without another launch."""
        return self.status in ENDED


_JOB_KINDS = {"backend": str, "job_id": str}
_STATE_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("status", "reason", "host", "log"), str),
    **dict.fromkeys(("attempt", "failures", "steps"), int),
    **dict.fromkeys(("exit_code", "pid"), (int, type(None))),
    **dict.fromkeys(("started", "ended", "mean_return"), (*NUMBER, type(None))),
}


class Sweep:
    """The runs of one sweep and the files under `<folder>/.sweep/`; paths are absolute, the same on all hosts.

    Attributes:
        folder: `<train_dir>/<run name of the description>`.
        runs: by name, in the order of the description.
        source: what the sweep was made from, for people: the module of the description.
        cwd: where it was launched first: a user's own program is found from there, by whichever launch goes on with it.
    """

    def __init__(self, folder: Path, runs: Iterable[Run], source: str = "", cwd: str = ""):
        """See `create` and `load`."""
        self.folder = Path(os.path.abspath(folder))
        self.runs = {run.name: run for run in runs}
        self.source = source
        self.cwd = cwd

    # --- the manifest

    @classmethod
    def create(cls, folder: Path, runs: Iterable[Run], source: str = "") -> Sweep:
        """Writes the manifest of a new sweep, or finds the same one.

        Raises:
            SweepError: the folder holds a sweep of other runs.
        """
        sweep = cls(folder, runs, source, os.getcwd())
        found = read_json(sweep.manifest_path)
        if found is not None and found["runs"] != sweep._manifest()["runs"]:
            raise SweepError(
                f"{sweep.folder}: holds a sweep of other runs (from {found.get('source') or 'another description'}); go on with "
                "it by `python -m sf_fixpo.launcher.resume`, or give another --train_dir or --experiment_suffix"
            )
        if found is None:
            sweep.save_manifest()
        else:
            sweep.cwd = found.get("cwd", "")
        return sweep

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Sweep:
        """Reads the sweep in `folder`.

        Raises:
            SweepError: there is none, or its manifest cannot be read.
        """
        path = Path(folder) / STATE_FOLDER / "manifest.json"
        try:
            found = read_json(path, may_have={"source": str, "cwd": str})
            if found is None:
                raise SweepError(f"{folder}: not the folder of a sweep: there is no {path}{_sweeps_below(Path(folder))}")
            runs = [Run(run["name"], tuple(run["command"]), run["folder"], run["env"]) for run in found["runs"]]
            if faults := [fault for run in runs if (fault := _form_fault(run))]:
                raise SweepError(f"{path}: not the manifest of a sweep, which must be as the launcher wrote it: {faults[0]}")
        except (ValueError, KeyError, TypeError) as exc:
            if isinstance(exc, SweepError):
                raise
            raise SweepError(f"{path}: not the manifest of a sweep, which must be as the launcher wrote it: {exc!r}") from exc
        return cls(Path(folder), runs, found.get("source", ""), found.get("cwd", ""))

    def save_manifest(self) -> None:
        """Writes the manifest; once for a sweep, after every new trial for a search."""
        write_json(self.manifest_path, self._manifest())

    def _manifest(self) -> dict[str, Any]:
        runs = [{**asdict(run), "command": list(run.command), "env": dict(run.env)} for run in self.runs.values()]
        return {"source": self.source, "cwd": self.cwd, "runs": runs}

    @property
    def manifest_path(self) -> Path:
        """All runs in order."""
        return self.state_folder / "manifest.json"

    @property
    def state_folder(self) -> Path:
        """Where everything the launcher writes lies, but for the runs' logs."""
        return self.folder / STATE_FOLDER

    # --- one run

    def run_folder(self, run: Run) -> Path:
        """The experiment's folder."""
        return self.folder / run.folder

    def log_path(self, run: Run) -> Path:
        """Where the run's output goes, of all attempts."""
        return self.run_folder(run) / SWEEP_LOG

    def state(self, run: Run) -> RunState:
        """How far the run is; `queued` where no job has said anything yet."""
        found = read_json(self._path("runs", run), may_have=_STATE_KINDS) or {}
        known = {f.name for f in fields(RunState)}
        if found.get("status", QUEUED) not in (RUNNING, QUEUED, *ENDED):
            raise SweepError(f"{self._path('runs', run)}: has {found['status'][:40]!r} as status")
        return RunState(**{key: value for key, value in found.items() if key in known})

    def write_state(self, run: Run, state: RunState) -> None:
        """Only the holder of the run's newest claim may."""
        write_json(self._path("runs", run), asdict(state))

    def record_job(self, run: Run, backend: str, job_id: str) -> None:
        """Keeps what a backend needs to find the run's job again, from another process too."""
        write_json(self._path("jobs", run), {"backend": backend, "job_id": job_id, "submitted": time.time()})

    def job_of(self, run: Run, backend: str) -> str | None:
        """The id of the run's latest job, None where this backend has submitted none."""
        found = read_json(self._path("jobs", run), _JOB_KINDS)
        return found["job_id"] if found is not None and found["backend"] == backend else None

    def last_job(self, run: Run) -> str:
        """The id of the run's latest job under any backend; "" where none was recorded."""
        found = read_json(self._path("jobs", run), _JOB_KINDS)
        return found["job_id"] if found is not None else ""

    def ask_to_stop(self, run: Run, reason: str) -> None:
        """The holder of the run ends it within seconds; a run that has not started does not start."""
        write_json(self._path("stop", run), {"reason": reason, "at": time.time()})

    def stop_reason(self, run: Run) -> str | None:
        """Why the run is to stop; None where it is not."""
        found = read_json(self._path("stop", run), {"reason": str})
        return None if found is None else found["reason"]

    def forget_stop(self, run: Run) -> None:
        """The run may run again."""
        self._path("stop", run).unlink(missing_ok=True)

    def claims_folder(self) -> Path:
        """Of `launcher.claims`."""
        return self.state_folder / "claims"

    def _path(self, kind: str, run: Run) -> Path:
        return self.state_folder / kind / f"{run.name}.json"

    # --- the last launch

    def save_launch(self, backend: str, flags: Mapping[str, Any]) -> None:
        """Keeps where the sweep was launched, the defaults of `resume` and `stop`."""
        write_json(self.state_folder / "launch.json", {"backend": backend, "flags": dict(flags), "at": time.time()})

    def last_launch(self) -> tuple[str, dict[str, Any]]:
        """Backend and flags of the latest launch; local without flags where there was none."""
        found = read_json(self.state_folder / "launch.json", {"backend": str, "flags": dict}) or {"backend": "local", "flags": {}}
        return found["backend"], found["flags"]


def _is_path(text: str) -> bool:
    """Whether a file system can have it: no part too long, nothing that is no text."""
    return "\0" not in text and len(text) < 2000 and all(len(os.fsencode(part)) <= 255 for part in Path(text).parts)


def _form_fault(run: Run) -> str | None:
    """What of a run in a manifest is not what its description could have given: its names are those of files."""
    if not isinstance(run.name, str) or not _NAME.fullmatch(run.name) or len(run.name) > _LONGEST_NAME:
        return f"{str(run.name)[:40]!r} is no name of a run"
    if not isinstance(run.folder, str) or os.path.isabs(run.folder) or ".." in Path(run.folder).parts or not _is_path(run.folder):
        return f"run {run.name}: its folder {str(run.folder)[:40]!r} is not below the sweep's"
    if not run.command or not all(isinstance(word, str) for word in run.command):
        return f"run {run.name}: its command is no list of words"
    if not isinstance(run.env, dict) or not all(isinstance(text, str) for item in run.env.items() for text in item):
        return f"run {run.name}: its env is no dict of texts"
    return None


def is_search(sweep: Sweep) -> bool:
    """Whether the sweep's runs are the trials of a search."""
    return (sweep.state_folder / SEARCH_OPTIONS).exists()


def _sweeps_below(folder: Path) -> str:
    found = sorted(path.parent.parent for path in folder.glob(f"*/{STATE_FOLDER}/manifest.json"))
    return f"; there are sweeps in {', '.join(map(str, found[:5]))}" if found else ""


def describe_runs(description: Any, train_dir: str | os.PathLike) -> tuple[Path, list[Run]]:
    """The runs of a sample-factory `RunDescription`.

    Args:
        description: the description; it is not changed, and no folder is made.
        train_dir: where the sweep's folder goes; written into the commands as an absolute path.

    Returns:
        The sweep's folder, and its runs in order.

    Raises:
        SweepError: everything wrong with the description.
    """
    train_dir = os.path.abspath(train_dir)
    runs: list[Run] = []
    found: list[str] = []
    for command, name, root, env in description.generate_experiments(train_dir, makedirs=False):
        try:
            arguments = tuple(shlex.split(command))
        except ValueError as exc:
            found.append(f"run {name}: its command cannot be split into arguments: {exc}")
            continue
        folder = os.path.join(os.path.relpath(root, description.run_name), name)
        runs.append(Run(name, arguments, folder, {str(key): str(value) for key, value in (env or {}).items()}))
    found += run_faults(runs)
    if not _NAME.fullmatch(description.run_name):
        found.append(f"run_name={description.run_name!r}: must be of letters, digits and . _ = , + -")
    if found:
        raise SweepError("\n".join(found))
    return Path(train_dir) / description.run_name, runs


def program_faults(runs: Iterable[Run], cwd: str) -> list[str]:
    """Programs of runs that are not there, one line each; for runs on this machine.

    Args:
        runs: with commands such as `python -m sf_fixpo.train ...`, `python -m mine.train ...` or `python mine.py ...`.
        cwd: where the runs are started.
    """
    found = dict.fromkeys(fault for run in runs if (fault := _program_fault(run.command, cwd)))
    return list(found)


def _program_fault(command: tuple[str, ...], cwd: str) -> str | None:
    if len(command) < 2 or not command[0].startswith("python"):
        return None
    if command[1].endswith(".py"):
        path = Path(cwd) / command[1]
        return None if path.is_file() else f"command `{shlex.join(command[:2])} ...`: there is no file {path}"
    if command[1] == "-m" and len(command) > 2:
        package = command[2].partition(".")[0]
        # the package only: what is in it may be imported by nobody but its program
        if not (Path(cwd) / package).is_dir() and not (Path(cwd) / f"{package}.py").is_file() and find_spec(package) is None:
            return f"command `{shlex.join(command[:3])} ...`: Python finds no {package}, neither in {cwd} nor installed"
    return None


def run_faults(runs: Iterable[Run]) -> list[str]:
    """Everything wrong with runs, one line a fault."""
    found: list[str] = []
    names: set[str] = set()
    for run in runs:
        if run.name in names:
            found.append(f"run {run.name}: the name of two runs; give the experiments different names")
        names.add(run.name)
        if not _NAME.fullmatch(run.name) or len(run.name) > _LONGEST_NAME:
            found.append(
                f"run {run.name}: its name must be of letters, digits and . _ = , + -, at most {_LONGEST_NAME}: it names a file "
                "(customize_experiment_name=False leaves the parameters out)"
            )
        if not run.command:
            found.append(f"run {run.name}: its command is empty")
        restart = [arg for arg in run.command if arg.startswith("--restart_behavior=") and not arg.endswith("=resume")]
        if restart:
            found.append(f"run {run.name}: {restart[0]}: must be resume, or a retry would begin again")
        found += description_faults(run.name, run.command, run.env)
    if not names and not found:
        found.append(NO_RUNS)
    return found
