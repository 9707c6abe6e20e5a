"""Seconds per phase of an update, measured where the work is done: on the host, or by events on an accelerator's stream."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Adds up the time of named phases; no phase waits for the device.

    On CUDA the host runs ahead of the device, so that its clock would charge the work of a phase to whichever phase next reads a
    number; there, pairs of events are recorded and read once, by `seconds`.
    """

    def __init__(self, device: torch.device):
        """Starts empty."""
        self._on_cuda = device.type == "cuda"
        self._host: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the body of a `with` to a phase; phases must not be nested."""
        if self._on_cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            start_time = time.perf_counter()
            yield
            self._host[name] = self._host.get(name, 0.0) + time.perf_counter() - start_time

    def seconds(self) -> dict[str, float]:
        """Seconds per phase since the start; waits for the device's last event."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, start, end in self._events:
            self._host[name] = self._host.get(name, 0.0) + start.elapsed_time(end) / 1000.0
        self._events.clear()
        return dict(self._host)
