"""FixPO's learner on sample-factory: the policy improvement step of Algorithm 1 between its batcher and its policy workers.

Shapes: N samples of a batch (trajectories of `recurrence` steps one after the other), B of a minibatch, A action parameters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from os.path import join
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sample_factory.algo.learning.learner import KlAdaptiveScheduler, LinearDecayScheduler, model_initialization_data
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.algo.utils.torch_utils import synchronize
from sample_factory.model.actor_critic import create_actor_critic
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import experiment_dir
from torch import Tensor

from sf_fixpo.algorithm.config import FixPOConfig, parse_versions, task_names
from sf_fixpo.algorithm.losses import kl_penalty, masked_mean, policy_loss
from sf_fixpo.algorithm.multiplier import LagrangeMultiplier
from sf_fixpo.algorithm.trust_region import FixupResult
from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.batch import Update
from sf_fixpo.learning.enforcement import ConstrainedLearner
from sf_fixpo.learning.phases import PhaseTimer
from sf_fixpo.learning.policy import TASK_ID, action_spec, channels_last, distribution_parameters
from sf_fixpo.learning.publication import PublicationGate, shared_copy
from sf_fixpo.learning.tasks import task_count, task_figures, task_rows
from sf_fixpo.records.update_log import TRACE_LOG, UPDATE_LOG, UpdateRecord, append_row, drop_torn_line

FIXPO_STATS = "fixpo"  # key of the update record in the messages to the runner
FIXPO_STATE = "fixpo"  # key of this learner's part of a checkpoint


class FixPOLearner(ConstrainedLearner):
    """Trains private weights; publishes them when the trust region holds at every valid state of the batch.

    Attributes:
        fixpo: the settings.
        multiplier: beta.
        gate: the shared weights and their version.
        num_tasks: how many tasks the environments tell apart.
        task_returns: recent mean return of each task, for the log; the runner knows it.
        last_record: of the last update; None where the last batch held nothing to learn from.
    """

    def init(self):
        """Builds the model, loads the checkpoint, and shares a published copy with the policy workers.

        Raises:
            ValueError: settings outside their range.
            CheckpointError: there are checkpoints and none can be read.
        """
        self.fixpo = FixPOConfig.from_cfg(self.cfg)
        self.spec = action_spec(self.env_info.action_space)
        self.num_tasks = task_count(self.env_info.obs_space)
        self.task_returns: list[float | None] = [None] * self.num_tasks
        self._per_task = self.fixpo.beta_scope == "per_task"
        betas = self.num_tasks if self._per_task else 1
        self.multiplier = LagrangeMultiplier(self.fixpo.beta_init, self.fixpo.beta_lr, self.fixpo.beta_max, betas)
        self.updates = 0  # policy improvement steps since the start of the experiment
        self.rollbacks_in_row = 0
        self.last_record: UpdateRecord | None = None
        self._update: Update | None = None
        self._restored: dict[str, Any] | None = None
        self._traced = parse_versions(self.fixpo.trace_updates)

        # sample-factory advises a fixed KL loss where this coefficient is 0; beta takes its place
        coefficient, self.cfg.kl_loss_coeff = self.cfg.kl_loss_coeff, 1.0
        super().init()
        self.cfg.kl_loss_coeff = coefficient

        self._use_fast_kernels()
        self.multiplier.to(self.device)
        spaces = self.env_info.obs_space, self.env_info.action_space
        published = shared_copy(partial(create_actor_critic, self.cfg, *spaces), self.actor_critic)
        self.param_server.init(published, self.train_step, self.device)
        synchronize_device = partial(synchronize, self.cfg, self.device)
        lock = self.param_server.policy_lock
        self.gate = PublicationGate(published, self.policy_versions_tensor, self.policy_id, lock, synchronize_device)
        if self._restored is not None:
            self._restore_schedule(self._restored)
        self._folder = experiment_dir(self.cfg)
        drop_torn_line(join(self._folder, UPDATE_LOG))
        return model_initialization_data(self.cfg, self.policy_id, published, self.train_step, self.device)

    def _use_fast_kernels(self) -> None:
        """Convolutions and pooling on channels-last tensors (2 to 3 times faster on a CPU), Adam as one kernel.

        Numbers differ from sample-factory's only by the order of additions; the published copy keeps the plain layout.
        """
        self.actor_critic.to(memory_format=torch.channels_last)
        self._parameters = list(self.actor_critic.parameters())
        if type(self.optimizer) is torch.optim.Adam:
            for group in self.optimizer.param_groups:
                group.update(fused=True, foreach=False)
        # the fused kernel walks parameter and moments side by side in memory: a loaded moment must have its parameter's layout
        for parameter, state in self.optimizer.state.items():
            state.update({key: torch.empty_like(parameter).copy_(state[key]) for key in ("exp_avg", "exp_avg_sq")})
            if torch.is_tensor(state["step"]):  # which other kernels keep on the host
                state["step"] = state["step"].to(parameter.device)

    # -- one update -----------------------------------------------------------------------------------------------------------

    def train(self, batch: TensorDict) -> dict | None:
        """One policy improvement step on a batch of trajectories [E, T, ...]; returns the message to the runner."""
        self._raw_obs = TensorDict({key: x for key, x in batch["obs"].items() if key != TASK_ID})
        self._update, self.last_record = None, None
        self._timer = PhaseTimer(self.device)
        stats = super().train(batch)
        if stats is None or self._update is None:
            return stats
        self.last_record = record = self._record(self._update)
        append_row(join(self._folder, UPDATE_LOG), record.to_row())
        stats[FIXPO_STATS] = record
        return stats

    def _prepare_batch(self, batch: TensorDict):
        with self._timer.phase("prepare"):
            prepared = super()._prepare_batch(batch)
            obs = prepared[0]["normalized_obs"]
            if TASK_ID in obs:
                prepared[0][TASK_ID] = obs.pop(TASK_ID).squeeze(1).long()
            prepared[0]["normalized_obs"] = channels_last(obs)
            return prepared

    def _train(self, gpu_buffer: TensorDict, batch_size: int, experience_size: int, num_invalids: int) -> AttrDict | None:
        with self._timer.phase("reference"):
            update = self._update = self._begin(gpu_buffer, experience_size, num_invalids)
        if self.cfg.normalize_input:
            self._admit_statistics(update)
        result = FixupResult()
        for epoch in range(self.cfg.num_epochs):
            update.epoch = epoch
            with self._timer.phase("primary"):
                self._primary_phase(update, self._get_minibatches(batch_size, experience_size), num_invalids)
            if self.fixpo.fixup == "every_epoch" or epoch == self.cfg.num_epochs - 1:
                result = self._fixup_phase(update)
                if not result.finite:
                    break
        if not result.finite:
            self._roll_back(update)
        elif not result.satisfied and self.fixpo.fixup != "off":
            self._go_back(update)
        else:
            self.rollbacks_in_row = 0
        started_from = self.gate.version
        with self._timer.phase("publish"):
            # every update gets a version of its own, also one that found no minibatch to step on
            self.train_step += update.primary_steps == 0
            self.gate.publish(self.actor_critic, self.train_step)
        self.updates += 1
        self._write_audit(update)
        self._write_trace(update, started_from)
        return self._train_stats(update)

    def _begin(self, batch: TensorDict, experience_size: int, num_invalids: int) -> Update:
        valids = batch["valids"]
        lag = torch.where(valids, self.gate.version - batch["policy_version"], 0.0)
        mean, low, high = torch.stack([lag.sum() / valids.sum(), lag.min(), lag.max()]).tolist()
        lagged = (low, high) != (0.0, 0.0)
        done_or_invalid = batch["dones_cpu"]
        if self.cfg.use_rnn:
            done_or_invalid = torch.logical_or(done_or_invalid, ~valids.cpu()).float()
        # at lag 0 the policy that collected the batch is the published one, and its outputs are at hand
        reference = batch["action_logits"]
        if lagged and self.fixpo.reference == "previous":
            reference = self._published_parameters(batch["rnn_states"], done_or_invalid)
        valid_fraction = (experience_size - num_invalids) / experience_size
        return Update(
            batch=batch,
            ref_logits=reference,
            mask=valids.clone(),
            done_or_invalid=done_or_invalid,
            # as sample-factory: a batch of which little is valid gives a noisy gradient
            learning_rate=self.curr_lr * valid_fraction,
            valid_fraction=valid_fraction,
            lag=(mean, low, high),
            lagged=lagged,
            timer=self._timer,
            bad=torch.zeros((), dtype=torch.bool, device=self.device),
            kl_max_primary=torch.zeros((), device=self.device),
            trace=[] if self.updates in self._traced else None,
            per_task=self._per_task,
            host_reads=2,  # the number of invalid samples (sample-factory's), the lag
        )

    # -- primary phase --------------------------------------------------------------------------------------------------------

    def _primary_phase(self, update: Update, minibatches: Sequence, num_invalids: int) -> None:
        if num_invalids > 0:
            # the spread of the advantages, by which they are normalised, takes two samples
            enough = [count >= 2 for count in update.valid_counts(minibatches)]
            update.skipped_minibatches += enough.count(False)
            minibatches = [indices for indices, use in zip(minibatches, enough, strict=True) if use]
        kls = [self._primary_step(update, indices, num_invalids) for indices in minibatches]
        if self.lr_scheduler.invoke_after_each_epoch() and kls:
            self._schedule_lr(update, kls)

    def _primary_step(self, update: Update, indices, num_invalids: int) -> Tensor:
        """One step on L_theta, then one on L_beta with the divergence of before; returns the mean divergence."""
        minibatch = AttrDict(self._get_minibatch(update.loss_view, indices))
        self.kl_loss_func = partial(self._kl_losses, minibatch)
        distribution, policy, exploration, kl, penalty, value, summaries = self._calculate_losses(minibatch, num_invalids)
        loss = policy + exploration + penalty + value
        grad_norm = self._optimizer_step(update, loss, update.learning_rate)
        statistic, present = self._statistic(kl, minibatch.kl_mask, minibatch)
        self.multiplier.step(statistic, present, self.fixpo.eps_kl, self.fixpo.c_beta)

        kl_mean = masked_mean(kl.detach(), minibatch.kl_mask)
        update.primary_steps += 1
        update.kl_max_primary = torch.maximum(update.kl_max_primary, statistic.max())
        update.last_losses = {
            "loss": loss.detach(),
            "policy_loss": policy.detach(),
            "exploration_loss": exploration,
            "kl_loss": penalty.detach(),
            "value_loss": value.detach(),
            "grad_norm": grad_norm,
            "entropy": distribution.entropy().detach(),
            "value": summaries["values"].detach(),
            "adv_std": summaries["adv_std"],
            "kl_divergence": kl_mean,
            "ratio": summaries["ratio"].detach(),
            "actual_lr": update.learning_rate,
        }
        self._trace(update, "primary", statistic)
        self._after_optimizer_step()
        if self.lr_scheduler.invoke_after_each_minibatch():
            self._schedule_lr(update, [kl_mean])
        return kl_mean

    def _schedule_lr(self, update: Update, kls: list[Tensor]) -> None:
        """The learning rate of the next step; only a scheduler that looks at the divergences makes the host read them."""
        recent = []
        if isinstance(self.lr_scheduler, KlAdaptiveScheduler):
            update.host_reads += 1
            recent = torch.stack(kls).tolist()
        self.curr_lr = self.lr_scheduler.update(self.curr_lr, recent)
        update.learning_rate = self.curr_lr * update.valid_fraction

    def _get_minibatches(self, batch_size: int, experience_size: int) -> list:
        """As sample-factory's, with the same random numbers, but in one array operation (there: 13 % of an update of MuJoCo)."""
        if self.cfg.num_batches_per_epoch == 1 or not self.cfg.shuffle_minibatches:
            return super()._get_minibatches(batch_size, experience_size)
        recurrence = self.cfg.recurrence
        starts = np.random.permutation(np.arange(0, experience_size, recurrence))
        indices = torch.from_numpy((starts[:, None] + np.arange(recurrence)).reshape(-1, batch_size))
        return list(indices if self.device.type == "cpu" else indices.to(self.device))

    @staticmethod
    def _policy_loss(ratio, adv, clip_ratio_low, clip_ratio_high, valids, num_invalids: int):
        return policy_loss(ratio, adv, valids)

    def _kl_losses(self, minibatch: AttrDict, action_space, action_logits, action_distribution, valids, num_invalids):
        """In sample-factory's form: the divergence per state [B] and its loss beta * L_KL."""
        kl = self._kl(distribution_parameters(action_distribution), action_logits)
        return kl, kl_penalty(kl, minibatch.kl_mask, self.multiplier.beta, minibatch.get("task_id"))

    # -- what is written ------------------------------------------------------------------------------------------------------

    def _record(self, update: Update) -> UpdateRecord:
        """The row of the update log; one read for everything the device knows."""
        mask, valids = update.mask, update.batch["valids"]
        kl = torch.cat([update.kl_of[start] for start in sorted(update.kl_of)])
        kl_max = torch.where(mask, kl, 0.0).max()
        numbers = [torch.stack([kl_max, masked_mean(kl, mask), update.kl_max_primary, update.stale.sum() / valids.sum()])]
        numbers.append(self.multiplier.beta)
        if self.num_tasks > 1:
            numbers.append(task_figures(kl, mask, valids, update.batch[TASK_ID], self.num_tasks).flatten())
        read = torch.cat(numbers).tolist()
        (kl_max, kl_mean, kl_max_primary, stale_fraction), read = read[:4], read[4:]
        beta, figures = read[: len(self.multiplier.beta)], read[len(self.multiplier.beta) :]
        return UpdateRecord(
            policy_id=self.policy_id,
            policy_version=self.gate.version,
            env_steps=self.env_steps,
            eps_kl=self.fixpo.eps_kl,
            kl_max=kl_max,
            kl_mean=kl_mean,
            kl_max_primary=kl_max_primary,
            beta=beta if self._per_task else beta[0],
            primary_steps=update.primary_steps,
            fixup_steps=update.fixup_steps,
            check_passes=update.check_passes,
            backtracks=int(update.backtrack_scale < 1.0),
            backtrack_scale=update.backtrack_scale,
            rolled_back=update.rolled_back,
            statistics_scale=update.statistics_scale,
            lr_halvings=update.lr_halvings,
            stale_fraction=stale_fraction,
            valid_fraction=update.valid_fraction,
            skipped_minibatches=update.skipped_minibatches,
            lag_mean=update.lag[0],
            host_reads=update.host_reads + 1,
            seconds={phase: round(seconds, 6) for phase, seconds in update.timer.seconds().items()},
            tasks=task_rows(task_names(self.cfg), figures, beta, self.task_returns) if figures else {},
        )

    def _write_trace(self, update: Update, started_from: int) -> None:
        if not update.trace:
            return
        numbers = torch.stack([torch.stack([statistic, beta]) for _, _, statistic, beta in update.trace]).tolist()
        for (epoch, phase, _, _), (statistic, beta) in zip(update.trace, numbers, strict=True):
            row = {"policy_id": self.policy_id, "policy_version": started_from, "epoch": epoch, "phase": phase}
            row |= {"kl_max": statistic, "beta": beta, "eps_kl": self.fixpo.eps_kl, "c_beta": self.fixpo.c_beta}
            append_row(join(self._folder, TRACE_LOG), row)

    def _write_audit(self, update: Update) -> None:
        """What is needed to check the guarantee without this project's code (architecture.md, 'The update log')."""
        if not self.fixpo.audit_every or self.updates % self.fixpo.audit_every:
            return
        batch = update.batch
        dump = {key: batch[key].cpu() for key in ("rnn_states", "dones", "valids", "action_logits", "task_id") if key in batch}
        dump.update(
            normalized_obs={key: x.cpu() for key, x in batch["normalized_obs"].items()},
            stale=update.stale.cpu(),
            ref_logits=update.ref_logits.cpu(),
            state_dict={name: tensor.cpu() for name, tensor in self.gate.published.state_dict().items()},
            policy_version=self.gate.version,
            action_spec=[list(part) for part in self.spec],
            **{key: getattr(self.fixpo, key) for key in ("eps_kl", "kl_direction", "kl_stat")},
        )
        folder = Path(self._folder) / "audit"
        folder.mkdir(exist_ok=True)
        name = f"{self.gate.version}.pt" if self.cfg.num_policies == 1 else f"p{self.policy_id}_{self.gate.version}.pt"
        checkpoints.save_atomically(dump, folder / name)

    def _train_stats(self, update: Update) -> AttrDict | None:
        """The `train/` scalars, as often as sample-factory writes its own."""
        if not update.last_losses or not self._should_save_summaries():
            return None
        self.last_summary_time = time.time()
        mean, low, high = update.lag
        stats = AttrDict(lr=self.curr_lr, version_diff_avg=mean, version_diff_min=low, version_diff_max=high)
        stats.valids_fraction = update.valid_fraction
        stats.update({key: x.float().mean() if isinstance(x, Tensor) else x for key, x in update.last_losses.items()})
        stats.update(self.actor_critic.summaries())
        return AttrDict({key: x.item() if isinstance(x, Tensor) else x for key, x in stats.items()})

    # -- checkpoints and populations ------------------------------------------------------------------------------------------

    def _get_checkpoint_dict(self) -> dict[str, Any]:
        state = super()._get_checkpoint_dict()
        state[FIXPO_STATE] = {
            "multiplier": self.multiplier.state_dict(),
            "updates": self.updates,
            "rollbacks_in_row": self.rollbacks_in_row,
            "lr_schedule_step": getattr(self.lr_scheduler, "step", 0),
            "rng": checkpoints.rng_state(),
        }
        return state

    def _load_state(self, checkpoint_dict, load_progress=True):
        super()._load_state(checkpoint_dict, load_progress)
        state = checkpoint_dict.get(FIXPO_STATE)
        if state is None:
            return  # of an APPO run: its weights and Adam state are a fair start
        self.multiplier.load_state_dict(state["multiplier"])
        if load_progress:
            self.updates, self.rollbacks_in_row = state["updates"], state["rollbacks_in_row"]
            self._restored = state

    def _restore_schedule(self, state: dict[str, Any]) -> None:
        """What sample-factory's `init` sets up anew after it has loaded a checkpoint."""
        if isinstance(self.lr_scheduler, LinearDecayScheduler):
            self.lr_scheduler.step = state["lr_schedule_step"]
        checkpoints.set_rng_state(state["rng"])

    def _maybe_load_policy(self) -> None:
        """PBT: replaces this policy by another one's checkpoint, whose own update had passed its check."""
        if self.policy_to_load is None:
            return
        self.load_from_checkpoint(self.policy_to_load, load_progress=False)
        self._use_fast_kernels()
        # as sample-factory: what the replaced policy has collected becomes too old to train on
        self.train_step += self.cfg.max_policy_lag + 1
        self.gate.publish(self.actor_critic, self.train_step)
        self.policy_to_load = None

    def _maybe_update_cfg(self) -> None:
        """PBT: new hyperparameters, FixPO's among them; a mutation may not take c_beta below 1."""
        if self.new_cfg is None:
            return
        if "c_beta" in self.new_cfg:
            self.new_cfg["c_beta"] = max(1.0, self.new_cfg["c_beta"])
        super()._maybe_update_cfg()
        self.fixpo = FixPOConfig.from_cfg(self.cfg)
        self.multiplier.lr, self.multiplier.beta_max = self.fixpo.beta_lr, self.fixpo.beta_max
