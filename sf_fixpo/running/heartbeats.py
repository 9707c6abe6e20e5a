"""Who has said nothing for too long: components of a run by their heartbeats, other processes by their processor time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from sf_fixpo.running.clock import CLOCK

_BUSY_SHARE = 1e-3


@dataclass(frozen=True)
class Silent:
    """A component without a heartbeat.

    Attributes:
        component: such as `RolloutWorker_w0`.
        process: the name of its process.
        seconds: since its last heartbeat.
    """

    component: str
    process: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.component} in process {self.process} for {self.seconds:.0f} s"


class Heartbeats:
    """When each component of a run was heard of last.

    sample-factory gives up only where all components of a kind are silent: a run with one worker stopped would go on without it,
    and a synchronous one would wait for ever.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = CLOCK.time):
        """Has heard of nobody yet.

        Args:
            limit: seconds; who is silent for longer is reported.
            clock: stands still while this process is stopped.
        """
        self._limit, self._clock = limit, clock
        self._heard: dict[str, tuple[str, float]] = {}

    def receive(self, component: str, process: str) -> None:
        """Takes down a heartbeat."""
        self._heard[component] = process, self._clock()

    def silent(self) -> list[Silent]:
        """Components that were heard of, but not for too long; the one that fell silent first comes first."""
        now = self._clock()
        found = [Silent(name, process, now - at) for name, (process, at) in self._heard.items() if now - at > self._limit]
        return sorted(found, key=lambda silent: -silent.seconds)


class ProcessorUse:
    """Whether a process and its descendants still do something, however slowly: one that is stopped or waits for ever does not.

    At the lowest priority a process that works gets one part in seventy of a core beside a busy one; one that sleeps and looks
    twice a second whether its parent lives needs one in ten thousand.
    """

    def __init__(self, pid: int, window: float, clock: Callable[[], float] = CLOCK.time):
        """Starts to look.

        Args:
            pid: of the process.
            window: seconds; where less than a thousandth of these is processor time, it has stalled.
            clock: stands still while this process is stopped.
        """
        self._pid, self._window, self._clock = pid, window, clock
        self._used, self._since = _cpu_seconds(pid), clock()

    def stalled(self) -> bool:
        """Whether it has done nothing for a window's time; known after two of them at the latest."""
        now = self._clock()
        if now - self._since <= self._window:
            return False
        used = _cpu_seconds(self._pid)
        idle = abs(used - self._used) < _BUSY_SHARE * self._window  # less than before where a descendant has ended
        self._used, self._since = used, now
        return idle


def _cpu_seconds(pid: int) -> float:
    total = 0.0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            total += times.user + times.system
    except psutil.Error:  # it has just ended, and somebody else will say so
        return -1.0
    return total
