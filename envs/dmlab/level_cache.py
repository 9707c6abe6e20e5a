"""Between DeepMind Lab, which asks for compiled maps by key, and sample-factory's store of them on disk.

Only the real engine compiles maps, and only some levels take long enough for it to matter; sample-factory lists them. Its store
is used as it is, except that episodes keep their own seeds: it would rather hand out seeds it has maps for, in an order that
differs from run to run.
"""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS_THAT_USE_LEVEL_CACHE
from sf_examples.dmlab.dmlab_level_cache import DmlabLevelCache

from envs.dmlab.names import level_path


class LevelCacheProxy:
    """The object DeepMind Lab takes as `level_cache`.

    Attributes:
        seed: of the episode about to start; it is stored beside the map.
    """

    def __init__(self, store: DmlabLevelCache, folder: Path, level: str):
        self.seed = 0
        self._store, self._folder, self._level = store, folder, level

    def fetch(self, key: str, pk3_path: str) -> bool:
        """Copies the map to where DeepMind Lab wants it; False where it is not there."""
        try:
            shutil.copyfile(self._folder / key, pk3_path)
        except FileNotFoundError:
            return False
        return True

    def write(self, key: str, pk3_path: str) -> None:
        """Keeps a map that DeepMind Lab has compiled."""
        self._store.add_new_level(self._level, self.seed, key, pk3_path)


def make_level_cache(cfg: Any, level: str) -> LevelCacheProxy | None:
    """The cache of a level on the real engine.

    Args:
        cfg: has `dmlab_use_level_cache` and `dmlab_level_cache_path`.
        level: name of a DMLab-30 level.

    Returns:
        The cache; None where it is switched off or the level has no use for it.
    """
    if not cfg.dmlab_use_level_cache or level not in DMLAB30_LEVELS_THAT_USE_LEVEL_CACHE:
        return None
    folder = Path(cfg.dmlab_level_cache_path).expanduser().resolve()
    path = level_path(level)
    context = multiprocessing.get_context("spawn")
    store = DmlabLevelCache(str(folder), str(folder / "used_seeds"), [path], 0, context)
    return LevelCacheProxy(store, folder, path)
