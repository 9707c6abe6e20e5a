"""An environment of your own: any Gymnasium environment, registered where its module is imported.

    python examples/custom_env.py --experiment=corridor                  # which is, from the folder of the module,
    python -m sf_fixpo.train --env=gym_custom_env:Corridor-v0 --preset=laptop --experiment=corridor

All other programs find it by that name too where they can import the module: `python -m sf_fixpo.evaluate train_dir/corridor`.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np

from sf_fixpo.train import main


class Corridor(gymnasium.Env[np.ndarray, int]):
    """The way out is at the right end: +1 there, -0.01 for every step.

    Observation: float32 (1,), the position in [0, 1]. Actions: 0 left, 1 right. Truncated after 50 steps.
    """

    def __init__(self, length: int = 10):
        """Makes a corridor of so many steps."""
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._length, self._position = length, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts somewhere in the left half."""
        super().reset(seed=seed)
        self._position = int(self.np_random.integers(self._length // 2))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Goes left or right."""
        self._position = max(0, self._position + (1 if action == 1 else -1))
        out = self._position >= self._length
        return self._observation(), 1.0 if out else -0.01, out, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([min(1.0, self._position / self._length)], np.float32)


# At import: every process that makes the environment imports this module first.
gymnasium.register("Corridor-v0", entry_point="custom_env:Corridor", max_episode_steps=50)

if __name__ == "__main__":
    sys.exit(main(["--env=gym_custom_env:Corridor-v0", "--preset=laptop", *sys.argv[1:]]))
