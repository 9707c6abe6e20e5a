"""The verifier: evaluates what actors would run, and vouches for it. Nothing else can make a `Verified`.

What is checked is a policy of its own, the *staged* one: a network that was built as actors build theirs, never trained, always
in eval mode, whose state is what the learner would like to publish. Whatever a training network does besides - dropout,
statistics of a batch, buffers that belong to no state - cannot reach it, as it cannot reach an actor.

Shapes: N samples of the batch, A action parameters, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from sample_factory.algo.utils.tensor_dict import TensorDict
from torch import Tensor

from sf_fixpo.algorithm.trust_region import Divergence, backtrack, first_scale
from sf_fixpo.learning.batch import Batch, Progress
from sf_fixpo.learning.policy import Policy

_MINT = object()  # known to this module only


class GuaranteeError(RuntimeError):
    """The guarantee would have been broken, or nobody can tell: the run must not go on."""


class Kind(Enum):
    """Why a state may be published."""

    CHECKED = "every state of the batch was found inside the bound"
    UNCHANGED = "it is the state that is published already"
    UNBOUNDED = "the run asked for no bound (--fixup=off)"
    RESTORED = "it was read from a checkpoint, which holds published states only"


@dataclass(frozen=True)
class Verified:
    """The verifier's word for one generation of its staged state; only the verifier can give it."""

    verifier: Verifier
    generation: int
    kind: Kind
    mint: object

    def __post_init__(self) -> None:
        """Refuses to be made by anybody else."""
        if self.mint is not _MINT:
            raise TypeError("a Verified is made by the verifier only")


class Verifier:
    """Evaluates the divergence of the staged policy from what each state of a batch is bound to.

    Attributes:
        staged: the policy that is checked; nobody else writes its state.
        generation: raised whenever that state changes.
        kl_of: divergence per state of each slice of the batch at the staged state, where it has been evaluated.
        pi_of: action parameters of the same.
    """

    def __init__(self, staged: Policy, published: Policy):
        """Takes two policies of the same network.

        Args:
            staged: for this verifier alone.
            published: what actors run now; it is only read.
        """
        self.staged = staged
        self._published = published
        self.generation = 0
        self.kl_of: dict[int, Tensor] = {}
        self.pi_of: dict[int, Tensor] = {}
        self._values: dict[int, float] = {}
        self._obs: TensorDict | None = None

    def begin(self, batch: Batch, progress: Progress, divergence: Divergence, limit: float, size: int) -> None:
        """Starts an update.

        Args:
            batch: its samples.
            progress: counts passes and reads; `bad` in it makes every statistic not a number.
            divergence: how distance is measured.
            limit: what no slice's statistic may exceed.
            size: samples of a slice.
        """
        self._batch, self._progress, self._divergence, self.limit = batch, progress, divergence, limit
        self.slices = [slice(i, i + size) for i in range(0, len(batch), size)]
        self._changed(batch.obs)

    def _changed(self, obs: TensorDict | None) -> None:
        self.generation += 1
        self.kl_of.clear()
        self._values.clear()
        self._obs = obs

    def stage(self, candidate: Policy) -> None:
        """Stages the candidate's present state; the batch's observations are those of its statistics."""
        self.staged.state.copy_(candidate.state)
        self._changed(self._batch.obs if candidate.known_normalizer else None)

    def restore(self, source: Policy) -> Verified:
        """Stages a state that was read from a checkpoint, whose own update had passed its check, and vouches for it."""
        self.staged.state.copy_(source.state)
        self._changed(None)
        return self._vouch(Kind.RESTORED)

    def observations(self) -> TensorDict:
        """Of the batch, as the staged policy sees them."""
        if self._obs is None:
            self._obs = self.staged.observe(self._batch.raw_obs)
        return self._obs

    def check(self, slices: Sequence[slice]) -> list[float]:
        """Statistic of each slice at the staged state, the largest over tasks; the host waits for them, once.

        Not a number where a divergence is none, and everywhere once a loss or gradient was none.
        """
        values = self._progress.read(self.evaluate(slices)).tolist()
        self.note(slices, values)
        return values

    def evaluate(self, slices: Sequence[slice]) -> Tensor:
        """What `check` reads, for a caller who reads it together with something else and then must `note` it."""
        batch, missing = self._batch, [part for part in slices if part.start not in self.kl_of]
        obs, states = self.observations(), batch.samples["rnn_states"]
        for run in batch.joined(missing):
            part = slice(run[0].start, run[-1].stop)
            pi = self.staged.action_parameters(obs[part], states[part], batch.packing(part))
            kl = self._divergence.per_state(pi, batch.bound[part])
            starts, sizes = [p.start for p in run], [p.stop - p.start for p in run]
            self.kl_of.update(zip(starts, kl.split(sizes), strict=True))
            self.pi_of.update(zip(starts, pi.split(sizes), strict=True))
        ids, masks = batch.beta_ids, None if batch.all_valid else batch.valids
        sets = [(self.kl_of[p.start], None if masks is None else masks[p], None if ids is None else ids[p]) for p in slices]
        return torch.where(self._progress.bad, torch.nan, self._divergence.largest(sets))

    def note(self, slices: Sequence[slice], values: Sequence[float]) -> None:
        """Takes what was read of `evaluate` at the present staged state; on this alone `verify` rests."""
        self._progress.check_passes += 1
        self._values.update(zip((part.start for part in slices), values, strict=True))

    def _inside(self) -> bool:
        """Whether every slice has been evaluated at the staged state and found inside; not a number is not inside."""
        return all(self._values.get(part.start, torch.inf) <= self.limit for part in self.slices)

    def kl(self) -> Tensor:
        """[N] divergence of every state at the staged state, evaluated where it has not been."""
        if missing := [part for part in self.slices if part.start not in self.kl_of]:
            self.check(missing)
        return torch.cat([self.kl_of[part.start] for part in self.slices])

    def parameters(self) -> Tensor:
        """[N, A] action parameters of the same."""
        self.kl()
        return torch.cat([self.pi_of[part.start] for part in self.slices])

    # -- the four ways to a Verified ------------------------------------------------------------------------------------------

    def _vouch(self, kind: Kind) -> Verified:
        return Verified(self, self.generation, kind, _MINT)

    def verify(self) -> Verified | None:
        """The final check, of what has been evaluated since the staged state last changed; None where it is not inside."""
        return self._vouch(Kind.CHECKED) if self._inside() else None

    def without_bound(self) -> Verified:
        """For `--fixup=off`."""
        return self._vouch(Kind.UNBOUNDED)

    def unchanged(self) -> Verified:
        """Stages the published state again."""
        self.staged.state.copy_(self._published.state)
        self._changed(self._batch.obs if self.staged.constant_observations else None)
        return self._vouch(Kind.UNCHANGED)

    def go_back(self, candidate: Policy, at_end: Collection[str] = ()) -> Verified | None:
        """Back along theta' + alpha * (theta - theta'), statistics included, until every state is inside its bound.

        Args:
            candidate: theta, which is staged.
            at_end: names of tensors that are no part of the policy and stay the candidate's.

        Returns:
            The word for the point where it is, which is staged then; None where a divergence at theta is no number: there is no
            line to go along.

        Raises:
            GuaranteeError: theta' itself is not inside, which it is by construction: something is broken.
        """
        if missing := [part for part in self.slices if part.start not in self._values]:
            self.check(missing)
        if not all(map(math.isfinite, self._values.values())):
            return None
        worst = max(self._values.values())

        def move_to(alpha: float) -> None:
            self.staged.state.set_line_(self._published.state, candidate.state, alpha, at_end)
            self._changed(self._batch.obs if self.staged.constant_observations else None)
            self._progress.backtrack_scale = alpha

        def satisfied() -> bool:
            self.check(self.slices)
            return self._inside()

        if backtrack(move_to, satisfied, first_scale(worst, self.limit)) > 0.0:
            return self._vouch(Kind.CHECKED)
        self._progress.backtrack_scale = 0.0
        verified = self.unchanged()
        if not satisfied():
            raise GuaranteeError(
                f"the policy that is published already is at a KL of {max(self._values.values()):.6g} from what the states of "
                f"the batch are bound to, limit {self.limit:.6g}: the check evaluates another function than that which acted"
            )
        return verified
