"""FixPO's learner on sample-factory: the policy improvement step of Algorithm 1 between its batcher and its policy workers.

Shapes: N samples of a batch (trajectories of `recurrence` steps one after the other), E trajectories, A action parameters.
"""

from __future__ import annotations

import time
from functools import partial
from os.path import join
from typing import Any

import torch
from sample_factory.algo.learning.learner import KlAdaptiveScheduler, LinearDecayScheduler
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import create_actor_critic
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import experiment_dir, log
from torch import Tensor

from sf_fixpo.algorithm.config import FixPOConfig, fixup_minibatch, parse_versions
from sf_fixpo.algorithm.multiplier import LagrangeMultiplier, MeanMultiplier
from sf_fixpo.algorithm.trust_region import Divergence, FixupResult, largest_entropy
from sf_fixpo.learning import checkpoints, reporting
from sf_fixpo.learning.adam import drop_first_moments, leave_out_the_compiler, use_fused_adam
from sf_fixpo.learning.batch import Batch, Progress, fill_invalid
from sf_fixpo.learning.beginning import begin, bind
from sf_fixpo.learning.checkpointing import CheckpointingLearner
from sf_fixpo.learning.improvement import Improvement
from sf_fixpo.learning.mailbox import MailboxServer
from sf_fixpo.learning.masks import has_mask
from sf_fixpo.learning.meeting import ON, Meeting
from sf_fixpo.learning.networks import action_spec
from sf_fixpo.learning.phases import PhaseTimer
from sf_fixpo.learning.policy import Policy
from sf_fixpo.learning.preparation import chosen, open_batch, prepare
from sf_fixpo.learning.publication import PublicationGate, refuse_apart
from sf_fixpo.learning.ranks import Ranks
from sf_fixpo.learning.self_test import actors_agree, parameters_of_the_policy, training_is_the_same_function
from sf_fixpo.learning.statistics import admit, count_and_normalize
from sf_fixpo.learning.tasks import TASK_ID, task_count
from sf_fixpo.learning.values import adam_follows
from sf_fixpo.learning.verification import Verified, Verifier
from sf_fixpo.records.health import Health
from sf_fixpo.records.update_log import FIXPO_STATS, UPDATE_LOG, UpdateRecord, append_row, drop_torn_line

FIXPO_STATE = "fixpo"  # key of this learner's part of a checkpoint


class FixPOLearner(CheckpointingLearner):
    """What sample-factory's learner worker calls; the work is done by the parts it has.

    Attributes:
        fixpo: the settings.
        multiplier: beta.
        mean_multiplier: of the mean divergence, where the run has one.
        candidate: the policy that is trained, which nobody sees.
        verifier: checks what is to be published.
        gate: the published policy and its version.
        improvement: gradient steps on the candidate.
        num_tasks: how many tasks the environments tell apart.
        task_returns: recent mean return of each task, for the log; the runner knows it.
        param_server: by whose mailbox policy workers get the weights.
        meeting: where this learner finds the others that train the same policy; None for one alone.
        ranks: these learners.
        ended: why the ranks have ended the run together; `meeting.ON` until they have.
        health: follows the updates and says what is wrong.
        last_record: of the last update; None where the last batch held nothing to learn from.
    """

    param_server: MailboxServer
    meeting: Meeting | None = None
    ended = ON

    def init(self):
        """Builds the networks, loads the checkpoint, and shares the published policy with the policy workers.

        Raises:
            ValueError: settings outside their range.
            CheckpointError: there are checkpoints and none can be read, or the newest does not fit.
            RanksError: the other learners of this policy have not come.
        """
        if self.meeting is not None:
            self.ranks = Ranks(self.meeting)
        self.fixpo = self._settings()
        self.num_tasks = task_count(self.env_info.obs_space)
        self.task_returns: list[float | None] = [None] * self.num_tasks
        betas = self.num_tasks if self.fixpo.beta_scope == "per_task" else 1
        fixpo = self.fixpo
        self.multiplier = LagrangeMultiplier(fixpo.beta_init, fixpo.beta_lr, fixpo.beta_max, betas, fixpo.beta_min)
        self.mean_multiplier = MeanMultiplier(fixpo.kl_mean_target, fixpo.beta_init, fixpo.beta_max, betas)
        self.updates = 0  # policy improvement steps since the start of the experiment
        self.rollbacks_in_row = 0
        self.last_record: UpdateRecord | None = None
        self._update: tuple[Batch, Progress] | None = None  # the last one
        self._restored: dict[str, Any] | None = None
        self.traced = parse_versions(self.fixpo.trace_updates)
        largest = largest_entropy(action_spec(self.env_info.action_space))
        # with a mask the uniform policy's entropy is another one in each state
        self.health = Health(None if has_mask(self.env_info.obs_space) else largest)
        self._agreed = False  # the actors' recorded parameters and the learner's forward pass

        # sample-factory advises a fixed KL loss where this coefficient is 0; beta takes its place
        coefficient, self.cfg.kl_loss_coeff = self.cfg.kl_loss_coeff, 1.0
        leave_out_the_compiler()
        super().init()
        self.cfg.kl_loss_coeff = coefficient

        self.multiplier.to(self.device)
        self.mean_multiplier.to(self.device)
        self.candidate = Policy(self.actor_critic)
        if isinstance(self.ranks, Ranks):
            self.ranks.use(self.device)
            self.ranks.copy_from_first(list(self.candidate.state.buffers.values()))
            if isinstance(self.lr_scheduler, LinearDecayScheduler):  # an update has the samples of all ranks
                together = AttrDict(self.cfg, batch_size=self.cfg.batch_size * self.ranks.count)
                self.lr_scheduler = LinearDecayScheduler(together)
        use_fused_adam(self.optimizer)
        make_network = partial(create_actor_critic, self.cfg, self.env_info.obs_space, self.env_info.action_space)
        published = Policy.like(self.candidate, make_network)
        self.verifier = Verifier(Policy.like(self.candidate, make_network), published)
        self.param_server.init(published.model, self.train_step, self.device)
        count = 0 if self.cfg.serial_mode else 2  # there actors run the published network itself
        places = [Policy.like(self.candidate, make_network, shared=True) for _ in range(count)]
        self.gate = PublicationGate(published, self.verifier, self.param_server.mailbox, places)
        self.improvement = self._make_improvement()
        self.improvement.ranks = self.ranks
        if self._restored is not None:
            self._restore_schedule(self._restored)
        self.folder = experiment_dir(self.cfg)
        drop_torn_line(join(self.folder, UPDATE_LOG))
        states = [place.model.state_dict() for place in places] or None
        return self.policy_id, states, self.device, self.train_step

    # -- what another algorithm in the same harness brings instead (`baselines`) ------------------------------------------------

    def _settings(self) -> FixPOConfig:
        """Of this algorithm, as sample-factory's cfg has them now."""
        return FixPOConfig.from_cfg(self.cfg)

    def _make_improvement(self) -> Improvement:
        """What moves the candidate."""
        return Improvement(self.candidate, self.optimizer, self.multiplier, self.mean_multiplier, self.cfg)

    # -- from sample-factory's batch to ours ----------------------------------------------------------------------------------

    def train(self, batch: TensorDict) -> dict | None:
        """One policy improvement step on a batch of trajectories [E, T, ...]; returns the message to the runner.

        Raises:
            RanksError: another learner of this policy is gone.
        """
        self._update = self.last_record = None
        before = time.perf_counter()
        if self.ended == ON:
            self.ended = self.ranks.meet()
        if self.ended != ON:
            return None
        self.waited = time.perf_counter() - before
        self.timer = PhaseTimer(self.device)
        self._recorded_obs = {key: x for key, x in batch["obs"].items() if key != TASK_ID}
        stats = super().train(batch)
        update: tuple[Batch, Progress] | None = self._update
        if update is None or stats is None:
            # the batch has given no update: what it did to the candidate's statistics is undone
            with adam_follows(self.candidate.model, self.optimizer):
                self.candidate.state.copy_(self.gate.published.state)
            return stats
        self.last_record = record = reporting.make_record(self, *update)
        if self.ranks.number == 0:
            append_row(join(self.folder, UPDATE_LOG), record.to_row())
        stats[FIXPO_STATS] = record
        return stats

    def leave(self) -> None:
        """Comes to one more meeting only to say that this rank ends.

        Raises:
            RanksError: another rank is gone.
        """
        self.ended = self.ranks.meet()

    def _prepare_batch(self, batch: TensorDict):
        """What takes the place of sample-factory's: (samples, their number and how many are not valid, of all ranks)."""
        with self.timer.phase("prepare"):
            limit = self.cfg.max_policy_lag
            opening, valids = open_batch(batch, self.policy_id, self.train_step, self.gate.version, limit)
            size, num_invalids = len(opening.valids), opening.num_invalids
            if num_invalids > 0:
                batch = fill_invalid(batch, valids)
            if num_invalids > size / 2:
                log.warning("Policy %d: %.0f %% of a batch is not valid", self.policy_id, 100 * num_invalids / size)
            raw = {key: x[:, :-1].flatten(0, 1) for key, x in batch["obs"].items() if key != TASK_ID}
            self.raw_obs, self.opening = TensorDict(raw), opening
            normalized = self._normalized(batch["obs"], valids)
            with adam_follows(model := self.candidate.model, self.optimizer):
                samples = prepare(batch, normalized, valids, model, self.cfg, num_invalids == 0, self.ranks)
            return samples, *self.ranks.totals([size, num_invalids])

    def _normalized(self, obs: TensorDict, valids: Tensor) -> TensorDict:
        """Counts the observations into the candidate's statistics; [E, T + 1, ...] each, normalised.

        No lock: nobody reads the candidate. The critic's value of the last observation, which is asked for next, is that of the
        network in eval mode; of all modules only the normaliser of returns is left to count.
        """
        lead = next(iter(obs.values())).shape[:2]
        counted = None
        if self.opening.num_invalids > 0:
            counted = chosen(torch.cat([valids, valids[:, -1:]], dim=1).flatten(), self.opening.num_observed(lead[1]))
        flat = TensorDict({key: x.flatten(0, 1) for key, x in obs.items() if key != TASK_ID})
        normalized = count_and_normalize(self.candidate, flat, counted, self.ranks)
        if self.candidate.model.returns_normalizer is not None:
            self.candidate.model.returns_normalizer.train()
        shaped = TensorDict({key: x.unflatten(0, lead) for key, x in normalized.items()})
        if TASK_ID in obs:
            shaped[TASK_ID] = obs[TASK_ID]
        return shaped

    # -- one update: Algorithm 1 ----------------------------------------------------------------------------------------------

    def _train(self, gpu_buffer: TensorDict, batch_size: int, experience_size: int, num_invalids: int) -> AttrDict | None:
        batch, progress = begin(self, gpu_buffer, experience_size, num_invalids)
        spec, betas = action_spec(self.env_info.action_space), self.multiplier.beta.numel()
        together = self.ranks.statistic if isinstance(self.ranks, Ranks) else None
        self.divergence = Divergence(spec, self.fixpo.kl_direction, self.fixpo.kl_stat, betas, together)
        self.improvement.configure(self.fixpo, self.divergence)
        self._test_itself(batch)
        with self.timer.phase("reference"):
            bind(self, batch)
        self.verifier.begin(batch, progress, self.divergence, self.fixpo.limit, fixup_minibatch(self.cfg))
        if self.candidate.has_statistics and self.improvement.ADMITS_STATISTICS:
            with self.timer.phase("statistics"):
                aim = self.fixpo.limit / self.fixpo.c_beta
                admit(self.candidate, self.gate.published, batch, progress, self.divergence, aim)
        self.improvement.begin(batch, progress)

        result = FixupResult()
        for progress.epoch in range(self.cfg.num_epochs):
            with self.timer.phase("primary"):
                self._primary_phase(batch, progress, num_invalids)
            if self.fixpo.fixup == "every_epoch" or progress.epoch == self.cfg.num_epochs - 1:
                result = self.improvement.fixup(progress, batch, self.verifier)
                if not result.finite:
                    break
        verified = self._verify(result, progress)
        if not progress.rolled_back:
            self.improvement.finish(batch, progress, self.verifier)
        if isinstance(self.ranks, Ranks):
            refuse_apart(self.ranks, self.verifier.staged, progress)
        audited = self.fixpo.audit_every and (self.updates + 1) % self.fixpo.audit_every == 0
        before = self.gate.version, self.gate.published.state.clone_tensors() if audited else {}
        with self.timer.phase("publish"):
            # every update gets a version of its own, also one that found no minibatch to step on
            self.train_step += progress.primary_steps == 0
            self.gate.publish(verified, self.train_step)
        self.updates += 1
        self._update = batch, progress
        reporting.write_trace(self, progress, before[0])
        if audited:
            reporting.write_audit(self, batch, self._recorded_obs, *before)
        return self._train_stats(batch, progress)

    def _test_itself(self, batch: Batch) -> None:
        """At the first update after a start or a resume (`self_test`).

        Raises:
            GuaranteeError: the learner's forward pass is not the function that actors run.
        """
        if self._agreed:
            return
        with self.timer.phase("self_test"):
            self._agreed = actors_agree(self.gate.published, batch, self.gate.version, self.cfg.batch_size)
            training_is_the_same_function(self.candidate, batch)
            reached = parameters_of_the_policy(self.candidate, batch)
            self.improvement.policy_parameters = reached
            ids = {id(parameter) for parameter in reached}
            named = self.candidate.model.named_parameters(remove_duplicate=False)
            self._critics = [name for name, parameter in named if id(parameter) not in ids]
            self._critics += [n for n, _ in self.candidate.model.named_buffers() if n.startswith("returns_normalizer.")]

    def _primary_phase(self, batch: Batch, progress: Progress, num_invalids: int) -> None:
        """One step on every minibatch in which there is enough to learn from."""
        parts = batch.parts(self.cfg.batch_size, self.cfg.shuffle_minibatches)
        if num_invalids > 0:
            # the spread of the advantages, by which they are normalised, takes two samples
            valids = self.opening.valids.reshape(-1, batch.recurrence)
            counts = self.ranks.totals([int(valids[batch.trajectories(part)].sum()) for part in parts])
            progress.skipped_minibatches += sum(int(count < 2) for count in counts)
            parts = [part for part, count in zip(parts, counts, strict=True) if count >= 2]
        kls = []
        batch, parts = batch.in_order(parts)
        for part in parts:
            kls.append(self.improvement.primary_step(progress, batch, part))
            self._after_optimizer_step()
            if self.lr_scheduler.invoke_after_each_minibatch():
                self._schedule_lr(progress, kls[-1:])
        if self.lr_scheduler.invoke_after_each_epoch() and kls:
            self._schedule_lr(progress, kls)

    def _schedule_lr(self, progress: Progress, kls: list[Tensor]) -> None:
        """The learning rate of the next step; only a scheduler that looks at the divergences makes the host read them."""
        recent = []
        if isinstance(self.lr_scheduler, KlAdaptiveScheduler):
            recent = progress.read(torch.stack(kls)).tolist()
        self.curr_lr = self.lr_scheduler.update(self.curr_lr, recent)
        progress.learning_rate = self.curr_lr * progress.valid_fraction

    def _verify(self, result: FixupResult, progress: Progress) -> Verified:
        """The final check, or the way back; the candidate ends where what is published does.

        Raises:
            GuaranteeError: theta' itself is outside its bound.
            RuntimeError: too many updates in a row held a number that is none.
        """
        if not result.finite:
            return self._roll_back(progress)
        verified = self.verifier.without_bound() if self.fixpo.fixup == "off" else self.verifier.verify()
        if verified is None:
            with self.timer.phase("back"):
                verified = self.verifier.go_back(self.candidate, self._critics)
                if verified is None:
                    return self._roll_back(progress)
                self.candidate.state.copy_(self.verifier.staged.state)
                drop_first_moments(self.optimizer, self.improvement.policy_parameters)
        self.rollbacks_in_row = 0
        return verified

    def _roll_back(self, progress: Progress) -> Verified:
        """A number was not finite: back to theta', its statistics included.

        Raises:
            RuntimeError: too many updates in a row ended so.
        """
        verified = self.verifier.unchanged()
        with adam_follows(self.candidate.model, self.optimizer):
            self.candidate.state.copy_(self.verifier.staged.state)
        moments = [m for state in self.optimizer.state.values() for m in (state["exp_avg"], state["exp_avg_sq"])]
        if not all(m.isfinite().all() for m in moments):
            self.optimizer.state.clear()
        progress.rolled_back = True
        progress.bad = torch.zeros_like(progress.bad)
        self.rollbacks_in_row += 1
        log.warning("Policy %d: a KL, loss or gradient was not finite; update undone", self.policy_id)
        if self.rollbacks_in_row >= self.fixpo.max_rollbacks:
            raise RuntimeError(
                f"{self.rollbacks_in_row} updates in a row had a KL, loss or gradient that is not finite and were undone "
                f"(--max_rollbacks={self.fixpo.max_rollbacks}). Look for rewards or observations that are not finite; else lower "
                f"--learning_rate={self.cfg.learning_rate} or --reward_scale={self.cfg.reward_scale}, or set --max_grad_norm."
            )
        return verified

    def _train_stats(self, batch: Batch, progress: Progress) -> AttrDict | None:
        """The `train/` scalars, as often as sample-factory writes its own."""
        if not progress.last_losses or not self._should_save_summaries():
            return None
        self.last_summary_time = time.time()
        return reporting.train_scalars(self, batch, progress)

    # -- checkpoints and populations ------------------------------------------------------------------------------------------

    def _get_checkpoint_dict(self) -> dict[str, Any]:
        """The published state, and what the next update needs beside it."""
        state = super()._get_checkpoint_dict()
        state["model"] = self.gate.published.model.state_dict()
        state[FIXPO_STATE] = {
            "multiplier": self.multiplier.state_dict(),
            "mean_multiplier": self.mean_multiplier.state_dict(),
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
        changed = self._changed(checkpoint_dict) if load_progress else set()
        if "beta_init" in changed:
            self.multiplier.beta.fill_(self.fixpo.beta_init)
        if "mean_multiplier" in state:  # not in the checkpoints of older versions
            self.mean_multiplier.load_state_dict(state["mean_multiplier"])
        if load_progress:
            self.updates, self.rollbacks_in_row = state["updates"], state["rollbacks_in_row"]
            self._restored = {**state, "changed": changed}

    def _restore_schedule(self, state: dict[str, Any]) -> None:
        """What sample-factory's `init` sets up anew after it has loaded a checkpoint."""
        if isinstance(self.lr_scheduler, LinearDecayScheduler):
            self.lr_scheduler.step = state["lr_schedule_step"]
            self.curr_lr = self.lr_scheduler.linear_decay.at(self.lr_scheduler.step)  # this run's line may be another one
        if "seed" not in state["changed"]:
            checkpoints.set_rng_state(state["rng"])

    def _maybe_load_policy(self) -> None:
        """PBT: replaces this policy by another one's published state."""
        if self.policy_to_load is None:
            return
        self.load_from_checkpoint(self.policy_to_load, load_progress=False)
        use_fused_adam(self.optimizer)
        # as sample-factory: what the replaced policy has collected becomes too old to train on
        self.train_step += self.cfg.max_policy_lag + 1
        self.gate.publish(self.verifier.restore(self.candidate), self.train_step)
        self.policy_to_load = None

    def _maybe_update_cfg(self) -> None:
        """PBT: new hyperparameters, FixPO's among them; a mutation may not take c_beta below 1."""
        if self.new_cfg is None:
            return
        if "c_beta" in self.new_cfg:
            self.new_cfg["c_beta"] = max(1.0, self.new_cfg["c_beta"])
        super()._maybe_update_cfg()
        self.fixpo = self._settings()
        self.multiplier.lr, self.multiplier.beta_max = self.fixpo.beta_lr, self.fixpo.beta_max
        self.multiplier.beta_min = self.fixpo.beta_min
        self.mean_multiplier.target, self.mean_multiplier.beta_max = self.fixpo.kl_mean_target, self.fixpo.beta_max
