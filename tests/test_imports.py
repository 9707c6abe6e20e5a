"""Imports run one way, in rooms without circles: read off the code, as architecture.md has it."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

from benchmarks.rooms import COMMON, FILES, arrows, imports_of, page_with_picture, room_arrows, room_of

ROOT = Path(__file__).resolve().parents[1]
# Room -> the rooms it may import. `programs` are the files at the top of the package.
MAY_IMPORT = {
    "records": set(),
    "envs": set(),
    "launcher": set(),
    "algorithm": {"records"},
    "learning": {"algorithm", "records"},
    "baselines": {"algorithm", "learning", "records"},
    "running": {"algorithm", "learning", "baselines", "records", "envs"},
    "playing": {"algorithm", "learning", "baselines", "running", "records", "envs"},
    "programs": {"algorithm", "learning", "baselines", "running", "playing", "records", "envs"},
}
PURE = [
    "algorithm",
    "records.update_log",
    "records.audit_files",
    "learning.checkpoints",
    "learning.state",
    "learning.sequences",
    "learning.unrolling",
]
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"sample_factory", "signal_slot", "gymnasium", "sf_examples"}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


def test_the_links_are_seen():
    assert all((ROOT / "sf_fixpo" / name).is_symlink() for name in ("envs", "launcher"))
    assert {"sf_fixpo.envs.suite", "sf_fixpo.launcher.run", "sf_fixpo.learning.learner", "sf_fixpo.train"} <= FILES.keys()


def test_rooms_import_one_way():
    wrong = [
        (importer, imported)
        for importer, imported in arrows()
        if imported not in COMMON
        and (here := room_of(importer)) != (there := room_of(imported))
        and there not in MAY_IMPORT[here]
    ]
    assert not wrong


def test_few_arrows_between_rooms_and_the_page_shows_them():
    assert len(room_arrows()) <= 25
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert page_with_picture(page) == page, "make rooms"


def test_no_circle_of_modules():
    """What is imported at import time; a function may import what imports its module."""
    left = arrows(at_import_only=True)
    while True:
        importers = {importer for importer, _ in left}
        leaves = {pair for pair in left if pair[1] not in importers}
        if not leaves:
            break
        left = left - leaves
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


def test_what_needs_no_sample_factory_imports_without_it():
    modules = {room: [name for name in FILES if name.startswith(f"sf_fixpo.{room}")] for room in PURE}
    assert all(modules.values())
    # one process for all: what imports a blocked module fails, whatever was imported before it
    code = BLOCK + "".join(f"import {name}\n" for name in itertools.chain(*modules.values()))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
