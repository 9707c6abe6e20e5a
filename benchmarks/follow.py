"""One small task in every kind of space: to do what is shown. `--env=gym_benchmarks.follow:Follow`.

Each step shows one of four numbers, 0 to 3, in the terms of the observation space, and asks for the same number in those of the
action space; what is right counts 1, what is nearly right, where a space knows near and far, in part. An episode has ten steps,
so 10 is the most possible. Kinds are added by a line in `OBSERVATIONS` or `ACTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

NUMBERS = 4
STEPS = 10
SIDE = 36  # pixels of an image


class Shown(NamedTuple):
    """A kind of observation: its space, and the element that shows number n."""

    space: spaces.Space
    show: Callable[[int], Any]


class Asked(NamedTuple):
    """A kind of action: its space, and what an action is worth, 0 to 1, where number n was shown."""

    space: spaces.Space
    worth: Callable[[Any, int], float]


def _bits(n: int) -> np.ndarray:
    return np.array([n // 2, n % 2], np.int8)


def _image(n: int, dark: float, bright: float, dtype: Any) -> np.ndarray:
    """[SIDE, SIDE, 3]: quarter n is bright."""
    image = np.full((SIDE, SIDE, 3), dark, dtype)
    row, column = SIDE // 2 * _bits(n).astype(int)
    image[row : row + SIDE // 2, column : column + SIDE // 2] = bright
    return image


def _same(action: Any, n: int) -> float:
    """Worth of two bits in whatever holds them: half for each."""
    return float(np.mean(np.asarray(action).reshape(2) == _bits(n)))


def _near(action: Any, n: int, low: float, high: float) -> float:
    """Worth of a number within a range, of which the four numbers divide the middle three quarters."""
    wanted = low + (high - low) * (0.125 + 0.25 * n)
    return max(0.0, 1.0 - 2 * abs(float(np.asarray(action).reshape(())) - wanted) / (high - low))


def _parts(first: Any, second: Any, n: int) -> float:
    """Worth of a bit and a number in [-5, 5], which is to be on the side that the other bit says."""
    bit, side = _bits(n)
    return 0.5 * float(int(first) == bit) + 0.5 * _near(second, 3 * int(side), -5.0, 5.0)


def _box(low: float, high: float, shape: tuple[int, ...] = (1,), dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


_TWO = spaces.Discrete(2)
_FIVE = _box(-5.0, 5.0)

OBSERVATIONS: Mapping[str, Shown] = {
    "Box of [-1, 1], 4": Shown(_box(-1, 1, (4,)), lambda n: 2 * np.eye(4, dtype=np.float32)[n] - 1),
    "Box without bounds, 2 x 2, float64": Shown(
        _box(-np.inf, np.inf, (2, 2), np.float64), lambda n: 100.0 * np.eye(4)[n].reshape(2, 2)
    ),
    "Box of integers to 1000": Shown(_box(0, 1000, (2,), np.int64), lambda n: 1000 * _bits(n).astype(np.int64)),
    "Box without a dimension": Shown(_box(0, 3, ()), lambda n: np.array(n, np.float32)),
    "image, height x width x 3": Shown(_box(0, 255, (SIDE, SIDE, 3), np.uint8), lambda n: _image(n, 20, 220, np.uint8)),
    "image, 3 x height x width": Shown(
        _box(0, 255, (3, SIDE, SIDE), np.uint8), lambda n: _image(n, 20, 220, np.uint8).transpose(2, 0, 1)
    ),
    "image of [-1, 1], float": Shown(_box(-1, 1, (SIDE, SIDE, 3)), lambda n: _image(n, -1, 1, np.float32)),
    "Discrete from 5": Shown(spaces.Discrete(NUMBERS, start=5), lambda n: 5 + n),
    "MultiDiscrete": Shown(spaces.MultiDiscrete([2, 2]), lambda n: _bits(n).astype(np.int64)),
    "MultiBinary": Shown(spaces.MultiBinary(2), _bits),
    "Dict": Shown(
        spaces.Dict({"bit": _TWO, "other": _FIVE}),
        lambda n: {"bit": n // 2, "other": np.array([9.0 * (n % 2) - 4.5], np.float32)},
    ),
    "Tuple": Shown(spaces.Tuple([_TWO, spaces.MultiBinary(1)]), lambda n: (n // 2, _bits(n)[1:])),
    "Dict of a Tuple and an image": Shown(
        spaces.Dict({"pair": spaces.Tuple([_TWO, _FIVE]), "image": _box(0, 255, (SIDE, SIDE, 3), np.uint8)}),
        lambda n: {"pair": (n // 2, np.zeros(1, np.float32)), "image": _image(n % 2, 20, 220, np.uint8)},
    ),
    "Dict with keys `task_id` and `obs`": Shown(
        spaces.Dict({"task_id": _TWO, "obs": _TWO}), lambda n: {"task_id": n // 2, "obs": n % 2}
    ),
    "Dict with `action_mask`": Shown(
        spaces.Dict({"bits": spaces.MultiBinary(2), "action_mask": spaces.MultiBinary(NUMBERS)}),
        lambda n: {"bits": _bits(n), "action_mask": np.roll(np.array([1, 1, 0, 0], np.int8), n)},
    ),
}

ACTIONS: Mapping[str, Asked] = {
    "Discrete": Asked(spaces.Discrete(NUMBERS), lambda action, n: float(action == n)),
    "Discrete from -3": Asked(spaces.Discrete(NUMBERS, start=-3), lambda action, n: float(action + 3 == n)),
    "MultiDiscrete": Asked(spaces.MultiDiscrete([2, 2]), _same),
    "MultiBinary": Asked(spaces.MultiBinary(2), _same),
    "Box of [-1, 1]": Asked(_box(-1, 1), lambda action, n: _near(action, n, -1, 1)),
    "Box of [0, 10]": Asked(_box(0, 10), lambda action, n: _near(action, n, 0, 10)),
    "Box of [-300, -100], no dimension": Asked(_box(-300, -100, ()), lambda action, n: _near(action, n, -300, -100)),
    "Box without bounds": Asked(_box(-np.inf, np.inf), lambda action, n: _near(action, n, -2, 2)),
    "Tuple of Discrete and Box": Asked(spaces.Tuple([_TWO, _FIVE]), lambda action, n: _parts(action[0], action[1], n)),
    "Dict of Discrete and Box": Asked(
        spaces.Dict({"a": _TWO, "b": _FIVE}), lambda action, n: _parts(action["a"], action["b"], n)
    ),
    "Dict of a Tuple and MultiBinary": Asked(
        spaces.Dict({"a": spaces.Tuple([_TWO]), "b": spaces.MultiBinary(1)}),
        lambda action, n: _same([action["a"][0], action["b"][0]], n),
    ),
}


class Follow(gymnasium.Env):
    """See the module.

    Args:
        observation: A kind of `OBSERVATIONS`.
        action: A kind of `ACTIONS`.
        render_mode: None; there is nothing to see.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, observation: str = "Discrete from 5", action: str = "Discrete", render_mode: str | None = None):
        self.render_mode = render_mode
        self._shown, self._asked = OBSERVATIONS[observation], ACTIONS[action]
        self.observation_space, self.action_space = self._shown.space, self._asked.space
        self._number = self._step = 0

    def _next(self) -> Any:
        self._number = int(self.np_random.integers(NUMBERS))
        return self._shown.show(self._number)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        self._step = 0
        return self._next(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Rewards an action by what was shown, and shows the next number."""
        reward = self._asked.worth(action, self._number)
        self._step += 1
        return self._next(), reward, False, self._step == STEPS, {}
