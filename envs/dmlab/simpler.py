"""Where the stand-in is simpler than the level itself, in a few words for lists; README.md says it at length."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_PLAIN_COLOURS = "plain colours instead of photographs, as DeepMind Lab's own dummy data set"
_MUSHROOMS = "flat land, sprites, maps of our own"
_OPPONENTS = "opponents are a script of ours: they roam, collect and shoot, do not strafe or jump, and stand in nobody's way"
_FLAT_SHAPES = "flat shapes of one colour"

SIMPLER: Mapping[str, str] = MappingProxyType(
    {
        "rooms_watermaze": "the platform does not rise",
        "rooms_keys_doors_puzzle": "doors open at once, the player stops there",
        "language_select_described_object": "flat shapes in two colours",
        "language_select_located_object": _FLAT_SHAPES,
        "language_execute_random_task": _FLAT_SHAPES,
        "language_answer_quantitative_question": _FLAT_SHAPES,
        "natlab_fixed_large_map": f"{_MUSHROOMS}; its size and its 60 mushrooms are our choice",
        "natlab_varying_map_regrowth": _MUSHROOMS,
        "natlab_varying_map_randomized": _MUSHROOMS,
        "skymaze_irreversible_path_hard": "paths drawn by our own walk",
        "skymaze_irreversible_path_varied": "paths drawn by our own walk",
        "psychlab_arbitrary_visuomotor_mapping": _PLAIN_COLOURS,
        "psychlab_continuous_recognition": _PLAIN_COLOURS,
        "lasertag_one_opponent_small": _OPPONENTS,
        "lasertag_three_opponents_small": _OPPONENTS,
        "lasertag_one_opponent_large": _OPPONENTS,
        "lasertag_three_opponents_large": _OPPONENTS,
        "explore_object_rewards_few": "flat shapes in two colours",
        "explore_object_rewards_many": "flat shapes in two colours",
    }
)


def simpler(level: str) -> str:
    """How the stand-in's level is simpler; empty where nothing is but what is in all of them.

    Args:
        level: name of a training level or its test variant.
    """
    return SIMPLER.get(level.removesuffix("_test"), "")
