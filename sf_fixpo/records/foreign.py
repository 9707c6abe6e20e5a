"""Runs that come from outside, and what they may not ask for.

A run's config.json may name code: a script that registers a network, a module that makes the environment. Of one's own runs that
is what one wants; of somebody else's it would be their program with one's own rights. So a folder that the Hub's client has
written (it leaves `.cache/huggingface` in it) is played, and gone on with, only where its config.json names no such thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants

# Settings that say where on a machine something is read and written, beside the run's own folder.
PLACES = ("dmlab_level_cache_path", "dmlab_dataset", "init_from")


def is_from_outside(folder: Path) -> bool:
    """Whether the Hub's client has written the folder: into it, or in its cache."""
    cache = Path(constants.HF_HUB_CACHE).resolve()
    return (folder / ".cache" / "huggingface").is_dir() or cache in folder.resolve().parents


def code_named(config: Mapping[str, Any]) -> list[str]:
    """The settings of a run that make programs import or run a module or a file of somebody's, as `name=value`."""
    names = [name for name in ("script", "env_wrappers") if config.get(name)]
    if ":" in str(config.get("env")):  # gym_<module>:<name>
        names.append("env")
    return [f"{name}={config[name]}" for name in names]


def foreign_faults(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Why a run from outside is not played: the code that its config.json names, one line each; nothing for one's own."""
    if not is_from_outside(folder):
        return []
    return [
        f"{folder}: comes from the Hub, and its config.json names code of its own ({name}), which is not run. Read that code; to "
        "trust it, copy the folder without `.cache` and use the copy"
        for name in code_named(config)
    ]
