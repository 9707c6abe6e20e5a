"""What must not stand in a tracked file, and what must be the same wherever it stands."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import sf_fixpo

ROOT = Path(__file__).resolve().parents[1]
# Written so that this file does not match itself.
HOSTS = "|".join(
    name + r"[a-z]*\.(?:org|com)" for name in ("(?:py" + "pi)", "python" + "hosted", "(?:deb" + "ian)", "(?:np" + "m)")
)
PLACES = r"(?:^|[^\w./-])/(?:wo" + r"rk|ho" + r"me/[a-z]+/sf_fixpo)/"


def tracked_texts():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if b"\0" not in data:
                yield name, data.decode()


@pytest.mark.parametrize("pattern", [HOSTS, PLACES], ids=["package registries", "paths of a machine"])
def test_no_tracked_file_names(pattern):
    found = [f"{name}: {match[0]}" for name, text in tracked_texts() if (match := re.search(pattern, text))]
    assert not found


@pytest.mark.parametrize(("text", "pattern"), [("https://py" + "pi.org/simple", HOSTS), ("cd /wo" + "rk/main", PLACES)])
def test_they_would_be_found(text, pattern):
    assert re.search(pattern, text)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sf_fixpo.__version__
    assert "Two-Phase KL Penalization" in citation["preferred-citation"]["title"]


def test_a_commit_is_linted_as_ci_does_it():
    [repo] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removesuffix(" --force-exclude").removeprefix("python -m ") for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text()
    assert [entry + (" ." if "check" in entry else " --check .") in makefile for entry in entries] == [True, True]


@pytest.mark.parametrize("program", ["train", "run", "evaluate", "enjoy", "audit", "plot", "hub", "demo"])
def test_every_program_says_its_version(program, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"sf_fixpo.{program}").main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"sf_fixpo \d+\.\d+\.\d+ \(sample-factory 2\.1\.1, torch \d\S*\)", capsys.readouterr().out.strip())
