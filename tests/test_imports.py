"""Imports run one way, in rooms without circles: read off the code, as architecture.md has it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Room -> the rooms it may import. `programs` are the files at the top of the package.
MAY_IMPORT = {
    "records": set(),
    "envs": set(),
    "launcher": set(),
    "algorithm": {"records"},
    "learning": {"algorithm", "records"},
    "running": {"algorithm", "learning", "records", "envs"},
    "playing": {"algorithm", "learning", "running", "records", "envs"},
    "programs": {"algorithm", "learning", "running", "playing", "records", "envs"},
}
PURE = ["algorithm", "records.update_log", "records.audit_files", "learning.checkpoints", "learning.state", "learning.sequences"]
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"sample_factory", "signal_slot", "gymnasium", "sf_examples"}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


def module_of(path):
    """`sf_fixpo/learning/learner.py` -> `sf_fixpo.learning.learner`; a package is called as its folder is."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def source_files():
    """The package's files, those behind its two links too."""
    links = [ROOT / "sf_fixpo" / name for name in ("envs", "launcher")]
    assert all(link.is_symlink() for link in links)
    return sorted({path for folder in (ROOT / "sf_fixpo", *links) for path in folder.rglob("*.py")})


FILES = {module_of(path): path for path in source_files()}


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "programs"


def imports_of(path, *, at_import_only=False):
    """Modules of this package that a file imports; `at_import_only` leaves out what functions import when they are called."""
    tree = ast.parse(path.read_text())
    late = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if node is not function
    }
    for branch in ast.walk(tree):
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING":
            late |= {node for line in branch.body for node in ast.walk(line)}
    for node in ast.walk(tree):
        if at_import_only and node in late:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module


def arrows(**how):
    """(importer, imported) module pairs."""
    return {(name, target) for name, path in FILES.items() for target in imports_of(path, **how) if target in FILES}


def test_the_links_are_seen():
    assert {"sf_fixpo.envs.suite", "sf_fixpo.launcher.run", "sf_fixpo.learning.learner", "sf_fixpo.train"} <= FILES.keys()


def test_rooms_import_one_way():
    wrong = [
        (importer, imported)
        for importer, imported in arrows()
        if imported != "sf_fixpo"  # its version
        and (here := room_of(importer)) != (there := room_of(imported))
        and there not in MAY_IMPORT[here]
    ]
    assert not wrong


def test_no_circle_of_modules():
    """What is imported at import time; a function may import what imports its module."""
    left = arrows(at_import_only=True)
    while True:
        importers = {importer for importer, _ in left}
        leaves = {pair for pair in left if pair[1] not in importers}
        if not leaves:
            break
        left -= leaves
    assert not left


def test_every_import_is_written_from_the_root():
    """A user may have an `envs` or a `launcher` package: nothing of ours may be found by such a name."""
    for module, path in FILES.items():
        for name in imports_of(path):
            assert name.split(".")[0] not in {"envs", "launcher", "benchmarks", "tests", *MAY_IMPORT}, f"{module} imports {name}"


def test_the_launcher_needs_no_torch():
    for module, path in FILES.items():
        if room_of(module) == "launcher":
            assert not {name.split(".")[0] for name in imports_of(path)} & {"torch", "numpy"}, module


@pytest.mark.parametrize(
    "room",
    PURE,
)
def test_what_needs_no_sample_factory_imports_without_it(room):
    modules = [name for name in FILES if name.startswith(f"sf_fixpo.{room}")]
    assert modules
    subprocess.run([sys.executable, "-c", BLOCK + "".join(f"import {name}\n" for name in modules)], check=True, cwd=ROOT)


def test_the_block_blocks():
    code = BLOCK + "import sf_fixpo.learning.learner"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert "is blocked" in run.stderr


def test_rooms_say_what_they_are():
    for room in (set(MAY_IMPORT) - {"programs", "envs"}) | {"envs.dmlab.stand_in", "envs.dmlab.cache", "envs.pool"}:
        text = ast.get_docstring(ast.parse(FILES[f"sf_fixpo.{room}"].read_text()))
        assert text
        assert len(text.splitlines()) <= 10


def test_no_file_is_longer_than_it_should_be():
    folders = ("sf_fixpo", "envs", "launcher", "benchmarks", "tests", "examples")
    long = {str(p): n for f in folders for p in (ROOT / f).rglob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long
