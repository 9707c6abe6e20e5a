"""DMLab-30 levels: on DeepMind Lab where it is installed, else on a ViZDoom stand-in that needs nothing but pip.

The paper trains on three of these levels. Scores on the stand-in are not DMLab-30 scores; see README.md.
"""

from __future__ import annotations

import importlib.util
from argparse import ArgumentParser
from types import MappingProxyType
from typing import Any

from envs.dmlab.presets import LAPTOP, PAPER
from envs.names import did_you_mean
from envs.suite import Suite

PREFIX = "dmlab_30_"
_ENGINES = ("auto", "deepmind_lab", "vizdoom")
_LARGEST = {"res_w": 1024, "res_h": 768}  # what the stand-in can render


def env_names() -> tuple[str, ...]:
    """The levels that can run."""
    from envs.dmlab import names

    return names.env_names()


def matches(env_name: str) -> bool:
    """Whether a name has this suite's prefix."""
    return env_name.lower().startswith(PREFIX)


def missing() -> str | None:
    """None where one of the engines is installed, else the command that installs the stand-in."""
    if any(importlib.util.find_spec(name) is not None for name in ("deepmind_lab", "vizdoom")):
        return None
    return "pip install 'vizdoom>=1.2.4'"


def resolve_engine(cfg: Any) -> str:
    """Sets `cfg.dmlab_engine` to the engine that `auto` means here; see `envs.dmlab.engines.resolve_engine`."""
    from envs.dmlab import engines

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
    p.add_argument("--dmlab_use_level_cache", default=True, type=str2bool, help="Keep compiled maps on disk (DeepMind Lab only)")
    p.add_argument("--dmlab_level_cache_path", default=".dmlab_cache", help="Where compiled maps are kept (DeepMind Lab only)")
    p.add_argument(
        "--dmlab30_dataset",
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
    from envs.dmlab import engines

    found = _name_faults(cfg.env)
    if engines.choose_engine(cfg.dmlab_engine) is None:
        found.append(f"--dmlab_engine={cfg.dmlab_engine}: {engines.missing_message(cfg.dmlab_engine)}")
    for flag, largest in _LARGEST.items():
        value = getattr(cfg, flag)
        if not 1 <= value <= largest:
            found.append(f"--{flag}={value}: must be from 1 to {largest}")
    if cfg.env_frameskip < 1:
        found.append(f"--env_frameskip={cfg.env_frameskip}: must be at least 1")
    if not found:
        engines.resolve_engine(cfg)
    return found


def _name_faults(env_name: str) -> list[str]:
    from envs.dmlab import names

    level = names.dmlab30_level(env_name)
    if level in names.SUPPORTED:
        return []
    if level is not None:
        return [f"--env={env_name}: this version plays {', '.join(names.env_names())} of DMLab-30"]
    hint = did_you_mean(env_name, names.env_names())
    return [" ".join(filter(None, [f"--env={env_name}: not a level of DMLab-30;", hint, "--list_envs shows all."]))]


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> Any:
    """Makes one environment; see `envs.dmlab.env.make_env`."""
    from envs.dmlab import env

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
)
