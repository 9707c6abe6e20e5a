"""`make fuzz` writes how many inputs each test has had, from whatever process, to build/fuzz_counts.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import COUNTS, INPUTS

_FILE = Path(__file__).resolve().parents[2] / "build" / "fuzz_counts.txt"


@pytest.fixture(autouse=True)
def _counted() -> Iterator[None]:
    """A line for each test of a large run; every test must have looked at something."""
    COUNTS.clear()
    yield
    assert COUNTS, "no input was counted"
    if INPUTS:
        _FILE.parent.mkdir(exist_ok=True)
        with _FILE.open("a") as file:
            file.writelines(f"{count} {name}\n" for name, count in COUNTS.items())
