"""Ranks as processes, started once for many tests: each does what a test asks for and sends back what came of it."""

from __future__ import annotations

import io
import multiprocessing
import random
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from sf_fixpo.learning.meeting import Meeting, Rank

TIMEOUT = 20.0  # seconds for a rank to wait for another one
WITHIN = 60.0  # seconds for all ranks to have done what a test asks for


class RankProcesses:
    """Processes that are the ranks of one run after the other, with a place to meet that lasts as long as they do.

    A function that they are asked to call is found by its module's name, as the tests' own are: its module must be importable.
    """

    def __init__(self, count: int = 2):
        """Starts them; what they import takes seconds, for which nobody has to wait."""
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._runs = 0
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, number, count, self._store.port, _filters()), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def start(self, action: Callable[..., Any], *args: Any, of_each: Sequence[tuple] = ()) -> None:
        """Asks each rank for `action(meeting, *args, *of_each[rank])`; `results` has what came of it."""
        self._runs += 1
        for number, pipe in enumerate(self._pipes):
            own = of_each[number] if of_each else ()
            pipe.send_bytes(_packed((self._runs, action, (*args, *own))))

    def results(self) -> list[Any]:
        """What the action returned on each rank, or the exception that it raised there."""
        found = []
        for number, pipe in enumerate(self._pipes):
            assert pipe.poll(WITHIN), f"rank {number} hangs"
            result, trace = _unpacked(pipe.recv_bytes())
            if trace:
                result.add_note(trace)
            found.append(result)
        return found

    def __call__(self, action: Callable[..., Any], *args: Any, of_each: Sequence[tuple] = ()) -> list[Any]:
        """What the action returns on each rank.

        Raises:
            Exception: that of the first rank that raised one.
        """
        self.start(action, *args, of_each=of_each)
        results = self.results()
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def close(self) -> None:
        """Ends them, whatever they do."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            pipe.close()
            process.kill()
            process.join()


def _packed(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)


def _filters() -> list[tuple]:
    """Which warnings are errors here, as arguments of `warnings.filterwarnings`."""
    return [
        (action, getattr(message, "pattern", message) or "", category, getattr(module, "pattern", module) or "", line)
        for action, message, category, module, line in warnings.filters
    ]


def _serve(pipe: Connection, number: int, count: int, port: int, filters: Sequence[tuple]) -> None:
    """A rank's process, until nobody asks it any more."""
    torch.set_num_threads(1)
    for each in reversed(filters):
        warnings.filterwarnings(*each)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=TIMEOUT), wait_for_workers=False)
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            return
        trace = ""
        try:
            run, action, args = _unpacked(content)
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            meeting = Meeting(Rank(number, count, "127.0.0.1", port), TIMEOUT, store=PrefixStore(f"run {run}", store))
            result = action(meeting, *args)
        except Exception as exc:  # noqa: BLE001 - for the test to look at
            result, trace = exc, traceback.format_exc()
        pipe.send_bytes(_packed((result, trace)))
