"""FixPO's settings: one frozen dataclass, from which the flags, their checks and their help are made.

Configuration crosses once: flags -> sample-factory's cfg -> `FixPOConfig.from_cfg`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Any

from sf_fixpo.algorithm.flags import add_flags, at_least_one, field_fault, flag, not_negative, positive
from sf_fixpo.algorithm.ranges import range_faults
from sf_fixpo.algorithm.trust_region import CHECK_MARGIN

# Of sample-factory's flags those that the checks read, and what holds where a configuration lacks one (tests, other trainers).
_ABSENT = MappingProxyType(
    {
        "async_rl": False,
        "batch_size": 1024,
        "env": "task",
        "normalize_returns": False,
        "num_batches_per_epoch": 1,
        "num_envs_per_worker": 1,
        "num_epochs": 1,
        "recurrence": -1,
        "rollout": 32,
        "task_names": None,
        "use_rnn": False,
        "with_vtrace": False,
        "worker_num_splits": 1,
    }
)


def parse_versions(text: str) -> frozenset[int]:
    """`3,10-12` -> {3, 10, 11, 12}; raises ValueError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, is_range, last = part.partition("-")
        numbers.update(range(int(first), int(last if is_range else first) + 1))
    return frozenset(numbers)


def _is_version_list(text: str) -> bool:
    try:
        return all(n >= 0 for n in parse_versions(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class FixPOConfig:
    """Settings of the learner. Names are those of the design; divergences are in nats.

    `from_cfg` reads them from sample-factory's cfg, `add_fixpo_args` makes flags of them, `faults` checks them.
    """

    eps_kl: float = flag(0.5, "Bound of the trust region, nats (paper: epsilon_KL)", allowed="a number > 0", valid=positive)
    c_beta: float = flag(
        3.0,
        "How far inside the bound the primary phase aims: beta rises when c_beta * KL > eps_kl (paper: C_beta)",
        allowed="a number >= 1",
        valid=at_least_one,
    )
    beta_init: float = flag(1.0, "Multiplier at the start", allowed="a number >= 0", valid=not_negative)
    beta_lr: float = flag(
        0.01,
        "Learning rate of the multiplier (paper: gamma_beta); 0 keeps it constant",
        allowed="a number >= 0",
        valid=not_negative,
    )
    beta_min: float = flag(
        0.0,
        "Lower clamp of the multiplier; above 0 the penalty never switches off (paper: 0)",
        allowed="a number >= 0",
        valid=not_negative,
    )
    beta_max: float = flag(1000.0, "Upper clamp of the multiplier", allowed="a number > 0", valid=positive)
    beta_scope: str = flag("shared", "One multiplier for all tasks, or one per task", choices=("shared", "per_task"))
    kl_stat: str = flag("max", "Statistic over the states that is bounded; mean is an ablation", choices=("max", "mean"))
    kl_mean_target: float = flag(
        0.0,
        "A second multiplier holds the mean KL of an update at this target, nats; 0: none (paper: none)",
        allowed="a number >= 0",
        valid=not_negative,
    )
    kl_direction: str = flag(
        "pi_ref", "pi_ref: KL[current, reference] as in the paper; ref_pi: the reverse", choices=("pi_ref", "ref_pi")
    )
    reference: str = flag(
        "auto",
        "Centre of the trust region. previous: the policy published before this update; behaviour: the one that collected each "
        "sample; auto: behaviour where asynchronous training takes one epoch of one minibatch, else previous",
        choices=("auto", "previous", "behaviour"),
    )
    fixup: str = flag(
        "every_epoch",
        "When the fixup phase runs; off drops the guarantee (ablation)",
        choices=("every_epoch", "last_epoch", "off"),
    )
    fixup_loss: str = flag(
        "kl",
        "Loss of a fixup step: the paper's mean KL, the authors' beta * KL, or the mean KL of the states outside alone",
        choices=("kl", "beta_kl", "outside"),
    )
    fixup_optimizer: str = flag(
        "fresh", "Adam's first moments at the start of a fixup phase: the primary phase's, or zero", choices=("shared", "fresh")
    )
    fixup_batch_size: int = flag(
        0,
        "Minibatch of the fixup phase, samples; 0: as the primary phase",
        allowed="an integer >= 0",
        valid=not_negative,
    )
    max_fixup_steps: int = flag(
        50, "Steps of one fixup phase before the update goes back along its line", allowed="an integer >= 0", valid=not_negative
    )
    fixup_plateau_steps: int = flag(
        10, "Fixup steps without progress before the learning rate is halved", allowed="an integer >= 1", valid=at_least_one
    )
    fixup_chunk: int = flag(
        -1,
        "Visits of the fixup phase between two reads, of which the device knows by itself whether they make a step; 0: the host "
        "decides on each; -1: 0 on a CPU, 8 on a GPU. The steps are the same",
        allowed="an integer >= -1",
        valid=lambda value: value >= -1,
    )
    value_normalization: str = flag(
        "shared",
        "How the critic's returns are normalised in a run on several tasks. shared: by one mean and deviation; per_task: by "
        "those of each; popart: besides, by an output for each, which new statistics leave as it is in units of returns",
        choices=("shared", "per_task", "popart"),
    )
    encoder_dtype: str = flag(
        "float32",
        "In what encoders of a primary step compute: bfloat16 by autocast, weights stay float32. Fixup steps, checks and what "
        "actors run are float32 in any case",
        choices=("float32", "bfloat16"),
    )
    cuda_graphs: str = flag(
        "auto",
        "Gradient steps of the primary phase as CUDA graphs, on a GPU. auto: where the network is made of known classes; on: "
        "tries any; what cannot be recorded is made step by step, and said. The numbers are the same",
        choices=("auto", "on", "off"),
    )
    max_rollbacks: int = flag(
        10,
        "Updates in a row undone by a value that is not finite before the run stops",
        allowed="an integer >= 1",
        valid=at_least_one,
    )
    audit_every: int = flag(
        0, "Save what is needed to audit every N-th update; 0: none", allowed="an integer >= 0", valid=not_negative
    )
    trace_updates: str = flag(
        "",
        "Updates, counted from the start of the experiment, whose every gradient step is logged to trace.jsonl: 100,101 or 9-12",
        allowed="numbers and ranges, as in 3,10-12",
        valid=_is_version_list,
    )

    @classmethod
    def from_cfg(cls, cfg: Any) -> FixPOConfig:
        """Reads the settings out of sample-factory's cfg; `reference=auto` is resolved here.

        Raises:
            ValueError: all faults in one message.
        """
        found = faults(cfg)
        if found:
            raise ValueError("\n".join(found))
        values = {name: _get(cfg, name) for name in _FIELDS}
        if values["reference"] == "auto":
            one_step = _get(cfg, "num_epochs") * _get(cfg, "num_batches_per_epoch") == 1
            values["reference"] = "behaviour" if _get(cfg, "async_rl") and one_step else "previous"
        return cls(**values)

    @property
    def limit(self) -> float:
        """What the float32 check compares with: the bound less the margin for rounding, nats."""
        return self.eps_kl * (1.0 - CHECK_MARGIN)


_FIELDS = MappingProxyType({f.name: f for f in fields(FixPOConfig)})


def _get(cfg: Any, name: str) -> Any:
    default = _FIELDS[name].default if name in _FIELDS else _ABSENT.get(name)
    return cfg.get(name, default) if isinstance(cfg, Mapping) else getattr(cfg, name, default)


def task_names(cfg: Any) -> tuple[str, ...]:
    """Names of the run's tasks in the order of their ids; the environment's own where there is one task."""
    return tuple(_get(cfg, "task_names") or [_get(cfg, "env")])


def add_fixpo_args(parser: argparse.ArgumentParser) -> None:
    """Adds one flag per field of FixPOConfig, plain text where a choice is wrong is left to `faults`."""
    group = parser.add_argument_group("FixPO")
    add_flags(group, _FIELDS.values())


def faults(cfg: Any) -> list[str]:
    """Everything wrong with the settings of a run, one line a fault: the flag, the value, what is allowed.

    Beside the fields of FixPOConfig these are sample-factory's own flags where its learner would fail in the middle of a run
    with an assertion.
    """
    found = [fault for f in _FIELDS.values() if (fault := field_fault(f, _get(cfg, f.name)))]
    found += range_faults(partial(_get, cfg))
    if found:
        return found
    found += _constraint_faults(cfg)
    if _get(cfg, "beta_scope") == "per_task" and len(names := task_names(cfg)) == 1:
        found.append(f"--beta_scope=per_task: {names[0]} is one task; use shared")
    if (scope := _get(cfg, "value_normalization")) != "shared":
        if len(names := task_names(cfg)) == 1:
            found.append(f"--value_normalization={scope}: {names[0]} is one task; use shared")
        if not _get(cfg, "normalize_returns"):
            found.append(f"--value_normalization={scope}: must be shared with --normalize_returns=False")
    return found + _size_faults(cfg) + _mode_faults(cfg)


def _constraint_faults(cfg: Any) -> list[str]:
    """Settings of the constraint that contradict each other."""
    found = []
    low, start, high = _get(cfg, "beta_min"), _get(cfg, "beta_init"), _get(cfg, "beta_max")
    if low > high:
        found.append(f"--beta_min={low}: must not be above --beta_max={high}")
    elif start > high:
        found.append(f"--beta_init={start}: must not be above --beta_max={high}")
    elif start < low:
        found.append(f"--beta_min={low}: must not be above --beta_init={start}")
    target, eps_kl = _get(cfg, "kl_mean_target"), _get(cfg, "eps_kl")
    if target and _get(cfg, "kl_stat") == "mean":
        found.append(f"--kl_mean_target={target}: must be 0 with --kl_stat=mean, where beta itself looks at the mean")
    elif target >= eps_kl:
        found.append(f"--kl_mean_target={target}: must be below --eps_kl={eps_kl}: no mean is above the largest")
    if _get(cfg, "fixup_loss") == "outside" and _get(cfg, "kl_stat") == "mean":
        found.append("--fixup_loss=outside: must be kl or beta_kl with --kl_stat=mean, which bounds no single state")
    return found


def fixup_minibatch(cfg: Any) -> int:
    """Samples of a fixup minibatch: `--fixup_batch_size`, or the primary phase's; never more than the batch holds."""
    batch_size = _get(cfg, "batch_size")
    return min(_get(cfg, "fixup_batch_size") or batch_size, batch_size * _get(cfg, "num_batches_per_epoch"))


def _size_faults(cfg: Any) -> list[str]:
    found = []
    rollout, batch_size = _get(cfg, "rollout"), _get(cfg, "batch_size")
    recurrence = _get(cfg, "recurrence")
    if recurrence == -1:
        recurrence = rollout if _get(cfg, "use_rnn") else 1
    batches = _get(cfg, "num_batches_per_epoch")
    if batch_size % rollout:
        found.append(f"--batch_size={batch_size}: must be a multiple of --rollout={rollout}")
    if _get(cfg, "use_rnn") and recurrence < 2:
        found.append(f"--recurrence={recurrence}: must be at least 2 with --use_rnn=True (-1: as --rollout={rollout})")
    elif recurrence < 1 or rollout % recurrence:
        found.append(f"--recurrence={recurrence}: must divide --rollout={rollout}")
    elif (fixup_size := fixup_minibatch(cfg)) % recurrence or batch_size * batches % fixup_size:
        found.append(
            f"--fixup_batch_size={fixup_size}: must be a multiple of the recurrence, {recurrence}, and divide the batch, "
            f"{batch_size * batches} samples (--batch_size x --num_batches_per_epoch)"
        )
    envs, splits = _get(cfg, "num_envs_per_worker"), _get(cfg, "worker_num_splits")
    if splits < 1 or envs % splits:
        found.append(f"--worker_num_splits={splits}: must divide --num_envs_per_worker={envs}")
    return found


def _mode_faults(cfg: Any) -> list[str]:
    found = []
    if _get(cfg, "with_vtrace"):
        if _get(cfg, "normalize_returns"):
            found.append("--normalize_returns=True: must be False with --with_vtrace=True (returns change with every minibatch)")
        if _get(cfg, "recurrence") not in (-1, _get(cfg, "rollout")):
            found.append(f"--recurrence={_get(cfg, 'recurrence')}: must equal --rollout with --with_vtrace=True")
        if _get(cfg, "rollout") < 2:
            found.append("--rollout=1: must be at least 2 with --with_vtrace=True")
    return found
