"""Training: `python -m sf_fixpo.train --env=NAME [flags]`, or `fixpo-train`.

Exit status: 0 trained; 1 the run failed (its error is printed); 2 bad input, before any process was started; 75 SIGTERM or
SIGUSR1 (a cluster takes the machine away): what was learned is saved, the same command goes on from there; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from os.path import isdir
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.cfg.arguments import maybe_load_from_checkpoint, parse_full_cfg, parse_sf_args
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import experiment_dir

from sf_fixpo import cli
from sf_fixpo.algorithm.config import add_fixpo_args, faults
from sf_fixpo.envs import Suite, UnknownEnvError, find_suite, list_envs
from sf_fixpo.envs.names import did_you_mean
from sf_fixpo.hub import add_hub_args, hub_faults, push_finished_run
from sf_fixpo.learning.checkpoints import CheckpointError
from sf_fixpo.learning.worker import LEARNERS
from sf_fixpo.running.eval_during_training import add_eval_args, eval_faults
from sf_fixpo.running.runner import PREEMPTED, InvalidRunError, run_fixpo
from sf_fixpo.running.supervision import EnvironmentStartError, Preempted, end_when_preempted, errors_only, set_console_log_level

EXIT_STATUS = {ExperimentStatus.SUCCESS: 0, ExperimentStatus.FAILURE: 1, ExperimentStatus.INTERRUPTED: 130, PREEMPTED: 75}
BAD_INPUT = 2
_ANY_ENV = "--env=gym_CartPole-v1"


class BadInputError(ValueError):
    """Faults of the command line, one line each."""


def _add_program_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("program")
    group.add_argument(
        "--preset", default="paper", help="Defaults of all flags for the environment's suite; --list_envs has them"
    )
    group.add_argument("--list_envs", action="store_true", help="Print what can run here, and what each missing one needs")
    group.add_argument("--log_level", default="warning", choices=("debug", "info", "warning", "error"), help="Of the terminal")
    cli.add_version(group)
    group.add_argument("--env_start_timeout", default=50.0, type=float, help="Seconds an environment may take to start")


def _extend_sample_factory_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy_head_init_scale",
        default=1.0,
        type=float,
        help="Factor on the initial weights of the last policy layer; 0.01 starts a Gaussian policy at mean 0",
    )
    for action in parser._actions:
        if action.dest == "lr_schedule":
            # it has a linear decay, and leaves it out of the choices
            action.choices = [*(action.choices or ()), "linear_decay"]


def _make_parser(argv: list[str]) -> tuple[argparse.ArgumentParser, Suite]:
    """The parser of all flags, and the suite of `--env`.

    Raises:
        BadInputError: `--env` is missing, or no suite knows it.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", default="", nargs="?", const="")
    env = first.parse_known_args(argv)[0].env
    if not env:
        raise BadInputError("--env: say which environment to train on; --list_envs shows all")
    try:
        suite = find_suite(env)
    except UnknownEnvError as exc:
        raise BadInputError(str(exc)) from None
    # sample-factory parses while it makes the parser: of the command line it gets what it cannot do without
    parser, _ = parse_sf_args([f"--env={env}"])
    _add_program_args(parser)
    _extend_sample_factory_args(parser)
    add_fixpo_args(parser)
    add_eval_args(parser)
    add_hub_args(parser)
    suite.add_args(parser)

    def refuse(message: str) -> NoReturn:
        """In place of argparse's own, which prints a hundred lines of usage above what is wrong."""
        message = message.removeprefix("argument ")
        if "unrecognized" in message:
            flag = message.rpartition(": ")[2].split()[0].partition("=")[0]
            message = "; ".join(filter(None, [message, did_you_mean(flag, parser._option_string_actions)]))
        raise BadInputError(message)

    parser.error = refuse
    return parser, suite


def _train_dir_faults(train_dir: str) -> list[str]:
    """Whether the folder of all experiments can be made and written."""
    path = Path(train_dir).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir():
        return [f"--train_dir={train_dir}: {nearest} is not a folder"]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [f"--train_dir={train_dir}: {nearest} cannot be written by this user"]
    return []


def parse_cfg(argv: list[str]) -> AttrDict:
    """Flags -> sample-factory's configuration, with the suite's preset as defaults and a resumed experiment's own settings.

    Raises:
        BadInputError: unknown environment, preset or flag, missing extra, values out of range: all faults in one message.
        SystemExit: `--help` (status 0).
    """
    parser, suite = _make_parser(argv)
    parser.set_defaults(algo="FIXPO", device="gpu" if torch.cuda.is_available() else "cpu")
    preset = parser.parse_known_args(argv)[0].preset
    if preset not in suite.presets:
        raise BadInputError(f"--preset={preset}: for {suite.name} it must be one of {', '.join(suite.presets)}")
    parser.set_defaults(**suite.presets[preset])
    known = parser.parse_known_args(argv)[0]
    parser.set_defaults(experiment=f"{known.env}_{known.algo}".lower())
    cfg = parse_full_cfg(parser, argv)
    # only where there is something to resume: sample-factory makes the folder while it looks, also for a run that is refused
    if cfg.restart_behavior == "resume" and isdir(experiment_dir(cfg, mkdir=False)):
        with errors_only():
            cfg = maybe_load_from_checkpoint(cfg)
    cfg = AttrDict(cfg if isinstance(cfg, dict) else vars(cfg))
    cfg.task_names = list(suite.tasks(cfg))
    found = [] if cfg.algo in LEARNERS else [f"--algo={cfg.algo}: must be one of {', '.join(LEARNERS)}"]
    if cfg.device == "gpu" and not torch.cuda.is_available():
        found.append("--device=gpu: this machine has no CUDA device; use --device=cpu")
    if not cfg.env_start_timeout > 0:
        found.append(f"--env_start_timeout={cfg.env_start_timeout}: must be a number > 0, seconds")
    # its workers set their niceness from this; who may not lower it must not try to
    cfg.default_niceness = max(known.default_niceness, os.nice(0))
    found += _train_dir_faults(cfg.train_dir)
    found += faults(cfg) + eval_faults(cfg) + hub_faults(cfg) + suite.faults(cfg)
    if not found and (needed := suite.missing()):
        found.append(f"--env={cfg.env}: {needed}")
    if found:
        raise BadInputError("\n".join(found))
    return cfg


def _complete(words: list[str]) -> None:
    """Answers a shell that wants flags: those of the environment that is named already, if it is."""
    env = next((word for word in reversed(words) if word.startswith("--env=")), _ANY_ENV)
    try:
        parser, _ = _make_parser([env])
    except BadInputError:
        parser, _ = _make_parser([_ANY_ENV])
    cli.complete(parser)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if (words := cli.words_to_complete()) is not None:
        _complete(words)
    if "--version" in argv or "--list_envs" in argv:
        print(cli.version_line() if "--version" in argv else list_envs())
        return 0
    if {"-h", "--help"} & set(argv) and not any(arg.startswith("--env") for arg in argv):
        argv = [_ANY_ENV, *argv]  # sample-factory's parser asks for an environment even to print its help
    set_console_log_level("warning")
    end_when_preempted()
    try:
        cfg = parse_cfg(argv)
        set_console_log_level(cfg.log_level)
        for line in find_suite(cfg.env).notes(cfg):
            print(f"fixpo-train: {line}", file=sys.stderr)
        status = EXIT_STATUS[run_fixpo(cfg, find_suite(cfg.env).make_env, Console())]
        return push_finished_run(cfg) if status == 0 and cfg.push_to_hub else status
    except (BadInputError, InvalidRunError, CheckpointError) as exc:
        for line in str(exc).splitlines():
            print(f"fixpo-train: {line}", file=sys.stderr)
        return BAD_INPUT
    except EnvironmentStartError as exc:
        print(f"fixpo-train: {exc}", file=sys.stderr)
        return EXIT_STATUS[ExperimentStatus.FAILURE]
    except KeyboardInterrupt:
        return EXIT_STATUS[ExperimentStatus.INTERRUPTED]
    except Preempted:
        return EXIT_STATUS[PREEMPTED]


if __name__ == "__main__":
    sys.exit(main())
