"""Flags of the algorithms beside FixPO: a frozen dataclass each, and what `--algo` does not heed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from sf_fixpo.algorithm.config import FixPOConfig
from sf_fixpo.algorithm.flags import add_flags, at_least_one, field_fault, flag, not_negative, positive
from sf_fixpo.algorithm.trust_region import ActionSpec


@dataclass(frozen=True)
class TRPOConfig:
    """Of `--algo=TRPO`."""

    trpo_max_kl: float = flag(
        0.01, "Bound of the mean KL of an update over the batch, nats (paper: delta)", allowed="a number > 0", valid=positive
    )
    trpo_cg_iters: int = flag(
        10, "Conjugate gradient iterations for the natural gradient", allowed="an integer >= 1", valid=at_least_one
    )
    trpo_damping: float = flag(
        0.1, "Multiple of the identity added to the Fisher matrix", allowed="a number >= 0", valid=not_negative
    )
    trpo_backtrack_iters: int = flag(
        10, "Points of the line search, after which the policy stays as it was", allowed="an integer >= 1", valid=at_least_one
    )
    trpo_backtrack_coeff: float = flag(
        0.8,
        "Factor from one point of the line search to the next",
        allowed="a number > 0 and < 1",
        valid=lambda v: 0 < v < 1,
    )


@dataclass(frozen=True)
class PPOKLConfig:
    """Of `--algo=PPO_KL`."""

    ppo_kl_target: float = flag(
        0.01, "Mean KL of an update that beta is adapted to, nats (paper: d_targ)", allowed="a number > 0", valid=positive
    )
    ppo_kl_beta_init: float = flag(1.0, "Penalty on the KL at the start (paper: beta)", allowed="a number > 0", valid=positive)


@dataclass(frozen=True)
class ProjectionConfig:
    """Of `--algo=KL_PROJECTION`."""

    proj_mean_bound: float = flag(
        0.03,
        "Bound of the mean's part of the KL at every state, of the projected policy, nats",
        allowed="a number > 0",
        valid=positive,
    )
    proj_cov_bound: float = flag(0.001, "Bound of the covariance's part of the same", allowed="a number > 0", valid=positive)
    proj_trust_region_coeff: float = flag(
        8.0,
        "Weight of the regression loss that pulls the network, which is deployed, to the projected policy",
        allowed="a number >= 0",
        valid=not_negative,
    )


# By the name that --algo takes.
SETTINGS: Mapping[str, type] = MappingProxyType({"TRPO": TRPOConfig, "PPO_KL": PPOKLConfig, "KL_PROJECTION": ProjectionConfig})

# FixPO's flags that the others heed: the yardstick of a row, what it is measured against and by how many
_HEEDED_BY_ALL = frozenset(
    {"eps_kl", "kl_direction", "reference", "fixup_batch_size", "value_normalization", "max_rollbacks", "audit_every"}
)
# how FixPO's primary phase is computed, and who has another one
_OF_THE_PRIMARY_PHASE = frozenset({"encoder_dtype", "cuda_graphs"})
_ANOTHER_PRIMARY_PHASE = frozenset({"TRPO", "APPO"})
_APPO_ONLY = ("ppo_clip_ratio", "kl_loss_coeff")

Settings = TypeVar("Settings")


def add_baseline_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of every algorithm in a group of its own."""
    for algo, settings in SETTINGS.items():
        add_flags(parser.add_argument_group(algo), fields(settings))


def _get(cfg: Any, name: str, default: Any = None) -> Any:
    return cfg.get(name, default) if isinstance(cfg, Mapping) else getattr(cfg, name, default)


def read_settings(cls: type[Settings], cfg: Any) -> Settings:
    """An algorithm's settings out of sample-factory's cfg."""
    return cls(**{f.name: _get(cfg, f.name, f.default) for f in fields(cls)})  # type: ignore[arg-type]


def unbounded(fixpo: FixPOConfig, **changed: Any) -> FixPOConfig:
    """FixPO's settings for an algorithm without its multipliers and its fixup phase: `eps_kl` is a yardstick, and no bound."""
    off: dict[str, Any] = {"fixup": "off", "beta_init": 0.0, "beta_lr": 0.0, "beta_min": 0.0, "beta_scope": "shared"}
    return replace(fixpo, **{**off, "kl_stat": "max", "kl_mean_target": 0.0, "trace_updates": "", **changed})


def baseline_faults(cfg: Any) -> list[str]:
    """Everything wrong with the flags of the algorithms beside FixPO, one line a fault."""
    found = [
        fault
        for settings in SETTINGS.values()
        for f in fields(settings)
        if (fault := field_fault(f, _get(cfg, f.name, f.default)))
    ]
    if _get(cfg, "algo") == "APPO" and (scope := _get(cfg, "value_normalization", "shared")) != "shared":
        found.append(f"--value_normalization={scope}: must be shared with --algo=APPO, which is sample-factory's own learner")
    if _get(cfg, "algo") == "TRPO":
        if _get(cfg, "with_vtrace"):
            found.append("--with_vtrace=True: must be False with --algo=TRPO, which takes one advantage for the whole batch")
        if str(schedule := _get(cfg, "lr_schedule")).startswith("kl_adaptive"):
            found.append(
                f"--lr_schedule={schedule}: must be constant or linear_decay with --algo=TRPO, whose rate is the critic's"
            )
    return found


def space_faults(cfg: Any, spec: ActionSpec) -> list[str]:
    """Whether an algorithm can act in a space, once the environment has told it.

    Args:
        cfg: of the run.
        spec: what the action parameters of the environment's space are.
    """
    if _get(cfg, "algo") == "KL_PROJECTION" and [kind for kind, _ in spec] != ["gaussian"]:
        kinds = ", ".join(kind for kind, _ in spec)
        return [f"--algo=KL_PROJECTION: projects Gaussian policies; the actions of --env={_get(cfg, 'env')} are {kinds}"]
    return []


def unheeded_reasons(algo: str) -> dict[str, str]:
    """By flag, why an algorithm has no use for it; of what is in the way of one beside FixPO, and of another's own."""
    reasons = {f.name: f"a setting of --algo={other}" for other in SETTINGS if other != algo for f in fields(SETTINGS[other])}
    if algo in SETTINGS:
        heeded = _HEEDED_BY_ALL | _OF_THE_PRIMARY_PHASE
        reasons |= {f.name: "a setting of --algo=FIXPO" for f in fields(FixPOConfig) if f.name not in heeded}
        reasons |= dict.fromkeys(_APPO_ONLY, "a setting of --algo=APPO")
    if algo in _ANOTHER_PRIMARY_PHASE:
        reasons |= dict.fromkeys(_OF_THE_PRIMARY_PHASE, "a setting of --algo=FIXPO")
    return reasons
