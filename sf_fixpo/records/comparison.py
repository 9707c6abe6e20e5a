"""Several runs beside each other: what differs between their settings, which are repetitions of the same, means and intervals.

Shape symbols: R runs, n points of a curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# What is a run's own, and says nothing about how it was set up.
_OWN = frozenset(
    (
        "experiment",
        "train_dir",
        "cli_args",
        "command_line",
        "git_hash",
        "git_repo_name",
        "wandb_unique_id",
        "mlflow_run_id",
        "restart_behavior",
    )
)
REPETITION = "seed"  # the setting by which repetitions differ
_POINTS = 300  # of a curve that is drawn
# 97.5 % quantiles of Student's t, for 1, 2, ... degrees of freedom.
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_NORMAL = 1.959964


@dataclass(frozen=True)
class Band:
    """A curve of one run, or the mean of several.

    Attributes:
        x: [n]
        y: [n]
        half: [n] half width of the 95 % interval of the mean; None of one run.
    """

    x: np.ndarray
    y: np.ndarray
    half: np.ndarray | None = None


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t: by how many standard errors a 95 % interval extends.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom: must be at least 1")
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = _NORMAL  # Cornish and Fisher's expansion
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2) + third


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval by Student's t; NaN for the width of one value, and for both of none."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return (float(x[0]) if len(x) else math.nan), math.nan
    return float(x.mean()), float(t_quantile(len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same in all runs, in the order of the first; one that a run lacks differs."""
    names = dict.fromkeys(name for config in configs for name in config if name not in _OWN)
    return [name for name in names if len({value_text(config.get(name, ...)) for config in configs}) > 1]


def value_text(value: Any) -> str:
    """A setting as it is shown and compared; `...` stands for one that is not there."""
    if value is ...:
        return "(none)"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def group_names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each run is a repetition of: all settings that differ, but for the seed; "all runs" where nothing else does."""
    varied = [name for name in differing(configs) if name != REPETITION]
    names = [", ".join(f"{name}={value_text(config.get(name, ...))}" for name in varied) for config in configs]
    return [name or "all runs" for name in names]


def thin(x: np.ndarray, y: np.ndarray, worst: bool = False, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a curve, each for as many points of the original.

    Args:
        x: [n] sorted.
        y: [n]; what is no number is left out of a mean.
        worst: the largest value stands for its neighbours, instead of their mean; what is no number then stands for all of them.
        points: at most.
    """
    if len(x) <= points:
        return x, y
    parts = np.array_split(np.arange(len(x)), points)
    reduce = np.max if worst else np.mean

    def of_part(part: np.ndarray) -> float:
        known = y[part][np.isfinite(y[part])]
        return float(reduce(known)) if len(known) and not (worst and len(known) < len(part)) else math.nan

    return np.asarray([x[part[-1]] for part in parts]), np.asarray([of_part(part) for part in parts])


def combine(curves: Sequence[tuple[np.ndarray, np.ndarray]], worst: bool = False, points: int = _POINTS) -> Band | None:
    """The mean of curves over the steps that all have reached, with its interval; or the largest of them, over all steps.

    Args:
        curves: (x [n], y [n]) of each run, x sorted; empty ones do not count.
        worst: the largest at each step in place of the mean, without an interval.
        points: of the result, at most.

    Returns:
        None where no run has a point, or the runs have no steps in common to take a mean over.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    if len(curves) == 1:
        return Band(*thin(*curves[0], worst=worst, points=points))
    points = min(points, max(len(x) for x, _ in curves))
    if worst:
        x, y = (np.concatenate(parts) for parts in zip(*curves, strict=True))
        return Band(*_largest_between(x, y, points))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low > high:
        return None
    grid = np.linspace(low, high, points)
    values = np.asarray([np.interp(grid, *thin(x, y, points=points)) for x, y in curves])
    half = t_quantile(len(curves) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(curves))
    return Band(grid, values.mean(axis=0), half)


def _largest_between(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest of all values between one point of a grid and the next; a part without any has no point."""
    grid = np.linspace(x.min(), x.max(), points)
    cell = np.searchsorted(grid, x)
    largest = np.full(points, -np.inf)
    with np.errstate(invalid="ignore"):  # what is no number stays so
        np.maximum.at(largest, np.minimum(cell, points - 1), y)
    return grid[largest != -np.inf], largest[largest != -np.inf]


def last_tenth(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over the last tenth of a curve's steps; NaN of an empty one."""
    return float(y[x >= x[-1] - 0.1 * (x[-1] - x[0])].mean()) if len(x) else math.nan
