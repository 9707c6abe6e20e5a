"""Imports run one way: the core knows no sample-factory, environments no learner, the launcher no algorithm."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ["losses", "multiplier", "trust_region", "config", "publication", "summaries", "checkpoints", "phases"]
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"sample_factory", "signal_slot", "gymnasium"}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


def test_pure_modules_import_without_sample_factory():
    code = BLOCK + "".join(f"import sf_fixpo.{name}\n" for name in PURE)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_block_blocks():
    run = subprocess.run([sys.executable, "-c", BLOCK + "import sf_fixpo.learner"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert "is blocked" in run.stderr


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("envs", ("sf_fixpo", "launcher", "benchmarks")),
        ("launcher", ("sf_fixpo.learner", "sf_fixpo.trust_region", "envs", "torch")),
    ],
)
def test_folders_do_not_import_upwards(folder, forbidden):
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports_of(path):
            assert not any(name == f or name.startswith(f + ".") for f in forbidden), f"{path} imports {name}"


def test_no_file_is_longer_than_it_should_be():
    folders = ("sf_fixpo", "envs", "launcher", "benchmarks", "tests")
    long = {str(p): n for f in folders for p in (ROOT / f).rglob("*.py") if (n := len(p.read_text().splitlines())) > 420}
    assert not long
