"""Losses of FixPO as pure functions of tensors (Zentner et al. 2023, section 3.1).

Shapes: B samples of a minibatch, T tasks. `valids` [B] bool marks the samples that count; the others may hold anything, numbers
that are not finite included, and receive no gradient. Where it is None all of them count: in a small network masks that hide
nothing cost as much as a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_UNIFORM_KL_MAX = 30.0  # nats: sample-factory's, of the mean divergence from the uniform policy


def masked_mean(x: Tensor, valids: Tensor | None) -> Tensor:
    """Mean of `x` [B] over the valid samples; 0 where there is none.

    Written without `masked_select`, whose result's shape is data: on an accelerator the host would have to wait for it.
    """
    if valids is None:
        return x.mean()
    return torch.where(valids, x, x.new_zeros(())).sum() / valids.sum().clamp_min(1)


def normalized(x: Tensor, valids: Tensor | None, total: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Advantages with mean 0 and standard deviation 1 over the valid samples, as the authors' code and sample-factory have it.

    Args:
        x: [B], no gradient.
        valids: [B] bool, two at least.
        total: adds up [3] numbers of several learners, over all of whose samples it is then; None for one alone.

    Returns:
        ([B], the unbiased standard deviation it had).
    """
    if valids is None:
        if total is None:
            std, mean = torch.std_mean(x)
            return (x - mean) / std.clamp_min(1e-7), std
        valids = torch.ones_like(x, dtype=torch.bool)
    x = torch.where(valids, x, 0.0)
    if total is not None:
        exact = x.double()
        count, first, second = total(torch.stack([valids.sum().double(), exact.sum(), exact.square().sum()]))
        std = ((second - first * first / count) / (count - 1)).clamp_min(0.0).sqrt().to(x.dtype)
        return torch.where(valids, x - (first / count).to(x.dtype), 0.0) / std.clamp_min(1e-7), std
    count = valids.sum()
    mean = x.sum() / count
    deviation = torch.where(valids, x - mean, 0.0)
    std = (deviation.square().sum() / (count - 1)).sqrt()
    return deviation / std.clamp_min(1e-7), std


def explained_variance(predictions: Tensor, targets: Tensor, valids: Tensor) -> Tensor:
    """1 - Var(targets - predictions) / Var(targets): 1 for a critic that knows, 0 for one that says a constant, less for worse.

    Args:
        predictions: [B] values of the critic.
        targets: [B].
        valids: [B] bool.

    Returns:
        Scalar; 0 where the targets do not vary.
    """

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, valids)).square(), valids)

    total = variance(targets)
    return torch.where(total > 0, 1 - variance(targets - predictions) / total, 0.0)


def vtrace(
    ratio: Tensor, values: Tensor, rewards: Tensor, dones: Tensor, gamma: float, rho_max: float, c_max: float
) -> tuple[Tensor, Tensor]:
    """V-trace (Espeholt et al. 2018, equation 1) over E trajectories of T steps.

    The value behind the last step is not in the batch: as in sample-factory it is taken to be what makes the last step's own
    temporal difference zero, (V(x_T) - r_T) / gamma.

    Args:
        ratio: [E, T] likelihood ratio pi / pi_behaviour.
        values: [E, T] of the present critic.
        rewards: [E, T].
        dones: [E, T], 1 at the last step of an episode.
        gamma: discount per step.
        rho_max: clip of the ratio that weighs a step's temporal difference.
        c_max: clip of the ratio that carries later ones back.

    Returns:
        (targets [E, T], advantages [E, T]); without gradient.
    """
    with torch.no_grad():
        rho, c = ratio.clamp(max=rho_max), ratio.clamp(max=c_max)
        discount = gamma * (1.0 - dones)
        value_behind = target_behind = (values[:, -1] - rewards[:, -1]) / gamma
        targets, advantages = torch.empty_like(values), torch.empty_like(values)
        for t in reversed(range(values.shape[1])):
            difference = rho[:, t] * (rewards[:, t] + discount[:, t] * value_behind - values[:, t])
            advantages[:, t] = rho[:, t] * (rewards[:, t] + discount[:, t] * target_behind - values[:, t])
            targets[:, t] = values[:, t] + difference + discount[:, t] * c[:, t] * (target_behind - value_behind)
            value_behind, target_behind = values[:, t], targets[:, t]
    return targets, advantages


def policy_loss(ratio: Tensor, advantages: Tensor, valids: Tensor | None) -> Tensor:
    """L_pi = - mean[ pi_theta(a|s) / pi_behaviour(a|s) * A_hat ], without clipping (section 3.1).

    Args:
        ratio: [B] likelihood ratio; receives gradient.
        advantages: [B] advantage estimates; no gradient.
        valids: [B] bool.

    Returns:
        Scalar.
    """
    return -masked_mean(ratio * advantages.detach(), valids)


def value_loss(
    values: Tensor, returns: Tensor, valids: Tensor | None, old_values: Tensor | None = None, clip: float = 0.0
) -> Tensor:
    """L_VF = mean[ (V - R)^2 ], no 1/2 (section 3.1; the authors' code).

    With `old_values` the larger of the plain error and the error of the value clipped to `old_values +- clip` (Andrychowicz et
    al. 2020), as in sample-factory's learner and the authors' code.

    Args:
        values: [B] predictions; receive gradient.
        returns: [B] targets; no gradient.
        valids: [B] bool.
        old_values: [B] predictions of the policy that collected the data; no gradient.
        clip: half-width of the clipping interval, in units of the value.

    Returns:
        Scalar.
    """
    returns = returns.detach()
    error = (values - returns).pow(2)
    if old_values is not None:
        old_values = old_values.detach()
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns).pow(2))
    return masked_mean(error, valids)


def kl_penalty(kl: Tensor, valids: Tensor | None, beta: Tensor | None = None, task_ids: Tensor | None = None) -> Tensor:
    """The loss that scales: beta * L_KL = mean_s[ beta * D_KL ]; gradient reaches the policy only (section 3.1, equation 2).

    Args:
        kl: [B] divergence per state, nats; receives gradient.
        valids: [B] bool.
        beta: [T] multiplier, no gradient; None for L_KL alone, as the fixup phase of Algorithm 1 uses it.
        task_ids: [B] int64, the entry of `beta` for each sample; None where T = 1.

    Returns:
        Scalar.
    """
    if beta is None:
        return masked_mean(kl, valids)
    beta = beta.detach()
    weight = beta.squeeze(0) if task_ids is None else beta[task_ids]
    return masked_mean(weight * kl, valids)


def states_outside(kl: Tensor, valids: Tensor | None, limit: float) -> Tensor:
    """[B] bool: the valid states that are outside, or the one furthest out where rounding shows none; no part of the paper.

    Never none, so that the mean over them has a gradient; of several learners each has one at least.

    Args:
        kl: [B] divergence per state, nats.
        valids: [B] bool; None: all.
        limit: what none may exceed.
    """
    own = kl.detach() if valids is None else torch.where(valids, kl.detach(), -1.0)
    outside = own >= own.amax().clamp_max(limit)
    return outside if valids is None else outside & valids


def exploration_loss(distribution: Any, valids: Tensor | None, kind: str, coefficient: float) -> Tensor | float:
    """sample-factory's loss for exploration, in a form that asks the host nothing; no part of the paper.

    Args:
        distribution: of B states, with gradient: what has `entropy`, or `symmetric_kl_with_uniform_prior`, nats, [B].
        valids: [B] bool; None: all.
        kind: `entropy`, which it rewards, or `symmetric_kl`, which it holds down.
        coefficient: 0: there is none.

    Returns:
        Scalar.
    """
    if coefficient == 0.0:
        return 0.0
    if kind == "entropy":
        return -coefficient * masked_mean(distribution.entropy(), valids)
    apart = masked_mean(distribution.symmetric_kl_with_uniform_prior(), valids)
    return coefficient * torch.where(apart.isfinite(), apart, 0.0).clamp(max=_UNIFORM_KL_MAX)


def multiplier_loss(beta: Tensor, kl_stat: Tensor, eps_kl: float, c_beta: float) -> Tensor:
    """The loss that adjusts: L_beta = beta * sg[ eps_kl - c_beta * D_KL^max ]; gradient reaches beta only (equation 3).

    Minimising it over beta >= 0 while the policy minimises L_theta is the Lagrangian of
    `min_theta L_pi + L_VF  subject to  c_beta * D_KL^max <= eps_kl`: beta rises while the constraint is broken, else falls.

    Args:
        beta: [T] multiplier; receives gradient.
        kl_stat: [T] max (or mean) divergence per task, nats; no gradient.
        eps_kl: the bound, nats.
        c_beta: how far inside the bound the primary phase aims.

    Returns:
        [T] losses, one per task.
    """
    return beta * (eps_kl - c_beta * kl_stat).detach()
