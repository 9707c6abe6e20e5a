"""What a run needs before its processes start: its environment in sample-factory's registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import gymnasium
from sample_factory.algo.utils.context import set_global_context, sf_global_context
from sample_factory.algo.utils.make_env import is_multiagent_env
from sample_factory.envs.env_utils import register_env
from sample_factory.model.actor_critic import default_make_actor_critic_func
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.typing import Config

from sf_fixpo.algorithm.config import task_names
from sf_fixpo.envs.action_mask import guarded, mask_fault
from sf_fixpo.envs.seeding import env_seeds
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.running.crashes import CrashCounts, RemadeWhenItCrashes
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
    crashes: CrashCounts | None = None
    rank: int = 0

    def __call__(self, full_env_name: str, cfg: Config, env_config=None, render_mode: str | None = None):
        """As the factory itself."""
        own = env_config
        if self.rank and env_config is not None:  # numbered through over all ranks, for seeds and tasks
            workers = self.rank * cfg.num_workers
            env_config = AttrDict(env_config)
            env_config.worker_index += workers
            env_config.env_id += workers * cfg.num_envs_per_worker

        def make() -> gymnasium.Env:
            return self.make_env(full_env_name, cfg, env_config, render_mode)

        env = make()
        if self.crashes is not None and own is not None and not is_multiagent_env(env):
            made = [env]  # the first time it is there already
            env = RemadeWhenItCrashes(
                lambda: made.pop() if made else make(), full_env_name, own.env_id, self.crashes, cfg.max_env_crashes
            )
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
    crashes = CrashCounts(cfg.num_workers * cfg.num_envs_per_worker)
    register_env(cfg.env, SeededFactory(make_env, make_pacer(cfg, len(task_names(cfg))), crashes, rank))
    if context.model_factory.make_actor_critic_func is default_make_actor_critic_func:
        context.model_factory.register_actor_critic_factory(make_actor_critic)
    return context


@contextmanager
def registered(cfg: Config, make_env: Callable, rank: int = 0) -> Iterator[RunContext]:
    """`registered_context` until the block ends."""
    before = sf_global_context()
    try:
        yield registered_context(cfg, make_env, rank)
    finally:
        set_global_context(before)
