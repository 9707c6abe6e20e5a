"""A crash of an environment: an episode lost and counted, so often and no more."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.envs import EnvError
from sf_fixpo.running.crashes import CrashCounts, RemadeWhenItCrashes, crash_faults


class Breaks(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(0, 100, (1,)), gymnasium.spaces.Discrete(2)

    def __init__(self, at: int = 3, error: Exception | None = None, in_reset: bool = False):
        self.at, self.error, self.in_reset = at, error or RuntimeError("the gearbox is broken"), in_reset
        self.steps = self.resets = 0
        self.closed = False

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        if self.in_reset and self.resets == 2:
            raise self.error
        return np.zeros(1), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.at and not self.in_reset:
            raise self.error
        return np.full(1, float(self.steps)), 1.0, False, False, {"num_frames": 4}

    def close(self):
        self.closed = True


def wrapped(most: int, **kwargs):
    made: list[Breaks] = []
    counts = CrashCounts(3)

    def make():
        made.append(Breaks(**kwargs))
        return made[-1]

    return RemadeWhenItCrashes(make, "gym_Breaks-v0", 2, counts, most), made, counts


def test_the_episode_ends_truncated_and_the_next_is_of_a_new_environment():
    env, made, counts = wrapped(most=1)
    env.reset()
    env.step(0)
    before = env.step(0)
    obs, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated, info) == (0.0, False, True, {})
    assert np.array_equal(obs, before[0]), "the value of the last observation stands for the rest"
    assert (made[0].closed, counts.total()) == (True, 1)
    obs, _ = env.reset()
    assert obs == 0
    assert len(made) == 2
    assert env.step(0)[0] == 1, "it plays on"
    assert env.unwrapped is made[1]


def test_one_crash_too_many_ends_the_run_with_its_cause():
    env, _, counts = wrapped(most=1)
    for _ in range(2):
        env.reset()
        env.step(0)
        env.step(0)
        if counts.total() == 0:
            env.step(0)
    with pytest.raises(EnvError, match=r"gym_Breaks-v0: environment 2 crashed 2 times .*RuntimeError: the gearbox is broken"):
        env.step(0)


def test_none_is_survived_where_none_is_allowed():
    env, _, _ = wrapped(most=0)
    env.reset()
    env.step(0)
    env.step(0)
    with pytest.raises(EnvError, match="crashed 1 times"):
        env.step(0)


def test_a_crash_in_a_reset_is_one_too():
    env, made, counts = wrapped(most=1, in_reset=True)
    env.reset()
    env.step(0)
    env.reset()
    assert (len(made), counts.total()) == (2, 1)


def test_an_environment_that_can_never_be_made_again_ends_the_run():
    made: list[Breaks] = []

    def make():
        if made:
            raise OSError("the port is taken")
        made.append(Breaks())
        return made[-1]

    env = RemadeWhenItCrashes(make, "gym_Breaks-v0", 0, CrashCounts(1), 2)
    env.reset()
    for _ in range(3):
        result = env.step(0)
    assert result[3]
    with pytest.raises(EnvError, match="OSError: the port is taken"):
        env.reset()


def test_a_verdict_is_no_crash():
    env, made, counts = wrapped(most=5, error=EnvError("observation holds NaN"))
    env.reset()
    env.step(0)
    env.step(0)
    with pytest.raises(EnvError, match="observation holds NaN"):
        env.step(0)
    assert (len(made), counts.total()) == (1, 0)


@pytest.mark.parametrize("flag", ["max_env_crashes", "max_restarts"])
def test_a_negative_bound_is_refused(flag):
    cfg = AttrDict(max_env_crashes=0, max_restarts=0)
    assert crash_faults(cfg) == []
    cfg[flag] = -1
    assert crash_faults(cfg) == [f"--{flag}=-1: must be an integer >= 0"]
