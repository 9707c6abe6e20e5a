"""PPO with an adaptive KL penalty: the rule by hand, the loss by hand, and the rule at work on the learner."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from updates import run, tensors

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape
from sf_fixpo.baselines.ppo_kl import BETA_RANGE, adapted
from sf_fixpo.learning.batch import GAE_KEYS, PRIMARY_KEYS

SPACES = {
    "categorical": gym.spaces.Discrete(4),
    "gaussian": box_actions(2),
    "tuple": gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)]),
}
MANY = {"num_batches_per_epoch": 4, "num_epochs": 3, "learning_rate": 0.005}


def make(tmp_path, space="categorical", **flags):
    return make_learner("PPO_KL", small_shape(action_space=SPACES[space], **{**MANY, **flags}), train_dir=tmp_path)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1.0), (0.01, 1.0), (0.0149, 1.0), (0.0151, 2.0), (9.0, 2.0), (math.nan, 1.0)],
)
def test_the_rule_of_the_paper(kl, factor):
    """Beta / 2 below d_targ / 1.5, 2 beta above 1.5 d_targ."""
    assert adapted(torch.tensor([3.0]), torch.tensor(kl), 0.01).tolist() == [3.0 * factor]


def test_beta_stays_a_number():
    for kl, end in ((0.0, BETA_RANGE[0]), (1.0, BETA_RANGE[1])):
        beta = torch.tensor([1.0])
        for _ in range(100):
            beta = adapted(beta, torch.tensor(kl), 0.01)
        assert beta.item() == pytest.approx(end)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rnn", [False, True])
def test_beta_follows_the_rows(tmp_path, space, rnn):
    learner = make(tmp_path, space, use_rnn=rnn, kl_direction="ref_pi", ppo_kl_target=0.02, ppo_kl_beta_init=0.5)
    rows = run(learner, 8, invalid_share=0.1)
    beta = 0.5
    for row in rows:
        assert row["method"]["beta"] == pytest.approx(beta)
        assert row["kl_mean"] == pytest.approx(row["method"]["kl_mean"], rel=1e-4)
        beta = adapted(torch.tensor([beta]), torch.tensor(row["kl_mean"]), 0.02).item()
        assert row["beta"] == pytest.approx(beta)
        assert (row["primary_steps"], row["fixup_steps"], row["backtracks"]) == (12, 0, 0)


def test_the_penalty_is_on_the_divergence_of_the_paper_whatever_rows_are_measured_by(tmp_path):
    """-mean[ratio A] + V + beta * mean KL[old, new] in NumPy."""
    learner = make(tmp_path, "gaussian", ppo_kl_beta_init=7.0, kl_direction="pi_ref", ppo_kl_target=1e6)
    learner.train(make_batch(learner))
    batch = learner._update[0]
    minibatch = batch.minibatch(slice(0, len(batch)), PRIMARY_KEYS + GAE_KEYS)
    loss, parts = learner.improvement.losses(minibatch)
    new, old = (x.double().numpy() for x in (learner.verifier.parameters(), batch.bound))
    (mean, log_std), (mean_old, log_std_old) = np.split(new, 2, 1), np.split(old, 2, 1)
    ratio = np.exp(2 * (log_std_old - log_std))
    kl = 0.5 * (ratio - 1 - np.log(ratio) + ((mean - mean_old) / np.exp(log_std)) ** 2).sum(1)
    assert learner.multiplier.beta.item() == 3.5, "far below its target"
    assert parts["kl_loss"].item() == pytest.approx(3.5 * kl.mean(), rel=1e-3)
    total = parts["policy_loss"] + parts["value_loss"] + parts["kl_loss"] + parts["exploration_loss"]
    assert loss.item() == pytest.approx(total.item())


def test_the_mean_is_held_near_its_target_and_single_states_are_not(tmp_path):
    learner = make(tmp_path, "gaussian", kl_direction="ref_pi", ppo_kl_target=0.01, learning_rate=0.01, eps_kl=0.02)
    rows = run(learner, 40)[20:]
    assert 0.003 < np.median([row["kl_mean"] for row in rows]) < 0.03
    assert max(row["kl_max"] for row in rows) > 0.02
    assert not any(row["rolled_back"] or row["health"] for row in rows)


def test_beta_is_in_the_checkpoint(tmp_path):
    one = make(tmp_path, "tuple")
    run(one, 3)
    one.save()
    other = make(tmp_path, "tuple")
    assert torch.equal(other.multiplier.beta, one.multiplier.beta)
    assert other.multiplier.beta.item() != 1.0
    for learner in (one, other):
        learner.train(make_batch(learner, seed=9))
    theirs = tensors(other.gate.published.model)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors(one.gate.published.model).items())


def test_a_number_that_is_none_leaves_beta_and_policy(tmp_path):
    learner = make(tmp_path)
    run(learner, 1)
    beta = learner.multiplier.beta.clone()
    before = tensors(learner.gate.published.model)
    batch = make_batch(learner, seed=5)
    batch["rewards"][0, 0] = math.nan
    learner.train(batch)
    assert learner.last_record.rolled_back
    assert learner.last_record.method
    assert torch.equal(learner.multiplier.beta, beta)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(learner.gate.published.model).items())
