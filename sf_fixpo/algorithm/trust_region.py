"""The trust region: divergence per state, the fixup phase that enforces it, and the way back (Algorithm 1, lines 8 to 15).

Nothing here knows a network: the fixup phase and the line search take callables, so that the whole guarantee is tested on a
function of two numbers.

Shapes: B samples, A action parameters, T tasks. All divergences are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

Minibatch = TypeVar("Minibatch")

# Consecutive slices of the A action parameters: ("categorical", n) holds n logits, ("gaussian", d) d means then d log stds.
ActionSpec = Sequence[tuple[str, int]]

# sample-factory clamps the standard deviation of its Gaussian to this range (action_distributions.ContinuousActionDistribution)
STDDEV_MIN, STDDEV_MAX = 1e-4, 1e4

# The check is made in float32 and the audit in float64: this part of the bound is kept free for the rounding in between.
CHECK_MARGIN = 1e-3


def _categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = log_softmax(p, dim=-1), log_softmax(q, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _gaussian_kl(p: Tensor, q: Tensor) -> Tensor:
    mean_p, log_std_p = p.chunk(2, dim=-1)
    mean_q, log_std_q = q.chunk(2, dim=-1)
    std_p, std_q = log_std_p.exp().clamp(STDDEV_MIN, STDDEV_MAX), log_std_q.exp().clamp(STDDEV_MIN, STDDEV_MAX)
    variance_ratio = (std_p / std_q).pow(2)
    return 0.5 * (variance_ratio + ((mean_p - mean_q) / std_q).pow(2) - 1.0 - variance_ratio.log()).sum(-1)


def _categorical_entropy(p: Tensor) -> Tensor:
    log_p = log_softmax(p, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def _gaussian_entropy(p: Tensor) -> Tensor:
    log_std = p.chunk(2, dim=-1)[1].clamp(math.log(STDDEV_MIN), math.log(STDDEV_MAX))
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


_KL = {"categorical": (1, _categorical_kl), "gaussian": (2, _gaussian_kl)}
_ENTROPY = {"categorical": _categorical_entropy, "gaussian": _gaussian_entropy}


def action_kl(p: Tensor, q: Tensor, spec: ActionSpec) -> Tensor:
    """D_KL[p, q] per state: the sum over independent parts of the action.

    Args:
        p: [B, A] action parameters of the first distribution.
        q: [B, A] action parameters of the second.
        spec: what the A parameters are.

    Returns:
        [B], with gradient to both where they ask for it.

    Raises:
        ValueError: the spec does not add up to A.
    """
    sizes = [_KL[kind][0] * size for kind, size in spec]
    if sum(sizes) != p.shape[-1] or p.shape != q.shape:
        raise ValueError(f"action parameters {tuple(p.shape)} and {tuple(q.shape)} do not match {spec}")
    if len(spec) == 1:
        return _KL[spec[0][0]][1](p, q)
    parts = zip(spec, p.split(sizes, dim=-1), q.split(sizes, dim=-1), strict=True)
    return torch.stack([_KL[kind][1](p_part, q_part) for (kind, _), p_part, q_part in parts]).sum(0)


def action_entropy(p: Tensor, spec: ActionSpec) -> Tensor:
    """Entropy per state, nats: the sum over independent parts of the action; of a Gaussian the differential entropy.

    Args:
        p: [B, A] action parameters.
        spec: what the A parameters are.

    Returns:
        [B].
    """
    parts = zip(spec, p.split([_KL[kind][0] * size for kind, size in spec], dim=-1), strict=True)
    return torch.stack([_ENTROPY[kind](part) for (kind, _), part in parts]).sum(0)


def largest_entropy(spec: ActionSpec) -> float | None:
    """That of the uniform policy, nats; None where an action has a Gaussian part, whose entropy has no largest value."""
    if any(kind != "categorical" for kind, _ in spec):
        return None
    return sum(math.log(size) for _, size in spec)


def directed_kl(pi: Tensor, ref: Tensor, spec: ActionSpec, direction: str) -> Tensor:
    """D_KL[pi, ref] for `pi_ref` (the paper), D_KL[ref, pi] for `ref_pi` (the authors' MuJoCo code); [B]."""
    return action_kl(pi, ref, spec) if direction == "pi_ref" else action_kl(ref, pi, spec)


def kl_statistic(
    kl: Tensor, mask: Tensor | None, stat: str, task_ids: Tensor | None = None, num_tasks: int = 1
) -> tuple[Tensor, Tensor]:
    """The statistic that is bounded: max or mean of the divergence, per task.

    Args:
        kl: [B] divergence per state.
        mask: [B] bool, the states that the bound speaks of; None: all.
        stat: `max`, or `mean` (the ablation of section 4.2).
        task_ids: [B] int64; None where there is one task.
        num_tasks: T.

    Returns:
        (statistic [T], present [T] bool): 0 and False for a task with no state. A state that is not a number makes its task's
        statistic not a number, and no comparison `statistic <= bound` holds for that.
    """
    kl = kl.detach()
    if mask is None:
        if task_ids is None:
            value = kl.amax(0, keepdim=True) if stat == "max" else kl.mean(0, keepdim=True)
            return value, torch.ones_like(value, dtype=torch.bool)
        mask = torch.ones_like(kl, dtype=torch.bool)
    members = _members(mask, task_ids, num_tasks)
    present = members.any(1)
    if stat == "max":
        value = torch.where(members, kl, -math.inf).amax(1)
    else:
        value = torch.where(members, kl, 0.0).sum(1) / members.sum(1)
    return torch.where(present, value, 0.0), present


def _members(mask: Tensor, task_ids: Tensor | None, num_tasks: int) -> Tensor:
    """[T, B] bool: which states count, by task."""
    members = mask.unsqueeze(0)
    if task_ids is None:
        return members
    return members & (task_ids == torch.arange(num_tasks, device=mask.device).unsqueeze(1))


def kl_parts(kl: Tensor, mask: Tensor | None, stat: str, task_ids: Tensor | None = None, num_tasks: int = 1) -> Tensor:
    """What several learners have to put together for `kl_statistic` over the states of all.

    Args:
        kl: [B] divergence per state.
        mask: [B] bool, the states that the bound speaks of; None: all.
        stat: `max` or `mean`.
        task_ids: [B] int64; None where there is one task.
        num_tasks: T.

    Returns:
        [2, T]: for `max` the largest divergence and whether there is a state, of both of which the largest counts; for `mean` the
        sum of the divergences and the number of states, which are added.
    """
    kl = kl.detach()
    members = _members(torch.ones_like(kl, dtype=torch.bool) if mask is None else mask, task_ids, num_tasks)
    if stat == "max":
        return torch.stack([torch.where(members, kl, -math.inf).amax(1), members.any(1).to(kl.dtype)])
    return torch.stack([torch.where(members, kl, 0.0).sum(1), members.sum(1).to(kl.dtype)])


def from_parts(parts: Tensor, stat: str) -> tuple[Tensor, Tensor]:
    """What `kl_statistic` gives, of `kl_parts` [..., 2, T] put together: (statistic [..., T], present [..., T])."""
    value, count = parts.unbind(-2)
    present = count > 0
    if stat == "mean":
        value = value / count
    return torch.where(present, value, 0.0), present


@dataclass(frozen=True)
class Divergence:
    """How far apart two policies are, as a run measures it.

    Attributes:
        spec: what the action parameters are.
        direction: `pi_ref` or `ref_pi`.
        stat: `max` or `mean` over the states.
        num_tasks: T, multipliers that the statistic is for.
        together: puts the parts of several learners together, (`kl_parts`, `stat`) -> parts; None for one alone.
    """

    spec: ActionSpec
    direction: str
    stat: str
    num_tasks: int = 1
    together: Callable[[Tensor, str], Tensor] | None = None

    def per_state(self, pi: Tensor, ref: Tensor) -> Tensor:
        """[B] divergence of each state, with gradient to both where they ask for it."""
        return directed_kl(pi, ref, self.spec, self.direction)

    def statistic(self, kl: Tensor, mask: Tensor | None, task_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """`kl_statistic` per multiplier: [T] and which of them have a state."""
        if self.together is None:
            return kl_statistic(kl, mask, self.stat, task_ids, self.num_tasks)
        return from_parts(self.together(self.own_parts(kl, mask, task_ids), self.stat), self.stat)

    def own_parts(self, kl: Tensor, mask: Tensor | None, task_ids: Tensor | None = None) -> Tensor:
        """[2, T] this learner's part of `statistic`: `kl_parts`."""
        return kl_parts(kl, mask, self.stat, task_ids, self.num_tasks)

    def largest(self, sets: Sequence[tuple[Tensor, Tensor | None, Tensor | None]]) -> Tensor:
        """Of each set of states (kl, mask, task_ids) the largest statistic of a multiplier, [sets]; of all learners at once."""
        if self.together is None:
            return torch.stack([self.statistic(*states)[0].max() for states in sets])
        parts = torch.stack([kl_parts(kl, mask, self.stat, ids, self.num_tasks) for kl, mask, ids in sets])
        return from_parts(self.together(parts, self.stat), self.stat)[0].amax(-1)


@dataclass
class FixupResult:
    """What a fixup phase did.

    Attributes:
        satisfied: every minibatch was inside the bound at the weights it ended with.
        finite: no statistic was anything but a finite number.
        steps: gradient steps taken.
        checks: evaluations of the constraint; the host read one tensor for each.
        lr_halvings: plateaus met.
    """

    satisfied: bool = False
    finite: bool = True
    steps: int = 0
    checks: int = 0
    lr_halvings: int = 0


def fixup_phase(
    minibatches: Sequence[Minibatch],
    kl_fn: Callable[[Sequence[Minibatch]], Sequence[float]],
    step_fn: Callable[[Minibatch], None],
    *,
    limit: float,
    max_steps: float = math.inf,
    plateau_steps: float = math.inf,
    on_violation: Callable[[], None] | None = None,
    on_plateau: Callable[[], None] | None = None,
) -> FixupResult:
    """Steps on the divergence until no minibatch is outside the bound (Algorithm 1, lines 8 to 15).

    The order of steps is the paper's: go through the minibatches, step on each that is outside, and begin again until a whole
    pass meets none. Only the evaluations are organised otherwise: as long as nothing is outside, many minibatches are evaluated
    before the host reads one tensor, and a pass ends as soon as every minibatch has been seen inside at the present weights. The
    steps taken are the same.

    Args:
        minibatches: of the batch, in the order of the pass.
        kl_fn: statistic of each of the given minibatches at the present weights, one number each; the host waits for it.
        step_fn: one gradient step on a minibatch.
        limit: what no statistic may exceed.
        max_steps: gradient steps after which to give up.
        plateau_steps: steps without a statistic one percent lower than the lowest yet, after which `on_plateau` is called.
        on_violation: called at the first violation, before any step.
        on_plateau: called on a plateau (halve the learning rate).

    Returns:
        FixupResult. `satisfied` is False where `max_steps` ran out or a number was not finite.
    """
    result = FixupResult()
    count = len(minibatches)
    position, inside, ahead = 0, 0, count
    lowest, steps_since_lowest = math.inf, 0
    while inside < count:
        window = [(position + i) % count for i in range(min(ahead, count - inside))]
        statistics = kl_fn([minibatches[i] for i in window])
        result.checks += 1
        outside = next((i for i, value in enumerate(statistics) if not value <= limit), None)
        if outside is None:
            inside += len(window)
            position = (position + len(window)) % count
            ahead *= 2
            continue
        if not all(math.isfinite(value) for value in statistics):
            result.finite = False
            return result
        if result.steps >= max_steps:
            return result
        if result.steps == 0 and on_violation is not None:
            on_violation()
        if statistics[outside] < 0.99 * lowest:
            lowest, steps_since_lowest = statistics[outside], 0
        elif steps_since_lowest >= plateau_steps:
            lowest, steps_since_lowest = statistics[outside], 0
            result.lr_halvings += 1
            if on_plateau is not None:
                on_plateau()
        steps_since_lowest += 1
        step_fn(minibatches[window[outside]])
        result.steps += 1
        # violations come in runs: look one ahead after a step, and further only while all is well
        position, inside, ahead = (window[outside] + 1) % count, 0, 1
    result.satisfied = True
    return result


def first_scale(statistic: float, limit: float) -> float:
    """Where on the line back the constraint should hold: the divergence grows about as the square of the way, 5 % are for safety.

    Args:
        statistic: at the end of the line, above `limit`.
        limit: what it may not exceed.
    """
    return 0.95 * math.sqrt(limit / statistic)


def backtrack(
    move_to: Callable[[float], None], satisfied: Callable[[], bool], first: float = 0.5, max_halvings: int = 10
) -> float:
    """Goes back along theta' + alpha * (theta - theta') until the constraint holds.

    Not in the paper, whose fixup phase may go on for ever: this is what bounds it.

    Args:
        move_to: sets the weights, and the normaliser's statistics with them, to the point alpha of the line.
        satisfied: checks the whole batch at the present point.
        first: the alpha to begin with, in (0, 1).
        max_halvings: how often it is halved.

    Returns:
        The alpha at which the constraint was found to hold; 0 where it held at none, and then nothing has been moved to 0.
    """
    for halvings in range(max_halvings + 1):
        alpha = first / 2**halvings
        move_to(alpha)
        if satisfied():
            return alpha
    return 0.0
