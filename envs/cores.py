"""How many cores there are to work on, asked in a way that every system answers."""

from __future__ import annotations

import os


def allowed_cores() -> int:
    """Logical cores that this process may use; where it cannot be told which (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
