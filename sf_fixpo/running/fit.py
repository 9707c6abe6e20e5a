"""Whether a run's flags and checkpoints fit its environment, which is known once one has been made: a line for each fault."""

from __future__ import annotations

import math
from typing import Any

import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.env_info import EnvInfo
from sample_factory.model.actor_critic import create_actor_critic, default_make_actor_critic_func
from sample_factory.utils.typing import Config

from sf_fixpo.algorithm.config import FixPOConfig, task_names
from sf_fixpo.baselines.settings import space_faults
from sf_fixpo.envs.action_mask import mask_fault
from sf_fixpo.envs.gymnasium_envs.observations import LEAST_PIXELS
from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.checkpointing import read_weights
from sf_fixpo.learning.networks import action_spec, make_actor_critic
from sf_fixpo.learning.tasks import task_count
from sf_fixpo.learning.values import scope_of

_KERNEL_TOO_LARGE = "Kernel size can't be greater"  # so torch says it


def env_faults(cfg: Config, env_info: EnvInfo) -> list[str]:
    """Faults that show only once the environment's spaces and number of agents are known."""
    found = []
    try:
        found += space_faults(cfg, action_spec(env_info.action_space))
    except ValueError as exc:
        found.append(f"--env={cfg.env}: {exc}")
    if fault := mask_fault(env_info.obs_space, env_info.action_space):
        found.append(f"--env={cfg.env}: {fault}")
    found += _value_faults(cfg, env_info)
    found += _image_faults(cfg, env_info)
    agents = env_info.num_agents * cfg.num_workers * cfg.num_envs_per_worker
    per_rollout = agents * cfg.rollout // cfg.num_policies
    per_update = cfg.batch_size * cfg.num_batches_per_epoch
    if not cfg.async_rl and (per_update < per_rollout or per_update % per_rollout):
        found.append(
            f"--batch_size={cfg.batch_size} x --num_batches_per_epoch={cfg.num_batches_per_epoch} = {per_update} samples: must "
            f"be a multiple of what all workers collect in one rollout, {per_rollout} (--num_workers={cfg.num_workers} x "
            f"--num_envs_per_worker={cfg.num_envs_per_worker} x {env_info.num_agents} agents x --rollout={cfg.rollout}), "
            "or use --async_rl=True"
        )
    per_worker = env_info.num_agents * cfg.num_envs_per_worker // cfg.worker_num_splits
    trajectories = per_update // cfg.rollout
    if cfg.batched_sampling and math.gcd(trajectories, per_worker) != min(trajectories, per_worker):
        found.append(
            f"--batched_sampling=True: {per_worker} trajectories of a worker must divide the {trajectories} of a batch, "
            "or the other way round"
        )
    return found


def _value_faults(cfg: Config, env_info: EnvInfo) -> list[str]:
    """What a critic of several tasks cannot be made for."""
    if cfg.value_normalization == "shared":
        return []
    flag, found = f"--value_normalization={cfg.value_normalization}", []
    if (named := len(task_names(cfg))) != (told := task_count(env_info.obs_space)):
        found.append(
            f"{flag}: {named} tasks are named, the observation task_id of --env={cfg.env} tells {told} apart; they must be as "
            "many, or use shared"
        )
    make = global_model_factory().make_actor_critic_func
    if make not in (make_actor_critic, default_make_actor_critic_func):
        found.append(f"{flag}: must be shared with an actor-critic of your own, {make.__name__}, whose values nobody else knows")
    return found


def _image_faults(cfg: Config, env_info: EnvInfo) -> list[str]:
    """Images smaller than what their convolutions look at: torch would name a kernel's size, once all processes are there."""
    shapes = {key: space.shape for key, space in env_info.obs_space.items() if len(space.shape or ()) == 3}
    if all(min(shape[1:]) >= LEAST_PIXELS for shape in shapes.values()):
        return []
    try:
        with torch.random.fork_rng(devices=[]):
            create_actor_critic(cfg, env_info.obs_space, env_info.action_space)
    except RuntimeError as exc:
        if _KERNEL_TOO_LARGE not in str(exc):
            raise
        images = ", ".join(f"{key} {' x '.join(map(str, shape))}" for key, shape in shapes.items())
        flag = f"--encoder_conv_architecture={cfg.encoder_conv_architecture}"
        return [
            f"{flag}: too deep for --env={cfg.env}, whose images are small ({images}): make them larger, or take resnet_impala"
        ]
    return []


def _made_otherwise(cfg: Config, weights: dict[str, Any], what: str) -> str | None:
    """The fault of weights whose critic is of another `--value_normalization`."""
    if (scope := scope_of(weights)) == cfg.value_normalization:
        return None
    return f"--value_normalization={cfg.value_normalization}: {what} was made with {scope}; use that, or start anew"


def checkpoint_faults(cfg: Config, env_info: EnvInfo, states: list[dict[str, Any] | None]) -> list[str]:
    """Whether the checkpoints of this experiment, where there are any, fit this run's network.

    Args:
        cfg: of the run.
        env_info: of its environment.
        states: `saved_states` of the run.
    """
    found = []
    network = None
    fixpo = cfg.algo == "FIXPO"
    betas = task_count(env_info.obs_space) if FixPOConfig.from_cfg(cfg).beta_scope == "per_task" else 1
    if cfg.get("init_from"):
        network = create_actor_critic(cfg, env_info.obs_space, env_info.action_space)
        for policy_id in (i for i, state in enumerate(states) if state is None):
            weights = read_weights(cfg.init_from, policy_id)["model"]
            if fault := _made_otherwise(cfg, weights, f"--init_from={cfg.init_from}"):
                return [fault]
            if differences := checkpoints.state_faults(network.state_dict(), weights, "model"):
                return [f"--init_from={cfg.init_from}: of another architecture ({'; '.join(differences[:3])})"]
    for state in filter(None, states):
        network = network or create_actor_critic(cfg, env_info.obs_space, env_info.action_space)
        saved = checkpoints.saved_betas(state)
        if fixpo and saved not in (None, betas):
            found.append(
                f"--beta_scope={cfg.beta_scope}: --experiment={cfg.experiment} was saved with {saved} beta(s), this run "
                f"has {betas}. Use the tasks and scope it was made with, another --experiment, or --restart_behavior=restart"
            )
        elif fault := _made_otherwise(cfg, state["model"], f"--experiment={cfg.experiment}"):
            found.append(fault)
        elif differences := checkpoints.state_faults(network.state_dict(), state["model"], "model"):
            found.append(
                f"--experiment={cfg.experiment}: its checkpoint is of another architecture ({'; '.join(differences[:3])}). Use "
                "the network flags it was made with, another --experiment, or --restart_behavior=restart"
            )
        else:
            parameters = list(network.parameters())
            faults = checkpoints.checkpoint_faults(state, network.state_dict(), parameters, betas if fixpo else None)
            found += [f"--experiment={cfg.experiment}: its checkpoint is damaged: {fault}" for fault in faults]
    return found
