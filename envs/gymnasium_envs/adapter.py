"""Between a Gymnasium environment and what sample-factory's policies take and give."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces

from sf_fixpo.envs.action_mask import mask_fault
from sf_fixpo.envs.gymnasium_envs.actions import Actions, UnsuitableSpaceError
from sf_fixpo.envs.gymnasium_envs.answers import RESET, STEP, flag, number, parts
from sf_fixpo.envs.gymnasium_envs.observations import Observations
from sf_fixpo.envs.seeding import env_seeds
from sf_fixpo.envs.suite import EnvError


def space_faults(observation_space: spaces.Space, action_space: spaces.Space) -> list[str]:
    """What keeps an environment's spaces from being learned.

    Args:
        observation_space: as the environment declares it.
        action_space: as the environment declares it.

    Returns:
        One line a fault, with the space; empty where the spaces will do.
    """
    found = []
    for check in (lambda: Observations(observation_space, ""), lambda: Actions(action_space)):
        try:
            check()
        except UnsuitableSpaceError as exc:
            found.append(str(exc))
    if not found:
        seen, chosen = Observations(observation_space, "").policy_space, Actions(action_space).policy_space
        found += filter(None, [mask_fault(seen, chosen)])
    return found


class GymAdapter(gymnasium.Wrapper):
    """One Gymnasium environment with the policy's spaces, seeded from the run's seed and its own number.

    Of what an environment says beside (`info`) only `episode_extra_stats` is passed on: sample-factory reads other keys there, as
    `num_frames`, for its own, and a user's may be called so by chance.
    """

    def __init__(self, env: gymnasium.Env, cfg: Any, env_config: Any):
        """Takes an environment.

        Raises:
            UnsuitableSpaceError: its spaces cannot be learned (see `space_faults`).
        """
        super().__init__(env)
        self._name = str(getattr(cfg, "env", "the environment"))
        self._observations = Observations(env.observation_space, self._name)
        self._actions = Actions(env.action_space)
        self.observation_space = self._observations.policy_space
        self.action_space = self._actions.policy_space
        self._cfg = cfg
        self._env_config = env_config
        self._seeded = False
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: mixed with `--seed` and the environment's number: sample-factory passes only that number, the same in
                every run. None seeds the first episode likewise and continues the engine's random stream afterwards.
            options: the environment's own.

        Returns:
            The observation as the policy sees it, and no info.

        Raises:
            EnvError: the observation is not what its space says, or a number in it is not finite.
        """
        engine_seed = None
        if seed is not None or not self._seeded:
            engine_seed = env_seeds(self._cfg, self._env_config, salt=seed or 0)[0]
            self._seeded = True
        self._steps = 0
        observation, _ = self._parts(self.env.reset(seed=engine_seed, options=options), RESET, "reset")
        return self._observations.policy_observation(observation, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step, with the action brought into the environment's form and bounds.

        Returns:
            As Gymnasium's. An end that is both a termination and a truncation is a termination: nothing follows it whose value
            could be added.

        Raises:
            EnvError: an observation or the reward is not a finite number, or the policy's action is none.
        """
        self._steps += 1
        try:
            chosen = self._actions.engine_action(action)
        except ValueError as exc:
            raise EnvError(f"{self._name}: {exc}, at step {self._steps} of an episode") from exc
        observation, reward, terminated, truncated, info = self._parts(self.env.step(chosen), STEP, "step")
        try:
            reward = number(reward, "the reward")
            terminated, truncated = flag(terminated, "terminated"), flag(truncated, "truncated")
        except EnvError as exc:
            raise EnvError(f"{self._name}: {exc} at step {self._steps} of an episode") from None
        extra = info.get("episode_extra_stats") if isinstance(info, dict) else None
        kept = {"episode_extra_stats": extra} if isinstance(extra, dict) else {}
        seen = self._observations.policy_observation(observation, self._steps)
        return seen, reward, terminated, truncated and not terminated, kept

    def _parts(self, answer: Any, names: tuple[str, ...], call: str) -> tuple[Any, ...]:
        try:
            return parts(answer, names, call)
        except EnvError as exc:
            raise EnvError(f"{self._name}: {exc}") from None
