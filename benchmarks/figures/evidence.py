"""What a claim is judged on: the rows of all figures at one scale, asked by figure, variant and task; and the three verdicts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.compare import difference
from benchmarks.figures.drawing import final, runs, scores, value
from benchmarks.figures.statistics import drawdown, pooled_difference

AGREES, DISAGREES, NOT_ENOUGH = "agrees", "disagrees", "not enough data"
# Fewer can show what every run does, and never that one variant is better: three against three cannot reach p < 0.05.
SEEDS_TO_COMPARE = 5  # of one task; of several, which are pooled, three
SEEDS_TO_DESCRIBE = 3
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """What the data say of one claim.

    Attributes:
        verdict: AGREES, DISAGREES or NOT_ENOUGH.
        why: the numbers, or what is missing.
    """

    verdict: str
    why: str


class MissingError(LookupError):
    """What a claim needs has not been run; the message says what."""


def decided(holds: bool, why: str) -> Finding:
    """One of the two verdicts that say something."""
    return Finding(AGREES if holds else DISAGREES, why)


class Evidence:
    """Rows by figure.

    Attributes:
        figures: rows of each figure that has any, by its number.
    """

    def __init__(self, figures: Mapping[str, Sequence[Row]]):
        self.figures = dict(figures)

    def rows(self, figure: str, variant: str = "", env: str = "", seeds: int = 1, frames: float = 0.0) -> list[Row]:
        """Of a figure's variant and task, where that is named.

        Args:
            figure: its number.
            variant: one of its variants; "" for all.
            env: one of its tasks; "" for all.
            seeds: how many there must be.
            frames: how far a run must have gone to be counted.

        Raises:
            MissingError: there are fewer.
        """
        of = [r for r in self.figures.get(figure, ()) if variant in ("", r["variant"]) and env in ("", r["env"])]
        reached: dict[tuple[str, str, int], float] = {}
        for row in of:
            key = row["variant"], row["env"], row["seed"]
            reached[key] = max(reached.get(key, 0.0), row["frames"])
        found = [r for r in of if reached[(r["variant"], r["env"], r["seed"])] >= frames]
        have = len({r["seed"] for r in found})
        if have < seeds:
            what = " ".join(filter(None, [f"figure {figure}", variant, env, f"of {frames:,.0f} frames" if frames else ""]))
            raise MissingError(f"{what}: {have} of {seeds} seeds")
        return found

    def scores(
        self,
        figure: str,
        variant: str,
        column: str = "return",
        seeds: int = SEEDS_TO_COMPARE,
        frames: float = 0.0,
        of: Any = final,
    ) -> dict[str, list[float]]:
        """By task: one number of each seed, for the tasks that have seeds enough.

        Raises:
            MissingError: none has.
        """
        found = scores(self.rows(figure, variant, seeds=seeds, frames=frames), column, of).get(variant, {})
        found = {env: values for env, values in found.items() if len(values) >= seeds}
        if not found:
            raise MissingError(f"figure {figure} {variant}: no task with {seeds} seeds of {column}")
        return found

    def total(self, figure: str, variant: str, column: str, env: str = "", seeds: int = SEEDS_TO_DESCRIBE) -> float:
        """Sum over the rows.

        Raises:
            MissingError: as `rows`.
        """
        return float(sum(row[column] or 0.0 for row in self.rows(figure, variant, env, seeds)))

    def per_update(
        self, figure: str, variant: str, column: str = "fixup_steps", env: str = "", seeds: int = SEEDS_TO_DESCRIBE
    ) -> float:
        """A count over the updates that were made.

        Raises:
            MissingError: as `rows`, or no update was logged.
        """
        updates = self.total(figure, variant, "updates", env, seeds)
        if not updates:
            raise MissingError(f"figure {figure} {variant}: no updates")
        return self.total(figure, variant, column, env, seeds) / updates


def larger(one: Sequence[float], other: Sequence[float]) -> tuple[int, str]:
    """1 where one's mean is larger by Welch's 95 % interval, -1 where it is smaller, 0 where that holds 0; and the numbers."""
    mean, half = difference(one, other)
    if math.isnan(half):
        # no spread at all: the means themselves
        return (int(np.sign(mean)) if len(one) > 1 and len(other) > 1 else 0), f"{mean:.4g}"
    return (0 if abs(mean) <= half else int(np.sign(mean))), f"{mean:.4g} ± {half:.3g}"


def larger_over_tasks(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> tuple[int, str]:
    """As `larger`, of the mean over tasks, each in units of its range, by a stratified bootstrap; of one task by Welch.

    Raises:
        MissingError: they have no task in common, or a single one with too few seeds.
    """
    common = [task for task in one if task in other]
    if not common:
        raise MissingError("no task that both have run with seeds enough")
    if len(common) == 1:
        if min(len(one[common[0]]), len(other[common[0]])) < SEEDS_TO_COMPARE:
            raise MissingError(f"one task with fewer than {SEEDS_TO_COMPARE} seeds")
        return larger(one[common[0]], other[common[0]])
    mean, low, high = pooled_difference(one, other)
    return (1 if low > 0 else -1 if high < 0 else 0), f"{mean:.3f} ({low:.3f} to {high:.3f}) of the range, {len(common)} tasks"


def settled(sign: int, wanted: int, why: str) -> Finding:
    """The verdict on an ordering: an interval that holds 0 says neither."""
    if sign == 0:
        return Finding(NOT_ENOUGH, f"{why}: the interval holds 0")
    return decided(sign == wanted, why)


def alike(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], share: float) -> Finding:
    """Whether two are equal, in every common task, up to a share of the other's mean.

    Settled where every interval lies within that share, or one of them outside.

    Raises:
        MissingError: they have no task in common.
    """
    common = [task for task in one if task in other]
    if not common:
        raise MissingError("no task that both have run with seeds enough")
    texts, inside, outside = [], 0, 0
    for task in common:
        mean, half = difference(one[task], other[task])
        half = 0.0 if math.isnan(half) else half
        margin = share * abs(float(np.mean(other[task])))
        inside += abs(mean) + half <= margin
        outside += abs(mean) - half > margin
        texts.append(f"{task} {mean:.4g} ± {half:.3g} (allowed {margin:.3g})")
    if inside < len(common) and not outside:
        return Finding(NOT_ENOUGH, f"{'; '.join(texts)}: the interval is wider than what is allowed")
    return decided(not outside, "; ".join(texts))


def at_share_of_steps(share: float) -> Any:
    """A curve's value where that share of its steps is done."""
    return lambda steps, values: float(np.interp(share * steps[-1], steps, values))


def at_seconds(rows: Sequence[Row], variant: str, column: str, seconds: float) -> dict[str, list[float]]:
    """By task: each seed's value once so many seconds have passed."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for row in rows:
        y = value(row, column)
        if row["variant"] == variant and y is not None and row["seconds"] is not None and row["seconds"] <= seconds:
            found.setdefault(row["env"], {})[row["seed"]] = (row["seconds"], y)
    return {env: [y for _, y in seeds.values()] for env, seeds in found.items()}


def drawdowns(rows: Sequence[Row], variant: str, envs: Collection[str]) -> dict[str, list[float]]:
    """By task: each seed's largest fall of the return."""
    found: dict[str, list[float]] = {}
    for (name, env, _), (_, returns) in runs(rows, "return").items():
        if name == variant and env in envs:
            found.setdefault(env, []).append(drawdown(list(returns)))
    return found
