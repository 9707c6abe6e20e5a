"""Factories of several agents: `gym_several_env:carts`, a vector of CartPoles, and `:parallel_env`, of PettingZoo's API."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from pettingzoo import ParallelEnv


def carts(num_envs: int = 4) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(num_envs)])


class Relay(ParallelEnv):
    """Three runners: the first dies after 3 steps, the second ends with the episode, the third appears at step 2.

    A runner sees which of three doors is open, as a mask would say it, and gets 1 for taking the one that it sees; the forbidden
    door fails. An episode has 8 steps.
    """

    metadata = {"name": "relay_v0"}  # noqa: RUF012 - as PettingZoo has it
    possible_agents = ["first", "second", "third"]  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.log: list = []  # who was given an action, of each step

    def observation_space(self, agent):
        return spaces.Dict({"observation": spaces.Box(0, 1, (3,), np.float32), "action_mask": spaces.MultiBinary(3)})

    def action_space(self, agent):
        return spaces.Discrete(3)

    def _observe(self):
        self.doors = {agent: int(self.random.integers(3)) for agent in self.agents}
        shown = {agent: np.eye(3, dtype=np.float32)[door] for agent, door in self.doors.items()}
        mask = np.ones(3, np.int8)
        found = {}
        for agent, door in self.doors.items():
            mask = np.ones(3, np.int8)
            mask[(door + 1) % 3] = 0
            found[agent] = {"observation": shown[agent], "action_mask": mask}
        return found

    def reset(self, seed=None, options=None):
        if seed is not None or not hasattr(self, "random"):
            self.random = np.random.default_rng(seed)
        self.agents, self.steps = ["first", "second"], 0
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents), (actions, self.agents)
        self.log.append(sorted(actions))
        for agent, action in actions.items():
            assert action != (self.doors[agent] + 1) % 3, f"{agent} took a forbidden door"
        rewards = {agent: float(action == self.doors[agent]) for agent, action in actions.items()}
        self.steps += 1
        over = self.steps == 8
        terminated = {agent: agent == "first" and self.steps == 3 for agent in actions}
        truncated = dict.fromkeys(actions, over)
        left = [agent for agent in self.agents if not (terminated[agent] or truncated[agent])]
        if self.steps == 2:
            left.append("third")
        dead = {agent: np.zeros(3, np.float32) for agent in self.agents if agent not in left}
        self.agents = left
        zero = np.zeros(3, np.int8)
        last = {agent: {"observation": seen, "action_mask": zero} for agent, seen in dead.items()}
        return {**last, **self._observe()}, rewards, terminated, truncated, {agent: {} for agent in sorted({*actions, *left})}


parallel_env = Relay
