"""sample-factory's networks as this learner needs them, and what is known of their classes.

Packed sequences for separate weights, DMLab's instructions on the learner's device, memory layouts.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from gymnasium import spaces
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import (
    ActorCritic,
    ActorCriticSeparateWeights,
    ActorCriticSharedWeights,
    default_make_actor_critic_func,
)
from sample_factory.model.encoder import ConvEncoder, MlpEncoder, MultiInputEncoder, ResnetEncoder, default_make_encoder_func
from sample_factory.model.model_factory import ModelFactory
from sample_factory.utils.typing import ActionSpace, Config, ObsSpace
from sf_examples.dmlab.dmlab30 import DMLAB_INSTRUCTIONS
from sf_examples.vizdoom.doom.doom_model import VizdoomEncoder
from torch.nn.utils.rnn import PackedSequence

from sf_fixpo.algorithm.config import task_names
from sf_fixpo.algorithm.trust_region import ActionSpec
from sf_fixpo.learning.encoder import DmlabEncoder, make_dmlab_encoder
from sf_fixpo.learning.masks import ACTION_MASK, Masking, has_mask
from sf_fixpo.learning.tasks import TASK_ID
from sf_fixpo.learning.values import value_each_task


class PackedSeparateWeights(ActorCriticSeparateWeights):
    """Separate actor and critic whose recurrent cores also take packed sequences.

    sample-factory 2.1.1 chunks the cores' input along its features, which a PackedSequence does not offer, so that training a
    recurrent policy with separate weights fails there.
    """

    def _core_rnn(self, head_output, rnn_states):
        if not isinstance(head_output, PackedSequence):
            return super()._core_rnn(head_output, rnn_states)
        parts = head_output.data.chunk(len(self.cores), dim=1)
        states = rnn_states.chunk(len(self.cores), dim=1)
        outputs = [
            core(head_output._replace(data=part), state) for core, part, state in zip(self.cores, parts, states, strict=True)
        ]
        data = torch.cat([sequence.data for sequence, _ in outputs], dim=1)
        return head_output._replace(data=data), torch.cat([state for _, state in outputs], dim=1)


class MaskedSharedWeights(Masking, ActorCriticSharedWeights):
    """Shared weights; forbidden actions have the probability 0."""


class MaskedSeparateWeights(Masking, PackedSeparateWeights):
    """Separate weights; forbidden actions have the probability 0."""


# Whose actor can be evaluated without the critic beside it, and whose decoder serves both: a subclass of these may do anything.
SEPARATE = (ActorCriticSeparateWeights, PackedSeparateWeights, MaskedSeparateWeights)
SHARED = (ActorCriticSharedWeights, MaskedSharedWeights)


def make_actor_critic(cfg: Config, obs_space: ObsSpace, action_space: ActionSpace) -> ActorCritic:
    """sample-factory's actor-critic, with `PackedSeparateWeights` for separate weights and our encoder for DMLab's instructions.

    A core, decoder or encoder that the user has registered is taken as it is. The critic is as `--value_normalization` says.

    Args:
        cfg: sample-factory's configuration.
        obs_space: observations, a Dict; no encoder and no statistics are made for the keys `task_id` and `action_mask`.
        action_space: what `action_spec` takes.
    """
    kind: Any
    if has_mask(obs_space):
        kind = MaskedSharedWeights if cfg.actor_critic_share_weights else MaskedSeparateWeights
    else:
        kind = ActorCriticSharedWeights if cfg.actor_critic_share_weights else PackedSeparateWeights
    seen = network_obs_space(obs_space)
    network = kind(_model_factory(seen), seen, action_space, cfg)
    if (scope := cfg.get("value_normalization", "shared")) != "shared":  # runs of older versions do not say
        value_each_task(network, len(task_names(cfg)), preserving=scope == "popart")
    return network


def network_obs_space(obs_space: ObsSpace) -> ObsSpace:
    """The observations that the network sees: all but the task's number and the mask of actions."""
    unseen = {TASK_ID, ACTION_MASK}
    if not unseen & set(obs_space.spaces):
        return obs_space
    return spaces.Dict([(key, space) for key, space in obs_space.spaces.items() if key not in unseen])


def make_network(cfg: Config, obs_space: ObsSpace, action_space: ActionSpace) -> ActorCritic:
    """The network where nothing is trained: by `make_actor_critic`, or by what the user has registered in its place."""
    from sample_factory.algo.utils.context import global_model_factory

    registered = global_model_factory().make_actor_critic_func
    make = make_actor_critic if registered is default_make_actor_critic_func else registered
    return make(cfg, obs_space, action_space)


def _model_factory(obs_space: ObsSpace) -> ModelFactory:
    """The registered parts; where the encoder is sample-factory's default and there are instructions, ours."""
    from sample_factory.algo.utils.context import global_model_factory

    factory = global_model_factory()
    if DMLAB_INSTRUCTIONS in obs_space.spaces and factory.make_model_encoder_func is default_make_encoder_func:
        factory = copy(factory)
        factory.make_model_encoder_func = make_dmlab_encoder
    return factory


def takes_channels_last(model: ActorCritic) -> bool:
    """Whether every encoder is known to work on channels-last images, which are two to three times faster on a CPU.

    A user's own may call `.view` on its input, which such an image does not allow.
    """
    return all(_known_layout(encoder) for encoder in model.encoders)


def _known_layout(encoder: Any) -> bool:
    if type(encoder) is MultiInputEncoder:
        return all(_known_layout(part) for part in encoder.encoders.children())
    if type(encoder) in (DmlabEncoder, VizdoomEncoder):  # beside the image, numbers and words
        return _known_layout(encoder.basic_encoder)
    return type(encoder) in (ConvEncoder, ResnetEncoder, MlpEncoder)


def channels_last(obs: TensorDict) -> TensorDict:
    """Observations with images [N, C, H, W] laid out channels-last in memory; everything else as it is."""
    return TensorDict({k: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for k, x in obs.items()})


def action_spec(action_space: ActionSpace) -> ActionSpec:
    """What the action parameters of a space are, in order.

    Raises:
        ValueError: sample-factory has no distribution for the space.
    """
    if isinstance(action_space, spaces.Discrete):
        return [("categorical", int(action_space.n))]
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        return [("gaussian", int(action_space.shape[0]))]
    if isinstance(action_space, spaces.Tuple):
        return [part for space in action_space for part in action_spec(space)]
    raise ValueError(f"action space {action_space} is not supported: Discrete, one-dimensional Box, or Tuple of these")
