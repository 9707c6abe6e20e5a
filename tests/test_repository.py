"""What must not stand in a tracked file, and what other tools read here."""

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from sf_fixpo import __version__

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


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0"])
def test_what_make_installs_is_for_every_python_that_readme_names(python):
    """A pin that wants 3.11.5 leaves Debian 12, which has 3.11.2, without `make demo`."""
    wanted = {dist.name: dist.metadata["Requires-Python"] for dist in distributions()}
    assert [f"{name} {spec}" for name, spec in wanted.items() if spec and python not in SpecifierSet(spec)] == []


def test_the_citation_follows_its_schema_and_names_this_version():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format", "CITATION.cff"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["title"] == "Guaranteed Trust Region Optimization via Two-Phase KL Penalization"
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == [
        "Zentner",
        "Puri",
        "Huang",
        "Sukhatme",
    ]


def test_a_commit_is_checked_by_what_make_lint_runs():
    """Hooks of this environment's programs: no versions beside those of constraints.txt."""
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    lint = (ROOT / "Makefile").read_text()
    for hook in repository["hooks"]:
        assert {"id", "name", "entry", "language"} <= hook.keys()
        assert hook["language"] == "system"
        command = re.match(r"python (-m [\w.]+( check| format)?)", hook["entry"])
        assert command is not None
        assert f"$(PY) {command[1]}" in lint, "and no other"
