"""One process of an evaluation: several copies of an environment, one policy, a fixed number of episodes for each slot.

A slot plays one episode after the other; a single environment is one slot, a batched one (a pool of simulators) has several.
Shape symbols: K slots that act together, D action columns.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from sf_fixpo.envs import EnvError, find_suite
from sf_fixpo.envs.action_mask import ACTION_MASK, guarded

# Where an episode that does not end is left: more than any suite's own limit (Atari's, the longest, is 27,000 decisions).
MAX_STEPS = 50_000


@dataclass(frozen=True)
class Job:
    """Some episodes of one environment: what a worker does at a time.

    Attributes:
        cfg: the run's configuration.
        checkpoint: path of the policy's checkpoint; None for the random agent.
        env: number of the environment among those that are evaluated.
        index: of the job among those of its environment.
        episodes: how many it plays.
        seed: of the evaluation.
        deterministic: likeliest action instead of a sample.
        max_envs: environments it plays at once, at most.
        max_steps: after which an episode is left.
    """

    cfg: Any
    checkpoint: str | None
    env: int
    index: int
    episodes: int
    seed: int
    deterministic: bool
    max_envs: int
    max_steps: int = MAX_STEPS


class Slots:
    """An environment as a batch of slots, whether it is one environment or a pool of them.

    Attributes:
        count: K.
        observation_space: Dict, of one slot.
        action_space: of one slot.
        present: [K] whether each slot is to act next: of several agents some may be dead.
        draws: whether pictures may be asked for; those of sample-factory's ViZDoom do not say so in their metadata.
        env: what the suite made; where it says which actions it allows, held to that.
    """

    def __init__(self, env: Any, name: str = "the environment"):
        self.env = env = guarded(env, name)
        self.is_batched = bool(getattr(env.unwrapped, "is_multiagent", False))
        self._in_lists = False  # of a user's environment of several agents, where a pool of simulators has arrays
        self.count: int = env.unwrapped.num_agents if self.is_batched else 1
        space = env.observation_space
        self.present = np.ones(self.count, bool)
        draws = getattr(env, "render_mode", None) == "rgb_array" or "rgb_array" in getattr(env, "metadata", {}).get(
            "render_modes", ()
        )
        self.draws = draws and not self.is_batched
        self.observation_space = space if isinstance(space, gym.spaces.Dict) else gym.spaces.Dict(obs=space)
        self.action_space = env.action_space

    def reset(self) -> dict[str, np.ndarray]:
        """Starts an episode in every slot; observations [K, ...]."""
        obs, infos = self.env.reset()
        self._note_present(infos)
        return self._batch(obs)

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Steps every slot with actions [K, D]; finished slots start anew.

        Returns:
            Observations [K, ...] (the new episode's first where one ended), rewards [K] and whether each episode ended [K].
        """
        if self.is_batched:
            given = [one_action(self.action_space, row) for row in actions] if self._in_lists else actions
            obs, rewards, terminated, truncated, infos = self.env.step(given)
            self._note_present(infos)
            return self._batch(obs), np.asarray(rewards, dtype=float), np.asarray(terminated) | np.asarray(truncated)
        obs, reward, terminated, truncated, _ = self.env.step(one_action(self.action_space, actions[0]))
        done = bool(terminated or truncated)
        if done:
            obs, _ = self.env.reset()
        return self._batch(obs), np.asarray([reward], dtype=float), np.asarray([done])

    def _note_present(self, infos: Any) -> None:
        """By sample-factory's convention, `info["is_active"]` of each agent."""
        if self.is_batched and isinstance(infos, (list, tuple)):
            self.present = np.asarray([bool(info.get("is_active", True)) for info in infos])

    def _batch(self, obs: Any) -> dict[str, np.ndarray]:
        self._in_lists = self.is_batched and isinstance(obs, (list, tuple))
        if self._in_lists:  # an observation for each agent
            each = [one if isinstance(one, dict) else {"obs": one} for one in obs]
            return {name: np.stack([one[name] for one in each]) for name in each[0]}
        obs = obs if isinstance(obs, dict) else {"obs": obs}
        return {name: np.asarray(x) if self.is_batched else np.asarray(x)[None] for name, x in obs.items()}


def one_action(space: Any, row: np.ndarray) -> Any:
    """One slot's action columns [D] in the form a single environment takes: int, array, or a list with one entry per head."""
    if isinstance(space, gym.spaces.Discrete):
        return int(row[0])
    if isinstance(space, gym.spaces.Box):
        return np.asarray(row, dtype=np.float32)
    heads = tuple(space)  # a Tuple: sample-factory has no other kind
    pieces = np.split(row, np.cumsum([_columns(head) for head in heads])[:-1])
    return [one_action(head, piece) for head, piece in zip(heads, pieces, strict=True)]


def _columns(space: Any) -> int:
    return 1 if isinstance(space, gym.spaces.Discrete) else space.shape[0]


class Agent(Protocol):
    """Something that chooses actions."""

    def act(self, obs: dict[str, np.ndarray], slots: np.ndarray) -> np.ndarray:
        """Actions [K, D] for observations [K, ...] of the slots with these numbers [K]."""
        ...

    def forget(self, slot: int) -> None:
        """An episode of the slot has ended."""
        ...


class RandomAgent:
    """Chooses uniformly: from the categories that are allowed, and between the bounds of a Box; `_of_box` where it has none."""

    def __init__(self, action_space: gym.Space, seed: int):
        self._parts: tuple[Any, ...] = tuple(action_space) if isinstance(action_space, gym.spaces.Tuple) else (action_space,)
        self._rng = np.random.default_rng(seed)

    def act(self, obs: dict[str, np.ndarray], slots: np.ndarray) -> np.ndarray:
        """See `Agent`."""
        if ACTION_MASK in obs:
            return self._allowed(obs[ACTION_MASK])
        columns = [
            _of_box(part, self._rng, len(slots))
            if isinstance(part, gym.spaces.Box)
            else self._rng.integers(part.n, size=(len(slots), 1))
            for part in self._parts
        ]
        return np.concatenate(columns, axis=1)

    def _allowed(self, masks: np.ndarray) -> np.ndarray:
        """[K, D] by masks [K, A]: the largest of random numbers, which are 0 where a category is forbidden."""
        weights = (1.0 - self._rng.random(masks.shape)) * (masks != 0)
        heads = np.split(weights, np.cumsum([int(part.n) for part in self._parts])[:-1], axis=1)
        return np.stack([head.argmax(axis=1) for head in heads], axis=1)

    def forget(self, slot: int) -> None:
        """Nothing to forget."""


def _of_box(box: gym.spaces.Box, rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, D] elements, as Gymnasium draws them: uniform, normal without bounds, exponential away from the only bound."""
    size = (count, box.shape[0])
    if box.is_bounded():
        return rng.uniform(box.low, box.high, size)
    both = box.bounded_below & box.bounded_above
    uniform = rng.uniform(np.where(both, box.low, 0.0), np.where(both, box.high, 1.0), size)
    away = rng.exponential(size=size)
    kinds = [both, box.bounded_below, box.bounded_above]
    return np.select(kinds, [uniform, box.low + away, box.high - away], rng.normal(size=size))


class PolicyAgent:
    """A trained policy on the CPU."""

    def __init__(self, cfg: Any, checkpoint: str, slots: Slots, total_slots: int, deterministic: bool):
        from sample_factory.model.model_utils import get_rnn_size

        from sf_fixpo.learning import checkpoints
        from sf_fixpo.learning.networks import action_spec, make_network

        self._network = make_network(cfg, slots.observation_space, slots.action_space)
        self._network.load_state_dict(checkpoints.load(checkpoint)["model"])
        self._network.eval()
        self._states = torch.zeros(total_slots, get_rnn_size(cfg))
        self._spec = action_spec(slots.action_space)
        self._deterministic = deterministic

    @torch.no_grad()
    def act(self, obs: dict[str, np.ndarray], slots: np.ndarray) -> np.ndarray:
        """See `Agent`; keeps the slots' recurrent states."""
        from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs

        rows = torch.from_numpy(slots)
        normalized = prepare_and_normalize_obs(self._network, {name: torch.from_numpy(x) for name, x in obs.items()})
        result = self._network(normalized, self._states[rows])
        self._states[rows] = result["new_rnn_states"]
        actions = likeliest_actions(result["action_logits"], self._spec) if self._deterministic else result["actions"]
        return actions.reshape(len(slots), -1).numpy()

    def forget(self, slot: int) -> None:
        """Zeroes the slot's recurrent state."""
        self._states[slot] = 0.0


def likeliest_actions(parameters: Tensor, spec: Sequence[tuple[str, int]]) -> Tensor:
    """The likeliest category, or a Gaussian's mean, of every head.

    Args:
        parameters: [K, A] action parameters.
        spec: kind and size of every head, in order.

    Returns:
        [K, D]
    """
    columns, start = [], 0
    for kind, size in spec:
        head = parameters[:, start : start + size]
        columns.append(head.argmax(dim=1, keepdim=True).float() if kind == "categorical" else head)
        start += size if kind == "categorical" else 2 * size
    return torch.cat(columns, dim=1)


def make_slots(job: Job) -> list[Slots]:
    """As many environments as the worker needs: one pool, or up to `max_envs` single ones."""
    from sample_factory.utils.attr_dict import AttrDict

    cfg = AttrDict(job.cfg)
    if cfg.get("script"):
        from sf_fixpo.running.scripts import adopt

        adopt(cfg)
    suite = find_suite(cfg.env)
    if "env_agents" in cfg:  # a simulator that plays no episode of its own only costs time
        cfg.env_agents = min(cfg.env_agents, job.episodes)
    made: list[Slots] = []
    while not made or (not made[0].is_batched and len(made) < min(job.max_envs, job.episodes)):
        env_id = job.index * job.max_envs + len(made)
        env_config = AttrDict(worker_index=job.index, vector_index=len(made), env_id=env_id)
        made.append(Slots(suite.make_env(cfg.env, cfg, env_config, None), cfg.env))
    return made


def play(job: Job, send: Any) -> None:
    """Plays the job's episodes.

    Args:
        job: what to play.
        send: called with `("engine", name)` once, and with `("episode", slot, number, return, length, cut)` for every episode;
            `cut` says that it was left at `max_steps`. The next one in that slot begins anew, but for a slot of a pool, whose
            simulator goes on where it is.
    """
    groups = make_slots(job)
    first = groups[0]
    send(("engine", str(getattr(first.env.unwrapped, "engine", None) or find_suite(job.cfg.env).name)))
    firsts = np.cumsum([0, *(group.count for group in groups)])
    total = int(firsts[-1])
    seed = int(np.random.SeedSequence([job.seed, job.index]).generate_state(1)[0])
    torch.manual_seed(seed)
    if job.checkpoint is None:
        agent: Agent = RandomAgent(first.action_space, seed)
    else:
        agent = PolicyAgent(job.cfg, job.checkpoint, first, total, job.deterministic)
    quota = np.asarray([job.episodes // total + (slot < job.episodes % total) for slot in range(total)])
    played, returns, lengths = np.zeros(total, int), np.zeros(total), np.zeros(total, int)
    members = [np.arange(firsts[i], firsts[i + 1]) for i in range(len(groups))]
    obs = [group.reset() for group in groups]
    try:
        while active := [i for i in range(len(groups)) if (played[members[i]] < quota[members[i]]).any()]:
            slots = np.concatenate([members[i] for i in active])
            together = {name: np.concatenate([obs[i][name] for i in active]) for name in obs[0]}
            actions = agent.act(together, slots)
            at = 0
            for i in active:
                acted = groups[i].present
                obs[i], rewards, dones = groups[i].step(actions[at : at + groups[i].count])
                at += groups[i].count
                returns[members[i]] += rewards
                lengths[members[i]] += acted
                for slot in members[i][~groups[i].present]:
                    agent.forget(int(slot))
                cut = ~dones & (lengths[members[i]] >= job.max_steps)
                if cut.any() and not groups[i].is_batched:
                    obs[i] = groups[i].reset()
                for slot in members[i][dones | cut]:
                    if played[slot] < quota[slot]:
                        left = bool(cut[slot - firsts[i]])
                        send(("episode", int(slot), int(played[slot]), float(returns[slot]), int(lengths[slot]), left))
                    played[slot] += 1
                    returns[slot] = lengths[slot] = 0
                    agent.forget(slot)
    finally:
        for group in groups:
            group.env.close()


def set_log_level(level: int) -> None:
    """Sets the level of sample-factory's log, which sets its own when it is imported."""
    from sample_factory.utils.utils import log

    log.setLevel(level)


def play_in_process(pipe: Connection) -> None:
    """Entry point of a worker process: plays the jobs that come through the pipe, until None, and reports; errors too."""
    from sf_fixpo.running.supervision import end_with_parent

    end_with_parent()
    set_log_level(logging.ERROR)
    torch.set_num_threads(1)
    try:
        while (job := pipe.recv()) is not None:
            play(job, pipe.send)
            pipe.send(("done",))
    except EnvError as exc:
        with suppress(OSError):
            pipe.send(("error", str(exc)))
        raise SystemExit(1) from exc
    except BaseException as exc:
        # whatever it was, the parent prints it: a worker's own output would be lost among the others'
        with suppress(OSError):  # where nobody listens any more
            pipe.send(("error", traceback.format_exc()))
        raise SystemExit(1) from exc
    finally:
        pipe.close()
