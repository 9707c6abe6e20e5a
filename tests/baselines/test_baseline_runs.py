"""Every algorithm through the real training program: it ends well, and leaves rows, a card and a verdict that say what it is."""

from __future__ import annotations

import json

import gymnasium as gym
import pytest
from programs import PARALLEL, SERIAL, checkpoints_of, train

from benchmarks.synthetic import make_env_info, vector_space
from sf_fixpo import audit
from sf_fixpo import train as program
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows
from sf_fixpo.running.fit import env_faults

RUNS = {
    "TRPO": ("--use_rnn=True", "--rnn_size=8", "--recurrence=-1"),
    "PPO_KL": (),
    "KL_PROJECTION": ("--env=gym_Pendulum-v1",),
}


@pytest.mark.parametrize("algo", RUNS)
def test_a_short_run(tmp_path, algo):
    flags = (
        *SERIAL,
        f"--algo={algo}",
        *RUNS[algo],
        "--train_for_env_steps=1024",
        "--audit_every=4",
        "--eps_kl=0.0001",
        "--seed=1",
    )
    run = train(tmp_path, "run", *flags)
    assert run.popen.returncode == 0, run.report()
    assert f"run: {algo} on " in run.stdout
    rows = latest_rows(tmp_path / "run" / UPDATE_LOG)
    assert len(rows) >= 1024 // 64
    assert all(row["method"] for row in rows)
    assert max(row["kl_max"] / row["eps_kl"] for row in rows) > 1, "a bound that none of these keeps, and no error"
    assert all(row["fixup_steps"] == row["backtracks"] == 0 for row in rows)
    assert checkpoints_of(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algo"] == algo
    assert audit.main([str(tmp_path / "run")]) == 0


def test_a_projection_of_categories_is_refused(tmp_path):
    """Before anything is started, as tests/test_cli.py has it for all that needs the environment to be seen."""
    cfg = program.parse_cfg([*SERIAL, "--algo=KL_PROJECTION", f"--train_dir={tmp_path}"])
    [fault] = env_faults(cfg, make_env_info(vector_space(4), gym.spaces.Discrete(2)))
    said = "--algo=KL_PROJECTION: projects Gaussian policies; the actions of --env=gym_CartPole-v1 are categorical"
    assert fault.startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize("algo", RUNS)
def test_asynchronous_processes_and_a_resumed_run(tmp_path, algo):
    flags = (*PARALLEL, f"--algo={algo}", *RUNS[algo], "--seed=1")
    for steps in (1024, 2048):
        run = train(tmp_path, "run", *flags, f"--train_for_env_steps={steps}")
        assert run.popen.returncode == 0, run.report()
    rows = latest_rows(tmp_path / "run" / UPDATE_LOG)
    assert rows[-1]["env_steps"] >= 2048
    assert [row["policy_version"] for row in rows] == sorted({row["policy_version"] for row in rows})
