"""The registry of environment suites: from a name on the command line to the suite that makes it.

Importing it is cheap: an engine (EnvPool, ViZDoom, DeepMind Lab) is imported when one of its environments is made.
"""

from __future__ import annotations

import textwrap

from sf_fixpo.envs.dmlab import SUITE as DMLAB
from sf_fixpo.envs.gymnasium_envs import PETTINGZOO
from sf_fixpo.envs.gymnasium_envs import SUITE as GYM
from sf_fixpo.envs.names import unknown_name
from sf_fixpo.envs.pool.atari import SUITE as ATARI
from sf_fixpo.envs.pool.metaworld import SUITE as METAWORLD
from sf_fixpo.envs.pool.mujoco import SUITE as MUJOCO
from sf_fixpo.envs.suite import EnvError, Suite

__all__ = ["SUITES", "EnvError", "Suite", "UnknownEnvError", "adopt_suite", "find_suite", "list_envs"]

SUITES: tuple[Suite, ...] = (DMLAB, MUJOCO, METAWORLD, ATARI, GYM, PETTINGZOO)
_adopted: list[Suite] = []  # of environments that a user's script has registered


class UnknownEnvError(ValueError):
    """A name that no suite claims; the message says what is near and where the list is."""


def adopt_suite(suite: Suite) -> None:
    """Makes a suite known in this process, before all others."""
    _adopted.insert(0, suite)


def find_suite(env_name: str) -> Suite:
    """Finds the suite that a name belongs to, by its prefix.

    A name with a suite's prefix may still be unknown to that suite: `Suite.faults` says so, with near names, together with
    everything else that is wrong on the command line.

    Args:
        env_name: the value of `--env`, such as `mujoco_HalfCheetah`.

    Returns:
        The suite.

    Raises:
        UnknownEnvError: no suite claims the name.
    """
    for suite in (*_adopted, *SUITES):
        if suite.matches(env_name):
            return suite
    known = [name for suite in SUITES for name in suite.env_names()]
    raise UnknownEnvError(unknown_name(env_name, "no such environment", known))


def list_envs() -> str:
    """The text of `--list_envs`: every suite, whether it runs on this machine, what it needs if not, and its names."""
    return "\n\n".join(_suite_text(suite) for suite in SUITES)


def _suite_text(suite: Suite) -> str:
    """One suite's paragraph: a heading, what is missing, and the names, wrapped."""
    missing = suite.missing()
    state = "runs here" if missing is None else f"cannot run here yet: {missing}"
    if suite.listing is not None:
        lines = [f"    {line}" for line in suite.listing()]
    else:
        names = "  ".join(suite.env_names())
        lines = textwrap.wrap(names, 110, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    presets = f"    presets: {', '.join(suite.presets)}" if suite.presets else ""
    return "\n".join(filter(None, [f"{suite.name}: {suite.description} [{state}]", *lines, presets]))
