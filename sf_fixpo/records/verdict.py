"""What an audit file proves: every state of the batch held against its bound. Shares no code with the learner.

The guarantee, at every valid state of the batch: the published policy is at most `eps_kl` from the reference. With the reference
`behaviour`, a state where the previous policy itself is farther than that from the one that acted is *stale*: there the published
policy is at most `eps_kl` from the previous one. There is no third kind of state, and no tolerance.

Shape symbols: N states, A action parameters. Divergences are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sf_fixpo.records.audit_files import AuditRecord
from sf_fixpo.records.recomputation import (
    Networks,
    action_parameters,
    forbidden,
    load_weights,
    network_for,
    network_masks,
    policy_kl,
    steps_of_piece,
)

# A learner that checks in float32 keeps 0.1 % of the bound free. Where KL(previous, behaviour) is nearer to the bound than twice
# that, it may rightly have called a state stale, or not: there either bound suffices.
UNDECIDED = 2e-3

# Recorded and recomputed action parameters of the same weights differ by rounding, about 1e-6; above this (times 1 + |x|) they
# are another function's.
LAG_0_TOLERANCE = 1e-2

# A logit above this has a probability that float32 can tell from 0.
_IMPOSSIBLE = -1e8


@dataclass(frozen=True)
class Finding:
    """What one audit file says.

    Attributes:
        name: the file's name.
        policy_id: which policy of a population.
        version: the version published.
        checked: states the bound was checked at: all valid ones.
        stale: those of them that are bound to the previous policy because that is itself too far from the behaviour policy.
        undone: those of them where the divergence is no number, in an update that published the previous weights again: it is 0
            there by identity.
        worst_state: index in the batch of the state nearest to its bound or farthest over it; -1 where none was checked.
        kl_worst: its KL to its own reference, nats.
        kl_max: the largest KL over the states that are bound to the reference, nats; NaN without any.
        kl_max_stale: the largest KL of a stale state to the previous policy; None without any.
        kl_bounded: the number that is compared with eps_kl: the largest KL of a state to its own reference, or their mean.
        eps_kl: the bound.
        enforced: whether the run promised anything (`--fixup`).
        acted: the largest absolute difference between the recorded action parameters and those of the previous weights, over the
            states where just these have acted; None without any.
        acted_other: a state where that difference is too large for rounding; None without any.
        loggable: what `kl_max` a log can rightly say; more than one where a float32 check may have called a state stale or not.
        loggable_stale: likewise `kl_max_stale`. NaN stands for 'no such state'.
    """

    name: str
    policy_id: int
    version: int
    checked: int
    stale: int
    undone: int
    worst_state: int
    kl_worst: float
    kl_max: float
    kl_max_stale: float | None
    kl_bounded: float
    eps_kl: float
    enforced: bool
    acted: float | None
    acted_other: int | None
    loggable: tuple[float, ...]
    loggable_stale: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether there was something to check and the bound is kept there; a number that is not finite does not keep it."""
        return self.checked > 0 and self.kl_bounded <= self.eps_kl

    def describe(self) -> str:
        """One line for the report."""
        text = f"policy {self.policy_id} version {self.version}: {self.checked} states checked"
        if not self.checked:
            return text
        text += f", {100 * self.stale / self.checked:.1f} % stale, KL max {self.kl_max:.6f}"
        if self.kl_max_stale is not None:
            text += f", of stale states {self.kl_max_stale:.6f}"
        if self.undone:
            text += f", {self.undone} without a number in an update that was undone"
        text += f", worst state {self.worst_state}, bounded/eps_kl {self.kl_bounded / self.eps_kl:.4f}"
        if self.acted is not None:
            text += f", actors' parameters within {self.acted:.1e}"
        return text if self.enforced else f"{text}; --fixup=off bounds nothing"


def recompute(record: AuditRecord, cfg: Any, name: str, policy_id: int, networks: Networks | None = None) -> Finding:
    """Recomputes the reference, staleness and every KL of one file.

    Args:
        record: the file.
        cfg: the run's configuration.
        name: of the file.
        policy_id: which policy of a population.
        networks: those of this run's earlier files, which are used again, and added to; None: there are none.

    Raises:
        UnreadableError: the file does not fit the configuration.
    """
    pi, previous, same = play(record, cfg, {} if networks is None else networks)
    return judge(record, cfg, pi, previous, same, name, policy_id)


def play(record: AuditRecord, cfg: Any, networks: Networks) -> tuple[Tensor, Tensor, bool]:
    """Action parameters [N, A] of the policies published after and before the update, and whether both have the same bits.

    Args:
        record: the file.
        cfg: the run's configuration.
        networks: those of this run's earlier files.

    Raises:
        UnreadableError: the file does not fit the configuration.
    """
    network = network_for(cfg, record, networks)
    load_weights(network, record.previous_state_dict, "previous_state_dict")
    previous = pi = action_parameters(network, cfg, record)
    same = _same_bits(record.previous_state_dict, record.state_dict)
    if not same:
        load_weights(network, record.state_dict, "state_dict")
        pi = action_parameters(network, cfg, record)
    return pi, previous, same


def _same_bits(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are the same bit by bit, those that are not a number too."""

    def as_bytes(x: Tensor) -> Tensor:
        return x.contiguous().reshape(-1).view(torch.uint8)

    return before.keys() == after.keys() and all(torch.equal(as_bytes(x), as_bytes(after[name])) for name, x in before.items())


class Distances(NamedTuple):
    """How far each state has moved; [N] each, nats.

    Attributes:
        kl: to what the state is bound to.
        reference: to the reference of the update.
        previous: to the policy published before it.
        stale: bool, bound to the previous policy although that is not the reference.
        undecided: bool, so near to being stale that float32 may have decided either way; these have the lesser KL of both.
    """

    kl: Tensor
    reference: Tensor
    previous: Tensor
    stale: Tensor
    undecided: Tensor


def measure(record: AuditRecord, pi: Tensor, previous: Tensor, same: bool) -> Distances:
    """Which states are stale, and the divergence of every state.

    Args:
        record: the file.
        pi: [N, A] action parameters of the policy as published after the update.
        previous: [N, A] of the policy as published before it.
        same: whether both have the same weights bit by bit.
    """
    valids, eps_kl = record.valids, record.eps_kl
    measured = _kl(record, pi, previous)
    kl_previous = torch.zeros_like(measured) if same else measured
    kl_reference, stale, undecided = kl_previous, torch.zeros_like(valids), torch.zeros_like(valids)
    if record.reference == "behaviour":
        kl_reference = _kl(record, pi, record.action_logits)
        distance = _kl(record, previous, record.action_logits)
        undecided = valids & (distance > eps_kl * (1 - UNDECIDED)) & (distance <= eps_kl)
        # so written, a distance that is infinite is too far as well
        stale = valids & (~(distance <= eps_kl) | (undecided & (kl_reference > eps_kl)))
    kl = torch.where(stale, kl_previous, kl_reference)
    kl = torch.where(undecided, torch.minimum(kl_reference, kl_previous), kl)
    return Distances(kl, kl_reference, kl_previous, stale, undecided)


def judge(record: AuditRecord, cfg: Any, pi: Tensor, previous: Tensor, same: bool, name: str, policy_id: int) -> Finding:
    """The verdict on one update.

    Args:
        record: the file.
        cfg: the run's configuration.
        pi: [N, A] action parameters of the policy as published after the update.
        previous: [N, A] of the policy as published before it.
        same: whether both have the same weights bit by bit.
        name: of the file.
        policy_id: which policy of a population.
    """
    valids, eps_kl = record.valids, record.eps_kl
    kl, kl_reference, kl_previous, stale, undecided = measure(record, pi, previous, same)
    worst = int(kl.masked_fill(~valids, -torch.inf).argmax()) if valids.any() else -1
    bounded = kl[valids].max() if record.kl_stat == "max" and valids.any() else kl[valids].mean()
    acted, acted_other = compare_with_actors(record, cfg, previous)
    in_region = kl_reference[valids & ~stale]
    return Finding(
        name=name,
        policy_id=policy_id,
        version=record.policy_version,
        checked=int(valids.sum()),
        stale=int(stale.sum()),
        undone=int((valids & ~_kl(record, pi, previous).isfinite()).sum()) if same else 0,
        worst_state=worst,
        kl_worst=float(kl[worst]) if worst >= 0 else float("nan"),
        kl_max=float(in_region.max()) if len(in_region) else float("nan"),
        kl_max_stale=float(kl_previous[stale].max()) if stale.any() else None,
        kl_bounded=float(bounded),
        eps_kl=eps_kl,
        enforced=record.fixup != "off",
        acted=acted,
        acted_other=acted_other,
        loggable=_possible_maxima(kl_reference[valids & ~stale & ~undecided], kl_reference[undecided]),
        loggable_stale=_possible_maxima(kl_previous[stale & ~undecided], kl_previous[undecided]),
    )


def _kl(record: AuditRecord, pi: Tensor, reference: Tensor) -> Tensor:
    """[N] divergence in the file's direction. NaN compares as nothing: it is made infinite, over every bound and the largest."""
    p, q = (pi, reference) if record.kl_direction == "pi_ref" else (reference, pi)
    kl = policy_kl(p, q, record.action_spec)
    return torch.where(kl.isfinite(), kl, torch.inf)


def _possible_maxima(certain: Tensor, possible: Tensor) -> tuple[float, ...]:
    """What the maximum over a set can be that has all of `certain` and may have any of `possible`; NaN: of no state at all."""
    least = float(certain.max()) if len(certain) else float("nan")
    return (least, *(value for value in possible.tolist() if not value <= least))


def compare_with_actors(record: AuditRecord, cfg: Any, previous: Tensor) -> tuple[float | None, int | None]:
    """Whether the function that is audited is the one that acted.

    Compared are valid states that the previous weights themselves have played, and where a memory holds nothing of others: every
    step since the recorded state, or since the start of the episode, is theirs too. A state where these weights give no number
    says nothing.

    Args:
        record: the file.
        cfg: the run's configuration.
        previous: [N, A] action parameters of the previous weights.

    Returns:
        The largest absolute difference, None where there is nothing to compare; and a state where it is more than rounding can
        be, or where an actor gave an action that its environment forbade a probability, None where there is none.
    """
    if network_masks(record):
        # of whatever version: with a probability there, how far the policies are apart says nothing of what may be done
        broken = record.valids & (forbidden(record) & (record.action_logits > _IMPOSSIBLE)).any(dim=1)
        if broken.any():
            return float("inf"), int(broken.nonzero()[0])
    own = record.valids & (record.policy_version_of == record.previous_policy_version)
    comparable = _alone(own, record.dones, steps_of_piece(cfg)) & previous.isfinite().all(dim=1)
    if not comparable.any():
        return None, None
    x = previous.double()
    gaps = (x - record.action_logits.double()).abs()
    gaps = torch.where(gaps.isfinite(), gaps, torch.inf)
    excess = (gaps - LAG_0_TOLERANCE * (1 + x.abs())).amax(dim=1).masked_fill(~comparable, -torch.inf)
    worst = int(excess.argmax())
    return float(gaps[comparable].max()), worst if excess[worst] > 0 else None


def _alone(own: Tensor, dones: Tensor, steps: int) -> Tensor:
    """[N] bool: states of `own` in whose memory is nothing of steps that are not."""
    own, dones = own.view(-1, steps), dones.view(-1, steps)
    alone = torch.zeros_like(own)
    clean = torch.ones_like(own[:, 0])
    for t in range(steps):
        alone[:, t] = clean & own[:, t]
        clean = alone[:, t] | dones[:, t]
    return alone.flatten()
