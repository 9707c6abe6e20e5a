"""A DeepMind Lab for tests, in place of the real one, which is on no package index: it plays nothing, but asks for compiled maps.

As the real one it asks the level cache under a key, copies or compiles the map, offers it to the cache when it has compiled it,
and ends the whole process with exit code 1 where the file of the map is missing. Put its folder on PYTHONPATH. Read from the
environment: COMPILING_LAB_SECONDS (of a compilation; 0), and parts of the names of levels: COMPILING_LAB_BREAKS (their maps are
lost), COMPILING_LAB_REFUSES (they cannot be started), COMPILING_LAB_DEAF (they never ask for a map), COMPILING_LAB_ABORTS (their
compilation aborts the process).
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np


def map_key(level: str, seed: int) -> str:
    """Name of the map of a seed."""
    return hashlib.md5(f"{level} {seed}".encode()).hexdigest()


def map_content(key: str) -> bytes:
    """What a map's file has in it."""
    return random.Random(key).randbytes(20_000)


def _matches(variable: str, level: str) -> bool:
    part = os.environ.get(variable, "")
    return bool(part) and part in level


class Lab:
    def __init__(self, level, observations, config=None, renderer="software", level_cache=None, temp_folder=None):
        if _matches("COMPILING_LAB_REFUSES", level):
            raise RuntimeError(f'Failed to init environment - "Level not found: {level}"')
        self._level, self._cache = level, level_cache
        self._folder = Path(temp_folder or tempfile.gettempdir()) / f"dmlab_temp_folder_{os.getpid()}_{id(self)}"
        self._folder.mkdir()
        self._shape = (int(config["height"]), int(config["width"]), 3)
        self.map = b""

    def reset(self, episode=-1, seed=None):
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise ValueError(f"seed {seed!r}")
        key = map_key(self._level, seed)
        path = self._folder / "map.pk3"
        path.unlink(missing_ok=True)
        deaf = _matches("COMPILING_LAB_DEAF", self._level)
        if deaf or not self._cache.fetch(key, str(path)):
            if _matches("COMPILING_LAB_BREAKS", self._level):
                os._exit(1)
            if _matches("COMPILING_LAB_ABORTS", self._level):
                os.abort()
            time.sleep(float(os.environ.get("COMPILING_LAB_SECONDS", "0")))
            with zipfile.ZipFile(path, "w") as pk3:
                pk3.writestr("maps/map.bsp", map_content(key))
            if not deaf:
                self._cache.write(key, str(path))
        with zipfile.ZipFile(path) as pk3:
            self.map = pk3.read("maps/map.bsp")

    def observations(self):
        return {"RGB_INTERLEAVED": np.zeros(self._shape, np.uint8), "INSTR": ""}

    def step(self, action, num_steps=1):
        return 0.0

    def is_running(self):
        return False

    def close(self):
        (self._folder / "map.pk3").unlink(missing_ok=True)
        if self._folder.exists():
            self._folder.rmdir()
