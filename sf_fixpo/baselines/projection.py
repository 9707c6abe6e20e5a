"""The KL projection of a Gaussian onto a trust region, state by state (Otto et al. 2021, "Differentiable Trust Region Layers").

Written from the equations for a diagonal covariance. With pi = N(mu, s^2) of the network, pi_old = N(mu_o, s_o^2), and the two
parts of D_KL[., pi_old]

    mean part        m(mu~) = 1/2 sum ((mu~ - mu_o) / s_o)^2
    covariance part  c(s~)  = 1/2 sum (s~^2 / s_o^2 - 1 - log(s~^2 / s_o^2))

the projected policy is the closest one with m <= eps_mu and c <= eps_sigma, by the distances

    1/2 sum ((mu~ - mu) / s_o)^2      and      1/2 sum (s~^2 / s^2 - 1 - log(s~^2 / s^2)):

    mu~     = (mu + w mu_o) / (1 + w),               1 + w = max(1, sqrt(m(mu) / eps_mu))
    1 / s~^2 = (1 / s^2 + eta / s_o^2) / (1 + eta),   eta >= 0 the maximum of the Lagrangian dual, whose slope is c - eps_sigma

c falls as eta rises, so that eta is where c = eps_sigma, or 0 where c is below it already.

Shapes: B states, D action dimensions. Divergences are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sf_fixpo.algorithm.trust_region import STDDEV_MAX, STDDEV_MIN

_BISECTIONS = 50  # of an interval of length 1: more than a float32 has digits


def mean_part(mean: Tensor, mean_old: Tensor, std_old: Tensor) -> Tensor:
    """M [B] of means [B, D]."""
    return 0.5 * ((mean - mean_old) / std_old).square().sum(-1)


def covariance_part(std: Tensor, std_old: Tensor) -> Tensor:
    """C [B] of standard deviations [B, D]."""
    ratio = (std / std_old).square()
    return 0.5 * (ratio - 1.0 - ratio.log()).sum(-1)


def project_mean(mean: Tensor, mean_old: Tensor, std_old: Tensor, bound: float) -> Tensor:
    """mu~ [B, D].

    Args:
        mean: [B, D] of the network; receives gradient.
        mean_old: [B, D].
        std_old: [B, D].
        bound: eps_mu, nats.
    """
    excess = (mean_part(mean, mean_old, std_old) / bound).clamp_min(1.0)  # clamped first: the root has no slope at 0
    return mean_old + (mean - mean_old) / excess.sqrt().unsqueeze(-1)


def _dual_slope(t: Tensor, gap: Tensor, bound: float) -> Tensor:
    """C - eps_sigma [B] at t = 1 / (1 + eta), where s_o^2 / s~^2 = 1 + t (s_o^2 / s^2 - 1); rises with t.

    Args:
        t: [B] in [0, 1].
        gap: [B, D] s_o^2 / s^2 - 1.
        bound: eps_sigma.
    """
    precision = 1.0 + t.unsqueeze(-1) * gap
    return 0.5 * (1.0 / precision - 1.0 + precision.log()).sum(-1) - bound


def project_std(std: Tensor, std_old: Tensor, bound: float) -> Tensor:
    """s~ [B, D], by bisection on the slope of the dual; the gradient is that of the implicit function eta(s).

    Args:
        std: [B, D] of the network; receives gradient.
        std_old: [B, D].
        bound: eps_sigma, nats.
    """
    gap = ((std_old / std).square() - 1.0).double()
    with torch.no_grad():
        low, high = torch.zeros_like(gap[:, 0]), torch.ones_like(gap[:, 0])
        outside = _dual_slope(high, gap, bound) > 0.0
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            above = _dual_slope(middle, gap, bound) > 0.0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        precision = 1.0 + low.unsqueeze(-1) * gap
        # d slope / dt; where nothing is projected, or there is nothing to move, any number but 0 does
        steepness = 0.5 * (gap / precision - gap / precision.square()).sum(-1)
        steepness = torch.where(outside & (steepness > 0.0), steepness, 1.0)
    # one step of Newton from the root: leaves it where it is, and carries dt = -d slope / steepness
    t = low - _dual_slope(low, gap, bound) / steepness
    t = torch.where(outside, t, 1.0)
    return torch.where(outside.unsqueeze(-1), std_old * (1.0 + t.unsqueeze(-1) * gap).rsqrt().to(std.dtype), std)


def split(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """(means, standard deviations) [B, D] of action parameters [B, 2 D], clamped as sample-factory's Gaussian is."""
    mean, log_std = parameters.chunk(2, dim=-1)
    return mean, log_std.exp().clamp(STDDEV_MIN, STDDEV_MAX)


def project(parameters: Tensor, old: Tensor, mean_bound: float, cov_bound: float) -> Tensor:
    """The projected policy's action parameters [B, 2 D]: means, log standard deviations.

    Args:
        parameters: [B, 2 D] of the network; receive gradient.
        old: [B, 2 D] of the policy at the centre.
        mean_bound: eps_mu, nats.
        cov_bound: eps_sigma, nats.
    """
    (mean, std), (mean_old, std_old) = split(parameters), split(old.detach())
    projected_mean = project_mean(mean, mean_old, std_old, mean_bound)
    return torch.cat([projected_mean, project_std(std, std_old, cov_bound).log()], dim=-1)


def distance(parameters: Tensor, projected: Tensor, old: Tensor) -> Tensor:
    """[B] what the projection minimises, from the network's policy to the projected one: 0 where nothing was projected.

    Args:
        parameters: [B, 2 D] of the network; receive gradient.
        projected: [B, 2 D]; a target, no gradient.
        old: [B, 2 D].
    """
    (mean, std), (target, target_std) = split(parameters), split(projected.detach())
    return mean_part(target, mean, split(old.detach())[1]) + covariance_part(target_std, std)
