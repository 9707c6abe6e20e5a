"""A policy as actors run it: the one forward pass that check, reference, admission and self-test call, for every network.

Shapes: N samples (trajectories of `recurrence` steps one after the other), A action parameters, S size of the recurrent state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import ActorCritic
from sample_factory.model.core import ModelCore, ModelCoreRNN
from sample_factory.utils.normalize import ObservationNormalizer
from torch import Tensor

from sf_fixpo.learning.masks import Masking, without_mask
from sf_fixpo.learning.networks import SEPARATE, SHARED, channels_last, takes_channels_last
from sf_fixpo.learning.sequences import Packing
from sf_fixpo.learning.state import FlatState
from sf_fixpo.learning.unrolling import can_unroll, run_core

# Values of images that a known encoder gets in one call on a CPU. Measured, 72 x 96 pixels on two CPU cores: 1024 images at once
# take 2.5 times as long as 200 after 200, forward and backward alike; smaller parts gain no more, and wait oftener for each
# other. On a GPU all at once is faster: an update took 46 ms where parts of 200 took 56 (H200).
_IMAGE_VALUES = 1 << 22


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 proper inside: TF32 and bf16 products err by more than the part of the bound that is kept free for rounding.

    By torch's settings of each operation: reading the older ones raises where a user has set the newer. Settings are of the
    process; they are left alone where they ask for nothing less than float32 already.
    """
    backends = torch.backends
    leaves = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]  # type: ignore[attr-defined]
    leaves += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]  # type: ignore[attr-defined]
    before = [leaf.fp32_precision for leaf in leaves]
    reduced = [(leaf, kind) for leaf, kind in zip(leaves, before, strict=True) if kind not in ("ieee", "none")]
    for leaf, _ in reduced:
        leaf.fp32_precision = "ieee"
    try:
        yield
    finally:
        for leaf, kind in reduced:
            leaf.fp32_precision = kind


def _encode(encoder: Callable[[TensorDict], Tensor], obs: TensorDict, at_once: int) -> Tensor:
    """Features [n, F], of `at_once` samples at a time: what a few images are turned into stays in the processor's cache."""
    count = len(next(iter(obs.values())))
    if count <= at_once:
        return encoder(obs)
    return torch.cat([encoder(obs[i : i + at_once]) for i in range(0, count, at_once)])


def _encode_in(dtype: torch.dtype, encoder: Callable[[TensorDict], Tensor], obs: TensorDict, at_once: int) -> Tensor:
    """`_encode`, its products in another precision by torch's autocast; the features are float32 again."""
    if dtype == torch.float32:
        return _encode(encoder, obs, at_once)
    device = next(iter(obs.values())).device.type
    with torch.autocast(device, dtype):
        return _encode(encoder, obs, at_once).float()


def _run_core(core: ModelCore, x: Tensor, rnn_states: Tensor, packing: Packing) -> Tensor:
    """[n, H] of a core over whole trajectories: packed where it is none that is known."""
    if type(core) is ModelCoreRNN and can_unroll(core.core):
        return run_core(core.core, x, rnn_states, packing)
    sequences, first = packing.pack(x, rnn_states)
    return packing.unpack(core(sequences, first)[0])


def _remember(model: ActorCritic, x: Tensor, rnn_states: Tensor, packing: Packing) -> Tensor:
    """`forward_core` [n, H] over whole trajectories; core by core where the class is known to do no more than that."""
    if type(model) in SHARED:
        return _run_core(model.core, x, rnn_states, packing)
    if type(model) in SEPARATE:
        count = len(model.cores)
        parts = zip(model.cores, x.chunk(count, dim=1), rnn_states.chunk(count, dim=1), strict=True)
        return torch.cat([_run_core(core, features, states, packing) for core, features, states in parts], dim=1)
    sequences, first = packing.pack(x, rnn_states)
    return packing.unpack(model.forward_core(sequences, first)[0])


def forward(
    model: ActorCritic,
    obs: TensorDict,
    rnn_states: Tensor,
    packing: Packing | None,
    at_once: int = sys.maxsize,
    encoder_dtype: torch.dtype = torch.float32,
) -> TensorDict:
    """The three parts of sample-factory's forward pass over whole trajectories, as its learner calls them.

    Args:
        model: in whatever mode it is.
        obs: normalised observations, [n, ...] each.
        rnn_states: [n, S] recorded before each step.
        packing: of the n samples; None for a policy without memory, whose core gets each sample's own state.
        at_once: samples that the encoder gets in one call.
        encoder_dtype: in which the encoder computes; anything but float32 is another function than the one actors run.

    Returns:
        `action_logits` [n, A] and `values` [n], with gradient where it is enabled.
    """
    x = _encode_in(encoder_dtype, model.forward_head, obs, at_once)
    if packing is None:
        x, _ = model.forward_core(x, rnn_states)
    else:
        x = _remember(model, x, rnn_states, packing)
    outputs = model.forward_tail(x, values_only=False, sample_actions=False)
    if isinstance(model, Masking):
        outputs["action_logits"] = model.masked(outputs["action_logits"], obs)
    return outputs


def action_parameters(
    model: ActorCritic, obs: TensorDict, rnn_states: Tensor, packing: Packing | None, at_once: int = sys.maxsize
) -> Tensor:
    """`forward`'s action parameters [n, A], without the critic where the class is known to have one apart."""
    if type(model) not in SEPARATE:
        return forward(model, obs, rnn_states, packing, at_once)["action_logits"]
    masking = isinstance(model, Masking)
    x = _encode(model.actor_encoder, without_mask(obs) if masking else obs, at_once)
    if packing is not None:
        x = _run_core(model.actor_core, x, rnn_states.chunk(len(model.cores), dim=1)[0], packing)
    parameters = model.action_parameterization(model.actor_decoder(x))[0]
    return model.masked(parameters, obs) if masking else parameters


class Policy:
    """A network, its state as one piece of memory, and the observations as it sees them.

    Attributes:
        model: the network; in eval mode but for training steps.
        state: its weights, buffers and statistics.
        fast_images: whether it gets images channels-last.
    """

    def __init__(self, model: ActorCritic, *, shared: bool = False):
        """Takes over a network, whose tensors move into flat memory.

        Args:
            model: as sample-factory's factory makes it.
            shared: whether other processes get to see its state.
        """
        self.model = model
        self.fast_images = takes_channels_last(model)
        if self.fast_images:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = FlatState(model, shared=shared)

    @classmethod
    def like(cls, other: Policy, make_model: Callable[[], ActorCritic], *, shared: bool = False) -> Policy:
        """Another policy with the same network and state, for inference: no gradients, eval mode.

        Args:
            other: whose state and device it takes.
            make_model: makes the network as actors make theirs; the random numbers that this draws are given back.
            shared: whether other processes get to see its state.
        """
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            model = make_model()
        model.model_to_device(next(other.model.parameters()).device)
        policy = cls(model.requires_grad_(False).eval(), shared=shared)
        policy.state.copy_(other.state)
        return policy

    @property
    def known_normalizer(self) -> bool:
        """Whether observations are normalised by sample-factory's own code, by nothing but scale and running statistics."""
        model = self.model
        plain = getattr(type(model), "normalize_obs", None) is ActorCritic.normalize_obs
        return plain and type(model.obs_normalizer) is ObservationNormalizer

    @property
    def has_statistics(self) -> bool:
        """Whether the normaliser has running statistics."""
        return getattr(self.model.obs_normalizer, "running_mean_std", None) is not None

    @property
    def constant_observations(self) -> bool:
        """Whether no statistics stand between raw and normalised observations: all states of this network see the same."""
        return self.known_normalizer and not self.has_statistics

    def begin_training(self) -> None:
        """Training mode; torch goes through all modules even where they have it, which takes as long as a layer's products."""
        if not self.model.training:
            self.model.train()

    @torch.no_grad()
    def observe(self, raw: dict[str, Tensor]) -> TensorDict:
        """Observations [n, ...] as an actor's network gets them; this policy's statistics stay as they are."""
        obs = self.normalize(raw)
        return channels_last(obs) if self.fast_images else obs

    @torch.no_grad()
    def normalize(self, raw: dict[str, Tensor]) -> TensorDict:
        """`observe`, with images laid out as they came."""
        training = self.model.training
        self.model.eval()
        obs = TensorDict(prepare_and_normalize_obs(self.model, TensorDict(raw)))
        self.model.train(training)
        return obs

    def samples_at_once(self, obs: TensorDict) -> int:
        """How many samples the encoder gets in one call: on a CPU some of them, where each is known to be encoded for itself."""
        images = [x for x in obs.values() if x.dim() == 4 and x.device.type == "cpu"] if self.fast_images else []
        values = sum(x[0].numel() for x in images)
        return max(1, _IMAGE_VALUES // values) if values else sys.maxsize

    @torch.no_grad()
    def action_parameters(self, obs: TensorDict, rnn_states: Tensor, packing: Packing | None) -> Tensor:
        """[n, A]: what an actor with this state would act by, in eval mode and full float32.

        Args:
            obs: as `observe` returns them.
            rnn_states: [n, S] recorded before each step.
            packing: of the samples; None for a policy without memory.
        """
        training = self.model.training
        self.model.eval()
        with full_precision():
            parameters = action_parameters(self.model, obs, rnn_states, packing, self.samples_at_once(obs))
        if training:
            self.model.train()
        return parameters
