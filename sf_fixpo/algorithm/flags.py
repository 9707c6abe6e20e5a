"""A dataclass whose fields are flags: each with its default, its help, and what it may be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import Field, field
from typing import Any


def flag(default: Any, help_text: str, *, choices: tuple[str, ...] = (), allowed: str = "", valid: Callable | None = None) -> Any:
    """A field that is also a flag: `allowed` says in words what `valid` (of the value) asks for."""
    return field(default=default, metadata={"help": help_text, "choices": choices, "allowed": allowed, "valid": valid})


def positive(value: float) -> bool:
    """A finite number > 0."""
    return math.isfinite(value) and value > 0


def not_negative(value: float) -> bool:
    """A finite number >= 0."""
    return math.isfinite(value) and value >= 0


def at_least_one(value: float) -> bool:
    """A finite number >= 1."""
    return math.isfinite(value) and value >= 1


def add_flags(group: argparse._ArgumentGroup, fields: Iterable[Field]) -> None:
    """Adds one flag per field, plain text where a choice is wrong is left to `field_fault`."""
    for f in fields:
        choices = f.metadata["choices"]
        help_text = f.metadata["help"] + (f" {{{','.join(choices)}}}" if choices else "")
        group.add_argument(f"--{f.name}", default=f.default, type=type(f.default), help=help_text.replace("%", "%%"))


def field_fault(f: Field, value: Any) -> str | None:
    """What is wrong with the value of a field: the flag, the value, what is allowed."""
    choices, allowed, valid = (f.metadata[key] for key in ("choices", "allowed", "valid"))
    if choices and value not in choices:
        return f"--{f.name}={value}: must be one of {', '.join(choices)}"
    if valid is not None and not valid(value):
        return f"--{f.name}={value}: must be {allowed}"
    return None
