"""The observation normaliser's statistics: counted from valid samples, and let into the policy as far as the trust region allows.

Shapes: E trajectories of T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.running_mean_std import RunningMeanStdInPlace
from sample_factory.algo.utils.tensor_dict import TensorDict
from torch import Tensor

from sf_fixpo.algorithm.trust_region import Divergence, backtrack
from sf_fixpo.learning.batch import Batch, Progress
from sf_fixpo.learning.policy import Policy
from sf_fixpo.learning.ranks import ALONE, Alone
from sf_fixpo.learning.state import state_tensors

# Every how many trajectories of a batch are looked at to see whether new statistics move the policy.
_PROBE = 8
# Numbers that moments are taken of in one go: they stay in the processor's cache.
_VALUES_AT_ONCE = 1 << 21


@torch.no_grad()
def count_together(normalizers: Sequence[Any], count_own: Callable[[], object], ranks: Alone) -> None:
    """Moves statistics by the samples of all ranks, as one learner that had them all would.

    Args:
        normalizers: sample-factory's `RunningMeanStdInPlace`, with the same statistics on all ranks.
        count_own: has each of them count this rank's samples, which may be none.
        ranks: whose samples count.
    """
    before = [[x.clone() for x in (n.running_mean, n.running_var, n.count)] for n in normalizers]
    for normalizer in normalizers:
        # one that has counted nothing holds, after a batch, the moments of that batch
        normalizer.running_mean.zero_()
        normalizer.running_var.zero_()
        normalizer.count.zero_()
    count_own()
    sums = []
    for n in normalizers:
        mean, count = n.running_mean.double(), n.count.double()
        square = n.running_var.double() * (count - 1).clamp_min(0) + count * mean * mean
        sums += [count.reshape(-1), (count * mean).reshape(-1), square.reshape(-1)]
    pieces = iter(ranks.total(torch.cat(sums)).split([len(piece) for piece in sums]))
    for normalizer, (mean, variance, count) in zip(normalizers, before, strict=True):
        number, first, second = (next(pieces).view_as(x) for x in (count, mean, variance))
        there = number.clamp_min(1)
        batch_mean = first / there
        batch_variance = ((second - first * batch_mean) / (there - 1).clamp_min(1)).clamp_min(0)
        total, delta = count + number, batch_mean - mean
        square = variance * count + batch_variance * number + delta * delta * count * number / total
        normalizer.running_mean.copy_(mean + delta * number / total)
        normalizer.running_var.copy_(square / total)
        normalizer.count.copy_(total)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the first axis, [...] float64, a few samples at a time.

    torch's own variance over that axis took 283 ms of 1,056 images of 72 x 128, this takes 60; an accelerator gets all at once.

    Args:
        x: [n, ...] of any type, two samples at least.
    """
    at_once = _VALUES_AT_ONCE // max(1, x[0].numel()) if x.device.type == "cpu" else len(x)
    parts = x.split(max(1, at_once))
    mean = torch.stack([part.float().sum(0).double() for part in parts]).sum(0) / len(x)
    center = mean.float()
    squares = torch.stack([(part.float() - center).square_().sum(0).double() for part in parts]).sum(0)
    return mean, squares / (len(x) - 1)


def _count(policy: Policy, obs: TensorDict) -> None:
    """Takes raw observations [n, ...] into the statistics; nothing where there are fewer than two, which have no variance."""
    model, normalizer = policy.model, policy.model.obs_normalizer
    if len(next(iter(obs.values()))) < 2:
        return
    kept = normalizer.running_mean_std.running_mean_std if policy.known_normalizer else {}
    if not kept or any(type(statistics) is not RunningMeanStdInPlace or statistics.per_channel for statistics in kept.values()):
        model.train()
        prepare_and_normalize_obs(model, TensorDict(obs))
        return
    for key, statistics in kept.items():
        mean, variance = _moments(obs[key].to(statistics.running_mean.device))
        if key == "obs":  # of no other are scale and offset
            offset, scale = normalizer.sub_mean * normalizer.should_sub_mean, normalizer.scale if normalizer.should_scale else 1.0
            mean, variance = (mean - offset) / scale, variance / scale**2
        before = statistics.running_mean, statistics.running_var, statistics.count
        after = statistics._update_mean_var_count_from_moments(*before, mean, variance, len(obs[key]))
        for own, value in zip(before, after, strict=True):
            own.copy_(value)


@torch.no_grad()
def count_and_normalize(policy: Policy, obs: TensorDict, counted: Tensor | None, ranks: Alone = ALONE) -> TensorDict:
    """Takes a batch into the statistics, then normalises it with them.

    Args:
        policy: whose statistics move; its network is in eval mode afterwards.
        obs: raw, [n, ...] each.
        counted: [C] int64, the samples that are taken in; None for all.
        ranks: whose samples are taken in.
    """
    if policy.has_statistics or not (policy.known_normalizer or ranks.count > 1):  # a user's own may count by another name
        own = obs if counted is None else TensorDict({key: x[counted] for key, x in obs.items()})
        if ranks.count > 1:
            normalizers = list(policy.model.obs_normalizer.running_mean_std.running_mean_std.values())
            count_together(normalizers, lambda: _count(policy, own), ranks)
        else:
            _count(policy, own)
    policy.model.eval()
    return policy.normalize(obs)


def admit(candidate: Policy, published: Policy, batch: Batch, progress: Progress, divergence: Divergence, aim: float) -> None:
    """Moves the candidate's statistics towards the batch's only as far as the trust region allows.

    The statistics are part of the policy, and no gradient step can be held to account for what they do to it: in the first
    updates of a run they alone would carry the policy out of the trust region, and the fixup phase would spend all its steps
    on undoing that. So they go along the line from the published ones to the new ones, back by halves until the policy that
    the update starts from is where the primary phase aims; the rest of the way is for later updates. Most updates pay for a probe
    of an eighth of the trajectories.

    Args:
        candidate: with the published weights and the new statistics.
        published: the policy before.
        batch: whose observations are those of the candidate's statistics, here and afterwards.
        progress: counts reads.
        divergence: how distance is measured.
        aim: how far the statistics may move the policy, nats.
    """
    trajectories = np.arange(len(batch) // batch.recurrence)
    names = [name for name in state_tensors(candidate.model) if name.startswith("obs_normalizer.")]
    tensors, start = state_tensors(candidate.model), state_tensors(published.model)
    end = {name: tensors[name].clone() for name in names}

    def inside(chosen: np.ndarray) -> bool:
        samples = batch.indices(chosen)
        packing = None if batch.sequences is None else batch.sequences.of(chosen)
        parameters = candidate.action_parameters(batch.obs[samples], batch.samples["rnn_states"][samples], packing)
        kl = divergence.per_state(parameters, batch.previous[samples])
        ids = None if batch.beta_ids is None else batch.beta_ids[samples]
        return bool(progress.read(divergence.statistic(kl, batch.valids[samples], ids)[0].max()) <= aim)

    def move_to(alpha: float) -> None:
        for name in names:
            tensors[name].copy_(torch.lerp(start[name], end[name], alpha) if alpha > 0.0 else start[name])
        batch.obs = candidate.observe(batch.raw_obs)
        progress.statistics_scale = alpha

    if inside(trajectories[::_PROBE]):
        return
    with torch.no_grad():
        if backtrack(move_to, lambda: inside(trajectories)) == 0.0:
            move_to(0.0)
