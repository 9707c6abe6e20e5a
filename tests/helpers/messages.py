"""Every text with which the package's code refuses something, found in its source; for the catalogue of messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
ROOTS = ("sf_fixpo", "envs", "launcher")
# What a program prints as a message and ends with; not what only this package's own code can be the cause of.
USER_ERRORS = {
    "BackendError", "BadInputError", "CheckpointError", "DifferentRanksError", "DownloadError", "EnvError", "ExportError",
    "EnvironmentStartError", "FolderInUseError", "InvalidRunError", "LogError", "PushError", "RanksError", "ScreenError",
    "ScriptError", "SecretsFileError", "SweepError", "TrackerError", "UnknownEnvError", "UnreadableError", "ViolationError",
    "UnsuitableSpaceError",
}  # fmt: skip
# Functions that return what is wrong, or what is missing.
COLLECTS = re.compile(r"(?:\b|_)faults?$|missing$|_missing_message$|^_refuse|^refuse")
# What stands in many messages.
STOCK = re.compile(
    r"^(must be \w+|be an? \w+|to be .*|at least \d+|must be one of|at step of|in the checkpoint|is not installed:)$"
)
# `x.get("algo")`, `cfg["env"]`: names of settings, which are no sentences.
_LEAST_WORDS = 3


@dataclass(frozen=True)
class Template:
    """A message as it stands in the source.

    Attributes:
        file: relative to the repository.
        line: where it begins.
        parts: its constant texts in order; between them stands what is filled in.
    """

    file: str
    line: int
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """With an ellipsis for what is filled in."""
        return "...".join(self.parts)

    def is_quoted_in(self, source: str) -> bool:
        """Whether three words of it that stand in a row, 14 letters or more and no stock phrase, stand in the text of a test."""
        for part in self.parts:
            words = part.strip(" :;,()").split()
            for first in range(len(words) - 2):
                piece = " ".join(words[first : first + 3])
                if len(piece) >= 14 and not STOCK.search(piece) and piece in source:
                    return True
        return False

    def is_in(self, line: str) -> bool:
        """Whether its texts stand in a line, in order."""
        place = 0
        for part in self.parts:
            place = line.find(part.rstrip("\n"), place)
            if place < 0:
                return False
            place += len(part)
        return True


def _parts(node: ast.AST) -> tuple[str, ...] | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = [""]
    for piece in node.values:
        if isinstance(piece, ast.Constant):
            parts[-1] += str(piece.value)
        else:
            parts.append("")
    return tuple(parts)


def _strings(node: ast.AST) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Texts in an expression or a statement; what is filled into one is no text of its own."""
    if isinstance(node, ast.FunctionDef | ast.Raise):  # looked at by itself
        return
    if (parts := _parts(node)) is not None:
        yield node.lineno, parts  # type: ignore[attr-defined]
        return
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)


def of_source(source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and constant parts of each text of a message in a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            if ast.unparse(node.exc.func).rpartition(".")[2] in USER_ERRORS:
                for argument in node.exc.args:
                    yield from _strings(argument)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.error":
            for argument in node.args:
                yield from _strings(argument)
        elif isinstance(node, ast.FunctionDef) and COLLECTS.search(node.name):
            for statement in node.body[ast.get_docstring(node) is not None :]:
                yield from _strings(statement)


def templates() -> list[Template]:
    """Every message of at least three words of its own."""
    found: dict[tuple[str, tuple[str, ...]], Template] = {}
    for root in ROOTS:
        for path in sorted((REPO / root).rglob("*.py")):
            file = str(path.relative_to(REPO))
            for line, parts in of_source(path.read_text()):
                if len(re.findall(r"(?<!\S)\S*[A-Za-z]{2}\S*", " ".join(parts))) >= _LEAST_WORDS:
                    found.setdefault((file, parts), Template(file, line, parts))
    return list(found.values())
