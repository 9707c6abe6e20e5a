"""A private temporary folder for one running engine, and the removal of what killed processes left behind.

A folder belongs to whoever holds the lock on the file `lock` in it; the system drops the lock when its holder dies, however it
dies. So a folder whose lock can be had is nobody's, in this container or another, and the next engine to start removes it,
together with the shared memory of the engine that ran there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER_PREFIX = "dmlab_engine_"
_SHARED_MEMORY = Path("/dev/shm")
# A folder without a lock file is about to get one, unless it is older than this: then its maker died in between.
_SECONDS_TO_LOCK = 60.0

_swept: set[str | None] = set()


class Workspace:
    """A locked temporary folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: str | None = None):
        """Makes the folder; the first one of a process in a place removes what dead processes left there.

        Args:
            parent: where; None for the system's temporary directory.

        Raises:
            OSError: the folder cannot be made.
        """
        if parent not in _swept:
            _swept.add(parent)
            sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent or None))
        # Locked before it gets its name: whoever sees the name sees a lock that is taken.
        unnamed = self.path / "lock.new"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / "lock")
        self._owner = os.getpid()

    def note_instance(self, instance_id: str) -> None:
        """Records the engine's instance, whose shared memory is to go with the folder."""
        (self.path / "instance").write_text(instance_id, encoding="ascii")

    def remove(self) -> None:
        """Removes the folder and the engine's shared memory; does nothing a second time, or in a forked child."""
        if self._lock >= 0 and os.getpid() == self._owner:
            _remove(self.path)
            os.close(self._lock)
            self._lock = -1


def sweep(parent: str | None = None) -> int:
    """Removes the folders of dead processes.

    Args:
        parent: where to look; None for the system's temporary directory.

    Returns:
        How many were removed.
    """
    removed = 0
    for folder in _folders(Path(parent or tempfile.gettempdir())):
        if _is_orphan(folder):
            _remove(folder)
            removed += 1
    return removed


def _folders(parent: Path) -> Iterator[Path]:
    try:
        yield from [path for path in parent.iterdir() if path.name.startswith(FOLDER_PREFIX)]
    except OSError:
        return


def _is_orphan(folder: Path) -> bool:
    """Whether nobody holds the folder's lock."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        try:
            return time.time() - folder.stat().st_mtime > _SECONDS_TO_LOCK
        except OSError:
            return False
    except OSError:
        return False  # another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(folder: Path) -> None:
    try:
        instance_id = (folder / "instance").read_text(encoding="ascii")
    except OSError:
        instance_id = ""
    if instance_id.isalnum():
        for kind in ("SM", "MQCtr", "MQDoom"):
            (_SHARED_MEMORY / f"ViZDoom{kind}{instance_id}").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
