"""Environment names and level names: `dmlab_30_` and a level of DMLab-30, or a set of levels, as sample-factory lists them.

A level's canonical name is that of its file, and `_test` marks its variant for evaluation. Two levels have a file of their own
for that; of the others the same file is started with the settings that DeepMind's evaluation uses (`env.lab_config`).
"""

from __future__ import annotations

from types import MappingProxyType

from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS, LEVEL_MAPPING, dmlab30_level_name_to_level

from sf_fixpo.envs.names import did_you_mean

PREFIX = "dmlab_30_"
ALL = "dmlab_30"
_TEST = "_test"

_FAMILIES = ("language", "lasertag", "natlab", "skymaze", "psychlab", "explore")
_ROOMS = ("rooms_collect_good_objects", "rooms_exploit_deferred_effects", "rooms_select_nonmatching_object")
LEVEL_SETS = MappingProxyType(
    {
        ALL: DMLAB30_LEVELS,
        # the three that the paper trains on
        "dmlab_30_rooms": tuple(level for level in DMLAB30_LEVELS if level.startswith(_ROOMS)),
        # by family; that of rooms has two levels more than the paper's three
        "dmlab_30_rooms_all": tuple(level for level in DMLAB30_LEVELS if level.startswith("rooms_")),
        **{f"{PREFIX}{family}": tuple(level for level in DMLAB30_LEVELS if level.startswith(family)) for family in _FAMILIES},
    }
)

# They show images that are not part of DeepMind Lab.
NEED_DATASET = ("psychlab_arbitrary_visuomotor_mapping", "psychlab_continuous_recognition")

# Buttons, or a frame to look at, that lie 10 to 29 degrees above or below the middle of the panel.
_LOOK_UP = ("psychlab_arbitrary_visuomotor_mapping", "psychlab_sequential_comparison", "psychlab_visual_search")


def dmlab30_level(env_name: str) -> str | None:
    """The DMLab-30 level an environment name means, playable or not; None where there is none.

    Upper and lower case are the same, and `dmlab_30_` and `_train` may be left off.
    """
    name = env_name.lower().removeprefix(PREFIX)
    known = {*LEVEL_MAPPING, *map(test_level, LEVEL_MAPPING)}
    return next((level for level in (name, f"{name}_train") if level in known), None)


def needs_dataset(level: str) -> bool:
    """Whether a level, or the one it is the test variant of, shows the images that are not part of DeepMind Lab."""
    return level.removesuffix(_TEST) in NEED_DATASET


def test_level(level: str) -> str:
    """The variant of a training level on which DMLab-30 is evaluated."""
    return level.removesuffix("_train").removesuffix(_TEST) + _TEST


test_level.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test where it is imported


def is_hold_out(level: str) -> bool:
    """Whether a level is for evaluation only, so that DeepMind Lab has to be told to start it."""
    return level.endswith(_TEST)


def speaks(level: str) -> bool:
    """Whether a level, or the one it is the test variant of, has instructions."""
    return level.startswith("language_")


def needs_looking_up(level: str) -> bool:
    """Whether there is something to reach above or below eye level, which the 9 actions do not turn to."""
    return level.removesuffix(_TEST) in _LOOK_UP


def level_file(level: str) -> str:
    """The level whose file plays a level: itself, or for most test variants the level of training."""
    known = {*LEVEL_MAPPING, *LEVEL_MAPPING.values()}
    return level if level in known else level.removesuffix(_TEST)


def level_path(level: str) -> str:
    """A level as DeepMind Lab finds it."""
    return dmlab30_level_name_to_level(level_file(level))


def score_name(level: str) -> str:
    """The name under which sample-factory's tables of human and random scores have a level."""
    return level_file(test_level(level))


def env_name(level: str) -> str:
    """The environment of a level, by the name that is shortest to type."""
    return f"{PREFIX}{level.removesuffix('_train')}"


def split_levels(text: str) -> tuple[str, ...]:
    """The parts of `--dmlab_levels`, as they were written."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def levels_of(env: str, subset: str = "") -> tuple[str, ...]:
    """The levels of an environment, in the order of their task ids.

    Args:
        env: value of `--env`: a level, or one of `LEVEL_SETS`.
        subset: value of `--dmlab_levels`; says nothing about an environment of one level.

    Returns:
        Canonical names; empty where the environment is unknown. Unknown ones of `subset` are left out (`level_faults` has them).
    """
    name = env.lower()
    if subset and name in LEVEL_SETS:
        return tuple(level for part in split_levels(subset) if (level := dmlab30_level(part)) is not None)
    if name in LEVEL_SETS:
        return LEVEL_SETS[name]
    level = dmlab30_level(name)
    return () if level is None else (level,)


def level_faults(env: str, subset: str, playable: tuple[str, ...], engine: str) -> list[str]:
    """What is wrong with `--env` and `--dmlab_levels`, one line a fault.

    Args:
        env: value of `--env`.
        subset: value of `--dmlab_levels`.
        playable: files of the levels that the engine has.
        engine: its name.
    """
    if not levels_of(env):
        names = [*LEVEL_SETS, *map(env_name, DMLAB30_LEVELS), *map(env_name, map(test_level, DMLAB30_LEVELS))]
        hint = did_you_mean(env, names)
        return [" ".join(filter(None, [f"--env={env}: not a level of DMLab-30;", hint, "--list_envs shows all."]))]
    found = []
    if subset and env.lower() not in LEVEL_SETS:
        found.append(f"--dmlab_levels={subset}: goes with --env={ALL}, not with one level, --env={env}")
    for part in split_levels(subset):
        if dmlab30_level(part) is None:
            hint = did_you_mean(part, [*DMLAB30_LEVELS, *map(test_level, DMLAB30_LEVELS)])
            found.append(" ".join(filter(None, [f"--dmlab_levels={subset}: {part} is not a level of DMLab-30;", hint])))
    levels = levels_of(env, subset)
    if len(set(levels)) < len(levels):
        found.append(f"--dmlab_levels={subset}: a level is named twice; name each once")
    lacking = [level for level in levels if level_file(level) not in playable]
    if lacking and not found:
        flag = f"--dmlab_levels={subset}" if subset else f"--env={env}"
        here = ",".join(level for level in map(_short, playable) if not is_hold_out(level))
        absent = ", ".join(map(_short, lacking))
        found.append(f"{flag}: --dmlab_engine={engine} has no {absent}; it plays --env={ALL} --dmlab_levels={here}")
    return found


def _short(level: str) -> str:
    return level.removesuffix("_train")
