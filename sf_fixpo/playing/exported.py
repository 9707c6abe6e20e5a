"""A policy as one function without anything of ours: raw observations and recurrent state in, action and distribution out.

Shape symbols: N samples, A action parameters, D action columns, S recurrent state, T steps, K slots of an environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.model.model_utils import get_rnn_size
from torch import Tensor, nn

from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.masks import Masking, without_mask
from sf_fixpo.learning.networks import SEPARATE, SHARED, TASK_ID, action_spec, make_network
from sf_fixpo.playing.evaluation_worker import PolicyAgent, Slots, likeliest_actions

_LEAST_STDDEV, _MOST_STDDEV = 1e-4, 1e4  # between which sample-factory holds a Gaussian's
TOLERANCE = 1e-4  # times 1 + |x|: far above the rounding of float32, far below what another function would show
_TOGETHER = 16  # samples of the trial of a whole batch

# Observations [N, ...] in the order of the keys, and states [N, S], to `Outputs`.
Function = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class NotEqualError(ValueError):
    """What was exported is not what acts; the message says where and by how much."""


@contextmanager
def unscripted() -> Iterator[None]:
    """sample-factory compiles parts of its networks, which no exporter can look into; inside this block they stay as they are."""
    script = torch.jit.script
    torch.jit.script = lambda module, *args, **kwargs: module  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.jit.script = script


class ExportedPolicy(nn.Module):
    """The actor with its normaliser.

    Attributes:
        keys: of the observations, in the order of the inputs.
        state_size: S, of the actor alone where the critic has a core of its own.
    """

    def __init__(self, network: Any, cfg: Any, observation_space: Any, action_space: Any):
        """Takes a network made inside `unscripted`.

        Args:
            network: with the policy's weights.
            cfg: of the run.
            observation_space: Dict.
            action_space: what `action_spec` takes.
        """
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.keys = [key for key in observation_space if key != TASK_ID]
        self._separate = type(network) in SEPARATE
        self._recurrent = bool(cfg.use_rnn)
        self._shared = type(network) in SHARED
        self.state_size = get_rnn_size(cfg) // (2 if self._separate else 1)
        self._spec = action_spec(action_space)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of N samples.

        Args:
            *inputs: raw observations [N, ...] in the order of `keys`, then the recurrent state [N, S].

        Returns:
            The likeliest action [N, D]; the distribution [N, A]: probabilities of each categorical head, means and then standard
            deviations of each Gaussian one; the action parameters [N, A] as the network gives them; the new state [N, S].
        """
        *observations, state = inputs
        parameters, new_state = self._act(dict(zip(self.keys, observations, strict=True)), state)
        return likeliest_actions(parameters, self._spec), self._distribution(parameters), parameters, new_state.clone()

    def _act(self, raw: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        obs = prepare_and_normalize_obs(self.network, raw)
        if not isinstance(self.network, Masking):
            return self._unmasked(obs, state)
        parameters, new_state = self._unmasked(without_mask(obs), state)
        return self.network.masked(parameters, obs), new_state

    def _unmasked(self, obs: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        if self._separate:
            x, new_state = network.actor_encoder(obs), state
            if self._recurrent:  # without memory this class runs no core
                x, new_state = network.actor_core(x, state)
            return network.action_parameterization(network.actor_decoder(x))[0], new_state
        x, new_state = network.forward_core(network.forward_head(obs), state)
        if self._shared:
            return network.action_parameterization(network.decoder(x))[0], new_state
        return network.forward_tail(x, values_only=False, sample_actions=False)["action_logits"], new_state

    def _distribution(self, parameters: Tensor) -> Tensor:
        parts, start = [], 0
        for kind, size in self._spec:
            head = parameters[:, start : start + size]
            if kind == "categorical":
                parts.append(head.softmax(dim=1))
            else:
                log_stddevs = parameters[:, start + size : start + 2 * size]
                parts += [head, log_stddevs.exp().clamp(_LEAST_STDDEV, _MOST_STDDEV)]
            start += size if kind == "categorical" else 2 * size
        return torch.cat(parts, dim=1)


def load_policy(cfg: Any, checkpoint: str, slots: Slots) -> ExportedPolicy:
    """The policy of a checkpoint for an environment; on the CPU."""
    with unscripted():
        network = make_network(cfg, slots.observation_space, slots.action_space)
    network.load_state_dict(checkpoints.load(checkpoint)["model"])
    return ExportedPolicy(network, cfg, slots.observation_space, slots.action_space)


@dataclass(frozen=True)
class Played:
    """Steps of the actor itself in the environment.

    Attributes:
        observations: by key, [T, K, ...], as the environment gave them.
        parameters: [T, K, A] the actor's action parameters.
        distribution: [T, K, A] the actor's distribution, in the form of `ExportedPolicy`.
        states: [T, K, S] the actor's recurrent state after each step.
        ends: [T, K] whether an episode ended with the step.
    """

    observations: dict[str, np.ndarray]
    parameters: np.ndarray
    distribution: np.ndarray
    states: np.ndarray
    ends: np.ndarray


class _Witness(PolicyAgent):
    """The policy of an evaluation, made and called as there, that keeps what its network gave at each step."""

    def __init__(self, cfg: Any, checkpoint: str, slots: Slots, state_size: int):
        super().__init__(cfg, checkpoint, slots, slots.count, deterministic=False)
        self._size = state_size
        self.seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._network.register_forward_hook(self._keep)

    def _keep(self, network: nn.Module, inputs: Any, result: Any) -> None:
        distribution = self._network.action_distribution()
        parts = []
        for part in getattr(distribution, "distributions", [distribution]):
            parts += [part.means, part.stddevs] if hasattr(part, "means") else [part.probs]
        state = result["new_rnn_states"][:, : self._size]
        self.seen.append((result["action_logits"].numpy().copy(), torch.cat(parts, dim=1).numpy(), state.numpy().copy()))


def play(cfg: Any, checkpoint: str, slots: Slots, policy: ExportedPolicy, steps: int) -> Played:
    """Has the actor play, by actions that it draws.

    Args:
        cfg: of the run.
        checkpoint: of the policy.
        slots: the environment.
        policy: what is exported, for its keys and the size of its state.
        steps: of all slots together, at least.
    """
    actor = _Witness(cfg, checkpoint, slots, policy.state_size)
    every = np.arange(slots.count)
    observed: list[dict[str, np.ndarray]] = []
    ends: list[np.ndarray] = []
    obs = slots.reset()
    while len(ends) * slots.count < steps:
        observed.append({key: np.array(obs[key]) for key in policy.keys})
        obs, _, done = slots.step(actor.act(obs, every))
        ends.append(done)
        for slot in np.flatnonzero(done):
            actor.forget(int(slot))
    parameters, distribution, states = (np.stack(parts) for parts in zip(*actor.seen, strict=True))
    together = {key: np.stack([step[key] for step in observed]) for key in policy.keys}
    return Played(together, parameters, distribution, states, np.stack(ends))


def _difference(name: str, found: np.ndarray, expected: np.ndarray, where: str) -> float:
    """The largest absolute difference.

    Raises:
        NotEqualError: it is more than rounding can be, or something is no number, or the shapes differ.
    """
    if found.shape != expected.shape:
        raise NotEqualError(f"{name} at {where}: shape {found.shape}, the actor's is {expected.shape}")
    gap = np.abs(found.astype(np.float64) - expected)
    if not (gap <= TOLERANCE * (1 + np.abs(expected))).all():
        raise NotEqualError(f"{name} at {where}: differs from the actor's by {gap.max():.3g}")
    return float(gap.max())


def _check_action(action: np.ndarray, parameters: np.ndarray, spec: Any, where: str) -> None:
    """The action must be the likeliest, of the actor's parameters; of equally likely ones any."""
    column, start = 0, 0
    for kind, size in spec:
        head = parameters[:, start : start + size]
        if kind == "categorical":
            chosen = np.take_along_axis(head, action[:, column : column + 1].astype(int), axis=1)[:, 0]
            best = head.max(axis=1)
            wrong = chosen < best - 2 * TOLERANCE * (1 + np.abs(best))
            column, start = column + 1, start + size
        else:
            wrong = np.abs(action[:, column : column + size] - head) > TOLERANCE * (1 + np.abs(head))
            column, start = column + size, start + 2 * size
        if wrong.any():
            raise NotEqualError(f"action at {where}: is not the actor's likeliest")


def compare(function: Function, played: Played, policy: ExportedPolicy, whole_batch: bool) -> dict[str, float]:
    """Holds what was exported against what the actor did, step by step, with a recurrent state that it carries itself.

    Args:
        function: reads the exported file.
        played: the actor's steps.
        policy: what was exported.
        whole_batch: whether it also has to take several samples at once.

    Returns:
        The largest absolute difference of `action_parameters`, `distribution` and `state`.

    Raises:
        NotEqualError: they are not the same function.
    """
    largest: dict[str, float] = {"action_parameters": 0.0, "distribution": 0.0, "state": 0.0}
    steps, slots = played.ends.shape

    def hold(outputs: Sequence[np.ndarray], at: Any, where: str) -> np.ndarray:
        action, distribution, parameters, state = outputs
        expected = (("action_parameters", parameters, played.parameters), ("distribution", distribution, played.distribution))
        for name, found, true in (*expected, ("state", state, played.states)):
            largest[name] = max(largest[name], _difference(name, found, true[at], where))
        _check_action(action, played.parameters[at], policy._spec, where)
        return state

    for slot in range(slots):
        state = np.zeros((1, policy.state_size), np.float32)
        for step in range(steps):
            at = (slice(step, step + 1), slot)
            outputs = function([*(played.observations[key][at] for key in policy.keys), state])
            state = hold(outputs, at, f"step {step}")
            if played.ends[at].item():
                state = np.zeros_like(state)
    if whole_batch:
        count = min(_TOGETHER, steps)
        before = np.where(played.ends[: count - 1, :1, None], 0, played.states[: count - 1, :1])[:, 0]
        states = np.concatenate([np.zeros((1, policy.state_size)), before]).astype(np.float32)
        at = (slice(0, count), 0)
        hold(function([*(played.observations[key][at] for key in policy.keys), states]), at, f"a batch of {count}")
    return largest
