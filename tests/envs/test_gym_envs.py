"""The gym suite against Gymnasium's own environments: spaces, seeds, and what is refused before training starts."""

from __future__ import annotations

from argparse import Namespace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from sf_fixpo.envs.gymnasium_envs import SUITE as GYM
from sf_fixpo.envs.gymnasium_envs.adapter import engine_action, policy_action_space, space_faults


def make(name: str, env_id: int = 0, seed: int = 3):
    """An environment as sample-factory would make it."""
    return GYM.make_env(name, Namespace(env=name, seed=seed), Namespace(env_id=env_id), None)


def faults(name: str) -> list[str]:
    return GYM.faults(Namespace(env=name, seed=3))


@pytest.mark.parametrize("name", GYM.env_names())
def test_a_gym_environment_runs_an_episode_in_float32(name):
    assert faults(name) == []
    env = make(name)
    obs, _ = env.reset(seed=0)
    for _ in range(2000):
        assert env.observation_space.dtype == obs.dtype == np.float32
        assert obs.shape == env.observation_space.shape
        action = np.asarray(env.action_space.sample())
        obs, reward, terminated, truncated, _ = env.step(5 * action if action.ndim else action)
        assert isinstance(reward, float)
        if terminated or truncated:
            break
    assert terminated or truncated
    env.close()


def test_gym_repeats_with_the_seed_and_differs_without():
    def first(**changes):
        env = make("gym_CartPole-v1", **changes)
        return np.concatenate([env.reset(seed=changes.get("env_id", 0))[0], env.reset()[0]])

    np.testing.assert_array_equal(first(), first())
    assert (first() != first(seed=4)).all()
    assert (first() != first(env_id=1)).all()


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [("FrozenLake-v1", "Discrete"), ("Blackjack-v1", "Tuple"), ("no_such_package:Thing-v0", "no_such_package")],
)
def test_a_gym_environment_that_cannot_be_learned_is_refused(env_id, reason):
    (fault,) = faults(f"gym_{env_id}")
    assert reason in fault
    assert env_id in fault


def test_spaces_that_will_do_and_spaces_that_will_not():
    vector, image = spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (84, 84, 3), np.uint8)
    choice = spaces.Discrete(4)
    assert space_faults(vector, choice) == []
    assert space_faults(spaces.Dict(a=vector, b=vector), spaces.Tuple([choice, vector])) == []
    assert space_faults(vector, spaces.MultiDiscrete([2, 3])) == []
    assert len(space_faults(spaces.Dict(a=vector, b=image, c=choice), spaces.MultiBinary(3))) == 3
    assert len(space_faults(vector, spaces.Discrete(3, start=1))) == 1


def test_actions_arrive_in_the_engines_own_form():
    box, pairs = spaces.Box(-2, 2, (2,)), spaces.MultiDiscrete([3, 4])
    np.testing.assert_array_equal(engine_action(box, np.array([9.0, -0.5])), np.array([2.0, -0.5], dtype=np.float32))
    assert engine_action(spaces.Discrete(3), np.int32(2)) == 2
    assert policy_action_space(pairs) == spaces.Tuple([spaces.Discrete(3), spaces.Discrete(4)])
    assert pairs.contains(engine_action(pairs, [np.array([2]), np.array([3])]))
    both = engine_action(spaces.Tuple([spaces.Discrete(3), box]), (np.array([1]), np.array([3.0, 0.0])))
    assert both[0] == 1
    assert both[1].max() == 2


def test_a_dict_of_float64_vectors_reaches_the_policy_as_float32():
    class Pair(gymnasium.Env):
        observation_space = spaces.Dict(a=spaces.Box(-1e300, 1e300, (2,), np.float64), b=spaces.Box(0, 255, (3,), np.uint8))
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return {"a": np.zeros(2), "b": np.zeros(3, np.uint8)}, {}

        def step(self, action):
            return {"a": np.ones(2), "b": np.ones(3, np.uint8)}, 1, False, False, {}

    gymnasium.register("FixpoPair-v0", entry_point=Pair)
    env = make("gym_FixpoPair-v0")
    assert all(part.dtype == np.float32 for part in env.observation_space.spaces.values())
    assert all(value.dtype == np.float32 for value in env.reset()[0].values())
    obs, reward, *_ = env.step(np.int32(1))
    assert env.observation_space.contains(obs)
    assert isinstance(reward, float)
