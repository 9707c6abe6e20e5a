"""Environments of several agents: Gymnasium's vector environments and PettingZoo's parallel API, as sample-factory takes them.

One policy plays all agents (or each of a population some of them). Agents are told apart by their place: the environments of a
vector, or PettingZoo's `possible_agents`. An agent that is not there, dead or not yet born, is inactive in sample-factory's sense
(`info["is_active"]`): it is asked for no action, and nothing is learned from it.

Shapes: K agents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from sf_fixpo.envs.gymnasium_envs.actions import Actions, UnsuitableSpaceError
from sf_fixpo.envs.gymnasium_envs.answers import RESET, STEP, UNFIT, by_agent, flag, number, parts
from sf_fixpo.envs.gymnasium_envs.observations import Observations
from sf_fixpo.envs.seeding import env_seeds
from sf_fixpo.envs.suite import EnvError


@dataclass
class Moment:
    """What each of K agents is given after a step, or at the start; None and 0 for one that is not there.

    Attributes:
        observations: in the environment's own form.
        rewards: of the step.
        terminated: whether the agent's episode ended by itself.
        truncated: whether it was cut off.
        infos: what the environment says beside.
        present: whether the agent is to act next.
    """

    observations: list[Any]
    rewards: list[Any]
    terminated: list[bool]
    truncated: list[bool]
    infos: list[dict[str, Any]]
    present: list[bool]


def is_several(env: Any) -> bool:
    """Whether what a factory has made is of one of the two kinds."""
    if isinstance(env, gymnasium.Env):  # whose wrappers comment on every attribute that is asked for through them
        return isinstance(env.unwrapped, VectorEnv)
    return hasattr(env, "possible_agents")


class Vector:
    """The environments of a vector, which starts each anew by itself.

    Attributes:
        names: of the agents, in messages.
        observation_space: of one agent.
        action_space: of one agent.
    """

    def __init__(self, env: Any):
        self.env = env.unwrapped if not isinstance(env, VectorEnv) else env  # Gymnasium's wrappers are for single environments
        self.names = [f"environment {i}" for i in range(self.env.num_envs)]
        self.observation_space, self.action_space = self.env.single_observation_space, self.env.single_action_space

    def reset(self, seed: int | None, options: Any) -> Moment:
        """Starts all of them."""
        observations, infos = parts(self.env.reset(seed=seed, options=options), RESET, "reset")
        nothing = [False] * len(self.names)
        return self._moment(observations, [0.0] * len(self.names), nothing, nothing, infos)

    def step(self, actions: Sequence[Any]) -> Moment:
        """Steps all of them."""
        together = create_empty_array(self.action_space, n=len(actions))
        together = concatenate(self.action_space, list(actions), together)  # type: ignore[arg-type]
        return self._moment(*parts(self.env.step(together), STEP, "step"))

    def _moment(self, observations: Any, rewards: Any, terminated: Any, truncated: Any, infos: Any) -> Moment:
        try:
            each = list(iterate(self.env.observation_space, observations))
            rewards, terminated, truncated = list(rewards), list(terminated), list(truncated)
        except UNFIT as exc:
            raise EnvError(f"what it returned is not of {len(self.names)} environments: {exc}") from exc
        if {len(each), len(rewards), len(terminated), len(truncated)} != {len(self.names)}:
            raise EnvError(f"what it returned is not of {len(self.names)} environments")
        ended = infos.get("final_info") if isinstance(infos, dict) else None
        of_each = [{} if ended is None or ended[i] is None else dict(ended[i]) for i in range(len(each))]
        ends = [flag(x, "terminated") for x in terminated], [flag(x, "truncated") for x in truncated]
        return Moment(each, rewards, *ends, of_each, [True] * len(each))


class Parallel:
    """PettingZoo's parallel API; when nobody is left it starts anew.

    Attributes:
        names: of the agents that there can be.
        observation_space: of every agent.
        action_space: of every agent.
    """

    def __init__(self, env: Any):
        """Takes an environment.

        Raises:
            UnsuitableSpaceError: it is of the other API, or its agents have different spaces.
        """
        if hasattr(env, "agent_iter"):
            raise UnsuitableSpaceError(
                "is of PettingZoo's AEC API, where agents take turns: name its parallel_env, or convert it "
                "(pettingzoo.utils.conversions.aec_to_parallel)"
            )
        self.env = env
        self._agents = list(env.possible_agents)
        self.names = [f"agent '{agent}'" for agent in self._agents]
        self.observation_space, self.action_space = (
            self._one(what, {agent: space(agent) for agent in self._agents})
            for what, space in (("observation", env.observation_space), ("action", env.action_space))
        )

    @staticmethod
    def _one(what: str, found: dict[Any, spaces.Space]) -> spaces.Space:
        if not found:
            raise UnsuitableSpaceError("has no possible_agents")
        (first, space), *others = found.items()
        for agent, other in others:
            if other != space:
                raise UnsuitableSpaceError(
                    f"agents of different {what} spaces: '{first}' has {space}, '{agent}' {other}; one policy plays all: make "
                    "them the same (supersuit.pad_observations_v0, pad_action_space_v0)"
                )
        return space

    def reset(self, seed: int | None, options: Any) -> Moment:
        """Starts an episode of all."""
        observations, infos = parts(self.env.reset(seed=seed, options=options), RESET, "reset")
        return self._moment(observations, {}, {}, {}, infos)

    def step(self, actions: Sequence[Any]) -> Moment:
        """Steps those who are there; an episode that all have left is followed by the next."""
        acting = list(self.env.agents)
        chosen = {agent: action for agent, action in zip(self._agents, actions, strict=True) if agent in acting}
        observations, rewards, terminated, truncated, infos = parts(self.env.step(chosen), STEP, "step")
        terminated, truncated = by_agent(terminated, "terminations"), by_agent(truncated, "truncations")
        for agent in acting:
            ends = flag(terminated.get(agent, False), "terminated"), flag(truncated.get(agent, False), "truncated")
            if agent not in self.env.agents and not any(ends):
                raise EnvError(f"agent '{agent}' has left env.agents without a termination or truncation")
        if not self.env.agents:
            observations, infos = parts(self.env.reset(), RESET, "reset")
        return self._moment(observations, rewards, terminated, truncated, infos)

    def _moment(self, observations: Any, rewards: Any, terminated: Any, truncated: Any, infos: Any) -> Moment:
        observations, rewards = by_agent(observations, "observations"), by_agent(rewards, "rewards")
        infos = [by_agent(infos, "infos").get(agent) for agent in self._agents]
        infos = [info if isinstance(info, dict) else {} for info in infos]
        # where agents take turns, the name of the one whose turn it is, as turn_based_aec_to_parallel gives it
        turns = [info.get("active_agent", agent) for agent, info in zip(self._agents, infos, strict=True)]
        present = [
            agent in self.env.agents
            and flag(info.get("is_active", True), "is_active")
            and (isinstance(turn, type(agent)) and turn == agent)
            for agent, info, turn in zip(self._agents, infos, turns, strict=True)
        ]
        for agent, here in zip(self._agents, present, strict=True):
            if here and agent not in observations:
                raise EnvError(f"agent '{agent}' is in env.agents, and has no observation")
        return Moment(
            [observations.get(agent) if here else None for agent, here in zip(self._agents, present, strict=True)],
            [rewards.get(agent, 0.0) for agent in self._agents],
            [flag(terminated.get(agent, False), "terminated") for agent in self._agents],
            [flag(truncated.get(agent, False), "truncated") for agent in self._agents],
            infos,
            present,
        )


def agents_of(env: Any) -> Vector | Parallel:
    """The agents of what `is_several`.

    Raises:
        UnsuitableSpaceError: no policy can play them.
    """
    return Vector(env) if isinstance(env.unwrapped, VectorEnv) else Parallel(env)


class SeveralAdapter(gymnasium.Env):
    """Several agents with the policy's spaces, in sample-factory's form: lists of what each agent sees, does and is given.

    sample-factory takes every agent for active until the first step: of an agent that is not there at the very first start of an
    environment one step is learned from, with an observation of zeros.
    """

    is_multiagent = True

    def __init__(self, env: Any, cfg: Any, env_config: Any):
        """Takes a vector environment, or one of PettingZoo's.

        Raises:
            UnsuitableSpaceError: no policy can play it.
        """
        self.agents = agents_of(env)
        self.num_agents = len(self.agents.names)
        self.render_mode, self.metadata = getattr(env, "render_mode", None), getattr(env, "metadata", {})
        self._name = str(getattr(cfg, "env", "the environment"))
        self._observations = Observations(self.agents.observation_space, self._name)
        self._actions = Actions(self.agents.action_space)
        self.observation_space, self.action_space = self._observations.policy_space, self._actions.policy_space
        self._nothing = _zeros(self.observation_space)
        self._cfg, self._env_config, self._seeded = cfg, env_config, False
        self._steps = [0] * self.num_agents

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[list[Any], list[dict]]:
        """Starts an episode of all agents; seeds as `GymAdapter` does.

        Raises:
            EnvError: an observation is not what its space says.
        """
        engine_seed = None
        if seed is not None or not self._seeded:
            engine_seed = env_seeds(self._cfg, self._env_config, salt=seed or 0)[0]
            self._seeded = True
        self._steps = [0] * self.num_agents
        moment = self._named(lambda: self.agents.reset(engine_seed, options))
        return self._seen(moment), [{"is_active": here} for here in moment.present]

    def step(self, action: Any) -> tuple[list[Any], list[float], list[bool], list[bool], list[dict]]:
        """One step of all agents.

        Args:
            action: K choices of the policy.

        Raises:
            EnvError: an observation, a reward or an action is none; the message says whose.
        """
        moment = self._named(lambda: self.agents.step(self._chosen(action)))
        rewards = [self._reward(reward, i) for i, reward in enumerate(moment.rewards)]
        ends = list(zip(moment.terminated, moment.truncated, strict=True))
        self._steps = [0 if any(end) else steps + 1 for end, steps in zip(ends, self._steps, strict=True)]
        infos = [_kept(info, here) for info, here in zip(moment.infos, moment.present, strict=True)]
        # an end that is both is an end: nothing follows it whose value could be added
        truncated = [cut and not over for over, cut in ends]
        return self._seen(moment), rewards, list(moment.terminated), truncated, infos

    def _named(self, call: Any) -> Moment:
        try:
            return call()
        except EnvError as exc:
            raise EnvError(f"{self._name}: {exc}") from None

    def _chosen(self, action: Iterable[Any]) -> list[Any]:
        found = []
        for name, one in zip(self.agents.names, action, strict=True):
            try:
                found.append(self._actions.engine_action(one))
            except ValueError as exc:
                raise EnvError(f"{name}: {exc}") from None
        return found

    def _reward(self, reward: Any, agent: int) -> float:
        try:
            return number(reward, f"the reward of {self.agents.names[agent]}")
        except EnvError as exc:
            raise EnvError(f"{self._name}: {exc} at step {self._steps[agent] + 1} of an episode") from None

    def _seen(self, moment: Moment) -> list[Any]:
        seen = []
        for agent, (observation, here) in enumerate(zip(moment.observations, moment.present, strict=True)):
            try:
                seen.append(self._observations.policy_observation(observation, self._steps[agent]) if here else self._nothing)
            except EnvError as exc:
                raise EnvError(f"{exc}; it is that of {self.agents.names[agent]}") from None
        return seen

    def render(self) -> Any:
        """As the environment's."""
        return self.agents.env.render()

    def close(self) -> None:
        """Ends the environment."""
        self.agents.env.close()


def _zeros(space: spaces.Space) -> Any:
    """What an agent sees that is not there."""
    if isinstance(space, spaces.Dict):
        return {key: _zeros(part) for key, part in space.spaces.items()}
    return np.zeros(space.shape or (), space.dtype)


def _kept(info: dict[str, Any], here: bool) -> dict[str, Any]:
    """Of what an environment says only what is meant for sample-factory: other keys may be called like its own by chance."""
    extra = info.get("episode_extra_stats")
    return {"is_active": here, **({"episode_extra_stats": extra} if isinstance(extra, dict) else {})}
