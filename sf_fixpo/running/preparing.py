"""What a run needs before its processes start: its environment in sample-factory's registry, and faults that its spaces show."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from sample_factory.algo.utils.context import set_global_context, sf_global_context
from sample_factory.algo.utils.env_info import EnvInfo
from sample_factory.envs.env_utils import register_env
from sample_factory.model.actor_critic import create_actor_critic, default_make_actor_critic_func
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.typing import Config

from sf_fixpo.algorithm.config import FixPOConfig, task_names
from sf_fixpo.baselines.settings import space_faults
from sf_fixpo.envs.action_mask import guarded, mask_fault
from sf_fixpo.envs.seeding import env_seeds
from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.checkpointing import read_weights
from sf_fixpo.learning.networks import action_spec, make_actor_critic
from sf_fixpo.learning.tasks import task_count
from sf_fixpo.running.pacing import PacedEnv, Pacer, make_pacer
from sf_fixpo.running.supervision import ErrorsInWords, RunContext

_ACTION_SALT = 1 << 20  # apart from the salts of the environments' own seeds


@dataclass(frozen=True)
class SeededFactory:
    """An environment factory whose environments also draw the same random actions in every run of a seed.

    Before the first rollout sample-factory takes random steps, so that a worker's environments are not in step with each other;
    it draws them from the action space, whose generator nobody else seeds. In a run on several tasks `pacer` counts their steps.
    `rank` is that of the run among those that train one policy.
    """

    make_env: Callable
    pacer: Pacer | None = None
    rank: int = 0

    def __call__(self, full_env_name: str, cfg: Config, env_config=None, render_mode: str | None = None):
        """As the factory itself."""
        own = env_config
        if self.rank and env_config is not None:  # numbered through over all ranks, for seeds and tasks
            workers = self.rank * cfg.num_workers
            env_config = AttrDict(env_config)
            env_config.worker_index += workers
            env_config.env_id += workers * cfg.num_envs_per_worker
        env = self.make_env(full_env_name, cfg, env_config, render_mode)
        if not mask_fault(env.observation_space, env.action_space):  # else `env_faults` refuses it
            env = guarded(env, full_env_name)
        env.action_space.seed(env_seeds(cfg, env_config, salt=_ACTION_SALT)[0])
        env = ErrorsInWords(env)
        if self.pacer is not None and own is not None:
            env = PacedEnv(env, self.pacer, own.env_id, cfg.num_envs_per_worker)
        return env


def registered_context(cfg: Config, make_env: Callable, rank: int = 0) -> RunContext:
    """The registry with this run's environment and our actor-critic; it becomes the global one.

    What a user has registered before stays, an actor-critic of the user's own too.
    """
    before, context = sf_global_context(), RunContext()
    context.env_registry = {name: factory for name, factory in before.env_registry.items() if name != cfg.env}
    context.model_factory = copy(before.model_factory)
    set_global_context(context)
    register_env(cfg.env, SeededFactory(make_env, make_pacer(cfg, len(task_names(cfg))), rank))
    if context.model_factory.make_actor_critic_func is default_make_actor_critic_func:
        context.model_factory.register_actor_critic_factory(make_actor_critic)
    return context


def env_faults(cfg: Config, env_info: EnvInfo) -> list[str]:
    """Faults that show only once the environment's spaces and number of agents are known."""
    found = []
    try:
        found += space_faults(cfg, action_spec(env_info.action_space))
    except ValueError as exc:
        found.append(f"--env={cfg.env}: {exc}")
    if fault := mask_fault(env_info.obs_space, env_info.action_space):
        found.append(f"--env={cfg.env}: {fault}")
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
