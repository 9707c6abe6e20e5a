"""MuJoCo tasks of OpenAI Gym, through EnvPool: the paper's first benchmark (section 4.1).

One environment of sample-factory is a whole EnvPool here (`--batched_sampling=True`, `--env_agents` simulators), because a
64 x 64 network is small: what costs is a call, not a state.
"""

from __future__ import annotations

import importlib.util
import math
from argparse import ArgumentParser
from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.names import unknown_name
from sf_fixpo.envs.suite import Suite

PREFIX = "mujoco_"
NOT_A_TASK = "not a task of the mujoco suite"

# EnvPool's v4 tasks are Gym's, with the same observations, rewards and limits; v5 changed rewards and shapes.
TASKS = MappingProxyType(
    {
        f"{PREFIX}{name}": f"{name}-v4"
        for name in ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "InvertedDoublePendulum", "Reacher")
    }
)
_TASK_BY_LOWER_NAME = MappingProxyType({name.lower(): task for name, task in TASKS.items()})

PAPER = MappingProxyType(
    {
        # Sampling: 64 simulators x 128 steps = 8192 samples an update, collected and learned in turn, in one process.
        "serial_mode": True,
        "async_rl": False,
        "batched_sampling": True,
        "num_workers": 1,
        "num_envs_per_worker": 1,
        "worker_num_splits": 1,
        "env_agents": 64,
        "rollout": 128,
        "recurrence": 1,
        "train_for_env_steps": 10_000_000,
        "device": "cpu",
        # One update: 10 epochs of 16 minibatches.
        "batch_size": 512,
        "num_batches_per_epoch": 16,
        "num_epochs": 10,
        "shuffle_minibatches": True,
        "learning_rate": 3e-4,
        "lr_schedule": "linear_decay",
        "adam_eps": 1e-8,
        "max_grad_norm": 0.5,
        # FixPO.
        "eps_kl": 0.5,
        "c_beta": 3.0,
        "beta_lr": 0.01,
        "beta_init": 1.0,
        "fixup_batch_size": 1024,
        # The rest of the loss; the clip ratio is APPO's. No limit on how far a value may move in one update.
        "ppo_clip_ratio": 0.2,
        "ppo_clip_value": 1e6,
        "kl_loss_coeff": 0.0,
        "value_loss_coeff": 0.1,
        "exploration_loss_coeff": 0.0,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "with_vtrace": False,
        "value_bootstrap": True,
        "normalize_input": True,
        "normalize_returns": True,
        "reward_scale": 1.0,
        # Two tanh networks that share nothing, and one learned standard deviation for each action.
        "actor_critic_share_weights": False,
        "encoder_mlp_layers": [64, 64],
        "nonlinearity": "tanh",
        "use_rnn": False,
        "policy_initialization": "orthogonal",
        "policy_init_gain": math.sqrt(2.0),
        "policy_head_init_scale": 0.01,
        "adaptive_stddev": False,
        "initial_stddev": math.exp(-0.5),
    }
)

# The same settings for two cores and some minutes: a quarter of the samples an update, so that a run a tenth as long still
# makes 488 updates, not 122.
LAPTOP = MappingProxyType({**PAPER, "env_agents": 16, "num_batches_per_epoch": 4, "train_for_env_steps": 1_000_000})

# What learns most in a million steps (docs/lab_notes.md): updates of 2048 samples in small minibatches, as tuned PPOs have them.
TUNED = MappingProxyType(
    {
        **PAPER,
        "rollout": 32,
        "batch_size": 64,
        "num_batches_per_epoch": 32,
        "fixup_batch_size": 2048,
        "train_for_env_steps": 1_000_000,
    }
)


def env_names() -> tuple[str, ...]:
    """The six tasks of the paper."""
    return tuple(TASKS)


def matches(env_name: str) -> bool:
    """Whether a name has this suite's prefix."""
    return env_name.lower().startswith(PREFIX)


def task_id(env_name: str) -> str | None:
    """EnvPool's name of a task, or None for a name that is not one of the suite's. Upper and lower case are the same."""
    return _TASK_BY_LOWER_NAME.get(env_name.lower())


def missing() -> str | None:
    """None where EnvPool is installed, else the command that installs it."""
    if importlib.util.find_spec("envpool") is not None:
        return None
    return "pip install 'envpool>=1.2.5'   (Python 3.11 or later)"


def add_args(parser: ArgumentParser) -> None:
    """Adds the suite's flags."""
    parser.add_argument("--env_agents", default=64, type=int, help="Simulators in one EnvPool, stepped together")
    parser.add_argument(
        "--envpool_num_threads",
        default=0,
        type=int,
        help="Threads that step one EnvPool; 0 shares the machine's logical cores among the --num_workers workers",
    )


def faults(cfg: Any) -> list[str]:
    """Checks the name and the flags that EnvPool depends on.

    Args:
        cfg: the parsed flags.

    Returns:
        One line a fault: the flag, its value, what is allowed.
    """
    unknown = [] if task_id(cfg.env) else [unknown_name(cfg.env, NOT_A_TASK, TASKS)]
    return unknown + pool_faults(cfg)


def pool_faults(cfg: Any) -> list[str]:
    """What is wrong with the flags of any pool of simulators; one line a fault."""
    found = []
    if cfg.env_agents < 1:
        found.append(f"--env_agents={cfg.env_agents}: must be at least 1")
    if cfg.envpool_num_threads < 0:
        found.append(f"--envpool_num_threads={cfg.envpool_num_threads}: must be 0 (share the cores) or more")
    if not cfg.batched_sampling:
        found.append("--batched_sampling=False: must be True, a pool of simulators is stepped as one batch")
    if cfg.num_envs_per_worker != cfg.worker_num_splits:
        found.append(
            f"--num_envs_per_worker={cfg.num_envs_per_worker}: must equal --worker_num_splits={cfg.worker_num_splits}, "
            "one pool for each; more simulators are --env_agents"
        )
    return found


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> Any:
    """Makes one pool of simulators; sample-factory's factory signature.

    Args:
        full_env_name: such as `mujoco_HalfCheetah`.
        cfg: the parsed flags (`seed`, `env_agents`, `envpool_num_threads`, `num_workers`).
        env_config: sample-factory's record with `env_id`; None when only the spaces are wanted.
        render_mode: not used: the pool draws no pictures (its `render` says so).

    Returns:
        An `sf_fixpo.envs.pool.simulators.Pool`.

    Raises:
        ValueError: the name is not one of the suite's tasks.
    """
    from sf_fixpo.envs.pool.simulators import make_pool  # the engine is imported only when an environment is made

    task = task_id(full_env_name)
    if task is None:
        raise ValueError(unknown_name(full_env_name, NOT_A_TASK, TASKS))
    return make_pool(task, cfg, env_config)


SUITE = Suite(
    name="mujoco",
    description="MuJoCo tasks of OpenAI Gym (v4), simulated by EnvPool",
    env_names=env_names,
    matches=matches,
    missing=missing,
    add_args=add_args,
    make_env=make_env,
    presets=MappingProxyType({"paper": PAPER, "laptop": LAPTOP, "tuned": TUNED}),
    faults=faults,
)
