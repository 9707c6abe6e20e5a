"""Policies that give forbidden actions the probability 0: the observation `action_mask`, as on sample-factory's main branch.

The mask is put into the action parameters themselves: whatever computes with these - ratio, entropy, every KL, what actors record
and the audit reads - needs no mask of its own. A forbidden category's logit is `MASKED`: its probability is exactly 0, in float32
and in float64, and all that is made of it stays finite (with minus infinity a KL would be 0 times infinity).

Shapes: N samples, A action parameters, n categories of one head.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from sample_factory.algo.utils.action_distributions import (
    CategoricalActionDistribution,
    TupleActionDistribution,
    get_action_distribution,
)
from sample_factory.algo.utils.tensor_dict import TensorDict
from torch import Tensor

ACTION_MASK = "action_mask"  # observation, [N, A]: 1 for each action that is allowed, 0 for each that is not
MASKED = -1e9


def has_mask(obs_space: Any) -> bool:
    """Whether the observations say which actions are allowed."""
    return isinstance(obs_space, spaces.Dict) and ACTION_MASK in obs_space.spaces


def mask_parameters(parameters: Tensor, mask: Tensor) -> Tensor:
    """Logits [N, A] with `MASKED` where the mask [N, A] is 0; gradient passes where it is not."""
    return torch.where(mask != 0, parameters, MASKED)


class MaskedCategorical(CategoricalActionDistribution):
    """A distribution over the categories whose logits are not `MASKED`, by which alone it is told what is allowed."""

    def symmetric_kl_with_uniform_prior(self) -> Tensor:
        """[N] half of KL[pi, uniform] + KL[uniform, pi], where uniform is over what is allowed."""
        allowed = self.raw_logits > MASKED / 2
        count = allowed.sum(-1, keepdim=True).clamp_min(1)
        log_uniform = -count.log()
        difference = torch.where(allowed, self.log_probs - log_uniform, 0.0)
        return 0.5 * ((self.probs - 1.0 / count) * difference).sum(-1)


class MaskedTuple(TupleActionDistribution):
    """Independent heads, each over what is allowed of it."""

    def __init__(self, action_space: spaces.Tuple, logits_flat: Tensor):
        super().__init__(action_space, logits_flat)
        self.distributions = [MaskedCategorical(logits) for logits in self.split_logits]


def masked_distribution(action_space: Any, parameters: Tensor) -> MaskedCategorical | MaskedTuple:
    """The distribution of masked logits [N, A].

    Args:
        action_space: Discrete, or a Tuple of them.
        parameters: as `mask_parameters` returns them.
    """
    return MaskedTuple(action_space, parameters) if isinstance(action_space, spaces.Tuple) else MaskedCategorical(parameters)


class Masking:
    """What makes one of sample-factory's actor-critics heed the mask; comes before it among the bases.

    Of the three parts of the forward pass none needs the mask: it is put over what comes out of them, in `forward` for actors and
    in `learning.policy` for the learner. No encoder gets to see it.
    """

    def forward(self, normalized_obs_dict: Any, rnn_states: Tensor, values_only: bool = False) -> TensorDict:
        """As sample-factory's, with actions that are allowed."""
        network: Any = self
        x, new_rnn_states = network.forward_core(network.forward_head(normalized_obs_dict), rnn_states)
        result = network.forward_tail(x, values_only, sample_actions=False)
        if not values_only:
            result["action_logits"] = self.masked(result["action_logits"], normalized_obs_dict)
            network._maybe_sample_actions(True, result)
        result["new_rnn_states"] = new_rnn_states
        return result

    def forward_head(self, normalized_obs_dict: Any) -> Tensor:
        """Without the mask, which a user's encoder that goes through all keys would not expect."""
        return super().forward_head(without_mask(normalized_obs_dict))  # type: ignore[misc]

    def masked(self, parameters: Tensor, obs: Any) -> Tensor:
        """[N, A] action parameters under the mask among the observations; their distribution becomes the network's last."""
        network: Any = self
        parameters = mask_parameters(parameters, obs[ACTION_MASK])
        network.last_action_distribution = masked_distribution(network.action_space, parameters)
        return parameters


def without_mask(obs: Any) -> TensorDict:
    """Observations but for the mask."""
    return TensorDict({key: x for key, x in obs.items() if key != ACTION_MASK})


def distribution_of(model: Any, parameters: Tensor) -> Any:
    """The distribution that a network's action parameters [N, A] are of."""
    space = model.action_space
    return masked_distribution(space, parameters) if isinstance(model, Masking) else get_action_distribution(space, parameters)
