"""Several ranks in one process, each a thread, for what they say to each other; `rank_processes` is for what they reckon."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from torch.distributed import HashStore, PrefixStore  # pyright: ignore[reportPrivateImportUsage]

from sf_fixpo.learning.meeting import Meeting, Rank


def make_meetings(count: int = 2, timeout: float = 20.0) -> list[Meeting]:
    """One for each rank."""
    store = HashStore()
    return [Meeting(Rank(i, count, "", 0), timeout, store=PrefixStore("run", store)) for i in range(count)]


def on_each(action: Callable[[int], Any], count: int = 2, within: float = 60.0) -> list[Any]:
    """What `action(rank)` returns on each rank, or the exception that it raised there."""
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = action(rank)
        except Exception as exc:  # noqa: BLE001 - for the test to look at
            results[rank] = exc

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # they wait for each other all the time
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(within)
            assert not thread.is_alive(), "a rank hangs"
    finally:
        sys.setswitchinterval(interval)
    return results


def none_failed(results: list[Any]) -> list[Any]:
    """The same, where all went well."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
