"""The rooms of the house as its imports show them: prints the picture, or writes it into CONTRIBUTING.md.

    python -m benchmarks.rooms [--write]

A room is a folder of `sf_fixpo`; `programs` are the files at its top. An arrow goes from the room that imports to the room that
is imported, with the number of imports.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("programs", "playing", "running", "baselines", "learning", "algorithm", "records", "envs", "launcher")
# In no room: what all may read, the version and what every command line has.
COMMON = ("sf_fixpo", "sf_fixpo.cli")
_PAGE = ROOT / "CONTRIBUTING.md"
_START, _END = "<!-- rooms: made by `make rooms` -->\n", "<!-- end of rooms -->\n"


def _files() -> dict[str, Path]:
    """By module, the package's files, those behind its two links too."""
    folders = (ROOT / "sf_fixpo", *(ROOT / "sf_fixpo" / name for name in ("envs", "launcher")))
    paths = sorted({path for folder in folders for path in folder.rglob("*.py")})
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


FILES = _files()


def room_of(module: str) -> str:
    """Of a module of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "programs"


def imports_of(path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """Modules that a file imports.

    Args:
        path: of the file.
        at_import_only: leave out what functions import when they are called, and what only a type checker reads.
    """
    tree = ast.parse(path.read_text())
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            late |= set(ast.walk(node)) - {node}
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            late |= {inner for line in node.body for inner in ast.walk(line)}
    for node in ast.walk(tree):
        if at_import_only and node in late:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module


@cache
def arrows(*, at_import_only: bool = False) -> frozenset[tuple[str, str]]:
    """(importer, imported) of all pairs of modules of the package."""
    return frozenset(
        (name, target)
        for name, path in FILES.items()
        for target in imports_of(path, at_import_only=at_import_only)
        if target in FILES and target != name
    )


def room_arrows() -> Counter[tuple[str, str]]:
    """How many imports go from one room to another."""
    pairs = ((room_of(a), room_of(b)) for a, b in arrows() if b not in COMMON)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def picture() -> str:
    """A Mermaid graph, and the numbers in words."""
    between = room_arrows()
    files = Counter(room_of(name) for name in FILES)
    lines = ["```mermaid", "graph TD"]
    lines += [f'    {room}["{room}: {files[room]} files"]' for room in ROOMS]
    lines += [f"    {a} -->|{count}| {b}" for (a, b), count in sorted(between.items())]
    imports = sum(between.values())
    text = f"{len(FILES)} files in {len(ROOMS)} rooms; {len(between)} arrows between rooms, {imports} imports behind them,"
    return "\n".join([*lines, "```", "", text, f"{len(arrows()) - imports} within rooms.", ""])


def page_with_picture(page: str) -> str:
    """CONTRIBUTING.md with today's picture in it."""
    before, _, rest = page.partition(_START)
    _, _, after = rest.partition(_END)
    return f"{before}{_START}\n{picture()}\n{_END}{after}"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rooms", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="put it into CONTRIBUTING.md")
    if parser.parse_args(argv).write:
        _PAGE.write_text(page_with_picture(_PAGE.read_text()))
    else:
        print(picture())
    return 0


if __name__ == "__main__":
    sys.exit(main())
