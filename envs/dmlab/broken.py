"""Episodes that an engine did not survive: written down with all that decides them, so that one command plays them again."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What an episode depends on beside its seed and its actions.
_FLAGS = ("res_w", "res_h", "env_frameskip", "pixel_format", "dmlab_extended_action_set", "dmlab_with_instructions")
_FLAGS += ("dmlab_renderer", "dmlab_gpus", "dmlab_dataset")


def write_episode(cfg: Any, level: str, engine: str, seed: int, actions: Sequence[int]) -> str:
    """Writes an episode down, in the experiment's folder or else the temporary one.

    Args:
        cfg: the parsed flags.
        level: its name.
        engine: which played.
        seed: of the episode.
        actions: numbers of those that were played, the last one with the fault.

    Returns:
        The command that plays it again; empty where nothing can be written, which must not hide the fault itself.
    """
    folder = Path(getattr(cfg, "train_dir", None) or "", str(getattr(cfg, "experiment", None) or ""))
    if not getattr(cfg, "experiment", None) or not folder.is_dir():
        folder = Path(tempfile.gettempdir())
    path = folder / f"broken_{level}_{seed}_{os.getpid()}.json"
    flags = {flag: getattr(cfg, flag) for flag in _FLAGS if hasattr(cfg, flag)}
    record = {"level": level, "engine": engine, "seed": seed, "flags": flags, "actions": list(actions)}
    try:
        path.write_text(json.dumps(record) + "\n")
    except OSError:
        return ""
    return f"[to repeat it: python -m sf_fixpo.envs.dmlab.repeat {path}]"
