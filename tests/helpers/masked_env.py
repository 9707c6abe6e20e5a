"""An environment that allows half of its actions at a time and fails on any other: `gym_masked_env:Shop-v0`."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

EPISODE = 20


class Shop(gymnasium.Env):
    """Six goods of which three are on sale, priced at random; the observation has the prices in another order.

    The reward is what was bought: by chance 0.5 a step, at best 0.75. With `hands=2` there are two counters, and MultiDiscrete
    actions.
    """

    def __init__(self, hands: int = 1):
        self.hands, self.goods = hands, 6
        size = hands * self.goods
        self.action_space = spaces.Discrete(self.goods) if hands == 1 else spaces.MultiDiscrete([self.goods] * hands)
        self.observation_space = spaces.Dict(
            {"observation": spaces.Box(0, 1, (size,), np.float64), "action_mask": spaces.MultiBinary(size)}
        )

    def _observe(self):
        self.prices = self.np_random.random((self.hands, self.goods))
        self.on_sale = np.stack([self.np_random.permutation(self.goods) < 3 for _ in range(self.hands)])
        return {"observation": self.prices[:, ::-1].reshape(-1), "action_mask": self.on_sale.reshape(-1).astype(np.int8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        chosen = np.asarray(action).reshape(-1)
        hands = np.arange(self.hands)
        if not self.on_sale[hands, chosen].all():
            raise RuntimeError(f"{action} is not on sale")
        reward = float(self.prices[hands, chosen].mean())
        self.steps += 1
        return self._observe(), reward, False, self.steps >= EPISODE, {}


gymnasium.register("Shop-v0", entry_point=Shop)
