"""The guarantee on the real learner: every published version of hundreds of updates, audited in float64, over all policies.

Batches are synthetic, the learner, its networks and the audit are the real ones. `test_guarantee_runs.py` has real environments.
"""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY

from benchmarks.synthetic import box_actions, fill_policy_outputs, make_batch, make_learner, small_shape, take_snapshot
from sf_fixpo.audit import audit
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows

SPACES = {
    "categorical": gym.spaces.Discrete(5),
    "tuple": gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Discrete(4)]),
    "mixed": gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)]),
    "gaussian": box_actions(3),
}
MLP = {"use_rnn": False}
LSTM = {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}


def write_config(learner):
    """What a run writes beside its logs."""
    Path(learner.folder, "config.json").write_text(json.dumps(dict(learner.cfg), default=str))


def run(learner, updates, lag=0, **batch_args):
    """Trains on synthetic batches; with a lag, older published policies have collected them."""
    write_config(learner)
    snapshots = []
    for i in range(updates):
        snapshots = [*snapshots, take_snapshot(learner)][-(lag + 1) :] if lag else []
        batch = make_batch(learner, seed=i, snapshots=snapshots, **batch_args)
        learner.train(batch)
    return latest_rows(f"{learner.folder}/{UPDATE_LOG}")


def assert_bound_holds(learner, rows, audited):
    assert all(row["kl_max"] <= row["eps_kl"] for row in rows)
    findings = audit(Path(learner.folder), quiet=True)  # raises at the first violation; no tolerance
    assert len(findings) == audited


# the others with `make test-slow`
BY_DEFAULT = [("categorical", MLP, 80), ("tuple", LSTM, 80)]


def cases(default, rest):
    """Parameters of each, the second ones slow; the name of a core in place of its flags."""
    named = [("-".join("lstm" if x is LSTM else "mlp" if x is MLP else str(x) for x in case), case) for case in (*default, *rest)]
    return [pytest.param(*case, id=name, marks=() if case in default else pytest.mark.slow) for name, case in named]


@pytest.mark.parametrize(
    ("space", "core", "updates"), cases(BY_DEFAULT, [(space, core, 200) for space in SPACES for core in (MLP, LSTM)])
)
def test_updates_audited(space, core, updates, tmp_path):
    shape = small_shape(action_space=SPACES[space], **BUSY, **core)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, audit_every=1)
    rows = run(learner, updates)
    assert_bound_holds(learner, rows, audited=updates)
    # the bound was not kept by standing still: the fixup phase had work to do, and updates used the room they have
    assert sum(row["fixup_steps"] for row in rows) > 0
    assert np.mean([row["kl_max"] for row in rows]) > 0.1 * BUSY["eps_kl"]


@pytest.mark.parametrize(
    ("space", "core", "reference", "updates"),
    cases(
        [("categorical", LSTM, "behaviour", 40), ("gaussian", MLP, "previous", 40)],
        [
            (space, core, ref, 100)
            for space, core in (("categorical", LSTM), ("gaussian", MLP))
            for ref in ("behaviour", "previous")
        ],
    ),
)
def test_updates_on_lagging_data_audited(space, core, reference, updates, tmp_path):
    shape = small_shape(action_space=SPACES[space], **BUSY, **core)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, audit_every=1, reference=reference)
    rows = run(learner, updates, lag=4)
    assert_bound_holds(learner, rows, audited=updates)
    assert max(row["lag_mean"] for row in rows) > 1
    stale = [row["stale_fraction"] for row in rows]
    assert max(stale) == 0 if reference == "previous" else max(stale) > 0


VARIANTS = {
    "one minibatch": {"num_epochs": 1, "num_batches_per_epoch": 1},
    "separate weights": {"actor_critic_share_weights": False},
    "v-trace": {"with_vtrace": True, "recurrence": 8},
    "normalised returns": {"normalize_returns": True},
    "shuffled": {"shuffle_minibatches": True},
    "last epoch": {"fixup": "last_epoch"},
    "shared optimizer": {"fixup_optimizer": "shared"},
    "beta in the fixup loss": {"fixup_loss": "beta_kl"},
    "states outside": {"fixup_loss": "outside"},
    "other direction": {"kl_direction": "ref_pi"},
    "mean": {"kl_stat": "mean"},
    "constant beta": {"beta_lr": 0.0, "beta_init": 10.0},
    "c_beta 1": {"c_beta": 1.0},
    "fixup minibatch": {"fixup_batch_size": 16},
    "gru": {"rnn_type": "gru"},
    "lamb": {"optimizer": "lamb"},
    "adaptive learning rate": {"lr_schedule": "kl_adaptive_epoch"},
    "adaptive learning rate per minibatch": {"lr_schedule": "kl_adaptive_minibatch"},
}


RECURRENT = ("one minibatch", "separate weights", "v-trace", "shuffled", "fixup minibatch", "gru")


@pytest.mark.parametrize(
    ("variant", "core"),
    [(v, MLP) for v in VARIANTS if v != "gru"] + [(v, LSTM) for v in RECURRENT],
    ids=lambda x: x if isinstance(x, str) else ("lstm" if x["use_rnn"] else "mlp"),
)
def test_every_variant_keeps_the_bound(variant, core, tmp_path):
    flags = {**BUSY, **core, **VARIANTS[variant]}
    learner = make_learner("FIXPO", small_shape(action_space=SPACES["categorical"], **flags), train_dir=tmp_path, audit_every=1)
    rows = run(learner, 15)
    if flags.get("kl_stat") != "mean":
        assert all(row["kl_max"] <= row["eps_kl"] for row in rows)
    assert len(audit(Path(learner.folder), quiet=True)) == 15


def test_without_fixup_the_bound_is_broken(tmp_path):
    """What the other tests would show if the fixup phase did nothing."""
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, fixup="off")
    rows = run(learner, 40)
    assert max(row["kl_max"] / row["eps_kl"] for row in rows) > 1.5
    assert sum(row["fixup_steps"] for row in rows) == 0


# -- hard cases ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", [MLP, LSTM], ids=["mlp", "lstm"])
def test_learning_rate_100_times_too_high(core, tmp_path):
    shape = small_shape(action_space=SPACES["gaussian"], **{**BUSY, **core, "learning_rate": 0.3})
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, audit_every=1, max_fixup_steps=5)
    rows = run(learner, 60)
    assert_bound_holds(learner, rows, audited=60)
    assert sum(row["backtracks"] for row in rows) > 0
    assert all(row["backtracks"] == (row["backtrack_scale"] < 1) for row in rows)


@pytest.mark.parametrize("core", [MLP, LSTM], ids=["mlp", "lstm"])
def test_60_percent_invalid_samples(core, tmp_path):
    learner = make_learner("FIXPO", small_shape(**{**BUSY, **core}), train_dir=tmp_path, audit_every=1)
    rows = run(learner, 60, invalid_share=0.6)
    assert_bound_holds(learner, rows, audited=60)
    assert np.mean([row["valid_fraction"] for row in rows]) == pytest.approx(0.4, abs=0.05)


def test_minibatches_without_valid_samples_are_skipped(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    batch = make_batch(learner, seed=0)
    batch["policy_id"][: len(batch["policy_id"]) // 2] = -1  # the whole first minibatch of each epoch
    before = learner.gate.version
    learner.train(batch)
    assert learner.last_record.skipped_minibatches == BUSY["num_epochs"]
    assert learner.last_record.primary_steps == BUSY["num_epochs"]
    assert learner.gate.version > before


def test_a_batch_without_any_valid_sample_changes_nothing(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    batch = make_batch(learner, seed=0)
    batch["policy_id"][:] = -1
    state = {k: v.clone() for k, v in learner.gate.published.model.state_dict().items()}
    assert learner.train(batch) is None
    assert learner.last_record is None
    assert all(torch.equal(v, state[k]) for k, v in learner.gate.published.model.state_dict().items())


def test_weights_pushed_far_outside_before_the_fixup_phase(tmp_path, monkeypatch):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, audit_every=1, max_fixup_steps=3)
    run(learner, 3)
    fixup = learner.improvement.fixup

    def push_then_fix(*args):
        with torch.no_grad():
            for parameter in learner.actor_critic.parameters():
                parameter += 3.0 * torch.randn_like(parameter)
        return fixup(*args)

    monkeypatch.setattr(learner.improvement, "fixup", push_then_fix)
    learner.train(make_batch(learner, seed=9))
    record = learner.last_record
    assert record.backtracks == 1
    assert record.kl_max <= record.eps_kl
    assert_bound_holds(learner, [record.to_row()], audited=4)
    # going back drops the momentum that led there, and leaves the critic's alone
    moments = {name: learner.optimizer.state[p]["exp_avg"].abs().max() for name, p in learner.actor_critic.named_parameters()}
    assert all((moment > 0) == name.startswith("critic") for name, moment in moments.items())


@pytest.mark.parametrize("where", ["rewards", "obs", "weights"])
def test_a_number_that_is_none_undoes_the_update(where, tmp_path, monkeypatch):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    run(learner, 3)
    published = {k: v.clone() for k, v in learner.gate.published.model.state_dict().items()}
    beta = learner.multiplier.beta.clone()
    batch = make_batch(learner, seed=9)
    if where == "weights":
        primary_step = learner.improvement.primary_step

        def poisoned(*args):
            result = primary_step(*args)
            with torch.no_grad():
                next(learner.actor_critic.parameters()).fill_(float("nan"))
            return result

        monkeypatch.setattr(learner.improvement, "primary_step", poisoned)
    elif where == "obs":
        batch["obs"]["obs"][0, 3] = float("nan")
    else:
        batch["rewards"][0, 3] = float("inf")
    version = learner.gate.version
    learner.train(batch)
    monkeypatch.undo()
    assert learner.last_record.rolled_back
    assert learner.gate.version > version
    assert all(torch.equal(v, published[k]) for k, v in learner.gate.published.model.state_dict().items())
    assert beta.isfinite().all()
    assert learner.multiplier.beta.isfinite().all()
    # and learning goes on
    learner.train(make_batch(learner, seed=10))
    assert not learner.last_record.rolled_back
    assert learner.last_record.kl_max > 0
    assert all(p.isfinite().all() for p in learner.actor_critic.parameters())


def test_an_undone_update_can_be_audited(tmp_path):
    """The state that was no number is bound to the policy that is published again; all others are checked."""
    learner = make_learner("FIXPO", small_shape(**{**BUSY, "async_rl": False}), train_dir=tmp_path, audit_every=1)
    run(learner, 2)
    batch = make_batch(learner, seed=9)
    batch["obs"]["obs"][0, 3] = float("nan")
    learner.train(batch)
    assert learner.last_record.rolled_back
    findings = audit(Path(learner.folder), quiet=True)
    assert [f.undone for f in findings] == [0, 0, 1]


def test_too_many_undone_updates_stop_the_run(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, max_rollbacks=3)
    for i in range(2):
        batch = make_batch(learner, seed=i)
        batch["rewards"][:] = float("nan")
        learner.train(batch)
    batch = make_batch(learner, seed=3)
    batch["rewards"][:] = float("nan")
    with pytest.raises(RuntimeError, match=r"--learning_rate.*--reward_scale"):
        learner.train(batch)


def test_statistics_of_the_normaliser_are_let_in_slowly(tmp_path):
    """Observations far from mean 0, variance 1: the first statistics alone would carry the policy out of the region."""
    learner = make_learner("FIXPO", small_shape(**{**BUSY, "learning_rate": 1e-5}), train_dir=tmp_path, audit_every=1)
    write_config(learner)
    batch = make_batch(learner, seed=0)
    scales = []
    for _ in range(40):
        noise = torch.randn(batch["obs"]["obs"].shape, generator=torch.Generator().manual_seed(1)).to(batch["obs"]["obs"].device)
        batch["obs"]["obs"].copy_(noise * 30 + 50)
        fill_policy_outputs(learner, batch)
        learner.train(batch)
        scales.append(learner.last_record.statistics_scale)
    assert scales[0] < 1.0
    assert scales[-1] == 1.0  # never frozen: it arrives
    rows = latest_rows(f"{learner.folder}/{UPDATE_LOG}")
    assert_bound_holds(learner, rows, audited=40)
    mean = learner.gate.published.model.obs_normalizer.running_mean_std.running_mean_std["obs"].running_mean
    assert (mean - 50).abs().max() < 5
