"""PPO with an adaptive KL penalty (Schulman et al. 2017, "Proximal Policy Optimization Algorithms", section 4).

Minibatch steps on -mean[ratio A] + beta mean_s D_KL[pi_old, pi_theta] with a constant beta, then, with d that mean after the
update:

    d < d_targ / 1.5:  beta <- beta / 2        d > 1.5 d_targ:  beta <- 2 beta

Nothing is bounded: an update that moved too far raises the price of the next.

Shapes: N samples of the batch, T = 1 multiplier.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sf_fixpo.algorithm.config import FixPOConfig
from sf_fixpo.algorithm.losses import masked_mean
from sf_fixpo.algorithm.trust_region import Divergence
from sf_fixpo.baselines.settings import PPOKLConfig
from sf_fixpo.learning.batch import Batch, Progress
from sf_fixpo.learning.improvement import Improvement
from sf_fixpo.learning.verification import Verifier

# A policy that cannot move at all would send beta to infinity, and an idle one to a 0 that it never leaves.
BETA_RANGE = (1e-6, 1e6)


def adapted(beta: Tensor, kl_mean: Tensor, target: float) -> Tensor:
    """Beta of the next update.

    Args:
        beta: [T] of this one.
        kl_mean: scalar or [T], d, nats; beta stays where it is not a number.
        target: d_targ, nats.

    Returns:
        [T].
    """
    moved = torch.where(kl_mean < target / 1.5, beta / 2.0, torch.where(kl_mean > 1.5 * target, 2.0 * beta, beta))
    return moved.clamp(*BETA_RANGE)


class PPOKL(Improvement):
    """FixPO's primary phase with another beta, no fixup phase, and the divergence from the reference to the policy."""

    ADMITS_STATISTICS = False

    def __init__(self, *args: Any, settings: PPOKLConfig):
        """As `Improvement`, whose multiplier has a learning rate of 0, and the settings."""
        super().__init__(*args)
        self.settings = settings

    def configure(self, fixpo: FixPOConfig, divergence: Divergence) -> None:
        """As `Improvement`; whatever the rows are measured by, the penalty is on D_KL[pi_old, pi_theta]."""
        super().configure(fixpo, replace(divergence, direction="ref_pi"))

    def begin(self, batch: Batch, progress: Progress) -> None:
        """Notes the beta of this update; the row's `beta` is that of the next."""
        progress.method = {"beta": self.multiplier.beta.item(), "kl_mean": 0.0}
        progress.host_reads += 1

    def finish(self, batch: Batch, progress: Progress, verifier: Verifier) -> None:
        """Moves beta by how far the policy went over the whole batch."""
        kl = self.divergence.per_state(verifier.parameters(), batch.bound)
        kl_mean = masked_mean(kl, batch.valids)
        self.multiplier.beta.copy_(adapted(self.multiplier.beta, kl_mean, self.settings.ppo_kl_target))
        progress.method["kl_mean"] = kl_mean.item()
        progress.host_reads += 1
