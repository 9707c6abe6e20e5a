"""What sample-factory's own numbers may be: it would fail on others in the middle of a run, never end, or train on nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sf_fixpo.algorithm.flags import not_negative, positive

Range = tuple[str, Callable[[float], bool]]

_COUNT: Range = ("an integer >= 1", lambda x: x >= 1)
_NATURAL: Range = ("an integer >= 0", lambda x: x >= 0)
_POSITIVE: Range = ("a number > 0", positive)
_NOT_NEGATIVE: Range = ("a number >= 0", not_negative)
_SHARE: Range = ("a number from 0 to 1", lambda x: 0 <= x <= 1)
_MOMENT: Range = ("a number >= 0 and < 1", lambda x: 0 <= x < 1)
_FACTOR: Range = ("a number >= 1", lambda x: math.isfinite(x) and x >= 1)


def _each(names: str, allowed: Range) -> dict[str, Range]:
    return dict.fromkeys(names.split(), allowed)


RANGES: Mapping[str, Range] = MappingProxyType(
    {
        **_each(
            "batch_size num_batches_per_epoch num_epochs num_batches_to_accumulate rollout env_framestack env_frameskip", _COUNT
        ),
        **_each("num_workers num_envs_per_worker num_policies policy_workers_per_policy max_policy_lag", _COUNT),
        **_each("train_for_env_steps train_for_seconds save_every_sec keep_checkpoints stats_avg", _COUNT),
        **_each("heartbeat_interval heartbeat_reporting_interval flush_summaries_interval pbt_period_env_steps", _COUNT),
        **_each("encoder_mlp_layers encoder_conv_mlp_layers decoder_mlp_layers rnn_size rnn_num_layers", _COUNT),
        **_each("seed save_best_every_sec save_best_after experiment_summaries_interval pbt_start_mutation", _NATURAL),
        "decorrelate_experience_max_seconds": _NATURAL,
        "save_milestones_sec": ("an integer >= 1, or -1 for none", lambda x: x == -1 or x >= 1),
        "default_niceness": ("an integer from -20 to 19", lambda x: -20 <= x <= 19),
        "gamma": ("a number > 0 and <= 1", lambda x: 0 < x <= 1),
        **_each("learning_rate adam_eps reward_clip ppo_clip_ratio ppo_clip_value vtrace_rho vtrace_c", _POSITIVE),
        **_each("lr_schedule_kl_threshold lr_adaptive_min lr_adaptive_max obs_scale initial_stddev", _POSITIVE),
        **_each("max_grad_norm value_loss_coeff exploration_loss_coeff kl_loss_coeff continuous_tanh_scale", _NOT_NEGATIVE),
        **_each("policy_init_gain pbt_replace_reward_gap pbt_replace_reward_gap_absolute", _NOT_NEGATIVE),
        **_each("gae_lambda pbt_replace_fraction pbt_mutation_rate", _SHARE),
        **_each("adam_beta1 adam_beta2", _MOMENT),
        **_each("pbt_perturb_min pbt_perturb_max", _FACTOR),
        "reward_scale": ("a number other than 0", lambda x: math.isfinite(x) and x != 0),
        "obs_subtract_mean": ("a number", math.isfinite),
    }
)


def range_faults(get: Callable[[str], Any]) -> list[str]:
    """Every number out of its range, one line each: the flag, the value, what is allowed.

    Args:
        get: the value of a flag; None where a configuration lacks it. Of a list every number counts.
    """
    found = []
    for name, (allowed, valid) in RANGES.items():
        value = get(name)
        if value is not None and not all(map(valid, value if isinstance(value, list) else [value])):
            found.append(f"--{name}={value}: must be {allowed}")
    return found
