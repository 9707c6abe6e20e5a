"""Training: `python -m sf_fixpo.train --env=NAME [flags]`, or `fixpo-train`.

Exit status: 0 trained; 1 the run failed (its error is printed); 2 bad input, before any process was started; 75 SIGTERM or
SIGUSR1 (a cluster takes the machine away): what was learned is saved, the same command goes on from there; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from rich.console import Console
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo import cli
from sf_fixpo.api import EXIT_STATUS, exit_status, take_part
from sf_fixpo.envs import Suite, UnknownEnvError, find_suite, list_envs
from sf_fixpo.envs.names import did_you_mean
from sf_fixpo.envs.suite import ENV_FLAGS
from sf_fixpo.running.runner import run_fixpo
from sf_fixpo.running.scripts import Registered, only_registers, registering_script
from sf_fixpo.running.settings import BadInputError, add_run_args, resumed, run_faults
from sf_fixpo.running.supervision import end_when_preempted, set_console_log_level

_ANY_ENV = "--env=gym_CartPole-v1"


def _add_program_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("program")
    group.add_argument(
        "--preset", default="paper", help="Defaults of all flags for the environment's suite; --list_envs has them"
    )
    cli.add_version(group)
    group.add_argument("--list_envs", action="store_true", help="Print what can run here, and what each missing one needs")


def _add_hub_args(parser: argparse.ArgumentParser) -> None:
    """Adds `--push_to_hub` and what belongs to it, which sample-factory has for its evaluation program only."""
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument("--push_to_hub", action="store_true", help="Publish the run when it has finished; see sf_fixpo.hub")
    group.add_argument("--hf_repository", default=None, type=str, help="Where to: USER/NAME")
    group.add_argument("--hf_private", action="store_true", help="Make it a private repository")


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
    add_run_args(parser)
    _add_hub_args(parser)
    suite.add_args(parser)

    def refuse(message: str) -> NoReturn:
        """In place of argparse's own, which prints a hundred lines of usage above what is wrong."""
        message = message.removeprefix("argument ")
        if "unrecognized" in message:
            flag = next(iter(message.rpartition(": ")[2].split()), "").partition("=")[0]
            message = "; ".join(filter(None, [message, did_you_mean(flag, parser._option_string_actions)]))
        raise BadInputError(message)

    parser.error = refuse
    return parser, suite


# The Hub's client takes a quarter of a second to import, and each process of a run imports this file.
def _hub_faults(cfg: AttrDict) -> list[str]:
    if not cfg.push_to_hub:
        return []
    from sf_fixpo.hub import hub_faults

    return hub_faults(cfg)


def _push(cfg: AttrDict) -> int:
    from sf_fixpo.hub import push_finished_run

    return push_finished_run(cfg)


def parse_cfg(argv: list[str], script: dict[str, Any] | None = None) -> AttrDict:
    """Flags -> sample-factory's configuration, with the suite's preset as defaults and a resumed experiment's own settings.

    Args:
        argv: the command line.
        script: of a user, which has called this program and may have registered a network.

    Raises:
        BadInputError: unknown environment, preset or flag, missing extra, values out of range: all faults in one message.
        SystemExit: `--help` (status 0).
    """
    parser, suite = _make_parser(argv)
    preset = parser.parse_known_args(argv)[0].preset
    if preset not in suite.presets:
        raise BadInputError(f"--preset={preset}: for {suite.name} it must be one of {', '.join(suite.presets)}")
    parser.set_defaults(**suite.presets[preset])
    known = parser.parse_known_args(argv)[0]
    parser.set_defaults(**suite.defaults(known))
    parser.set_defaults(experiment=f"{known.env}_{known.algo}".lower())
    cfg = resumed(parse_full_cfg(parser, argv))
    cfg.task_names, cfg.script = list(suite.tasks(cfg)), {**script, "suite": suite.name} if script else {}
    found = run_faults(cfg) + _hub_faults(cfg) + suite.faults(cfg)
    found += suite.share_faults(cfg)
    found += [
        f"--{name}={cfg.cli_args[name]}: the {suite.name} suite has no use for it, leave it out"
        for name in ENV_FLAGS
        if name in cfg.cli_args and name not in suite.env_flags
    ]
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
    """Runs the program; returns its exit status.

    A user's script that registers a network and calls this is remembered by the run, which is played with it (`running.scripts`).
    """
    if only_registers():
        raise Registered
    script = registering_script() if argv is None else None
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

    def train() -> int:
        speaks = take_part()
        cfg = parse_cfg(argv, script)
        set_console_log_level(cfg.log_level)
        for line in find_suite(cfg.env).notes(cfg) if speaks else ():
            print(f"fixpo-train: {line}", file=sys.stderr)
        status = EXIT_STATUS[run_fixpo(cfg, find_suite(cfg.env).make_env, Console())]
        return _push(cfg) if status == 0 and cfg.push_to_hub and speaks else status

    return exit_status("fixpo-train", train)


if __name__ == "__main__":
    sys.exit(main())
