"""CartPole with a tuple of actions, and the program that trains on it: `python tuple_env.py [flags of sf_fixpo.train]`."""

from __future__ import annotations

import sys
from dataclasses import replace

import gymnasium
import numpy as np

from sf_fixpo import train
from sf_fixpo.envs.gymnasium_envs import SUITE, make_env


class TwoHands(gymnasium.Wrapper):
    """The cart is pushed by one hand; the other one only costs: a discrete and a continuous part of one action."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gymnasium.spaces.Tuple([env.action_space, gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)])

    def step(self, action):
        push, idle = action
        obs, reward, terminated, truncated, info = self.env.step(int(np.asarray(push).item()))
        return obs, reward - 0.1 * float(np.square(np.clip(idle, -1, 1)).sum()), terminated, truncated, info


def make_tuple_env(full_env_name, cfg, env_config=None, render_mode=None):
    return TwoHands(make_env(full_env_name, cfg, env_config, render_mode))


if __name__ == "__main__":
    from tuple_env import make_tuple_env as factory  # under the name that a spawned process imports it by

    suite = replace(SUITE, make_env=factory)
    train.find_suite = lambda name: suite
    sys.exit(train.main(sys.argv[1:]))
