"""DMLab-30 levels: on DeepMind Lab where it is installed, else on a ViZDoom stand-in that needs nothing but pip.

The paper trains on three of these levels. Scores on the stand-in are not DMLab-30 scores; see README.md.
"""

from __future__ import annotations

import importlib.util
from argparse import ArgumentParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.dmlab.presets import LAPTOP, PAPER
from sf_fixpo.envs.suite import Suite

PREFIX = "dmlab_30_"
_ENGINES = ("auto", "deepmind_lab", "vizdoom")
_LARGEST = {"res_w": 1024, "res_h": 768}  # what the stand-in can render


def env_names() -> tuple[str, ...]:
    """The levels and sets of levels that the engine of this machine plays."""
    from sf_fixpo.envs.dmlab import engines, names

    playable = engines.playable_levels(engines.choose_engine(engines.AUTO) or engines.DEEPMIND_LAB)
    sets = [name for name, levels in names.LEVEL_SETS.items() if set(levels) <= set(playable)]
    train = [level for level in names.DMLAB30_LEVELS if level in playable]
    return (*sets, *map(names.env_name, train), *(names.env_name(names.test_level(level)) for level in train))


def matches(env_name: str) -> bool:
    """Whether a name has this suite's prefix."""
    return f"{env_name.lower()}_".startswith(PREFIX)


def tasks(cfg: Any) -> tuple[str, ...]:
    """The run's levels, in the order of their task ids."""
    from sf_fixpo.envs.dmlab import names

    return names.levels_of(cfg.env, cfg.dmlab_levels)


def evaluation_envs(cfg: Any, split: str = "test") -> tuple[str, ...]:
    """The run's levels one by one: their test variants, or with `train` themselves."""
    from sf_fixpo.envs.dmlab import names

    return tuple(names.env_name(names.test_level(level) if split == "test" else level) for level in tasks(cfg))


def missing() -> str | None:
    """None where one of the engines is installed, else the command that installs the stand-in."""
    if any(importlib.util.find_spec(name) is not None for name in ("deepmind_lab", "vizdoom")):
        return None
    return "pip install 'vizdoom>=1.2.4'"


def resolve_engine(cfg: Any) -> str:
    """Sets `cfg.dmlab_engine` to the engine that `auto` means here; see `sf_fixpo.envs.dmlab.engines.resolve_engine`."""
    from sf_fixpo.envs.dmlab import engines

    return engines.resolve_engine(cfg)


def add_args(parser: ArgumentParser) -> None:
    """Adds the suite's flags; those that sample-factory's own DMLab example has keep its names."""
    from sample_factory.utils.utils import str2bool

    p = parser
    p.add_argument(
        "--dmlab_engine",
        default="auto",
        choices=_ENGINES,
        help="deepmind_lab, or its ViZDoom stand-in; auto: DeepMind Lab where it is installed, else the stand-in",
    )
    p.add_argument(
        "--dmlab_levels", default="", help="Levels of a run on several, a,b,c with --env=dmlab_30 (_train may be left off); all"
    )
    p.add_argument(
        "--dmlab_one_task_per_worker",
        default=False,
        type=str2bool,
        help="Each worker plays one level (worker i plays level i modulo their number), so that slow ones hold up nobody's steps",
    )
    p.add_argument(
        "--dmlab_with_instructions",
        default=True,
        type=str2bool,
        help="Give the network the level's instruction, which the language levels cannot be solved without",
    )
    p.add_argument("--res_w", default=96, type=int, help="Frame width, pixels")
    p.add_argument("--res_h", default=72, type=int, help="Frame height, pixels")
    p.add_argument(
        "--dmlab_extended_action_set", default=False, type=str2bool, help="15 actions with fine and coarse turns, instead of 9"
    )
    p.add_argument(
        "--dmlab_optimistic_rewards",
        default=False,
        type=str2bool,
        help="Train on IMPALA's asymmetrically clipped rewards, as sample-factory's DMLab example does; "
        "the unshaped score is in the summaries either way",
    )
    p.add_argument(
        "--dmlab_renderer",
        default="software",
        choices=["software", "hardware"],
        help="How DeepMind Lab renders; the stand-in has software only",
    )
    p.add_argument(
        "--dmlab_gpus",
        default=[0],
        nargs="+",
        type=int,
        help="Indices of the GPUs that render with --dmlab_renderer=hardware, in turn (DeepMind Lab only)",
    )
    p.add_argument("--dmlab_use_level_cache", default=True, type=str2bool, help="Keep compiled maps on disk (DeepMind Lab only)")
    p.add_argument("--dmlab_level_cache_path", default=".dmlab_cache", help="Where compiled maps are kept (DeepMind Lab only)")
    p.add_argument(
        "--dmlab_dataset",
        "--dmlab30_dataset",
        dest="dmlab_dataset",
        default="~/datasets/brady_konkle_oliva2008",
        help="Folder of the images that the two psychlab memory levels show (DeepMind Lab only)",
    )


def faults(cfg: Any) -> list[str]:
    """Checks the name, the engine and the frame size. Where nothing is wrong, `--dmlab_engine=auto` is resolved in `cfg`.

    Args:
        cfg: the parsed flags.

    Returns:
        One line a fault: the flag, its value, what is allowed.
    """
    from sf_fixpo.envs.dmlab import engines, names

    engine = engines.choose_engine(cfg.dmlab_engine)
    found = []
    if engine is None:
        found.append(f"--dmlab_engine={cfg.dmlab_engine}: {engines.missing_message(cfg.dmlab_engine)}")
    else:
        found += names.level_faults(cfg.env, cfg.dmlab_levels, engines.playable_levels(engine), engine)
    for flag, largest in _LARGEST.items():
        value = getattr(cfg, flag)
        if not 1 <= value <= largest:
            found.append(f"--{flag}={value}: must be from 1 to {largest}")
    if cfg.env_frameskip < 1:
        found.append(f"--env_frameskip={cfg.env_frameskip}: must be at least 1")
    found += _level_needs(cfg, engine)
    if not found and engine == engines.DEEPMIND_LAB:
        from sf_fixpo.envs.dmlab.cache.level_cache import cache_faults

        found += cache_faults(cfg)
    if not found:
        engines.resolve_engine(cfg)
    return found


def _level_needs(cfg: Any, engine: str | None) -> list[str]:
    """What levels need of the other flags: the images of two, the instructions of four, a worker for each."""
    from sf_fixpo.envs.dmlab import engines, names

    found = []
    levels = tasks(cfg)
    speaking = [level for level in levels if level.startswith("language_")]
    if speaking and not cfg.dmlab_with_instructions:
        found.append(f"--dmlab_with_instructions=False: {', '.join(speaking)} cannot be solved without; use True")
    folder = Path(cfg.dmlab_dataset).expanduser()
    showing = [level for level in levels if level.removesuffix("_test") in names.NEED_DATASET]
    if engine == engines.DEEPMIND_LAB and showing and not folder.is_dir():
        found.append(
            f"--dmlab_dataset={cfg.dmlab_dataset}: no such folder; {', '.join(showing)} of DMLab-30 show the images of Brady et "
            "al. (2008), which are not part of DeepMind Lab: its folder data/brady_konkle_oliva2008 says how to get them. "
            f"To do without: --env={names.ALL} --dmlab_levels=..."
        )
    workers = getattr(cfg, "num_workers", len(levels))
    if cfg.dmlab_one_task_per_worker and workers % len(levels or [0]):
        found.append(
            f"--num_workers={workers}: must be a multiple of the {len(levels)} levels with --dmlab_one_task_per_worker=True"
        )
    return found


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> Any:
    """Makes one environment; see `sf_fixpo.envs.dmlab.env.make_env`."""
    from sf_fixpo.envs.dmlab import env

    return env.make_env(full_env_name, cfg, env_config, render_mode)


SUITE = Suite(
    name="dmlab",
    description="levels of DMLab-30, on DeepMind Lab or its ViZDoom stand-in",
    env_names=env_names,
    matches=matches,
    missing=missing,
    add_args=add_args,
    make_env=make_env,
    presets=MappingProxyType({"paper": PAPER, "laptop": LAPTOP}),
    faults=faults,
    tasks=tasks,
    evaluation_envs=evaluation_envs,
    env_flags=("pixel_format",),
)
