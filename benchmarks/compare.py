"""Variants of a study side by side, from the curves that are committed: means over seeds with intervals by Student's t.

    python -m benchmarks.compare benchmarks/results/demo_claim.csv --variants=fixpo,appo --threshold=8
    python -m benchmarks.compare benchmarks/results/mujoco_tuned_claim.csv --variants=fixpo,appo --references=Hopper:2483

The second pools tasks: of each variant the runs `<variant>_<task>`, their returns divided by the reference of the task, the
interquartile mean with its interval by the stratified bootstrap, and how likely a run of the first is above one of another.

A figure of a run is one number; what is shown of a variant is its mean over runs and the half width of its 95 % interval. The
difference of two variants, the first and another, is by Welch's t, which does not take their spreads for equal; runs of the same
seed are no pairs: those of asynchronous samplers are independent, whatever their seed.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.figures.statistics import pooled_iqm, probability_of_improvement

_LEVEL = 0.95


@dataclass(frozen=True)
class Curve:
    """A run as `benchmarks.curves` writes it, where a return was logged.

    Attributes:
        seed: of the run.
        steps: [n] end of each part.
        seconds: [n] since the run's first log entry.
        returns: [n] mean return in each part.
        fixup_share: fixup steps over primary steps, over the run; not a number for another algorithm.
        kl_max_rel: largest KL of a published policy over its bound; likewise.
    """

    seed: int
    steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray
    fixup_share: float
    kl_max_rel: float

    @property
    def last(self) -> float:
        """Mean return over the last tenth of the steps."""
        return float(self.returns[self.steps > 0.9 * self.steps[-1]].mean())

    @property
    def best(self) -> float:
        """The largest of the returns."""
        return float(self.returns.max())

    @property
    def fall(self) -> float:
        """Largest loss on the way, as a share of the best return before it, once half of the best is reached."""
        so_far = np.maximum.accumulate(self.returns)
        counted = so_far > 0.5 * self.best
        return float(((so_far - self.returns) / np.where(counted, so_far, 1.0))[counted].max()) if counted.any() else 0.0

    def _first(self, of: np.ndarray, threshold: float) -> float:
        reached = np.flatnonzero(self.returns >= threshold)
        return float(of[reached[0]]) if len(reached) else math.inf

    def steps_to(self, threshold: float) -> float:
        """Steps at the end of the first part with such a return; infinite where there is none."""
        return self._first(self.steps, threshold)

    def seconds_to(self, threshold: float) -> float:
        """Seconds until then; infinite where there is none."""
        return self._first(self.seconds, threshold)

    def at_time(self, seconds: float) -> float:
        """The return of the last part that had ended by then."""
        done = np.flatnonzero(self.seconds <= seconds)
        return float(self.returns[done[-1]]) if len(done) else math.nan


def read(path: Path, variant: str) -> list[Curve]:
    """The runs of a variant, by seed.

    Raises:
        ValueError: there are none; the message has the variants that there are.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs: dict[int, list[dict[str, str]]] = {}
    for row in rows:
        if row["variant"] == variant:
            runs.setdefault(int(row["seed"]), []).append(row)
    if not runs:
        raise ValueError(f"{path}: no variant {variant}; it has {', '.join(sorted({row['variant'] for row in rows}))}")
    return [_curve(seed, runs[seed]) for seed in sorted(runs)]


def _curve(seed: int, rows: list[dict[str, str]]) -> Curve:
    def column(name: str, of: list[dict[str, str]]) -> np.ndarray:
        return np.asarray([float(row[name]) for row in of if row[name]])

    logged = [row for row in rows if row["return"]]
    shares, worst = column("fixup_share", rows), column("kl_max_rel", rows)
    return Curve(
        seed=seed,
        steps=column("steps", logged),
        seconds=column("seconds", logged),
        returns=column("return", logged),
        fixup_share=float(shares.mean()) if len(shares) else math.nan,
        kl_max_rel=float(worst.max()) if len(worst) else math.nan,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its interval by Student's t; the width of one value is not a number."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return float(x.mean()), math.nan
    return float(x.mean()), float(stats.t.ppf((1 + _LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Difference of two means, and half width of its interval by Welch's t; not a number where one has a single value."""
    mean = float(np.mean(one) - np.mean(other))
    if min(len(one), len(other)) < 2 or np.std(one) + np.std(other) == 0.0:
        return mean, math.nan
    with warnings.catch_warnings():
        # scipy warns of a sample whose values are all but equal, as where every seed has the highest return that there is
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = stats.ttest_ind(one, other, equal_var=False).confidence_interval(_LEVEL)
    return mean, float(high - low) / 2


def _shown(mean: float, half: float, digits: int = 2) -> str:
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def _variant_row(name: str, curves: list[Curve], threshold: float, seconds: float) -> str:
    there = [curve for curve in curves if math.isfinite(curve.steps_to(threshold))]
    cells = [
        name,
        str(len(curves)),
        _shown(*interval([curve.last for curve in curves])),
        _shown(*interval([curve.at_time(seconds) for curve in curves])),
        f"{_shown(*interval([curve.steps_to(threshold) / 1e6 for curve in there]))} ({len(there)} of {len(curves)})"
        if there
        else f"none of {len(curves)}",
        _shown(*interval([curve.seconds_to(threshold) for curve in there]), digits=0) if there else "",
        f"{100 * max(curve.fall for curve in curves):.0f} %",
        "" if math.isnan(curves[0].fixup_share) else f"{100 * max(curve.fixup_share for curve in curves):.2f} %",
        "" if math.isnan(curves[0].kl_max_rel) else f"{max(curve.kl_max_rel for curve in curves):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(variants: dict[str, list[Curve]], threshold: float) -> str:
    """The variants, and what lies between the first and each other, in Markdown."""
    # at equal time: when the fastest of all runs was done
    seconds = min(curve.seconds[-1] for curves in variants.values() for curve in curves)
    heads = ["variant", "runs", "return, last tenth", f"return at {seconds:.0f} s", f"M steps to {threshold:g} (reached by)"]
    heads += [f"seconds to {threshold:g}", "largest fall", "most fixup / primary steps", "worst KL / eps_kl"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [_variant_row(name, curves, threshold, seconds) for name, curves in variants.items()] + [""]
    (one, first), *others = variants.items()
    for other, second in others:
        last = difference([curve.last for curve in first], [curve.last for curve in second])
        timed = difference([curve.at_time(seconds) for curve in first], [curve.at_time(seconds) for curve in second])
        line = f"{one} - {other}: {_shown(*last)} at equal steps, {_shown(*timed)} at equal time"
        steps = [np.mean([curve.steps_to(threshold) for curve in curves]) for curves in (first, second)]
        if np.isfinite(steps).all():
            line += f"; {one} takes {steps[0] / steps[1]:.2f} of the steps to {threshold:g}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def pooled(variants: dict[str, dict[str, list[float]]], references: dict[str, float]) -> str:
    """Tasks put together, in Markdown.

    Args:
        variants: by name and task, the returns of the runs.
        references: by task, the return that counts as 1.
    """
    tasks = list(references)
    heads = ["variant", *(f"{task} / {references[task]:g}" for task in tasks), "interquartile mean (95 %)", "runs"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    scores = {
        name: {task: [value / references[task] for value in by_task[task]] for task in tasks}
        for name, by_task in variants.items()
    }
    for name, by_task in scores.items():
        middle, low, high = pooled_iqm(by_task)
        cells = [name, *(_shown(*interval(by_task[task])) for task in tasks), f"{middle:.2f} ({low:.2f}-{high:.2f})"]
        lines.append(f"| {' | '.join([*cells, str(sum(map(len, by_task.values())))])} |")
    (one, first), *others = scores.items()
    lines += [""]
    lines += [
        f"a run of {one} is above one of {other} with probability {probability_of_improvement(first, second):.2f}"
        for other, second in others
    ]
    return "\n".join(lines) + "\n"


def _references(text: str) -> dict[str, float]:
    pairs = [part.partition(":") for part in text.split(",")]
    return {task: float(value) for task, _, value in pairs}


def _compared(args: argparse.Namespace, names: Sequence[str]) -> str:
    if args.references is None:
        return table({name: read(args.csv, name) for name in names}, args.threshold)
    return pooled(
        {name: {task: [run.last for run in read(args.csv, f"{name}_{task}")] for task in args.references} for name in names},
        args.references,
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 where a variant or the file is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("csv", type=Path, help="what benchmarks.curves has written")
    parser.add_argument(
        "--variants", default="fixpo,appo", help="two or more of them, comma-separated; the first beside each other"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--threshold", type=float, help="a return, to be reached")
    what.add_argument(
        "--references", type=_references, metavar="TASK:RETURN,...", help="pool these tasks, their returns in these units"
    )
    args = parser.parse_args(argv)
    names = list(dict.fromkeys(args.variants.split(",")))
    if len(names) < 2:
        parser.error(f"--variants={args.variants}: two or more, comma-separated")
    try:
        print(_compared(args, names), end="")
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    return 0


if __name__ == "__main__":
    sys.exit(main())
