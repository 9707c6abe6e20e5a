"""Gradient steps as CUDA graphs: one launch in the place of hundreds, where launches are what a small network waits for.

A graph is a recording: replayed, the same kernels read and write the same memory. So a step that is to be recorded is a function
of a minibatch and a learning rate which lie in memory of their own, and whatever else it changes - weights, moments, beta - stays
where it is. What is no tensor, every setting among it, is recorded as it was; `Replays.renew` forgets all recordings when
anything of that has changed.

The same code runs on a CPU, where nothing is recorded and a replay is a call: so it is tested there, bit for bit. What a GPU made
of it is compared with the step itself before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import ActorCritic
from sample_factory.model.core import ModelCoreIdentity, ModelCoreRNN
from sample_factory.model.decoder import MlpDecoder
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import log
from torch import Tensor

from sf_fixpo.algorithm.predication import Slots
from sf_fixpo.learning.batch import Bad, Progress
from sf_fixpo.learning.networks import SEPARATE, SHARED, takes_channels_last
from sf_fixpo.learning.unrolling import can_unroll

if TYPE_CHECKING:
    from sf_fixpo.learning.improvement import Improvement

# Made before a recording, as torch asks for: libraries choose their kernels and take their memory in the first calls.
_WARM_UPS = 3
# Of how far a step moves what it changes: so far apart may a step and its replay end. cuDNN adds in no fixed order, and Adam
# makes a whole step of a gradient that is nothing but rounding.
_TOLERANCE = 0.1

Results = dict[str, Any]
# (minibatch, learning rate) -> numbers of the step by name, tensors without a gradient; it changes what `state` names, in place
Step = Callable[[AttrDict, Tensor], Results]
Capture = Callable[[Callable[[], Results], torch.device], Callable[[], Results]]


def known_to_replay(model: ActorCritic) -> bool:
    """Whether a network is made of classes whose steps are the same kernels each time; a user's own may ask the host anything."""
    if type(model) in SHARED:
        cores, decoders = [model.core], [model.decoder]
    elif type(model) in SEPARATE:
        cores, decoders = list(model.cores), [model.actor_decoder, model.critic_decoder]
    else:
        return False
    plain = all(type(core) is ModelCoreIdentity or (type(core) is ModelCoreRNN and can_unroll(core.core)) for core in cores)
    return plain and all(type(decoder) is MlpDecoder for decoder in decoders) and takes_channels_last(model)


def capture(step: Callable[[], Results], device: torch.device) -> Callable[[], Results]:
    """Records a step; on a CPU, where there is nothing to record, the step itself.

    Args:
        step: has run before, and reads and writes the same memory each time.
        device: that it runs on.

    Returns:
        What does the step again; its tensors are the same objects each time.

    Raises:
        RuntimeError: the step asks the host something, or does what cannot be recorded.
    """
    if device.type != "cuda":
        return step
    graph, here, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), torch.cuda.Stream(device)
    # the outer one goes back to where we are, as a recording that fails does not; sample-factory's batcher is a thread of the
    # learner's process: what it does meanwhile is no part of this
    with torch.cuda.stream(here), torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
        results = step()

    def replay() -> Results:
        graph.replay()
        return results

    return replay


def _leaves(minibatch: AttrDict) -> dict[str, Tensor]:
    """The tensors of a minibatch by name."""
    named = {key: x for key, x in minibatch.items() if isinstance(x, Tensor)}
    named |= {f"obs {key}": x for key, x in minibatch.obs.items()}
    if minibatch.packing is not None:
        named["keep"] = minibatch.packing.keep
    return named


def _kind(leaves: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What two minibatches of one recording have in common."""
    return tuple((name, x.dtype, tuple(x.shape)) for name, x in leaves.items())


def _copied(minibatch: AttrDict) -> AttrDict:
    """The same minibatch in memory of its own; where sequences end is known on the device alone."""
    own = AttrDict({key: x.clone() if isinstance(x, Tensor) else x for key, x in minibatch.items()})
    own.obs = TensorDict({key: x.clone() for key, x in minibatch.obs.items()})
    if minibatch.packing is not None:
        own.packing = minibatch.packing.on_device()
    return own


@dataclass(frozen=True)
class _Recording:
    inputs: list[Tensor]
    replay: Callable[[], Results]


class Replays:
    """One kind of step, recorded once for each kind of minibatch.

    Attributes:
        given_up: why nothing is recorded any more; None: it is.
        captures: recordings made so far.
    """

    def __init__(self, step: Step, device: torch.device, name: str, capture: Capture = capture):
        """Records nothing yet.

        Args:
            step: the step.
            device: of all its tensors.
            name: of the network and the step, for what is said where it cannot be recorded.
            capture: makes a recording.
        """
        self._step, self._device, self._name, self._capture = step, device, name, capture
        # the fused kernels take a rate of their own precision on a GPU, and any on a CPU
        self._rate = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._recorded_with: Any = None
        self._state: dict[str, list[Tensor]] = {}
        self.given_up: str | None = None
        self.captures = 0

    def renew(self, settings: Any, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Forgets what was recorded with other settings or on other memory; called once before the steps of an update.

        Args:
            settings: all that the step makes of numbers that are no tensors; compared with those of the recordings.
            state: what the step changes, by what it is.
        """
        places = [tensor.data_ptr() for tensors in state.values() for tensor in tensors]
        if (settings, places) != self._recorded_with:
            self._recordings.clear()
            self._recorded_with = settings, places
            # kept as long as the recordings: no other tensor gets their memory
            self._state = {name: list(tensors) for name, tensors in state.items()}

    def __call__(self, minibatch: AttrDict, learning_rate: float, read: Callable[[Tensor], np.ndarray]) -> Results | None:
        """One step; None where it cannot be recorded, and then nothing has been changed.

        Args:
            minibatch: `Batch.minibatch`.
            learning_rate: of the step.
            read: by which the host waits for numbers; only where a recording is made.

        Returns:
            The step's numbers. Tensors are overwritten by the next step.
        """
        if self.given_up is not None:
            return None
        leaves = _leaves(minibatch)
        kind = _kind(leaves)
        self._rate.fill_(learning_rate)
        if kind not in self._recordings:
            try:
                self._recordings[kind] = self._record(minibatch, read)
            except Exception as exc:  # noqa: BLE001 - whatever a network does, training goes on without recordings
                self._give_up(exc)
                return None
        recording = self._recordings[kind]
        for own, given in zip(recording.inputs, leaves.values(), strict=True):
            own.copy_(given)
        return recording.replay()

    def _record(self, minibatch: AttrDict, read: Callable[[Tensor], np.ndarray]) -> _Recording:
        own = _copied(minibatch)
        before = self._copies()

        def step() -> Results:
            return self._step(own, self._rate)

        try:
            step_alone = self._warm_up(step, before)
            replay = self._capture(step, self._device)
            self.captures += 1
            self._set_back(before)
            replay()
            self._compare(before, step_alone, self._copies(), read)
        finally:
            self._set_back(before)
        return _Recording(list(_leaves(own).values()), replay)

    def _warm_up(self, step: Callable[[], Results], before: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Makes the step some times from the same state; returns where it ends, with everything back where it was."""
        after: dict[str, list[Tensor]] = {}
        on_cuda = self._device.type == "cuda"
        aside = _aside(self._device) if on_cuda else nullcontext()
        with torch.random.fork_rng(devices=[self._device] if on_cuda else []), aside:
            for _ in range(_WARM_UPS):
                step()
                after = self._copies()
                self._set_back(before)
        return after

    def _copies(self) -> dict[str, list[Tensor]]:
        return {name: [x.detach().clone() for x in tensors] for name, tensors in self._state.items()}

    @torch.no_grad()
    def _set_back(self, before: Mapping[str, list[Tensor]]) -> None:
        for name, tensors in self._state.items():
            for tensor, value in zip(tensors, before[name], strict=True):
                tensor.copy_(value)

    @staticmethod
    def _compare(
        before: Mapping[str, list[Tensor]],
        alone: Mapping[str, list[Tensor]],
        replayed: Mapping[str, list[Tensor]],
        read: Callable[[Tensor], np.ndarray],
    ) -> None:
        """Raises RuntimeError where the replay has not done what the step does."""
        names = [name for name, tensors in before.items() if tensors]
        ways = [(_distance(alone[name], before[name]), _distance(alone[name], replayed[name])) for name in names]
        numbers = read(torch.stack([torch.stack(way) for way in ways])).tolist()
        for name, (moved, apart) in zip(names, numbers, strict=True):
            if np.isfinite(moved) and not apart <= _TOLERANCE * moved:
                raise RuntimeError(f"replayed, it moves {name} otherwise: {apart:.3g} apart after a step of {moved:.3g}")

    def _give_up(self, exc: BaseException) -> None:
        """Says it, once."""
        self._recordings.clear()
        causes = [exc]
        while (context := causes[-1].__context__) is not None:  # the end of a recording that has failed raises as well
            causes.append(context)
        said = [f"{type(cause).__name__}: {(str(cause).splitlines() or ['no reason given'])[0]}" for cause in reversed(causes)]
        self.given_up = "; then ".join(said)
        log.warning("%s cannot be CUDA graphs, they are made one by one: %s", self._name, self.given_up)


class StepGraphs:
    """The steps of an update as replays: those of the primary phase, and the visits of the fixup phase where the device decides.

    Attributes:
        primary: replays of the one kind; None where it is known before that there can be none.
        visits: replays of the other.
    """

    def __init__(
        self,
        improvement: Improvement,
        primary: Callable[..., Results],
        fixup: Callable[..., Results],
        tries_any: bool,
        capture: Capture,
    ):
        """Says why where steps cannot be recorded.

        Args:
            improvement: whose steps they are.
            primary: (`Bad`, minibatch, learning rate) -> the numbers of a step, which it makes.
            fixup: (`Bad`, minibatch, learning rate, slots, whether it is known to be outside) -> those of a visit.
            tries_any: whether networks are tried that are not known.
            capture: makes a recording of a step.
        """
        self._improvement, self._primary, self._fixup = improvement, primary, fixup
        self.primary: Replays | None = None
        self.visits: Replays | None = None
        self._slots: Slots | None = None
        self._ready = False
        model, device = improvement.candidate.model, next(improvement.candidate.model.parameters()).device
        name, self._device = type(model).__name__, device
        if (reason := self._none(tries_any)) is None:
            self.primary = Replays(self._primary_alone, device, f"{name}: its gradient steps", capture)
            self.visits = Replays(self._visit_alone, device, f"{name}: its fixup steps", capture)
        else:
            log.info("%s: gradient steps are no CUDA graphs: %s", name, reason)

    def _none(self, tries_any: bool) -> str | None:
        """Why steps cannot be recorded, as far as that is known before one is."""
        optimizer = self._improvement.optimizer
        if self._improvement.ranks.count > 1:
            return "several learners exchange numbers within a step"
        if type(optimizer) is not torch.optim.Adam:
            return f"{type(optimizer).__name__} asks the host for numbers (--optimizer)"
        if not tries_any and not known_to_replay(self._improvement.candidate.model):
            return "parts of the network are of classes that are not known; --cuda_graphs=on tries it"
        return None

    def renew(self, settings: Any, slots: Slots) -> None:
        """Called before the steps of an update.

        Args:
            settings: of which a step makes use; the multipliers' and the optimizer's are known.
            slots: of the fixup phase.
        """
        optimizer, multiplier = self._improvement.optimizer, self._improvement.multiplier
        self._slots = slots
        self._ready = self.primary is not None and bool(optimizer.state)  # the very first step makes the moments
        if self.primary is None or self.visits is None or not self._ready:
            return
        model = self._improvement.candidate.model
        changed = {
            "the weights": [*model.parameters(), *model.buffers()],
            "Adam's moments": [moment for state in optimizer.state.values() for moment in state.values()],
            "beta": [*multiplier.tensors(), self._improvement.mean_multiplier.beta],
        }
        adam = [{key: x for key, x in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups]
        settings = settings, adam, multiplier.lr, multiplier.beta_min, multiplier.beta_max
        self.primary.renew(settings, changed)
        self.visits.renew(settings, {**changed, "what the phase has done": slots.tensors()})

    def primary_step(self, progress: Progress, minibatch: AttrDict) -> Results | None:
        """One step by a replay; None where it has to be made.

        Args:
            progress: of the update; is told of a loss or gradient that is not finite.
            minibatch: `Batch.minibatch`.
        """
        progress.last_losses = {}  # whose graph of autograd's would get into a recording
        results = self._replayed(self.primary, progress, minibatch, progress.learning_rate)
        # of all numbers this one is asked for when other steps have been made
        return results and {**results, "kl_divergence": results["kl_divergence"].clone()}

    def visit(self, progress: Progress, minibatch: AttrDict, learning_rate: float, slots: Slots, outside: bool) -> Results | None:
        """One visit of the fixup phase by a replay; None where it has to be made.

        Args:
            progress: of the update; is told of a loss or gradient that is not finite.
            minibatch: `Batch.minibatch`.
            learning_rate: that the slots scale.
            slots: of the phase.
            outside: whether the minibatch is known to be outside.
        """
        if slots is not self._slots:
            return None
        minibatch = AttrDict(minibatch, bad=progress.bad, outside=torch.full_like(progress.bad, outside))
        return self._replayed(self.visits, progress, minibatch, learning_rate)

    def _replayed(self, replays: Replays | None, progress: Progress, minibatch: AttrDict, learning_rate: float) -> Results | None:
        if replays is None or not self._ready:
            return None
        results = replays(minibatch, learning_rate, progress.read)
        for group in self._improvement.optimizer.param_groups:
            group["lr"] = learning_rate  # a number again: checkpoints hold it
        if results is not None:
            progress.bad = progress.bad | results["bad"]
        return results

    def _primary_alone(self, minibatch: AttrDict, learning_rate: Tensor) -> Results:
        found = Bad(torch.zeros((), dtype=torch.bool, device=self._device))
        return self._alone(found, self._primary, minibatch, learning_rate)

    def _visit_alone(self, minibatch: AttrDict, learning_rate: Tensor) -> Results:
        found = Bad(minibatch.bad)
        return self._alone(found, self._fixup, minibatch, learning_rate, self._slots, minibatch.outside)

    def _alone(self, found: Bad, step: Callable[..., Results], *args: Any) -> Results:
        """A step as it can be recorded: nothing of autograd's is left from before, or stays behind."""
        model, groups = self._improvement.candidate.model, self._improvement.optimizer.param_groups
        model.last_action_distribution = None
        try:
            for group in groups:  # torch asks for it in a recording, and warns of it everywhere else
                group["capturable"] = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
            results = step(found, *args)
        finally:
            for group in groups:
                group["capturable"] = False
            model.last_action_distribution = None
        results = {**results, "bad": found.bad}
        return {name: x.detach() if isinstance(x, Tensor) else x for name, x in results.items()}


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On another stream, before which and after which all is in order."""
    side, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        yield
    here.wait_stream(side)


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Euclidean, over all tensors together."""
    return torch.stack([(x.double() - y.double()).square().sum() for x, y in zip(a, b, strict=True)]).sum().sqrt()
