"""From sample-factory's batch of trajectories to samples to train on, and what the host has to know of them before.

Shapes: E trajectories of T steps one after the other, N = E T samples, C samples of E (T + 1) that count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sample_factory.algo.utils.rl_utils import gae_advantages
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import ActorCritic
from torch import Tensor

from sf_fixpo.learning.host import read
from sf_fixpo.learning.ranks import ALONE, Alone
from sf_fixpo.learning.statistics import count_together
from sf_fixpo.learning.tasks import TASK_ID
from sf_fixpo.learning.values import TaskReturns, has_an_output_each, in_returns, preserve_outputs


@dataclass(frozen=True)
class Opening:
    """What the host knows of a batch before any work on it begins: all that shapes the work, in one read.

    The device has nothing to do at that time, so that nobody waits for anybody.

    Attributes:
        valids: [N] bool, samples of this policy that are not too old.
        dones: [N] bool, last steps of episodes.
        age: [N] int, versions published since a sample was collected.
        lag: mean, smallest and largest age of the valid samples; 0 counts among the latter two where a sample is not valid.
    """

    valids: np.ndarray
    dones: np.ndarray
    age: np.ndarray
    lag: tuple[float, float, float] = field(init=False)

    def __post_init__(self) -> None:
        """Works out the lag."""
        age = np.where(self.valids, self.age, 0).astype(np.float32)
        mean = age.sum() / np.float32(self.valids.sum()) if self.valids.any() else np.nan
        object.__setattr__(self, "lag", (float(mean), float(age.min()), float(age.max())))

    @property
    def num_invalids(self) -> int:
        """Samples that are not to be learned from."""
        return len(self.valids) - int(self.valids.sum())

    def num_observed(self, steps: int) -> int:
        """Observations that count: those of valid samples, and the one behind a trajectory whose last sample is valid.

        Args:
            steps: observations of a trajectory, T + 1.
        """
        return int(self.valids.sum() + self.valids.reshape(-1, steps - 1)[:, -1].sum())

    @property
    def ends(self) -> np.ndarray:
        """[N] bool, steps after which nothing flows on in a recurrent core."""
        return self.dones | ~self.valids


def open_batch(batch: TensorDict, policy_id: int, train_step: int, version: int, max_lag: int) -> tuple[Opening, Tensor]:
    """Reads what the host has to know of a batch, once.

    Args:
        batch: as sample-factory's batcher makes it, [E, T, ...].
        policy_id: ours.
        train_step: of the learner; samples `max_lag` steps older than this are not valid.
        version: that is published.
        max_lag: `--max_policy_lag`.

    Returns:
        (what was read, [E, T] bool on the device: which samples are valid).
    """
    valids = (batch["policy_id"] == policy_id) & (train_step - batch["policy_version"] < max_lag)
    rows = [valids, batch["dones"] != 0, version - batch["policy_version"]]
    ours, dones, age = read(torch.stack([row.flatten().to(torch.int32) for row in rows]))
    return Opening(ours != 0, dones != 0, age), valids


def chosen(mask: Tensor, count: int) -> Tensor:
    """Indices [count] of the true entries of a mask [n] of which the host knows how many there are; nothing waits."""
    return torch.argsort(mask, descending=True, stable=True)[:count]


@torch.no_grad()
def prepare(
    batch: TensorDict,
    normalized_obs: TensorDict,
    valids: Tensor,
    model: ActorCritic,
    cfg: Any,
    complete: bool,
    ranks: Alone = ALONE,
) -> TensorDict:
    """The samples [N, ...] of a batch, with advantages and returns: sample-factory's `_prepare_batch`, without its reads.

    Nothing of the batch is changed. There are no copies for the host, `dones_cpu` and `rewards_cpu`: made without waiting, they
    would hold anything until something else has waited.

    Args:
        batch: [E, T, ...]; observations, states and values [E, T + 1, ...].
        normalized_obs: [E, T + 1, ...] each, as the network gets them.
        valids: [E, T] bool.
        model: the critic in the mode in which it is asked for the last value; its normaliser of returns counts.
        cfg: sample-factory's settings.
        complete: whether all samples are valid.
        ranks: whose returns are counted.
    """
    samples = TensorDict({key: x for key, x in batch.items() if key != "obs"})
    states = samples["rnn_states"]
    last = TensorDict({key: x[:, -1] for key, x in normalized_obs.items()})
    behind = model(last, states[:, -1], values_only=True)["values"]
    values = torch.cat([samples["values"][:, :-1], behind.reshape(-1, 1)], dim=1)
    plain = in_returns(model, values)
    if cfg.value_bootstrap:
        # a time-out adds what the critic expects of the state it cut off
        samples["rewards"] = samples["rewards"] + cfg.gamma * plain[:, :-1] * samples["time_outs"] * samples["dones"]
    if not cfg.with_vtrace:
        longer = torch.cat([valids, valids[:, -1:]], dim=1)
        advantages = gae_advantages(samples["rewards"], samples["dones"], plain, longer, cfg.gamma, cfg.gae_lambda)
        samples["advantages"], samples["returns"] = advantages, advantages + valids * plain[:, :-1]
    samples["valids"], samples["values"], samples["rnn_states"] = valids, values[:, :-1], states[:, :-1]
    samples["normalized_obs"] = TensorDict({key: x[:, :-1] for key, x in normalized_obs.items()})
    samples = _flattened(samples)
    if cfg.normalize_returns:
        _normalize(samples, model, ranks)
    if not complete:
        # the likelihood of an action that is none may be none
        invalid, actions = ~samples["valids"], samples["actions"]
        samples["actions"] = actions.masked_fill(invalid.view(-1, *[1] * (actions.dim() - 1)), 0)
        samples["log_prob_actions"] = samples["log_prob_actions"].masked_fill(invalid, -1.0)
    return samples


def _normalize(samples: TensorDict, model: Any, ranks: Alone) -> None:
    """Counts a batch's returns, and puts them into the units of the critic.

    By task also `values`, which were recorded in units of returns, and `advantages`.

    Args:
        samples: [N, ...] each.
        model: whose statistics move.
        ranks: whose returns are counted.
    """
    normalizer, returns = model.returns_normalizer, samples["returns"]
    if isinstance(normalizer, TaskReturns):
        ids = samples["normalized_obs"][TASK_ID].reshape(-1).long()
        before = normalizer.units
        normalizer.count_in(returns, samples["valids"], ids, ranks)
        if has_an_output_each(model):
            preserve_outputs(model.critic_linear, before, normalizer.units)
        samples.update({key: normalizer.normalized(samples[key], ids) for key in ("returns", "values")})
        samples["advantages"] = samples["advantages"] / normalizer.deviation.float()[ids]
        return
    if ranks.count > 1:
        own = returns.clone()
        count_together([normalizer], lambda: normalizer(own), ranks)
        normalizer.eval()
    normalizer(returns)  # in place


def _flattened(samples: TensorDict) -> TensorDict:
    """[E, T, ...] -> [N, ...] throughout."""
    return TensorDict({k: _flattened(x) if isinstance(x, dict) else x.flatten(0, 1) for k, x in samples.items()})
