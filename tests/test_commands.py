"""What every program's command line has: its version, and completion in a shell."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from sf_fixpo import __version__, cli

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = [
    *sorted(target.partition(":")[0] for target in PROJECT["scripts"].values()),
    "sf_fixpo.demo",
    *(f"sf_fixpo.launcher.{name}" for name in ("run", "status", "resume", "stop", "job")),
    "sf_fixpo.envs.dmlab.cache.populate_cache",
    "sf_fixpo.envs.dmlab.measure",
]


@pytest.mark.parametrize("module", MODULES)
def test_every_program_prints_its_version(module, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--version"])
    try:
        status = importlib.import_module(module).main()
    except SystemExit as end:
        status = end.code
    assert not status
    captured = capsys.readouterr()
    assert captured.out == f"{cli.version_line()}\n"
    assert not captured.err


def test_the_version_names_what_the_package_stands_on():
    assert cli.version_line().startswith(f"sf_fixpo {__version__} (sample-factory 2.1.1, torch 2.")
    code = "import sys; from sf_fixpo import cli; print(cli.version_line()); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [cli.version_line(), "False"]


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("sf_fixpo.train", "fixpo-train --eps", {"--eps_kl"}),
        ("sf_fixpo.train", "fixpo-train --env=dmlab_30_rooms --dmlab_eng", {"--dmlab_engine"}),
        ("sf_fixpo.train", "fixpo-train --env=nothing_known --kl_s", {"--kl_stat"}),
        ("sf_fixpo.audit", "fixpo-audit --im", {"--import"}),
        ("sf_fixpo.launcher.run", "run --max_r", {"--max_retries"}),
    ],
)
def test_a_shell_gets_the_flags_that_begin_so(module, line, expected, tmp_path):
    """As the shell function of argcomplete asks for them."""
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {word.strip() for word in answer.read_text().splitlines()} == expected


def test_without_a_shell_that_asks_nothing_is_imported():
    code = "import sys; from sf_fixpo import cli; import argparse; cli.parse(argparse.ArgumentParser(), []); "
    done = subprocess.run([sys.executable, "-c", code + "assert 'argcomplete' not in sys.modules"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_the_programs_are_those_that_the_package_installs():
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
