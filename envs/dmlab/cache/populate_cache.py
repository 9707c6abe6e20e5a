"""Compiles maps ahead of training and puts them into the level cache, so that no episode waits seconds for its map.

python -m sf_fixpo.envs.dmlab.cache.populate_cache --levels=rooms_keys_doors_puzzle --count=1000 --dmlab_level_cache_path=DIR

What is there counts: a run that was stopped goes on where it was. It is for DeepMind Lab; the stand-in compiles nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
import zlib
from argparse import SUPPRESS, ArgumentParser
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from sf_examples.dmlab.dmlab30 import (
    DMLAB30_APPROX_NUM_EPISODES_PER_BILLION_FRAMES,
    DMLAB30_LEVELS_THAT_USE_LEVEL_CACHE,
)

from sf_fixpo import cli
from sf_fixpo.envs.dmlab import SUITE, engines, names
from sf_fixpo.envs.dmlab.cache.level_cache import SEEDS, cache_faults, cache_folder, index_path, parse_index, uses_cache
from sf_fixpo.envs.dmlab.cache.map_workers import Worker
from sf_fixpo.envs.dmlab.cache.shared_lines import SharedLines

# A level is given up after so many seeds in a row that came to nothing.
FAILURES_IN_A_ROW = 3
_SECONDS_TO_FINISH = 10.0
INTERRUPTED = 130


@dataclass
class Work:
    """What is to be done for one level.

    Attributes:
        level: its name.
        count: maps wanted.
        folder: of the cache.
        rng: of the seeds.
        seeds: those with a map.
        underway: seeds that workers have.
        failures: in a row.
        given_up: whether they were too many.
    """

    level: str
    count: int
    folder: Path
    rng: np.random.Generator
    seeds: set[int] = field(default_factory=set)
    underway: int = 0
    failures: int = 0
    given_up: bool = False

    def __post_init__(self):
        """Reads the index."""
        self._index = SharedLines(index_path(self.folder, self.level))
        self.look()

    def look(self) -> int:
        """Reads what is new in the index, by whichever program it was made; returns how many maps there are."""
        entries = parse_index(self._index.read_new())
        self.seeds.update(seed for seed, key, _ in entries if (self.folder / key).is_file())
        return len(self.seeds)

    def left(self) -> int:
        """How many seeds should still be given to workers."""
        return 0 if self.given_up else self.count - len(self.seeds) - self.underway

    def take_seed(self) -> int:
        """A seed without a map."""
        self.underway += 1
        while (seed := int(self.rng.integers(SEEDS))) in self.seeds:
            pass
        return seed

    def put_back(self, seed: int, failure: str | None) -> str | None:
        """Ends what `take_seed` began.

        Args:
            seed: that was taken.
            failure: what came instead of a map; None where one should have been made.

        Returns:
            What is to be reported.
        """
        self.underway -= 1
        self.look()
        if failure is None and seed in self.seeds:
            self.failures = 0
            return None
        self.failures += 1
        failure = failure or f"no new map was stored for seed {seed}"
        if self.failures < FAILURES_IN_A_ROW or self.given_up:
            return f"{self.level}: {failure}"
        self.given_up = True
        return f"{self.level}: {failure}; given up after {FAILURES_IN_A_ROW} failures in a row"


class Program:
    """Workers, and what they are to do."""

    def __init__(self, cfg: Any, works: list[Work], console: Console):
        """Starts nothing.

        Args:
            cfg: the parsed flags.
            works: one for each level.
            console: where progress and failures are shown.
        """
        self._cfg, self._works, self._console = cfg, works, console
        self._workers: list[Worker] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
        self._progress = Progress(*columns, console=console)
        self._bars: dict[str, TaskID] = {
            work.level: self._progress.add_task(work.level, total=work.count, completed=len(work.seeds)) for work in works
        }

    def run(self) -> None:
        """Works until every level has its maps or has been given up. Leaves no process, also where it is interrupted."""
        with tempfile.TemporaryDirectory(prefix="dmlab_populate_", ignore_cleanup_errors=True) as temp_folder, self._progress:
            try:
                while busy := self._hand_out(temp_folder):
                    wait([signal for worker in busy for signal in worker.signals])
                    for worker in filter(Worker.is_ready, busy):
                        self._take_in(worker)
            finally:
                self._dismiss()

    def _hand_out(self, temp_folder: str) -> list[Worker]:
        """Gives idle workers their next seeds, starts workers that are missing; returns those that are at work."""
        wanted = min(self._cfg.workers, sum(max(0, work.left()) for work in self._works))
        busy = [worker for worker in self._workers if worker.seed is not None]
        while len(self._workers) < min(self._cfg.workers, len(busy) + wanted):
            self._workers.append(Worker(self._cfg, temp_folder))
        for worker in self._workers:
            work = self._next_work(worker) if worker.seed is None else None
            if work is not None:
                worker.give(work.level, work.take_seed())
        return [worker for worker in self._workers if worker.seed is not None]

    def _next_work(self, worker: Worker) -> Work | None:
        """The level that the worker's engine plays as long as that needs maps, then the one with most left for each worker."""
        unfinished = [work for work in self._works if work.left() > 0]
        return max(unfinished, key=lambda work: (work.level == worker.level, work.left() / (1 + work.underway)), default=None)

    def _take_in(self, worker: Worker) -> None:
        seed, failure = worker.take_result()
        if worker.is_dead:
            self._workers.remove(worker)
        work = next(work for work in self._works if work.level == worker.level)
        report = work.put_back(seed, failure)
        if report is not None:
            self._console.print(report, highlight=False, soft_wrap=True, markup=False)
        self._progress.update(self._bars[work.level], completed=len(work.seeds))

    def _dismiss(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_FINISH
        for worker in self._workers:
            worker.dismiss()
        try:
            for worker in self._workers:
                worker.end(deadline)
        finally:  # a second Ctrl-C
            for worker in self._workers:
                worker.end(0.0)
        self._workers.clear()


def make_parser() -> ArgumentParser:
    """The flags: the suite's, and this program's own."""
    parser = ArgumentParser(
        prog="python -m sf_fixpo.envs.dmlab.cache.populate_cache",
        description="Compiles maps of DMLab-30 levels ahead of training, into the level cache (DeepMind Lab only).",
    )
    SUITE.add_args(parser)
    parser.add_argument(
        "--levels", dest="dmlab_levels", default=SUPPRESS, help="The same as --dmlab_levels; all that compile maps, where empty"
    )
    parser.add_argument("--count", default=None, type=int, help="Maps for each level, those included that are there")
    parser.add_argument(
        "--frames",
        default=1e9,
        type=float,
        help="Without --count: as many maps as a run of all 30 levels plays episodes in so many frames (an estimate)",
    )
    parser.add_argument("--workers", default=1, type=int, help="Processes; each compiles one map at a time")
    parser.add_argument("--seed", default=None, type=int, help="Of the seeds that maps are made for; without, others every time")
    parser.set_defaults(env=names.ALL, env_frameskip=4, pixel_format="CHW")
    return parser


def levels_to_fill(cfg: Any) -> tuple[str, ...]:
    """The levels asked for, by their canonical names."""
    return names.levels_of(names.ALL, cfg.dmlab_levels) if cfg.dmlab_levels else tuple(DMLAB30_LEVELS_THAT_USE_LEVEL_CACHE)


def wanted_maps(cfg: Any, level: str) -> int:
    """How many maps a level should have in the end."""
    if cfg.count is not None:
        return cfg.count
    return int(np.ceil(DMLAB30_APPROX_NUM_EPISODES_PER_BILLION_FRAMES[names.level_file(level)] * cfg.frames / 1e9))


def flag_faults(cfg: Any) -> list[str]:
    """What is wrong with the flags, one line a fault. `cfg.dmlab_engine` is resolved."""
    found = [
        f"--{flag}={value}: must be {bound}"
        for flag, value, bound, is_fine in (
            ("count", cfg.count, "at least 1", cfg.count is None or cfg.count >= 1),
            ("frames", cfg.frames, "more than 0", 0 < cfg.frames < float("inf")),
            ("workers", cfg.workers, "at least 1", cfg.workers >= 1),
            ("seed", cfg.seed, "at least 0", cfg.seed is None or cfg.seed >= 0),
        )
        if not is_fine
    ]
    found += names.level_faults(names.ALL, cfg.dmlab_levels, engines.playable_levels(cfg.dmlab_engine), cfg.dmlab_engine)
    idle = [level for level in levels_to_fill(cfg) if not uses_cache(level)]
    if idle:
        found.append(
            f"--levels={cfg.dmlab_levels}: {', '.join(idle)} has no use for the cache; these have: "
            f"{', '.join(DMLAB30_LEVELS_THAT_USE_LEVEL_CACHE)}"
        )
    if not found:
        cfg.dmlab_levels = ",".join(levels_to_fill(cfg))
        found += cache_faults(cfg)
    return found


def main(argv: list[str] | None = None) -> int:
    """Fills the cache.

    Args:
        argv: flags; None for those of the command line.

    Returns:
        Exit status: 0 where every level has its maps, 1 where one was given up, 2 for bad flags or an engine that compiles
        nothing, 130 after Ctrl-C.
    """
    parser = make_parser()
    cfg = cli.parse(parser, argv)
    cfg.dmlab_use_level_cache = True
    engine = engines.choose_engine(cfg.dmlab_engine)
    if engine is None:
        parser.error(f"--dmlab_engine={cfg.dmlab_engine}: {engines.missing_message(cfg.dmlab_engine)}")
    if engine != engines.DEEPMIND_LAB:
        parser.error(
            f"--dmlab_engine={cfg.dmlab_engine}: the engine here is {engine}, which compiles no maps and never asks the level "
            f"cache, so that there is nothing to fill. {engines.INSTALL[engines.DEEPMIND_LAB]}"
        )
    cfg.dmlab_engine = engine
    faults = flag_faults(cfg)
    if faults:
        parser.error("\n".join(faults))
    return _fill(cfg)


def _fill(cfg: Any) -> int:
    console = Console()
    folder = cache_folder(cfg)
    works = []
    for level in levels_to_fill(cfg):
        entropy = None if cfg.seed is None else [cfg.seed, zlib.crc32(level.encode())]
        works.append(Work(level, wanted_maps(cfg, level), folder, np.random.default_rng(entropy)))
    before = sum(len(work.seeds) for work in works)
    interrupted = False
    try:
        Program(cfg, works, console).run()
    except KeyboardInterrupt:
        interrupted = True
    short = [work for work in works if work.look() < work.count]
    made = sum(len(work.seeds) for work in works) - before
    console.print(f"{made} maps added to {folder}; {before + made} there", highlight=False, soft_wrap=True)
    for work in short:
        console.print(f"{work.level}: {len(work.seeds)} of {work.count} maps", highlight=False, soft_wrap=True)
    if interrupted:
        console.print("Stopped; the same command goes on from here.", highlight=False)
        return INTERRUPTED
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
