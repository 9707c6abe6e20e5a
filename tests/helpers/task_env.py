"""Two tasks of different speed, and the program that trains on them: `python task_env.py [flags of sf_fixpo.train]`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import gymnasium
import numpy as np

from sf_fixpo import train
from sf_fixpo.envs.gymnasium_envs import SUITE, make_env

TASKS = ("fast", "slow")
_SLOW_STEP_SECONDS = 0.004


class OneOfTwo(gymnasium.Wrapper):
    """CartPole, or CartPole with left and right exchanged, in which a step takes longer."""

    def __init__(self, env, task_id):
        super().__init__(env)
        self.unwrapped.task_id = task_id
        self.task_id = task_id
        task_space = gymnasium.spaces.Box(0, len(TASKS) - 1, (1,), np.int32)
        self.observation_space = gymnasium.spaces.Dict({"obs": env.observation_space, "task_id": task_space})

    def _with_task(self, obs):
        return {"obs": obs, "task_id": np.array([self.task_id], np.int32)}

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.score = 0.0
        return self._with_task(obs), info

    def step(self, action):
        if self.task_id:
            time.sleep(_SLOW_STEP_SECONDS)
            action = 1 - action
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.score += reward
        if terminated or truncated:
            info["episode_extra_stats"] = {f"z_{self.task_id:02d}_{TASKS[self.task_id]}_raw_score": self.score}
        return self._with_task(obs), reward, terminated, truncated, info


def make_task_env(full_env_name, cfg, env_config=None, render_mode=None):
    """Worker i plays task i modulo 2."""
    task_id = env_config.worker_index % 2 if env_config is not None else 0
    return OneOfTwo(make_env(full_env_name, cfg, env_config, render_mode), task_id)


if __name__ == "__main__":
    from task_env import make_task_env as factory  # under the name that a spawned process imports it by

    suite = replace(SUITE, make_env=factory, tasks=lambda cfg: TASKS)
    train.find_suite = lambda name: suite
    sys.exit(train.main(sys.argv[1:]))
