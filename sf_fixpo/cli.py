"""What every program's command line has: `--version`, and completion of its flags in a shell where argcomplete is installed."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from sf_fixpo import __version__

Container = TypeVar("Container", bound=argparse._ActionsContainer)


def version_line() -> str:
    """The package's version and those of what it stands on; none of them is imported."""

    def version_of(distribution: str) -> str:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return f"sf_fixpo {__version__} (sample-factory {version_of('sample-factory')}, torch {version_of('torch')})"


class _Version(argparse.Action):
    """As argparse's own, but for the text, which is made when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        print(version_line())
        parser.exit()


def add_version(container: Container) -> Container:
    """Adds `--version` to a parser or a group of flags, and returns it."""
    container.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="Print the versions of sf_fixpo and what it uses"
    )
    return container


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads a program's command line, `--version` included. What is wrong with it is one line, and ends the program with 2.

    Args:
        parser: with the program's flags; its `error` then says so too.
        argv: arguments; None for those of the process.
    """

    def refuse(message: str) -> NoReturn:
        """In place of argparse's own, which prints the whole usage above what is wrong."""
        said = message.removeprefix("argument ")
        if "unrecognized arguments: " in said:
            flag = said.partition("arguments: ")[2].partition(" ")[0].partition("=")[0]
            if near := difflib.get_close_matches(flag, parser._option_string_actions, n=2):
                said = f"{said}; did you mean {' or '.join(near)}?"
        parser.exit(2, f"{parser.prog}: {said} (--help shows all flags)\n")

    parser.error = refuse
    complete(add_version(parser))
    return parser.parse_args(argv)


def words_to_complete() -> list[str] | None:
    """The command line that a shell wants to be completed, without the program; None where none does."""
    if "_ARGCOMPLETE" not in os.environ:
        return None
    try:
        return shlex.split(os.environ.get("COMP_LINE", ""))[1:]
    except ValueError:  # a quotation mark that is still open
        return []


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that wants the command line completed, and ends the process; does nothing otherwise."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # pyright: ignore[reportMissingImports]  (an extra; whoever set the variable has it)

        argcomplete.autocomplete(parser)
