"""Which actions an environment allows: the observation `action_mask`, as on sample-factory's main branch.

A Dict observation with that key says for each category of each discrete part of the action 1 for allowed and 0 for forbidden, of
several parts one after the other. The learner gives what is forbidden the probability 0 (`learning.masks`); here environments are
held to their word: a mask that cannot be one, or allows nothing, is named where it comes from, and so is a forbidden action.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sf_fixpo.envs.suite import EnvError

ACTION_MASK = "action_mask"


def head_sizes(action_space: spaces.Space) -> list[int] | None:
    """Categories of each part of an action as policies choose it; None where a part is not a category."""
    parts = action_space if isinstance(action_space, spaces.Tuple) else [action_space]
    sizes = [int(part.n) for part in parts if isinstance(part, spaces.Discrete)]
    return sizes if len(sizes) == len(parts) else None


def has_mask(observation_space: Any) -> bool:
    """Whether an environment says which actions it allows."""
    return isinstance(observation_space, spaces.Dict) and ACTION_MASK in observation_space.spaces


def mask_fault(observation_space: Any, action_space: spaces.Space) -> str | None:
    """What is wrong with the mask that a space promises, in words; None where all is well, or there is none.

    Args:
        observation_space: of policies, not of batches.
        action_space: one head, or a Tuple of several.
    """
    if not has_mask(observation_space):
        return None
    space, sizes = observation_space.spaces[ACTION_MASK], head_sizes(action_space)
    name = f"observation '{ACTION_MASK}' space {space}"
    if sizes is None:
        return f"{name}: a mask of actions needs discrete actions, not {action_space}; if it is none, call it otherwise"
    if space.shape != (sum(sizes),):
        allowed = f"one number for each of {' + '.join(map(str, sizes))} actions, shape ({sum(sizes)},)"
        return f"{name}: must have {allowed}; if it is no mask of actions, call it otherwise"
    if not (space.dtype is not None and (np.issubdtype(space.dtype, np.number) or space.dtype == bool)):
        return f"{name}: must be of numbers or bool"
    if len(observation_space.spaces) == 1:
        return f"observation space {observation_space}: has nothing beside '{ACTION_MASK}' for a network to see"
    return None


def allowed_actions(mask: Any, sizes: Sequence[int]) -> np.ndarray:
    """A mask as [A] bool.

    Args:
        mask: of one agent, as an environment gave it.
        sizes: categories of each part of the action; A is their sum.

    Raises:
        ValueError: it is none, or allows no action; the message says what of it.
    """
    found = np.asarray(mask)
    if found.shape != (sum(sizes),):
        raise ValueError(f"has the shape {found.shape}, must have ({sum(sizes)},)")
    if found.dtype != bool and not np.issubdtype(found.dtype, np.number):
        raise ValueError(f"is of {found.dtype}, must be of 0 and 1")
    allowed = found == 1
    if not (allowed | (found == 0)).all():
        raise ValueError(f"is {found.tolist()}, must be of 0 and 1")
    for part, head in enumerate(np.split(allowed, np.cumsum(sizes)[:-1])):
        if not head.any():
            which = f" of part {part}" if len(sizes) > 1 else ""
            raise ValueError(f"allows no action{which}: {found.tolist()}")
    return allowed


class _Legal:
    """Draws allowed actions only. sample-factory takes random steps before the first rollout, each agent's action in its turn."""

    turns: deque[tuple[np.ndarray, ...]]

    def sample(self, mask: Any = None) -> Any:
        """As the space's own; without a mask by that of the agent whose turn it is."""
        if mask is None and self.turns:
            heads = tuple(head.astype(np.int8) for head in self.turns[0])
            self.turns.rotate(-1)
            mask = heads if isinstance(self, spaces.Tuple) else heads[0]
        return super().sample(mask)  # type: ignore[misc]


class LegalDiscrete(_Legal, spaces.Discrete):
    """One head."""


class LegalTuple(_Legal, spaces.Tuple):
    """Several."""


def _legal(space: Any) -> LegalDiscrete | LegalTuple:
    several = isinstance(space, spaces.Tuple)
    legal = LegalTuple(space.spaces) if several else LegalDiscrete(int(space.n), start=int(space.start))
    legal.turns = deque()
    return legal


class MaskGuard(gymnasium.Wrapper):
    """An environment whose masks are masks, and to which no forbidden action is sent; of one agent or of several."""

    def __init__(self, env: Any, name: str):
        """Takes an environment that `has_mask`.

        Args:
            env: as sample-factory takes it.
            name: in messages.

        Raises:
            EnvError: its spaces are not those of a mask.
        """
        super().__init__(env)
        if fault := mask_fault(env.observation_space, env.action_space):
            raise EnvError(f"{name}: {fault}")
        self._name = name
        self._sizes = head_sizes(env.action_space) or []
        plain = env.unwrapped
        self._several = bool(getattr(plain, "is_multiagent", getattr(plain, "num_agents", 1) > 1))
        self.action_space = self._space = _legal(env.action_space)
        self._allowed: list[np.ndarray | None] = []

    def reset(self, **kwargs: Any) -> tuple[Any, Any]:
        """As the environment's.

        Raises:
            EnvError: a mask is none, or allows no action.
        """
        observation, info = self.env.reset(**kwargs)
        self._note(observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """As the environment's.

        Raises:
            EnvError: the action is forbidden, or a mask is none, or allows no action.
        """
        for agent, (chosen, allowed) in enumerate(zip(action if self._several else [action], self._allowed, strict=True)):
            if allowed is not None:
                self._refuse_forbidden(chosen, allowed, agent)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._note(observation, info)
        return observation, reward, terminated, truncated, info

    def _refuse_forbidden(self, action: Any, allowed: np.ndarray, agent: int) -> None:
        start = 0
        for size, choice in zip(self._sizes, np.asarray(action).reshape(-1), strict=True):
            if not allowed[start + int(choice)]:
                raise EnvError(
                    f"{self._name}: the policy chose {int(choice)}{self._of(agent)}, which '{ACTION_MASK}' forbids: "
                    f"{allowed.astype(int).tolist()}. An actor-critic of your own must mask its action parameters itself "
                    "(sf_fixpo.learning.masks)"
                )
            start += size

    def _of(self, agent: int) -> str:
        return f" (agent {agent})" if self._several else ""

    def _note(self, observation: Any, info: Any) -> None:
        """Keeps what is allowed now; an agent that does not act may be given no mask at all."""
        if not self._several:
            masks, infos = [observation[ACTION_MASK]], [info]
        elif isinstance(observation, dict):
            masks = list(observation[ACTION_MASK])
            infos = info if isinstance(info, (list, tuple)) else [{}] * len(masks)
        else:
            masks, infos = [one[ACTION_MASK] for one in observation], info
        self._allowed = [self._checked(mask, one, agent) for agent, (mask, one) in enumerate(zip(masks, infos, strict=True))]
        self._space.turns = deque(
            tuple(np.split(np.ones(sum(self._sizes), bool) if allowed is None else allowed, np.cumsum(self._sizes)[:-1]))
            for allowed in self._allowed
        )

    def _checked(self, mask: Any, info: Any, agent: int) -> np.ndarray | None:
        if isinstance(info, dict) and not info.get("is_active", True):
            return None
        try:
            return allowed_actions(mask, self._sizes)
        except ValueError as exc:
            raise EnvError(f"{self._name}: observation '{ACTION_MASK}'{self._of(agent)} {exc}") from None


def guarded(env: Any, name: str) -> Any:
    """The environment; where it says which actions it allows, inside a `MaskGuard`."""
    return MaskGuard(env, name) if has_mask(env.observation_space) else env
