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
    "BackendError", "BadInputError", "CheckpointError", "DifferentRanksError", "DownloadError", "EnvError", "EnvironmentStartError",
    "ExportError", "FolderInUseError", "InvalidRunError", "LogError", "PushError", "RanksError", "ScreenError", "ScriptError",
    "SecretsFileError", "SweepError", "TrackerError", "UnknownEnvError", "UnreadableError", "UnsuitableSpaceError", "ViolationError",
}  # fmt: skip
# Functions that return what is wrong, or what is missing.
COLLECTS = re.compile(r"(?:\b|_)faults?$|missing$|_missing_message$|^_refuse|^refuse")
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

    @property
    def pattern(self) -> re.Pattern[str]:
        """Of a message that was made of it."""
        return re.compile(r"[\s\S]*?".join(r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in self.parts))


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


def _of_file(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    for node in ast.walk(ast.parse(path.read_text())):
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
            for line, parts in _of_file(path):
                if len(re.findall(r"[A-Za-z]{2,}", " ".join(parts))) >= _LEAST_WORDS:
                    found.setdefault((file, parts), Template(file, line, parts))
    return list(found.values())
