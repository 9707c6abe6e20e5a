"""What a run takes of its machine, measured beside it: processor, memory, GPU."""

from __future__ import annotations

import shutil
import subprocess
import threading
from contextlib import suppress

import psutil

from sf_fixpo.records.live import Usage

_EVERY_SECONDS = 3.0
_QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")


def gpu_text(answer: str) -> str | None:
    """The first line of `nvidia-smi`'s answer in words; None where it is none."""
    with suppress(ValueError, IndexError):
        share, used, total = (float(part) for part in answer.splitlines()[0].split(","))
        return f"{share:.0f} %, {used / 1024:.1f} of {total / 1024:.0f} GiB"
    return None


def ask_gpu() -> str | None:
    """The first GPU of this machine; None without one, or where it does not answer."""
    if shutil.which(_QUERY[0]) is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        return gpu_text(subprocess.run(_QUERY, capture_output=True, text=True, timeout=5, check=True).stdout)
    return None


class UsageMeter:
    """A process and all that it has started, looked at every few seconds by a thread of its own, so that nobody waits.

    Attributes:
        latest: None before the second look: a share of a processor is between two.
    """

    def __init__(self, pid: int):
        """Starts to look."""
        self._pid = pid
        self._known: dict[int, psutil.Process] = {}
        self._stop = threading.Event()
        self.latest: Usage | None = None
        threading.Thread(target=self._run, daemon=True, name="usage").start()

    def close(self) -> None:
        """Looks no more."""
        self._stop.set()

    def _run(self) -> None:
        self.measure()
        while not self._stop.wait(_EVERY_SECONDS):
            self.latest = self.measure()

    def measure(self) -> Usage | None:
        """What it takes now, since the look before; None where it has ended."""
        try:
            root = psutil.Process(self._pid)
            alive = [root, *root.children(recursive=True)]
        except psutil.Error:
            return None
        self._known = {process.pid: self._known.get(process.pid, process) for process in alive}
        cpu, memory = 0.0, 0
        for process in self._known.values():
            with suppress(psutil.Error):  # ended meanwhile
                cpu += process.cpu_percent() / 100
                memory += process.memory_info().rss
        return Usage(len(self._known), cpu, memory, ask_gpu())
