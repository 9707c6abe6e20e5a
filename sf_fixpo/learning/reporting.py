"""What the learner says of an update: its row, its trace, its audit file, its scalars.

Shapes: N samples of the batch, T tasks.
"""

from __future__ import annotations

from dataclasses import replace
from os.path import join
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import log
from torch import Tensor

from sf_fixpo.algorithm.config import task_names
from sf_fixpo.algorithm.losses import explained_variance, masked_mean
from sf_fixpo.algorithm.trust_region import action_entropy
from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.batch import Batch, Progress
from sf_fixpo.learning.masks import distribution_of
from sf_fixpo.learning.rank_figures import Together, merged, own_row, put_together
from sf_fixpo.learning.ranks import Ranks
from sf_fixpo.learning.tasks import task_figures, task_rows
from sf_fixpo.records.audit_files import FORMAT, file_name
from sf_fixpo.records.update_log import NEAR_BOUND, TRACE_LOG, UpdateRecord, append_row

if TYPE_CHECKING:
    from sf_fixpo.learning.learner import FixPOLearner

# Parts of `last_losses` that are written as they are, or as their mean.
_SCALARS = (
    "loss",
    "policy_loss",
    "value_loss",
    "kl_loss",
    "exploration_loss",
    "grad_norm",
    "kl_divergence",
    "adv_std",
    "actual_lr",
)


def make_record(learner: FixPOLearner, batch: Batch, progress: Progress) -> UpdateRecord:
    """The row of the update log, with what is wrong by now; one read for everything the device knows.

    After an update that was undone, states at which no policy gives a number are left out of the figures.
    """
    kl, valids = learner.verifier.kl(), batch.valids
    shown = valids & kl.isfinite() if progress.rolled_back else valids
    figures = _figures(learner, batch, progress, kl, shown)
    numbers = [torch.stack(list(figures.values())), learner.multiplier.beta, learner.mean_multiplier.beta]
    num_tasks = 0
    if batch.task_ids is not None and learner.num_tasks > 1:
        num_tasks = learner.num_tasks
        critic = [batch.samples[key] for key in ("values", "returns") if "returns" in batch.samples]
        numbers.append(task_figures(kl, shown, valids, batch.task_ids, num_tasks, *critic).flatten())
    together = Together([], batch.lag[0], learner.task_returns, [])
    if isinstance(learner.ranks, Ranks):
        table = own_row(torch.cat(numbers), shown, valids, batch, learner.waited, learner.task_returns)
        together = put_together(progress.read(learner.ranks.table(table)), list(figures), num_tasks)
        read = iter(together.numbers)
    else:
        read = iter(progress.read(torch.cat(numbers)).tolist())
    known: dict[str, Any] = dict(zip(figures, read, strict=False))
    betas, mean_betas = ([next(read) for _ in learner.multiplier.beta] for _ in range(2))
    tasks = list(read)
    if known["stale_fraction"] == 0:
        known["kl_max_stale"] = None
    per_task = learner.fixpo.beta_scope == "per_task"
    record = UpdateRecord(
        policy_id=learner.policy_id,
        policy_version=learner.gate.version,
        env_steps=learner.env_steps,
        eps_kl=learner.fixpo.eps_kl,
        beta=betas if per_task else betas[0],
        beta_of_mean=mean_betas if per_task else mean_betas[0],
        primary_steps=progress.primary_steps,
        fixup_steps=progress.fixup_steps,
        check_passes=progress.check_passes,
        backtracks=int(progress.backtrack_scale < 1.0),
        backtrack_scale=progress.backtrack_scale,
        rolled_back=progress.rolled_back,
        statistics_scale=progress.statistics_scale,
        lr_halvings=progress.lr_halvings,
        valid_fraction=progress.valid_fraction,
        skipped_minibatches=progress.skipped_minibatches,
        lag_mean=together.lag_mean,
        host_reads=progress.host_reads,
        seconds={phase: round(seconds, 6) for phase, seconds in progress.timer.seconds().items()},
        method=dict(progress.method),
        tasks=task_rows(task_names(learner.cfg), tasks, betas, together.returns) if tasks else {},
        ranks=together.ranks,
        **known,
    )
    names, advice = learner.health.update(record)
    for line in advice:
        log.warning("Policy %d, %d steps: %s", learner.policy_id, record.env_steps, line)
    return replace(record, health=names)


def _figures(learner: FixPOLearner, batch: Batch, progress: Progress, kl: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """What the device knows of an update, by the names of the update log; scalars.

    Args:
        learner: after it has published.
        batch: of the update.
        progress: of the update.
        kl: [N] of the published weights.
        shown: [N] bool, the states that the figures are of.
    """
    valids, stale = batch.valids, batch.stale
    bound = shown & ~stale
    steps = max(1, progress.primary_steps + progress.fixup_steps)
    figures = {
        "kl_max": torch.where(bound, kl, 0.0).max(),
        "kl_max_stale": torch.where(shown & stale, kl, 0.0).max(),
        "kl_mean": masked_mean(kl, bound),
        "kl_max_primary": progress.kl_max_primary,
        "stale_fraction": stale.sum() / valids.sum(),
        "near_bound_fraction": masked_mean((kl > NEAR_BOUND * learner.fixpo.eps_kl).float(), shown),
        "beta_zero_fraction": progress.beta_zeros / steps,
        "entropy": masked_mean(action_entropy(learner.verifier.parameters(), learner.divergence.spec), shown),
    }
    if not learner.cfg.with_vtrace:  # whose targets change with every minibatch
        figures["explained_variance"] = explained_variance(batch.samples["values"], batch.samples["returns"], valids)
    return figures


def write_trace(learner: FixPOLearner, progress: Progress, version_before: int) -> None:
    """Every gradient step of an update that is traced, one row each, under the version that the update started from."""
    if not progress.trace or learner.ranks.number:
        return
    numbers = progress.read(torch.stack([torch.stack([statistic, beta]) for _, _, statistic, beta in progress.trace])).tolist()
    for (epoch, phase, _, _), (statistic, beta) in zip(progress.trace, numbers, strict=True):
        row = {"policy_id": learner.policy_id, "policy_version": version_before, "epoch": epoch, "phase": phase}
        row |= {"kl_max": statistic, "beta": beta, "eps_kl": learner.fixpo.eps_kl, "c_beta": learner.fixpo.c_beta}
        append_row(join(learner.folder, TRACE_LOG), row)


def write_audit(
    learner: FixPOLearner, batch: Batch, recorded_obs: dict[str, Tensor], version_before: int, state_before: dict[str, Tensor]
) -> None:
    """What is needed to check the guarantee without this project's code (architecture.md, 'The update log').

    Args:
        learner: after it has published.
        batch: of the update.
        recorded_obs: [E, T + 1, ...] each, as the environment gave them.
        version_before: published before.
        state_before: its state.
    """
    samples = batch.samples
    dump: dict[str, Any] = {key: samples[key].cpu() for key in ("rnn_states", "dones", "valids", "action_logits")}
    if batch.task_ids is not None:
        dump["task_id"] = batch.task_ids.cpu()
    dump.update(
        format=FORMAT,
        obs={key: x[:, :-1].flatten(0, 1).cpu() for key, x in recorded_obs.items()},
        policy_version_of=samples["policy_version"].long().cpu(),
        previous_state_dict=state_before,
        previous_policy_version=version_before,
        state_dict=learner.gate.published.state.clone_tensors(),
        policy_version=learner.gate.version,
        action_spec=[list(part) for part in learner.divergence.spec],
        **{key: getattr(learner.fixpo, key) for key in ("eps_kl", "kl_direction", "kl_stat", "reference", "fixup")},
    )
    if isinstance(learner.ranks, Ranks):
        dumps = learner.ranks.at_first(dump)
        if dumps is None:
            return
        dump = merged(dumps)
    folder = Path(learner.folder) / "audit"
    folder.mkdir(exist_ok=True)
    checkpoints.save_atomically(dump, folder / file_name(learner.policy_id, learner.gate.version, learner.cfg.num_policies))


def train_scalars(learner: FixPOLearner, batch: Batch, progress: Progress) -> AttrDict:
    """The `train/` scalars of the last primary step."""
    parts: dict[str, Any] = progress.last_losses
    mean, low, high = batch.lag
    stats = AttrDict(lr=learner.curr_lr, version_diff_avg=mean, version_diff_min=low, version_diff_max=high)
    stats.valids_fraction = progress.valid_fraction
    stats.update({name: parts[name] for name in _SCALARS})
    distribution = distribution_of(learner.candidate.model, parts["parameters"])
    stats.update(entropy=distribution.entropy(), value=parts["values"], ratio=parts["ratio"])
    stats.update(learner.candidate.model.summaries())
    tensors = {key: x.detach().float().mean() for key, x in stats.items() if isinstance(x, Tensor)}
    stats.update(zip(tensors, progress.read(torch.stack(list(tensors.values()))).tolist(), strict=True))  # one read for all
    return stats
