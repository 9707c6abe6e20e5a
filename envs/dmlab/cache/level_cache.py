"""Maps that DeepMind Lab has compiled, kept on disk, and the seeds of the episodes that are played on them.

Only the real engine compiles maps, and only for some levels does it take long enough to matter; sample-factory lists them. The
files are those of sample-factory's own cache, so that each reads what the other has made:

- `<cache>/<key>`: a map, under the name that DeepMind Lab gives it;
- `<cache>/_contributed/dmlab30/<level>.dm_lvl_seeds`: its index, lines `seed key`;
- `<experiment>/dmlab_used_lvl_seeds_p00/_contributed/...`: seeds that the experiment has used, one a line. sample-factory has
  such a folder for each policy; here one serves all policies of an experiment, so that no two of them play the same episode.

Unlike sample-factory's it is safe for many unrelated processes, killed at any moment: a map gets its name when it is complete and
on the disk, and before its line in the index; lines are added under a lock of the kernel; a seed is on the disk before its
episode starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sample_factory.utils.utils import experiment_dir, log
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS_THAT_USE_LEVEL_CACHE, dmlab30_level_name_to_level
from sf_examples.dmlab.dmlab_level_cache import level_to_filename

from sf_fixpo.envs.dmlab.cache.shared_lines import SharedLines, make_folder, sync_folder
from sf_fixpo.envs.dmlab.names import level_file, levels_of

USED_SEEDS = "dmlab_used_lvl_seeds_p00"
SEEDS = 2**31  # DeepMind Lab takes seeds below

_UNFINISHED = ".unfinished"
# An unfinished map whose lock is free is a dead process's, unless its writer is just about to lock it.
_SECONDS_TO_LOCK = 60.0
_KEY = re.compile(r"[^\s/._\0][^\s/\0]*")
_INDEX_LINE = re.compile(rb"(\d{1,10}) ([^\s/._\0][^\s/\0]*)\s*")
_USED_LINE = re.compile(rb"(\d{1,10})\s*")


class LevelCache:
    """The cache of one level for one environment: the object that DeepMind Lab takes as `level_cache`.

    Attributes:
        seed: of the episode; it is stored beside the map.
        asked: how many maps the engine has asked for.
    """

    def __init__(self, folder: Path, level: str, claims: SeedClaims | None = None):
        """Removes what processes left behind that died while they stored a map.

        Args:
            folder: of the cache; made with the first map.
            level: name of a DMLab-30 level.
            claims: None where the experiment does not keep track of its seeds.
        """
        self.seed = 0
        self.asked = 0
        self._folder = folder
        self._index = SharedLines(index_path(folder, level))
        self._claims = claims
        self._is_indexed = False
        sweep(folder)

    def claim_seed(self, rng: np.random.Generator) -> int:
        """The seed of the next episode, which nobody else in the experiment has had or will get.

        Args:
            rng: of the environment; one number is drawn, more where that one has been used.

        Returns:
            One that has a map and that the experiment has not used, else a random one; where the experiment does not keep track,
            a random one.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        if self._claims is None:
            self.start(int(rng.integers(SEEDS)))
        else:
            self.start(*self._claims.claim(rng))
        return self.seed

    def start(self, seed: int, is_indexed: bool = False) -> None:
        """Says which seed the next episode has, where that is not left to `claim_seed`.

        Args:
            seed: in [0, 2**31).
            is_indexed: whether the index has a map for it, so far as is known.
        """
        self.seed, self._is_indexed = seed, is_indexed

    def fetch(self, key: str, pk3_path: str) -> bool:
        """Copies a map to where DeepMind Lab wants it.

        Args:
            key: name of the map.
            pk3_path: where to copy it.

        Returns:
            False where there is none, or a torn one (sample-factory does not write them at one go): it has to be compiled.
        """
        self.asked += 1
        if not _KEY.fullmatch(key):
            return False
        try:
            shutil.copyfile(self._folder / key, pk3_path)
            if not zipfile.is_zipfile(pk3_path):
                Path(pk3_path).unlink()
                return False
        except FileNotFoundError:
            return False
        except OSError as error:
            _warn_once(f"{self._folder}: a map could not be read from the level cache: {error.strerror or error}")
            return False
        if not self._is_indexed:
            with contextlib.suppress(
                OSError
            ):  # it serves without its line too, which its writer may have died before it could add
                self._note(key)
        return True

    def write(self, key: str, pk3_path: str) -> None:
        """Keeps a map that DeepMind Lab has compiled. A cache that cannot be written is reported, and the episode goes on.

        Args:
            key: name of the map.
            pk3_path: the map.
        """
        if not _KEY.fullmatch(key):
            _warn_once(f"{self._folder}: {key!r} cannot be the name of a file in the level cache")
            return
        try:
            if not zipfile.is_zipfile(self._folder / key):
                _store(self._folder, key, pk3_path)
            self._note(key)
        except OSError as error:
            _warn_once(f"{self._folder}: a map could not be stored in the level cache: {error.strerror or error}")

    def _note(self, key: str) -> None:
        """Adds the map of this seed to the index, where neither the seed nor the map is in it."""
        seed, name = b"%d" % self.seed, key.encode()
        with self._index.locked() as lines:
            known = b"\n" + lines.read_all()
            # The whole file is searched, which takes milliseconds where compiling took seconds, and needs no memory afterwards.
            if b"\n" + seed + b" " not in known and b" " + name + b"\n" not in known:
                lines.append(seed + b" " + name)
        self._is_indexed = True


class SeedClaims:
    """The seeds of one level in one experiment: those it has used, and those that have a map and can be handed out."""

    def __init__(self, folder: Path, level: str, experiment: Path):
        """Reads the index and the used seeds.

        Args:
            folder: of the cache.
            level: name of a DMLab-30 level.
            experiment: folder of the experiment.

        Raises:
            OSError: they are there and cannot be read.
        """
        self._folder = folder
        self._index = SharedLines(index_path(folder, level))
        self._used_lines = SharedLines(used_seeds_path(experiment, level))
        self._used: set[int] = set()
        self._unused: list[bytes] = []  # lines of the index: half the memory of numbers and names
        # All at once and before any lock: of what is added later little is left to read under it.
        self._note_used(self._used_lines.read_new())
        self._note_cached()

    def claim(self, rng: np.random.Generator) -> tuple[int, bool]:
        """Hands out a seed, which is on the disk when this returns.

        Args:
            rng: as for `LevelCache.claim_seed`.

        Returns:
            The seed, and whether it has a map.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        try:
            with self._used_lines.locked() as lines:
                self._note_used(lines.read_new())
                self._note_cached()
                seed, has_map = self._choose(rng)
                lines.append(b"%d" % seed)
            return seed, has_map
        except OSError as error:
            raise RuntimeError(f"{self._used_lines.path}: the seed of an episode cannot be recorded: {error}") from error

    def _note_used(self, lines: list[bytes]) -> None:
        self._used.update(int(found[1]) for found in map(_USED_LINE.fullmatch, lines) if found)

    def _note_cached(self) -> None:
        self._unused += [line for seed, _, line in parse_index(self._index.read_new()) if seed not in self._used]

    def _choose(self, rng: np.random.Generator) -> tuple[int, bool]:
        candidate = int(rng.integers(SEEDS))
        while self._unused:
            # The candidate itself chooses, so that the sequence of candidates is the same whatever the cache has.
            place = candidate % len(self._unused)
            self._unused[place], self._unused[-1] = self._unused[-1], self._unused[place]
            for seed, key, _ in parse_index([self._unused.pop()]):
                if seed not in self._used and (self._folder / key).is_file():
                    return seed, True
        while candidate in self._used:
            candidate = int(rng.integers(SEEDS))
        return candidate, False


def index_path(folder: Path, level: str) -> Path:
    """The index of a level in a cache. A level's test variant has its own: the same seed makes other maps there."""
    return folder / level_to_filename(dmlab30_level_name_to_level(level))


def used_seeds_path(experiment: Path, level: str) -> Path:
    """The seeds of a level that an experiment has used."""
    return experiment / USED_SEEDS / level_to_filename(dmlab30_level_name_to_level(level))


def parse_index(lines: Iterable[bytes]) -> list[tuple[int, str, bytes]]:
    """Seed, name of the map and line, of those lines of an index that are whole."""
    matches = filter(None, map(_INDEX_LINE.fullmatch, lines))
    found = [(int(match[1]), match[2].decode(errors="replace"), match[0]) for match in matches]
    return [entry for entry in found if entry[0] < SEEDS]


def uses_cache(level: str) -> bool:
    """Whether DeepMind Lab compiles maps for a level, or for the level that its test variant plays."""
    return level_file(level) in DMLAB30_LEVELS_THAT_USE_LEVEL_CACHE


def cache_folder(cfg: Any) -> Path:
    """Where `--dmlab_level_cache_path` is."""
    return Path(cfg.dmlab_level_cache_path).expanduser().resolve()


def make_level_cache(cfg: Any, level: str) -> LevelCache | None:
    """The cache of a level on the real engine.

    Args:
        cfg: has `dmlab_use_level_cache` and `dmlab_level_cache_path`; with `train_dir` and `experiment` used seeds are remembered
            there, unless `dmlab_remember_seeds` is False (an evaluation, which must leave those of the training alone).
        level: name of a DMLab-30 level.

    Returns:
        The cache; None where it is switched off or the level has no use for it.

    Raises:
        OSError: files that are there cannot be read.
    """
    if not cfg.dmlab_use_level_cache or not uses_cache(level):
        return None
    folder = cache_folder(cfg)
    claims = None
    if getattr(cfg, "dmlab_remember_seeds", True) and getattr(cfg, "train_dir", None) and getattr(cfg, "experiment", None):
        claims = _shared_claims(folder, level, Path(experiment_dir(cfg, mkdir=False)).resolve())
    return LevelCache(folder, level, claims)


@cache
def _shared_claims(folder: Path, level: str, experiment: Path) -> SeedClaims:
    """One for all environments of a process: with long runs each would hold some ten megabytes."""
    return SeedClaims(folder, level, experiment)


def cache_faults(cfg: Any) -> list[str]:
    """Checks the cache of a run on the real engine, by making its folder and a file in it.

    Args:
        cfg: the parsed flags; the names of the levels are right.

    Returns:
        One line a fault; nothing where the run has no use for the cache.
    """
    levels = [level for level in levels_of(cfg.env, getattr(cfg, "dmlab_levels", "")) if uses_cache(level)]
    if not cfg.dmlab_use_level_cache or not levels:
        return []
    folder = cache_folder(cfg)
    try:
        _try_out(folder, levels)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or folder})"
        allowed = "must be a folder that can be made and written, on a file system with locks (or --dmlab_use_level_cache=False)"
        return [f"--dmlab_level_cache_path={cfg.dmlab_level_cache_path}: {reason}; {allowed}"]
    return []


def _try_out(folder: Path, levels: list[str]) -> None:
    for level in levels:
        with SharedLines(index_path(folder, level)).locked():
            pass
    with _unfinished_file(folder, "try") as (_, path):
        path.unlink()


@contextlib.contextmanager
def _unfinished_file(folder: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside the maps, gone when the block ends; its lock says that its writer lives."""
    path = folder / _UNFINISHED / f"{name}.{uuid.uuid4().hex}"
    make_folder(path.parent)
    with path.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield file, path
        finally:
            path.unlink(missing_ok=True)


def _store(folder: Path, key: str, pk3_path: str) -> None:
    """Puts a map into the cache: under its name there is the whole map or nothing, whatever happens meanwhile."""
    with open(pk3_path, "rb") as source, _unfinished_file(folder, key) as (file, path):
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
        path.rename(folder / key)
    sync_folder(folder)


def sweep(folder: Path) -> int:
    """Removes the unfinished maps of dead processes, of this machine or another.

    Args:
        folder: of the cache.

    Returns:
        How many were removed.
    """
    removed = 0
    with contextlib.suppress(OSError):  # there are none, or they are another user's
        for path in (folder / _UNFINISHED).iterdir():
            removed += _remove_orphan(path)
    return removed


def _remove_orphan(path: Path) -> bool:
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime < _SECONDS_TO_LOCK:
                return False
            path.unlink()
    except OSError:  # somebody writes it, or has just finished
        return False
    return True


@cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)
