"""Learning to a threshold, minutes each: `make test-slow`."""

from __future__ import annotations

import json

import pytest
from programs import started, train

from sf_fixpo import demo
from sf_fixpo.playing.evaluation import make_result
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows


@pytest.mark.slow
@pytest.mark.parametrize("core", ["mlp", "lstm"])
def test_cartpole_is_learned(core, tmp_path):
    """A random agent gets 22; most episodes are played to the end, 500, after 100,000 steps (measured: 480 and more)."""
    memory = ("--use_rnn=True", "--rnn_type=lstm", "--rnn_size=32", "--recurrence=-1") if core == "lstm" else ()
    flags = ("--env=gym_CartPole-v1", "--train_for_env_steps=100000", "--seed=1", *memory)
    run = train(tmp_path, "cartpole", *flags, timeout=280)
    assert run.popen.returncode == 0, run.report()
    result = tmp_path / "result.json"
    with started(tmp_path / "eval", "-m", "sf_fixpo.evaluate", tmp_path / "cartpole", f"--json={result}") as evaluation:
        assert evaluation.wait(200) == 0, evaluation.report()
    assert json.loads(result.read_text())["mean"] > 300
    assert all(row["kl_max"] <= row["eps_kl"] for row in latest_rows(tmp_path / "cartpole" / UPDATE_LOG))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_from_pixels(tmp_path):
    """A third of the demo's time is enough to beat a random agent by far more than the three standard errors it asks for."""
    with started(tmp_path, "-m", "sf_fixpo.demo", "--minutes=4", "--episodes=50", f"--train_dir={tmp_path}") as run:
        assert run.wait(800) == 0, run.report()
        run.assert_nothing_left()
    assert (tmp_path / "demo" / "plot.png").exists()
    assert "The bound holds" in run.stdout


def test_standard_errors_apart():
    agent, other = make_result([4.0, 6.0], [1, 1], "x"), make_result([0.0, 2.0], [1, 1], "x")
    assert demo.standard_errors_apart(agent, other) == pytest.approx(4.0 / 2**0.5)
    still = make_result([1.0, 1.0], [1, 1], "x")
    assert demo.standard_errors_apart(make_result([2.0, 2.0], [1, 1], "x"), still) == float("inf")


@pytest.mark.slow
def test_cartpole_is_learned_by_trpo_too(tmp_path):
    """Measured: a mean return of 491 after 100,000 steps, and no state of an update beyond 0.73 of the default eps_kl."""
    run = train(
        tmp_path, "cartpole", "--env=gym_CartPole-v1", "--algo=TRPO", "--train_for_env_steps=100000", "--seed=1", timeout=280
    )
    assert run.popen.returncode == 0, run.report()
    result = tmp_path / "result.json"
    with started(tmp_path / "eval", "-m", "sf_fixpo.evaluate", tmp_path / "cartpole", f"--json={result}") as evaluation:
        assert evaluation.wait(200) == 0, evaluation.report()
    assert json.loads(result.read_text())["mean"] > 300
    rows = latest_rows(tmp_path / "cartpole" / UPDATE_LOG)
    assert all(row["method"]["kl_mean"] <= 0.01 for row in rows)
    assert sum(row["method"]["accepted"] for row in rows) > 0.9 * len(rows)
