"""The natural gradient against closed forms: a quadratic, a Gaussian in one dimension, dense Fisher matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fisher import fisher_of

from sf_fixpo.algorithm.trust_region import action_kl
from sf_fixpo.baselines import natural_gradient as ng

DELTA = 0.01


def positive_definite(size, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    return root @ root.T + 0.1 * np.eye(size)


# -- conjugate gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_conjugate_gradients_solve_exactly_in_as_many_steps_as_dimensions(size):
    matrix, right = positive_definite(size), np.random.default_rng(1).standard_normal(size)
    product = torch.from_numpy(matrix).mv
    x, residual, products = ng.conjugate_gradient(product, torch.from_numpy(right), 3 * size, tolerance=1e-24)
    assert np.allclose(x.numpy(), np.linalg.solve(matrix, right), rtol=1e-7)
    assert residual < 1e-9
    assert products <= 2 * size


def test_the_residual_that_is_reported_is_that_of_the_answer_and_falls():
    matrix, right = torch.from_numpy(positive_definite(30)), torch.linspace(-1, 1, 30, dtype=torch.float64)
    residuals = []
    for iterations in (1, 5, 20):
        x, residual, products = ng.conjugate_gradient(matrix.mv, right, iterations)
        assert residual == pytest.approx(float((right - matrix @ x).norm() / right.norm()), rel=1e-6)
        assert products == iterations
        residuals.append(residual)
    assert residuals[2] < residuals[0]


def test_conjugate_gradients_end_early_where_there_is_nothing_to_solve():
    x, residual, products = ng.conjugate_gradient(lambda v: v, torch.zeros(3), 10)
    assert (x == 0.0).all()
    assert (residual, products) == (0.0, 0)


@pytest.mark.parametrize("image", [-1.0, 0.0, math.nan])
def test_conjugate_gradients_stop_where_the_matrix_is_not_positive(image):
    x, _, products = ng.conjugate_gradient(lambda v: image * v, torch.ones(3), 10)
    assert (x == 0.0).all()
    assert products == 1


# -- the step on a quadratic --------------------------------------------------------------------------------------------------


def test_the_step_is_the_lowest_point_of_the_trust_region_of_a_quadratic():
    """Minimise g^T s under s^T F s / 2 <= delta: s = -sqrt(2 delta / g^T F^-1 g) F^-1 g."""
    fisher, slope = positive_definite(6), np.random.default_rng(2).standard_normal(6)
    product = torch.from_numpy(fisher).mv
    x, _, _ = ng.conjugate_gradient(product, -torch.from_numpy(slope), 50, tolerance=1e-24)
    step = ng.full_step(x, product(x), DELTA).numpy()
    solved = np.linalg.solve(fisher, slope)
    assert np.allclose(step, -math.sqrt(2 * DELTA / (slope @ solved)) * solved, rtol=1e-6)
    assert 0.5 * step @ fisher @ step == pytest.approx(DELTA, rel=1e-9)
    others = np.random.default_rng(3).standard_normal((2000, 6))
    others *= np.sqrt(2 * DELTA / np.einsum("ni,ij,nj->n", others, fisher, others))[:, None]
    assert (others @ slope).min() > slope @ step


@pytest.mark.parametrize("direction", [0.0, math.nan, math.inf])
def test_no_step_where_the_quadratic_has_no_edge(direction):
    x = torch.full((3,), direction)
    assert ng.full_step(x, x, DELTA) is None
    assert ng.full_step(torch.ones(3), -torch.ones(3), DELTA) is None


# -- a Gaussian in one dimension ----------------------------------------------------------------------------------------------


def gaussian_kl(mean, log_std, centre):
    return action_kl(centre, torch.stack([mean, log_std]).reshape(1, 2), [("gaussian", 1)]).mean()


@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_the_fisher_matrix_of_a_gaussian(std):
    """By (mean, log std) it is diag(1 / std^2, 2)."""
    mean, log_std = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.7, math.log(std)))
    centre = torch.stack([mean, log_std]).reshape(1, 2).detach()
    for vector, expected in (((1.0, 0.0), (1 / std**2, 0.0)), ((0.0, 1.0), (0.0, 2.0)), ((3.0, -2.0), (3 / std**2, -4.0))):
        vector = torch.tensor(vector, dtype=torch.float64)
        found = ng.hessian_product(gaussian_kl(mean, log_std, centre), [mean, log_std], vector)
        assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_the_natural_step_of_a_gaussian_is_sqrt_of_two_delta_standard_deviations(std):
    """The reward is the action: the mean moves by sqrt(2 delta) std, whatever std is, and std stays."""
    mean, log_std = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.7, math.log(std)))
    centre = torch.stack([mean, log_std]).reshape(1, 2).detach()

    def product(vector):
        return ng.hessian_product(gaussian_kl(mean, log_std, centre), [mean, log_std], vector)

    slope = ng.gradient(-mean, [mean, log_std])
    assert slope.tolist() == [-1.0, 0.0]
    x, _, _ = ng.conjugate_gradient(product, -slope, 10)
    step = ng.full_step(x, product(x), DELTA)
    assert step.tolist() == pytest.approx([math.sqrt(2 * DELTA) * std, 0.0])
    ng.assign([mean, log_std], ng.flatten([mean, log_std]) + step)
    assert gaussian_kl(mean, log_std, centre).item() == pytest.approx(DELTA)  # of the mean alone, KL is quadratic


# -- products with dense Fisher matrices --------------------------------------------------------------------------------------

SPECS = {
    "categorical": [("categorical", 3)],
    "gaussian": [("gaussian", 2)],
    "tuple": [("categorical", 2), ("gaussian", 1), ("categorical", 3)],
}


@pytest.mark.parametrize("name", SPECS)
def test_products_are_those_of_the_dense_fisher_matrix(name):
    """F = mean_s J^T M J with the network's Jacobian J by finite differences, in NumPy."""
    spec = SPECS[name]
    width = sum(size * (2 if kind == "gaussian" else 1) for kind, size in spec)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    weights = [0.5 * torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((4, 6), (6,), (6, width))]
    weights = [weight.requires_grad_() for weight in weights]

    def network(a, b, c):
        return torch.tanh(obs @ a + b) @ c

    def outputs(flat):
        parts = [part.view_as(w) for part, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
        return network(*parts).detach().numpy()

    flat, h = ng.flatten(weights), 1e-6
    steps = h * torch.eye(len(flat), dtype=torch.float64)
    jacobian = np.stack([(outputs(flat + e) - outputs(flat - e)) / (2 * h) for e in steps], axis=-1)  # [5, A, P]
    dense = np.mean([j.T @ fisher_of(pi, spec) @ j for j, pi in zip(jacobian, outputs(flat), strict=True)], axis=0)
    for seed in range(3):
        vector = torch.randn(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        pi = network(*weights)
        found = ng.hessian_product(action_kl(pi.detach(), pi, spec).mean(), weights, vector)
        assert np.allclose(found.numpy(), dense @ vector.numpy(), rtol=1e-5, atol=1e-8)


# -- the line search ----------------------------------------------------------------------------------------------------------


def search(points, start=1.0, iterations=4):
    """`points`: (loss, kl) by trial; the scales that were measured are returned too."""
    scales = []

    def measure_at(scale):
        scales.append(scale)
        return (start, 0.0) if scale == 0.0 else points[len(scales) - 1]

    return ng.line_search(measure_at, start, max_kl=DELTA, iterations=iterations, shrink=0.5), scales


def test_the_first_point_that_is_lower_and_inside_is_taken():
    found, scales = search([(0.5, 2 * DELTA), (1.5, 0.5 * DELTA), (0.9, DELTA), (0.0, 0.0)])
    assert found == ng.Search(scale=0.25, loss=0.9, kl=DELTA, trials=3)
    assert scales == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("point", [(1.0, 0.0), (2.0, 0.0), (0.0, 1.001 * DELTA), (math.nan, 0.0), (0.0, math.nan)])
def test_where_all_are_rejected_the_search_ends_at_the_start(point):
    found, scales = search([point] * 4)
    assert found == ng.Search(scale=0.0, loss=1.0, kl=0.0, trials=4)
    assert scales == [1.0, 0.5, 0.25, 0.125, 0.0]


def test_assign_writes_into_the_memory_that_is_there():
    memory = torch.zeros(6)
    one, other = memory[:2], memory[2:].view(2, 2)
    flat = torch.arange(6.0)
    ng.assign([one, other], flat)
    assert memory.tolist() == flat.tolist() == ng.flatten([one, other]).tolist()
    assert ng.flatten([one]).data_ptr() != one.data_ptr()
