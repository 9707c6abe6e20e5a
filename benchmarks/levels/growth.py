"""Whether anything grows: memory of many environments of mixed levels, and of one over many episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS

from benchmarks.levels import labs

_STEPS = 5  # of each episode, so that thousands of them take minutes


def mixed_memory(count: int) -> float:
    """MiB that so many environments take, the thirty levels in turn, this process and its libraries included."""
    opened = []
    try:
        rng, table = np.random.default_rng(0), labs.actions()
        for number in range(count):
            lab = labs.make_lab(DMLAB30_LEVELS[number % len(DMLAB30_LEVELS)])
            opened.append(lab)
            lab.reset(seed=number)
            labs.step_at_random(lab, rng, table, 50)
        return labs.memory_mib()
    finally:
        for lab in opened:
            lab.close()


@dataclass(frozen=True)
class Growth:
    """What one environment of a level had after a tenth of its episodes and after all.

    Attributes:
        level: its name.
        episodes: how many it has begun.
        early: MiB after a tenth.
        late: MiB at the end.
        files: by how many open files it had more at the end.
    """

    level: str
    episodes: int
    early: float
    late: float
    files: int

    def line(self) -> str:
        """A row in Markdown."""
        return f"| {self.level} | {self.episodes} | {self.early:.1f} | {self.late:.1f} | {self.files:+d} |"


HEADER = "| level | episodes | MiB after a tenth | MiB at the end | open files |\n|---|---|---|---|---|"


def growth_of(level: str, episodes: int) -> Growth:
    """Begins episodes in one environment and plays some steps of each."""
    rng, table = np.random.default_rng(0), labs.actions()
    early, files = 0.0, 0
    with labs.lab_of(level) as lab:
        for seed in range(episodes):
            lab.reset(seed=seed)
            labs.step_at_random(lab, rng, table, _STEPS)
            if seed == max(1, episodes // 10):
                early, files = labs.memory_mib(), labs.open_files()
        return Growth(level, episodes, early, labs.memory_mib(), labs.open_files() - files)
