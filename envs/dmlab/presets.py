"""Flag defaults by preset: the authors' settings, and what learns on two CPU cores."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.dmlab import names

# What sample-factory's own DMLab example sets, for both presets.
_EXAMPLE = {
    "obs_subtract_mean": 0.0,
    "obs_scale": 255.0,
    "normalize_input_keys": ["obs"],
    "nonlinearity": "relu",
    "env_frameskip": 4,
    "pixel_format": "CHW",
}

PAPER = MappingProxyType(
    {
        **_EXAMPLE,
        # Sampling: asynchronous, up to 60 workers of 12 environments.
        "async_rl": True,
        "serial_mode": False,
        "batched_sampling": False,
        "num_workers": min(60, os.cpu_count() or 1),
        "num_envs_per_worker": 12,
        "worker_num_splits": 2,
        "max_policy_lag": 35,
        "decorrelate_experience_max_seconds": 1,
        "rollout": 32,
        "recurrence": 32,
        "train_for_env_steps": 100_000_000,
        # One update: one epoch of one minibatch.
        "batch_size": 1024,
        "num_batches_per_epoch": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "lr_schedule": "constant",
        "max_grad_norm": 0.0,
        # FixPO.
        "eps_kl": 1.0,
        "c_beta": 2.0,
        "beta_lr": 0.1,
        "beta_init": 1.0,
        "value_loss_coeff": 0.5,
        "gamma": 0.99,
        "encoder_conv_architecture": "resnet_impala",
        "encoder_conv_mlp_layers": [512],
        "use_rnn": True,
        "rnn_type": "lstm",
        "rnn_size": 256,
        # The environment. The shaped rewards are part of sample-factory's example, which the authors ran.
        "res_w": 96,
        "res_h": 72,
        "dmlab_extended_action_set": True,
        "dmlab_use_level_cache": True,
        "dmlab_with_instructions": True,
        "dmlab_optimistic_rewards": True,
    }
)

LAPTOP = MappingProxyType(
    {
        **_EXAMPLE,
        # Sampling: 32 environments; 4096 samples an update, collected while the learner is at the batch before: 40 % more frames
        # a second than in turn on two cores.
        "async_rl": True,
        "serial_mode": False,
        "batched_sampling": False,
        "num_workers": 2,
        "num_envs_per_worker": 16,
        "worker_num_splits": 2,
        "rollout": 32,
        "recurrence": 1,
        "train_for_env_steps": 4_000_000,
        "device": "cpu",
        # One update: 3 epochs of 4 minibatches.
        "batch_size": 1024,
        "num_batches_per_epoch": 4,
        "num_epochs": 3,
        "learning_rate": 5e-4,
        "lr_schedule": "constant",
        "max_grad_norm": 0.5,
        # FixPO.
        "eps_kl": 0.5,
        "c_beta": 3.0,
        "beta_lr": 0.1,
        "beta_init": 1.0,
        # With a floor of 0 the penalty switches off within ten updates, and the policy collapses (docs/lab_notes.md).
        "beta_min": 1.0,
        "value_loss_coeff": 0.5,
        "exploration_loss_coeff": 0.003,
        # An object is seen and reached within a few seconds: a short horizon learns it sooner.
        "gamma": 0.97,
        # Pixels need no more than their scale, and statistics of each would cost as much as the first layer.
        "normalize_input": False,
        "encoder_conv_architecture": "convnet_simple",
        "encoder_conv_mlp_layers": [128],
        "use_rnn": False,
        "res_w": 48,
        "res_h": 36,
        "dmlab_extended_action_set": False,
        "dmlab_use_level_cache": False,
        "dmlab_with_instructions": False,
        "dmlab_optimistic_rewards": False,
    }
)


def defaults(cfg: Any) -> Mapping[str, Any]:
    """What follows from the levels: instructions and the actions that look up where one needs them, equal shares of the samples.

    Args:
        cfg: the flags as they are without these defaults; `num_envs_per_worker` is the preset's or the command line's.
    """
    levels = names.levels_of(cfg.env, cfg.dmlab_levels)
    found: dict[str, Any] = {}
    if any(map(names.speaks, levels)):
        found["dmlab_with_instructions"] = True
    if any(map(names.needs_looking_up, levels)):
        found["dmlab_extended_action_set"] = True
    if len(levels) > 1 and not cfg.dmlab_one_task_per_worker and cfg.num_workers > 0:
        found["num_envs_per_worker"] = equal_shares(len(levels), cfg.num_workers, cfg.num_envs_per_worker, cfg.worker_num_splits)
    if len(levels) > 1:
        # Random steps that take environments out of step, one after the other: minutes for thirty, whose clocks differ anyway.
        found["decorrelate_experience_max_seconds"] = 0
    return found


def equal_shares(tasks: int, workers: int, each: int, splits: int) -> int:
    """The least number of environments a worker, from `each` on, that gives every level as many as every other.

    Environment i plays level i modulo their number. A worker steps its environments in turn, so that equally many
    environments are equally many samples.

    Args:
        tasks: how many levels.
        workers: how many of sample-factory's rollout workers.
        each: environments that a worker should have at least.
        splits: into how many groups a worker divides its environments, equal ones.
    """
    step = math.lcm(tasks // math.gcd(tasks, workers), max(1, splits))
    return max(1, -(-each // step)) * step
