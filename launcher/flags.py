"""The command lines of the launcher's programs: flags whose faults are all told at once, before anything starts."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from sf_fixpo import cli
from sf_fixpo.launcher.backend import BACKENDS, Backend, JobOptions, find_backend
from sf_fixpo.launcher.secret_values import SecretsFileError, read_secrets

BAD_INPUT = 2


class BadInputError(ValueError):
    """Faults of the command line, one line each."""


class FlagParser(argparse.ArgumentParser):
    """argparse that goes on after a bad value, with the flag's default in its place, and collects what was wrong.

    Attributes:
        found: one line a fault, after `parse`.
    """

    def __init__(self, prog: str, description: str):
        """No abbreviations: a flag added later would change what they mean."""
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        cli.add_version(self)
        self.found: list[str] = []

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Reads the command line; what is unknown or cannot be read is in `found`."""
        cli.complete(self)
        self.found = []
        args, unknown = self.parse_known_args(argv)
        for argument in unknown:
            flag = argument.partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "look at --help"
            self.found.append(f"{argument}: no such flag; {hint}")
        return args

    def error(self, message: str) -> NoReturn:
        """In place of argparse's own, which prints all usage above what is wrong."""
        raise BadInputError("\n".join([*self.found, message.removeprefix("argument ")]))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)  # type: ignore[misc]
        except argparse.ArgumentError:
            allowed = {int: "an integer", float: "a number"}.get(action.type, "another value")  # type: ignore[arg-type]
            self.found.append(f"{action.option_strings[-1]}={arg_string}: must be {allowed}")
            return action.default


def add_job_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `JobOptions`."""
    group = parser.add_argument_group("runs")
    group.add_argument("--max_retries", default=0, type=int, help="How often a run that crashed goes on from its checkpoint")
    group.add_argument(
        "--run_timeout", default=0.0, type=float, help="Seconds without an update or output after which a run is hung; 0: never"
    )
    group.add_argument("--stop_timeout", default=45.0, type=float, help="Seconds that a run gets to save before it is killed")
    group.add_argument(
        "--secrets_file",
        default="",
        help="File of KEY=VALUE lines, mode 600, for the environment of the runs (WANDB_API_KEY, HF_TOKEN)",
    )
    group.add_argument("--ranks", default=1, type=int, help="Learners of each run that train one policy, with actors each")
    group.add_argument("--nodes", default=1, type=int, help="Machines that the ranks of a run are spread over")


def job_faults(args: argparse.Namespace) -> list[str]:
    """Checks the flags of `add_job_args`, the secrets file included."""
    found = []
    if args.max_retries < 0:
        found.append(f"--max_retries={args.max_retries}: must be an integer >= 0")
    for name in ("run_timeout", "stop_timeout"):
        value = getattr(args, name)
        if not (math.isfinite(value) and value >= 0):
            found.append(f"--{name}={value}: must be a number >= 0, seconds")
    for name in ("ranks", "nodes"):
        if (value := getattr(args, name)) < 1:
            found.append(f"--{name}={value}: must be an integer >= 1")
    if min(args.ranks, args.nodes) >= 1 and args.ranks % args.nodes:
        found.append(f"--nodes={args.nodes}: must divide --ranks={args.ranks}: each machine of a run has equally many ranks")
    if args.secrets_file:
        try:
            read_secrets(args.secrets_file)
        except SecretsFileError as exc:
            found.append(str(exc))
    return found


def job_options(args: argparse.Namespace) -> JobOptions:
    """The options of a launch's jobs; the path of the secrets file is made absolute."""
    secrets_file = os.path.abspath(args.secrets_file) if args.secrets_file else ""
    return JobOptions(args.max_retries, args.run_timeout, args.stop_timeout, secrets_file, args.ranks, args.nodes)


def gpu_of_rank_fault(args: argparse.Namespace, name: str, *others: float) -> list[str]:
    """What is wrong with a flag that says how many GPUs a run has, where a run is several ranks; one line or none.

    Args:
        args: with the flag, which counts for each rank.
        name: of the flag.
        others: values beside 0 and 1 that it may have.
    """
    value = getattr(args, name)
    if args.ranks <= 1 or value in (0, 1, *others):
        return []
    allowed = ", ".join(f"{number:g}" for number in (0, *others))
    return [f"--{name}={value:g}: must be {allowed} or 1 with --ranks={args.ranks}: each rank takes one GPU"]


def one_machine_fault(args: argparse.Namespace, backend: str, why: str) -> list[str]:
    """What is wrong with `--nodes` under a backend whose runs are each on one machine; one line or none."""
    if args.nodes <= 1:
        return []
    others = "slurm and kubernetes spread a run over machines"
    return [f"--nodes={args.nodes}: must be 1 with --backend={backend}: {why}; {others}"]


def add_search_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a search."""
    group = parser.add_argument_group("search")
    group.add_argument("--search", default="", help="optuna: search the module's SEARCH_SPACE instead of running its sweep")
    group.add_argument("--trials", default=50, type=int, help="Trials in all, those of earlier launches included")
    group.add_argument("--search_parallel", default=2, type=int, help="Trials at a time")
    group.add_argument("--search_seed", default=0, type=int, help="Of Optuna's sampler")
    group.add_argument(
        "--report_steps", default=0, type=int, help="Steps between comparisons of a trial with others; 0: a twentieth of all"
    )


def search_faults(args: argparse.Namespace) -> list[str]:
    """Checks the flags of `add_search_args`."""
    found = [] if args.search in ("", "optuna") else [f"--search={args.search}: must be optuna"]
    for name, least in (("trials", 1), ("search_parallel", 1), ("search_seed", 0), ("report_steps", 0)):
        if (value := getattr(args, name)) < least:
            found.append(f"--{name}={value}: must be an integer >= {least}")
    return found


def add_backend_args(parser: argparse.ArgumentParser, argv: Sequence[str], default: str = "local") -> type[Backend]:
    """Adds `--backend` and the flags of the backend it names.

    Args:
        parser: gets the flags.
        argv: the command line.
        default: backend where the command line names none.

    Returns:
        The backend's class.

    Raises:
        BackendError: there is no such backend, or what it needs is not installed.
    """
    parser.add_argument("--backend", default=default, help=f"Where the sweep runs {{{','.join(BACKENDS)}}}")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--backend", default=default, nargs="?", const="")
    backend = find_backend(first.parse_known_args(argv)[0].backend)
    backend.add_args(parser)
    return backend


def complain(program: str, message: object) -> int:
    """Prints every line of a message with the program's name.

    Returns:
        The exit status of bad input.
    """
    for line in str(message).splitlines():
        print(f"{program}: {line}", file=sys.stderr)
    return BAD_INPUT
