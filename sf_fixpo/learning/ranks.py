"""Many learners that train one policy: what they exchange, so that each does what one learner with all their samples would do.

Every rank has its own samples, and the same weights bit for bit: a gradient is averaged by valid samples before it is clipped,
and whatever decides - a divergence, a number that is none, what is left to do - is a number that is the same everywhere.
So all ranks ask for the same exchanges in the same order. A learner that is `ALONE` asks for none.

Shapes: R ranks.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, BroadcastOptions, GatherOptions, ProcessGroupGloo, ReduceOp

from sf_fixpo.learning.checkpoints import unpickle
from sf_fixpo.learning.meeting import ON, Meeting


class Alone:
    """One learner; what it would exchange is its own already."""

    number, count = 0, 1

    def meet(self) -> int:
        """`meeting.ON`: nobody is waited for."""
        return ON

    def total(self, numbers: Tensor) -> Tensor:
        """Sum over all ranks."""
        return numbers

    def totals(self, numbers: Sequence[int]) -> list[int]:
        """The same of numbers on the host."""
        return list(numbers)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on rank 0."""
        return make()


ALONE = Alone()


class Ranks(Alone):
    """This rank among others.

    Attributes:
        number: of this one, from 0.
        count: R.
    """

    def __init__(self, meeting: Meeting):
        """Finds the others; numbers of the host go by gloo.

        Raises:
            RanksError: not all of them have come in time.
        """
        self.number, self.count = meeting.rank.number, meeting.rank.count
        self._meeting = meeting
        self._timeout = timedelta(seconds=meeting.timeout)
        meeting.say("learner", "here")
        meeting.hear_all("learner", meeting.patience)
        self._host: Any = ProcessGroupGloo(meeting.store, self.number, self.count, self._timeout)
        self._device: Any = self._host

    def use(self, device: torch.device) -> None:
        """From now on tensors of this device are exchanged, by NCCL where it is a GPU."""
        if device.type == "cuda":
            from torch.distributed import ProcessGroupNCCL

            options = ProcessGroupNCCL.Options()
            options._timeout = self._timeout
            self._device = ProcessGroupNCCL(self._meeting.store, self.number, self.count, options)

    def _wait(self, work: Any) -> None:
        try:
            work.wait()
        except RuntimeError as exc:
            raise self._meeting.blame(exc) from exc

    def _reduce(self, tensor: Tensor, operation: ReduceOp.RedOpType, group: Any = None) -> Tensor:
        options = AllreduceOptions()
        options.reduceOp = operation  # type: ignore[assignment]
        self._wait((group or self._device).allreduce([tensor], options))
        return tensor

    # -- numbers --------------------------------------------------------------------------------------------------------------

    def meet(self) -> int:
        """Comes to the next update; `Meeting.meet`."""
        return self._meeting.meet()

    def total(self, numbers: Tensor) -> Tensor:
        """Sum over all ranks, the same bit for bit on each."""
        return self._reduce(numbers.clone(), ReduceOp.SUM)

    def totals(self, numbers: Sequence[int]) -> list[int]:
        """The same of numbers on the host."""
        return self._reduce(torch.from_numpy(np.array(numbers, np.int64)), ReduceOp.SUM, self._host).numpy().tolist()

    def largest(self, numbers: Tensor) -> Tensor:
        """Maximum over all ranks; a number that is none on any of them is infinite: a maximum may lose it (torch's gloo does)."""
        return self._reduce(torch.where(numbers.isnan(), torch.inf, numbers), ReduceOp.MAX)

    def statistic(self, parts: Tensor, stat: str) -> Tensor:
        """`trust_region.kl_parts` of all ranks, put together."""
        return self.largest(parts) if stat == "max" else self.total(parts)

    def mean(self, numbers: Tensor, weight: Tensor) -> Tensor:
        """Mean over all ranks by weight; numbers of a rank with the weight 0 do not matter, whatever they are."""
        own = torch.where(weight > 0, numbers * weight, 0.0)
        sums = self._reduce(torch.cat([own.reshape(-1), weight.to(own.dtype).reshape(1)]), ReduceOp.SUM)
        return (sums[:-1] / sums[-1].clamp_min(1)).view_as(numbers)

    def table(self, numbers: Tensor) -> Tensor:
        """[R, k] the numbers [k] of all ranks."""
        rows = [torch.empty_like(numbers) for _ in range(self.count)]
        self._wait(self._device.allgather([rows], [numbers]))
        return torch.stack(rows)

    def average_gradients(
        self, parameters: Sequence[Tensor], loss: Tensor, weight: Tensor, parts: Tensor | None = None, stat: str = "max"
    ) -> Tensor:
        """Gives every parameter that has a gradient the mean over all ranks, by weight; one exchange.

        Args:
            parameters: the same on all ranks, and with a gradient on all or on none.
            loss: scalar.
            weight: of this rank: its valid samples. Where it is 0, nothing of this rank counts, whatever it is.
            parts: become what `statistic` would make of them, in the same exchange.
            stat: theirs.

        Returns:
            The mean loss; no number where any rank's is none.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        own = torch.cat([*(g.reshape(-1) for g in gradients), loss.detach().reshape(1)])
        numbers = [torch.where(weight > 0, own * weight, 0.0), weight.to(own.dtype).reshape(1)]
        if parts is not None:
            numbers.append(self._placed(parts) if stat == "max" else parts.reshape(-1))
        sums = self._reduce(torch.cat(numbers), ReduceOp.SUM)
        flat, total, together = sums.split([len(own), 1, len(sums) - len(own) - 1])
        flat = flat / total.clamp_min(1)
        for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))
        if parts is not None:
            parts.copy_((together.view(self.count, -1).amax(0) if stat == "max" else together).view_as(parts))
        return flat[-1]

    def _placed(self, numbers: Tensor) -> Tensor:
        """[R * n] n numbers in this rank's place, zeros in the others': added up, they are the numbers of all ranks, exactly."""
        places = numbers.new_zeros(self.count, numbers.numel())
        places[self.number] = torch.where(numbers.isnan(), torch.inf, numbers).reshape(-1)
        return places.reshape(-1)

    # -- whole tensors and objects --------------------------------------------------------------------------------------------

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors what rank 0 has in them."""
        for tensor in tensors:
            self._broadcast(tensor, self._device)

    def _broadcast(self, tensor: Tensor, group: Any) -> None:
        options = BroadcastOptions()
        options.rootRank = 0
        self._wait(group.broadcast([tensor], options))

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on rank 0, where alone it is called: tensors, on the host, and plain values."""
        content = _packed(make()) if self.number == 0 else torch.empty(0, dtype=torch.uint8)
        size = torch.from_numpy(np.array([len(content)], np.int64))
        self._broadcast(size, self._host)
        if self.number:
            content = torch.empty(int(size.numpy()[0]), dtype=torch.uint8)
        self._broadcast(content, self._host)
        return _unpacked(content)

    def at_first(self, state: Any) -> list[Any] | None:
        """What all ranks give, on rank 0; None on the others."""
        own = _packed(state)
        sizes = self._reduce(_place_of(self.number, self.count, len(own)), ReduceOp.SUM, self._host).numpy()
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        padded[: len(own)] = own
        rows = [torch.empty_like(padded) for _ in range(self.count)] if self.number == 0 else []
        options = GatherOptions()
        options.rootRank = 0
        self._wait(self._host.gather([rows] if rows else [], [padded], options))
        return [_unpacked(row[:size]) for row, size in zip(rows, sizes, strict=True)] if rows else None


def _place_of(number: int, count: int, value: int) -> Tensor:
    numbers = np.zeros(count, np.int64)
    numbers[number] = value
    return torch.from_numpy(numbers)


def _packed(state: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpacked(content: Tensor) -> Any:
    return unpickle(content.numpy().tobytes())
