"""Sequences of a batch for a recurrent core: what may flow on to what.

A core that is known runs as a loop whose state is reset by a mask, or, an LSTM on a CPU, over sequences that are padded to one
length (`unrolling`). Any other gets packed sequences. Both are worked out on the host.

Shapes: E trajectories of T steps, one after the other, so that sample i is step i % T of trajectory i // T; S size of the
recurrent state, F features. A sequence is a run of steps of one trajectory up to the end of an episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sf_fixpo.learning.host import send


@dataclass(frozen=True)
class Layout:
    """How the samples of some trajectories lie in a packed sequence.

    Attributes:
        order: [n] sample of each packed row.
        places: [n] packed row of each sample.
        batch_sizes: sequences that are still going on at each step, on the host.
        starts: [Q] first sample of each sequence, longest first.
        carried: [Q, 1] bool, whether a sequence goes on from a recorded state; after the end of an episode it starts from zero.
    """

    order: Tensor
    places: Tensor
    batch_sizes: Tensor
    starts: Tensor
    carried: Tensor


def lay_out(ends: np.ndarray, device: torch.device | str) -> Layout:
    """Packs trajectories.

    A sequence's place among all is given by its length, the longest first; row (step, place) of the packed data then lies
    behind all rows of earlier steps.

    Args:
        ends: [e, T] bool, steps after which nothing flows on; the last of every trajectory is one.
        device: of the passes.
    """
    recurrence, ends = ends.shape[1], ends.reshape(-1)
    last = np.flatnonzero(ends)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    by_length = np.argsort(-lengths, kind="stable")
    place = np.empty_like(by_length)
    place[by_length] = np.arange(len(by_length))
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(ends)) - first[sequence]
    batch_sizes = np.bincount(step)
    places = (np.cumsum(batch_sizes) - batch_sizes)[step] + place[sequence]
    order = np.empty_like(places)
    order[places] = np.arange(len(places))
    starts = first[by_length]
    return Layout(
        order=send(order, device),
        places=send(places, device),
        batch_sizes=torch.from_numpy(batch_sizes),
        starts=send(starts, device),
        carried=send(starts % recurrence == 0, device).unsqueeze(1),
    )


@dataclass(frozen=True)
class Padded:
    """Sequences side by side, each filled up to the length of the longest with its own last sample.

    Attributes:
        samples: [L, Q] sample of each step of each sequence.
        places: [n] where each sample is, in `samples` as one row.
        starts: [Q] first sample of each sequence.
        carried: [Q, 1] bool, whether a sequence goes on from a recorded state; after the end of an episode it starts from zero.
    """

    samples: Tensor
    places: Tensor
    starts: Tensor
    carried: Tensor


def pad_out(ends: np.ndarray) -> Padded:
    """Puts the sequences of trajectories side by side, on the host.

    Args:
        ends: [e, T] bool, steps after which nothing flows on; the last of every trajectory is one.
    """
    recurrence, ends = ends.shape[1], ends.reshape(-1)
    last = np.flatnonzero(ends)
    starts = np.concatenate([[0], last[:-1] + 1])
    samples = np.minimum(starts + np.arange((last - starts).max() + 1)[:, None], last)
    sequence = np.repeat(np.arange(len(starts)), last - starts + 1)
    places = (np.arange(len(ends)) - starts[sequence]) * len(starts) + sequence
    carried = torch.from_numpy(starts % recurrence == 0).unsqueeze(1)
    return Padded(torch.from_numpy(samples), torch.from_numpy(places), torch.from_numpy(starts), carried)


@dataclass(frozen=True)
class Packing:
    """What may flow on to what in some trajectories, for one call of a recurrent core.

    Attributes:
        keep: [e, T] bool on the device, whether the state after a step flows on to the next; what it says of the last steps
            nobody asks.
        ends: [e, T] bool on the host: the opposite, and true at the last steps; None where the host does not know.
    """

    keep: Tensor
    ends: np.ndarray | None

    @cached_property
    def layout(self) -> Layout:
        """Packed; made when the first core asks for it.

        Raises:
            RuntimeError: the host does not know where episodes end.
        """
        if self.ends is None:
            raise RuntimeError("a packed sequence takes the lengths of episodes, which only the device knows here")
        return lay_out(self.ends, self.keep.device)

    @cached_property
    def padded(self) -> Padded | None:
        """Side by side; None where the host does not know, or where the passes are not made by it."""
        return None if self.ends is None or self.keep.device.type != "cpu" else pad_out(self.ends)

    def on_device(self) -> Packing:
        """The same in memory of its own, which may hold other trajectories later: for a core that runs as a loop."""
        return Packing(self.keep.clone(), None)

    def pack(self, features: Tensor, rnn_states: Tensor) -> tuple[PackedSequence, Tensor]:
        """The core's input and its first states.

        Args:
            features: [n, F], with gradient.
            rnn_states: [n, S] recorded before each step; only those at the first steps of trajectories are looked at.
        """
        layout = self.layout
        first = torch.where(layout.carried, rnn_states.index_select(0, layout.starts), 0.0)
        return PackedSequence(features.index_select(0, layout.order), layout.batch_sizes), first

    def unpack(self, outputs: PackedSequence) -> Tensor:
        """The core's output [n, F] in the order of the samples."""
        return outputs.data.index_select(0, self.layout.places)


class Sequences:
    """The sequences of a batch, and packings of the parts of it that passes ask for, each made once."""

    def __init__(self, ends: np.ndarray, recurrence: int, device: torch.device | str):
        """Works out where sequences end.

        Args:
            ends: [N] bool, steps after which nothing flows on: the last of an episode, or a sample of another policy.
            recurrence: T.
            device: of the passes.
        """
        self._ends = ends.reshape(-1, recurrence).copy()
        self._ends[:, -1] = True
        self._keep = send(~self._ends, device)
        self._parts: dict[tuple[int, int], Packing] = {}

    @property
    def recurrence(self) -> int:
        """T."""
        return self._ends.shape[1]

    def part(self, samples: slice) -> Packing:
        """Of neighbouring whole trajectories, given by their samples; kept for the next pass over them."""
        key = (samples.start, samples.stop)
        if key not in self._parts:
            rows = slice(samples.start // self.recurrence, samples.stop // self.recurrence)
            self._parts[key] = Packing(self._keep[rows], self._ends[rows])
        return self._parts[key]

    def of(self, trajectories: np.ndarray) -> Packing:
        """Of any trajectories in the given order."""
        keep = self._keep.index_select(0, send(trajectories, self._keep.device))
        return Packing(keep, self._ends[trajectories])
