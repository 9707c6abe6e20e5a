"""The KL projection against oracles: its formulas in NumPy, scipy's optimisers on the primal and the dual, finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize, minimize_scalar
from updates import run

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape
from sf_fixpo.algorithm.trust_region import action_kl
from sf_fixpo.baselines import projection
from sf_fixpo.learning.batch import GAE_KEYS, PRIMARY_KEYS

MEAN_BOUND, COV_BOUND = 0.03, 0.001
GRID = [(size, spread, seed) for size in (1, 3) for spread in (0.01, 0.3, 2.0) for seed in range(3)]


def gaussians(size, spread, seed, states=4, dtype=torch.float64):
    """(parameters, old) [states, 2 size], `spread` apart."""
    generator = torch.Generator().manual_seed(seed)
    old = 0.5 * torch.randn(states, 2 * size, dtype=dtype, generator=generator)
    return old + spread * torch.randn(states, 2 * size, dtype=dtype, generator=generator), old


def covariance_part(variance, old):
    return 0.5 * (variance / old - 1 - np.log(variance / old)).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("size", "spread", "seed"), GRID)
def test_every_projected_gaussian_is_within_both_bounds(size, spread, seed, dtype):
    parameters, old = gaussians(size, spread, seed, states=500, dtype=dtype)
    projected = projection.project(parameters, old, MEAN_BOUND, COV_BOUND)
    (mean, std), (mean_old, std_old) = projection.split(projected), projection.split(old)
    slack = 1 + (1e-9 if dtype == torch.float64 else 1e-3)
    assert projection.mean_part(mean, mean_old, std_old).max() <= MEAN_BOUND * slack
    # float32: a variance's ratio is rounded to 1e-7, and the part of it that is bounded is its distance from 1, squared
    assert projection.covariance_part(std, std_old).max() <= COV_BOUND * slack + 1e-6 * (dtype == torch.float32)
    both = action_kl(projected, old, [("gaussian", size)])
    assert both.max() <= (MEAN_BOUND + COV_BOUND) * slack + 1e-6


@pytest.mark.parametrize(("size", "spread", "seed"), GRID)
def test_what_is_inside_stays_and_what_is_outside_ends_on_the_edge(size, spread, seed):
    parameters, old = gaussians(size, spread, seed, states=300)
    projected = projection.project(parameters, old, MEAN_BOUND, COV_BOUND)
    before, after, centre = (projection.split(x) for x in (parameters, projected, old))
    for k, (part, bound) in enumerate(((projection.mean_part, MEAN_BOUND), (projection.covariance_part, COV_BOUND))):
        arguments = (centre[0], centre[1]) if k == 0 else (centre[1],)
        was, now = part(before[k], *arguments), part(after[k], *arguments)
        inside = was <= bound
        assert torch.equal(after[k][inside], before[k][inside]) or torch.allclose(after[k][inside], before[k][inside], rtol=1e-14)
        assert torch.allclose(now[~inside], torch.full_like(now[~inside], bound), rtol=1e-8)


def test_the_centre_is_projected_to_itself():
    _, old = gaussians(3, 1.0, 0)
    assert torch.allclose(projection.project(old, old, MEAN_BOUND, COV_BOUND), old, atol=1e-15)


def test_no_gradient_reaches_the_centre():
    parameters, old = gaussians(3, 1.0, 0)
    old.requires_grad_()
    projected = projection.project(parameters.requires_grad_(), old, MEAN_BOUND, COV_BOUND)
    found = torch.autograd.grad(projected.sum(), [parameters, old], allow_unused=True)
    assert found[0].isfinite().all()
    assert found[1] is None


@pytest.mark.parametrize(("size", "spread", "seed"), GRID)
def test_the_mean_is_on_the_line_by_the_papers_formula(size, spread, seed):
    """mu~ = (mu + w mu_o) / (1 + w), w = sqrt(m / eps) - 1; and no point within the bound is closer (scipy)."""
    parameters, old = gaussians(size, spread, seed)
    (mean, _), (mean_old, std_old) = projection.split(parameters), projection.split(old)
    found = projection.project_mean(mean, mean_old, std_old, MEAN_BOUND).numpy()
    for mu, centre, s, projected in zip(mean.numpy(), mean_old.numpy(), std_old.numpy(), found, strict=True):
        part = 0.5 * (((mu - centre) / s) ** 2).sum()
        w = max(0.0, np.sqrt(part / MEAN_BOUND) - 1)
        assert np.allclose(projected, (mu + w * centre) / (1 + w), rtol=1e-12)
        best = minimize(
            lambda x, mu=mu, s=s: 0.5 * (((x - mu) / s) ** 2).sum(),
            centre,
            constraints={"type": "ineq", "fun": lambda x, c=centre, s=s: 1 - 0.5 * (((x - c) / s) ** 2).sum() / MEAN_BOUND},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert np.allclose(projected, best.x, atol=2e-4 * s.max())


def dual(eta, net, old):
    """g(eta) = min over s~^2 of the Lagrangian: the minimum is at the precision (1 / s^2 + eta / s_o^2) / (1 + eta)."""
    variance = (1 + eta) / (1 / net + eta / old)
    return covariance_part(variance, net) + eta * (covariance_part(variance, old) - COV_BOUND)


@pytest.mark.parametrize(("size", "spread", "seed"), GRID)
def test_the_covariance_is_that_of_the_lagrangian_dual(size, spread, seed):
    parameters, old = gaussians(size, spread, seed)
    (_, std), (_, std_old) = projection.split(parameters), projection.split(old)
    found = projection.project_std(std, std_old, COV_BOUND).numpy() ** 2
    for net, centre, projected in zip(std.numpy() ** 2, std_old.numpy() ** 2, found, strict=True):
        if covariance_part(net, centre) <= COV_BOUND:
            assert np.allclose(projected, net)
            continue

        def slope(eta, net=net, centre=centre):
            return covariance_part((1 + eta) / (1 / net + eta / centre), centre) - COV_BOUND

        eta = brentq(slope, 0, 1e9, xtol=1e-12, rtol=1e-14, maxiter=1000)
        assert np.allclose(projected, (1 + eta) / (1 / net + eta / centre), rtol=1e-7)
        highest = minimize_scalar(
            lambda log_eta, net=net, centre=centre: -dual(np.exp(log_eta), net, centre),
            bounds=(-20, 20),
            method="bounded",
            options={"xatol": 1e-10},
        )
        # no gap: the highest point of the dual is the lowest of the primal problem
        assert covariance_part(projected, net) == pytest.approx(-highest.fun, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_no_covariance_within_the_bound_is_closer(spread):
    parameters, old = gaussians(2, spread, 5, states=3)
    (_, std), (_, std_old) = projection.split(parameters), projection.split(old)
    found = projection.project_std(std, std_old, COV_BOUND).numpy() ** 2
    rng = np.random.default_rng(0)
    for net, centre, projected in zip(std.numpy() ** 2, std_old.numpy() ** 2, found, strict=True):
        others = centre * np.exp(0.1 * rng.standard_normal((20_000, 2)))
        inside = [x for x in others if covariance_part(x, centre) <= COV_BOUND]
        assert len(inside) > 100
        assert min(covariance_part(x, net) for x in inside) >= covariance_part(projected, net)


@pytest.mark.parametrize("spread", [0.01, 0.5, 2.0])
def test_gradients_are_those_of_finite_differences(spread):
    """Through both projections, the implicit dependence of eta on the network's output too."""
    parameters, old = gaussians(3, spread, 7, states=5)
    assert torch.autograd.gradcheck(
        lambda x: projection.project(x, old, MEAN_BOUND, COV_BOUND), parameters.clone().requires_grad_(), atol=1e-6, rtol=1e-4
    )


def test_the_distance_is_what_the_projection_minimises_and_pulls_the_network_alone():
    parameters, old = gaussians(2, 1.0, 3)
    projected = projection.project(parameters, old, MEAN_BOUND, COV_BOUND).requires_grad_()
    leaf = parameters.clone().requires_grad_()
    apart = projection.distance(leaf, projected, old)
    assert (apart > 0).all()
    apart.sum().backward()
    assert projected.grad is None
    closer = projection.distance(leaf.detach() - 1e-3 * leaf.grad, projected, old)
    assert (closer < apart.detach()).all()
    assert torch.equal(projection.distance(projected, projected, old), torch.zeros(4, dtype=torch.float64))


def test_numbers_that_are_none_stay_so_and_harm_no_other_state():
    parameters, old = gaussians(2, 1.0, 3)
    whole = projection.project(parameters, old, MEAN_BOUND, COV_BOUND)
    parameters[1] = torch.nan
    projected = projection.project(parameters, old, MEAN_BOUND, COV_BOUND)
    assert projected[1].isnan().all()
    assert torch.equal(projected[[0, 2, 3]], whole[[0, 2, 3]])


# -- on the learner -----------------------------------------------------------------------------------------------------------


def make(tmp_path, **flags):
    settings = {"num_batches_per_epoch": 4, "num_epochs": 3, "learning_rate": 0.005, **flags}
    return make_learner("KL_PROJECTION", small_shape(action_space=box_actions(2), **settings), train_dir=tmp_path)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rnn", [False, True])
def test_the_projected_policy_keeps_its_bounds_and_rows_say_what_was_deployed(tmp_path, adaptive, rnn):
    learner = make(tmp_path, adaptive_stddev=adaptive, use_rnn=rnn, actor_critic_share_weights=False, eps_kl=0.031)
    rows = run(learner, 8, invalid_share=0.1)
    for row in rows:
        said = row["method"]
        assert said["kl_max_projected"] <= 0.0311 * 1.05  # by KL[pi, ref], whose parts are the bounded ones
        assert row["kl_max"] <= said["mean_part_max"] + said["cov_part_max"] + 1e-5
        assert row["kl_max"] >= max(said["mean_part_max"], said["cov_part_max"]) - 1e-5
        assert row["beta"] == row["fixup_steps"] == 0
    assert max(row["kl_max"] / row["eps_kl"] for row in rows) > 1, "the network itself is not bounded"
    assert any(0 < row["method"]["projected_fraction"] < 1 for row in rows)


def test_the_regression_pulls_what_is_deployed_into_the_bounds(tmp_path):
    worst = []
    for coefficient in (0.0, 100.0):
        learner = make(tmp_path / str(coefficient), adaptive_stddev=False, proj_trust_region_coeff=coefficient)
        worst.append(np.mean([row["kl_mean"] for row in run(learner, 6)]))
    assert worst[1] < 0.7 * worst[0]


def test_the_losses_take_the_projected_policy(tmp_path):
    learner = make(tmp_path)
    learner.train(make_batch(learner))
    batch = learner._update[0]
    minibatch = batch.minibatch(slice(0, len(batch)), PRIMARY_KEYS + GAE_KEYS)
    _, parts = learner.improvement.losses(minibatch)
    pi = learner.verifier.parameters()
    mean, std = projection.split(projection.project(pi, batch.bound, MEAN_BOUND, COV_BOUND))
    normal = torch.distributions.Normal(mean, std)
    ratio = (normal.log_prob(minibatch.actions).sum(1) - minibatch.log_prob_actions).exp().clamp(0.05, 20)
    assert torch.allclose(parts["ratio"], ratio, rtol=1e-4)
    assert not torch.allclose(mean, pi.chunk(2, 1)[0]), "that is another one than the network's"
    apart = projection.distance(pi, torch.cat([mean, std.log()], 1), batch.bound).mean()
    assert parts["kl_loss"].item() == pytest.approx(8.0 * apart.item(), rel=1e-3)
