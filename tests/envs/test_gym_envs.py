"""The gym suite against Gymnasium's own environments and spaces of every kind: what a policy sees and chooses."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sf_fixpo.envs import EnvError
from sf_fixpo.envs.gymnasium_envs import SUITE as GYM
from sf_fixpo.envs.gymnasium_envs import engines
from sf_fixpo.envs.gymnasium_envs.actions import Actions
from sf_fixpo.envs.gymnasium_envs.adapter import GymAdapter, space_faults
from sf_fixpo.envs.gymnasium_envs.observations import Observations


def cfg_of(name: str, **flags) -> Namespace:
    return Namespace(**{"env": name, "seed": 3, "env_kwargs": "{}", "env_wrappers": "", **flags})


def make(name: str, env_id: int = 0, seed: int = 3, **flags):
    """An environment as sample-factory would make it."""
    return GYM.make_env(name, cfg_of(name, seed=seed, **flags), Namespace(env_id=env_id), None)


def faults(name: str, **flags) -> list[str]:
    return GYM.faults(cfg_of(name, **flags))


class Scripted(gymnasium.Env):
    """Gives what it was told to give, and keeps what it got."""

    action_space: spaces.Space = spaces.Discrete(2)
    observation_space: spaces.Space = spaces.Box(-1, 1, (2,))

    def __init__(self, observation=None, reward=0.0, ends=(False, False), info=None):
        self.observation, self.reward, self.ends, self.info = observation, reward, ends, info or {}
        self.actions: list = []

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {"num_frames": 7}

    def step(self, action):
        self.actions.append(action)
        observation = np.zeros(2, np.float32) if self.observation is None else self.observation
        return observation, self.reward, *self.ends, self.info


def adapted(env) -> GymAdapter:
    adapter = GymAdapter(env, cfg_of("gym_Scripted-v0"), None)
    adapter.reset()
    return adapter


@pytest.mark.parametrize(
    "name", [*GYM.env_names(), "gym_FrozenLake-v1", "gym_Blackjack-v1", "gym_Taxi-v3", "gym_CliffWalking-v0"]
)
def test_a_gym_environment_runs_an_episode_in_what_its_policy_sees(name):
    assert faults(name) == []
    env = make(name)
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5000):
        assert env.observation_space.contains(obs)
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert isinstance(reward, float)
        if terminated or truncated:
            break
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
    [("CartPol-v1", "did you mean gym_CartPole-v1"), ("no_such_package:Thing-v0", "in the present folder or on PYTHONPATH")],
)
def test_a_gym_environment_that_does_not_exist_is_refused(env_id, reason):
    (fault,) = faults(f"gym_{env_id}")
    assert reason in fault
    assert env_id in fault


# -- spaces -------------------------------------------------------------------------------------------------------------------


def boxes():
    shape = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    low = st.floats(-1e4, 1e4).map(lambda x: float(np.float32(x)))
    bounds = st.tuples(low, st.floats(1e-3, 1e4), st.sampled_from(["both", "low", "high", "none"]))

    def box(shape, bounds, dtype):
        low, width, kind = bounds
        if np.issubdtype(dtype, np.integer):
            return spaces.Box(int(low), int(low) + math.ceil(width), shape, dtype)
        return spaces.Box(
            low if kind in ("both", "low") else -np.inf, low + width if kind in ("both", "high") else np.inf, shape, dtype
        )

    return st.builds(box, shape, bounds, st.sampled_from([np.float32, np.float64, np.int32, np.int64]))


def leaves():
    counts = st.lists(st.integers(1, 4), min_size=1, max_size=4)
    return st.one_of(
        boxes(),
        st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)),
        counts.map(spaces.MultiDiscrete),
        st.just(spaces.MultiDiscrete([[2, 3], [1, 4]])),
        st.one_of(st.integers(1, 4), st.just((2, 2))).map(spaces.MultiBinary),
    )


def nested():
    # names that torch, sample-factory or this project use for something of their own
    names = st.sampled_from(["a", "task_id", "INSTR", "keys", "a.b", "obs", "training", "0", "type", "forward"])
    return st.recursive(
        leaves(),
        lambda inner: st.one_of(
            st.dictionaries(names, inner, min_size=1, max_size=3).map(spaces.Dict),
            st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        ),
        max_leaves=5,
    )


@given(nested(), st.integers(0, 1000))
def test_any_choice_of_a_policy_is_an_element_of_the_space(space, seed):
    actions, rng = Actions(space), np.random.default_rng(seed)
    heads = actions.policy_space.spaces if isinstance(actions.policy_space, spaces.Tuple) else [actions.policy_space]
    for _ in range(3):
        # a Gaussian knows no bounds, and sample-factory hands categories over in arrays
        chosen = [
            rng.normal(0, 3, head.shape).astype(np.float32)
            if isinstance(head, spaces.Box)
            else np.array([rng.integers(head.n)], np.int32)
            for head in heads
        ]
        action = actions.engine_action(chosen if len(heads) > 1 else chosen[0])
        assert space.contains(action), f"{action} is not in {space}"


@given(nested(), st.integers(0, 1000))
def test_any_observation_is_seen_in_full(space, seed):
    seen = Observations(space, "x")
    space.seed(seed)
    one, other = space.sample(), space.sample()
    first, second = (seen.policy_observation(observation, 0) for observation in (one, other))
    assert seen.policy_space.contains(first)
    flat = [np.concatenate([np.ravel(x) for x in (o.values() if isinstance(o, dict) else [o])]) for o in (first, second)]
    differ = str(spaces.flatten(space, one).astype(np.float32)) != str(spaces.flatten(space, other).astype(np.float32))
    assert not np.array_equal(*flat) or not differ, "nothing of it is lost"


def test_the_range_of_a_box_is_mapped_from_its_middle():
    for low, high in ((0.0, 1000.0), (0.01, 0.1), (-100.0, -50.0), (-2.0, 2.0)):
        actions = Actions(spaces.Box(low, high, (2,)))
        assert actions.policy_space == spaces.Box(-1, 1, (2,))
        for chosen, expected in (
            (0.0, (low + high) / 2),
            (-1.0, low),
            (1.0, high),
            (7.0, high),
            (0.5, low + 0.75 * (high - low)),
        ):
            np.testing.assert_allclose(actions.engine_action(np.full(2, chosen)), np.full(2, expected), rtol=1e-6)
    free = Actions(spaces.Box(np.array([-np.inf, -1.0, 0.0]), np.array([np.inf, np.inf, 4.0]), dtype=np.float32))
    np.testing.assert_allclose(free.engine_action(np.array([50.0, -50.0, 0.0])), [50.0, -1.0, 2.0])
    whole = Actions(spaces.Box(0, 10, (1,), np.int64))
    assert [whole.engine_action(np.array([x])).item() for x in (-1.0, 0.0, 0.19, 0.21, 1.0)] == [0, 5, 6, 6, 10]


def test_images_become_channels_first_and_small_ones_vectors():
    for shape in ((48, 64, 3), (3, 48, 64)):
        seen = Observations(spaces.Box(0, 255, shape, np.uint8), "x")
        assert (seen.policy_space.shape, seen.policy_space.dtype) == ((3, 48, 64), np.uint8)
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(seen.policy_observation(image, 0), np.moveaxis(image, 2, 0) if shape[2] == 3 else image)
    assert Observations(spaces.Box(0.0, 1.0, (40, 40, 1)), "x").policy_space == spaces.Box(0.0, 1.0, (1, 40, 40))
    for shape in ((7, 7, 3), (48, 64, 2), (4, 5), ()):
        assert Observations(spaces.Box(0, 255, shape, np.uint8), "x").policy_space.shape == (math.prod(shape),)


def test_categories_are_one_hot_and_names_nobody_elses():
    space = spaces.Dict(
        {"task_id": spaces.Discrete(3, start=5), "a": spaces.Tuple([spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)])}
    )
    seen = Observations(space, "x")
    found = seen.policy_observation({"task_id": 6, "a": (np.array([1, 0]), np.array([1, 0]))}, 0)
    assert {key: value.tolist() for key, value in found.items()} == {
        "user_task_id": [0, 1, 0],
        "a_0": [0, 1, 1, 0],
        "a_1": [1, 0],
    }
    same = spaces.Dict({"a.b": spaces.Discrete(2), "a_b": spaces.Discrete(3), "keys": spaces.Discrete(2)})
    assert {key: part.shape for key, part in Observations(same, "x").policy_space.spaces.items()} == {
        "a_b": (2,), "a_b_": (3,), "user_keys": (2,)
    }  # fmt: skip


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Discrete(2), None),
        spaces.Dict(),
        spaces.Tuple([]),
    ],
    ids=lambda space: type(space).__name__,
)
def test_what_cannot_be_learned_is_refused_with_its_name_and_space(space):
    inner = spaces.Dict(fine=spaces.Discrete(2), other=spaces.Tuple([space]))
    seen, chosen = space_faults(inner, inner)
    assert seen.startswith(f"observation 'other.0' space {space}: must be Box, Discrete or MultiDiscrete")
    assert chosen.startswith(f"action 'other' 0 space {space}: must be Box, Discrete")
    assert space_faults(spaces.Discrete(2), spaces.Discrete(2)) == []
    [huge] = space_faults(spaces.Discrete(10**7), spaces.Discrete(2))
    assert "Discrete(10000000): must be" in huge


# -- what an environment gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "passed_on"), [((True, True), (True, False)), ((False, True), (False, True)), ((1, 0), (True, False))]
)
def test_an_end_that_is_both_is_an_end(ends, passed_on):
    assert adapted(Scripted(ends=ends)).step(0)[2:4] == passed_on


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"observation": np.array([0.0, np.nan])}, "observation holds NaN at step 2 of an episode"),
        ({"observation": np.array([np.inf, 0.0])}, "observation holds an infinite number at step 2 of an episode"),
        ({"observation": np.zeros(3)}, "observation at step 2 of an episode: cannot reshape"),
        ({"observation": "text"}, "observation at step 2 of an episode: could not convert"),
        ({"reward": math.nan}, "the reward is nan at step 2 of an episode"),
        ({"reward": np.array(-np.inf)}, "the reward is -inf at step 2 of an episode"),
    ],
)
def test_a_number_that_is_none_is_named_where_it_comes_from(given, message):
    env = Scripted()
    adapter = adapted(env)
    adapter.step(0)
    vars(env).update(given)
    with pytest.raises(EnvError, match=f"gym_Scripted-v0: {message}"):
        adapter.step(0)


def test_the_start_of_an_episode_is_compared_with_the_space():
    env = Scripted()
    env.observation_space = spaces.Box(-1, 1, (3,))
    with pytest.raises(EnvError, match=r"observation at step 0 of an episode: has the shape \(2,\); its space is Box"):
        adapted(env)
    env.observation_space = spaces.Dict(a=spaces.Discrete(2))
    with pytest.raises(EnvError, match="observation 'a' is missing at step 0 of an episode"):
        adapted(env)


def test_an_action_that_is_no_number_never_reaches_the_environment():
    env = Scripted()
    env.action_space = spaces.Box(-1, 1, (2,))
    adapter = adapted(env)
    with pytest.raises(EnvError, match=r"the policy's action is not finite: \[ ?nan"):
        adapter.step(np.array([np.nan, 0.0]))
    assert env.actions == []


def test_what_an_environment_says_beside_is_not_taken_for_sample_factorys():
    given = {
        "num_frames": 4,
        "is_active": False,
        "episode": {"r": np.array([1.0])},
        "true_objective": "x",
        "episode_extra_stats": {"a": 1.0},
    }
    assert adapted(Scripted(info=given)).step(0)[4] == {"episode_extra_stats": {"a": 1.0}}
    assert adapted(Scripted(info={"episode_extra_stats": 3})).step(0)[4] == {}
    assert adapted(Scripted()).reset()[1] == {}


# -- flags --------------------------------------------------------------------------------------------------------------------


class Limited(gymnasium.Wrapper):
    calls: ClassVar[list[str]] = []

    def __init__(self, env):
        super().__init__(env)
        self.calls.append(type(env).__name__)


def test_arguments_and_wrappers_reach_the_environment():
    env = make("gym_FrozenLake-v1", env_kwargs='{"map_name": "8x8", "is_slippery": false}')
    assert env.observation_space.shape == (64,)
    Limited.calls.clear()
    module = f"{__name__}:Limited"
    sys.modules.setdefault(__name__, sys.modules[Limited.__module__])
    make("gym_CartPole-v1", env_wrappers=f"{module},{module}")
    assert Limited.calls == ["TimeLimit", "Limited"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"env_kwargs": "{"}, "--env_kwargs={: must be a JSON object ("),
        ({"env_kwargs": "[1]"}, '--env_kwargs=[1]: must be a JSON object, such as {"map_name": "8x8"}'),
        ({"env_kwargs": '{"colour": 1}'}, '--env_kwargs={"colour": 1}: cannot be made: TypeError: '),
        ({"env_kwargs": '{"map_name": "9x9"}'}, '--env_kwargs={"map_name": "9x9"}: cannot be made: KeyError: '),
        ({"env_wrappers": "no_such_module:f"}, "--env_wrappers=no_such_module:f: must be MODULE:FUNCTION (No module named"),
        ({"env_wrappers": "math:g"}, "--env_wrappers=math:g: must be MODULE:FUNCTION (module 'math' has no attribute 'g'"),
        ({"env_wrappers": ":g"}, "--env_wrappers=:g: must be MODULE:FUNCTION"),
    ],
)
def test_bad_arguments_and_wrappers_are_refused(flags, message):
    (fault,) = faults("gym_FrozenLake-v1", **flags)
    assert message in fault


def test_engines_of_a_version_that_does_not_fit_are_named():
    """The errors are those of mujoco 3.3.7 and of ale-py 0.12.1 and 0.10.1 with Gymnasium 0.29.1."""
    schema = "XML Error: Schema violation: unrecognized attribute: 'collision'\nElement 'option', line 3\n"
    hint = engines.mujoco_hint(schema, "3.3.7")
    assert hint is not None
    assert hint.startswith("mujoco 3.3.7 does not read the models of this Gymnasium: pip install 'mujoco==2.3.7'")
    assert engines.mujoco_hint(schema, "2.3.7") is None
    assert engines.mujoco_hint("a user's own", "4.0.0") is None
    assert engines.mujoco_hint(schema, None) is None
    for name in ("ALE/Pong-v5", "ale_py:ALE/Pong-v5", "PongNoFrameskip-v4"):
        assert "ale-py 0.12.1 does not register" in str(engines.ale_hint(name, "0.12.1"))
    assert engines.ale_hint("ALE/Pong-v5", "0.10.1") == "its module has to be named: --env=gym_ale_py:ALE/Pong-v5"
    assert engines.ale_hint("CartPole-v9", None) is None
    assert engines.ale_hint("mine:ALE/Pong-v5", None) is None


def test_a_game_without_its_engine_is_refused_with_what_to_install(monkeypatch):
    (fault,) = GYM.faults(Namespace(env="gym_ALE/Pong-v5"))
    assert fault == "--env=gym_ALE/Pong-v5: its module has to be named: --env=gym_ale_py:ALE/Pong-v5"
    monkeypatch.setattr(engines, "installed", lambda name: None)
    (fault,) = GYM.faults(Namespace(env="gym_ALE/Pong-v5"))
    assert fault.startswith("--env=gym_ALE/Pong-v5: ale-py is not installed: pip install 'ale-py==0.10.1'")
    assert "--env=atari_Pong" in fault
