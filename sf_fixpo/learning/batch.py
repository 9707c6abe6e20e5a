"""What one policy improvement step works on: the samples, what binds each of them, and what has been counted so far.

Shapes: N samples (trajectories of T steps one after the other), A action parameters, S size of the recurrent state.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.utils.attr_dict import AttrDict
from torch import Tensor

from sf_fixpo.learning.host import read, send
from sf_fixpo.learning.phases import PhaseTimer
from sf_fixpo.learning.policy import Policy
from sf_fixpo.learning.sequences import Packing, Sequences

# What a step reads of the samples: indexing the rest of the batch for every step would be work for nothing. All lie on the
# learner's device, so that indices of one kind serve them all.
FIXUP_KEYS = ("rnn_states", "valids")
PRIMARY_KEYS = (*FIXUP_KEYS, "actions", "log_prob_actions", "values")
GAE_KEYS, VTRACE_KEYS = ("advantages", "returns"), ("rewards", "dones")

# A minibatch: neighbouring samples, or trajectories by number.
Part = slice | np.ndarray

# Check minibatches are evaluated together up to this many observation values: small networks are bound by the calls.
_JOINT_VALUES = 1 << 22


def fill_invalid(batch: TensorDict, valids: Tensor) -> TensorDict:
    """A shallow copy of a batch in which no number of an invalid sample is left that could reach a loss.

    Args:
        batch: as sample-factory's batcher makes it: observations and states [E, T + 1, ...], the rest [E, T, ...].
        valids: [E, T] bool.
    """
    longer = torch.cat([valids, valids[:, -1:]], dim=1)

    def filled(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        mask = longer if x.shape[1] == longer.shape[1] else valids
        return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, 0.0)

    plain = {key: filled(x) for key, x in batch.items() if key != "obs"}
    return TensorDict(plain, obs=TensorDict({key: filled(x) for key, x in batch["obs"].items()}))


@dataclass
class Batch:
    """The samples of an update on the learner's device.

    Attributes:
        samples: as sample-factory prepares them, [N, ...] each.
        raw_obs: observations before normalisation, [N, ...] each; of invalid samples whatever harms nobody.
        obs: the same as the candidate's network gets them while it trains.
        valids: [N] bool.
        sequences: of a recurrent policy; None without memory.
        behaviour: [N, A] action parameters of the policies that collected the samples, as actors recorded them.
        task_ids: [N] int64 in a run on several tasks.
        beta_ids: the same where each task has its own multiplier.
        value_ids: the same where the critic has an output for each.
        recurrence: T.
        lag: mean, smallest and largest age of the valid samples, in policy versions.
        all_valid: whether the host knows that all samples are, of a learner that is alone; then a minibatch has None for them.
        bound: [N, A] action parameters that each state is bound to; `behaviour` until something else is said.
        stale: [N] bool, valid states bound to the previous policy because it is itself too far from the behaviour's.
        previous: [N, A] action parameters of the published policy; where nothing lags, those that actors recorded.
    """

    samples: TensorDict
    raw_obs: TensorDict
    obs: TensorDict
    valids: Tensor
    sequences: Sequences | None
    behaviour: Tensor
    task_ids: Tensor | None
    beta_ids: Tensor | None
    value_ids: Tensor | None
    recurrence: int
    lag: tuple[float, float, float]
    all_valid: bool = False
    bound: Tensor = field(init=False)
    stale: Tensor = field(init=False)
    previous: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Binds every state to the policy that collected it."""
        self.bound = self.previous = self.behaviour
        self.stale = torch.zeros_like(self.valids)

    def __len__(self) -> int:
        """N."""
        return len(self.valids)

    @property
    def lagged(self) -> bool:
        """Whether a valid sample was collected by another version than the published one."""
        return self.lag[1:] != (0.0, 0.0)

    def bind_to_previous(self, parameters: Tensor, stale: Tensor | None = None) -> None:
        """Binds all states to the previous policy, or those that are stale.

        Args:
            parameters: [N, A] of the previous policy.
            stale: [N] bool; None for all, none of which counts as stale then.
        """
        self.previous = parameters
        if stale is None:
            self.bound = parameters
        else:
            self.stale = stale & self.valids
            self.bound = torch.where(self.stale.unsqueeze(1), parameters, self.behaviour)

    def packing(self, part: slice) -> Packing | None:
        """Of neighbouring trajectories."""
        return None if self.sequences is None else self.sequences.part(part)

    def joined(self, parts: Sequence[slice]) -> list[list[slice]]:
        """Neighbouring slices that one forward pass evaluates together."""
        values_per_sample = sum(obs[0].numel() for obs in self.obs.values())
        runs: list[list[slice]] = []
        for part in parts:
            joins = runs and runs[-1][-1].stop == part.start
            if joins and (part.stop - runs[-1][0].start) * values_per_sample <= _JOINT_VALUES:
                runs[-1].append(part)
            else:
                runs.append([part])
        return runs

    def parameters(self, policy: Policy, obs: TensorDict, size: int) -> Tensor:
        """[N, A] of a policy at every state, `size` samples at a time."""
        parts = [slice(i, min(i + size, len(self))) for i in range(0, len(self), size)]
        states = self.samples["rnn_states"]
        return torch.cat([policy.action_parameters(obs[part], states[part], self.packing(part)) for part in parts])

    def parts(self, size: int, shuffled: bool) -> list[Part]:
        """Minibatches of whole trajectories, in the order of sample-factory's and with the same random numbers."""
        if size >= len(self) or not shuffled:
            return [slice(i, i + size) for i in range(0, len(self), size)]
        starts = np.random.permutation(np.arange(0, len(self), self.recurrence))
        return list((starts // self.recurrence).reshape(-1, size // self.recurrence))

    def trajectories(self, part: Part) -> Part:
        """Their numbers, as arrays by trajectory are indexed."""
        return slice(part.start // self.recurrence, part.stop // self.recurrence) if isinstance(part, slice) else part

    def indices(self, part: Part) -> slice | Tensor:
        """The samples of a minibatch, as tensors of the batch are indexed."""
        if isinstance(part, slice):
            return part
        samples = (part[:, None] * self.recurrence + np.arange(self.recurrence)).reshape(-1)
        return send(samples, self.valids.device)

    def in_order(self, parts: Sequence[Part]) -> tuple[Batch, Sequence[Part]]:
        """What an epoch needs of the same samples, one minibatch after the other, so that each is a slice.

        One gather of each tensor an epoch then takes the place of one a step, which in small networks costs more than the
        layers. Large samples are left where they are: a second copy of them would cost more memory than it gains time.
        """
        values = sum(x[0].numel() for x in (*self.obs.values(), self.bound))
        shuffled = [part for part in parts if not isinstance(part, slice)]
        if len(shuffled) < max(2, len(parts)) or self.sequences is not None or len(self) * values > _JOINT_VALUES:
            return self, parts
        chosen = self.indices(np.concatenate(shuffled))
        order = copy(self)
        keys = [key for key in (*PRIMARY_KEYS, *GAE_KEYS, *VTRACE_KEYS) if key in self.samples]
        order.samples = TensorDict({key: self.samples[key][chosen] for key in keys})
        order.obs, order.bound, order.valids = self.obs[chosen], self.bound[chosen], order.samples["valids"]
        order.beta_ids = None if self.beta_ids is None else self.beta_ids[chosen]
        order.value_ids = None if self.value_ids is None else self.value_ids[chosen]
        ends = np.cumsum([len(part) * self.recurrence for part in shuffled]).tolist()
        return order, [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def minibatch(self, part: Part, keys: Sequence[str]) -> AttrDict:
        """The named samples of a minibatch, and its `obs`, `bound`, `packing`, `beta_ids` and `value_ids`; tensors [B, ...]."""
        chosen = self.indices(part)
        minibatch = AttrDict({key: None if key == "valids" and self.all_valid else self.samples[key][chosen] for key in keys})
        minibatch.obs, minibatch.bound = self.obs[chosen], self.bound[chosen]
        minibatch.beta_ids = None if self.beta_ids is None else self.beta_ids[chosen]
        minibatch.value_ids = None if self.value_ids is None else self.value_ids[chosen]
        minibatch.packing = None
        if self.sequences is not None:
            minibatch.packing = self.packing(part) if isinstance(part, slice) else self.sequences.of(part)
        return minibatch


@dataclass
class Bad:
    """Of steps that are no part of an update yet: `bad` of its `Progress`."""

    bad: Tensor


@dataclass
class Progress:
    """How far an update is, and what it has cost.

    Attributes:
        timer: of the phases.
        learning_rate: of the next step, scaled by the share of valid samples.
        valid_fraction: share of valid samples.
        bad: bool tensor, whether a loss or gradient was not finite.
        kl_max_primary: tensor, largest divergence seen by a primary step.
        beta_zeros: tensor, gradient steps after which beta was 0; a share of one where some tasks' was.
        trace: (epoch, phase, statistic, beta) of every gradient step, tensors; None when this update is not traced.
        last_losses: of the last primary step, for the `train/` scalars.
        method: what an algorithm of `baselines` says of its own update, numbers by name.
    """

    timer: PhaseTimer
    learning_rate: float
    valid_fraction: float
    bad: Tensor
    kl_max_primary: Tensor
    beta_zeros: Tensor
    trace: list[tuple[int, str, Tensor, Tensor]] | None = None
    last_losses: dict[str, Tensor | float] = field(default_factory=dict)
    method: dict[str, float] = field(default_factory=dict)
    epoch: int = 0
    primary_steps: int = 0
    fixup_steps: int = 0
    check_passes: int = 0
    host_reads: int = 0
    lr_halvings: int = 0
    skipped_minibatches: int = 0
    statistics_scale: float = 1.0
    backtrack_scale: float = 1.0
    rolled_back: bool = False

    def read(self, tensor: Tensor) -> np.ndarray:
        """Waits for a tensor of the device; counted."""
        self.host_reads += 1
        return read(tensor)

    def note_step(self, phase: str, statistic: Tensor, beta: Tensor, skipped: Tensor | None = None) -> None:
        """Counts where beta is, and adds a gradient step to the trace, where this update has one.

        Args:
            phase: `primary` or `fixup`.
            statistic: [T] of before the step.
            beta: [T] after it.
            skipped: bool, whether it was none; None where it was one. Not for an update that is traced.
        """
        zeros = (beta == 0.0).float().mean()
        self.beta_zeros = self.beta_zeros + (zeros if skipped is None else torch.where(skipped, 0.0, zeros))
        if self.trace is not None:
            self.trace.append((self.epoch, phase, statistic.max(), beta.mean()))
