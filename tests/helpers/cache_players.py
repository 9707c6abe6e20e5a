"""What the tests of the level cache share: looking into its files, and processes that play episodes through it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np

from sf_fixpo.envs.dmlab.cache import level_cache, shared_lines
from sf_fixpo.envs.dmlab.cache.level_cache import LevelCache, index_path, make_level_cache, parse_index, used_seeds_path
from sf_fixpo.envs.dmlab.names import level_path

COMPILING_LAB = Path(__file__).with_name("compiling_lab")
LEVELS = ("explore_goal_locations_small", "rooms_keys_doors_puzzle")
LEVEL = LEVELS[0]


def cache_cfg(folder: Path, experiment: str = "a", **changes) -> Namespace:
    """Flags of an experiment whose cache and train_dir are in `folder`."""
    cfg = Namespace(
        env="dmlab_30",
        dmlab_levels="",
        dmlab_use_level_cache=True,
        dmlab_level_cache_path=str(folder / "cache"),
        train_dir=str(folder / "train"),
        experiment=experiment,
    )
    vars(cfg).update(changes)
    return cfg


def make_map(path: Path, content: str = "map") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as pk3:
        pk3.writestr("maps/map.bsp", content)
    return path


def fill(folder: Path, *seeds: int, level: str = LEVEL) -> None:
    """Stores a map for each seed, with the key `k<seed>`."""
    cache = LevelCache(folder / "cache", level)
    for seed in seeds:
        cache.start(seed)
        cache.write(f"k{seed}", str(make_map(folder / "made.pk3", str(seed))))


def index_of(folder: Path, level: str = LEVEL) -> list[tuple[int, str]]:
    """Seeds and keys of an index, each line of which must be whole."""
    path = index_path(folder / "cache", level)
    lines = path.read_bytes().splitlines() if path.exists() else []
    entries = [(seed, key) for seed, key, _ in parse_index(lines)]
    assert len(entries) == len(lines)
    return entries


def used_in(folder: Path, experiment: str = "a", level: str = LEVEL) -> list[int]:
    path = used_seeds_path(folder / "train" / experiment, level)
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def play(folder: Path, experiment: str, episodes: int) -> None:
    """Claims a seed, notes it in `folder/claims.<experiment>`, and gets the map; stops early where `folder/stop` is.

    All draw the same candidates, so that nothing but the lock keeps their seeds apart.
    """
    sys.path.insert(0, str(COMPILING_LAB))
    from deepmind_lab import Lab, map_content, map_key

    cfg = cache_cfg(folder, experiment)
    caches = {level: make_level_cache(cfg, level) for level in LEVELS}
    config = {"width": "4", "height": "3"}
    labs = {
        level: Lab(level_path(level), [], config, level_cache=cache, temp_folder=str(folder)) for level, cache in caches.items()
    }
    rng = np.random.default_rng(7)
    notes = os.open(folder / f"claims.{experiment}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for episode in range(episodes):
        if (folder / "stop").exists():
            break
        level = LEVELS[episode % len(LEVELS)]
        seed = caches[level].claim_seed(rng)
        os.write(notes, f"{level} {seed}\n".encode())
        labs[level].reset(seed=seed)
        assert labs[level].map == map_content(map_key(level_path(level), seed))
    for lab in labs.values():
        lab.close()


def die_everywhere(folder: Path, stride: int) -> None:
    """Plays an episode in process after process, each killed `stride` lines of the cache's code further on than the one before.

    Each has a folder of its own below `folder`. Another process goes on there with two episodes, the first of them with the
    candidate of the one that died, and the name of the function that was not finished is left in `died`.
    """
    for lines in range(1, 2000, stride):
        here = folder / str(lines)
        here.mkdir()
        died = _in_a_fork(_play_and_die, here, lines) != 0
        if _in_a_fork(play, here, "a", 2) != 0:
            raise RuntimeError(f"{here}: the next process failed")
        if not died:
            (here / "died").unlink()
            return


def _in_a_fork(function, *args) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function(*args)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def _play_and_die(folder: Path, lines: int) -> None:
    files = {level_cache.__file__, shared_lines.__file__, shutil.__file__}
    note = os.open(folder / "died", os.O_WRONLY | os.O_CREAT)

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            lines -= 1
            if lines == 0:
                os.write(note, frame.f_code.co_name.encode())
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    play(folder, "a", episodes=1)
    sys.settrace(None)
