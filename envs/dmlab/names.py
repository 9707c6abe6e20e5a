"""Environment names and level names: `dmlab_30_` and a level of DMLab-30 as sample-factory lists them."""

from __future__ import annotations

from sf_examples.dmlab.dmlab30 import LEVEL_MAPPING, dmlab30_level_name_to_level

PREFIX = "dmlab_30_"

# The levels this version plays, of which tests say that they work on every installed engine.
SUPPORTED = ("rooms_collect_good_objects_train", "rooms_collect_good_objects_test")


def env_names() -> tuple[str, ...]:
    """The environments that can run, by the name that is shortest to type."""
    return tuple(f"{PREFIX}{level.removesuffix('_train')}" for level in SUPPORTED)


def dmlab30_level(env_name: str) -> str | None:
    """The DMLab-30 level an environment name means, playable or not; None where there is none.

    Upper and lower case are the same, and `_train` may be left off.
    """
    name = env_name.lower().removeprefix(PREFIX)
    known = {*LEVEL_MAPPING, *LEVEL_MAPPING.values()}
    return next((level for level in (name, f"{name}_train") if level in known), None)


def is_hold_out(level: str) -> bool:
    """Whether a level is for evaluation only, so that DeepMind Lab has to be told to start it."""
    return level not in LEVEL_MAPPING


def level_path(level: str) -> str:
    """A level as DeepMind Lab finds it."""
    return dmlab30_level_name_to_level(level)
