"""Evaluation: real environments in real worker processes; quotas, statistics, and what happens when a worker fails."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from programs import started
from rich.console import Console
from sample_factory.model.actor_critic import create_actor_critic
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS

from benchmarks.synthetic import box_actions, make_cfg, small_shape, vector_space
from sf_fixpo import evaluate, train
from sf_fixpo.envs import find_suite
from sf_fixpo.envs.dmlab.names import test_level
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.playing import evaluation, evaluation_worker
from sf_fixpo.playing import experiment as experiments
from sf_fixpo.playing.evaluation_worker import Job

MIXED = gym.spaces.Tuple((gym.spaces.Discrete(3), box_actions(2)))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A folder as training leaves it: CartPole, an untrained recurrent policy."""
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    (folder / "checkpoint_p0").mkdir(parents=True)
    shape = small_shape(vector_space(4), gym.spaces.Discrete(2), use_rnn=True, normalize_input=True)
    cfg = make_cfg("APPO", shape, train_dir=folder, env="gym_CartPole-v1")
    network = create_actor_critic(cfg, shape.obs_space, shape.action_space)
    (folder / "config.json").write_text(json.dumps(cfg))
    torch.save({"model": network.state_dict()}, folder / "checkpoint_p0" / "checkpoint_000000001_64.pth")
    return folder


class Countdown(gym.Env):
    """Episodes of known length and return: the number of the environment plus one."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, number: int):
        self.number, self.left, self.resets = number, 0, 0

    def reset(self, *, seed=None, options=None):
        self.left = self.number + 1
        self.resets += 1
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left == 0, False, {}


class Pool:
    """A batched environment of Countdowns, as a suite's pool of simulators is one."""

    is_multiagent = True
    engine = "counting"

    def __init__(self, count: int):
        self.num_agents = count
        self.members = [Countdown(i) for i in range(count)]
        self.observation_space, self.action_space = Countdown.observation_space, Countdown.action_space
        self.unwrapped = self

    def reset(self):
        return {"obs": np.stack([env.reset()[0] for env in self.members])}, {}

    def step(self, actions):
        assert actions.shape == (self.num_agents, 1)
        results = [env.step(action) for env, action in zip(self.members, actions, strict=True)]
        for env, result in zip(self.members, results, strict=True):
            if result[2]:
                env.reset()
        obs, rewards, terminated, truncated, _ = zip(*results, strict=True)
        return {"obs": np.stack(obs)}, np.array(rewards), np.array(terminated), np.array(truncated), {}

    def close(self):
        pass


def play_countdowns(monkeypatch, episodes: int, pool: bool, max_envs: int = 4, env_agents: int = 4, **limit) -> list[tuple]:
    def make_env(name, cfg, env_config, render_mode):
        return Pool(cfg.env_agents) if pool else Countdown(env_config.env_id)

    monkeypatch.setattr(evaluation_worker, "find_suite", lambda name: SimpleNamespace(name="test", make_env=make_env))
    messages: list[tuple] = []
    cfg = {"env": "countdown"} | ({"env_agents": env_agents} if pool else {})
    evaluation_worker.play(Job(SimpleCfg(cfg), None, 0, 0, episodes, 0, False, max_envs, **limit), messages.append)
    return messages


class SimpleCfg(dict):
    """Attributes of a dict, as sample-factory's configuration has them."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("episodes", "quota"), [(10, [3, 3, 2, 2]), (4, [1, 1, 1, 1]), (2, [1, 1])])
def test_every_slot_plays_its_quota_however_short_its_episodes_are(monkeypatch, pool, episodes, quota):
    messages = play_countdowns(monkeypatch, episodes, pool)
    assert messages[0] == ("engine", "counting" if pool else "test")
    played = [message for message in messages if message[0] == "episode"]
    assert [sum(1 for m in played if m[1] == slot) for slot in range(len(quota))] == quota
    assert all((m[3], m[4]) == (m[1] + 1.0, m[1] + 1) for m in played)


@pytest.mark.parametrize("pool", [False, True])
def test_an_episode_that_does_not_end_is_left(monkeypatch, pool):
    played = [message for message in play_countdowns(monkeypatch, 8, pool, max_steps=2) if message[0] == "episode"]
    # slot i would take i + 1 steps; one of a pool that was left goes on where it is
    expected = {slot: [(min(slot + 1.0, 2.0), min(slot + 1, 2), slot > 1)] * 2 for slot in range(4)}
    if pool:
        expected[2][1], expected[3][1] = (1.0, 1, False), (2.0, 2, False)
    assert {slot: [m[3:] for m in played if m[1] == slot] for slot in range(4)} == expected


def test_an_environment_that_is_done_is_not_stepped_on(monkeypatch):
    made = []
    monkeypatch.setattr(Countdown, "close", lambda self: made.append(self))
    play_countdowns(monkeypatch, 5, pool=False, max_envs=2)
    assert [env.resets for env in made] == [4, 3]  # the quota, and the start after its last episode


def test_mean_and_standard_error():
    result = evaluation.make_result([1.0, 2.0, 3.0, 6.0], [1, 1, 1, 1], "x")
    assert (result.mean, result.se) == (3.0, pytest.approx(math.sqrt(14 / 3) / 2))
    assert math.isnan(evaluation.make_result([1.0], [1], "x").se)
    assert evaluation.share_out(7, 3) == [3, 2, 2]


def test_actions_take_the_form_the_environment_wants():
    row = np.array([2.0, 0.25, -0.5])
    discrete, box = evaluation_worker.one_action(MIXED, row)
    assert discrete == 2
    assert isinstance(discrete, int)
    np.testing.assert_array_equal(box, np.array([0.25, -0.5], np.float32))


def test_likeliest_actions_are_modes():
    parameters = torch.tensor([[0.0, 2.0, 1.0, 0.3, -0.4, 9.0, 9.0]])
    actions = evaluation_worker.likeliest_actions(parameters, [("categorical", 3), ("gaussian", 2)])
    torch.testing.assert_close(actions, torch.tensor([[1.0, 0.3, -0.4]]))


def test_the_random_agent_is_uniform():
    agent = evaluation_worker.RandomAgent(MIXED, seed=0)
    actions = agent.act({}, np.arange(3000))
    assert np.bincount(actions[:, 0].astype(int)) == pytest.approx(1000, abs=120)
    assert actions[:, 1:].mean() == pytest.approx(0, abs=0.05)
    assert actions[:, 1:].std() == pytest.approx(1 / math.sqrt(3), abs=0.03)


def test_the_random_agent_draws_as_gymnasium_does_where_there_are_no_bounds():
    low, high = np.array([-np.inf, 2.0, -np.inf, -1.0]), np.array([np.inf, np.inf, 3.0, 1.0])
    box = gym.spaces.Box(low, high, dtype=np.float64, seed=0)
    actions = evaluation_worker.RandomAgent(box, seed=0).act({}, np.arange(4000))
    theirs = np.array([box.sample() for _ in range(4000)])
    assert all(box.contains(row) for row in actions)
    assert actions.mean(0) == pytest.approx(theirs.mean(0), abs=0.08)
    assert actions.std(0) == pytest.approx(theirs.std(0), abs=0.08)


def test_a_policy_is_played_and_repeats_with_its_seed(experiment, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert evaluate.main([str(experiment), "--episodes=5", "--workers=2", "--seed=3", f"--json={out}"]) == 0
    first = json.loads(out.read_text())
    assert len(first["returns"]) == 5
    assert first["returns"] == first["lengths"]  # CartPole pays 1 a step
    assert first["mean"] == pytest.approx(np.mean(first["returns"]))
    assert first["se"] == pytest.approx(np.std(first["returns"], ddof=1) / math.sqrt(5))
    assert first["env"] == "gym_CartPole-v1"
    assert "n = 5" in capsys.readouterr().out
    seen: list[float] = []
    cfg = experiments.load_config(experiment)
    again = evaluation.evaluate(cfg, first["checkpoint"], 5, 2, seed=3, on_episode=seen.append)
    assert list(again.returns) == first["returns"]
    assert sorted(seen) == sorted(first["returns"])


def test_a_worker_that_fails_ends_the_program_with_its_error(experiment, tmp_path, capsys):
    torn = tmp_path / "torn.pth"
    torn.write_bytes(b"torn")
    assert evaluate.main([str(experiment), f"--checkpoint={torn}", "--episodes=2", "--workers=1"]) == 1
    assert "Traceback" in capsys.readouterr().err


def die(pipe):
    os._exit(7)


def test_a_worker_that_dies_ends_the_program(experiment, monkeypatch):
    monkeypatch.setattr(evaluation, "play_in_process", die)
    with pytest.raises(evaluate.WorkerError, match=r"gym_CartPole-v1: evaluation worker . died .exit code 7"):
        evaluation.evaluate(experiments.load_config(experiment), None, 2, 1)


def test_the_best_checkpoint_is_taken_where_there_is_one(tmp_path):
    folder = tmp_path / "checkpoint_p0"
    folder.mkdir()
    with pytest.raises(experiments.BadInputError):
        experiments.find_checkpoint(tmp_path, None)
    for name in ("checkpoint_000000010_64.pth", "checkpoint_000000020_128.pth"):
        (folder / name).touch()
    assert experiments.find_checkpoint(tmp_path, None).name == "checkpoint_000000020_128.pth"
    (folder / "best_000000010_64_reward_1.000.pth").touch()
    assert experiments.find_checkpoint(tmp_path, None).name.startswith("best")
    assert experiments.find_checkpoint(tmp_path, "latest").name == "checkpoint_000000020_128.pth"
    with pytest.raises(experiments.BadInputError, match="no such file"):
        experiments.find_checkpoint(tmp_path, "bset")


@pytest.mark.parametrize("flags", [["--episodes=0"], ["--workers=0"], ["--random", "--deterministic"]])
def test_bad_flags_are_refused(experiment, flags):
    with pytest.raises(SystemExit) as error:
        evaluate.main([str(experiment), *flags])
    assert error.value.code == 2


def test_bad_input_is_one_message_and_status_2(experiment, tmp_path, capsys):
    for argv in ([str(tmp_path)], [str(experiment), "--env=no_such"], [str(experiment), "--checkpoint=best"]):
        assert evaluate.main(argv) == 2
        assert capsys.readouterr().err.strip()


# -- several levels -----------------------------------------------------------------------------------------------------------

LEVELS = "rooms_collect_good_objects,rooms_select_nonmatching_object"
TEST_LEVELS = ["rooms_collect_good_objects_test", "rooms_select_nonmatching_object_test"]


@pytest.mark.parametrize(
    ("envs", "episodes", "workers", "jobs"),
    [(1, 50, 2, 2), (1, 3, 8, 3), (30, 50, 2, 2), (30, 50, 64, 7), (30, 1, 64, 1), (30, 10, 60, 2), (2, 50, 64, 32)],
)
def test_one_environment_keeps_all_workers_busy_and_many_are_split_no_further_than_they_must(envs, episodes, workers, jobs):
    assert evaluation.jobs_per_env(envs, episodes, workers) == jobs
    assert sum(evaluation.share_out(episodes, jobs)) == episodes


def worker_processes() -> list[psutil.Process]:
    children = psutil.Process().children()  # of one that has just ended the command line is None
    return [process for process in children if "spawn_main" in " ".join(process.as_dict(["cmdline"])["cmdline"] or [])]


def test_levels_share_the_workers(experiment):
    names = ("gym_CartPole-v1", "gym_MountainCar-v0", "gym_CartPole-v1")
    cfgs = [experiments.load_config(experiment, env) for env in names]
    before = {process.pid for process in worker_processes()}
    at_once, seen = set(), []

    def on_episode(env: int, episode_return: float) -> None:
        at_once.add(len({process.pid for process in worker_processes()} - before))
        seen.append((env, episode_return))

    results = evaluation.evaluate_all(cfgs, None, 4, 2, seed=5, on_episode=on_episode)
    assert max(at_once) <= 2, "three jobs, two processes"
    assert sorted(seen) == sorted((env, value) for env, result in enumerate(results) for value in result.returns)
    assert results[1].returns == (-200.0,) * 4
    assert results[1].lengths == (200,) * 4
    assert len(set(results[0].returns)) > 1
    assert results[2] == results[0], "whichever worker plays a job makes no difference"


def test_what_was_left_is_counted_and_said_of_an_agent_that_needs_no_checkpoint(experiment, tmp_path, capsys):
    path = tmp_path / "result.json"
    (tmp_path / "run").mkdir()
    shutil.copy(experiment / "config.json", tmp_path / "run")
    argv = [str(tmp_path / "run"), "--random", "--episodes=3", "--workers=1", f"--json={path}"]
    assert evaluate.main([*argv, "--max_steps=5"]) == 0
    assert "3 episode(s) had not ended after --max_steps=5" in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert (result["lengths"], result["returns"], result["cut"]) == ([5] * 3, [5.0] * 3, 3)
    assert evaluate.main(argv) == 0
    assert "had not ended" not in capsys.readouterr().out
    assert json.loads(path.read_text())["cut"] == 0
    with pytest.raises(SystemExit):
        evaluate.main([*argv, "--max_steps=0"])
    assert "--max_steps=0: must be an integer >= 1" in capsys.readouterr().err


def test_a_random_agent_needs_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--random", "--episodes=2", "--workers=1"]
    assert evaluate.main([*flags, "--env=gym_FrozenLake-v1", '--env_kwargs={"map_name": "8x8"}']) == 0
    assert "gym_FrozenLake-v1 (gym), random: return" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "and leaves nothing"
    assert evaluate.main([*flags, "--env=gym_CartPole-v1", "--json=result.json"]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["agent"] == "random"
    capsys.readouterr()
    assert evaluate.main([*flags, "--env=gym_CartPole-v1", "--no_such_flag=3"]) == 2
    assert "--no_such_flag=3" in capsys.readouterr().err
    for argv in ([], ["--random"], ["--env=gym_CartPole-v1"], [str(tmp_path), "--random", "--no_such_flag=3"]):
        with pytest.raises(SystemExit):
            evaluate.main(argv)
        assert "DIR" in capsys.readouterr().err


def test_one_level_that_fails_ends_the_evaluation_with_its_name(experiment):
    cfg = experiments.load_config(experiment)
    broken = dict(cfg, env="gym_NoSuchThing-v0")
    with pytest.raises(evaluate.WorkerError, match=r"(?s)gym_NoSuchThing-v0: evaluation worker \d failed:.*NoSuchThing"):
        evaluation.evaluate_all([cfg, cfg, broken, cfg], None, 2, 2)
    assert worker_processes() == []


def test_a_killed_evaluation_takes_its_workers_with_it(experiment, tmp_path):
    argv = ("-m", "sf_fixpo.evaluate", experiment, "--random", "--episodes=1000000", "--workers=2")
    with started(tmp_path, *argv) as run:
        run.wait_until(lambda: sum("spawn_main" in " ".join(process.cmdline()) for process in run.processes()) == 2)
        run.popen.kill()
        run.wait(5)
        run.assert_nothing_left()


def test_an_evaluation_in_the_background_of_a_run_that_is_gone_ends(experiment, tmp_path):
    argv = ("-m", "sf_fixpo.evaluate", experiment, "--random", "--episodes=1000000", "--workers=1", "--background_of=1")
    with started(tmp_path, *argv) as run:  # its parent is this process, not number 1
        assert run.wait(60) == 1
        run.assert_nothing_left()


@pytest.fixture(scope="module")
def dmlab_experiment(tmp_path_factory):
    """A run on two levels of DMLab-30 as training leaves it: shaped rewards, a network that was made with `task_id` in sight."""
    folder = tmp_path_factory.mktemp("runs") / "rooms"
    (folder / "checkpoint_p0").mkdir(parents=True)
    flags = ["--env=dmlab_30", f"--dmlab_levels={LEVELS}", "--dmlab_engine=vizdoom", "--preset=laptop", "--env_frameskip=60"]
    flags += ["--dmlab_optimistic_rewards=True", f"--train_dir={folder.parent}", "--experiment=rooms"]
    cfg = train.parse_cfg(flags)
    env = find_suite(cfg.env).make_env(cfg.env, cfg, None, None)
    assert "task_id" in env.observation_space.spaces
    torch.manual_seed(0)
    network = make_actor_critic(cfg, env.observation_space, env.action_space)
    env.close()
    (folder / "config.json").write_text(json.dumps(cfg))
    torch.save({"model": network.state_dict()}, folder / "checkpoint_p0" / "checkpoint_000000001_64.pth")
    return folder


def test_a_run_on_several_levels_is_evaluated_on_the_test_variants_of_all(dmlab_experiment, capsys):
    assert evaluate.main([str(dmlab_experiment), "--episodes=2", "--workers=2"]) == 0
    out = capsys.readouterr().out
    for level in TEST_LEVELS:
        assert re.search(rf"{level} +-?\d+\.\d\d +\d+\.\d\d +2 +-?\d+\.\d +-?\d+\.\d *\n", out), out
    assert re.search(r"stand-in score over 2 levels, no score of DMLab-30: -?\d", out)
    assert "stand-in %" in out
    assert "human" not in out
    assert "DMLab-30 score" not in out
    record = json.loads((dmlab_experiment / "eval_checkpoint_000000001_64_test.json").read_text())
    assert list(record["levels"]) == TEST_LEVELS
    assert record["score"]["stand_in"]
    assert record["score"]["name"].startswith("stand-in score")
    for result in record["levels"].values():
        assert result["engine"] == "vizdoom"
        assert isinstance(result["normalised"], float)
        assert len(result["returns"]) == 2
        assert result["mean"] == pytest.approx(np.mean(result["returns"]))
        # an object is worth 1 or 10, a teleporter 1: shaped, each would be 4.8 at most, and no whole number
        assert all(value == int(value) for value in result["returns"])
    assert any(value for result in record["levels"].values() for value in result["returns"])


def test_the_training_levels_are_another_split(dmlab_experiment):
    assert [cfg.env for cfg in experiments.load_configs(dmlab_experiment, "train")] == [
        "dmlab_30_rooms_collect_good_objects",
        "dmlab_30_rooms_select_nonmatching_object",
    ]
    [one] = experiments.load_configs(dmlab_experiment, "test", "dmlab_30_rooms_collect_good_objects")
    assert one.env == "dmlab_30_rooms_collect_good_objects", "one level that is asked for is that level"
    assert evaluate.level_name(one.env) == "rooms_collect_good_objects_train"
    assert experiments.load_config(dmlab_experiment).env == "dmlab_30"
    three = experiments.load_configs(dmlab_experiment, "test", "dmlab_30_rooms")
    assert [evaluate.level_name(cfg.env) for cfg in three] == [
        "rooms_collect_good_objects_test",
        "rooms_exploit_deferred_effects_test",
        "rooms_select_nonmatching_object_test",
    ]


def lab_results(means: dict[str, float], engine: str = "deepmind_lab") -> dict[str, evaluate.EvalResult]:
    return {level: evaluation.make_result([mean, mean], [1, 1], engine) for level, mean in means.items()}


def test_scores_on_the_real_engine_are_shown_with_the_name_they_deserve(capsys):
    results = lab_results({"rooms_collect_good_objects_test": 5.0365, "rooms_exploit_deferred_effects_test": 100.0})
    scores, line = evaluate.scores_of(results)
    assert line == "mean capped human-normalised score over 2 levels: 75.0 (without the cap 84.3)"
    evaluate.show(Console(width=100), "checkpoint", results, scores)
    out = capsys.readouterr().out
    assert re.search(r"rooms_collect_good_objects_test +5\.04 +0\.00 +2 +50\.0 +50\.0", out)
    assert re.search(r"rooms_exploit_deferred_effects_test +100\.00 +0\.00 +2 +118\.6 +100\.0", out)
    thirty, line = evaluate.scores_of(lab_results({test_level(level): 1e9 for level in DMLAB30_LEVELS}))
    assert thirty is not None
    assert line.startswith("DMLab-30 score: 100.0 (")
    mixed = lab_results({"rooms_watermaze_test": 1.0}) | lab_results({"rooms_keys_doors_puzzle_test": 1.0}, "vizdoom")
    assert evaluate.scores_of(mixed)[0] is None
    assert evaluate.scores_of(lab_results({"gym_CartPole-v1": 1.0}, "gym")) == (None, "")


def test_a_result_that_cannot_be_written_is_refused_before_anything_is_played(experiment, tmp_path, capsys):
    assert evaluate.main([str(experiment), f"--json={tmp_path}/missing/result.json"]) == 2
    assert "--json=" in capsys.readouterr().err
