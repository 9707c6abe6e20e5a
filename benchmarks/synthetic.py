"""Learners and training batches without an environment: for the learner benchmark and for tests.

A batch is what sample-factory's batcher hands to a learner: observations and rewards are synthetic and seeded, but everything a
policy produces (actions, distribution parameters, log-probabilities, values, recurrent states, version) comes from a forward
pass of the policy the learner has published, or of older snapshots of it. So the KL starts at 0 and the ratios at 1, as in a run.

Shape symbols: E trajectories, T steps of a trajectory (`rollout`), S size of the recurrent state, D action columns, A action
parameters. Batches are [E, T] or, for inputs that need the step after the last, [E, T + 1].
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np
import torch
from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.utils.action_distributions import calc_num_actions
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.env_info import ENV_INFO_PROTOCOL_VERSION, EnvInfo
from sample_factory.algo.utils.model_sharing import ParameterServer
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs, trajectories_per_training_iteration
from sample_factory.algo.utils.shared_buffers import alloc_trajectory_tensors
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.cfg.arguments import parse_sf_args
from sample_factory.model.actor_critic import ActorCritic, create_actor_critic
from sample_factory.model.model_utils import get_rnn_size
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.gpu_utils import set_global_cuda_envvars
from torch import Tensor

from benchmarks.shapes import SHAPES, Shape

ALGOS = ("APPO", "FIXPO", "TRPO", "PPO_KL", "KL_PROJECTION")
# Where learners are made unless something else is said: `FIXPO_TEST_DEVICE=gpu` takes a whole test suite there.
DEVICE = os.environ.get("FIXPO_TEST_DEVICE", "cpu")
_CHUNK = 256  # observations per forward pass while a batch is filled: convolutions need much memory for each

_PLAYERS: WeakKeyDictionary[Learner, ActorCritic] = WeakKeyDictionary()  # to make a network takes longer than to play it


@dataclass(frozen=True)
class PolicySnapshot:
    """A published policy as it was: `fill_policy_outputs` plays it as an actor that lags behind."""

    version: int
    state_dict: dict[str, Tensor]


def vector_space(size: int = 8) -> gym.spaces.Dict:
    """Observations of `size` unbounded floats under sample-factory's usual key."""
    return gym.spaces.Dict(obs=gym.spaces.Box(-np.inf, np.inf, (size,), np.float32))


def box_actions(size: int = 2) -> gym.spaces.Box:
    """Continuous actions in [-1, 1]."""
    return gym.spaces.Box(-1.0, 1.0, (size,), np.float32)


def small_shape(obs_space: gym.spaces.Dict | None = None, action_space: gym.Space | None = None, **flags: Any) -> Shape:
    """A network of two layers of 16 and a batch of 64 samples, for tests; `flags` go over the settings."""
    cfg = {
        "use_rnn": False,
        "encoder_mlp_layers": [16, 16],
        "nonlinearity": "tanh",
        "rnn_size": 8,
        "rollout": 8,
        "recurrence": -1,
        "batch_size": 64,
        "num_batches_per_epoch": 1,
        "num_epochs": 1,
        "learning_rate": 1e-3,
        "normalize_input": False,
        "normalize_returns": False,
        "exploration_loss_coeff": 0.0,
        "max_policy_lag": 1000,
    }
    cfg.update(flags)
    return Shape("small", obs_space or vector_space(), action_space or gym.spaces.Discrete(4), cfg)


def make_cfg(algo: str, shape: Shape, device: str = DEVICE, train_dir: str | Path | None = None, **flags: Any) -> AttrDict:
    """A configuration as a run has it: every flag's default, then the shape's settings, then `flags`.

    Args:
        algo: one of `ALGOS`.
        shape: spaces and settings.
        device: `cpu` or `gpu`, as in sample-factory.
        train_dir: where the learner may write; a new temporary folder where it is None.
        **flags: settings by flag name, over those of the shape.

    Raises:
        ValueError: an unknown algorithm, or a flag that no parser knows.
    """
    if algo not in ALGOS:
        raise ValueError(f"unknown algorithm {algo!r}: one of {', '.join(ALGOS)}")
    parser, _ = parse_sf_args(["--env=synthetic", "--experiment=synthetic"])
    settings = {**shape.cfg, **(shape.appo if algo == "APPO" else shape.fixpo), **flags}
    if algo != "APPO":  # late: stock learners are measured without this package's code
        from sf_fixpo.algorithm.config import add_fixpo_args
        from sf_fixpo.baselines.settings import add_baseline_args
        from sf_fixpo.learning.tasks import task_count

        add_fixpo_args(parser)
        add_baseline_args(parser)
        parser.set_defaults(task_names=[f"task_{i}" for i in range(task_count(shape.obs_space))])
    cfg = AttrDict(vars(parser.parse_args(["--env=synthetic", "--experiment=synthetic"])))
    if unknown := sorted(set(settings) - set(cfg)):
        raise ValueError(f"no such flag for {algo}: {', '.join(unknown)}")
    cfg.update(algo=algo, device=device, serial_mode=True, async_rl=False, with_wandb=False, seed=0, cli_args={})
    cfg.update(settings, train_dir=str(train_dir or tempfile.mkdtemp(prefix="synthetic_learner_")))
    if cfg.recurrence == -1:
        cfg.recurrence = cfg.rollout if cfg.use_rnn else 1
    return cfg


def make_env_info(obs_space: gym.spaces.Dict, action_space: gym.Space) -> EnvInfo:
    """What sample-factory would have learned from an environment with these spaces."""
    is_tuple = isinstance(action_space, gym.spaces.Tuple)
    return EnvInfo(
        obs_space=obs_space,
        action_space=action_space,
        num_agents=1,
        gpu_actions=False,
        gpu_observations=False,
        action_splits=[calc_num_actions(space) for space in action_space] if is_tuple else None,
        all_discrete=all(isinstance(space, gym.spaces.Discrete) for space in action_space) if is_tuple else None,
        frameskip=1,
        env_info_protocol_version=ENV_INFO_PROTOCOL_VERSION,
    )


def make_learner(
    algo: str, shape: Shape | str, device: str = DEVICE, train_dir: str | Path | None = None, policy_id: int = 0, **flags: Any
) -> Learner:
    """An initialised learner, built as sample-factory's learner worker builds it, in this process.

    Args:
        algo: `APPO` (sample-factory's own learner), `FIXPO`, or one of `sf_fixpo.baselines`.
        shape: spaces and settings, or the name of one of `SHAPES`.
        device: `cpu` or `gpu`.
        train_dir: where checkpoints and logs go; a new temporary folder where it is None. A folder with a checkpoint resumes it.
        policy_id: which policy of a population.
        **flags: settings by flag name, over those of the shape; and `meeting`, where several learners of one policy meet.
    """
    meeting, shape = flags.pop("meeting", None), SHAPES[shape] if isinstance(shape, str) else shape
    cfg = make_cfg(algo, shape, device, train_dir, **flags)
    cfg.num_policies = max(cfg.num_policies, policy_id + 1)
    set_global_cuda_envvars(cfg)  # as a runner does: sample-factory looks for a policy's GPU there
    versions = torch.zeros([cfg.num_policies], dtype=torch.int32)
    env_info = make_env_info(shape.obs_space, shape.action_space)
    if algo == "APPO":
        learner = Learner(cfg, env_info, versions, policy_id, ParameterServer(policy_id, versions, cfg.serial_mode))
        learner.init()
        return learner
    from sf_fixpo.baselines.registry import LEARNERS
    from sf_fixpo.learning.mailbox import MailboxServer
    from sf_fixpo.learning.networks import make_actor_critic

    factory, before = global_model_factory(), global_model_factory().make_actor_critic_func
    factory.register_actor_critic_factory(make_actor_critic)  # as the runner does
    try:
        learner = LEARNERS[algo](cfg, env_info, versions, policy_id, MailboxServer(policy_id, versions, cfg))
        learner.meeting = meeting
        learner.init()
    finally:
        factory.register_actor_critic_factory(before)
    return learner


def take_snapshot(learner: Learner) -> PolicySnapshot:
    """A copy of the policy that the learner has published last."""
    state = {key: value.detach().clone() for key, value in _published(learner).state_dict().items()}
    return PolicySnapshot(_published_version(learner), state)


def _published(learner: Learner) -> ActorCritic:
    """The network that policy workers read: not always the one that is being trained."""
    return learner.param_server.actor_critic


def _published_version(learner: Learner) -> int:
    return int(learner.policy_versions_tensor[learner.policy_id])


def make_batch(
    learner: Learner,
    seed: int = 0,
    done_rate: float = 0.02,
    timeout_share: float = 0.5,
    invalid_share: float = 0.0,
    snapshots: Sequence[PolicySnapshot] = (),
) -> TensorDict:
    """One training batch of the size the learner's configuration asks for.

    Args:
        learner: whose spaces, sizes and published policy are used.
        seed: of everything that is drawn.
        done_rate: probability that an episode ends at a step.
        timeout_share: share of these ends that are time-outs.
        invalid_share: share of the steps that another policy has collected (`policy_id` -1), which a learner must leave out.
        snapshots: older policies, for `fill_policy_outputs`.

    Returns:
        The batch on the learner's device, laid out as sample-factory's batcher does. A learner changes it while it trains:
        call `fill_policy_outputs` before it is used again.
    """
    cfg, device = learner.cfg, learner.device
    num_traj = trajectories_per_training_iteration(cfg)
    batch = alloc_trajectory_tensors(learner.env_info, num_traj, cfg.rollout, get_rnn_size(cfg), device, share=False)
    rng = np.random.default_rng(seed)
    for name, space in learner.env_info.obs_space.spaces.items():
        batch["obs"][name].copy_(torch.from_numpy(_draw_obs(rng, space, num_traj, cfg.rollout + 1)))
    shape = (num_traj, cfg.rollout)
    dones = rng.random(shape) < done_rate
    batch["dones"].copy_(torch.from_numpy(dones))
    batch["time_outs"].copy_(torch.from_numpy(dones & (rng.random(shape) < timeout_share)))
    owner = np.where(rng.random(shape) < invalid_share, -1, learner.policy_id)
    batch["policy_id"].copy_(torch.from_numpy(owner))
    fill_policy_outputs(learner, batch, seed, snapshots)
    return batch


def _draw_obs(rng: np.random.Generator, space: gym.spaces.Box, num_traj: int, steps: int) -> np.ndarray:
    """Observations [num_traj, steps, ...] that drift in time: neighbours are alike, as an environment's are."""
    if np.issubdtype(space.dtype, np.integer) and len(space.shape) < 3:
        low, high = space.low.astype(np.int64), space.high.astype(np.int64)
        return rng.integers(low, high, (num_traj, steps, *space.shape), endpoint=True).astype(space.dtype)
    drift = np.cumsum(rng.standard_normal((num_traj, steps), np.float32), axis=1) * 0.3
    drift = drift.reshape((num_traj, steps) + (1,) * len(space.shape))
    if np.issubdtype(space.dtype, np.integer):
        noise = rng.integers(-60, 60, (num_traj, steps, *space.shape), dtype=np.int16)
        values = noise + (128 + 40 * np.tanh(drift)).astype(np.int16)
        return np.clip(values, space.low.min(), space.high.max()).astype(space.dtype)
    offset, scale = rng.uniform(-2.0, 2.0, space.shape), rng.uniform(0.5, 3.0, space.shape)
    noise = rng.standard_normal((num_traj, steps, *space.shape))
    return np.clip(offset + scale * (noise + drift), space.low, space.high).astype(space.dtype)


def fill_policy_outputs(learner: Learner, batch: TensorDict, seed: int = 0, snapshots: Sequence[PolicySnapshot] = ()) -> None:
    """Plays the policy over the batch's observations and writes what actors would have written, in place.

    Everything a learner changes in a batch while it trains (values, rewards, validity, actions of invalid steps) is written anew,
    so that one batch serves any number of updates.

    Args:
        learner: whose published policy acts. Its mode, its normaliser's statistics and torch's random state stay as they are.
        batch: as `make_batch` returns it.
        seed: of the sampled actions, the first recurrent states and the rewards' noise.
        snapshots: policies that act instead: trajectory e belongs to snapshot e modulo their number.
    """
    with _fixed_randomness(learner.device, seed), torch.no_grad():
        first_state = torch.randn_like(batch["rnn_states"][:, 0]).clamp(-1, 1) * 0.3
        noise = torch.randn_like(batch["rewards"])
        if not snapshots:
            _play(_published(learner), _published_version(learner), learner.cfg, batch, first_state)
        for i, snapshot in enumerate(snapshots):
            rows = slice(i, None, len(snapshots))  # a slice, so that the parts are views of the batch
            _play(_player(learner, snapshot), snapshot.version, learner.cfg, batch[rows], first_state[rows])
        batch["rewards"].copy_(_rewards(batch, noise))
        batch["valids"].fill_(True)


@contextmanager
def _fixed_randomness(device: torch.device, seed: int):
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _player(learner: Learner, snapshot: PolicySnapshot) -> ActorCritic:
    """A network with a snapshot's weights, made by whatever function made the learner's own; one for all of its snapshots."""
    if (network := _PLAYERS.get(learner)) is None:
        from sf_fixpo.learning.networks import make_network

        make = create_actor_critic if type(learner) is Learner else make_network
        with _fixed_randomness(learner.device, seed=0):
            network = _PLAYERS[learner] = make(learner.cfg, learner.env_info.obs_space, learner.env_info.action_space)
        network.model_to_device(learner.device)
    network.load_state_dict(snapshot.state_dict)
    return network


def _play(network: ActorCritic, version: int, cfg: AttrDict, batch: TensorDict, first_state: Tensor) -> None:
    """Fills the policy's side of `batch` [E, T] with one policy, starting from `first_state` [E, S]."""
    num_traj, steps = batch["rewards"].shape
    was_training = network.training
    network.eval()  # in training mode the normaliser would count these observations
    try:
        flat = {name: obs.reshape((-1, *obs.shape[2:])) for name, obs in batch["obs"].items()}
        pieces = [{name: obs[i : i + _CHUNK] for name, obs in flat.items()} for i in range(0, num_traj * (steps + 1), _CHUNK)]
        head = torch.cat([network.forward_head(prepare_and_normalize_obs(network, piece)) for piece in pieces])
        states = batch["rnn_states"]
        states.zero_()
        if cfg.use_rnn:
            states[:, 0] = first_state
            head = head.view(num_traj, steps + 1, -1)
            core = []
            # the state starts anew after an episode's end, and where a trajectory comes back from another policy
            goes_on = ~batch["dones"] & (batch["policy_id"] >= 0)
            for t in range(steps + 1):
                output, new_state = network.forward_core(head[:, t], states[:, t])
                core.append(output)
                if t < steps:
                    states[:, t + 1] = new_state * goes_on[:, t].unsqueeze(1)
            core_flat = torch.stack(core, dim=1).flatten(0, 1)
        else:
            core_flat, _ = network.forward_core(head, states.flatten(0, 1))
        result = network.forward_tail(core_flat, values_only=False, sample_actions=False)
        if hasattr(network, "masked"):
            result["action_logits"] = network.masked(result["action_logits"], flat)
        if hasattr(network.returns_normalizer, "recorded"):
            result["values"] = network.returns_normalizer.recorded(result["values"], flat)
        network._maybe_sample_actions(True, result)
    finally:
        network.train(was_training)
    for name in ("actions", "action_logits", "log_prob_actions", "values"):
        target = batch[name]
        played = result[name].reshape((num_traj, steps + 1, *target.shape[2:]))
        target.copy_(played[:, : target.shape[1]])
    batch["policy_version"].fill_(version)


def _rewards(batch: TensorDict, noise: Tensor) -> Tensor:
    """Rewards [E, T]: noise, and a part that a policy can learn: the first action should follow the observation's mean."""
    first = next(iter(batch["obs"].values()))[:, :-1].float().flatten(2).mean(dim=2)
    direction = torch.tanh((first - first.mean()) / first.std().clamp_min(1e-6))
    return 0.5 * noise + direction * torch.tanh(batch["actions"].flatten(2)[..., 0] - 0.5)
