"""What an environment answers, taken apart: what is not as Gymnasium's or PettingZoo's API has it is refused in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sf_fixpo.envs.suite import EnvError

RESET = ("observation", "info")
STEP = ("observation", "reward", "terminated", "truncated", "info")
# What NumPy and Python raise at values that are of another kind than they should be.
UNFIT = (ValueError, TypeError, OverflowError, KeyError, IndexError, AttributeError)


def parts(answer: Any, names: tuple[str, ...], call: str) -> tuple[Any, ...]:
    """The parts of what `reset` or `step` returned.

    Raises:
        EnvError: it is no tuple of so many.
    """
    if isinstance(answer, tuple | list) and len(answer) == len(names):
        return tuple(answer)
    what = f"{len(answer)} values" if isinstance(answer, tuple | list) else type(answer).__name__
    hint = "; an environment written for Gym is wrapped by shimmy" if call == "step" and what == "4 values" else ""
    raise EnvError(f"{call}() returned {what}: must return ({', '.join(names)}){hint}")


def number(value: Any, what: str) -> float:
    """A reward.

    Raises:
        EnvError: it is no finite number.
    """
    try:
        found = float(value)
    except UNFIT:
        raise EnvError(f"{what} is {str(value)[:60]!r}, must be a number") from None
    if not math.isfinite(found):
        raise EnvError(f"{what} is {found}")
    return found


def flag(value: Any, what: str) -> bool:
    """Whether an episode has ended.

    Raises:
        EnvError: it is neither true nor false.
    """
    if isinstance(value, bool | np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1)):
        return bool(value)
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype == bool:
        return bool(value.item())
    raise EnvError(f"{what} is {str(value)[:60]!r}, must be True or False")


def by_agent(value: Any, what: str) -> Mapping[Any, Any]:
    """What is given for each agent.

    Raises:
        EnvError: it is no dict.
    """
    if isinstance(value, Mapping):
        return value
    raise EnvError(f"{what} are {type(value).__name__}, must be a dict with an entry for each agent")
