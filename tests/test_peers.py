"""The benchmark of other systems: what is recorded of an episode, what becomes of it, and what is refused.

The systems themselves are an extra of their own (`peers`), so that only ours are run here.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import tasks
from sf_fixpo.train import parse_cfg


def test_every_environment_writes_down_its_episodes(tmp_path, monkeypatch):
    monkeypatch.setenv(tasks.RECORDS, str(tmp_path))
    played = []
    for _ in range(2):
        env = tasks.Memory()
        assert env.observation_space.shape == (2,)
        for seed in range(3):
            obs, _ = env.reset(seed=seed)
            assert env.observation_space.contains(obs)
            steps, over = 0, False
            while not over:
                _, _, terminated, truncated, _ = env.step(steps % 2)
                steps, over = steps + 1, terminated or truncated
            played.append(steps)
        env.close()
    ended = tasks.episodes(tmp_path)
    assert sorted(ended[:, 2]) == sorted(played), "a point a step"
    assert ended[-1, 1] == sum(played)
    assert ended[0, 0] >= 0
    assert (np.diff(ended, axis=0)[:, :2] >= 0).all()


def test_nothing_is_written_where_nobody_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.delenv(tasks.RECORDS, raising=False)
    monkeypatch.chdir(tmp_path)
    env = tasks.CartPole()
    env.reset(seed=0)
    env.step(0)
    env.close()
    assert not [*tmp_path.iterdir()]


def test_the_curve_is_of_the_episodes_that_ended_in_each_part():
    ended = np.array([[1.0, 40, 4.0], [2.0, 100, 6.0], [3.0, 101, 10.0], [9.0, 205, 20.0]])
    assert tasks.curve(ended, 200, 2) == [
        {"steps": 100, "seconds": 2.0, "return": 5.0},
        {"steps": 200, "seconds": 9.0, "return": 15.0},
    ]


def rows_of(peer, task, seed, returns, steps=None):
    common = {"sweep": peers.sweep_of(steps, task), "variant": f"{peer}_{task}", "env": task, "algo": peer, "seed": seed}
    return [{**common, "steps": 50_000 * (i + 1), "seconds": 10.0 * (i + 1), "return": x} for i, x in enumerate(returns)]


def test_the_table_is_of_the_runs_that_the_csv_has(tmp_path):
    out = tmp_path / "peers.csv"
    for seed, last in ((0, 480.0), (1, 500.0)):
        peers.append(out, rows_of("fixpo", "CartPole", seed, [100.0, last]))
    peers.append(out, rows_of("sb3_ppo", "CartPole", 0, [90.0, 300.0]))
    peers.append(out, rows_of("fixpo", "CartPole", 0, [1.0], steps=1000))
    assert set(peers.read(out)) == {("fixpo", "CartPole", 0), ("fixpo", "CartPole", 1), ("sb3_ppo", "CartPole", 0)}
    assert set(peers.read(out, 1000)) == {("fixpo", "CartPole", 0)}, "runs of another length are not mixed in"
    ours, theirs = peers.table(peers.read(out)).splitlines()[2:]
    assert ours.startswith(
        "| CartPole | fixpo | 2 | 490.0 ± 127.1 | 490.0 ± 127.1 at 20 s | 0.100 ± 0.000 (2 of 2) | 20 ± 0 | 5000 ± 0 |"
    )
    assert theirs.startswith("| CartPole | sb3_ppo | 1 | 300.0 | 300.0 at 20 s | none of 1 |  | 5000 |")


def test_every_pair_has_settings_and_ours_are_accepted(tmp_path):
    pairs = list(peers.pairs([*peers.OURS, *peers.PUBLISHED], [*tasks.TASKS]))
    assert len(pairs) == 2 * len(tasks.TASKS) + sum(map(len, peers.PUBLISHED.values()))
    for peer, task in pairs:
        if peer in peers.OURS:
            argv = peers.command(peer, task, 1000, 3, tmp_path)[3:]
            # MuJoCo is of the extra too: its flags are checked on another environment of continuous actions
            cfg = parse_cfg([word.replace("benchmarks.peers.tasks:HalfCheetah", "Pendulum-v1") for word in argv])
            assert (cfg.algo, cfg.seed, cfg.train_for_env_steps) == (peers.OURS[peer], 3, 1000)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--peers=ppo", "--peers=ppo: must be of fixpo, appo, sb3_ppo"),
        ("--tasks=Ant", "--tasks=Ant: must be of CartPole, Pendulum"),
        ("--seeds=0,x", "--seeds=0,x: must be whole numbers"),
        ("--steps=0", "--steps=0: must be at least 1"),
        ("--out=pyproject.toml", "--out=pyproject.toml: has other columns"),
    ],
)
def test_bad_input_is_named_before_anything_is_run(flag, said, capsys):
    with pytest.raises(SystemExit) as error:
        peers.main([flag])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_ours_is_measured_and_not_run_again(tmp_path, capsys):
    out = tmp_path / "peers.csv"
    argv = ["--peers=fixpo", "--tasks=CartPole", "--seeds=0", "--steps=2048", f"--out={out}"]
    assert peers.main(argv) == 0
    first = capsys.readouterr().out
    assert re.search(r"fixpo CartPole 0\n.*\| CartPole \| fixpo \| 1 \| \d+\.\d", first, re.DOTALL)
    content = out.read_text()
    assert peers.main(argv) == 0
    assert out.read_text() == content
    assert "fixpo CartPole 0\n" not in capsys.readouterr().out
