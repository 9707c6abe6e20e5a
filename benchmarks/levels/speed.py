"""How fast each level is: agent steps, a start, a restart."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.levels import labs

_STARTS, _RESTARTS = 3, 12
_EVERYTHING = 1 << 30
TARGETS = {"steps": 1500.0, "start": 0.3, "restart": 0.010}


@dataclass(frozen=True)
class Speed:
    """What one level takes.

    Attributes:
        level: its name.
        steps: agent steps of 4 frames in a second of processor time, engine and adapter together, resets left out.
        wall_steps: the same in a second of the clock, on a machine that may be doing other things.
        start: seconds of the clock from nothing to the first frame; the least of three, as other work only adds to it.
        restart: seconds of the clock that `reset` and the first frame take, the median of twelve.
    """

    level: str
    steps: float
    wall_steps: float
    start: float
    restart: float

    def misses(self) -> list[str]:
        """Which of the targets it misses."""
        named = [("steps", self.steps < TARGETS["steps"]), ("start", self.start > TARGETS["start"])]
        return [name for name, missed in [*named, ("restart", self.restart > TARGETS["restart"])] if missed]


def speed_of(level: str, seconds: float) -> Speed:
    """Measures one level with a random agent at 96 x 72 and skip 4.

    Args:
        level: its name.
        seconds: of stepping.
    """
    starts = []
    for number in range(_STARTS):
        begin = time.perf_counter()
        with labs.lab_of(level) as lab:
            lab.reset(seed=number)
            lab.observations()
            starts.append(time.perf_counter() - begin)
    rng, table = np.random.default_rng(0), labs.actions()
    with labs.lab_of(level) as lab:
        lab.reset(seed=0)
        restarts = []
        for seed in range(_RESTARTS):
            before = time.perf_counter()
            lab.reset(seed=seed)
            lab.observations()
            restarts.append(time.perf_counter() - before)
        steps, wall, cpu, seed = 0, 0.0, 0.0, 100
        while wall < seconds:
            lab.reset(seed=seed)
            seed += 1
            begin, used = time.perf_counter(), labs.cpu_seconds()
            # parts short enough to end in time, long enough for the processor's clock of 10 ms
            while lab.is_running() and wall + time.perf_counter() - begin < seconds:
                steps += labs.step_at_random(lab, rng, table, 200)[1]
            wall, cpu = wall + time.perf_counter() - begin, cpu + labs.cpu_seconds() - used
    return Speed(level, steps / cpu, steps / wall, min(starts), statistics.median(restarts))


def table(rows: list[Speed]) -> str:
    """The rows in Markdown."""
    lines = [
        "| level | steps a processor second | a second | start, s | restart, ms | misses |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.level, f"{row.steps:,.0f}", f"{row.wall_steps:,.0f}", f"{row.start:.2f}", f"{row.restart * 1000:.1f}"]
        lines.append(f"| {' | '.join([*cells, ', '.join(row.misses())])} |")
    return "\n".join(lines)
