"""Who may run a run: numbered claim files, of which one process at a time can create the next."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from sf_fixpo.launcher.files import NUMBER, create_json, read_json, write_json
from sf_fixpo.launcher.sweep import Run, Sweep

HEARTBEAT_SECONDS = 15.0
# Without a heartbeat for this long, a holder on another host counts as dead. Eight heartbeats: a file server may pause.
HEARTBEAT_LIMIT = 120.0
# In the environment of every training process, workers included: how they are found when their job is dead.
RUN_MARK = "FIXPO_SWEEP_RUN"
# A process's start, as psutil computes it, moves when the clock is set; no pid is used twice within this time.
_START_TOLERANCE = 2.0


@lru_cache(maxsize=1)
def _this_host(pid: int) -> dict[str, Any]:
    """What identifies this process: a pid means something only within one boot of one host and one pid namespace."""
    scope = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            scope.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:  # not Linux: the host's name has to do
            continue
    host = socket.gethostname()
    return {"host": host, "scope": " ".join([host, *scope]), "pid": pid, "pid_start": psutil.Process(pid).create_time()}


@dataclass
class Claim:
    """The right to run a run and to write its state, until it is released or another holder has taken its place.

    Attributes:
        path: the claim's file.
        content: who holds it.
        follows_dead: whether the holder before this one died without releasing: its training may still be running.
    """

    path: Path
    content: dict[str, Any]
    follows_dead: bool = False
    _last_beat: float = field(default_factory=time.monotonic)

    def is_lost(self) -> bool:
        """Whether to give the run up at once; also the heartbeat, when one is due.

        Returns:
            True where another holder, who thought this one dead, has taken its place, and where no heartbeat could be written
            for half the time after which that may happen.
        """
        since = time.monotonic() - self._last_beat
        if since < HEARTBEAT_SECONDS:
            return False
        try:
            if _numbered(self.path.parent, _number(self.path) + 1).exists():
                return True
            os.utime(self.path)
        except OSError:  # the file server is away
            return since > HEARTBEAT_LIMIT / 2
        self._last_beat = time.monotonic()
        return False

    def release(self) -> None:
        """Anybody may claim the run from now on. What was written about it before is what the next holder finds."""
        write_json(self.path, {**self.content, "released": True})


_CLAIM_KINDS = {"released": bool, "scope": str, "pid": int, "pid_start": NUMBER}


def claim(sweep: Sweep, run: Run) -> Claim | None:
    """Claims a run, where nobody alive holds it.

    Returns:
        The claim; None where another job holds the run.
    """
    folder = sweep.claims_folder() / run.name
    content = {**_this_host(os.getpid()), "token": uuid.uuid4().hex, "released": False}
    while True:
        path, holder = _newest(folder)
        if holder is not None and _is_held(path, holder):
            return None
        following = _numbered(folder, _number(path) + 1)
        if create_json(following, content):
            return Claim(following, content, follows_dead=holder is not None and not holder["released"])


def holder(sweep: Sweep, run: Run) -> dict[str, Any] | None:
    """Who holds a run: `host`, `pid` and more; None where nobody alive does."""
    path, found = _newest(sweep.claims_folder() / run.name)
    return found if found is not None and _is_held(path, found) else None


def _numbered(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _number(path: Path) -> int:
    return int(path.stem)


def _newest(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    try:
        numbers = [int(name[:-5]) for name in os.listdir(folder) if name.endswith(".json") and name[:-5].isdigit()]
    except FileNotFoundError:
        numbers = []
    path = _numbered(folder, max(numbers, default=0))
    return path, read_json(path, _CLAIM_KINDS)


def _is_held(path: Path, content: dict[str, Any]) -> bool:
    if content["released"]:
        return False
    if content["scope"] == _this_host(os.getpid())["scope"]:
        return is_alive(content["pid"], content["pid_start"])
    return _age(path) < HEARTBEAT_LIMIT


def is_alive(pid: int, start: float) -> bool:
    """Whether the process of this host that had this pid since `start` (seconds since 1970) is still running."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - start) < _START_TOLERANCE and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of the file system: those of two hosts may differ."""
    clock = path.with_name(f".clock.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime
    finally:
        clock.unlink(missing_ok=True)


def run_mark(sweep: Sweep, run: Run) -> str:
    """The value of RUN_MARK in the environment of a run's processes."""
    return f"{sweep.folder}:{run.name}"


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):  # ended meanwhile, or another user's
            continue
    return found


def end_orphans(mark: str, timeout: float) -> int:
    """Ends what a dead job left running on this host: it may save first, as after a preemption.

    Args:
        mark: of the run.
        timeout: seconds it gets.

    Returns:
        How many processes there were.
    """
    orphans = _marked(mark)
    for process in orphans:
        # only the training itself, which started a session of its own: it ends its workers when it has saved
        if _is_session_leader(process.pid):
            _signal(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + (timeout if any(_is_session_leader(process.pid) for process in orphans) else 0.0)
    while time.monotonic() < deadline and any(_is_session_leader(process.pid) for process in _marked(mark)):
        time.sleep(0.2)
    for process in _marked(mark):
        _signal(process.pid, signal.SIGKILL)
    return len(orphans)


def _is_session_leader(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return
