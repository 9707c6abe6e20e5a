"""The trust region on a real network: checking a batch, stepping until it holds, and going back where that does not end.

Shapes: N samples of a batch (trajectories of `recurrence` steps one after the other), B of a minibatch, A action parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial

import torch
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.utils.utils import log
from torch import Tensor

from sf_fixpo.algorithm.config import FixPOConfig, fixup_minibatch
from sf_fixpo.algorithm.losses import kl_penalty
from sf_fixpo.algorithm.multiplier import LagrangeMultiplier
from sf_fixpo.algorithm.trust_region import ActionSpec, FixupResult, backtrack, directed_kl, fixup_phase, kl_statistic
from sf_fixpo.learning.batch import Update
from sf_fixpo.learning.checkpointing import CheckpointingLearner
from sf_fixpo.learning.policy import action_parameters, channels_last
from sf_fixpo.learning.publication import PublicationGate, copy_state, interpolate_state

# check minibatches are evaluated together up to this many observation values: small networks are bound by the calls, not the work
_JOINT_CHECK_VALUES = 1 << 22

# every how many trajectories of a batch are looked at to see whether new statistics of the normaliser move the policy
_STATISTICS_PROBE = 8


@contextmanager
def _full_precision():
    """Convolutions in float32 proper: the rounding of TF32 is larger than the margin of the check."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


class ConstrainedLearner(CheckpointingLearner):
    """A learner whose private weights can be checked against the published ones, brought inside the bound, and taken back.

    Attributes:
        fixpo: the settings.
        multiplier: beta.
        spec: what the action parameters are.
        gate: the shared weights and their version.
        rollbacks_in_row: updates undone since the last one that was not.
    """

    fixpo: FixPOConfig
    multiplier: LagrangeMultiplier
    spec: ActionSpec
    gate: PublicationGate
    rollbacks_in_row: int
    _parameters: list[torch.nn.Parameter]
    _raw_obs: TensorDict

    def _optimizer_step(self, update: Update, loss: Tensor, learning_rate: float) -> Tensor:
        """Backward, clipping and one Adam step; parameters that the loss does not reach keep no gradient, and Adam skips them.

        Returns:
            The norm of the gradient before clipping.
        """
        parameters = self._parameters
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        limit = self.cfg.max_grad_norm if self.cfg.max_grad_norm > 0 else float("inf")
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self._apply_lr(learning_rate)
        self.optimizer.step()
        update.bad = update.bad | ~(loss.detach() + grad_norm).isfinite()
        return grad_norm

    def _trace(self, update: Update, phase: str, statistic: Tensor) -> None:
        if update.trace is not None:
            update.trace.append((update.epoch, phase, statistic.max(), self.multiplier.beta.mean()))

    # -- fixup phase ----------------------------------------------------------------------------------------------------------

    def _kl(self, parameters: Tensor, reference: Tensor) -> Tensor:
        return directed_kl(parameters, reference, self.spec, self.fixpo.kl_direction)

    def _statistic(self, kl: Tensor, mask: Tensor, minibatch: dict) -> tuple[Tensor, Tensor]:
        return kl_statistic(kl, mask, self.fixpo.kl_stat, minibatch.get("task_id"), self.multiplier.beta.numel())

    def _check_slices(self, update: Update) -> list[slice]:
        size = fixup_minibatch(self.cfg)
        return [slice(i, i + size) for i in range(0, len(update.mask), size)]

    def _minibatch_kl(self, update: Update, part: slice) -> Tensor:
        """[B] divergence of a slice of the batch at the present weights, with gradient where it is enabled."""
        batch = update.batch
        obs, states = batch["normalized_obs"][part], batch["rnn_states"][part]
        parameters = action_parameters(self.actor_critic, obs, states, update.done_or_invalid[part], self.cfg.recurrence)
        return self._kl(parameters, update.ref_logits[part])

    def _check(self, update: Update, slices: Sequence[slice]) -> Tensor:
        """[len] statistic of each slice at the present weights; not a number once a loss or gradient was none."""
        missing = [part for part in slices if part.start not in update.kl_of]
        with update.timer.phase("check"), torch.no_grad(), _full_precision():
            for run in self._joined(update, missing):
                kl = self._minibatch_kl(update, slice(run[0].start, run[-1].stop))
                update.kl_of.update(zip((part.start for part in run), kl.split([p.stop - p.start for p in run]), strict=True))
            statistics = [
                self._statistic(update.kl_of[part.start], update.mask[part], update.loss_view[part])[0].max() for part in slices
            ]
            return torch.where(update.bad, torch.nan, torch.stack(statistics))

    @staticmethod
    def _joined(update: Update, slices: Sequence[slice]) -> list[list[slice]]:
        """Neighbouring slices that one forward pass evaluates together."""
        values_per_sample = sum(obs[0].numel() for obs in update.batch["normalized_obs"].values())
        runs: list[list[slice]] = []
        for part in slices:
            joins = runs and runs[-1][-1].stop == part.start
            if joins and (part.stop - runs[-1][0].start) * values_per_sample <= _JOINT_CHECK_VALUES:
                runs[-1].append(part)
            else:
                runs.append([part])
        return runs

    def _fixup_phase(self, update: Update) -> FixupResult:
        """Algorithm 1, lines 8 to 15; with `--fixup=off` one check, for the log."""
        slices = self._check_slices(update)
        update.kl_of.clear()
        scale = [1.0]

        def step(part: slice) -> None:
            self._fixup_step(update, part, update.learning_rate * scale[0])

        def halve() -> None:
            scale[0] /= 2

        def before_first_step() -> None:
            if self.fixpo.reference == "behaviour" and update.lagged and not update.stale_marked:
                self._mark_stale(update)
            if self.fixpo.fixup_optimizer == "fresh" and self.fixpo.fixup != "off":
                self._drop_first_moments()

        result = fixup_phase(
            slices,
            partial(self._check, update),
            step,
            limit=self.fixpo.limit,
            max_steps=0 if self.fixpo.fixup == "off" else self.fixpo.max_fixup_steps,
            plateau_steps=self.fixpo.fixup_plateau_steps,
            on_violation=before_first_step,
            on_plateau=halve,
        )
        update.fixup_steps += result.steps
        update.check_passes += result.checks
        update.host_reads += result.checks
        update.lr_halvings += result.lr_halvings
        return result

    def _fixup_step(self, update: Update, part: slice, learning_rate: float) -> None:
        """One step on L_KL (or beta * L_KL) and one on L_beta; no value, policy or exploration term."""
        with update.timer.phase("fixup"):
            minibatch = update.loss_view[part]
            kl = self._minibatch_kl(update, part)
            beta = self.multiplier.beta if self.fixpo.fixup_loss == "beta_kl" else None
            loss = kl_penalty(kl, minibatch["kl_mask"], beta, minibatch.get("task_id"))
            self._optimizer_step(update, loss, learning_rate)
            statistic, present = self._statistic(kl, minibatch["kl_mask"], minibatch)
            self.multiplier.step(statistic, present, self.fixpo.eps_kl, self.fixpo.c_beta)
            update.kl_of.clear()
            self._trace(update, "fixup", statistic)

    def _drop_first_moments(self) -> None:
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()

    # -- the normaliser's statistics ------------------------------------------------------------------------------------------

    def _admit_statistics(self, update: Update) -> None:
        """Moves the observation normaliser towards the batch's statistics only as far as the trust region allows.

        The statistics are part of the policy, and no gradient step can be held to account for what they do to it: in the first
        updates of a run they alone would carry the policy out of the trust region, and the fixup phase would spend all its steps
        on undoing that. So they go along the line from the published ones to the new ones, back by halves until the policy that
        the update starts from is where the primary phase aims, at `eps_kl / c_beta`; the rest of the way is for later updates.
        Most updates pay for a probe of an eighth of the trajectories.
        """
        trajectories = torch.arange(len(update.mask), device=self.device).view(-1, self.cfg.recurrence)
        normalizer = self.actor_critic.obs_normalizer
        start = self.gate.published.get_submodule("obs_normalizer").state_dict()
        end = {name: tensor.clone() for name, tensor in normalizer.state_dict().items()}
        aim = self.fixpo.limit / self.fixpo.c_beta

        def inside(samples: Tensor) -> bool:
            update.host_reads += 1
            on_cpu = samples.cpu()
            batch = {key: update.batch[key][samples] for key in ("normalized_obs", "rnn_states")}
            done_or_invalid = update.done_or_invalid[on_cpu]
            parameters = action_parameters(
                self.actor_critic, **batch, done_or_invalid=done_or_invalid, recurrence=self.cfg.recurrence
            )
            reference = update.ref_logits[samples]
            if update.lagged and self.fixpo.reference == "behaviour":
                reference = self._published_parameters(batch["rnn_states"], done_or_invalid, on_cpu)
            kl = self._kl(parameters, reference)
            return bool(self._statistic(kl, update.batch["valids"][samples], {})[0] <= aim)

        def move_to(alpha: float) -> None:
            interpolate_state(start, end, alpha, normalizer)
            self._weights_moved(update)

        with update.timer.phase("statistics"), torch.no_grad():
            if not inside(trajectories[::_STATISTICS_PROBE].flatten()):
                update.statistics_scale = backtrack(move_to, lambda: inside(trajectories.flatten()))

    # -- the way back ---------------------------------------------------------------------------------------------------------

    def _observations(self, model, samples: Tensor | None = None) -> TensorDict:
        """Observations of the batch (or of some samples), normalised with the statistics of `model`, which do not change."""
        obs = TensorDict({key: x[:, :-1].flatten(0, 1) for key, x in self._raw_obs.items()})
        if samples is not None:
            obs = obs[samples]
        was_training = model.training
        model.eval()
        normalized = prepare_and_normalize_obs(model, obs)
        model.train(was_training)
        return normalized

    @torch.no_grad()
    def _published_parameters(self, rnn_states: Tensor, done_or_invalid: Tensor, samples: Tensor | None = None) -> Tensor:
        """Action parameters of the policy as published, its own statistics included: [N, A], or of some samples only."""
        obs, step = self._observations(self.gate.published, samples), self.cfg.batch_size
        parts = [slice(i, i + step) for i in range(0, len(rnn_states), step)]
        return torch.cat(
            [
                action_parameters(self.gate.published, obs[p], rnn_states[p], done_or_invalid[p], self.cfg.recurrence)
                for p in parts
            ]
        )

    def _mark_stale(self, update: Update) -> None:
        """Takes out of the bound the states where the published policy, theta', itself breaks it."""
        with update.timer.phase("check"), _full_precision():
            parameters = self._published_parameters(update.batch["rnn_states"], update.done_or_invalid)
            update.restrict_mask(self._kl(parameters, update.ref_logits) <= self.fixpo.limit)
        update.stale_marked = True

    def _go_back(self, update: Update) -> None:
        """The fixup phase gave up: back along theta' + alpha * (theta - theta'), normaliser included, until the bound holds."""
        slices = self._check_slices(update)
        start = self.gate.published.state_dict()
        end = {name: tensor.clone() for name, tensor in self.actor_critic.state_dict().items()}

        def move_to(alpha: float) -> None:
            interpolate_state(start, end, alpha, self.actor_critic)
            self._weights_moved(update)

        def satisfied() -> bool:
            update.check_passes += 1
            update.host_reads += 1
            return all(value <= self.fixpo.limit for value in self._check(update, slices).tolist())

        update.backtrack_scale = backtrack(move_to, satisfied)
        if update.backtrack_scale == 0.0:
            self._excuse_previous_policy(update)
        self._drop_first_moments()
        self.rollbacks_in_row = 0

    def _weights_moved(self, update: Update) -> None:
        update.kl_of.clear()
        if self.cfg.normalize_input:
            update.batch["normalized_obs"] = channels_last(self._observations(self.actor_critic))
            update.loss_view["normalized_obs"] = update.batch["normalized_obs"]

    def _excuse_previous_policy(self, update: Update) -> None:
        """At theta' itself: what it breaks is stale by definition (a state that is not a number included)."""
        update.bad = torch.zeros_like(update.bad)
        self._check(update, slices := self._check_slices(update))
        update.restrict_mask(torch.cat([update.kl_of[part.start] for part in slices]) <= self.fixpo.limit)

    def _roll_back(self, update: Update) -> None:
        """A number was not finite: back to theta', its statistics included.

        Raises:
            RuntimeError: too many updates in a row ended so.
        """
        copy_state(self.gate.published, self.actor_critic)
        moments = [m for state in self.optimizer.state.values() for m in (state["exp_avg"], state["exp_avg_sq"])]
        if not all(m.isfinite().all() for m in moments):
            self.optimizer.state.clear()
        self._weights_moved(update)
        self._excuse_previous_policy(update)
        update.rolled_back = True
        self.rollbacks_in_row += 1
        log.warning("Policy %d: a KL, loss or gradient was not finite; update undone", self.policy_id)
        if self.rollbacks_in_row >= self.fixpo.max_rollbacks:
            raise RuntimeError(
                f"{self.rollbacks_in_row} updates in a row had a KL, loss or gradient that is not finite and were undone "
                f"(--max_rollbacks={self.fixpo.max_rollbacks}). Look for rewards or observations that are not finite; else lower "
                f"--learning_rate={self.cfg.learning_rate} or --reward_scale={self.cfg.reward_scale}, or set --max_grad_norm."
            )
