"""What must not stand in a tracked file."""

import re
import subprocess
from pathlib import Path

import pytest

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
