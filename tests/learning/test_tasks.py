"""Runs on several tasks: one beta per task, what the log says of each, equally many samples of all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from programs import PARALLEL, started
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_guarantee import assert_bound_holds, write_config

from benchmarks.synthetic import make_batch, make_learner, small_shape, vector_space
from sf_fixpo.algorithm.config import FixPOConfig, faults
from sf_fixpo.audit import audit
from sf_fixpo.learning.tasks import task_count, task_figures, task_rows
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows
from sf_fixpo.running.fit import checkpoint_faults
from sf_fixpo.running.folders import saved_states
from sf_fixpo.running.pacing import Pacer, recent_returns

TASKS = 3


def task_space(tasks=TASKS):
    return gym.spaces.Dict(obs=vector_space()["obs"], task_id=gym.spaces.Box(0, tasks - 1, (1,), np.int32))


def make(tmp_path, **flags):
    return make_learner("FIXPO", small_shape(task_space(), **BUSY), train_dir=tmp_path, **flags)


def batch_of(learner, seed, tasks: Sequence[int] = range(TASKS)):
    """A batch whose trajectories are of these tasks in turn."""
    batch = make_batch(learner, seed=seed)
    ids = torch.tensor([list(tasks)[i % len(tasks)] for i in range(len(batch["rewards"]))], dtype=torch.int32)
    batch["obs"]["task_id"].copy_(ids.view(-1, 1, 1).expand_as(batch["obs"]["task_id"]))
    return batch


# -- pure ---------------------------------------------------------------------------------------------------------------------


def test_task_count():
    assert task_count(task_space(7)) == 7
    assert task_count(vector_space()) == task_count(gym.spaces.Discrete(3)) == 1


def test_task_figures_against_numpy():
    rng = np.random.default_rng(0)
    kl, mask, valids = rng.random(50), rng.random(50) < 0.7, rng.random(50) < 0.9
    mask &= valids
    ids = rng.integers(0, 3, 50)  # nothing of task 3
    values, returns = rng.random(50), rng.random(50)
    arguments = tuple(map(torch.from_numpy, (kl, mask, valids, ids)))
    figures = task_figures(*arguments, 4, torch.from_numpy(values), torch.from_numpy(returns)).numpy()
    for task in range(3):
        own, valid = mask & (ids == task), valids & (ids == task)
        explained = 1 - (returns - values)[valid].var() / returns[valid].var()
        np.testing.assert_allclose(figures[:, task], [kl[own].max(), kl[own].mean(), valid.sum() / valids.sum(), explained])
    assert figures[:, 3].tolist() == [0, 0, 0, 0]
    assert np.isnan(task_figures(*arguments, 4).numpy()[3]).all(), "V-trace has no targets of the whole batch"


def test_task_rows_name_every_figure():
    figures = [1, 2, 3, 4, 0.25, 0.75, 0.5, np.nan]
    rows = task_rows(["a", "b"], figures, [5.0], [None, 9.0])
    assert rows["a"] == {
        "kl_max": 1, "kl_mean": 3, "beta": 5.0, "sample_share": 0.25, "return": None, "explained_variance": 0.5,
    }  # fmt: skip
    assert rows["b"] == {
        "kl_max": 2, "kl_mean": 4, "beta": 5.0, "sample_share": 0.75, "return": 9.0, "explained_variance": None,
    }  # fmt: skip
    assert task_rows(["env"], figures, [5.0, 6.0], [None, None])["task_1"]["beta"] == 6.0


def test_recent_returns_come_from_the_environments_scores():
    stats = {"reward": [[1.0]], "z_01_b_dmlab_raw_score": [[2.0, 4.0]], "z_01_b_len": [[3600]], "z_00_a_dmlab_raw_score": [[]]}
    assert recent_returns(stats, 0, 3) == [None, 3.0, None]


def test_one_beta_per_task_is_for_runs_on_several():
    assert FixPOConfig.from_cfg({"task_names": ["a", "b"]}).beta_scope == "shared"
    assert faults({"env": "x", "beta_scope": "per_task"}) == ["--beta_scope=per_task: x is one task; use shared"]
    assert faults({"task_names": ["a", "b"], "beta_scope": "per_task"}) == []


# -- the learner --------------------------------------------------------------------------------------------------------------


def test_each_task_has_its_own_beta_and_keeps_it_while_it_is_away(tmp_path):
    learner = make(tmp_path, beta_scope="per_task", beta_lr=0.1)
    learner.train(batch_of(learner, 0))
    first = learner.multiplier.state_dict()
    learner.train(batch_of(learner, 1, tasks=(0, 2)))
    second = learner.multiplier.state_dict()
    for name in first:
        assert torch.equal(first[name][1], second[name][1]), name
    assert all(first["beta"][task] != second["beta"][task] for task in (0, 2))
    assert learner.last_record.beta == second["beta"].tolist()
    tasks = learner.last_record.tasks
    assert [row["beta"] for row in tasks.values()] == learner.last_record.beta
    assert [row["sample_share"] for row in tasks.values()] == pytest.approx([0.5, 0, 0.5])
    assert max(row["kl_max"] for row in tasks.values()) == pytest.approx(learner.last_record.kl_max)


def test_beta_rises_for_the_task_that_moves_and_falls_for_the_one_that_does_not(tmp_path):
    """Task 1 has no advantage to follow: its states are pulled along by the others' gradient only."""
    learner = make(tmp_path, beta_scope="per_task", beta_lr=0.05, fixup="off")
    for seed in range(10):
        learner.train(batch_of(learner, seed))
    statistic, present = learner.divergence.statistic(
        torch.tensor([0.5, 0.0, 0.2]), torch.tensor([True, True, False]), torch.tensor([0, 1, 2])
    )
    assert statistic.tolist() == [0.5, 0.0, 0.0]
    assert present.tolist() == [True, True, False]
    before = learner.multiplier.beta.clone()
    learner.multiplier.exp_avg.zero_()
    learner.multiplier.step(statistic, present, eps_kl=0.1, c_beta=2.0)
    assert learner.multiplier.beta[0] > before[0]
    assert learner.multiplier.beta[1] < before[1]
    assert learner.multiplier.beta[2] == before[2]


@pytest.mark.parametrize("stat", ["max", "mean"])
@pytest.mark.parametrize("scope", ["shared", "per_task"])
def test_no_published_version_is_over_the_bound_on_any_task(scope, stat, tmp_path):
    learner = make(tmp_path, beta_scope=scope, audit_every=1, kl_stat=stat)
    write_config(learner)
    for seed in range(60):
        learner.train(batch_of(learner, seed))
    rows = latest_rows(f"{learner.folder}/{UPDATE_LOG}")
    assert sum(row["fixup_steps"] for row in rows) > 0
    key = {"max": "kl_max", "mean": "kl_mean"}[stat]
    worst = max(task[key] / row["eps_kl"] for row in rows for task in row["tasks"].values())
    # with a beta for each task the mean, too, is bounded for each
    assert worst <= 1 or (scope, stat) == ("shared", "mean")
    if stat == "max":
        assert_bound_holds(learner, rows, audited=60)
    else:
        assert len(audit(Path(learner.folder), quiet=True)) == 60


def test_the_task_id_never_reaches_the_network(tmp_path):
    runs = []
    for name, tasks in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        learner = make(tmp_path / name, beta_scope="shared")
        for seed in range(3):
            learner.train(batch_of(learner, seed, tasks))
        runs.append(learner)
    one, other = (learner.actor_critic.state_dict() for learner in runs)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert not any("task" in key for key in one)


def test_per_task_betas_resume_bit_for_bit(tmp_path):
    learner = make(tmp_path, beta_scope="per_task")
    for seed in range(3):
        learner.train(batch_of(learner, seed))
    learner.save()
    resumed = make(tmp_path, beta_scope="per_task")
    for name, tensor in learner.multiplier.state_dict().items():
        assert torch.equal(tensor, resumed.multiplier.state_dict()[name])


def test_a_checkpoint_with_another_number_of_betas_is_refused_before_the_run(tmp_path):
    learner = make(tmp_path, beta_scope="per_task")
    learner.train(batch_of(learner, 0))
    learner.save()
    assert not any("beta" in fault for fault in checkpoint_faults(learner.cfg, learner.env_info, saved_states(learner.cfg)))
    learner.cfg.beta_scope = "shared"
    fault = checkpoint_faults(learner.cfg, learner.env_info, saved_states(learner.cfg))[0]
    assert fault.startswith("--beta_scope=shared: --experiment=synthetic was saved with 3 beta(s), this run has 1.")


# -- equally many samples -----------------------------------------------------------------------------------------------------


def test_pacer_holds_back_who_is_ahead_but_never_who_is_behind():
    pacer = Pacer(num_envs=4, num_tasks=2, slack=10)
    for env_id in range(4):
        pacer.register(env_id, env_id // 2)  # worker 0 plays task 0, worker 1 task 1
    for _ in range(50):
        pacer.add(0)
    assert pacer.steps().tolist() == [50, 0]
    assert pacer.ahead(slice(0, 2)) == 50
    assert pacer.ahead(slice(2, 4)) == 0
    before = time.monotonic()
    pacer.wait(slice(2, 4), longest=5)
    assert time.monotonic() - before < 1
    pacer.wait(slice(0, 2), longest=0.2)
    assert time.monotonic() - before >= 0.2
    # a worker that plays both tasks is never ahead
    pacer.register(1, 1)
    assert pacer.ahead(slice(0, 2)) == 0


PROGRAM = (
    "tests/helpers/task_env.py",
    "--env=gym_CartPole-v1",
    "--experiment=run",
    "--audit_every=1",
    "--train_for_env_steps=4000",
)
PROGRAM += ("--beta_scope=per_task", "--value_normalization=popart", "--normalize_returns=True")


@pytest.mark.slow
def test_a_run_on_tasks_of_different_speed(tmp_path):
    with started(tmp_path / "output", *PROGRAM, *PARALLEL[1:], f"--train_dir={tmp_path}") as run:
        assert run.wait(120) == 0, run.report()
        run.assert_nothing_left()
    rows = latest_rows(tmp_path / "run" / UPDATE_LOG)
    assert list(rows[-1]["tasks"]) == ["fast", "slow"]
    late = rows[len(rows) // 3 :]
    share = np.mean([row["tasks"]["slow"]["sample_share"] for row in late])
    assert share == pytest.approx(0.5, abs=0.05)
    assert rows[-1]["beta"] == [task["beta"] for task in rows[-1]["tasks"].values()]
    assert len(audit(tmp_path / "run", quiet=True)) == len(rows)
    events = EventAccumulator(str(tmp_path / "run" / ".summary" / "0"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for key in ("kl_max", "kl_mean", "beta", "sample_share"):
        assert f"fixpo/00_fast/{key}" in tags
    assert all(task["return"] > 5 for task in rows[-1]["tasks"].values())
