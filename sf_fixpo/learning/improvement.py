"""Gradient steps on the candidate, and beta's beside them: the primary and the fixup phase of Algorithm 1 on a real network.

Shapes: B samples of a minibatch, A action parameters, T tasks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from sample_factory.utils.attr_dict import AttrDict
from torch import Tensor

from sf_fixpo.algorithm.config import FixPOConfig
from sf_fixpo.algorithm.losses import (
    exploration_loss,
    kl_penalty,
    masked_mean,
    normalized,
    policy_loss,
    states_outside,
    value_loss,
    vtrace,
)
from sf_fixpo.algorithm.multiplier import LagrangeMultiplier, MeanMultiplier
from sf_fixpo.algorithm.predication import Reading, Slots, chunked_fixup_phase
from sf_fixpo.algorithm.trust_region import Divergence, FixupResult, fixup_phase, from_parts
from sf_fixpo.learning.adam import can_leave_out_steps, clipped_step, drop_first_moments
from sf_fixpo.learning.batch import FIXUP_KEYS, GAE_KEYS, PRIMARY_KEYS, VTRACE_KEYS, Bad, Batch, Part, Progress
from sf_fixpo.learning.graphs import Capture, StepGraphs, capture
from sf_fixpo.learning.policy import Policy, action_parameters, forward
from sf_fixpo.learning.ranks import ALONE, Alone, Ranks
from sf_fixpo.learning.values import of_task
from sf_fixpo.learning.verification import Verifier

# sample-factory clamps the likelihood ratio to this range; no part of the paper.
_RATIO_MIN, _RATIO_MAX = 0.05, 20.0

# Visits between two reads on an accelerator. Most fixup phases take fewer steps; a visit too many costs a forward and a backward
# pass, a read the time until the host has asked for new work.
CHUNK = 8


class Improvement:
    """Steps on L_theta, L_KL and L_beta.

    Attributes:
        candidate: the policy that is trained; nobody acts by it.
        optimizer: Adam, of all its parameters.
        multiplier: beta.
        mean_multiplier: of the mean divergence; 0 in the paper's form.
        divergence: how the distance to the reference is measured.
        policy_parameters: those that L_KL reaches: what the fixup phase moves.
        ranks: the learners that train this policy.
    """

    ADMITS_STATISTICS = True  # the normaliser's statistics move only as far as the trust region allows

    def __init__(
        self,
        candidate: Policy,
        optimizer: torch.optim.Optimizer,
        multiplier: LagrangeMultiplier,
        mean_multiplier: MeanMultiplier,
        cfg: Any,
    ):
        """Takes the candidate and its optimizer.

        Args:
            candidate: the policy to train.
            optimizer: over its parameters.
            multiplier: beta, on the same device.
            mean_multiplier: on the same device, of as many tasks.
            cfg: sample-factory's settings, which a population changes in place.
        """
        self.candidate = candidate
        self.optimizer = optimizer
        self.multiplier = multiplier
        self.mean_multiplier = mean_multiplier
        self._cfg = cfg
        self._parameters = list(candidate.model.parameters())
        self.policy_parameters: Collection[Tensor] = self._parameters
        self.ranks: Alone = ALONE
        self._graphs: StepGraphs | None = None
        self._slots: Slots | None = None

    def configure(self, fixpo: FixPOConfig, divergence: Divergence) -> None:
        """Takes settings that may have changed since the last update.

        Args:
            fixpo: the settings of FixPO.
            divergence: as they say.
        """
        device = self._parameters[0].device
        if self._slots is None or fixpo != self._fixpo:
            self._slots = Slots(fixpo.limit, fixpo.max_fixup_steps, fixpo.fixup_plateau_steps, device)
        self._fixpo, self.divergence = fixpo, divergence
        if self._graphs is None and fixpo.cuda_graphs != "off" and device.type == "cuda":
            self.use_graphs()
        if self._graphs is not None:
            self._graphs.renew((dict(self._cfg), fixpo, divergence), self._slots)

    def use_graphs(self, capture: Capture = capture) -> None:
        """Has steps recorded and replayed from now on, where that is possible.

        Args:
            capture: makes a recording of a step.
        """
        self._graphs = StepGraphs(self, self._primary, self._fixup, self._fixpo.cuda_graphs == "on", capture)

    @property
    def penalty(self) -> Tensor:
        """[T] what L_KL is multiplied by: the sum of both multipliers."""
        return self.multiplier.beta + self.mean_multiplier.beta

    def begin(self, batch: Batch, progress: Progress) -> None:
        """Called once an update, before its first epoch; nothing for FixPO."""

    def finish(self, batch: Batch, progress: Progress, verifier: Verifier) -> None:
        """Called once an update that was not undone, with the state that will be published staged."""
        mean = replace(self.divergence, stat="mean", num_tasks=self.mean_multiplier.beta.numel())
        self.mean_multiplier.step(*mean.statistic(verifier.kl(), batch.valids, batch.beta_ids))

    def likelihood_ratio(self, distribution: Any, minibatch: AttrDict) -> Tensor:
        """[B] pi / pi_behaviour of the actions taken, clamped as sample-factory clamps it; with gradient to the distribution."""
        return (distribution.log_prob(minibatch.actions) - minibatch.log_prob_actions).exp().clamp(_RATIO_MIN, _RATIO_MAX)

    def _descend(
        self,
        progress: Progress | Bad,
        loss: Tensor,
        learning_rate: float | Tensor,
        spared: Collection[Tensor] = (),
        skip: Tensor | None = None,
        valids: Tensor | None = None,
        kl_parts: Tensor | None = None,
    ) -> Tensor:
        """Backward, clipping and one Adam step; parameters that the loss does not reach keep no gradient, and Adam skips them.

        Args:
            progress: is told of a loss or gradient that is not finite.
            loss: scalar.
            learning_rate: of this step.
            spared: parameters that stay as they are although the loss may reach them.
            skip: bool, whether the step is none, bit for bit; the device knows. None: it is one. Fused Adam alone can do that.
            valids: [B] bool, of the minibatch, where several learners average their gradients.
            kl_parts: `Divergence.own_parts`, which go with the gradients and become those of all learners.

        Returns:
            The norm of the gradient before clipping.
        """
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        for parameter in spared:
            parameter.grad = None
        if isinstance(self.ranks, Ranks) and valids is not None:
            loss = self.ranks.average_gradients(self._parameters, loss, valids.sum(), kl_parts, self.divergence.stat)
        norm = clipped_step(self.optimizer, self._parameters, learning_rate, self._cfg.max_grad_norm, skip)
        bad = ~(loss.detach() + norm).isfinite()
        progress.bad = progress.bad | (bad if skip is None else bad & ~skip)
        return norm

    def _own_parts(self, kl: Tensor, minibatch: AttrDict) -> Tensor | None:
        """Of the divergence's statistic, where several learners put it together; else None."""
        several = isinstance(self.ranks, Ranks)
        return self.divergence.own_parts(kl, minibatch.valids, minibatch.beta_ids) if several else None

    def _step_beta(self, kl: Tensor, minibatch: AttrDict, skip: Tensor | None = None, kl_parts: Tensor | None = None) -> Tensor:
        """One step on L_beta with the divergence of before theta's step, or none where `skip`; returns its statistic [T].

        Args:
            kl: [B] of the minibatch.
            minibatch: `Batch.minibatch`.
            skip: bool, whether the step is none.
            kl_parts: of all learners, where there are several.
        """
        if kl_parts is None:
            statistic, present = self.divergence.statistic(kl, minibatch.valids, minibatch.beta_ids)
        else:
            statistic, present = from_parts(kl_parts, self.divergence.stat)
        present = present if skip is None else present & ~skip
        self.multiplier.step(statistic, present, self._fixpo.eps_kl, self._fixpo.c_beta)
        return statistic

    def _targets(self, minibatch: AttrDict, ratio: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and value targets [B]: sample-factory's GAE of the whole batch, or V-trace of this minibatch."""
        if not self._cfg.with_vtrace:
            return minibatch.advantages, minibatch.returns
        cfg, shape = self._cfg, (-1, self._cfg.recurrence)
        rewards, dones = minibatch.rewards.view(shape), minibatch.dones.float().view(shape)
        targets, advantages = vtrace(
            ratio.detach().view(shape), values.detach().view(shape), rewards, dones, cfg.gamma, cfg.vtrace_rho, cfg.vtrace_c
        )
        return advantages.view(-1), targets.view(-1)

    def _distribution(self, parameters: Tensor, minibatch: AttrDict) -> Any:
        """Whose likelihoods and entropy the losses take: that of the network's last forward pass.

        Args:
            parameters: [B, A] action parameters that the pass gave, with gradient.
            minibatch: `Batch.minibatch`.
        """
        return self.candidate.model.action_distribution()

    def _penalty(self, kl: Tensor, parameters: Tensor, minibatch: AttrDict) -> Tensor:
        """What holds the policy back: beta * L_KL; scalar, with gradient.

        Args:
            kl: [B] divergence from what each state is bound to, with gradient.
            parameters: [B, A] action parameters, with gradient.
            minibatch: `Batch.minibatch`.
        """
        return kl_penalty(kl, minibatch.valids, self.penalty, minibatch.beta_ids)

    def _exploration(self, distribution: Any, valids: Tensor | None) -> Tensor | float:
        return exploration_loss(distribution, valids, self._cfg.exploration_loss, self._cfg.exploration_loss_coeff)

    def losses(self, minibatch: AttrDict) -> tuple[Tensor, dict[str, Any]]:
        """L_theta = L_pi + L_VF + beta * L_KL (+ exploration) of a minibatch, and its parts.

        Args:
            minibatch: `Batch.minibatch`.

        Returns:
            The loss, with gradient, and by name what it is made of: losses, and `kl` [B], `ratio` [B], `values` [B],
            `adv_std`, and the action `parameters` [B, A].
        """
        model, valids = self.candidate.model, minibatch.valids
        at_once = self.candidate.samples_at_once(minibatch.obs)
        dtype = getattr(torch, self._fixpo.encoder_dtype)
        outputs = forward(model, minibatch.obs, minibatch.rnn_states, minibatch.packing, at_once, dtype)
        parameters = outputs["action_logits"]
        distribution, values = self._distribution(parameters, minibatch), of_task(outputs["values"], minibatch.value_ids)
        ratio = self.likelihood_ratio(distribution, minibatch)
        advantages, targets = self._targets(minibatch, ratio, values)
        advantages, adv_std = normalized(advantages, valids, self.ranks.total if self.ranks.count > 1 else None)
        kl = self.divergence.per_state(parameters, minibatch.bound)
        parts: dict[str, Any] = {
            "policy_loss": policy_loss(ratio, advantages, valids),
            "value_loss": self._cfg.value_loss_coeff
            * value_loss(values, targets, valids, minibatch["values"], self._cfg.ppo_clip_value),
            "kl_loss": self._penalty(kl, parameters, minibatch),
            "exploration_loss": self._exploration(distribution, valids),
        }
        loss: Any = sum(parts.values())
        parts |= {"loss": loss, "kl": kl.detach(), "ratio": ratio, "values": values, "adv_std": adv_std}
        return loss, parts | {"parameters": parameters}

    def _primary(self, progress: Progress | Bad, minibatch: AttrDict, learning_rate: float | Tensor) -> dict[str, Any]:
        """One step on L_theta, then one on L_beta: all that the device does, and nothing that the host decides.

        Returns:
            Its numbers by name, on the device.
        """
        loss, parts = self.losses(minibatch)
        kl_parts = self._own_parts(parts["kl"], minibatch)
        grad_norm = self._descend(progress, loss, learning_rate, valids=minibatch.valids, kl_parts=kl_parts)
        statistic = self._step_beta(parts["kl"], minibatch, kl_parts=kl_parts)
        kl_mean = masked_mean(parts["kl"], minibatch.valids)
        return {**parts, "grad_norm": grad_norm, "statistic": statistic, "kl_divergence": kl_mean}

    def primary_step(self, progress: Progress, batch: Batch, part: Part) -> Tensor:
        """`_primary`, or a replay of it; returns the mean divergence."""
        self.candidate.begin_training()
        minibatch = batch.minibatch(part, PRIMARY_KEYS + (VTRACE_KEYS if self._cfg.with_vtrace else GAE_KEYS))
        learning_rate = progress.learning_rate
        done = None if self._graphs is None else self._graphs.primary_step(progress, minibatch)
        if done is None:
            done = self._primary(progress, minibatch, learning_rate)
        kl_mean, statistic = done["kl_divergence"], done["statistic"]
        if isinstance(self.ranks, Ranks) and self._cfg.lr_schedule.startswith("kl_adaptive"):
            kl_mean = self.ranks.mean(kl_mean, minibatch.valids.sum())
        progress.primary_steps += 1
        progress.kl_max_primary = torch.maximum(progress.kl_max_primary, statistic.max())
        progress.last_losses = {**done, "kl_divergence": kl_mean, "actual_lr": learning_rate}
        progress.note_step("primary", statistic, self.multiplier.beta)
        return kl_mean

    def fixup_step(
        self,
        progress: Progress,
        batch: Batch,
        part: slice,
        learning_rate: float,
        slots: Slots | None = None,
        outside: bool = True,
    ) -> None:
        """One step on L_KL (or beta * L_KL) and one on L_beta; no value, policy or exploration term.

        Args:
            progress: of the update.
            batch: its samples.
            part: the minibatch.
            learning_rate: of this step, or what the slots scale.
            slots: decide on the device whether it is a step; None: it is one.
            outside: whether the minibatch is known to be outside.
        """
        self.candidate.begin_training()
        minibatch = batch.minibatch(part, FIXUP_KEYS)
        done = None
        if slots is not None and self._graphs is not None:
            done = self._graphs.visit(progress, minibatch, learning_rate, slots, outside)
        if done is None:
            done = self._fixup(progress, minibatch, learning_rate, slots, outside)
        progress.note_step("fixup", done["statistic"], self.multiplier.beta, done["skip"])

    def _fixup(
        self,
        progress: Progress | Bad,
        minibatch: AttrDict,
        learning_rate: float | Tensor,
        slots: Slots | None,
        outside: bool | Tensor,
    ) -> dict[str, Any]:
        """`fixup_step` on a minibatch: all that the device does; its `statistic` [T] and `skip`."""
        model, at_once = self.candidate.model, self.candidate.samples_at_once(minibatch.obs)
        parameters = action_parameters(model, minibatch.obs, minibatch.rnn_states, minibatch.packing, at_once)
        kl = self.divergence.per_state(parameters, minibatch.bound)
        beta = self.penalty if self._fixpo.fixup_loss == "beta_kl" else None
        moved = minibatch.valids
        if self._fixpo.fixup_loss == "outside":
            moved = states_outside(kl, moved, self._fixpo.limit)
        loss, rate, skip = kl_penalty(kl, moved, beta, minibatch.beta_ids), learning_rate, None
        if slots is not None:
            statistic = self.divergence.statistic(kl, minibatch.valids, minibatch.beta_ids)[0].max()
            skip = slots.skip(statistic, progress.bad, outside)
            rate = learning_rate * slots.scale
            if rate.device.type != "cpu":  # whose kernels take a rate of their own precision only
                rate = rate.float()
        kl_parts = self._own_parts(kl, minibatch)
        self._descend(progress, loss, rate, skip=skip, valids=moved, kl_parts=kl_parts)
        return {"statistic": self._step_beta(kl, minibatch, skip, kl_parts), "skip": skip}

    def fixup(self, progress: Progress, batch: Batch, verifier: Verifier) -> FixupResult:
        """Algorithm 1, lines 8 to 15, on the staged state of the candidate; with `--fixup=off` one check, for the log."""
        by_device = self._fixpo.fixup != "off" and progress.trace is None and self.chunk_on(batch.valids.device) > 0
        result = (self._fixup_by_device if by_device else self._fixup_by_host)(progress, batch, verifier)
        progress.fixup_steps += result.steps
        progress.lr_halvings += result.lr_halvings
        return result

    def chunk_on(self, device: torch.device) -> int:
        """Visits of the fixup phase between two reads (`--fixup_chunk`); 0 where the host decides on each step.

        As it does where a step cannot be left out bit for bit, or where a forward pass in training mode is another function, or
        leaves something behind, even if no step follows.
        """
        chunk = self._fixpo.fixup_chunk
        if chunk < 0:
            chunk = 0 if device.type == "cpu" else CHUNK
        return chunk if can_leave_out_steps(self.optimizer, self.candidate.model) else 0

    def _on_violation(self) -> None:
        if self._fixpo.fixup_optimizer == "fresh":
            drop_first_moments(self.optimizer, self.policy_parameters)

    def _fixup_by_device(self, progress: Progress, batch: Batch, verifier: Verifier) -> FixupResult:
        """With one read for every chunk of visits; its weights are those of `_fixup_by_host`."""
        fixpo, device, rate = self._fixpo, batch.valids.device, progress.learning_rate
        slots: Any = self._slots
        slots.reset()
        count = len(verifier.slices)

        def read() -> Reading:
            with progress.timer.phase("check"):
                verifier.stage(self.candidate)
                numbers = progress.read(torch.cat([verifier.evaluate(verifier.slices), slots.counters()])).tolist()
                verifier.note(verifier.slices, numbers[:count])
            return Reading(numbers[:count], int(numbers[count]), int(numbers[count + 1]))

        def visit(part: slice, outside: bool) -> None:
            with progress.timer.phase("fixup"):
                self.fixup_step(progress, batch, part, rate, slots, outside)

        result = chunked_fixup_phase(
            verifier.slices,
            read,
            visit,
            limit=verifier.limit,
            chunk=self.chunk_on(device),
            max_steps=fixpo.max_fixup_steps,
            on_violation=self._on_violation,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate  # a number again: checkpoints hold it
        return result

    def _fixup_by_host(self, progress: Progress, batch: Batch, verifier: Verifier) -> FixupResult:
        """With a read for every decision."""
        fixpo, scale = self._fixpo, [1.0]
        with progress.timer.phase("check"):
            verifier.stage(self.candidate)

        def check(slices):
            with progress.timer.phase("check"):
                return verifier.check(slices)

        def step(part: slice) -> None:
            with progress.timer.phase("fixup"):
                self.fixup_step(progress, batch, part, progress.learning_rate * scale[0])
                verifier.stage(self.candidate)

        def halve() -> None:
            scale[0] /= 2

        return fixup_phase(
            verifier.slices,
            check,
            step,
            limit=verifier.limit,
            max_steps=0 if fixpo.fixup == "off" else fixpo.max_fixup_steps,
            plateau_steps=fixpo.fixup_plateau_steps,
            on_violation=self._on_violation,
            on_plateau=halve,
        )
