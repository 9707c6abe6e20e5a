"""Between a Gymnasium environment and what sample-factory's policies take and give.

Policies take float32 vectors, and give unbounded Gaussians (Box), categories (Discrete), or a tuple of these.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sf_fixpo.envs.seeding import env_seeds


def space_faults(observation_space: spaces.Space, action_space: spaces.Space) -> list[str]:
    """What keeps an environment's spaces from being learned with sample-factory's vector encoders.

    Args:
        observation_space: as the environment declares it.
        action_space: as the environment declares it.

    Returns:
        One line a fault; empty where the spaces will do.
    """
    parts = (
        {f"observation '{key}'": part for key, part in observation_space.spaces.items()}
        if isinstance(observation_space, spaces.Dict)
        else {"observation": observation_space}
    )
    found = [
        f"{what} space {part}: must be a vector (a 1-dimensional Box); wrap the environment to give one"
        for what, part in parts.items()
        if not (isinstance(part, spaces.Box) and len(part.shape) == 1)
    ]
    if not _is_action(action_space):
        found.append(
            f"action space {action_space}: must be a 1-dimensional Box, a Discrete from 0, a MultiDiscrete or a Tuple of these"
        )
    return found


def _is_action(space: spaces.Space) -> bool:
    """Whether a policy can choose from this space."""
    if isinstance(space, spaces.Tuple):
        return all(isinstance(part, (spaces.Box, spaces.Discrete)) and _is_action(part) for part in space)
    if isinstance(space, spaces.Box):
        return len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
    if isinstance(space, spaces.Discrete):
        return int(space.start) == 0
    return isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1


def policy_observation_space(space: spaces.Space) -> spaces.Space:
    """The same space in float32, which the networks compute in (simulators often give float64)."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: policy_observation_space(part) for key, part in space.spaces.items()})
    if space.dtype == np.float32:
        return space
    # Bounds of another type may not fit into float32; nothing downstream reads them.
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)


def policy_observation(observation: Any) -> Any:
    """An observation in float32: an array, or a dict of arrays."""
    if isinstance(observation, dict):
        return {key: policy_observation(part) for key, part in observation.items()}
    return np.asarray(observation, dtype=np.float32)


def policy_action_space(space: spaces.Space) -> spaces.Space:
    """The space as sample-factory knows it: MultiDiscrete becomes a Tuple of Discrete."""
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.Tuple([spaces.Discrete(int(count)) for count in space.nvec])
    return space


def engine_action(space: spaces.Space, action: Any) -> Any:
    """A policy's action as the environment wants it, within its bounds.

    Args:
        space: the environment's own action space.
        action: what the policy chose, possibly beyond the bounds of a Box.

    Returns:
        An element of `space`.
    """
    if isinstance(space, spaces.Box):
        return np.clip(np.asarray(action, dtype=space.dtype).reshape(space.shape), space.low, space.high)
    if isinstance(space, spaces.Tuple):
        return tuple(engine_action(part, chosen) for part, chosen in zip(space, action, strict=True))
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray([int(np.asarray(chosen).item()) for chosen in action], dtype=space.dtype)
    return int(np.asarray(action).item())


class GymAdapter(gymnasium.Wrapper):
    """One Gymnasium environment with the policy's spaces, seeded from the run's seed and its own number."""

    def __init__(self, env: gymnasium.Env, cfg: Any, env_config: Any):
        super().__init__(env)
        self.observation_space = policy_observation_space(env.observation_space)
        self.action_space = policy_action_space(env.action_space)
        self._cfg = cfg
        self._env_config = env_config
        self._seeded = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: mixed with `--seed` and the environment's number: sample-factory passes only that number, the same in
                every run. None seeds the first episode likewise and continues the engine's random stream afterwards.
            options: the environment's own.

        Returns:
            The observation in float32, and the environment's info.
        """
        engine_seed = None
        if seed is not None or not self._seeded:
            engine_seed = env_seeds(self._cfg, self._env_config, salt=seed or 0)[0]
            self._seeded = True
        observation, info = self.env.reset(seed=engine_seed, options=options)
        return policy_observation(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step, with the action brought into the environment's form and bounds."""
        observation, reward, terminated, truncated, info = self.env.step(engine_action(self.env.action_space, action))
        return policy_observation(observation), float(reward), terminated, truncated, info
