"""Evaluation: real environments in real worker processes; quotas, statistics, and what happens when a worker fails."""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from sample_factory.model.actor_critic import create_actor_critic

from benchmarks.synthetic import box_actions, make_cfg, small_shape, vector_space
from sf_fixpo import evaluate, evaluation_worker
from sf_fixpo.evaluation_worker import Job

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


def play_countdowns(monkeypatch, episodes: int, pool: bool, max_envs: int = 4, env_agents: int = 4) -> list[tuple]:
    def make_env(name, cfg, env_config, render_mode):
        return Pool(cfg.env_agents) if pool else Countdown(env_config.env_id)

    monkeypatch.setattr(evaluation_worker, "find_suite", lambda name: SimpleNamespace(name="test", make_env=make_env))
    messages: list[tuple] = []
    cfg = {"env": "countdown"} | ({"env_agents": env_agents} if pool else {})
    evaluation_worker.play(Job(SimpleCfg(cfg), None, 0, episodes, 0, False, max_envs), messages.append)
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


def test_an_environment_that_is_done_is_not_stepped_on(monkeypatch):
    made = []
    monkeypatch.setattr(Countdown, "close", lambda self: made.append(self))
    play_countdowns(monkeypatch, 5, pool=False, max_envs=2)
    assert [env.resets for env in made] == [4, 3]  # the quota, and the start after its last episode


def test_mean_and_standard_error():
    result = evaluate.make_result([1.0, 2.0, 3.0, 6.0], [1, 1, 1, 1], "x")
    assert (result.mean, result.se) == (3.0, pytest.approx(math.sqrt(14 / 3) / 2))
    assert math.isnan(evaluate.make_result([1.0], [1], "x").se)
    assert evaluate.share_out(7, 3) == [3, 2, 2]


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
    with pytest.raises(ValueError, match="bounds"):
        evaluation_worker.RandomAgent(gym.spaces.Box(-np.inf, np.inf, (2,)), 0)


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
    cfg = evaluate.load_config(experiment)
    again = evaluate.evaluate(cfg, first["checkpoint"], 5, 2, seed=3, on_episode=seen.append)
    assert list(again.returns) == first["returns"]
    assert sorted(seen) == sorted(first["returns"])


def test_a_random_agent_needs_no_checkpoint(experiment):
    assert evaluate.main([str(experiment), "--random", "--episodes=2", "--workers=1"]) == 0


def test_a_worker_that_fails_ends_the_program_with_its_error(experiment, tmp_path, capsys):
    torn = tmp_path / "torn.pth"
    torn.write_bytes(b"torn")
    assert evaluate.main([str(experiment), f"--checkpoint={torn}", "--episodes=2"]) == 1
    assert "Traceback" in capsys.readouterr().err


def die(pipe, job):
    os._exit(7)


def test_a_worker_that_dies_ends_the_program(experiment, monkeypatch):
    monkeypatch.setattr(evaluate, "play_in_process", die)
    with pytest.raises(evaluate.WorkerError, match="exit code 7"):
        evaluate.evaluate(evaluate.load_config(experiment), None, 2, 2)


def test_the_best_checkpoint_is_taken_where_there_is_one(tmp_path):
    folder = tmp_path / "checkpoint_p0"
    folder.mkdir()
    with pytest.raises(evaluate.BadInputError):
        evaluate.find_checkpoint(tmp_path, None)
    for name in ("checkpoint_000000010_64.pth", "checkpoint_000000020_128.pth"):
        (folder / name).touch()
    assert evaluate.find_checkpoint(tmp_path, None).name == "checkpoint_000000020_128.pth"
    (folder / "best_000000010_64_reward_1.000.pth").touch()
    assert evaluate.find_checkpoint(tmp_path, None).name.startswith("best")
    assert evaluate.find_checkpoint(tmp_path, "latest").name == "checkpoint_000000020_128.pth"
    with pytest.raises(evaluate.BadInputError, match="no such file"):
        evaluate.find_checkpoint(tmp_path, "bset")


@pytest.mark.parametrize("flags", [["--episodes=0"], ["--workers=0"], ["--random", "--deterministic"]])
def test_bad_flags_are_refused(experiment, flags):
    with pytest.raises(SystemExit) as error:
        evaluate.main([str(experiment), *flags])
    assert error.value.code == 2


def test_bad_input_is_one_message_and_status_2(experiment, tmp_path, capsys):
    for argv in ([str(tmp_path)], [str(experiment), "--env=no_such"], [str(experiment), "--checkpoint=best"]):
        assert evaluate.main(argv) == 2
        assert capsys.readouterr().err.strip()
