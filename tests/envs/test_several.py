"""Vector environments and PettingZoo's parallel API through the gym suite's door: who acts, sees what, and is learned from."""

from __future__ import annotations

import json
from argparse import Namespace

import gymnasium
import numpy as np
import pytest
import several_env
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import HELPERS, SERIAL, started, train
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.audit import audit
from sf_fixpo.envs import EnvError, find_suite
from sf_fixpo.envs.action_mask import guarded
from sf_fixpo.envs.gymnasium_envs.adapter import GymAdapter
from sf_fixpo.envs.gymnasium_envs.several import SeveralAdapter
from sf_fixpo.playing import evaluation_worker
from sf_fixpo.playing.evaluation_worker import Job, RandomAgent, Slots
from sf_fixpo.records.audit_files import list_files, load


def cfg_of(name: str, **flags) -> Namespace:
    return Namespace(**{"env": name, "seed": 3, "env_kwargs": "{}", "env_wrappers": "", "batched_sampling": False, **flags})


def make(name: str, **flags):
    return find_suite(name).make_env(name, cfg_of(name, **flags), Namespace(env_id=0), None)


def faults(name: str, **flags) -> list[str]:
    return find_suite(name).faults(cfg_of(name, **flags))


# -- vectors ------------------------------------------------------------------------------------------------------------------


def test_a_vector_is_its_environments_step_for_step():
    """The same seeds and actions, through ends of episodes."""
    cfg = cfg_of("gym_several_env:carts")
    env = SeveralAdapter(several_env.carts(3), cfg, None)
    singles = [gymnasium.make("CartPole-v1") for _ in range(3)]
    obs, infos = env.reset()
    assert infos == [{"is_active": True}] * 3
    [seed] = sf_seeds(cfg)
    expected = [single.reset(seed=seed + i)[0] for i, single in enumerate(singles)]
    rng, ends = np.random.default_rng(0), 0
    for _ in range(100):
        np.testing.assert_array_equal(obs, expected)
        actions = rng.integers(2, size=3)
        obs, rewards, terminated, truncated, infos = env.step(list(actions))
        assert (rewards, truncated, infos) == ([1.0] * 3, [False] * 3, [{"is_active": True}] * 3)
        for i, single in enumerate(singles):
            expected[i], _, over, _, _ = single.step(int(actions[i]))
            assert over == terminated[i]
            if over:
                expected[i], ends = single.reset()[0], ends + 1
    assert ends > 5
    env.close()


def sf_seeds(cfg):
    from sf_fixpo.envs.seeding import env_seeds

    return env_seeds(cfg, None)


class Any(gymnasium.Env):
    """An environment of any spaces that remembers what it was told."""

    def __init__(self, seen, chosen):
        self.observation_space, self.action_space = seen, chosen

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        self.told = action
        return self.observation_space.sample(), 1.0, False, True, {"episode_extra_stats": {"told": 1.0}, "num_frames": 7}


SPACES = {
    "image": (spaces.Box(0, 255, (48, 40, 3), np.uint8), spaces.Discrete(3, start=2)),
    "dict": (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2,))), spaces.MultiDiscrete([2, 3])),
    "nested actions": (
        spaces.Tuple([spaces.MultiBinary(2), spaces.Discrete(2)]),
        spaces.Dict(x=spaces.Box(0, 10, (2,)), y=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(3)])),
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_vectors_of_other_spaces_see_and_do_what_single_ones_do(name):
    seen, chosen = SPACES[name]
    cfg = cfg_of("gym_x:y")
    env = SeveralAdapter(SyncVectorEnv([lambda: Any(seen, chosen)] * 2), cfg, None)
    single = GymAdapter(Any(seen, chosen), cfg, None)
    assert (env.observation_space, env.action_space) == (single.observation_space, single.action_space)
    env.reset()
    actions = [env.action_space.sample() for _ in range(2)]
    obs, rewards, terminated, truncated, infos = env.step(actions)
    assert all(env.observation_space.contains(one) for one in obs)
    assert (rewards, terminated, truncated) == ([1.0, 1.0], [False, False], [True, True])
    assert infos == [{"is_active": True, "episode_extra_stats": {"told": 1.0}}] * 2, "of the episodes that have ended"
    single.reset()
    for action, inner in zip(actions, env.agents.env.envs, strict=True):
        single.step(action)
        told = [spaces.flatten(chosen, one.told) for one in (inner, single.env)]
        np.testing.assert_array_equal(*told)


def test_a_vector_of_processes_and_one_registered_as_a_vector_only():
    env = SeveralAdapter(AsyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2), cfg_of("x"), None)
    assert np.shape(env.reset()[0]) == (2, 4)
    assert np.shape(env.step([0, 1])[0]) == (2, 4)
    env.close()
    if "CartsOnly-v0" not in gymnasium.registry:
        gymnasium.register("CartsOnly-v0", vector_entry_point=lambda num_envs, **kwargs: several_env.carts(num_envs))
    assert faults("gym_CartsOnly-v0", env_kwargs='{"num_envs": 3}') == []
    assert make("gym_CartsOnly-v0", env_kwargs='{"num_envs": 3}').num_agents == 3


def test_numbers_that_are_none_are_named_with_whose_they_are():
    class Broken(Any):
        def step(self, action):
            return *super().step(action)[:1], np.nan, False, False, {}

    seen, chosen = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))
    env = SeveralAdapter(SyncVectorEnv([lambda: Any(seen, chosen), lambda: Broken(seen, chosen)]), cfg_of("mine"), None)
    env.reset()
    with pytest.raises(EnvError, match="mine: the reward of environment 1 is nan at step 1 of an episode"):
        env.step([np.zeros(1), np.zeros(1)])
    with pytest.raises(EnvError, match="mine: environment 0: the policy's action is not finite"):
        env.step([np.array([np.nan]), np.zeros(1)])


# -- PettingZoo ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_dead_and_the_unborn_are_inactive(seed):
    """`Relay` itself asserts that only those who are there are given an action, and none that is forbidden."""
    env = guarded(SeveralAdapter(several_env.Relay(), cfg_of("relay", seed=seed), None), "relay")
    agent, slots = RandomAgent(env.action_space, seed), Slots(env)
    present, ends = [], []
    obs = slots.reset()
    for _ in range(8 * 3):
        present.append(slots.present.tolist())
        assert (obs["observation"].sum(axis=1) == slots.present).all(), "nothing is seen by who is not there"
        obs, rewards, done = slots.step(agent.act(obs, np.arange(3)))
        assert not rewards[~np.asarray(present[-1])].any()
        ends.append(done.tolist())
    episode = [[True, True, t >= 2] if t < 3 else [False, True, True] for t in range(8)]
    assert present == episode * 3
    assert ends == [[t == 2, t == 7, t == 7] for t in range(8)] * 3, "each ends once"


def test_an_evaluation_counts_the_steps_of_the_living(monkeypatch):
    cfg = cfg_of("gym_several_env:parallel_env")
    said = []
    evaluation_worker.play(Job(AttrDict(vars(cfg)), None, 0, 0, 9, 1, False, 4), said.append)
    lengths = {0: 3, 1: 8, 2: 6}
    episodes = [message for message in said if message[0] == "episode"]
    assert len(episodes) == 9
    assert all(length == lengths[slot] for _, slot, _, _, length, _ in episodes)


def test_an_agent_whose_turn_it_is_not_waits():
    class Turns(several_env.Relay):
        def reset(self, seed=None, options=None):
            observations, infos = super().reset(seed, options)
            return observations, {agent: {"active_agent": "second"} for agent in infos}

    env = SeveralAdapter(Turns(), cfg_of("x"), None)
    assert [info["is_active"] for info in env.reset()[1]] == [False, True, False]


def test_what_breaks_pettingzoos_contract_is_named():
    class Leaves(several_env.Relay):
        def step(self, actions):
            found = super().step(actions)
            self.agents = self.agents[:1]
            return found

    class Blind(several_env.Relay):
        def _observe(self):
            return {}

        def reset(self, seed=None, options=None):
            self.doors = {}
            return super().reset(seed, options)

    env = SeveralAdapter(Leaves(), cfg_of("mine"), None)
    obs, _ = env.reset()
    with pytest.raises(EnvError, match=r"mine: agent 'second' has left env\.agents without a termination or truncation"):
        env.step([int(one["action_mask"].argmax()) for one in obs])
    with pytest.raises(EnvError, match=r"mine: agent 'first' is in env\.agents, and has no observation"):
        SeveralAdapter(Blind(), cfg_of("mine"), None).reset()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pettingzoo_mpe.simple_tag_v3", "agents of different observation spaces: 'adversary_0' has Box"),
        ("gym_pettingzoo.mpe.simple_spread_v3:env", "is of PettingZoo's AEC API, where agents take turns: name its parallel_env"),
        ("gym_math:floor", "cannot be made: TypeError"),
        ("gym_time:time", "must be an environment of Gymnasium, or of PettingZoo's parallel API"),
        ("pettingzoo_mpe.nothing_v3", "No module named 'pettingzoo.mpe.nothing_v3'"),
    ],
)
def test_what_no_policy_can_play_is_refused(name, message):
    [fault] = faults(name)
    assert fault.startswith(f"--env={name}")
    assert message in fault


def test_batched_sampling_is_refused_because_it_knows_no_inactive_agents():
    [fault] = faults("pettingzoo_mpe.simple_spread_v3", batched_sampling=True)
    assert fault.startswith("--batched_sampling=True, --env=pettingzoo_mpe.simple_spread_v3: ")
    assert faults("pettingzoo_mpe.simple_spread_v3") == []


def test_the_names_that_are_listed_can_be_made():
    for name in find_suite("pettingzoo_x").env_names()[:1]:
        env = make(name)
        obs, _ = env.reset()
        assert all(env.observation_space.contains(one) for one in obs)
        env.close()


# -- whole runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_relay_is_learned_by_those_who_run(tmp_path):
    """(3 + 8 + 6) / 3 = 5.67 is the most of a mean over runners; a random agent has 2.8. 17 of 24 states are somebody's."""
    flags = ("--env=gym_several_env:parallel_env", "--preset=laptop", "--seed=1", "--train_for_env_steps=12000", "--rollout=32")
    flags += ("--batch_size=256", "--num_batches_per_epoch=3", "--audit_every=3")
    run = train(tmp_path, "relay", *flags, env=HELPERS, timeout=240)
    assert run.popen.returncode == 0, run.report()
    assert audit(tmp_path / "relay", quiet=True)
    valid = [load(path).valids.float().mean().item() for _, _, path in list_files(tmp_path / "relay" / "audit")]
    assert valid[1:] == pytest.approx([17 / 24] * len(valid[1:]))
    result = tmp_path / "result.json"
    with started(
        tmp_path / "eval", "-m", "sf_fixpo.evaluate", tmp_path / "relay", "--episodes=60", f"--json={result}", env=HELPERS
    ) as e:
        assert e.wait(200) == 0, e.report()
    assert json.loads(result.read_text())["mean"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["serial", "processes"])
def test_runs_of_a_vector_and_of_pettingzoos_own(tmp_path, mode):
    common = SERIAL if mode == "serial" else (*SERIAL, "--serial_mode=False", "--async_rl=True", "--num_envs_per_worker=2")
    for i, env in enumerate(("gym_several_env:carts", "pettingzoo_mpe.simple_spread_v3")):
        agents = 4 if i == 0 else 3
        flags = (f"--env={env}", "--num_envs_per_worker=2", f"--batch_size={16 * agents}", "--num_batches_per_epoch=2")
        run = train(tmp_path, f"run{i}", *common, *flags, "--train_for_env_steps=600", "--audit_every=1", env=HELPERS)
        assert run.popen.returncode == 0, run.report()
        assert len(audit(tmp_path / f"run{i}", quiet=True)) >= 3
