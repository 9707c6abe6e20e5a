"""The settings of a run: flags beside sample-factory's own, what a resumed run was started with, and whether all of it fits."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import isdir
from typing import Any

import sample_factory.cfg.arguments as sf_arguments
import torch
from sample_factory.cfg.arguments import maybe_load_from_checkpoint
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.typing import Config
from sample_factory.utils.utils import str2bool as sf_str2bool

from sf_fixpo.algorithm.config import add_fixpo_args, faults
from sf_fixpo.baselines.registry import LEARNERS
from sf_fixpo.baselines.settings import add_baseline_args, baseline_faults, unheeded_reasons
from sf_fixpo.envs import UnknownEnvError, find_suite
from sf_fixpo.running.crashes import add_crash_args, crash_faults
from sf_fixpo.running.eval_during_training import add_eval_args, eval_faults
from sf_fixpo.running.folders import experiment_faults, folder_of, init_faults, start_faults
from sf_fixpo.running.joining import rank_faults
from sf_fixpo.running.supervision import errors_only
from sf_fixpo.running.trackers import add_tracker_args, tracker_faults

_sf_parse_sf_args = sf_arguments.parse_sf_args  # `fixpo-run` puts ours in its place


class BadInputError(ValueError):
    """Faults of the command line, one line each."""


def add_run_args(parser: argparse.ArgumentParser) -> None:
    """Adds what a run takes beside sample-factory's flags, and FixPO's defaults for some of those."""
    group = parser.add_argument_group("run")
    group.add_argument("--log_level", default="warning", choices=("debug", "info", "warning", "error"), help="Of the terminal")
    group.add_argument("--env_start_timeout", default=50.0, type=float, help="Seconds an environment may take to start")
    group.add_argument(
        "--rank_timeout",
        default=30.0,
        type=float,
        help="With several ranks (torchrun): seconds that one may take to come to the next update before it counts as hung",
    )
    group.add_argument(
        "--init_from",
        default="",
        metavar="PATH",
        help="Start from another run's weights and statistics: its folder, whose newest checkpoint is taken, or a checkpoint",
    )
    group.add_argument(
        "--policy_head_init_scale",
        default=1.0,
        type=float,
        help="Factor on the initial weights of the last policy layer; 0.01 starts a Gaussian policy at mean 0",
    )
    add_crash_args(group)
    for action in parser._actions:
        if action.dest == "lr_schedule":
            # it has a linear decay, and leaves it out of the choices
            action.choices = [*(action.choices or ()), "linear_decay"]
    add_fixpo_args(parser)
    add_baseline_args(parser)
    add_eval_args(parser)
    add_tracker_args(parser)
    parser.set_defaults(algo="FIXPO", device="gpu" if torch.cuda.is_available() else "cpu")


def parse_sf_args(
    argv: Sequence[str] | None = None, evaluation: bool = False
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """sample-factory's function of this name, with the flags and defaults of FixPO.

    Args:
        argv: the command line; None for that of the program.
        evaluation: also the flags of sample-factory's own `enjoy`.

    Returns:
        The parser, to be extended, and what it makes of the command line so far.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, _ = _sf_parse_sf_args(argv, evaluation)
    add_run_args(parser)
    return parser, parser.parse_known_args(argv)[0]


def _suite_args(env: str) -> Callable[[argparse.ArgumentParser], None]:
    """What adds the flags of an environment's suite; nothing for the environment of a script."""
    try:
        return find_suite(env).add_args
    except UnknownEnvError:
        return lambda parser: None


def all_flags(env: str, add_suite_args: Callable[[argparse.ArgumentParser], None]) -> list[argparse.Action]:
    """Every flag that a run on an environment has: sample-factory's, ours and its suite's."""
    parser, _ = _sf_parse_sf_args([f"--env={env}"])
    add_run_args(parser)
    add_suite_args(parser)
    return [action for action in parser._actions if action.dest not in ("help", "version")]


def setting_faults(config: Mapping[str, Any], flags: Iterable[argparse.Action]) -> list[str]:
    """Settings that were saved as something that their flags could not have given: one line each.

    Args:
        config: of a config.json; what is in it beside the flags is left alone.
        flags: as of `all_flags`.
    """
    found = []
    for flag in flags:
        value = config.get(flag.dest, flag.default)
        if value is not flag.default and not (value is None and flag.default is None) and not _fits(flag, value):
            found.append(f"{flag.dest}={str(value)[:40]!r}: must be {_allowed(flag)}, as --{flag.dest} takes it")
    return found


def _kind(flag: argparse.Action) -> type:
    """Of a flag's values: bool, int, float or str."""
    if isinstance(flag, argparse._StoreTrueAction | argparse._StoreFalseAction) or isinstance(flag.default, bool):
        return bool
    if flag.type in (int, float, str, None):
        return flag.type or str  # type: ignore[return-value]
    return bool if flag.type is sf_str2bool else str


def _fits(flag: argparse.Action, value: Any) -> bool:
    kind = _kind(flag)
    if flag.nargs in ("+", "*"):
        return isinstance(value, list) and all(_is_of(kind, item) for item in value)
    return _is_of(kind, value)


def _is_of(kind: type, value: Any) -> bool:
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**63)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return type(value) is kind


def _allowed(flag: argparse.Action) -> str:
    name = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[_kind(flag)]
    return f"a list of which each is {name}" if flag.nargs in ("+", "*") else name


def resumed(cfg: argparse.Namespace) -> AttrDict:
    """A run's configuration, with what an experiment that goes on has been started with where the command line says nothing.

    Raises:
        BadInputError: a name that leads elsewhere, or flags that only a new run can heed ask for something else than what this
            one was started with.
    """
    here = AttrDict(vars(cfg))
    if found := experiment_faults(here):
        raise BadInputError("\n".join(found))
    # only where there is something to resume: sample-factory makes the folder while it looks, also for a run that is refused
    if cfg.restart_behavior != "resume" or not isdir(folder_of(here)):
        return here
    try:
        if found := start_faults(here):
            raise BadInputError("\n".join(found))
        with errors_only():
            saved = maybe_load_from_checkpoint(cfg)
    except BadInputError:
        raise
    except ValueError as exc:
        raise BadInputError(f"--experiment={cfg.experiment}: its config.json cannot be read: {exc}") from None
    if found := setting_faults(saved, all_flags(str(here.env), _suite_args(here.env))):
        raise BadInputError("\n".join(f"--experiment={cfg.experiment}: its config.json cannot be used: {line}" for line in found))
    # where the folder lies now, whatever it was called when it was written; and a run that was started over something else goes
    # on: what that start did to the folder is not to be done again
    saved.update({key: here[key] for key in ("train_dir", "experiment", "cli_args", "command_line", "restart_behavior")})
    return saved


# Flags of sample-factory that nothing here heeds, and why; only what is asked for on the command line is refused.
_HEEDED_BY_NOBODY = {
    "use_env_info_cache": "the environment is asked for its spaces at every start",
    "use_record_episode_statistics": "returns are the environment's own; only sample-factory's own enjoy reads it",
}
_NOT_BY_FIXPO = {
    "ppo_clip_ratio": "FixPO clips no likelihood ratio, --eps_kl bounds the update",
    "kl_loss_coeff": "the multiplier beta takes its place, --beta_init and --beta_lr",
}


def unheeded_faults(cfg: Config) -> list[str]:
    """Flags on the command line that would silently do nothing: one line each."""
    reasons = {**_HEEDED_BY_NOBODY, **(_NOT_BY_FIXPO if cfg.algo == "FIXPO" else {})}
    others = unheeded_reasons(cfg.algo)
    given = cfg.get("cli_args") or {}
    return [
        f"--{name}={value}: has no effect with --algo={cfg.algo}, leave it out: {reasons.get(name) or others[name]}"
        for name, value in given.items()
        if (name in reasons and value) or name in others
    ]


def run_faults(cfg: Config) -> list[str]:
    """What is wrong with the settings of a run, whatever its environment: one line a fault."""
    found = [] if cfg.algo in LEARNERS else [f"--algo={cfg.algo}: must be one of {', '.join(LEARNERS)}"]
    if cfg.device == "gpu" and not torch.cuda.is_available():
        found.append("--device=gpu: this machine has no CUDA device; use --device=cpu")
    elif cfg.device == "gpu" and cfg.encoder_dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found.append("--encoder_dtype=bfloat16: this machine's GPU does not compute in it; use float32")
    if cfg.device == "cpu" and cfg.cuda_graphs == "on":
        found.append("--cuda_graphs=on: --device=cpu has none; use auto, or --device=gpu")
    if not cfg.env_start_timeout > 0:
        found.append(f"--env_start_timeout={cfg.env_start_timeout}: must be a number > 0, seconds")
    # its workers set their niceness from this; who may not lower it must not try to
    cfg.default_niceness = max(cfg.default_niceness, os.nice(0))
    found += unheeded_faults(cfg) + init_faults(cfg) + tracker_faults(cfg)
    return found + faults(cfg) + baseline_faults(cfg) + eval_faults(cfg) + crash_faults(cfg) + rank_faults(cfg)
