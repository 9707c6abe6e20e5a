"""The fixup phase without a question to the host at every step: the device decides by itself which steps are none.

`trust_region.fixup_phase` reads a statistic, and then steps or does not. Here some visits to minibatches, a *chunk*, are all
asked for at once; each makes its step only where the minibatch is outside, there and then. The steps taken, their order, their
learning rates and their end are those of `fixup_phase`, which stays as the form to read and to compare with. A visit that makes
no step still costs its forward and backward pass: this is for devices that wait for the host longer than that takes.

All state is in tensors without a dimension, which are changed in place: visits can be recorded and replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sf_fixpo.algorithm.trust_region import FixupResult

Minibatch = TypeVar("Minibatch")


class Slots:
    """What a fixup phase has done so far, on the device, and whether it makes its next step.

    Attributes:
        steps: steps made.
        lr_halvings: plateaus met.
        scale: float64, what the learning rate is multiplied by.
    """

    def __init__(self, limit: float, max_steps: float, plateau_steps: float, device: torch.device | str = "cpu"):
        """Starts at none.

        Args:
            limit: what no statistic may exceed.
            max_steps: after which no more are made.
            plateau_steps: steps without a statistic one percent lower than the lowest yet, after which the rate is halved.
            device: of the statistics.
        """
        self._limit, self._max_steps, self._plateau_steps = limit, max_steps, plateau_steps
        self._lowest = torch.full((), math.inf, dtype=torch.float64, device=device)
        self._since_lowest = torch.zeros((), dtype=torch.int64, device=device)
        self._stopped = torch.zeros((), dtype=torch.bool, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.lr_halvings = torch.zeros((), dtype=torch.int64, device=device)
        self.scale = torch.ones((), dtype=torch.float64, device=device)

    def tensors(self) -> list[Tensor]:
        """All state."""
        return [self._lowest, self._since_lowest, self._stopped, self.steps, self.lr_halvings, self.scale]

    def reset(self) -> None:
        """Starts at none again."""
        for tensor in self.tensors():
            tensor.zero_()
        self._lowest.fill_(math.inf)
        self.scale.fill_(1.0)

    def skip(self, statistic: Tensor, bad: Tensor, outside: bool | Tensor = False) -> Tensor:
        """Whether the step on a minibatch is left out; where it is not, it is counted.

        Args:
            statistic: of the minibatch at the present weights.
            bad: bool, whether a loss or gradient before was not finite: no more steps then.
            outside: whether the minibatch is known to be outside, whatever the statistic says.

        Returns:
            bool. A statistic that is no number makes no step, and ends the phase.
        """
        value = statistic.detach().double()
        # so that a number that is none is not inside
        violated = ~(value <= self._limit) | outside
        self._stopped |= bad | (violated & (~value.isfinite() | (self.steps >= self._max_steps)))
        step = violated & ~self._stopped
        lower = value < 0.99 * self._lowest
        plateau = ~lower & (self._since_lowest >= self._plateau_steps)
        anew = lower | plateau
        torch.where(step & anew, value, self._lowest, out=self._lowest)
        since = torch.where(anew, 0, self._since_lowest) + 1
        torch.where(step, since, self._since_lowest, out=self._since_lowest)
        self.lr_halvings += step & plateau
        torch.where(step & plateau, self.scale / 2, self.scale, out=self.scale)
        self.steps += step
        return ~step

    def counters(self) -> Tensor:
        """[2] float32: steps and halvings, to be read together with what else is read."""
        return torch.stack([self.steps, self.lr_halvings]).float()


@dataclass(frozen=True)
class Reading:
    """What the host learns between two chunks, in one read.

    Attributes:
        statistics: of every minibatch at the present weights.
        steps: made so far.
        lr_halvings: met so far.
    """

    statistics: Sequence[float]
    steps: int
    lr_halvings: int


def chunked_fixup_phase(
    minibatches: Sequence[Minibatch],
    read_fn: Callable[[], Reading],
    visit_fn: Callable[[Minibatch, bool], None],
    *,
    limit: float,
    chunk: int,
    max_steps: float = math.inf,
    on_violation: Callable[[], None] | None = None,
) -> FixupResult:
    """`trust_region.fixup_phase` with one read for every chunk of visits.

    Args:
        minibatches: of the batch, in the order of the pass.
        read_fn: evaluates all minibatches at the present weights; the host waits for it.
        visit_fn: (minibatch, whether it is known to be outside) -> a step on it where it is outside, decided on the device.
        limit: what no statistic may exceed.
        chunk: visits between two reads, 1 at least.
        max_steps: steps after which to give up; the device heeds it within a chunk too.
        on_violation: called at the first violation, before any step.

    Returns:
        As `fixup_phase`; `checks` are the reads.
    """
    result = FixupResult()
    count, position = len(minibatches), 0
    while True:
        reading = read_fn()
        result.checks += 1
        result.steps, result.lr_halvings = reading.steps, reading.lr_halvings
        ahead = [(position + i) % count for i in range(count)]
        outside = next((i for i in ahead if not reading.statistics[i] <= limit), None)
        if outside is None:
            result.satisfied = True
            return result
        if not all(map(math.isfinite, reading.statistics)):
            result.finite = False
            return result
        if result.steps >= max_steps:
            return result
        if result.checks == 1 and on_violation is not None:
            on_violation()
        for i in range(chunk):
            # what the host has seen outside is not asked again: every chunk makes a step, and the phase ends
            visit_fn(minibatches[(outside + i) % count], i == 0)
        position = (outside + chunk) % count
