"""A command that does not outlive its starter, process PID: `python -m sf_fixpo.launcher.backends.tied PID COMMAND...`.

When PID ends, however it does, the command gets SIGTERM; also when this process itself is killed. SIGTERM, SIGINT and SIGUSR1 are
passed on. The exit status is the command's, 128 + signal where it was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(command: Sequence[str], python: str = sys.executable) -> list[str]:
    """The command, tied to the calling thread's process.

    Args:
        command: arguments of a process.
        python: interpreter with this package installed.
    """
    return [python, "-m", "sf_fixpo.launcher.backends.tied", str(os.getpid()), *command]


def _end_with(parent: int, libc: ctypes.CDLL | None) -> None:
    """Asks for SIGTERM at the parent's end; outside Linux, where nobody can be asked, only looks whether it is there."""
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # it may have ended before the wish was made
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parent, *command = sys.argv[1:] if argv is None else argv
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    _end_with(int(parent), libc)
    me = os.getpid()
    # this process has one thread, so that code may run between fork and exec
    process = subprocess.Popen(command, preexec_fn=lambda: _end_with(me, libc))
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
