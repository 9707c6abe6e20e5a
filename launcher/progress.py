"""How far a training is, read cheaply from the ends of the files it writes."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf_fixpo.launcher.files import NUMBER, is_of

UPDATE_LOG = "updates.jsonl"

# A row of a run on thirty tasks has some 5,000 bytes.
_TAIL_BYTES = 65536
_STEPS = re.compile(rb"([\d,]+)/[\d,]+ steps")
# In the progress lines, and in the closing table between two bars.
_RETURN = re.compile(rb"\breturn[^\w.\-\n]+(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Progress:
    """What a run's files say.

    Attributes:
        steps: environment steps; 0 where none are known yet.
        mean_return: latest mean episode return; None where none is known yet.
    """

    steps: int = 0
    mean_return: float | None = None


def tail(path: Path, size: int = _TAIL_BYTES) -> bytes:
    """The last `size` bytes of a file; nothing where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read()
    except FileNotFoundError:
        return b""


def tail_lines(path: Path, lines: int) -> list[str]:
    """The last lines of a text file."""
    return tail(path).decode(errors="replace").splitlines()[-lines:] if lines > 0 else []


def read_progress(folder: Path, log: Path) -> Progress:
    """Reads the update log, and the run's output for what is not there (APPO writes no update log).

    Args:
        folder: of the experiment.
        log: the run's output.
    """
    row = _last_row(tail(folder / UPDATE_LOG))
    steps, mean_return = _number(row.get("env_steps")), _row_return(row)
    if steps is None or mean_return is None:
        output = tail(log)
        if steps is None and (found := _STEPS.findall(output)):
            steps = int(found[-1].replace(b",", b""))
        if mean_return is None and (found := _RETURN.findall(output)):
            mean_return = float(found[-1])
    return Progress(int(steps or 0), mean_return)


def _last_row(data: bytes) -> dict[str, Any]:
    # behind the last line feed a row may be half written; before the first one in the tail a row may be cut
    for line in reversed(data.split(b"\n")[:-1]):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        return row if isinstance(row, dict) else {}
    return {}


def _row_return(row: dict[str, Any]) -> float | None:
    if (own := _number(row.get("return"))) is not None:
        return own
    tasks = row.get("tasks")
    returns = [task.get("return") for task in (tasks.values() if isinstance(tasks, dict) else ()) if isinstance(task, dict)]
    found = [number for value in returns if (number := _number(value)) is not None]
    return sum(found) / len(found) if found else None


def _number(value: Any) -> float | None:
    """A finite number that a damaged row has too; None where it is none."""
    return float(value) if is_of(value, NUMBER) else None


class Activity:
    """Notices when a run does nothing any more: neither a new update nor a line of output."""

    def __init__(self, *paths: Path):
        """Watches files, there or not yet."""
        self._paths = paths
        self._seen = self._sizes()
        self._moved_at = time.monotonic()

    def idle_seconds(self) -> float:
        """How long none of the files has grown, as far as the calls of this could see."""
        sizes = self._sizes()
        if sizes != self._seen:
            self._seen, self._moved_at = sizes, time.monotonic()
        return time.monotonic() - self._moved_at

    def _sizes(self) -> list[int]:
        sizes = []
        for path in self._paths:
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                sizes.append(0)
        return sizes
