"""The policies of an audit file played anew, and the divergence between two of them. Shares no code with the learner.

Networks are sample-factory's, built from `config.json`, with the file's weights. They run as actors run them: the three parts of
the forward pass in evaluation mode, on raw observations that the network's own statistics normalise, step by step where there is
a memory; on the CPU, in the weights' own float32. Divergences of these parameters are in float64, by the formulas here.

Shape symbols: N states, A action parameters, S size of the recurrent state. Divergences are in nats. Pieces of `recurrence`
states lie one after the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from copy import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import (
    ActorCritic,
    ActorCriticSeparateWeights,
    ActorCriticSharedWeights,
    create_actor_critic,
    default_make_actor_critic_func,
)
from sample_factory.model.encoder import default_make_encoder_func
from sf_examples.dmlab.dmlab30 import DMLAB_INSTRUCTIONS
from sf_examples.dmlab.dmlab_model import make_dmlab_encoder
from torch import Tensor, nn

from sf_fixpo.records.audit_files import PARAMETERS_EACH, AuditRecord, UnreadableError

STDDEV_MIN, STDDEV_MAX = 1e-4, 1e4  # sample-factory's ContinuousActionDistribution

_ACTION_MASK, _FORBIDDEN = "action_mask", -1e9  # an observation, and the logit of what it forbids: its probability is exactly 0

_CHUNK = 256  # observations per forward pass: those of images need much memory
_HINT = "a network of your own has to be registered first: --import=MODULE"

Networks = dict[Hashable, ActorCritic]  # of one run, by the form of the observations and actions in a file


# -- divergences --------------------------------------------------------------------------------------------------------------


def categorical_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL[p, q] = sum_a p(a) (log p(a) - log q(a)) for p, q = softmax of [N, n] logits. Returns [N]."""
    log_p = p_logits - torch.logsumexp(p_logits, dim=1, keepdim=True)
    log_q = q_logits - torch.logsumexp(q_logits, dim=1, keepdim=True)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def gaussian_kl(p_params: Tensor, q_params: Tensor) -> Tensor:
    """KL[p, q] of diagonal Gaussians, given as [N, 2 d]: d means, then d log standard deviations. Returns [N].

    For each dimension log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2, with s = exp(log s) clamped as the
    distribution that acts clamps it.
    """
    p_mean, p_log_std = p_params.chunk(2, dim=1)
    q_mean, q_log_std = q_params.chunk(2, dim=1)
    p_std = p_log_std.exp().clamp(STDDEV_MIN, STDDEV_MAX)
    q_std = q_log_std.exp().clamp(STDDEV_MIN, STDDEV_MAX)
    each = torch.log(q_std / p_std) + (p_std**2 + (p_mean - q_mean) ** 2) / (2 * q_std**2) - 0.5
    return each.sum(dim=1)


def policy_kl(p_params: Tensor, q_params: Tensor, action_spec: Iterable[tuple[str, int]]) -> Tensor:
    """KL[p, q] of independent action heads: the sum over the heads. Parameters are [N, A], converted to float64. Returns [N].

    Args:
        p_params: the policy the expectation is over.
        q_params: the other policy.
        action_spec: `("categorical", n)` takes n parameters, `("gaussian", d)` takes 2 d, in order.

    Raises:
        UnreadableError: the spec does not add up to A, or has an unknown kind.
    """
    p_params, q_params = p_params.double(), q_params.double()
    formulas = {"categorical": categorical_kl, "gaussian": gaussian_kl}
    total = torch.zeros(len(p_params), dtype=torch.float64)
    start = 0
    for kind, size in action_spec:
        if kind not in formulas:
            raise UnreadableError(f"unknown action distribution {kind!r}")
        stop = start + size * PARAMETERS_EACH[kind]
        total += formulas[kind](p_params[:, start:stop], q_params[:, start:stop])
        start = stop
    if start != p_params.shape[1]:
        raise UnreadableError(f"action_spec describes {start} action parameters, there are {p_params.shape[1]}")
    return total


# -- networks -----------------------------------------------------------------------------------------------------------------


def build_network(cfg: Any, record: AuditRecord) -> ActorCritic:
    """The network that this configuration describes for the file's observations and actions, with weights of no meaning.

    Raises:
        UnreadableError: it cannot be built.
    """
    try:
        network = _make_network(cfg, _obs_space(record, network_masks(record)), _action_space(record.action_spec)).eval()
        if not _is_users_own() and cfg.get("value_normalization", "shared") != "shared":
            _make_room_for_tasks(network, record.state_dict)
        return network
    except Exception as exc:  # parts that users register may raise anything
        raise UnreadableError(f"config.json: no network can be built: {type(exc).__name__}: {exc}; {_HINT}") from exc


def network_for(cfg: Any, record: AuditRecord, known: Networks) -> ActorCritic:
    """As `build_network`, which takes longer than the rest of a small file, but once for all files of a run that are of one form.

    What the network has of another file `load_weights` replaces.

    Args:
        cfg: of the run.
        record: the file.
        known: the file's network is looked for there, and added.

    Raises:
        UnreadableError: it cannot be built.
    """
    form = (tuple((name, x.dtype, x.shape[1:]) for name, x in record.obs.items()), tuple(map(tuple, record.action_spec)))
    if form not in known:
        known[form] = build_network(cfg, record)
    return known[form]


def _make_network(cfg: Any, obs_space: gym.spaces.Dict, action_space: gym.Space) -> ActorCritic:
    """What is registered with sample-factory; in the place of this project's own parts those that they stand in for."""
    factory = global_model_factory()
    if _is_users_own():
        return create_actor_critic(cfg, obs_space, action_space)
    encoder = factory.make_model_encoder_func
    if DMLAB_INSTRUCTIONS in obs_space.spaces and (encoder is default_make_encoder_func or _is_ours(encoder)):
        factory = copy(factory)
        factory.make_model_encoder_func = make_dmlab_encoder
    kind = ActorCriticSharedWeights if cfg.actor_critic_share_weights else ActorCriticSeparateWeights
    return kind(factory, obs_space, action_space, cfg)


def _make_room_for_tasks(network: ActorCritic, state_dict: dict[str, Tensor]) -> None:
    """A critic of several tasks, which is no part of the policy: of the file's sizes."""
    weight = state_dict["critic_linear.weight"]
    network.critic_linear = nn.Linear(weight.shape[1], weight.shape[0])
    moments = nn.Module()
    for name in ("running_mean", "running_var", "count"):
        moments.register_buffer(name, torch.zeros_like(state_dict[f"returns_normalizer.{name}"], dtype=torch.float64))
    network.returns_normalizer = moments  # type: ignore[assignment]


def network_masks(record: AuditRecord) -> bool:
    """Whether this project's networks put a mask over the action parameters; one that a user has registered does it by itself."""
    return _ACTION_MASK in record.obs and not _is_users_own()


def forbidden(record: AuditRecord) -> Tensor:
    """[N, A] bool: the actions that the environment forbade, in a file where `network_masks`."""
    return record.obs[_ACTION_MASK] == 0


def _is_users_own() -> bool:
    make = global_model_factory().make_actor_critic_func
    return not _is_ours(make) and make is not default_make_actor_critic_func


def _is_ours(function: Any) -> bool:
    return getattr(function, "__module__", "").startswith("sf_fixpo.")


def _obs_space(record: AuditRecord, without_mask: bool = False) -> gym.spaces.Dict:
    """A space of the observations' shapes and types, in the file's order; their limits are not known."""
    spaces = []
    for name, obs in record.obs.items():
        if without_mask and name == _ACTION_MASK:
            continue
        dtype = torch.empty(0, dtype=obs.dtype).numpy().dtype
        if obs.dtype.is_floating_point:
            low, high = -np.inf, np.inf
        else:
            low, high = (0, 1) if obs.dtype == torch.bool else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        spaces.append((name, gym.spaces.Box(low, high, tuple(obs.shape[1:]), dtype.type)))
    return gym.spaces.Dict(spaces)


def _action_space(action_spec: Iterable[tuple[str, int]]) -> gym.Space:
    spaces = [
        gym.spaces.Discrete(size) if kind == "categorical" else gym.spaces.Box(-1.0, 1.0, (size,), np.float32)
        for kind, size in action_spec
    ]
    return spaces[0] if len(spaces) == 1 else gym.spaces.Tuple(spaces)


def load_weights(network: ActorCritic, state_dict: dict[str, Tensor], key: str) -> None:
    """Loads published weights, statistics included, bit for bit.

    Args:
        network: is left in evaluation mode.
        state_dict: the weights.
        key: what they are called in the file.

    Raises:
        UnreadableError: they are not those of this network.
    """
    expected = {name: x.dtype for name, x in network.state_dict().items()}
    if cast := [name for name, x in state_dict.items() if x.dtype != expected.get(name, x.dtype)]:
        raise UnreadableError(f"{key} has other types than the network of config.json: {', '.join(cast)}; {_HINT}")
    try:
        network.load_state_dict(state_dict, strict=True)
    except RuntimeError as exc:
        faults = " ".join(str(exc).split())
        raise UnreadableError(f"{key} does not fit the network of config.json: {faults}; {_HINT}") from exc
    network.eval()


def steps_of_piece(cfg: Any) -> int:
    """How many steps a recurrent state is carried on for: `recurrence`; 1 for a policy without memory."""
    if not cfg.use_rnn:
        return 1
    return cfg.rollout if cfg.recurrence == -1 else cfg.recurrence


def action_parameters(network: ActorCritic, cfg: Any, record: AuditRecord) -> Tensor:
    """Action parameters [N, A] of `network` at every state, in its own precision.

    A recurrent policy is played one step after the other, as an actor plays it, from the recorded state at the start of each
    piece of `recurrence` steps. Its state is zero after the end of an episode and after a step of another policy. Any other core
    gets the state that was recorded with each step.

    Raises:
        UnreadableError: the network does not take what the file has.
    """
    count, steps = record.action_logits.shape[0], steps_of_piece(cfg)
    if count % steps:
        raise UnreadableError(f"config.json: {count} states are no pieces of {steps} steps (rollout, recurrence)")
    size = max(1, _CHUNK // steps) * steps
    try:
        with torch.no_grad():
            parts = [_play(network, cfg, record, slice(start, start + size)) for start in range(0, count, size)]
    except Exception as exc:  # parts that users register may raise anything
        raise UnreadableError(f"the network of config.json cannot be run: {type(exc).__name__}: {exc}; {_HINT}") from exc
    parameters = torch.cat(parts) if parts else torch.empty_like(record.action_logits)
    if parameters.shape != record.action_logits.shape:
        shapes = f"{list(parameters.shape)} instead of {list(record.action_logits.shape)}"
        raise UnreadableError(f"the network of config.json has action parameters of shape {shapes}; {_HINT}")
    return parameters


def _play(network: ActorCritic, cfg: Any, record: AuditRecord, part: slice) -> Tensor:
    """Action parameters at some whole pieces."""
    # copies: normalisation may work in place
    masks = network_masks(record)
    obs = TensorDict({name: x[part].clone() for name, x in record.obs.items() if not (masks and name == _ACTION_MASK)})
    features = network.forward_head(prepare_and_normalize_obs(network, obs))
    states = record.rnn_states[part].float()
    if cfg.use_rnn:
        ends = record.dones[part] | ~record.valids[part]
        features = _play_steps(network, features, states, ends, steps_of_piece(cfg))
    else:
        features, _ = network.forward_core(features, states)
    parameters = network.forward_tail(features, values_only=False, sample_actions=False)["action_logits"]
    return parameters.masked_fill(forbidden(record)[part], _FORBIDDEN) if masks else parameters


def _play_steps(network: ActorCritic, features: Tensor, states: Tensor, ends: Tensor, steps: int) -> Tensor:
    features, ends = features.view(-1, steps, features.shape[1]), ends.view(-1, steps, 1)
    state = states.view(-1, steps, states.shape[1])[:, 0]
    outputs = []
    for t in range(steps):
        output, state = network.forward_core(features[:, t], state)
        # not a product: a state that is not a number has to end too
        state = torch.where(ends[:, t], 0.0, state)
        outputs.append(output)
    return torch.stack(outputs, dim=1).flatten(0, 1)
