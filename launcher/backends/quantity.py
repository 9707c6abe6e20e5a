"""Amounts as Kubernetes writes them: 4, 500m, 16Gi."""

from __future__ import annotations

import re
from decimal import Decimal

_SUFFIXES = {"": 1.0, "m": 1e-3}
_SUFFIXES |= {letter: 1000.0**power for power, letter in enumerate("kMGTPE", start=1)}
_SUFFIXES |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")


def parse_quantity(text: str) -> float:
    """Reads an amount.

    Args:
        text: a number >= 0 with at most one suffix of m, k, M, G, T, P, E (powers of 1000) or Ki, Mi, Gi, Ti, Pi, Ei (of 1024).

    Returns:
        Units: bytes of memory, cores of a CPU.

    Raises:
        ValueError: it is none.
    """
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is not an amount such as 4, 500m or 16Gi")
    return float(found[1]) * _SUFFIXES[found[2]]


def memory_fault(flag: str, text: str) -> str | None:
    """What is wrong with an amount of memory, as a line that names the flag; None where nothing is."""
    try:
        amount = parse_quantity(text)
    except ValueError:
        amount = 0.0
    # 16m or 16 is what somebody writes who means megabytes or gigabytes
    if amount < 1024**2:
        return f"--{flag}={text}: must be an amount of memory of at least 1Mi, such as 16Gi"
    return None


def times(text: str, factor: int) -> str:
    """What several runs have of which one has `text`, a number and a unit; Slurm's `32G` too. The unit stays."""
    unit = text.lstrip("0123456789.")
    return f"{Decimal(text.removesuffix(unit)) * factor}{unit}"
