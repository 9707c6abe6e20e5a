"""The suites against their real engines: names, spaces, seeds, and what a step gives at the end of an episode."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser, Namespace

import gymnasium
import numpy as np
import pytest

from sf_fixpo import envs
from sf_fixpo.envs.gymnasium_envs import SUITE as GYM
from sf_fixpo.envs.names import near_names
from sf_fixpo.envs.pool.mujoco import SUITE as MUJOCO
from sf_fixpo.envs.pool.mujoco import TASKS
from sf_fixpo.envs.pool.suites import engine_task
from sf_fixpo.envs.seeding import env_seeds

DOUBLE_PENDULUM = "mujoco_InvertedDoublePendulum"
# The policy's actions: unbounded, so that clipping is part of every test.
ACTION_STDDEV = 1.5


def config(**changes) -> Namespace:
    """The flags that the mujoco suite reads."""
    flags = {
        "seed": 3,
        "env_agents": 6,
        "envpool_num_threads": 2,
        "num_workers": 1,
        "batched_sampling": True,
        "num_envs_per_worker": 1,
        "worker_num_splits": 1,
    }
    return Namespace(**{**flags, **changes})


def full_parser(suite, argv: list[str]) -> ArgumentParser:
    """sample-factory's flags and the suite's own."""
    from sample_factory.cfg.arguments import parse_sf_args

    parser, _ = parse_sf_args(argv)
    suite.add_args(parser)
    return parser


def preset_config(suite, preset: str, name: str) -> Namespace:
    """All flags as a preset sets them."""
    argv = [f"--env={name}"]
    return Namespace(**{**vars(full_parser(suite, argv).parse_args(argv)), **suite.presets[preset]})


def make(name: str, env_id: int = 0, **changes):
    """An environment as sample-factory would make it."""
    return envs.find_suite(name).make_env(name, config(env=name, **changes), Namespace(env_id=env_id), None)


def random_actions(env, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(scale=ACTION_STDDEV, size=(count, *env.action_space.shape))


# ---- the registry


def test_importing_the_registry_imports_no_engine():
    engines = ("envpool", "vizdoom", "deepmind_lab", "torch", "gymnasium", "sample_factory")
    code = f"import sys, sf_fixpo.envs; print([name for name in {engines!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "suite"),
    [
        ("mujoco_HalfCheetah", "mujoco"),
        ("mujoco_halfcheetah", "mujoco"),
        ("gym_CartPole-v1", "gym"),
        ("dmlab_30_rooms_collect_good_objects", "dmlab"),
    ],
)
def test_a_name_finds_its_suite(name, suite):
    assert envs.find_suite(name).name == suite


@pytest.mark.parametrize("suite", envs.SUITES, ids=lambda suite: suite.name)
def test_every_listed_name_belongs_to_its_own_suite(suite):
    assert suite.env_names()
    assert all(envs.find_suite(name) is suite for name in suite.env_names())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("HalfCheetah", "mujoco_HalfCheetah"),
        ("mujoko_Hopper", "mujoco_Hopper"),
        ("CartPole-v1", "gym_CartPole-v1"),
        ("gim_Pendulum-v1", "gym_Pendulum-v1"),
    ],
)
def test_an_unknown_prefix_suggests_near_names(typed, meant):
    with pytest.raises(envs.UnknownEnvError) as error:
        envs.find_suite(typed)
    assert meant in str(error.value)
    assert typed in str(error.value)
    assert "--list_envs" in str(error.value)
    assert isinstance(error.value, ValueError)


def test_a_name_like_no_other_suggests_nothing_but_the_list():
    with pytest.raises(envs.UnknownEnvError, match="--list_envs") as error:
        envs.find_suite("qqqqqqqq")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mujoco_HalfCheeta", "mujoco_HalfCheetah"),
        ("mujoco_walker", "mujoco_Walker2d"),
        ("gym_CartPol-v1", "gym_CartPole-v1"),
        ("gym_cartpole", "gym_CartPole-v1"),
        ("dmlab_30_rooms_colect", "dmlab_30_rooms_collect_good_objects"),
    ],
)
def test_a_suite_suggests_near_names_for_what_it_does_not_know(typed, meant):
    suite = envs.find_suite(typed)
    (fault,) = suite.faults(preset_config(suite, "paper", typed))
    assert meant in fault
    assert f"--env={typed}" in fault
    assert "--list_envs" in fault


def test_half_a_long_name_is_near():
    assert near_names("mujoco_inverted", TASKS) == [DOUBLE_PENDULUM]


def test_the_list_names_every_suite_and_environment():
    text = envs.list_envs()
    for suite in envs.SUITES:
        assert suite.name in text
        assert all(name in text.split() for name in suite.env_names())


def test_the_list_says_what_a_missing_engine_needs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'envpool" in envs.list_envs()
    monkeypatch.undo()
    assert MUJOCO.missing() is None
    assert "runs here" in envs.list_envs()


@pytest.mark.parametrize("suite", [MUJOCO, GYM], ids=lambda suite: suite.name)
@pytest.mark.parametrize("preset", ["paper", "laptop"])
def test_a_preset_holds_known_flags_and_whole_updates(suite, preset):
    argv = [f"--env={suite.env_names()[0]}"]
    known = {action.dest for action in full_parser(suite, argv)._actions}
    assert set(suite.presets[preset]) <= known | {
        "eps_kl",
        "c_beta",
        "beta_lr",
        "beta_init",
        "fixup_batch_size",
        "policy_head_init_scale",
    }
    cfg = preset_config(suite, preset, suite.env_names()[0])
    assert suite.faults(cfg) == []
    agents = getattr(cfg, "env_agents", 1) * cfg.num_workers * cfg.num_envs_per_worker
    assert cfg.batch_size * cfg.num_batches_per_epoch == agents * cfg.rollout, "synchronous training collects exactly one update"
    assert cfg.train_for_env_steps % 1000 == 0


def test_the_learning_rate_of_the_paper_preset_ends_at_zero():
    from sample_factory.algo.learning.learner import LinearDecayScheduler

    cfg = Namespace(**MUJOCO.presets["paper"])
    scheduler = LinearDecayScheduler(cfg)
    samples = cfg.batch_size * cfg.num_batches_per_epoch
    minibatches = -(-cfg.train_for_env_steps // samples) * cfg.num_batches_per_epoch * cfg.num_epochs
    rates = [scheduler.update(None, None) for _ in range(minibatches)]
    assert rates[0] == pytest.approx(cfg.learning_rate, rel=1e-4)
    assert rates[minibatches // 2] == pytest.approx(cfg.learning_rate / 2, rel=1e-3)
    assert rates[-1] == 0.0
    # The last update is collected in full, a little beyond the limit: no more than that one update learns at rate zero.
    assert rates.index(0.0) > minibatches - cfg.num_batches_per_epoch * cfg.num_epochs


# ---- seeds


def test_seeds_repeat_and_differ():
    run, other_run = config(seed=1), config(seed=2)
    first, second = Namespace(env_id=0), Namespace(env_id=1)
    seeds = env_seeds(run, first, 64)
    assert seeds == env_seeds(run, first, 64)
    assert len(set(seeds + env_seeds(run, second, 64) + env_seeds(other_run, first, 64))) == 3 * 64
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert env_seeds(config(seed=None), first) != env_seeds(config(seed=None), first)


# ---- mujoco


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_mujoco_task_has_the_observations_and_actions_of_gym(name):
    shapes = {"HalfCheetah": (17, 6), "Hopper": (11, 3), "Walker2d": (17, 6), "Swimmer": (8, 2)}
    shapes |= {"InvertedDoublePendulum": (11, 1), "Reacher": (11, 2), "Ant": (27, 8), "Humanoid": (376, 17)}
    env = make(name)
    observations, actions = shapes[name.removeprefix("mujoco_")]
    assert env.observation_space["obs"].shape == (observations,)
    assert env.action_space.shape == (actions,)
    obs, info = env.reset()
    assert obs["obs"].dtype == np.float32
    assert obs["obs"].shape == (6, observations)
    assert info == {}
    obs, rewards, terminated, truncated, info = env.step(np.zeros((6, actions)))
    assert obs["obs"].shape == (6, observations)
    assert obs["obs"].dtype == rewards.dtype == np.float32
    assert terminated.dtype == truncated.dtype == bool
    assert not (terminated | truncated).any()
    env.close()


def test_case_of_a_mujoco_name_does_not_matter():
    assert engine_task(TASKS, "mujoco_halfcheetah") == engine_task(TASKS, "mujoco_HalfCheetah") == "HalfCheetah-v4"
    make("mujoco_walker2d").close()
    with pytest.raises(ValueError, match="mujoco_Hopper"):
        MUJOCO.make_env("mujoco_hoper", config(), None)


def raw_pool(count: int):
    """EnvPool itself, with the seeds that the adapter gives it: the reference."""
    import envpool

    seeds = env_seeds(config(), Namespace(env_id=0), count)
    return envpool.make("InvertedDoublePendulum-v4", env_type="gymnasium", num_envs=count, num_threads=1, seed=seeds)


def test_episodes_are_those_of_the_engine_stepped_by_hand():
    """Each simulator alone, by EnvPool's own rule (a reset is a step of its own), gives what the adapter gives for all.

    Every simulator finishes at its own times, so all subsets that finish at once occur.
    """
    count, steps = 6, 400
    env, reference = make(DOUBLE_PENDULUM), raw_pool(count)
    actions = np.random.default_rng(0).normal(scale=ACTION_STDDEV, size=(count, steps, 1))

    # For each simulator: (observation, reward, end) of each of its steps, resets left out.
    first, _ = reference.reset()
    expected_obs = [[first[i]] for i in range(count)]
    expected_rewards: list[list[float]] = [[] for _ in range(count)]
    expected_ends: list[list[bool]] = [[] for _ in range(count)]
    resetting = np.zeros(count, dtype=bool)
    while any(len(rewards) < steps for rewards in expected_rewards):
        taken = [min(len(rewards), steps - 1) for rewards in expected_rewards]
        action = np.clip(np.stack([actions[i, taken[i]] for i in range(count)]), -1, 1)
        obs, rewards, terminated, truncated, _ = reference.step(action)
        ended = terminated | truncated
        for i in range(count):
            if resetting[i]:
                expected_obs[i][-1] = obs[i]  # the first observation of the new episode, in place of the last of the old
            else:
                expected_obs[i].append(obs[i])
                expected_rewards[i].append(rewards[i])
                expected_ends[i].append(bool(ended[i]))
        resetting = ended

    observed, _ = env.reset()
    np.testing.assert_array_equal(observed["obs"], np.asarray([obs[0] for obs in expected_obs], dtype=np.float32))
    finished_at_once = set()
    for step in range(steps - 1):
        observed, rewards, terminated, truncated, _ = env.step(actions[:, step])
        ended = terminated | truncated
        finished_at_once.add(int(ended.sum()))
        np.testing.assert_array_equal(ended, [ends[step] for ends in expected_ends])
        np.testing.assert_array_equal(rewards, [row[step] for row in expected_rewards])
        np.testing.assert_array_equal(
            observed["obs"], np.asarray([row[step + 1] for row in expected_obs], dtype=np.float32), err_msg=f"{step=}"
        )
    assert {0, 1, 2, 3} <= finished_at_once
    env.close()


def test_every_return_is_the_sum_of_the_rewards_between_resets():
    env = make(DOUBLE_PENDULUM, env_agents=16)
    rng = np.random.default_rng(1)
    env.reset()
    total, length, episodes = np.zeros(16), np.zeros(16, dtype=int), 0
    for _ in range(300):
        obs, rewards, terminated, truncated, info = env.step(random_actions(env, 16, rng))
        total += rewards
        length += 1
        ended = terminated | truncated
        assert ("true_objective" in info) == ended.any()
        if ended.any():
            np.testing.assert_allclose(info["true_objective"].numpy()[ended], total[ended], rtol=1e-5)
            # About 9.3 a step: a step lost to a reset (reward 0) or counted twice would show.
            assert (total[ended] / length[ended] > 8).all()
            # A new episode starts upright and at rest; the old one ended below 1 m.
            assert (np.abs(obs["obs"][ended, 1:3]) < 0.4).all()
            episodes += ended.sum()
            total[ended], length[ended] = 0, 0
    assert episodes > 200
    env.close()


def test_the_time_limit_of_half_cheetah_is_a_truncation():
    env = make("mujoco_HalfCheetah", env_agents=2)
    rng = np.random.default_rng(2)
    env.reset()
    ends = []
    for step in range(1, 2002):
        _, _, terminated, truncated, _ = env.step(random_actions(env, 2, rng))
        assert not terminated.any()
        if truncated.any():
            assert truncated.all()
            ends.append(step)
    assert ends == [1000, 2000]
    env.close()


def test_reacher_is_truncated_after_fifty_steps_in_every_episode():
    env = make("mujoco_Reacher", env_agents=3)
    env.reset()
    ends = [step for step in range(1, 201) if env.step(np.zeros((3, 2)))[3].all()]
    assert ends == [50, 100, 150, 200]
    env.close()


def test_actions_beyond_the_bounds_count_as_the_bounds():
    # Rewards: MuJoCo bounds its motors itself, but an unbounded action would be paid for in the control cost.
    rewards = []
    for scale in (1.0, 50.0):
        env = make("mujoco_Hopper")
        env.reset()
        rewards.append([env.step(scale * np.ones((6, 3), dtype=np.float32))[1] for _ in range(20)])
        env.close()
    np.testing.assert_array_equal(*rewards)


def rollout(name: str, steps: int = 60, **changes) -> np.ndarray:
    """Observations of a run with fixed actions; long enough for several resets."""
    env = make(name, **changes)
    rng = np.random.default_rng(4)
    seen = [env.reset()[0]["obs"]]
    seen += [env.step(random_actions(env, 6, rng))[0]["obs"].copy() for _ in range(steps)]
    env.close()
    return np.stack(seen)


def test_mujoco_repeats_with_the_seed_and_differs_without():
    once = rollout(DOUBLE_PENDULUM)
    np.testing.assert_array_equal(once, rollout(DOUBLE_PENDULUM))
    np.testing.assert_array_equal(once, rollout(DOUBLE_PENDULUM, envpool_num_threads=1))
    assert (once[0] != rollout(DOUBLE_PENDULUM, env_id=1)[0])[:, 1:8].all()
    assert (once[0] != rollout(DOUBLE_PENDULUM, seed=4)[0])[:, 1:8].all()
    assert len(np.unique(once[0, :, 1])) == 6, "the simulators of one pool differ from each other"


def test_sample_factory_takes_the_pool_as_a_batch():
    from sample_factory.algo.utils.make_env import BatchedVecEnv

    env = BatchedVecEnv(make(DOUBLE_PENDULUM))
    assert env.num_agents == 6
    env.seed(0)
    obs, _ = env.reset()
    assert obs["obs"].shape == (6, 11)
    obs, rewards, terminated, truncated, _ = env.step(np.zeros((6, 1), dtype=np.float32))
    assert (obs["obs"].shape, rewards.shape, (terminated | truncated).shape) == ((6, 11), (6,), (6,))
    env.close()


def test_every_fault_of_the_mujoco_flags_is_told_at_once():
    bad = {"env_agents": 0, "envpool_num_threads": -1, "batched_sampling": False, "num_envs_per_worker": 2}
    found = MUJOCO.faults(config(env="mujoco_Hoper", **bad))
    for flag in ("--env=", "--env_agents=0", "--envpool_num_threads=-1", "--batched_sampling=", "--num_envs_per_worker=2"):
        assert sum(flag in line for line in found) == 1
    assert len(found) == 5
    parser = ArgumentParser()
    MUJOCO.add_args(parser)
    assert MUJOCO.faults(config(env="mujoco_Hopper", **vars(parser.parse_args([])))) == []


def test_the_pool_says_that_it_draws_nothing():
    env = make(DOUBLE_PENDULUM)
    with pytest.raises(gymnasium.error.Error, match="no_render"):
        env.render()
    env.close()
