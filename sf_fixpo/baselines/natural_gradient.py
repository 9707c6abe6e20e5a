"""The natural gradient step as pure functions (Schulman et al. 2015, "Trust Region Policy Optimization", section 6, appendix C).

Minimise the surrogate L(theta) under mean_s D_KL[pi_theta', pi_theta](s) <= delta: to first order in L and second in the
divergence, whose Hessian at theta' is the Fisher matrix F, the step is

    s = sqrt(2 delta / (x^T F x)) * x,    F x = -g,    g = grad L(theta')

x comes from conjugate gradients, which take products F v and never F itself.

Shapes: P parameters, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """[P], a copy."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def assign(parameters: Iterable[Tensor], flat: Tensor) -> None:
    """Writes `flat` [P] into the parameters where they lie; they stay the memory that they are."""
    start = 0
    for parameter in parameters:
        parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()


def gradient(scalar: Tensor, parameters: Sequence[Tensor], *, again: bool = False) -> Tensor:
    """[P] gradient, 0 where the scalar does not depend on a parameter.

    Args:
        scalar: with gradient.
        parameters: that it may depend on.
        again: whether the result is to be differentiated once more.
    """
    found = torch.autograd.grad(scalar, parameters, create_graph=again, allow_unused=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])


def hessian_product(scalar: Tensor, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """H v by differentiating g^T v (Pearlmutter 1994); of a mean divergence at its own centre this is F v.

    Args:
        scalar: with gradient that can be differentiated twice.
        parameters: theta.
        vector: [P].

    Returns:
        [P].
    """
    return gradient(torch.dot(gradient(scalar, parameters, again=True), vector), parameters)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], right: Tensor, iterations: int, tolerance: float = 1e-10
) -> tuple[Tensor, float, int]:
    """Solves A x = b for a symmetric positive definite A, of which only products are known (Hestenes and Stiefel 1952).

    Args:
        product: v [P] -> A v [P].
        right: b [P].
        iterations: at most; P of them are exact but for rounding.
        tolerance: ends where |b - A x|^2 falls below this times |b|^2.

    Returns:
        (x [P], relative residual |b - A x| / |b| by recursion, products taken).
    """
    x = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    squared = start = float(torch.dot(right, right))
    taken = 0
    while taken < iterations and squared > tolerance * start:
        image = product(direction)
        taken += 1
        curvature = float(torch.dot(direction, image))
        if not curvature > 0.0:  # rounding, or a number that is none: what has been found so far is the answer
            break
        length = squared / curvature
        x = x + length * direction
        residual = residual - length * image
        previous, squared = squared, float(torch.dot(residual, residual))
        direction = residual + (squared / previous) * direction
    return x, math.sqrt(squared / start) if start > 0.0 else 0.0, taken


def full_step(direction: Tensor, image: Tensor, max_kl: float) -> Tensor | None:
    """The step to the edge of the trust region's quadratic model: sqrt(2 delta / (x^T F x)) x.

    Args:
        direction: x [P].
        image: F x [P].
        max_kl: delta, nats.

    Returns:
        [P]; None where the model has no edge: x is 0, or the curvature is not a number > 0.
    """
    curvature = float(torch.dot(direction, image))
    if not (math.isfinite(curvature) and curvature > 0.0):
        return None
    return math.sqrt(2.0 * max_kl / curvature) * direction


@dataclass(frozen=True)
class Search:
    """Where a line search ended.

    Attributes:
        scale: of the full step; 0 where every one was rejected, and the start has been taken up again.
        loss: surrogate there.
        kl: mean divergence there, nats.
        trials: points that were measured.
    """

    scale: float
    loss: float
    kl: float
    trials: int


def line_search(
    measure_at: Callable[[float], tuple[float, float]], start: float, *, max_kl: float, iterations: int, shrink: float
) -> Search:
    """Back from the full step until the surrogate is lower than at the start and the divergence within its bound.

    A point that is rejected is left: where all are, the search ends by moving to 0, which must be the very parameters it began
    with.

    Args:
        measure_at: moves to start + scale * step and returns (surrogate, mean divergence) there.
        start: surrogate at scale 0.
        max_kl: delta, nats.
        iterations: points that are tried.
        shrink: factor from one to the next, in (0, 1).
    """
    for trial in range(iterations):
        scale = shrink**trial
        loss, kl = measure_at(scale)
        if loss < start and kl <= max_kl:  # so written, a number that is none is rejected
            return Search(scale, loss, kl, trial + 1)
    loss, kl = measure_at(0.0)
    return Search(0.0, loss, kl, iterations)
