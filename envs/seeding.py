"""Seeds of environments: the same run twice sees the same episodes, and no two environments of a run see the same."""

from __future__ import annotations

from typing import Any

import numpy as np


def env_seeds(cfg: Any, env_config: Any, count: int = 1, salt: int = 0) -> list[int]:
    """Independent seeds for the environments that one call of a factory makes.

    sample-factory itself seeds with the environment's number alone, so that every run, whatever its `--seed`, would see the
    same episodes.

    Args:
        cfg: has `seed`, an int >= 0, or None for seeds that differ at every call.
        env_config: has `env_id`, the environment's number in the whole system; None (the probe for the spaces) counts as 0.
        count: how many seeds.
        salt: an int >= 0 that tells apart several uses of one environment.

    Returns:
        `count` ints in [0, 2**31), the range that every engine takes.
    """
    run_seed = getattr(cfg, "seed", None)
    env_id = getattr(env_config, "env_id", 0) or 0
    entropy = None if run_seed is None else [run_seed, env_id, salt]
    words = np.random.SeedSequence(entropy).generate_state(count, dtype=np.uint32)
    return [int(word) >> 1 for word in words]
