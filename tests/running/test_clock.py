"""The clock of timers and heartbeats: nobody sets it, and it stands still while the process does."""

from __future__ import annotations

import time

import pytest
import signal_slot.signal_slot
from sample_factory.algo.runners import runner as sf_runner

from sf_fixpo.running import clock
from sf_fixpo.running.clock import AwakeClock


class Now:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_it_goes_with_the_monotonic_clock_while_it_is_ticked():
    now = Now()
    awake = AwakeClock(now)
    for _ in range(20):
        awake.tick()
        now.seconds += 0.5
    assert awake.time() == pytest.approx(110)


def test_time_in_which_nobody_ticks_was_not_spent_running():
    now = Now()
    awake = AwakeClock(now)
    awake.tick()
    now.seconds += 3600  # the lid is closed
    assert awake.time() <= 105, "whoever asks first after that is told so too"
    awake.tick()
    now.seconds += 0.5
    assert awake.time() == pytest.approx(105.5)


def test_it_never_goes_back():
    now = Now()
    awake = AwakeClock(now)
    awake.tick()
    seen = []
    for gap in (0.5, 4.0, 30.0, 0.1, 700.0, 0.5):
        now.seconds += gap
        seen.append(awake.time())
        awake.tick()
        seen.append(awake.time())
    assert seen == sorted(seen)


def test_without_a_thread_that_ticks_it_is_the_monotonic_clock():
    now = Now()
    awake = AwakeClock(now)
    now.seconds += 60
    assert awake.time() == 160


def test_timers_of_sample_factory_no_longer_heed_the_wall_clock(monkeypatch):
    monkeypatch.setattr(signal_slot.signal_slot, "time", time)
    monkeypatch.setattr(sf_runner, "time", time)
    clock.use_awake_clock()
    timer = signal_slot.signal_slot.Timer(signal_slot.signal_slot.EventLoop("test", serial_mode=True), 60.0)
    monkeypatch.setattr(time, "time", lambda: 1e12)  # somebody sets it forward
    assert 59 < timer.remaining_time() <= 60
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 59 < timer.remaining_time() <= 60
    assert sf_runner.time is clock.CLOCK
