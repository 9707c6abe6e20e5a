"""What there is to see of a run at a moment: figures of its latest updates, as plain values; and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sf_fixpo.records.update_log import kl_over_bound

WINDOW = 20  # updates that means and shares are of
HISTORY = 240  # updates that are kept for a picture
_BARS = "▁▂▃▄▅▆▇█"
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Usage:
    """What a run takes of its machine.

    Attributes:
        processes: of the run.
        cpu: all of them together, in cores.
        memory: all of them together, bytes.
        gpu: of the first device, in words; None without one.
    """

    processes: int
    cpu: float
    memory: int
    gpu: str | None = None


@dataclass(frozen=True)
class View:
    """A run at a moment; None where something is not known, or not yet.

    Attributes:
        name: of the run.
        what: algorithm and environment.
        state: `running`, `finished`, ... in words.
        steps: environment steps so far.
        target: steps at the end.
        fps: frames a second, lately.
        seconds_left: to the end.
        returns: the latest logged mean returns, oldest first.
        kl: KL over the bound, of the latest updates, oldest first.
        beta: the multiplier, of several tasks their mean, likewise.
        worst: the largest KL over the bound of all updates seen.
        fixup: fixup steps over primary steps, lately.
        lag: mean age of the samples, policy versions, lately.
        stale: share of stale states, lately.
        phases: mean seconds of an update by phase, lately.
        tasks: of the last update, by name.
        health: what is wrong by the last update.
        usage: of the machine.
    """

    name: str
    what: str = ""
    state: str = "starting"
    steps: int = 0
    target: int | None = None
    fps: float | None = None
    seconds_left: float | None = None
    returns: Sequence[float] = ()
    kl: Sequence[float] = ()
    beta: Sequence[float] = ()
    worst: float | None = None
    fixup: float | None = None
    lag: float | None = None
    stale: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    health: Sequence[str] = ()
    usage: Usage | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state not in ("running", "starting")


def duration_text(seconds: float | None) -> str:
    """A time as people read it: the two largest units, `5 d 0 h`, `3 h 12 min`, `45 s`; `-` where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    left = max(0, round(seconds))
    if left >= 600:
        left = 60 * round(left / 60)  # where minutes are the smallest that is shown
    index = next((i for i, (size, _) in enumerate(_UNITS) if left >= size), len(_UNITS) - 1)
    parts = []
    for size, unit in _UNITS[index : index + 2]:
        parts.append(f"{left // size} {unit}")
        left %= size
    # seconds beside many minutes are noise
    return parts[0] if len(parts) == 1 or (parts[1].endswith(" s") and int(parts[0].split()[0]) >= 10) else " ".join(parts)


def time_left(steps: float, target: float | None, fps: float | None, clock_left: float = math.inf) -> float | None:
    """Seconds to the end of a run, by its steps or by its clock, whichever is nearer; None where neither says anything."""
    by_steps = math.inf if not fps or target is None else max(0.0, target - steps) / fps
    nearest = min(by_steps, max(0.0, clock_left))
    return nearest if math.isfinite(nearest) and nearest < 1e9 else None


def sparkline(values: Sequence[float], width: int, low: float | None = None, high: float | None = None) -> str:
    """The course of some numbers in a line of blocks, `·` for what is no number.

    Args:
        values: oldest first.
        width: letters at most; each stands for the mean of its part.
        low: at the bottom; None for the least of them.
        high: at the top; None for the largest.
    """
    if not len(values):
        return ""
    parts = np.array_split(np.asarray(values, dtype=float), min(width, len(values)))
    means = [float(part.mean()) for part in parts]
    known = [value for value in means if math.isfinite(value)]
    if not known:
        return "·" * len(means)
    low, high = min(known) if low is None else low, max(known) if high is None else high
    scale = (len(_BARS) - 1) / ((high - low) or 1.0)

    def bar(value: float) -> str:
        return _BARS[min(len(_BARS) - 1, max(0, round((value - low) * scale)))] if math.isfinite(value) else "·"

    return "".join(map(bar, means))


def size_text(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a `View` that the latest rows of an update log say something about; none of no rows."""
    if not rows:
        return {}
    latest = rows[-WINDOW:]
    names = dict.fromkeys(name for row in latest for name in row.get("seconds", {}))
    return {
        "kl": [kl_over_bound(row) for row in rows],
        "beta": [float(np.mean(row["beta"])) for row in rows],
        "fixup": sum(row["fixup_steps"] for row in latest) / max(1, sum(row["primary_steps"] for row in latest)),
        "lag": _mean([row.get("lag_mean") for row in latest]),
        "stale": _mean([row.get("stale_fraction") for row in latest]),
        "phases": {name: math.fsum(row.get("seconds", {}).get(name, 0.0) for row in latest) / len(latest) for name in names},
        "tasks": rows[-1].get("tasks", {}),
        "health": rows[-1].get("health", ()),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def number_text(value: float | None, form: str) -> str:
    """A number, or `-` where it is not known."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def plain_line(view: View) -> str:
    """A view in one line, for where the output is no terminal; `launcher.progress` reads steps and return from it."""
    goal = "" if view.target is None else f"/{view.target:,}"
    parts = [
        f"{view.steps:,}{goal} steps",
        f"{number_text(view.fps, ',.0f')} FPS",
        f"return {number_text(view.returns[-1] if len(view.returns) else None, '.2f')}",
    ]
    if len(view.kl):
        parts += [f"KL/eps {view.kl[-1]:.2f}", f"beta {view.beta[-1]:.3g}"]
    parts += [view.state] if view.is_over else [f"{duration_text(view.seconds_left)} left"]
    return " | ".join([*parts, *view.health])
