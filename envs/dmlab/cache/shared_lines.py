"""Text files that many programs read and add lines to, and that survive the death of any of them.

The lock is the kernel's, on the file itself (`flock`): unrelated programs see it, and it goes with its holder, however that ends.
The file is never replaced, so that everyone locks the same one. On NFS Linux keeps such locks on the server; Lustre has to be
mounted with `-o flock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_TAIL = 4096


class SharedLines:
    """A file of lines, each of them whole: a line that a crash has torn is not read, and cut off before the next is added.

    Attributes:
        path: of the file, which need not be there.
    """

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0
        self._file = (0, 0)

    def read_new(self) -> list[bytes]:
        """The whole lines since the last call, without their ends; takes no lock.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            state = self.path.stat()
            if ((state.st_dev, state.st_ino), state.st_size) == (self._file, self._offset):
                return []
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return []
        try:
            return self._read_new(file)
        finally:
            os.close(file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[LockedLines]:
        """Keeps every other process, and every other thread, from adding lines meanwhile.

        What was added is on the disk when the block has ended, but others do not wait for the disk.

        Raises:
            OSError: the file cannot be made, locked or written.
        """
        file = self._open()
        try:
            # Opened anew for every lock: a descriptor that a forked process shares would share the lock too.
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                size = _cut_torn_line(file)
                yield LockedLines(self, file)
                grown = os.fstat(file).st_size > size
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
            if grown:
                os.fsync(file)
            if grown and size == 0:
                sync_folder(self.path.parent)
        finally:
            os.close(file)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        try:
            return os.open(self.path, flags, 0o666)
        except FileNotFoundError:
            make_folder(self.path.parent)
            return os.open(self.path, flags, 0o666)

    def _read_new(self, file: int) -> list[bytes]:
        state = os.fstat(file)
        if (state.st_dev, state.st_ino) != self._file or state.st_size < self._offset:
            self._file, self._offset = (state.st_dev, state.st_ino), 0  # somebody has put another file in its place
        whole, _, _ = os.pread(file, state.st_size - self._offset, self._offset).rpartition(b"\n")
        if not whole:
            return []
        self._offset += len(whole) + 1
        return whole.split(b"\n")


class LockedLines:
    """A file of lines whose lock this process holds."""

    def __init__(self, lines: SharedLines, file: int):
        self._lines, self._file = lines, file

    def read_new(self) -> list[bytes]:
        """As that of `SharedLines`, and nothing can come in between."""
        return self._lines._read_new(self._file)

    def read_all(self) -> bytes:
        """The whole file."""
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def append(self, line: bytes) -> None:
        """Adds a line.

        Args:
            line: without its end.

        Raises:
            OSError: it could not be written, such as on a full disk; then no part of it is left.
        """
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line + b"\n") <= len(line):
                raise OSError(f"{self._lines.path}: only a part of a line could be written; is the disk full?")
        except OSError:
            os.ftruncate(self._file, size)
            raise


def _cut_torn_line(file: int) -> int:
    """Ends a file after its last line end; returns its size."""
    size = end = os.fstat(file).st_size
    while end:
        begin = max(0, end - _TAIL)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        end = begin if found < 0 else begin + found + 1
        if found >= 0:
            break
    if end < size:
        os.ftruncate(file, end)
    return end


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, so that they outlive a crash of the machine.

    Raises:
        OSError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the file system can do that."""
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(file)
    finally:
        os.close(file)
