"""Meta-World and Atari through EnvPool, against the engine itself."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest

from sf_fixpo import envs, train
from sf_fixpo.audit import audit
from sf_fixpo.envs.pool import atari, metaworld
from sf_fixpo.envs.seeding import env_seeds
from sf_fixpo.records.update_log import latest_rows

SEED = 3


def config(name: str, **changes) -> Namespace:
    """The flags that these suites read."""
    flags = {"env": name, "seed": SEED, "env_agents": 3, "envpool_num_threads": 1, "num_workers": 1, "batched_sampling": True}
    flags |= {"num_envs_per_worker": 1, "worker_num_splits": 1, "env_frameskip": 4 if name.startswith("atari") else 1}
    return Namespace(**{**flags, **changes})


def make(name: str, env_id: int = 0, **changes):
    return envs.find_suite(name).make_env(name, config(name, **changes), Namespace(env_id=env_id), None)


@pytest.mark.parametrize(("tasks", "count"), [(metaworld.TASKS, 50), (atari.GAMES, 57)], ids=["metaworld", "atari"])
def test_every_name_is_one_that_the_engine_has(tasks, count):
    import envpool

    assert len(tasks) == len(set(tasks.values())) == count
    assert set(tasks.values()) <= set(envpool.list_all_envs())
    if tasks is metaworld.TASKS:
        assert {name for name in envpool.list_all_envs() if name.startswith("MetaWorld/")} == set(tasks.values())


def test_a_metaworld_task_ends_by_time_with_a_new_goal_and_its_success():
    env = make("metaworld_reach-v3")
    assert env.observation_space["obs"].shape == (39,)
    assert env.action_space.shape == (4,)
    obs, _ = env.reset()
    goals = obs["obs"][:, -3:].copy()
    assert (goals != 0).all()
    assert len(np.unique(goals, axis=0)) == 3
    returns = np.zeros(3)
    for step in range(500):
        # towards the goal: where the hand is comes first in an observation
        action = np.zeros((3, 4))
        action[:, :3] = 10 * (obs["obs"][:, -3:] - obs["obs"][:, :3])
        obs, rewards, terminated, truncated, info = env.step(action)
        returns += rewards
        assert truncated.all() == (step == 499)
        assert not terminated.any()
    assert rewards.dtype == np.float32
    assert info["success"].tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(info["true_objective"].numpy(), returns, rtol=1e-4)
    assert (obs["obs"][:, -3:] != goals).any(axis=1).all(), "the goal is drawn anew"
    # and the next episode starts without a success
    for _ in range(500):
        *_, info = env.step(np.zeros((3, 4)))
    assert info["success"].tolist() == [0.0, 0.0, 0.0]
    env.close()


def test_a_game_has_clipped_rewards_and_reports_its_score():
    """Of Q*bert, whose score goes by 25."""
    import envpool

    env = make("atari_Qbert")
    seeds = env_seeds(config("atari_Qbert"), Namespace(env_id=0), 3)
    reference = envpool.make("Qbert-v5", env_type="gymnasium", num_envs=3, num_threads=1, seed=seeds)
    assert env.observation_space["obs"].shape == (4, 84, 84)
    assert env.observation_space["obs"].dtype == np.uint8
    assert env.action_space.n == 6
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs["obs"], reference.reset()[0])
    rng, scores, ended = np.random.default_rng(0), np.zeros(3), np.zeros(3, bool)
    for _ in range(3000):
        actions = rng.integers(6, size=3)
        _, rewards, terminated, _, info = env.step(actions)
        raw, ends = reference.step(actions)[1:3]
        assert set(np.unique(rewards)) <= {-1.0, 0.0, 1.0}
        scores += np.where(ended, 0.0, raw)
        for i in np.flatnonzero(terminated & ~ended):
            assert ends[i]
            assert info["true_objective"][i] == scores[i] >= 25
        ended |= terminated
        if terminated.any():
            break  # from here on the reference takes a step of its own to start anew
    assert ended.any()
    env.close()


@pytest.mark.parametrize("suite", [metaworld.SUITE, atari.SUITE], ids=lambda suite: suite.name)
def test_what_is_wrong_is_told_with_what_was_meant(suite):
    name = suite.env_names()[3]
    assert suite.faults(config(name)) == []
    assert suite.faults(config(name.upper().replace(suite.name.upper(), suite.name))) == []
    [fault] = suite.faults(config(name[:-2]))
    assert f"--env={name[:-2]}: not a " in fault
    assert name in fault
    found = suite.faults(config(name, env_agents=0, batched_sampling=False))
    assert [line.split("=")[0] for line in found] == ["--env_agents", "--batched_sampling"]
    with pytest.raises(ValueError, match="not a"):
        make(f"{suite.name}_nothing")


def test_frames_are_counted_by_four():
    assert atari.SUITE.faults(config("atari_Pong", env_frameskip=1)) == [
        "--env_frameskip=1: must be 4, by which frames are counted"
    ]
    assert atari.PAPER["env_frameskip"] == atari.LAPTOP["env_frameskip"] == 4


@pytest.mark.parametrize("suite", [metaworld.SUITE, atari.SUITE], ids=lambda suite: suite.name)
def test_an_update_is_made_of_whole_minibatches(suite):
    for preset in suite.presets.values():
        samples = preset["env_agents"] * preset["rollout"]
        assert samples == preset["batch_size"] * preset["num_batches_per_epoch"]


def test_several_tasks_are_one_batch_with_a_one_hot_and_their_own_rows():
    env = make("metaworld_mt10", env_agents=20)
    assert env.num_agents == 20
    assert env.observation_space["obs"].shape == (49,)
    assert env.observation_space["task_id"].high.tolist() == [9]
    obs, _ = env.reset()
    assert obs["task_id"][:, 0].tolist() == [task for task in range(10) for _ in range(2)]
    assert (obs["obs"][:, 39:].argmax(1) == obs["task_id"][:, 0]).all()
    assert (obs["obs"][:, 39:].sum(1) == 1).all()
    first = obs["obs"][:, 36:39].copy()
    assert len(np.unique(first[[0, 1, 2, 3]], axis=0)) == 4, "every simulator draws a goal of its own"
    returns = np.zeros(20)
    for step in range(500):
        # the hand of the first task, reach, goes to its goal; the others do nothing
        action = np.zeros((20, 4))
        action[:2, :3] = 10 * (obs["obs"][:2, 36:39] - obs["obs"][:2, :3])
        obs, rewards, _, truncated, info = env.step(action)
        returns += rewards
        assert bool(info) == truncated.all() == (step == 499)
    np.testing.assert_allclose(info["true_objective"].numpy(), returns, rtol=1e-4)
    assert info["z_00_reach-v3_success"] == 1.0
    assert info["z_02_pick-place-v3_success"] == 0.0
    assert info["z_01_push-v3_raw_score"] == pytest.approx(returns[2:4].mean(), rel=1e-4)
    assert (obs["obs"][:, 36:39] != first).any(axis=1).all(), "goals are drawn anew"
    env.close()


def test_one_task_of_a_set_is_played_as_the_sets_policy_sees_it():
    suite = envs.find_suite("metaworld_mt10")
    cfg = config("metaworld_mt10")
    names = suite.evaluation_envs(cfg)
    assert names[3] == "metaworld_mt10:door-open-v3"
    assert len(names) == len(suite.tasks(cfg)) == 10
    assert suite.tasks(config("metaworld_mt10:door-open-v3")) == ("door-open-v3",)
    env = make(names[3])
    obs, _ = env.reset()
    assert obs["task_id"][:, 0].tolist() == [3, 3, 3]
    assert (obs["obs"][:, 39:].argmax(1) == 3).all()
    env.close()


@pytest.mark.parametrize(
    ("name", "agents", "message"),
    [
        ("metaworld_mt10", 12, "--env_agents=12: must be a multiple of the 10 tasks of metaworld_mt10"),
        ("metaworld_mt50", 20, "--env_agents=20: must be a multiple of the 50 tasks of metaworld_mt50"),
        ("metaworld_mt1O", 10, "metaworld_mt10"),
        ("metaworld_mt10:reach", 10, "not a task of the metaworld suite"),
    ],
)
def test_what_is_wrong_with_a_set_is_said(name, agents, message):
    (fault,) = envs.find_suite(name).faults(config(name, env_agents=agents))
    assert message in fault


def test_a_run_on_several_tasks_has_a_row_for_each(tmp_path):
    flags = "--preset=laptop --env=metaworld_mt10 --env_agents=10 --rollout=50 --batch_size=250 --num_batches_per_epoch=2"
    flags += " --num_epochs=1 --train_for_env_steps=1000 --device=cpu --seed=1 --beta_scope=per_task"
    flags += " --value_normalization=popart --audit_every=1"
    assert train.main([*flags.split(), f"--train_dir={tmp_path}", "--experiment=run"]) == 0
    last = latest_rows(tmp_path / "run" / "updates.jsonl")[-1]
    assert list(last["tasks"]) == list(metaworld.SETS["metaworld_mt10"])
    assert len(last["beta"]) == 10
    assert all(figures["sample_share"] == pytest.approx(0.1) for figures in last["tasks"].values())
    assert all(figures["explained_variance"] is not None for figures in last["tasks"].values())
    assert last["kl_max"] <= last["eps_kl"]
    assert len(audit(tmp_path / "run", quiet=True)) == last["policy_version"] // 2
