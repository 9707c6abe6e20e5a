"""Labs of the stand-in for measurements."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS

from sf_fixpo.envs.dmlab.engines import sample_factory_tables
from sf_fixpo.envs.dmlab.stand_in.engine import Lab
from sf_fixpo.envs.dmlab.stand_in.levels import LEVELS

SKIP = 4
_SEEN = ("RGB_INTERLEAVED", "INSTR")
KNOWN = (*_SEEN, "DEBUG.POS.TRANS", "DEBUG.POS.ROT")  # what a scripted player asks for


def all_levels() -> tuple[str, ...]:
    """The thirty, and the two variants for evaluation that have a file of their own."""
    return (*DMLAB30_LEVELS, *(level for level in LEVELS if level not in DMLAB30_LEVELS))


def make_lab(level: str, width: int = 96, height: int = 72, observations: tuple[str, ...] = _SEEN) -> Lab:
    """Starts a level."""
    config = {"width": str(width), "height": str(height), "allowHoldOutLevels": "true"}
    return Lab(level, list(observations), config=config)


@contextmanager
def lab_of(level: str, width: int = 96, height: int = 72, observations: tuple[str, ...] = _SEEN) -> Iterator[Lab]:
    """A level that is closed afterwards."""
    lab = make_lab(level, width, height, observations)
    try:
        yield lab
    finally:
        lab.close()


def actions() -> np.ndarray:
    """The fifteen actions, np.intc (15, 7): with nine nobody looks up or down, which three psychlab levels need."""
    return np.array(sample_factory_tables().EXTENDED_ACTION_SET, np.intc)


def step_at_random(lab: Lab, rng: np.random.Generator, table: np.ndarray, steps: int) -> tuple[float, int]:
    """Plays an episode, or so many steps of it, with uniformly random actions; the return and the steps."""
    total, count = 0.0, 0
    while lab.is_running() and count < steps:
        total += lab.step(table[int(rng.integers(len(table)))], num_steps=SKIP)
        if lab.is_running():
            lab.observations()
        count += 1
    return total, count


def family() -> list[psutil.Process]:
    """This process and the engines that it has started."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds() -> float:
    """Processor time of this process and its engines so far."""
    return sum(sum(process.cpu_times()[:2]) for process in family())


def memory_mib() -> float:
    """Memory of this process and its engines, MiB; what processes share is counted once."""
    return sum(process.memory_full_info().pss for process in family()) / 2**20


def open_files() -> int:
    """Open files of this process."""
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))
