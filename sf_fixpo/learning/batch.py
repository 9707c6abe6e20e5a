"""The state of one policy improvement step: its batch, who is bound by what, and what has been counted so far.

Shapes: N samples of the batch, A action parameters, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from sample_factory.algo.utils.tensor_dict import TensorDict
from torch import Tensor

from sf_fixpo.learning.phases import PhaseTimer

# what the losses read of a minibatch: indexing the rest of the batch for every step would be work for nothing
_LOSS_KEYS = ("normalized_obs", "rnn_states", "actions", "log_prob_actions", "values", "advantages", "returns", "valids")


@dataclass
class Update:
    """One policy improvement step.

    Attributes:
        batch: the training batch as sample-factory prepares it, [N, ...] each.
        ref_logits: [N, A] action parameters of the reference policy.
        mask: [N] bool, the states that the bound speaks of: valid and not stale.
        done_or_invalid: [N] float on the CPU, 1 where a recurrent state must not flow on.
        learning_rate: of the primary phase, scaled by the share of valid samples.
        valid_fraction: share of valid samples.
        lag: mean, min and max age of the valid samples, in policy versions.
        lagged: whether a valid sample was collected by another version than the published one.
        timer: of the phases.
        kl_of: divergence per state of each check minibatch at the present weights, where it has been evaluated.
        stale_marked: whether the states that the previous policy itself breaks have been looked for.
        bad: bool tensor, whether a loss or gradient was not finite.
        kl_max_primary: tensor, largest divergence seen by a primary step.
        trace: (epoch, phase, statistic, beta) of every gradient step, tensors; None when this update is not traced.
        last_losses: tensors of the last primary step, for the `train/` scalars.
        per_task: whether each task has its own beta.
    """

    batch: TensorDict
    ref_logits: Tensor
    mask: Tensor
    done_or_invalid: Tensor
    learning_rate: float
    valid_fraction: float
    lag: tuple[float, float, float]
    lagged: bool
    timer: PhaseTimer
    bad: Tensor
    kl_max_primary: Tensor
    kl_of: dict[int, Tensor] = field(default_factory=dict)
    stale_marked: bool = False
    trace: list[tuple[int, str, Tensor, Tensor]] | None = None
    last_losses: dict[str, Tensor | float] = field(default_factory=dict)
    epoch: int = 0
    primary_steps: int = 0
    fixup_steps: int = 0
    check_passes: int = 0
    host_reads: int = 0
    lr_halvings: int = 0
    skipped_minibatches: int = 0
    statistics_scale: float = 1.0
    backtrack_scale: float = 1.0
    rolled_back: bool = False
    per_task: bool = False

    def __post_init__(self) -> None:
        """Lays out what the losses index for each minibatch."""
        view = TensorDict({key: self.batch[key] for key in _LOSS_KEYS if key in self.batch})
        # the distribution that the KL is measured from; the likelihood ratio keeps the behaviour's log-probabilities
        view["action_logits"] = self.ref_logits
        view["kl_mask"] = self.mask
        for key in ("dones_cpu", "rewards_cpu", *(("task_id",) if self.per_task else ())):
            if key in self.batch:
                view[key] = self.batch[key]
        self.loss_view = view

    def valid_counts(self, minibatches: Sequence) -> list[int]:
        """Valid samples of each minibatch, with one read."""
        self.host_reads += 1
        valids = self.batch["valids"]
        return torch.stack([valids.sum() if indices is None else valids[indices].sum() for indices in minibatches]).tolist()

    def restrict_mask(self, allowed: Tensor) -> None:
        """Takes the states that are not `allowed` ([N] bool) out of the bound, in place."""
        self.mask &= allowed

    @property
    def stale(self) -> Tensor:
        """[N] bool: valid states that are out of the bound because the previous policy itself breaks it there."""
        return self.batch["valids"] & ~self.mask
