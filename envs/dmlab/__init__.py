"""DMLab-30 levels: on DeepMind Lab where it is installed, else on a ViZDoom stand-in that needs nothing but pip.

The paper trains on three of these levels. Scores on the stand-in are not DMLab-30 scores; see README.md.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.cores import allowed_cores
from sf_fixpo.envs.dmlab.presets import LAPTOP, PAPER, defaults, equal_shares
from sf_fixpo.envs.suite import Suite

PREFIX = "dmlab_30_"
_ENGINES = ("auto", "deepmind_lab", "vizdoom")
_DATASET = "~/datasets/brady_konkle_oliva2008"
_IMAGES = ("0001.png", "2400.png")  # the first and the last
_PLAIN = "dummy"  # DeepMind Lab's own word for 2400 plain colours
# FixPO's learner with the network of the paper preset: 356 samples/s of 4 frames each (docs/benchmarks.md).
_PAPER_FRAMES_PER_SECOND = 1_424
_LARGEST = {"res_w": 1024, "res_h": 768}  # what the stand-in can render


def env_names() -> tuple[str, ...]:
    """The sets of levels and the thirty levels, whichever engine this machine has."""
    from sf_fixpo.envs.dmlab import names

    return (*names.LEVEL_SETS, *map(names.env_name, names.DMLAB30_LEVELS))


def listing() -> list[str]:
    """The lines of `--list_envs`: each set and level, and what it needs to run here."""
    from sf_fixpo.envs.dmlab import engines

    real = engines.lack(engines.DEEPMIND_LAB)
    names = env_names()
    width = max(map(len, names))
    return [
        *([f"DeepMind Lab {real}: --dmlab_engine=auto takes the stand-in, ViZDoom"] if real else []),
        *(f"{name:<{width}}  {needs(name) or _runs_here(name)}" for name in names),
        "of each level also <name>_test, its variant for evaluation, which needs the same",
    ]


def _runs_here(env_name: str) -> str:
    """That it does, and how the stand-in's level is simpler where it would be that."""
    from sf_fixpo.envs.dmlab import engines, names
    from sf_fixpo.envs.dmlab.simpler import simpler

    levels = names.levels_of(env_name)
    how = (
        simpler(names.level_file(levels[0]))
        if len(levels) == 1 and engines.choose_engine(engines.AUTO) == engines.VIZDOOM
        else ""
    )
    return f"runs here; simpler than the level: {how}" if how else "runs here"


def needs(env_name: str) -> str | None:
    """What this machine lacks for a set or a level; None where it can be played with the default flags.

    Args:
        env_name: one of `env_names()`.
    """
    from sf_fixpo.envs.dmlab import engines, names

    engine = engines.choose_engine(engines.AUTO)
    playable = engines.playable_levels(engine) if engine else ()
    levels = names.levels_of(env_name)
    here = [level for level in levels if names.level_file(level) in playable]
    showing = [level for level in levels if names.needs_dataset(level)]
    found = []
    if len(here) < len(levels):
        found.append("DeepMind Lab")
    if showing and engine != engines.VIZDOOM and dataset_fault(_DATASET):
        found.append(f"the images of Brady et al. (2008), --dmlab_dataset={_DATASET}")
    some = f" ({len(here)} of {len(levels)} levels run here: --dmlab_levels=a,b)" if found and len(here) > 1 else ""
    return f"needs {', '.join(found)}{some}" if found else None


def dataset_fault(folder: str) -> str | None:
    """What is wrong with `--dmlab_dataset`: DeepMind Lab itself does not say that its images are not there."""
    if folder == _PLAIN:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        return "no such folder"
    absent = next((name for name in _IMAGES if not (path / name).is_file()), None)
    return absent and f"no {absent} in it, of {_IMAGES[0]} to {_IMAGES[-1]}"


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
    """None where one of the engines can be used, else why neither can, and the command that installs the stand-in."""
    from sf_fixpo.envs.dmlab import engines

    return None if engines.choose_engine(engines.AUTO) else engines.missing_message(engines.AUTO)


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
        help="Give the network the level's instruction, without which no language level can be solved: on where there is one",
    )
    p.add_argument("--res_w", default=96, type=int, help="Frame width, pixels")
    p.add_argument("--res_h", default=72, type=int, help="Frame height, pixels")
    p.add_argument(
        "--dmlab_extended_action_set",
        default=False,
        type=str2bool,
        help="15 actions with fine and coarse turns, up and down too, instead of 9: on where a level needs them",
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
        default=_DATASET,
        help=f"Folder of the images that the two psychlab memory levels show; {_PLAIN} for plain colours (DeepMind Lab only)",
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
    speaking = [level for level in levels if names.speaks(level)]
    if speaking and not cfg.dmlab_with_instructions:
        found.append(f"--dmlab_with_instructions=False: {', '.join(speaking)} cannot be solved without; use True")
    showing = [level for level in levels if names.needs_dataset(level)]
    if engine == engines.DEEPMIND_LAB and showing and (fault := dataset_fault(cfg.dmlab_dataset)):
        found.append(
            f"--dmlab_dataset={cfg.dmlab_dataset}: {fault}; {', '.join(showing)} of DMLab-30 show the images of Brady et "
            "al. (2008), which are not part of DeepMind Lab: its folder data/brady_konkle_oliva2008 says how to get them. "
            f"To do without: --dmlab_dataset={_PLAIN} shows 2400 plain colours in their place, or --env={names.ALL} "
            "--dmlab_levels=..."
        )
    return found


def share_faults(cfg: Any) -> list[str]:
    """Whether every level of a training gets as many environments as every other, so that all give equally many samples."""
    levels = len(tasks(cfg)) or 1
    ranks, each = getattr(cfg, "ranks", 1), cfg.num_envs_per_worker
    workers = ranks * cfg.num_workers
    here = f"--num_workers={cfg.num_workers}" + (f" on each of {ranks} ranks" if ranks > 1 else "")
    if cfg.dmlab_one_task_per_worker:
        return (
            [f"{here}: must be a multiple of the {levels} levels with --dmlab_one_task_per_worker=True"]
            if workers % levels
            else []
        )
    if workers * each % levels == 0:
        return []
    fitting = equal_shares(levels, workers, each, cfg.worker_num_splits)
    count = f"{workers * each} environments ({here}) are no multiple of {levels} levels"
    return [f"--num_envs_per_worker={each}: {count}, which could not share them equally; use {fitting}, the default"]


def notes(cfg: Any) -> list[str]:
    """What cannot be played with the chosen actions; how long the paper preset takes without a GPU, where that is long.

    Args:
        cfg: the parsed flags, with `preset`, `device`, `train_for_env_steps` (frames) and `train_for_seconds`.
    """
    return [*_action_notes(cfg), *_time_notes(cfg)]


def _action_notes(cfg: Any) -> list[str]:
    from sf_fixpo.envs.dmlab import names

    if getattr(cfg, "dmlab_extended_action_set", True):
        return []
    high = ", ".join(level for level in tasks(cfg) if names.needs_looking_up(level))
    return [f"with 9 actions nobody looks up or down, which {high} needs: --dmlab_extended_action_set=True"] if high else []


def _time_notes(cfg: Any) -> list[str]:
    if cfg.preset != "paper" or cfg.device != "cpu":
        return []
    cores = allowed_cores()
    rate = _PAPER_FRAMES_PER_SECOND * max(1.0, cores / 2)
    hours = min(cfg.train_for_env_steps / rate, cfg.train_for_seconds) / 3600
    if hours < 1:
        return []
    paper = (
        f"--preset=paper, the default, without a GPU: at least {hours:,.0f} hours here for {cfg.train_for_env_steps:,} frames "
        f"({cores} CPU cores, {rate:,.0f} frames/s: two cores were measured at {_PAPER_FRAMES_PER_SECOND:,}, the learner alone)."
    )
    laptop = (
        "--preset=laptop trains a small network on 4,000,000 frames instead: about 9 minutes on two cores, for a mean return of "
        "+7 of 10 on the stand-in's rooms_collect_good_objects. This run goes on with the paper's settings; Ctrl-C stops it."
    )
    return [paper, laptop]


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> Any:
    """Makes one environment; see `sf_fixpo.envs.dmlab.env.make_env`."""
    from sf_fixpo.envs.dmlab import env

    return env.make_env(full_env_name, cfg, env_config, render_mode)


SUITE = Suite(
    name="dmlab",
    description="levels of DMLab-30, on DeepMind Lab or its ViZDoom stand-in",
    env_names=env_names,
    listing=listing,
    notes=notes,
    matches=matches,
    missing=missing,
    add_args=add_args,
    make_env=make_env,
    presets=MappingProxyType({"paper": PAPER, "laptop": LAPTOP}),
    defaults=defaults,
    faults=faults,
    share_faults=share_faults,
    tasks=tasks,
    evaluation_envs=evaluation_envs,
    env_flags=("pixel_format",),
)
