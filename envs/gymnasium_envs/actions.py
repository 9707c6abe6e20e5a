"""From what a policy chooses to an element of an environment's action space.

sample-factory's policies choose from heads: a category, or a vector of Gaussians. An action space is taken apart into heads, in
order, and put together again from what was chosen in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

Build = Callable[[Iterator[Any]], Any]


class UnsuitableSpaceError(ValueError):
    """A space that no policy can choose from, or see; the message has the space."""


def _box(space: spaces.Box) -> tuple[list[spaces.Space], Build]:
    """A vector of Gaussians, of which -1 and 1 are the ends where there are ends: a policy near 0 acts in the middle."""
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    bounded, whole = np.isfinite(low) & np.isfinite(high), np.issubdtype(space.dtype, np.integer)
    finite_low, finite_high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    middle, half = finite_low / 2 + finite_high / 2, finite_high / 2 - finite_low / 2
    least, most = (np.where(bounded, sign, end).astype(np.float32) for sign, end in ((-1.0, low), (1.0, high)))

    def build(chosen: Iterator[Any]) -> np.ndarray:
        # cut off before and after: by rounding the end of a range may come out beyond it
        x = np.clip(np.asarray(next(chosen), np.float64).reshape(space.shape), least, most)
        x = np.clip(middle + half * x, low, high)
        return np.asarray(np.rint(x) if whole else x, dtype=space.dtype)

    return [spaces.Box(least.reshape(-1), most.reshape(-1), dtype=np.float32)], build


def _category(chosen: Any) -> int:
    return int(np.asarray(chosen).item())


def _discrete(space: spaces.Discrete) -> tuple[list[spaces.Space], Build]:
    start = int(space.start)
    return [spaces.Discrete(int(space.n))], lambda chosen: start + _category(next(chosen))


def _grid(counts: np.ndarray, start: np.ndarray, dtype: Any) -> tuple[list[spaces.Space], Build]:
    """A category for each entry of an array."""

    def build(chosen: Iterator[Any]) -> np.ndarray:
        numbers = [_category(next(chosen)) for _ in range(counts.size)]
        return (np.asarray(numbers, np.int64).reshape(counts.shape) + start).astype(dtype)

    return [spaces.Discrete(int(count)) for count in counts.reshape(-1)], build


def take_apart(space: spaces.Space, what: str = "action") -> tuple[list[spaces.Space], Build]:
    """The heads that a policy chooses from, and what makes an element of the space from the choices.

    Args:
        space: an environment's action space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these.
        what: its name in messages.

    Raises:
        UnsuitableSpaceError: a part of it is of another kind, or has nothing to choose.
    """
    if isinstance(space, spaces.Box) and int(np.prod(space.shape)) > 0:
        return _box(space)
    if isinstance(space, spaces.Discrete):
        return _discrete(space)
    if isinstance(space, spaces.MultiDiscrete):
        return _grid(space.nvec, np.asarray(getattr(space, "start", 0)), space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return _grid(np.full(space.shape, 2), np.zeros(space.shape, np.int64), space.dtype)
    if isinstance(space, spaces.Dict) and space.spaces:
        parts = [take_apart(part, f"{what} '{name}'") for name, part in space.spaces.items()]
        names = list(space.spaces)
        return _joined(parts), lambda chosen: {n: build(chosen) for n, (_, build) in zip(names, parts, strict=True)}
    if isinstance(space, spaces.Tuple) and space.spaces:
        parts = [take_apart(part, f"{what} {i}") for i, part in enumerate(space.spaces)]
        return _joined(parts), lambda chosen: tuple(build(chosen) for _, build in parts)
    allowed = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
    raise UnsuitableSpaceError(f"{what} space {space}: must be {allowed}, with something to choose")


def _joined(parts: list[tuple[list[spaces.Space], Build]]) -> list[spaces.Space]:
    return [head for heads, _ in parts for head in heads]


class Actions:
    """An environment's actions as a policy chooses them.

    Attributes:
        policy_space: one head, or a Tuple of several.
    """

    def __init__(self, space: spaces.Space):
        """Takes the space apart.

        Raises:
            UnsuitableSpaceError: no policy can choose from it.
        """
        heads, self._build = take_apart(space)
        self._single = len(heads) == 1
        self.policy_space: spaces.Space = heads[0] if self._single else spaces.Tuple(heads)

    def engine_action(self, action: Any) -> Any:
        """A policy's choice as an element of the environment's space.

        Args:
            action: of the one head, or one for each. Of a bounded Box -1 and 1 are the ends, and what lies beyond is cut off; of
                one without bounds it is the number itself.

        Raises:
            ValueError: a number in it is not one.
        """
        if not all(np.isfinite(part).all() for part in ([action] if self._single else action)):
            raise ValueError(f"the policy's action is not finite: {action}")
        return self._build(iter([action] if self._single else action))
