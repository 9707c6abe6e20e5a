"""How an update begins: what it works on, and what each state of it is bound to.

Shapes: N samples of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sample_factory.algo.utils.tensor_dict import TensorDict

from sf_fixpo.learning.batch import Batch, Progress
from sf_fixpo.learning.networks import channels_last
from sf_fixpo.learning.sequences import Sequences
from sf_fixpo.learning.tasks import TASK_ID

if TYPE_CHECKING:
    from sf_fixpo.learning.learner import FixPOLearner


def begin(learner: FixPOLearner, samples: TensorDict, size: int, num_invalids: int) -> tuple[Batch, Progress]:
    """Masks, sequences and counters of an update.

    Args:
        learner: that is about to make it.
        samples: [N, ...] as prepared.
        size: samples of all ranks.
        num_invalids: of these, how many are not valid.
    """
    opening, obs = learner.opening, samples["normalized_obs"]
    task_ids = obs.pop(TASK_ID).squeeze(1).long() if TASK_ID in obs else None
    sequences = None
    if learner.cfg.use_rnn:
        sequences = Sequences(opening.ends, learner.cfg.recurrence, learner.device)
    batch = Batch(
        samples=samples,
        raw_obs=learner.raw_obs,
        obs=channels_last(obs) if learner.candidate.fast_images else obs,
        valids=samples["valids"],
        sequences=sequences,
        behaviour=samples["action_logits"],
        task_ids=task_ids,
        beta_ids=task_ids if learner.fixpo.beta_scope == "per_task" else None,
        value_ids=task_ids if learner.fixpo.value_normalization == "popart" else None,
        recurrence=learner.cfg.recurrence,
        lag=opening.lag,
        all_valid=num_invalids == 0 and learner.ranks.count == 1,
    )
    valid_fraction = (size - num_invalids) / size
    progress = Progress(
        timer=learner.timer,
        # as sample-factory: a batch of which little is valid gives a noisy gradient
        learning_rate=learner.curr_lr * valid_fraction,
        valid_fraction=valid_fraction,
        bad=torch.zeros((), dtype=torch.bool, device=learner.device),
        kl_max_primary=torch.zeros((), device=learner.device),
        beta_zeros=torch.zeros((), device=learner.device),
        trace=[] if learner.updates in learner.traced else None,
        host_reads=1,  # the opening
    )
    return batch, progress


def bind(learner: FixPOLearner, batch: Batch) -> None:
    """What each state is bound to: the behaviour's parameters, or the previous policy's (algorithm.md, the guarantee)."""
    if not batch.lagged:
        return  # the policy that collected the batch is the published one, and its outputs are at hand
    published = learner.gate.published
    obs = batch.obs if published.constant_observations else published.observe(batch.raw_obs)
    previous = batch.parameters(published, obs, learner.cfg.batch_size)
    stale = None
    if learner.fixpo.reference == "behaviour":
        # a number that is none is not within the bound either
        stale = ~(learner.divergence.per_state(previous, batch.behaviour) <= learner.fixpo.limit)
    batch.bind_to_previous(previous, stale)
