"""Which engine plays the levels: DeepMind Lab where it is installed, else the ViZDoom stand-in."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from types import ModuleType
from typing import Any

from sample_factory.utils.utils import log
from sf_examples.dmlab.dmlab30 import LEVEL_MAPPING

from sf_fixpo.envs.dmlab import loader

DEEPMIND_LAB = "deepmind_lab"
VIZDOOM = "vizdoom"
AUTO = "auto"
CHOICES = (AUTO, DEEPMIND_LAB, VIZDOOM)

INSTALL = {
    DEEPMIND_LAB: (
        "DeepMind Lab is on no package index: build it from source (github.com/google-deepmind/lab, `bazel build -c opt "
        "//python/pip_package:build_pip_package`) and pip install the wheel that it makes"
    ),
    VIZDOOM: "pip install 'vizdoom>=1.2.4'",
}


def lack(engine: str) -> str | None:
    """Why an engine cannot be used on this machine, as the end of a sentence that begins with `it`; None where it can."""
    return loader.lack(engine)


def installed_engines() -> tuple[str, ...]:
    """The engines that can be used on this machine, the real one first."""
    return tuple(engine for engine in (DEEPMIND_LAB, VIZDOOM) if lack(engine) is None)


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
        `deepmind_lab` or `vizdoom`; None where the one asked for, or every one, cannot be used.
    """
    if asked == AUTO:
        return next(iter(installed_engines()), None)
    return asked if lack(asked) is None else None


def resolve_engine(cfg: Any) -> str:
    """Replaces `--dmlab_engine=auto` in the run's config by the engine it means, so that the record of the run says it.

    Warns when that is the stand-in; once for a config, as it does not say `auto` any more, and in the main process only.

    Args:
        cfg: the parsed flags; `dmlab_engine` is set.

    Returns:
        `deepmind_lab` or `vizdoom`.

    Raises:
        ImportError: the engine cannot be used; the message says why, and what to do.
    """
    asked = cfg.dmlab_engine
    if asked != AUTO and loader.found(asked):
        return asked  # in every worker: its import, which follows, says what is wrong with it
    engine = choose_engine(asked)
    if engine is None:
        raise ImportError(f"--dmlab_engine={asked}: {missing_message(asked)}")
    if asked == AUTO and engine == VIZDOOM and multiprocessing.parent_process() is None:
        log.warning(
            f"DeepMind Lab {lack(DEEPMIND_LAB)}: --dmlab_engine=auto takes the ViZDoom stand-in, which has other pixels and "
            "physics. Scores on it are not DMLab-30 scores and cannot be compared with published ones."
        )
    cfg.dmlab_engine = engine
    return engine


def missing_message(asked: str) -> str:
    """Why an engine cannot be had, and what to do about it."""
    if asked == DEEPMIND_LAB:
        how = "envs/dmlab/README.md says what a build needs" if loader.found(asked) else INSTALL[asked]
        return f"it {lack(asked)}; {how}, or take the stand-in with --dmlab_engine={VIZDOOM}"
    stand_in = f"the stand-in, ViZDoom, {lack(VIZDOOM)}; {INSTALL[VIZDOOM]}"
    return stand_in if asked == VIZDOOM else f"DeepMind Lab {lack(DEEPMIND_LAB)}, and {stand_in}"


def engine_module(engine: str) -> ModuleType:
    """The module whose `Lab` plays the levels.

    Args:
        engine: `deepmind_lab` or `vizdoom`.

    Raises:
        ImportError: it is not installed, or broken.
    """
    if engine == DEEPMIND_LAB:
        return loader.load(DEEPMIND_LAB)
    return importlib.import_module("sf_fixpo.envs.dmlab.stand_in.engine")


def sample_factory_tables() -> ModuleType:
    """sample-factory's `dmlab_gym`, for its action sets.

    It imports deepmind_lab at its top. Where that cannot be had, the stand-in takes the name for the time of the import only:
    afterwards `import deepmind_lab` fails as before, so that nobody takes the one for the other.

    Raises:
        ImportError: no engine can be imported.
    """
    name = "sf_examples.dmlab.dmlab_gym"
    if name in sys.modules:
        return sys.modules[name]
    if lack(DEEPMIND_LAB) is None:
        engine_module(DEEPMIND_LAB)
        return importlib.import_module(name)
    sys.modules[DEEPMIND_LAB] = engine_module(VIZDOOM)
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[DEEPMIND_LAB]
