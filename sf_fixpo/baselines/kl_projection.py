"""The KL projection layer in place of a penalty (Otto et al. 2021, sections 4 and 4.4): `projection` has the mathematics.

The losses take the likelihoods of the *projected* policy, which is within both bounds at every state. The network's own output
is what actors run, as in the authors' experiments: a regression loss, `--proj_trust_region_coeff` times the distance to the
projected policy, pulls it after. So what is bounded is not what is deployed; a row says what was.

Shapes: B samples of a minibatch, N of the batch, D action dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from sample_factory.algo.utils.action_distributions import get_action_distribution
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.typing import ActionSpace
from torch import Tensor

from sf_fixpo.algorithm.losses import masked_mean
from sf_fixpo.baselines.projection import covariance_part, distance, mean_part, project, split
from sf_fixpo.baselines.settings import ProjectionConfig
from sf_fixpo.learning.batch import Batch, Progress
from sf_fixpo.learning.improvement import Improvement
from sf_fixpo.learning.verification import Verifier


class KLProjection(Improvement):
    """FixPO's primary phase with a projected policy in its losses, no multiplier, no fixup phase."""

    ADMITS_STATISTICS = False

    def __init__(self, *args: Any, settings: ProjectionConfig, action_space: ActionSpace):
        """As `Improvement`, with the bounds and the space that actions are of, a Box."""
        super().__init__(*args)
        self.settings = settings
        self._action_space = action_space

    def _project(self, parameters: Tensor, old: Tensor) -> Tensor:
        return project(parameters, old, self.settings.proj_mean_bound, self.settings.proj_cov_bound)

    def _distribution(self, parameters: Tensor, minibatch: AttrDict) -> Any:
        projected = self._project(parameters, minibatch.bound)
        self._target = projected.detach()  # the penalty of the same step asks for it: half the time of a step is in finding it
        return get_action_distribution(self._action_space, raw_logits=projected)

    def _penalty(self, kl: Tensor, parameters: Tensor, minibatch: AttrDict) -> Tensor:
        """The regression loss: mean_s of the distance from the network's output to its projection, times its coefficient."""
        apart = distance(parameters, self._target, minibatch.bound)
        return self.settings.proj_trust_region_coeff * masked_mean(apart, minibatch.valids)

    def begin(self, batch: Batch, progress: Progress) -> None:
        """An update that is undone has nothing else to say."""
        progress.method = dict.fromkeys(("mean_part_max", "cov_part_max", "projected_fraction", "kl_max_projected"), 0.0)

    def finish(self, batch: Batch, progress: Progress, verifier: Verifier) -> None:
        """Notes how far outside what is deployed is, and the largest divergence of the projected policy beside it."""
        pi, old, valids = verifier.parameters(), batch.bound, batch.valids
        (mean, std), (mean_old, std_old) = split(pi), split(old)
        parts = mean_part(mean, mean_old, std_old), covariance_part(std, std_old)
        outside = (parts[0] > self.settings.proj_mean_bound) | (parts[1] > self.settings.proj_cov_bound)
        projected = self.divergence.per_state(self._project(pi, old), old)
        largest = [torch.where(valids, x, 0.0).max() for x in (*parts, projected)]
        numbers = torch.stack([largest[0], largest[1], masked_mean(outside.float(), valids), largest[2]]).tolist()
        progress.method = dict(zip(progress.method, numbers, strict=True))
        progress.host_reads += 1
