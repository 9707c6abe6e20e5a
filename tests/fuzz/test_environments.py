"""What an environment answers: taken, or refused by the environment's name, the part and the step; never a bare traceback."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from fuzzing import fuzz, guarded, json_values
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sf_fixpo.envs.action_mask import guarded as masked
from sf_fixpo.envs.gymnasium_envs.adapter import GymAdapter
from sf_fixpo.envs.gymnasium_envs.several import SeveralAdapter
from sf_fixpo.envs.suite import EnvError

CFG = SimpleNamespace(env="gym_mine:Env", seed=0)
SPACES: list[spaces.Space] = [
    spaces.Box(0, 1, (3,), np.float32),
    spaces.Box(0, 255, (36, 36, 3), np.uint8),
    spaces.Discrete(4, start=2),
    spaces.MultiBinary(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Discrete(3)),
    spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float32))),
    spaces.Dict(x=spaces.Box(0, 1, (2,), np.float32), action_mask=spaces.MultiBinary(2)),
]
ARRAYS = [
    np.zeros(3, np.float32), np.full(3, np.nan), np.array([1, np.inf, 0]), np.zeros((36, 36, 3), np.uint8), np.zeros((2, 2)),
    np.zeros(0), np.array(["a", "b", "c"]), np.array([1, None, 2], object), np.zeros(3, complex), np.array([1, 0]),
    np.array([0, 0]),
    np.int64(3), np.float32(np.nan), np.datetime64("2020-01-01"), np.zeros(3, bool), b"xyz", 3 + 4j, object(),
]  # fmt: skip
answers = st.recursive(
    st.one_of(json_values, st.sampled_from(ARRAYS)),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["a", "b", "x", "action_mask"]), inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=5,
)


def said(action: Callable[[], None]) -> str:
    """The message of an environment that was refused; its name where nothing was wrong."""
    try:
        action()
    except EnvError as exc:
        return str(exc)
    return CFG.env


class Answering(gymnasium.Env):
    """Answers what it was given."""

    def __init__(self, space: spaces.Space, reset: Any, step: Any):
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self._reset, self._step = reset, step

    def reset(self, *, seed=None, options=None):
        return self._reset

    def step(self, action):
        return self._step


@st.composite
def conversations(draw: Any) -> tuple[spaces.Space, Any, Any]:
    """A space, and what is answered: mostly of the right form with something wrong in it."""
    space = draw(st.sampled_from(SPACES))
    space.seed(0)
    right = space.sample()
    if isinstance(right, dict) and draw(st.booleans()):
        right[draw(st.sampled_from(sorted(right)))] = draw(answers)
    observations = st.one_of(st.just(right), answers)
    reward = st.one_of(st.just(1.0), answers)
    flags = st.one_of(st.booleans(), answers)
    info = st.one_of(st.just({}), answers, st.dictionaries(st.just("episode_extra_stats"), answers))
    reset = st.one_of(st.tuples(observations, info), st.just((space.sample(), {})), answers)
    return space, draw(reset), draw(st.one_of(st.tuples(observations, reward, flags, flags, info), answers))


@fuzz(0.14, few=60)
@given(conversation=conversations())
def test_what_an_environment_answers(tmp_path_factory, conversation):
    space, reset, step = conversation
    with guarded("answers of an environment", tmp_path_factory.getbasetemp()):
        env = masked(GymAdapter(Answering(space, reset, step), CFG, None), CFG.env)

        def play() -> None:
            for observation in (env.reset(seed=1)[0], env.step(0)[0]):
                assert env.observation_space.contains(observation) or not isinstance(space, spaces.Box)

        assert CFG.env in said(play)
    env.close()


class Agents:
    """PettingZoo's parallel API, with answers that were given."""

    possible_agents = ("p", "q")
    metadata = MappingProxyType({})
    render_mode = None

    def __init__(self, reset: Any, step: Any):
        self.agents, self._reset, self._step = list(self.possible_agents), reset, step

    @property
    def unwrapped(self):
        return self

    def observation_space(self, agent):
        return SPACES[0]

    def action_space(self, agent):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return self._reset

    def step(self, actions):
        return self._step

    def close(self):
        pass


by_agent = st.dictionaries(st.sampled_from(["p", "q", "r"]), st.one_of(st.sampled_from(ARRAYS[:3]), answers), max_size=3)
right = st.just({"p": np.zeros(3, np.float32), "q": np.zeros(3, np.float32)})
steps = st.tuples(st.one_of(right, by_agent), by_agent, by_agent, by_agent, st.one_of(st.just({}), by_agent))


@fuzz(0.06, few=30)
@given(reset=st.one_of(st.tuples(right, st.just({})), st.tuples(by_agent, by_agent), answers), step=st.one_of(steps, answers))
def test_what_several_agents_are_answered(tmp_path_factory, reset, step):
    with guarded("answers to several agents", tmp_path_factory.getbasetemp()):
        env = SeveralAdapter(Agents(reset, step), CFG, None)

        def play() -> None:
            env.reset(seed=1)
            observations, rewards, *_ = env.step([0, 1])
            assert all(np.isfinite(reward) for reward in rewards)
            assert all(env.observation_space.contains(observation) for observation in observations)

        assert CFG.env in said(play)
