"""DeepMind Lab as it is built: its old loader, builds that cannot be imported, and what is said about them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import REPO

from sf_fixpo.envs.dmlab import SUITE, listing, loader, names

# The first lines are those of DeepMind Lab's own loader.
UPSTREAM = """
import imp
import pkg_resources

imp.load_dynamic(__name__, pkg_resources.resource_filename(
    __name__, 'deepmind_lab.so'))
"""
PLAYED = """
import imp
import pkg_resources
assert pkg_resources.resource_filename(__name__, 'deepmind_lab.so') == __file__.replace('__init__.py', 'deepmind_lab.so')
assert callable(imp.load_dynamic)
from sf_fixpo.envs.dmlab.stand_in.engine import Lab
"""
# As Python 3.12 and setuptools 82 have it.
WITHOUT_IMP = """
import importlib.abc, importlib.util, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("imp", "pkg_resources"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("imp", "pkg_resources") else found(name, package)
sys.meta_path.insert(0, Block())
"""
NAME = "dmlab_30_rooms_collect_good_objects"


def build(folder: Path, text: str, name: str = "deepmind_lab") -> Path:
    """A package as DeepMind Lab's wheel installs it."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    return package


def python(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPO}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("before", ["", WITHOUT_IMP], ids=["this Python", "Python 3.12"])
def test_the_old_loader_loads_a_compiled_module_without_a_warning(tmp_path, before):
    """With a compiled module of Python's own in the place of deepmind_lab.so, under the name that it was compiled for."""
    source = next(path for path in Path(json.__file__).parents[1].glob("lib-dynload/_json*.so"))
    package = build(tmp_path / "later", UPSTREAM, "_json")
    shutil.copy(source, package / "deepmind_lab.so")
    code = before + (
        "import json, sys\nsys.path.insert(0, sys.argv[1])\nsys.modules.pop('_json', None)\n"
        "from sf_fixpo.envs.dmlab.loader import load\nmodule = load('_json')\n"
        "assert module is sys.modules['_json']\n"
        "print(module.__spec__.origin, module.scanstring('\"x\"', 1))\n"
        "assert 'pkg_resources' not in sys.modules"
    )
    done = python(
        tmp_path, "-W", "error", "-c", code + ("\nassert 'imp' not in sys.modules" if before else ""), str(tmp_path / "later")
    )
    assert done.stdout == f"{package / 'deepmind_lab.so'} ('x', 3)\n", done.stderr
    assert not done.stderr


def test_a_build_with_the_old_loader_is_taken_and_plays(tmp_path):
    build(tmp_path, PLAYED)
    code = """
import warnings
warnings.simplefilter("error", DeprecationWarning)
from sf_fixpo.envs.dmlab import engines
assert engines.installed_engines() == ("deepmind_lab", "vizdoom")
lab = engines.engine_module("deepmind_lab").Lab("contributed/dmlab30/rooms_collect_good_objects_train", ["RGB_INTERLEAVED"])
lab.reset(seed=1)
print(lab.observations()["RGB_INTERLEAVED"].shape, len(engines.sample_factory_tables().ACTION_SET))
lab.close()
"""
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2].endswith(" 9")


BROKEN = {
    "a shared library is missing": (
        "raise ImportError('libOSMesa.so.8: cannot open shared object file: No such file or directory')",
        "ImportError: libOSMesa.so.8: cannot open shared object file",
    ),
    "it is no compiled module": (UPSTREAM, "deepmind_lab.so"),
    "for another Python": ("import os; os.abort()", "its import ended the process with SIGABRT, status 134"),
    "its loader is of another kind": ("raise AttributeError('no such thing')", "AttributeError: no such thing"),
    "it ends the program": ("raise SystemExit(3)", "its import ended the process with exit code 3"),
    "a folder that has its name": ("", "has no attribute 'Lab'"),
}


@pytest.mark.parametrize(("text", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_build_that_cannot_be_imported_lacks_something(tmp_path, monkeypatch, text, cause):
    package = build(tmp_path, text)
    (package / "deepmind_lab.so").write_bytes(b"not a library")
    monkeypatch.syspath_prepend(tmp_path)
    assert loader.found("deepmind_lab")
    lack = loader.lack("deepmind_lab")
    assert lack is not None
    assert lack.startswith(f"is installed ({package / '__init__.py'}) but cannot be imported: ")
    assert cause in lack
    assert "\n" not in lack


def test_auto_says_why_it_takes_the_stand_in(tmp_path):
    build(tmp_path, BROKEN["a shared library is missing"][0])
    code = "import sys; from sf_fixpo import train; train.set_console_log_level('warning'); print(train.parse_cfg(sys.argv[1:]))"
    done = python(tmp_path, "-c", code, f"--env={NAME}", f"--train_dir={tmp_path / 'runs'}")
    assert done.returncode == 0, done.stderr
    assert "'dmlab_engine': 'vizdoom'" in done.stdout
    assert done.stderr.count("cannot be imported: ImportError: libOSMesa.so.8") == 1
    assert "takes the ViZDoom stand-in" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_build_that_is_asked_for_is_bad_input(tmp_path):
    build(tmp_path, BROKEN["a shared library is missing"][0])
    argv = ["-m", "sf_fixpo.train", f"--env={NAME}", "--dmlab_engine=deepmind_lab", f"--train_dir={tmp_path / 'runs'}"]
    done = python(tmp_path, *argv)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("fixpo-train: --dmlab_engine=deepmind_lab: it is installed (")
    assert "ImportError: libOSMesa.so.8" in line
    assert not (tmp_path / "runs").exists()


def test_the_list_has_all_thirty_levels_and_what_each_needs(tmp_path, monkeypatch):
    lines = listing()
    assert sum(line.startswith("dmlab_30_") for line in lines) == 29 + len(names.LEVEL_SETS), "and the sets"
    needed = {line.split()[0]: line.partition("  ")[2].strip() for line in lines}
    assert set(SUITE.env_names()) <= set(needed)
    if loader.lack("deepmind_lab"):
        assert needed[NAME] == needed["dmlab_30"] == "runs here", "the stand-in plays them all"
        assert needed["dmlab_30_lasertag_one_opponent_small"].startswith("runs here; simpler than the level: opponents")
        assert needed["dmlab_30_psychlab_continuous_recognition"].startswith("runs here; simpler than the level: plain colours")
    build(tmp_path, "raise ImportError('no library')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "no library) but" not in listing()[0]
    assert "cannot be imported: ImportError: no library" in listing()[0]


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "exit code 1"), (-6, "SIGABRT, status 134"), (134, "SIGABRT, status 134"), (-9, "SIGKILL, status 137")],
)
def test_exit_statuses_in_words(code, words):
    assert loader.ending(code) == words
