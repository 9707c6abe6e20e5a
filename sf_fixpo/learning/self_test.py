"""Asks, at the first update of every start, whether the learner's forward pass is the function that actors run.

The guarantee is about that function. Where a network is another one in the learner's hands - a `forward` of its own, a core that
treats sequences otherwise than steps, a branch on `self.training` - no check of the learner's says anything about the actors.

Shapes: N samples of the batch, A action parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sf_fixpo.learning.batch import Batch
from sf_fixpo.learning.policy import Policy, action_parameters, full_precision
from sf_fixpo.learning.verification import GuaranteeError

# |difference| <= tolerance * (1 + |value|). Rounding of 32 recurrent steps through a deep network is about 1e-5 of float32 on a
# CPU; actors on a GPU may convolve in TF32, which rounds to 5e-4.
_TOLERANCE_CPU, _TOLERANCE_ACCELERATOR = 1e-3, 2e-2

# What torch itself makes different in training: known, and no part of the function that is checked.
_KNOWN = (_DropoutNd, _NormBase, nn.RNNBase, nn.RReLU)


def _probe(batch: Batch) -> slice:
    """A few trajectories are enough to tell two functions apart."""
    return slice(0, min(len(batch), max(batch.recurrence, 256 // batch.recurrence * batch.recurrence)))


def _comparable(batch: Batch, version: int) -> Tensor:
    """[N] bool: valid samples of the published version; of a recurrent policy, where a whole trajectory is made of them.

    After a sample that is not valid the learner goes on from an empty memory, and the actor from its own.
    """
    current = batch.valids & (batch.samples["policy_version"] == version)
    if batch.sequences is None:
        return current
    return current.view(-1, batch.recurrence).all(1).repeat_interleave(batch.recurrence)


def _far(found: Tensor, recorded: Tensor) -> Tensor:
    """[N] how far apart two sets of action parameters are, in units of the tolerance; infinite where one is not a number."""
    tolerance = _TOLERANCE_CPU if found.device.type == "cpu" else _TOLERANCE_ACCELERATOR
    unit = tolerance * (1.0 + recorded.abs())
    return torch.nan_to_num((found - recorded).abs() / unit, nan=torch.inf).amax(1)


def actors_agree(published: Policy, batch: Batch, version: int, size: int) -> bool:
    """Compares what actors recorded with what the learner computes with the same weights.

    Args:
        published: the policy that actors run.
        batch: with its recorded action parameters.
        version: of the published policy.
        size: samples that are evaluated together.

    Returns:
        Whether there was anything to compare.

    Raises:
        GuaranteeError: they are not the same within float32 rounding; the message names the network and the difference.
    """
    comparable = _comparable(batch, version)
    # a number that is none on both sides is no sign of another function: the update will be undone for it
    finite = batch.behaviour.isfinite().all(1)
    comparable &= finite
    if not comparable.any():
        return False
    obs = published.observe(batch.raw_obs)
    found = batch.parameters(published, obs, size)
    far = torch.where(comparable, _far(found, batch.behaviour), 0.0)
    if far.max() <= 1.0:
        return True
    state = int(far.argmax())
    difference = (found[state] - batch.behaviour[state]).abs().max()
    raise GuaranteeError(
        f"{type(published.model).__name__}: the learner's forward pass is not the function that actors run. With the same "
        f"weights (version {version}) and observation, state {state} of the batch: actors recorded "
        f"{_numbers(batch.behaviour[state])}, the three parts of the forward pass give {_numbers(found[state])}, a difference "
        f"of {difference:.3g}. Look for a forward() that does something else than forward_head, forward_core and forward_tail, a "
        "core that treats a sequence otherwise than single steps, or noise that is drawn in eval mode"
    )


def _numbers(x: Tensor) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in x[:6].tolist()) + (", ...]" if len(x) > 6 else "]")


@contextmanager
def _undone(candidate: Policy) -> Iterator[None]:
    """What a forward pass in training mode leaves behind is taken back: buffers, the mode of every module, random numbers."""
    model = candidate.model
    before = {key: buffer.clone() for key, buffer in candidate.state.buffers.items()}
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for key, buffer in before.items():
                candidate.state.buffers[key].copy_(buffer)
        for module, training in modes.items():
            module.training = training


def training_is_the_same_function(candidate: Policy, batch: Batch) -> None:
    """Compares the forward pass in training mode with that in eval mode, torch's own dropout and batch statistics apart.

    Raises:
        GuaranteeError: they differ; the message names the modules that make the difference.
    """
    part = _probe(batch)
    obs, states, packing, valids = batch.obs[part], batch.samples["rnn_states"][part], batch.packing(part), batch.valids[part]

    def far(reference: Tensor) -> bool:
        found = action_parameters(candidate.model, obs, states, packing)
        return bool((torch.where(valids, _far(found, reference), 0.0) > 1.0).any())

    with _undone(candidate), torch.no_grad(), full_precision():
        model = candidate.model.eval()
        reference = action_parameters(model, obs, states, packing)
        others = [
            (name or type(model).__name__, module) for name, module in model.named_modules() if not isinstance(module, _KNOWN)
        ]
        for _, module in others:
            module.training = True
        if not far(reference):
            return
        model.eval()
        guilty = []
        for name, module in others:
            module.training = True
            if far(reference):
                guilty.append(f"{name} ({type(module).__name__})")
            module.training = False
    raise GuaranteeError(
        f"{type(candidate.model).__name__}: its forward pass in training mode is another function than in eval mode, by which "
        f"actors act: {', '.join(guilty) or 'several modules together'}. Gradients would be those of a policy that nobody runs. "
        "Make it the same function in both modes; torch's own dropout and normalisation layers are fine"
    )


def parameters_of_the_policy(candidate: Policy, batch: Batch) -> list[nn.Parameter]:
    """The parameters that the divergence of two policies reaches: all but what serves the critic alone."""
    part = _probe(batch)
    parameters = [parameter for parameter in candidate.model.parameters() if parameter.requires_grad]
    with _undone(candidate), torch.enable_grad():
        candidate.model.train()
        outputs = action_parameters(candidate.model, batch.obs[part], batch.samples["rnn_states"][part], batch.packing(part))
        gradients = torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
