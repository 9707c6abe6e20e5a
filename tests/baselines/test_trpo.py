"""TRPO on the learner: what it solves, what it takes back, what it bounds and what it leaves to be recorded."""

from __future__ import annotations

import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from fisher import fisher_of
from updates import run, tensors, write_config

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, take_snapshot
from sf_fixpo import audit
from sf_fixpo.algorithm.losses import masked_mean
from sf_fixpo.algorithm.trust_region import action_kl
from sf_fixpo.baselines import natural_gradient as ng
from sf_fixpo.baselines import trpo
from sf_fixpo.learning import batch as batches

SPACES = {
    "categorical": gym.spaces.Discrete(4),
    "gaussian": box_actions(2),
    "tuple": gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)]),
}
CORES = {"mlp": {}, "lstm": {"use_rnn": True, "rnn_type": "lstm"}, "gru": {"use_rnn": True, "rnn_type": "gru"}}
FOUR = {"num_batches_per_epoch": 4, "num_epochs": 2}


def make(tmp_path, space="categorical", core="mlp", **flags):
    return make_learner("TRPO", small_shape(action_space=SPACES[space], **{**FOUR, **CORES[core], **flags}), train_dir=tmp_path)


class CaughtError(Exception):
    """The surrogate of an update, at theta'."""


def surrogate_of(learner, monkeypatch, **batch_args):
    """What TRPO's step would have worked on, and the batch."""
    with monkeypatch.context() as patch:
        patch.setattr(trpo.TRPO, "_natural_step", lambda self, progress, surrogate: (_ for _ in ()).throw(CaughtError(surrogate)))
        with pytest.raises(CaughtError) as caught:
            learner.train(make_batch(learner, **batch_args))
    return caught.value.args[0]


def dense_fisher(surrogate):
    """mean_s J^T M J of the network itself: J by one backward pass for each action parameter of each state."""
    batch, spec = surrogate._batch, surrogate._spec
    samples = surrogate._samples(slice(0, len(batch)))
    pi = surrogate._action_parameters(samples)
    rows = [
        torch.autograd.grad(number, surrogate.parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        for number in pi.reshape(-1)
    ]
    jacobian = torch.stack([ng.flatten(row) for row in rows]).view(*pi.shape, -1).double().numpy()
    weights = batch.valids.double().numpy() / float(batch.valids.sum())
    parts = zip(weights, jacobian, pi.detach().double().numpy(), strict=True)
    return sum(w * j.T @ fisher_of(p, spec) @ j for w, j, p in parts)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("space", SPACES)
def test_products_are_those_of_the_networks_dense_fisher_matrix(tmp_path, monkeypatch, space, core):
    learner = make(tmp_path, space, core, num_batches_per_epoch=1, encoder_mlp_layers=[6], rnn_size=4)
    surrogate = surrogate_of(learner, monkeypatch, invalid_share=0.2, done_rate=0.1)
    dense = dense_fisher(surrogate)
    assert np.allclose(dense, dense.T)
    for seed in range(2):
        vector = torch.randn(len(dense), generator=torch.Generator().manual_seed(seed))
        expected = dense @ vector.double().numpy()
        assert np.allclose(surrogate.fisher_product(vector).numpy(), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("core", ["mlp", "lstm"])
def test_gradient_and_products_of_parts_add_up(tmp_path, monkeypatch, core):
    learner = make(tmp_path, "tuple", core, exploration_loss_coeff=0.05)
    surrogate = surrogate_of(learner, monkeypatch, invalid_share=0.3)
    assert len(surrogate._parts) == 1
    monkeypatch.setattr(batches, "_JOINT_VALUES", 0)
    loss = surrogate._loss
    parted = trpo.Surrogate(surrogate._policy, surrogate.parameters, surrogate._batch, 64, surrogate._spec, loss)
    assert len(parted._parts) == 4
    vector = torch.randn(len(surrogate.gradient()))
    assert torch.allclose(parted.gradient(), surrogate.gradient(), atol=1e-6)
    assert torch.allclose(parted.fisher_product(vector), surrogate.fisher_product(vector), atol=1e-5)


def test_the_gradient_is_that_of_the_measured_surrogate(tmp_path, monkeypatch):
    surrogate = surrogate_of(make(tmp_path, "gaussian", exploration_loss_coeff=0.05), monkeypatch)
    start, slope = ng.flatten(surrogate.parameters), surrogate.gradient()
    direction = slope / slope.norm()
    found = []
    for length in (0.01, -0.01):
        ng.assign(surrogate.parameters, start + length * direction)
        found.append(surrogate.measure()[0])
    assert (found[0] - found[1]) / 0.02 == pytest.approx(float(slope.norm()), rel=1e-2)


def test_at_the_centre_nothing_diverges(tmp_path, monkeypatch):
    surrogate = surrogate_of(make(tmp_path, normalize_input=True), monkeypatch)
    loss, mean, largest = surrogate.measure()
    assert math.isfinite(loss)
    assert mean == largest == 0.0


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("space", SPACES)
def test_what_is_published_is_within_the_mean_bound(tmp_path, space, core):
    """Without statistics the row's mean is the step's own; most steps are taken, and not far from the edge."""
    learner = make(tmp_path, space, core, kl_direction="ref_pi", trpo_max_kl=0.02)
    rows = run(learner, 6, invalid_share=0.1)
    for row in rows:
        assert row["kl_mean"] <= 0.02
        assert row["kl_mean"] == pytest.approx(row["method"]["kl_mean"], rel=1e-3, abs=1e-6)
        assert row["kl_max"] == pytest.approx(row["method"]["kl_max"], rel=1e-3, abs=1e-6)
        assert (row["method"]["gain"] > 0) == (row["method"]["accepted"] == 1.0)
        assert row["primary_steps"] == 8
        assert (row["fixup_steps"], row["beta"]) == (0, 0.0)
    assert sum(row["method"]["accepted"] for row in rows) >= 5
    assert max(row["kl_mean"] for row in rows) > 0.005


def test_the_worst_state_is_recorded_and_no_error(tmp_path):
    learner = make(tmp_path, eps_kl=0.001, trpo_max_kl=0.02, audit_every=2)
    rows = run(learner, 4)
    assert max(row["kl_max"] / row["eps_kl"] for row in rows) > 1
    assert all(not row["backtracks"] and not row["rolled_back"] for row in rows)
    assert audit.main([str(learner.folder)]) == 0


@pytest.mark.parametrize("loss", [math.inf, math.nan])
@pytest.mark.parametrize("core", ["mlp", "lstm"])
def test_a_step_that_is_rejected_leaves_the_policy_bit_for_bit(tmp_path, monkeypatch, core, loss):
    learner = make(tmp_path, "tuple", core)
    run(learner, 2)
    before = tensors(learner.candidate.model)
    measure = trpo.Surrogate.measure
    count = []

    def worse(self):
        count.append(1)
        found = measure(self)
        return found if len(count) == 1 else (loss, *found[1:])

    monkeypatch.setattr(trpo.Surrogate, "measure", worse)
    [*_, row] = run(learner, 1, first_seed=2)
    assert len(count) == 1 + 10 + 1
    assert (row["method"]["accepted"], row["method"]["step_scale"]) == (0.0, 0.0)
    assert row["kl_max"] < 1e-6  # of rounding: actors step through an episode, the learner goes through it at once
    published = tensors(learner.gate.published.model)
    moved = {name for name, tensor in published.items() if not torch.equal(tensor, before[name])}
    policy = {id(p) for p in learner.improvement.policy_parameters}
    critic = {name for name, p in learner.candidate.model.named_parameters() if id(p) not in policy}
    assert moved == critic != set()


@pytest.mark.parametrize("share", [True, False])
def test_the_critics_steps_leave_the_policy_alone(tmp_path, monkeypatch, share):
    learner = make(tmp_path, "gaussian", actor_critic_share_weights=share, learning_rate=0.05)
    monkeypatch.setattr(
        trpo.TRPO, "_natural_step", lambda self, progress, surrogate: progress.last_losses.update(policy_loss=0.0, adv_std=1.0)
    )
    rows = run(learner, 3)
    assert all(row["kl_max"] == 0.0 and row["primary_steps"] == 8 for row in rows)


def test_the_critic_learns(tmp_path):
    learner = make(tmp_path, actor_critic_share_weights=False, learning_rate=0.01, num_epochs=4)
    batch = make_batch(learner)
    learner.train(batch)
    first = learner.last_record.explained_variance
    for seed in range(12):
        learner.train(make_batch(learner, seed=seed))
    assert learner.last_record.explained_variance > first + 0.05


def test_the_policy_improves_where_the_reward_says_how(tmp_path):
    """The synthetic reward asks the first action to follow the observation: the reward of what is sampled rises."""
    learner = make(tmp_path, "gaussian", trpo_max_kl=0.05, actor_critic_share_weights=False, gamma=0.01)
    rewards = []
    for seed in range(25):
        batch = make_batch(learner, seed=seed)
        rewards.append(float(batch["rewards"].mean()))
        learner.train(batch)
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15


def test_a_number_that_is_none_undoes_the_update(tmp_path):
    learner = make(tmp_path, max_rollbacks=3)
    run(learner, 1)
    before = tensors(learner.gate.published.model)
    batch = make_batch(learner, seed=5)
    batch["rewards"][0, 0] = math.nan
    learner.train(batch)
    assert learner.last_record.rolled_back
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(learner.gate.published.model).items())
    run(learner, 1, first_seed=6)
    assert not learner.last_record.rolled_back


def test_a_batch_with_one_valid_sample_moves_nothing(tmp_path):
    learner = make(tmp_path)
    batch = make_batch(learner)
    batch["policy_id"].fill_(-1)
    batch["policy_id"][0, 0] = learner.policy_id
    learner.train(batch)
    assert learner.last_record.method["accepted"] == 0.0
    assert learner.last_record.kl_max == 0.0


def test_older_policies_have_collected_the_batch(tmp_path):
    """The row is of what acted; the step's own bound of where it began."""
    learner = make(tmp_path, reference="behaviour", kl_direction="ref_pi")
    snapshots = []
    for seed in range(5):
        snapshots = [*snapshots, take_snapshot(learner)][-3:]
        learner.train(make_batch(learner, seed=seed, snapshots=snapshots))
    record = learner.last_record
    assert record.lag_mean > 0
    assert record.kl_mean > record.method["kl_mean"] > 0


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    one = make(tmp_path / "a", "tuple", "lstm")
    run(one, 2)
    one.save()
    other = make(tmp_path / "a", "tuple", "lstm")
    write_config(other)
    batch = make_batch(one, seed=9)
    copy = make_batch(other, seed=9)
    one.train(batch)
    other.train(copy)
    theirs = tensors(other.gate.published.model)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors(one.gate.published.model).items())


def test_a_larger_bound_is_a_longer_step(tmp_path):
    means = []
    for max_kl in (0.001, 0.01):
        learner = make(tmp_path / str(max_kl), "gaussian", kl_direction="ref_pi", trpo_max_kl=max_kl)
        means.append(np.mean([row["kl_mean"] for row in run(learner, 3)]))
    assert means[1] > 5 * means[0]


def test_the_step_is_the_natural_gradient_of_the_dense_matrix(tmp_path, monkeypatch):
    """Conjugate gradients on the network find what NumPy's solver finds, damping included."""
    learner = make(tmp_path, "gaussian", num_batches_per_epoch=1, encoder_mlp_layers=[6], trpo_cg_iters=100, trpo_damping=0.1)
    surrogate = surrogate_of(learner, monkeypatch)
    dense = dense_fisher(surrogate) + 0.1 * np.eye(sum(p.numel() for p in surrogate.parameters))
    slope = surrogate.gradient()
    solved = np.linalg.solve(dense, -slope.double().numpy())
    expected = math.sqrt(2 * 0.01 / (solved @ dense @ solved)) * solved
    start = ng.flatten(surrogate.parameters)
    progress = SimpleNamespace(method={}, host_reads=0, last_losses={}, bad=torch.tensor(False))
    learner.improvement._natural_step(progress, surrogate)
    found = progress.method
    step = (ng.flatten(surrogate.parameters) - start).numpy() / found["step_scale"]
    assert found["cg_residual"] < 1e-4
    assert found["accepted"] == 1.0
    assert np.allclose(step, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
    batch = surrogate._batch
    pi = batch.parameters(surrogate._policy, batch.obs, 64)
    mean = float(masked_mean(action_kl(surrogate.centre, pi, surrogate._spec), batch.valids))
    assert mean == pytest.approx(found["kl_mean"], rel=1e-5)
    assert 0.3 * 0.01 < mean <= 0.01  # the damping takes its part of the quadratic


def test_conjugate_gradients_take_as_many_steps_as_they_are_asked_for(tmp_path, monkeypatch):
    calls = []
    product = trpo.Surrogate.fisher_product

    def counted(self, vector):
        calls.append(1)
        return product(self, vector)

    monkeypatch.setattr(trpo.Surrogate, "fisher_product", counted)
    residuals = []
    for iterations in (1, 5, 30):
        calls.clear()
        learner = make(tmp_path / str(iterations), trpo_cg_iters=iterations)
        residuals.append(run(learner, 1)[0]["method"]["cg_residual"])
        assert len(calls) <= iterations + 1  # one for the length of the step
    assert residuals[2] < residuals[1] < residuals[0]
