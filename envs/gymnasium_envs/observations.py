"""From an environment's observations to what sample-factory's networks take: a flat Dict of vectors and images.

Vectors are float32. Images stay bytes and become channels x height x width. Categories are one-hot vectors, and what is nested
becomes flat. The key `action_mask` of the outermost Dict says which actions are allowed, and is for no network to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import nn

from sf_fixpo.envs.action_mask import ACTION_MASK
from sf_fixpo.envs.gymnasium_envs.actions import UnsuitableSpaceError
from sf_fixpo.envs.gymnasium_envs.answers import UNFIT
from sf_fixpo.envs.suite import EnvError

# Keys that mean something else to the learner or to sample-factory's encoders; the user's own get another name.
_OURS = frozenset({"task_id", "INSTR", ACTION_MASK})
_CHANNELS = (1, 3, 4)
# The smallest image that sample-factory's default convolutions take; smaller ones are vectors.
LEAST_PIXELS = 36
# One-hot vectors longer than this are refused: a category of so many values is a number, or wants an embedding.
_MOST_CATEGORIES = 65_536

Convert = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Part:
    """One observation of a network.

    Attributes:
        path: where it is in the environment's own: names and numbers, from the outside in.
        space: as the environment declares it.
        policy_space: as the network gets it.
        convert: from the one to the other.
        inexact: whether the numbers could be infinite or none.
    """

    path: tuple[str | int, ...]
    space: spaces.Space
    policy_space: spaces.Box
    convert: Convert
    inexact: bool

    @property
    def name(self) -> str:
        """In messages."""
        return _name(self.path)


def _name(path: tuple[str | int, ...]) -> str:
    return "observation" + (f" '{'.'.join(map(str, path))}'" if path else "")


def _vector(size: int, low: float = -np.inf, high: float = np.inf) -> spaces.Box:
    return spaces.Box(low, high, (size,), np.float32)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Which of three axes counts channels; None where the shape is no image that convolutions take."""
    if len(shape) != 3:
        return None
    for axis, sides in ((2, shape[:2]), (0, shape[1:])):
        if shape[axis] in _CHANNELS and min(sides) >= LEAST_PIXELS:
            return axis
    return None


def _box_part(path: tuple[str | int, ...], space: spaces.Box) -> Part:
    axis = _channel_axis(space.shape)
    inexact = np.issubdtype(space.dtype, np.inexact)
    if axis is None:
        size = int(np.prod(space.shape))
        if size == 0:
            raise UnsuitableSpaceError(f"{_name(path)} space {space}: has nothing in it, and must hold a number")
        # bounds of another type may not fit into float32; nothing downstream reads them
        return Part(path, space, _vector(size), lambda x: np.asarray(x, np.float32).reshape(size), inexact)
    dtype = np.uint8 if space.dtype == np.uint8 else np.float32
    low, high = (np.moveaxis(np.asarray(bound, dtype), axis, 0) for bound in (space.low, space.high))
    policy_space = spaces.Box(low, high, dtype=dtype)
    return Part(path, space, policy_space, lambda x: np.ascontiguousarray(np.moveaxis(np.asarray(x, dtype), axis, 0)), inexact)


def _one_hot(counts: np.ndarray, start: Any) -> tuple[int, Convert]:
    """One-hot vectors of an array of categories, one after the other."""
    flat = counts.reshape(-1).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(flat)[:-1]])
    size, first = int(flat.sum()), np.broadcast_to(np.asarray(start, np.int64).reshape(-1), flat.shape)

    def convert(x: Any) -> np.ndarray:
        number = np.asarray(x, np.int64).reshape(-1) - first
        if number.shape != flat.shape or (number < 0).any() or (number >= flat).any():
            raise ValueError(f"is {x}")
        result = np.zeros(size, np.float32)
        result[offsets + number] = 1.0
        return result

    return size, convert


def _mask_leaves(space: spaces.Space) -> list[tuple[tuple[str | int, ...], int]]:
    """(path, numbers) of each array of a mask, in the order in which an action's parts are taken."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [((name, *path), size) for name, part in inner for path, size in _mask_leaves(part)]
    if not isinstance(space, (spaces.Box, spaces.MultiBinary, spaces.MultiDiscrete)):
        raise UnsuitableSpaceError(
            f"observation '{ACTION_MASK}' space {space}: must be a Box or MultiBinary, or a Dict or Tuple of these"
        )
    return [((), int(np.prod(space.shape)))]


def mask_part(space: spaces.Space) -> Part:
    """The mask of actions as one vector of 0 and 1: of several parts of an action one after the other.

    Raises:
        UnsuitableSpaceError: it is of a kind that no mask is of.
    """
    leaves = _mask_leaves(space)
    size = sum(count for _, count in leaves)

    def convert(mask: Any) -> np.ndarray:
        flat = []
        for path, count in leaves:
            part = mask
            for step in path:
                try:
                    part = part[step]
                except (KeyError, IndexError, TypeError):
                    raise ValueError(f"is without {step!r}") from None
            array = np.asarray(part)
            if array.size != count:
                raise ValueError(f"has the shape {array.shape}")
            if array.dtype != bool and not np.issubdtype(array.dtype, np.number):
                raise ValueError(f"is of {array.dtype}, must be of 0 and 1")
            flat.append(array.reshape(-1))
        found = np.concatenate(flat)
        if not ((found == 0) | (found == 1)).all():
            raise ValueError(f"is {found.tolist()}, must be of 0 and 1")
        return found.astype(np.uint8)

    return Part((ACTION_MASK,), space, spaces.Box(0, 1, (size,), np.uint8), convert, False)


def parts_of(space: spaces.Space, path: tuple[str | int, ...] = ()) -> list[Part]:
    """What a network sees of an observation space, in order.

    Raises:
        UnsuitableSpaceError: a part of it is of a kind that no network takes.
    """
    if isinstance(space, spaces.Dict) and space.spaces:
        return [
            part
            for name, inner in space.spaces.items()
            for part in ([mask_part(inner)] if (*path, name) == (ACTION_MASK,) else parts_of(inner, (*path, name)))
        ]
    if isinstance(space, spaces.Tuple) and space.spaces:
        return [part for i, inner in enumerate(space.spaces) for part in parts_of(inner, (*path, i))]
    if isinstance(space, spaces.Box):
        return [_box_part(path, space)]
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return [Part(path, space, _vector(size, 0, 1), lambda x: np.asarray(x, np.float32).reshape(size), False)]
    counts = None
    if isinstance(space, spaces.Discrete):
        counts = np.asarray([space.n])
    elif isinstance(space, spaces.MultiDiscrete):
        counts = np.asarray(space.nvec)
    if counts is not None and counts.sum() <= _MOST_CATEGORIES:
        size, convert = _one_hot(counts, getattr(space, "start", 0))
        return [Part(path, space, _vector(size, 0, 1), convert, False)]
    allowed = f"Box, Discrete or MultiDiscrete of at most {_MOST_CATEGORIES:,} values, MultiBinary, or a Dict or Tuple of these"
    raise UnsuitableSpaceError(f"{_name(path)} space {space}: must be {allowed}")


def _key(path: tuple[str | int, ...], taken: set[str]) -> str:
    """A name that a torch module can have, and that means nothing to anybody else."""
    key = "_".join(str(step) for step in path).replace(".", "_") or "obs"
    if path == (ACTION_MASK,):
        return key
    if key in _OURS or hasattr(nn.ModuleDict, key) or key[0].isdigit():
        key = f"user_{key}"
    while key in taken:
        key += "_"
    taken.add(key)
    return key


class Observations:
    """An environment's observations as a network gets them.

    Attributes:
        policy_space: a Box where there is one part, or else a Dict.
    """

    def __init__(self, space: spaces.Space, env_name: str):
        """Takes the space apart.

        Args:
            space: the environment's.
            env_name: in messages.

        Raises:
            UnsuitableSpaceError: no network can see it.
        """
        self._env_name = env_name
        self._single = not isinstance(space, (spaces.Dict, spaces.Tuple))
        taken: set[str] = set()
        self._parts = {_key(part.path, taken): part for part in parts_of(space)}
        if self._single:
            [part] = self._parts.values()
            self.policy_space: spaces.Space = part.policy_space
            self._only = part
        else:
            self.policy_space = spaces.Dict({key: part.policy_space for key, part in self._parts.items()})

    def policy_observation(self, observation: Any, step: int) -> Any:
        """An observation as the network gets it: an array, or a dict of arrays.

        Args:
            observation: the environment's.
            step: of the episode; at 0 its shape is compared with what the space says.

        Raises:
            EnvError: it is not what its space says, or not finite; the message has environment, part and step.
        """
        if self._single:
            return self._converted(self._only, observation, step)
        return {key: self._converted(part, self._found(part, observation, step), step) for key, part in self._parts.items()}

    def _found(self, part: Part, observation: Any, step: int) -> Any:
        for key in part.path:
            try:
                observation = observation[key]
            except UNFIT:
                raise EnvError(f"{self._env_name}: {part.name} is missing at step {step} of an episode") from None
        return observation

    def _converted(self, part: Part, value: Any, step: int) -> np.ndarray:
        where = f"{self._env_name}: {part.name}"
        try:
            if step == 0 and isinstance(part.space, spaces.Box) and np.shape(value) != part.space.shape:
                raise ValueError(f"has the shape {np.shape(value)}")
            result = part.convert(value)
        except UNFIT as exc:
            raise EnvError(f"{where} at step {step} of an episode: {exc}; its space is {part.space}") from exc
        if part.inexact and not np.isfinite(result).all():
            kind = "NaN" if np.isnan(result).any() else "an infinite number"
            raise EnvError(f"{where} holds {kind} at step {step} of an episode")
        return result
