"""Losses against slow NumPy copies of the equations, hand-derived gradients, and where no gradient may flow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sf_fixpo.algorithm import losses

VALIDS = torch.tensor([True, True, False, True, False])


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def oracle_mean(values, valids):
    total, count = 0.0, 0
    for value, valid in zip(values.tolist(), valids.tolist(), strict=True):
        if valid:
            total, count = total + value, count + 1
    return total / count


def test_policy_loss_is_the_unclipped_surrogate():
    ratio, advantages = draw(0, 5).exp() * 10, draw(1, 5)
    expected = -oracle_mean(ratio * advantages, VALIDS)
    assert losses.policy_loss(ratio, advantages, VALIDS).item() == pytest.approx(expected)


def test_policy_loss_gradient():
    ratio = draw(0, 5).requires_grad_()
    advantages = draw(1, 5).requires_grad_()
    losses.policy_loss(ratio, advantages, VALIDS).backward()
    # d/dr_i of -1/3 sum_valid r_i A_i
    torch.testing.assert_close(ratio.grad, -advantages.detach() * VALIDS / 3)
    assert advantages.grad is None


def test_value_loss_without_clipping():
    values, returns = draw(0, 5), draw(1, 5)
    expected = oracle_mean((values - returns) ** 2, VALIDS)
    assert losses.value_loss(values, returns, VALIDS).item() == pytest.approx(expected)


def test_value_loss_with_clipping():
    values, returns, old = draw(0, 5), draw(1, 5), draw(2, 5)
    per_sample = []
    for v, r, o in zip(values.tolist(), returns.tolist(), old.tolist(), strict=True):
        clipped = o + min(max(v - o, -0.2), 0.2)
        per_sample.append(max((v - r) ** 2, (clipped - r) ** 2))
    expected = oracle_mean(torch.tensor(per_sample), VALIDS)
    assert losses.value_loss(values, returns, VALIDS, old, 0.2).item() == pytest.approx(expected)


def test_value_loss_gradient():
    values = draw(0, 5).requires_grad_()
    returns, old = draw(1, 5).requires_grad_(), draw(2, 5).requires_grad_()
    losses.value_loss(values, returns, VALIDS).backward()
    torch.testing.assert_close(values.grad, 2 * (values - returns).detach() * VALIDS / 3)  # no 1/2 in the loss
    losses.value_loss(values, returns, VALIDS, old, 0.2).backward()
    assert returns.grad is None
    assert old.grad is None


@pytest.mark.parametrize("task_ids", [None, torch.tensor([1, 0, 0, 1, 1])])
def test_kl_penalty(task_ids):
    kl = draw(0, 5).abs().requires_grad_()
    beta = torch.tensor([2.0] if task_ids is None else [2.0, 5.0], dtype=torch.float64, requires_grad=True)
    weight = beta.detach()[torch.zeros(5, dtype=torch.int64) if task_ids is None else task_ids]
    loss = losses.kl_penalty(kl, VALIDS, beta, task_ids)
    assert loss.item() == pytest.approx(oracle_mean((weight * kl).detach(), VALIDS))
    loss.backward()
    torch.testing.assert_close(kl.grad, weight * VALIDS / 3)
    assert beta.grad is None  # the loss that scales does not adjust


def test_kl_penalty_without_beta_is_the_mean():
    kl = draw(0, 5).abs()
    assert losses.kl_penalty(kl, VALIDS).item() == pytest.approx(oracle_mean(kl, VALIDS))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=4), st.floats(1e-3, 2), st.floats(1, 10))
@settings(max_examples=50)
def test_multiplier_loss(kls, eps_kl, c_beta):
    kl = torch.tensor(kls, dtype=torch.float64, requires_grad=True)
    beta = torch.full_like(kl, 1.5).detach().requires_grad_()
    loss = losses.multiplier_loss(beta, kl, eps_kl, c_beta)
    for i, value in enumerate(kls):
        assert loss[i].item() == pytest.approx(1.5 * (eps_kl - c_beta * value))
        # minimised over beta: it rises exactly where the divergence is above eps_kl / c_beta
        assert (loss[i].item() < 0) == (c_beta * value > eps_kl)
    loss.sum().backward()
    torch.testing.assert_close(beta.grad, eps_kl - c_beta * kl.detach())
    assert kl.grad is None


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_invalid_samples_reach_neither_value_nor_gradient(poison):
    ratio, advantages = draw(0, 5), draw(1, 5)
    clean = losses.policy_loss(ratio, advantages, VALIDS)
    bad = torch.where(VALIDS, ratio, poison).requires_grad_()
    loss = losses.policy_loss(bad, advantages, VALIDS)
    loss.backward()
    assert loss.item() == clean.item()
    assert torch.equal(bad.grad[~VALIDS], torch.zeros(2, dtype=torch.float64))
    assert bad.grad.isfinite().all()


def test_no_valid_sample_gives_zero():
    assert losses.masked_mean(draw(0, 5), torch.zeros(5, dtype=torch.bool)).item() == 0.0


def test_the_mean_of_one_valid_sample_is_that_sample():
    x, one = torch.tensor([7.0, 3.0]), torch.tensor([False, True])
    assert losses.masked_mean(x, one) == 3.0
    assert losses.masked_mean(x, torch.zeros(2, dtype=torch.bool)) == 0.0


def test_normalised_advantages_have_mean_0_and_deviation_1_over_the_valid_samples():
    x = torch.tensor([1.0, 4.0, -2.0, 1e9])
    valids = torch.tensor([True, True, True, False])
    found, std = losses.normalized(x, valids)
    expected = np.array([1.0, 4.0, -2.0])
    assert std.item() == pytest.approx(expected.std(ddof=1))
    np.testing.assert_allclose(found[:3], (expected - expected.mean()) / expected.std(ddof=1), rtol=1e-6)


def test_explained_variance_by_hand():
    targets = torch.tensor([1.0, 2.0, 3.0, float("nan")])
    valids = torch.tensor([True, True, True, False])
    said = {1.0: targets, 0.0: torch.full((4,), 7.0), -3.0: -targets, 0.75: 0.5 * targets + 40.0}
    for value, predictions in said.items():
        assert losses.explained_variance(predictions, targets, valids).item() == pytest.approx(value, abs=1e-6)
    assert losses.explained_variance(targets, torch.ones(4), valids).item() == 0.0, "nothing to explain"


def test_advantages_that_are_all_alike_say_nothing():
    found, std = losses.normalized(torch.full((4,), 0.1), torch.ones(4, dtype=torch.bool))
    assert std < 1e-6
    assert found.isfinite().all()
    assert found.abs().max() < 1.0


def test_values_are_clipped_to_the_old_ones_where_no_width_is_given():
    values, returns, old = torch.tensor([2.0]), torch.tensor([5.0]), torch.tensor([1.0])
    assert losses.value_loss(values, returns, torch.tensor([True]), old) == 16.0, "the larger error: of the old value"
    assert losses.value_loss(values, returns, torch.tensor([True])) == 9.0


def oracle_vtrace(ratio, values, rewards, dones, gamma, rho_max, c_max):
    """Equation 1 of Espeholt et al. as it is written: a sum over the steps that follow, each weighed by the ratios before it."""
    steps = len(values)
    behind = [*values[1:], (values[-1] - rewards[-1]) / gamma]
    discount = [gamma * (1 - done) for done in dones]
    delta = [min(rho_max, ratio[t]) * (rewards[t] + discount[t] * behind[t] - values[t]) for t in range(steps)]
    targets = []
    for s in range(steps):
        total, weight = values[s], 1.0
        for t in range(s, steps):
            total += weight * delta[t]
            weight *= discount[t] * min(c_max, ratio[t])
        targets.append(total)
    after = [*targets[1:], behind[-1]]
    return targets, [min(rho_max, ratio[t]) * (rewards[t] + discount[t] * after[t] - values[t]) for t in range(steps)]


@pytest.mark.parametrize(("rho_max", "c_max"), [(1.0, 1.0), (2.0, 0.7)])
def test_vtrace_is_the_equation(rho_max, c_max):
    rng = np.random.default_rng(3)
    shape = (5, 7)
    ratio, values, rewards = np.exp(rng.normal(size=shape)), rng.normal(size=shape), rng.normal(size=shape)
    dones = (rng.random(shape) < 0.3).astype(float)
    targets, advantages = losses.vtrace(*(torch.from_numpy(x) for x in (ratio, values, rewards, dones)), 0.9, rho_max, c_max)
    for e in range(shape[0]):
        expected = oracle_vtrace(ratio[e], values[e], rewards[e], dones[e], 0.9, rho_max, c_max)
        np.testing.assert_allclose(targets[e], expected[0])
        np.testing.assert_allclose(advantages[e], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_mask_is_a_mask_of_all(dtype):
    everyone = torch.ones(5, dtype=torch.bool)
    x, y, old = (draw(seed, 5).to(dtype) for seed in range(3))
    beta, ids = torch.tensor([0.5, 2.0], dtype=dtype), torch.tensor([0, 1, 1, 0, 1])
    functions = {
        "mean": lambda x, valids: losses.masked_mean(x, valids),
        "advantages": lambda x, valids: losses.normalized(x, valids)[0],
        "spread": lambda x, valids: losses.normalized(x, valids)[1],
        "of several learners": lambda x, valids: losses.normalized(x, valids, torch.clone)[1],
        "policy": lambda x, valids: losses.policy_loss(x, y, valids),
        "value": lambda x, valids: losses.value_loss(x, y, valids, old, 0.2),
        "penalty": lambda x, valids: losses.kl_penalty(x, valids, beta, ids),
    }
    for name, function in functions.items():
        results = []
        for valids in (everyone, None):
            leaf = x.clone().requires_grad_()
            value = function(leaf, valids)
            value.sum().backward()
            results.append((value.detach(), leaf.grad))
        torch.testing.assert_close(results[0], results[1], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("kls", "valids", "outside"),
    [
        ([0.1, 0.7, 0.5, 0.2], None, [False, True, True, False]),
        ([0.1, 0.7, 0.5, 0.2], [True, False, True, True], [False, False, True, False]),
        ([0.1, 0.3, 0.2], None, [False, True, False]),  # rounding shows none: the furthest out
        ([0.1, 0.3, 0.2], [True, False, True], [False, False, True]),
    ],
)
def test_states_outside(kls, valids, outside):
    mask = losses.states_outside(
        torch.tensor(kls, requires_grad=True), None if valids is None else torch.tensor(valids), limit=0.5
    )
    assert mask.tolist() == outside
