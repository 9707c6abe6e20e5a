"""TRPO (Schulman et al. 2015): one natural gradient step of the policy on the whole batch, then the critic by minibatches.

What it bounds is the *mean* divergence over the states of the batch, D_KL[pi_theta', pi_theta], of the step itself: both sides
see observations by the same statistics of the normaliser. What an update row says is the divergence of what actors will run from
what acted, statistics included.

Shapes: N samples of the batch, A action parameters, P policy parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sample_factory.utils.attr_dict import AttrDict
from torch import Tensor

from sf_fixpo.algorithm.losses import masked_mean, normalized, value_loss
from sf_fixpo.algorithm.trust_region import ActionSpec, action_kl
from sf_fixpo.baselines import natural_gradient as ng
from sf_fixpo.baselines.settings import TRPOConfig
from sf_fixpo.learning.batch import GAE_KEYS, PRIMARY_KEYS, Batch, Part, Progress
from sf_fixpo.learning.improvement import Improvement
from sf_fixpo.learning.masks import distribution_of
from sf_fixpo.learning.policy import Policy, action_parameters, forward
from sf_fixpo.learning.values import of_task


@contextmanager
def _differentiable_twice(device: torch.device) -> Iterator[None]:
    """Has recurrent layers run by torch's own kernels: cuDNN's give first derivatives only, and none in eval mode."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.enabled
    cudnn.enabled = before and device.type != "cuda"
    try:
        yield
    finally:
        cudnn.enabled = before


class Surrogate:
    """The two functions of theta that the step is made of, on one batch: the surrogate loss and the mean divergence from theta'.

    The policy is evaluated as actors run it, in eval mode: dropout would make another function of every point of the line.

    Attributes:
        parameters: of the policy, P numbers in all.
        centre: [N, A] action parameters at theta'.
        adv_std: of the advantages before they were normalised over the batch.
    """

    def __init__(
        self,
        policy: Policy,
        parameters: list[Tensor],
        batch: Batch,
        size: int,
        spec: ActionSpec,
        loss: Callable[[Tensor, AttrDict], Tensor],
    ):
        """Evaluates theta'.

        Args:
            policy: at theta'.
            parameters: that are moved.
            batch: two valid samples at least.
            size: samples that are evaluated together.
            spec: of the action parameters.
            loss: surrogate of (action parameters [n, A], samples), the mean over the valid ones among them.
        """
        self._policy, self._batch, self._size, self._spec, self._loss = policy, batch, size, spec, loss
        policy.model.eval()
        self.parameters = parameters
        self.centre = batch.parameters(policy, batch.obs, size)
        self.advantages, self.adv_std = normalized(batch.samples["advantages"], batch.valids)
        slices = [slice(i, min(i + size, len(batch))) for i in range(0, len(batch), size)]
        parts = [slice(run[0].start, run[-1].stop) for run in batch.joined(slices)]
        shares = torch.stack([batch.valids[part].sum() for part in parts]) / batch.valids.sum()
        self._parts = [(part, share) for part, share in zip(parts, shares.tolist(), strict=True) if share > 0.0]

    def _samples(self, part: slice) -> AttrDict:
        minibatch = self._batch.minibatch(part, PRIMARY_KEYS)
        minibatch.advantages = self.advantages[part]
        return minibatch

    def _action_parameters(self, minibatch: AttrDict) -> Tensor:
        at_once = self._policy.samples_at_once(minibatch.obs)
        return action_parameters(self._policy.model, minibatch.obs, minibatch.rnn_states, minibatch.packing, at_once)

    def gradient(self) -> Tensor:
        """[P] of the surrogate at the present parameters."""
        total = torch.zeros((), device=self.centre.device)
        with _differentiable_twice(self.centre.device):
            for part, share in self._parts:
                samples = self._samples(part)
                total = total + share * ng.gradient(self._loss(self._action_parameters(samples), samples), self.parameters)
        return total

    def fisher_product(self, vector: Tensor) -> Tensor:
        """F v [P]: the Hessian of the mean divergence at its centre, the present parameters."""
        total = torch.zeros_like(vector)
        with _differentiable_twice(self.centre.device):
            for part, share in self._parts:
                samples = self._samples(part)
                pi = self._action_parameters(samples)
                kl = masked_mean(action_kl(pi.detach(), pi, self._spec), samples.valids)
                total = total + share * ng.hessian_product(kl, self.parameters, vector)
        return total

    @torch.no_grad()
    def measure(self) -> tuple[float, float, float]:
        """(surrogate, mean and largest divergence from theta') at the present parameters; the host reads them, once."""
        pi = self._batch.parameters(self._policy, self._batch.obs, self._size)
        valids = self._batch.valids
        kl = action_kl(self.centre, pi, self._spec)
        loss = self._loss(pi, self._samples(slice(0, len(self._batch))))
        loss, mean, largest = torch.stack([loss, masked_mean(kl, valids), torch.where(valids, kl, 0.0).max()]).tolist()
        return loss, mean, largest


class TRPO(Improvement):
    """TRPO's update in the place of FixPO's: `begin` moves the policy, `primary_step` the critic.

    Where actor and critic share weights, the critic's steps move only what is the critic's alone: they come after the line
    search, and must not undo what it has seen to.
    """

    ADMITS_STATISTICS = False

    def __init__(self, *args: Any, settings: TRPOConfig):
        """As `Improvement`, with TRPO's settings."""
        super().__init__(*args)
        self.settings = settings

    def surrogate(self, batch: Batch) -> Surrogate:
        """Of the batch: -mean[pi / pi_behaviour * A], and the exploration loss where one is asked for."""

        def loss(parameters: Tensor, samples: AttrDict) -> Tensor:
            distribution = distribution_of(self.candidate.model, parameters)
            gain = masked_mean(self.likelihood_ratio(distribution, samples) * samples.advantages, samples.valids)
            return self._exploration(distribution, samples.valids) - gain

        parameters = list(self.policy_parameters)
        return Surrogate(self.candidate, parameters, batch, self._cfg.batch_size, self.divergence.spec, loss)

    def begin(self, batch: Batch, progress: Progress) -> None:
        """The policy's step, accepted or taken back bit for bit; what it did is in `progress.method`."""
        progress.method = {"accepted": 0.0, "step_scale": 0.0, "kl_mean": 0.0, "kl_max": 0.0, "gain": 0.0, "cg_residual": 0.0}
        with progress.timer.phase("policy"):
            progress.host_reads += 1
            if batch.valids.sum() >= 2:  # the spread of the advantages takes two samples
                self._natural_step(progress, self.surrogate(batch))

    def _natural_step(self, progress: Progress, surrogate: Surrogate) -> None:
        settings = self.settings
        start = ng.flatten(surrogate.parameters)
        loss, _, _ = surrogate.measure()
        slope = surrogate.gradient()
        progress.host_reads += 3
        progress.last_losses = {"policy_loss": loss, "adv_std": surrogate.adv_std}
        if not (math.isfinite(loss) and bool(slope.isfinite().all())):
            progress.bad = torch.ones_like(progress.bad)
            return

        def damped(vector: Tensor) -> Tensor:
            return surrogate.fisher_product(vector) + settings.trpo_damping * vector

        direction, residual, products = ng.conjugate_gradient(damped, -slope, settings.trpo_cg_iters)
        progress.host_reads += 2 * products
        progress.method["cg_residual"] = residual
        step = ng.full_step(direction, damped(direction), settings.trpo_max_kl)
        if step is None:
            return
        largest = 0.0

        def measure_at(scale: float) -> tuple[float, float]:
            nonlocal largest
            ng.assign(surrogate.parameters, start + scale * step if scale > 0.0 else start)
            found, mean, largest = surrogate.measure()
            return found, mean

        iterations, shrink = settings.trpo_backtrack_iters, settings.trpo_backtrack_coeff
        end = ng.line_search(measure_at, loss, max_kl=settings.trpo_max_kl, iterations=iterations, shrink=shrink)
        progress.host_reads += end.trials
        progress.method.update(accepted=float(end.scale > 0.0), step_scale=end.scale, gain=loss - end.loss)
        progress.method.update(kl_mean=end.kl, kl_max=largest)

    def primary_step(self, progress: Progress, batch: Batch, part: Part) -> Tensor:
        """One step of the critic on L_VF; returns the mean divergence of the policy's own step."""
        self.candidate.model.train()
        minibatch = batch.minibatch(part, PRIMARY_KEYS + GAE_KEYS)
        model, valids = self.candidate.model, minibatch.valids
        at_once = self.candidate.samples_at_once(minibatch.obs)
        outputs = forward(model, minibatch.obs, minibatch.rnn_states, minibatch.packing, at_once)
        distribution = self._distribution(outputs["action_logits"], minibatch)
        values = of_task(outputs["values"], minibatch.value_ids)
        error = value_loss(values, minibatch.returns, valids, minibatch["values"], self._cfg.ppo_clip_value)
        loss = self._cfg.value_loss_coeff * error
        grad_norm = self._descend(progress, loss, progress.learning_rate, spared=self.policy_parameters)
        progress.primary_steps += 1
        kl_mean = torch.tensor(progress.method["kl_mean"], device=values.device)
        progress.last_losses |= {
            "loss": loss,
            "value_loss": loss,
            "kl_loss": 0.0,
            "exploration_loss": self._exploration(distribution, valids),
            "grad_norm": grad_norm,
            "kl_divergence": kl_mean,
            "actual_lr": progress.learning_rate,
            "parameters": outputs["action_logits"],
            "ratio": self.likelihood_ratio(distribution, minibatch),
            "values": values,
        }
        return kl_mean
