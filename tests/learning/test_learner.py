"""The learner on sample-factory: determinism, ablations, the gate, populations, and faults of 2.1.1 that are not ours."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.utils.action_distributions import get_action_distribution

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, take_snapshot


def train(learner, updates=5, first_seed=0, **batch_args):
    records = []
    for seed in range(first_seed, first_seed + updates):
        learner.train(make_batch(learner, seed=seed, **batch_args))
        records.append(learner.last_record)
    return records


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# -- determinism --------------------------------------------------------------------------------------------------------------

# Losses, KL and beta of five updates on a fixed batch sequence, as this code computes them (torch 2.13 on the CPU). A change here
# is a change of the algorithm: say so in CHANGELOG.md. Looser than float32, because another CPU adds in another order.
GOLDEN = {
    "kl_max_primary": [0.09816018, 0.01221446, 0.02113917, 0.03578035, 0.05014518],
    "kl_max": [0.08272616, 0.0171483, 0.04178854, 0.07850962, 0.081586],
    "beta": [1.052593, 1.07242, 1.075072, 1.069347, 1.060628],
    "fixup_steps": [3, 0, 0, 0, 0],
    "loss": [0.3899617, 1.560057, 1.858044, 2.015414, 3.411777],
}


def golden_run(tmp_path):
    shape = small_shape(action_space=gym.spaces.Discrete(4), **{**BUSY, "learning_rate": 1e-2})
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, seed=7)
    trace = {key: [] for key in GOLDEN}
    for seed in range(5):
        learner.train(make_batch(learner, seed=seed))
        for key in ("kl_max_primary", "kl_max", "beta", "fixup_steps"):
            trace[key].append(getattr(learner.last_record, key))
        trace["loss"].append(float(learner._update[1].last_losses["loss"].detach()))
    return trace


def test_golden_trace(tmp_path):
    for key, values in golden_run(tmp_path).items():
        assert values == pytest.approx(GOLDEN[key], rel=1e-3, abs=1e-6), key


def test_two_identical_runs_are_equal_bit_for_bit(tmp_path):
    shape = small_shape(action_space=box_actions(2), use_rnn=True, rnn_type="lstm", shuffle_minibatches=True, **BUSY)
    runs = []
    for name in "ab":
        learner = make_learner("FIXPO", shape, train_dir=tmp_path / name, seed=3)
        records = train(learner)
        runs.append((weights(learner.actor_critic), learner.multiplier.beta, [r.kl_max for r in records]))
    assert same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2]


# -- ablations: each is one flag ----------------------------------------------------------------------------------------------


def test_no_fixup_phase(tmp_path):
    records = train(make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, fixup="off"))
    assert all(r.fixup_steps == 0 and r.backtracks == 0 for r in records)
    assert max(r.kl_max / r.eps_kl for r in records) > 1


def test_mean_instead_of_max(tmp_path):
    records = train(make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, kl_stat="mean"))
    assert all(r.kl_mean <= r.eps_kl for r in records)
    assert any(r.kl_max > r.eps_kl for r in records)


def test_fixup_only_after_the_last_epoch(tmp_path):
    every = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path / "a", fixup="every_epoch")
    last = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path / "b", fixup="last_epoch", trace_updates="0-9")
    assert min(r.check_passes for r in train(every, 3)) >= 2
    records = train(last, 3)
    assert all(r.kl_max <= r.eps_kl for r in records)
    assert any(r.check_passes == 1 for r in records) or any(r.fixup_steps for r in records)
    assert {epoch for epoch, phase, _, _ in last._update[1].trace if phase == "fixup"} <= {1}


def test_constant_beta(tmp_path):
    records = train(make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, beta_lr=0.0, beta_init=10.0))
    assert all(r.beta == 10.0 for r in records)


def test_the_mean_kl_settles_at_its_target_where_beta_alone_would_let_it_go(tmp_path):
    flags = {**BUSY, "learning_rate": 1e-2, "eps_kl": 1.0}
    free, held = (
        make_learner("FIXPO", small_shape(**flags), train_dir=tmp_path / str(target), kl_mean_target=target)
        for target in (0.0, 0.002)
    )
    means = [[r.kl_mean for r in train(learner, 60)[30:]] for learner in (free, held)]
    assert np.mean(means[0]) > 4 * 0.002
    assert np.mean(means[1]) == pytest.approx(0.002, rel=0.3)
    assert free.last_record.beta_of_mean == 0.0
    assert held.last_record.beta_of_mean == held.mean_multiplier.beta.item() > 0.0


def test_a_floor_keeps_beta_up(tmp_path):
    flags = {**BUSY, "learning_rate": 1e-4, "eps_kl": 1.0, "beta_lr": 0.1}
    free, held = (make_learner("FIXPO", small_shape(**flags), train_dir=tmp_path / str(b), beta_min=b) for b in (0.0, 0.5))
    records = train(free, 6)
    assert records[-1].beta == 0.0
    assert records[0].beta_zero_fraction < records[-1].beta_zero_fraction == 1.0
    assert [r.beta for r in train(held, 6)][-3:] == [0.5] * 3
    assert held.last_record.beta_zero_fraction == 0.0


@pytest.mark.parametrize("actions", [gym.spaces.Discrete(4), box_actions(2)])
def test_the_figures_of_a_row_are_of_the_published_policy_over_the_valid_states(actions, tmp_path):
    learner = make_learner("FIXPO", small_shape(action_space=actions, **BUSY), train_dir=tmp_path)
    train(learner, 3, invalid_share=0.2)
    (batch, _), record = learner._update, learner.last_record
    pi = batch.parameters(learner.gate.published, learner.gate.published.observe(batch.raw_obs), 32)
    distribution = get_action_distribution(actions, pi)
    valids = batch.valids
    assert record.entropy == pytest.approx(distribution.entropy()[valids].mean().item(), rel=1e-5)
    kl = learner.divergence.per_state(pi, batch.bound)[valids]
    assert record.near_bound_fraction == pytest.approx((kl > 0.9 * record.eps_kl).float().mean().item())
    returns, values = (batch.samples[key][valids].double() for key in ("returns", "values"))
    assert record.explained_variance == pytest.approx(1 - ((returns - values).var() / returns.var()).item(), abs=1e-4)


def test_c_beta_1_aims_at_the_bound(tmp_path):
    """With c_beta = 1 beta rises only where the bound itself is broken, so it ends lower than with 3."""
    betas = []
    for c_beta in (1.0, 3.0):
        flags = {**BUSY, "learning_rate": 1e-2}
        learner = make_learner("FIXPO", small_shape(**flags), train_dir=tmp_path / str(c_beta), c_beta=c_beta, beta_lr=0.02)
        betas.append(train(learner, 10)[-1].beta)
    assert betas[0] < betas[1]


@pytest.mark.parametrize("schedule", ["kl_adaptive_minibatch", "kl_adaptive_epoch"])
def test_an_adapted_learning_rate_is_that_of_the_next_step(schedule, tmp_path, monkeypatch):
    """As in sample-factory's learner: within the update, not from the next one on."""
    flags = {"lr_schedule": schedule, "lr_schedule_kl_threshold": 1e-12}  # every divergence is too large: always lower
    learner = make_learner("FIXPO", small_shape(**BUSY, **flags), train_dir=tmp_path)
    rates = []
    step, improvement = learner.improvement._descend, learner.improvement
    monkeypatch.setattr(
        improvement, "_descend", lambda p, loss, rate, **_: (rates.append((p.epoch, rate)), step(p, loss, rate))[1]
    )
    train(learner, 1)
    first, last = (max(rate for epoch, rate in rates if epoch == e) for e in (0, 1))
    assert last < first


# -- the gate -----------------------------------------------------------------------------------------------------------------


def test_nothing_is_published_during_an_update(tmp_path, monkeypatch):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    published, version = weights(learner.gate.published.model), int(learner.policy_versions_tensor[0])
    seen = []
    step = learner.improvement._descend

    def watch(*args, **kwargs):
        seen.append(same(published, weights(learner.gate.published.model)) and int(learner.policy_versions_tensor[0]) == version)
        return step(*args, **kwargs)

    monkeypatch.setattr(learner.improvement, "_descend", watch)
    train(learner, 1)
    assert len(seen) >= 4
    assert all(seen)
    assert not same(published, weights(learner.gate.published.model))
    assert same(weights(learner.actor_critic), weights(learner.gate.published.model))
    assert int(learner.policy_versions_tensor[0]) == learner.train_step == learner.gate.version


def test_actors_use_the_published_copy(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    assert learner.param_server.actor_critic is learner.gate.published.model
    assert learner.param_server.actor_critic is not learner.actor_critic
    assert learner.gate._places == [], "in serial mode there is no other process"
    other = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path / "other", serial_mode=False)
    assert len(other.gate._places) == 2
    assert all(t.is_shared() for place in other.gate._places for t in place.model.state_dict().values())


# -- what the fixup phase may touch, and what it costs ------------------------------------------------------------------------


def test_a_fixup_step_leaves_the_critic_alone(tmp_path):
    """Separate weights: no gradient reaches the critic (None, not zero), so Adam's momentum does not move it either."""
    shape = small_shape(actor_critic_share_weights=False, **BUSY)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, fixup_optimizer="shared")
    train(learner, 2)
    (batch, progress), before = learner._update, weights(learner.actor_critic)
    learner.improvement.fixup_step(progress, batch, learner.verifier.slices[0], 0.1)
    moved = {name for name, tensor in weights(learner.actor_critic).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith(("actor", "action")) for name in moved)


def test_a_check_has_no_gradient_no_critic_and_one_read(tmp_path, monkeypatch):
    shape = small_shape(actor_critic_share_weights=False, **BUSY)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path)
    train(learner, 1)
    _, progress = learner._update
    verifier, called = learner.verifier, []
    verifier.stage(learner.candidate)
    monkeypatch.setattr(verifier.staged.model.critic_linear, "forward", lambda *a: called.append("critic"))
    before = progress.host_reads, progress.check_passes
    assert len(verifier.check(verifier.slices)) == 2
    assert (progress.host_reads, progress.check_passes) == (before[0] + 1, before[1] + 1)
    assert not any(kl.requires_grad for kl in verifier.kl_of.values())
    assert not called


def test_reads_per_update_are_counted(tmp_path):
    records = train(make_learner("FIXPO", small_shape(**{**BUSY, "learning_rate": 1e-6}), train_dir=tmp_path), 12)
    last = records[-1]
    # the opening, the probe of the statistics, one per check pass (each epoch), the record itself
    assert (last.fixup_steps, last.check_passes) == (0, 2)
    assert last.host_reads == 1 + 1 + 2 + 1


def test_fresh_moments_only_where_a_step_is_taken(tmp_path):
    learner = make_learner("FIXPO", small_shape(**{**BUSY, "learning_rate": 1e-6}), train_dir=tmp_path, fixup_optimizer="fresh")
    records = train(learner, 12)
    assert records[-1].fixup_steps == 0
    assert all(state["exp_avg"].abs().max() > 0 for state in learner.optimizer.state.values())


def test_stale_states_are_those_that_the_previous_policy_breaks(tmp_path):
    shape = small_shape(**{**BUSY, "normalize_input": False})
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, reference="behaviour")
    old = take_snapshot(learner)
    train(learner, 8)
    batch = make_batch(learner, seed=50, snapshots=[old])
    learner.train(batch)
    trained, _ = learner._update
    assert learner.last_record.lag_mean > 0
    assert 0 < learner.last_record.stale_fraction < 1
    assert not (trained.stale & ~trained.valids).any()
    assert learner.last_record.kl_max <= learner.last_record.eps_kl
    assert 0 < learner.last_record.kl_max_stale <= learner.last_record.eps_kl


# -- faults of sample-factory 2.1.1 that are not ours -------------------------------------------------------------------------


def test_vtrace_with_summaries(tmp_path):
    shape = small_shape(with_vtrace=True, **{**BUSY, "normalize_input": False}, recurrence=8)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path)
    learner.last_summary_time = 0  # summaries at every update
    stats = learner.train(make_batch(learner, seed=0))
    assert np.isfinite(stats["train"]["loss"])


def test_separate_weights_with_a_recurrent_policy(tmp_path):
    for rnn_type in ("lstm", "gru"):
        shape = small_shape(use_rnn=True, rnn_type=rnn_type, actor_critic_share_weights=False, **BUSY)
        learner = make_learner("FIXPO", shape, train_dir=tmp_path / rnn_type)
        assert all(r.kl_max <= r.eps_kl for r in train(learner, 3))


def test_pixels_are_trained_and_published_channels_last(tmp_path):
    obs = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 36, 48), np.uint8))
    shape = small_shape(obs, encoder_conv_architecture="convnet_atari", encoder_conv_mlp_layers=[16], obs_scale=255.0, **BUSY)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path)
    train(learner, 2)
    trained = dict(learner.actor_critic.named_parameters())
    images = [name for name, p in trained.items() if p.dim() == 4]
    assert images
    assert all(trained[name].is_contiguous(memory_format=torch.channels_last) for name in images)
    assert same(weights(learner.actor_critic), weights(learner.gate.published.model))
    assert all(learner.optimizer.state[p]["exp_avg"].stride() == p.stride() for p in trained.values())


# -- populations --------------------------------------------------------------------------------------------------------------


def test_pbt_changes_take_effect_and_stay_valid(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    learner.set_new_cfg({"eps_kl": 0.05, "c_beta": 0.7, "beta_lr": 0.5})
    records = train(learner, 2)
    assert all(r.eps_kl == 0.05 and r.kl_max <= 0.05 for r in records)
    assert learner.fixpo.c_beta == 1.0
    assert learner.multiplier.lr == 0.5


def test_pbt_replacement_is_published_and_brings_its_beta(tmp_path):
    one, other = (make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, policy_id=i, num_policies=2) for i in (0, 1))
    train(one, 3)
    train(other, 2, first_seed=20)
    one.save()
    version, steps = other.gate.version, other.env_steps
    other.set_policy_to_load(0)
    other._maybe_load_policy()
    assert same(weights(other.gate.published.model), weights(one.gate.published.model))
    assert torch.equal(other.multiplier.beta, one.multiplier.beta)
    assert other.env_steps == steps
    # what the old policy has collected is now too old
    assert other.gate.version > version + other.cfg.max_policy_lag
    assert int(other.policy_versions_tensor[1]) == other.gate.version
    assert all(r.kl_max <= r.eps_kl for r in train(other, 2, first_seed=30))


def test_each_policy_has_its_own_beta(tmp_path):
    one, other = (make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, policy_id=i, num_policies=2) for i in (0, 1))
    train(one, 2)
    assert one.multiplier.beta.item() != other.multiplier.beta.item() == 1.0


def test_appo_is_sample_factorys_own_learner(tmp_path):
    learner = make_learner("APPO", small_shape(learning_rate=1e-3), train_dir=tmp_path)
    assert isinstance(learner, Learner)
    assert type(learner)._train is Learner._train
    assert type(learner)._calculate_losses is Learner._calculate_losses
