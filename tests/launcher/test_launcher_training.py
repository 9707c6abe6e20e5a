"""A sweep with a real training: preempted as on a cluster, run again by itself, with nothing lost and nothing repeated."""

from __future__ import annotations

import os
import signal

import pytest
from launching import quick_run, states
from programs import SERIAL, json_lines, rows_of, started, train_command

from sf_fixpo.launcher.sweep import Run, Sweep


@pytest.mark.slow
def test_a_training_that_is_preempted_goes_on_by_itself(tmp_path):
    folder = tmp_path / "s"
    command = ("python", *train_command(folder, "cartpole", *SERIAL, "--seed=1", "--train_for_env_steps=6400"))
    sweep = Sweep.create(folder, [Run("cartpole", command, "cartpole"), quick_run(folder, "other")])
    log = folder / "cartpole"
    with started(tmp_path / "out", "-m", "sf_fixpo.launcher.resume", folder, "--max_parallel=2") as run:
        run.wait_until(lambda: len(rows_of(log)) >= 5)
        os.kill(states(sweep)["cartpole"].pid or 0, signal.SIGTERM)
        assert run.wait(120) == 0, run.report()
        run.assert_nothing_left()
    done = states(sweep)["cartpole"]
    assert (done.status, done.attempt, done.failures, done.exit_code) == ("finished", 2, 0, 0)
    assert done.steps >= 6400
    assert done.mean_return is not None
    assert done.mean_return > 5, "CartPole gives 1 a step, and lasts some steps with any policy"
    versions = [row["policy_version"] for row in json_lines(log / "updates.jsonl")]
    assert versions == sorted(set(versions)), "it went on exactly where it had stopped"
    assert states(sweep)["other"].attempt == 1
