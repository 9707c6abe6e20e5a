"""Which engine plays the levels: DeepMind Lab where it is installed, else the ViZDoom stand-in."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import sys
from types import ModuleType
from typing import Any

from sample_factory.utils.utils import log
from sf_examples.dmlab.dmlab30 import LEVEL_MAPPING

DEEPMIND_LAB = "deepmind_lab"
VIZDOOM = "vizdoom"
AUTO = "auto"
CHOICES = (AUTO, DEEPMIND_LAB, VIZDOOM)

_MODULES = {DEEPMIND_LAB: "deepmind_lab", VIZDOOM: "sf_fixpo.envs.dmlab.stand_in.engine"}

INSTALL = {
    DEEPMIND_LAB: (
        "DeepMind Lab is on no package index: build it from source (github.com/google-deepmind/lab, `bazel build -c opt "
        "//python/pip_package:build_pip_package`) and pip install the wheel that it makes"
    ),
    VIZDOOM: "pip install 'vizdoom>=1.2.4'",
}


def installed(engine: str) -> bool:
    """Whether an engine can be imported; it is not imported to find out."""
    # A module that was put into sys.modules by hand has no spec, and find_spec would raise.
    return engine in sys.modules or importlib.util.find_spec(engine) is not None


def installed_engines() -> tuple[str, ...]:
    """The engines of this machine, the real one first."""
    return tuple(engine for engine in (DEEPMIND_LAB, VIZDOOM) if installed(engine))


def playable_levels(engine: str) -> tuple[str, ...]:
    """Names of the level files that an engine has.

    Args:
        engine: `deepmind_lab` or `vizdoom`.
    """
    if engine == DEEPMIND_LAB:
        return tuple(dict.fromkeys([*LEVEL_MAPPING, *LEVEL_MAPPING.values()]))
    from sf_fixpo.envs.dmlab.stand_in.levels import LEVELS

    return tuple(LEVELS)


def choose_engine(asked: str) -> str | None:
    """What `--dmlab_engine` means on this machine.

    Args:
        asked: one of `CHOICES`.

    Returns:
        `deepmind_lab` or `vizdoom`; None where the one asked for, or every one, is missing.
    """
    if asked == AUTO:
        return next(iter(installed_engines()), None)
    return asked if installed(asked) else None


def resolve_engine(cfg: Any) -> str:
    """Replaces `--dmlab_engine=auto` in the run's config by the engine it means, so that the record of the run says it.

    Warns when that is the stand-in; once for a config, as it does not say `auto` any more, and in the main process only.

    Args:
        cfg: the parsed flags; `dmlab_engine` is set.

    Returns:
        `deepmind_lab` or `vizdoom`.

    Raises:
        ModuleNotFoundError: the engine is not installed; the message says how to install it.
    """
    asked = cfg.dmlab_engine
    engine = choose_engine(asked)
    if engine is None:
        raise ModuleNotFoundError(f"--dmlab_engine={asked}: {missing_message(asked)}")
    if asked == AUTO and engine == VIZDOOM and multiprocessing.parent_process() is None:
        log.warning(
            "DeepMind Lab is not installed: --dmlab_engine=auto takes the ViZDoom stand-in, which has other pixels and physics. "
            "Scores on it are not DMLab-30 scores and cannot be compared with published ones."
        )
    cfg.dmlab_engine = engine
    return engine


def missing_message(asked: str) -> str:
    """Why an engine cannot be had, and what to do about it."""
    if asked == DEEPMIND_LAB:
        return f"it is not installed; {INSTALL[DEEPMIND_LAB]}, or take the stand-in with --dmlab_engine={VIZDOOM}"
    return f"no engine is installed; {INSTALL[VIZDOOM]}"


def engine_module(engine: str) -> ModuleType:
    """The module whose `Lab` plays the levels.

    Args:
        engine: `deepmind_lab` or `vizdoom`.

    Raises:
        ImportError: it is not installed, or broken.
    """
    return importlib.import_module(_MODULES[engine])


def sample_factory_tables() -> ModuleType:
    """sample-factory's `dmlab_gym`, for its action sets.

    It imports deepmind_lab at its top. Where that is missing, the stand-in takes the name for the time of the import only:
    afterwards `import deepmind_lab` fails as before, so that nobody takes the one for the other.

    Raises:
        ImportError: neither engine is installed.
    """
    name = "sf_examples.dmlab.dmlab_gym"
    if name in sys.modules or installed(DEEPMIND_LAB):
        return importlib.import_module(name)
    sys.modules[DEEPMIND_LAB] = engine_module(VIZDOOM)
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[DEEPMIND_LAB]
