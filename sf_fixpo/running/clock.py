"""Seconds in which this process could run: a clock that nobody sets, and that stands still while everything is stopped.

sample-factory's timers and heartbeats read `time.time()`. A clock that is set an hour back stops them for an hour, one that is
set forward makes every process look silent, and so does a laptop's lid or a cluster that suspends a job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import signal_slot.signal_slot
from sample_factory.algo.runners import runner as sf_runner

TICK_SECONDS = 0.5
_LONGEST_TICK_SECONDS = 5.0  # of a thread that wants to run every half second; what is above it was not spent running


class AwakeClock:
    """The monotonic clock without the time in which this process was stopped; takes the place of the module `time` elsewhere.

    Its `tick` has to be called every `TICK_SECONDS` by a thread: a gap between two calls is a time in which nobody ran.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic):
        """Starts at the monotonic clock's time, which all processes of a machine share.

        Args:
            monotonic: the clock underneath, seconds.
        """
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._ticking = False
        self._awake = self._last = monotonic()

    def tick(self) -> None:
        """Takes over the time since the last call, or what of it can have been spent running."""
        with self._lock:
            self._awake, self._last = self._now(), self._monotonic()
            self._ticking = True

    def time(self) -> float:
        """Seconds; without a thread that ticks, those of the monotonic clock."""
        with self._lock:
            return self._now()

    def _now(self) -> float:
        gap = self._monotonic() - self._last
        return self._awake + (min(gap, _LONGEST_TICK_SECONDS) if self._ticking else gap)


CLOCK = AwakeClock()


def use_awake_clock() -> None:
    """From now on the timers and heartbeats of sample-factory in this process read `CLOCK`."""
    signal_slot.signal_slot.time = CLOCK  # type: ignore[assignment] # they call nothing but time.time()
    sf_runner.time = CLOCK  # type: ignore[assignment]
