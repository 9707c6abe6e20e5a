"""docs/results.md out of the committed CSVs: what was run, and where it agrees with the paper.

python -m benchmarks.results_page            # writes docs/results.md
python -m benchmarks.results_page --check    # exits with 1 where it is not today's
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import read_figures
from benchmarks.figures import claims, drawing, evidence, plan, rows, statistics

PAGE = Path("docs/results.md")
_SCALES = ("laptop", "paper")  # the smoke scale says nothing
Row = Mapping[str, Any]

_HEAD = """# Results

Made by `python -m benchmarks.results_page` from the CSVs in `benchmarks/results/`; nothing here is written by hand. A figure
is made by `python -m benchmarks.figure N --scale=SCALE`, its claims are answered by `python -m benchmarks.claims --scale=SCALE`.

Means over seeds of the last tenth of the steps, and the half width of the 95 % interval by Student's t. No seed was chosen. An
ordering is settled by an interval that does not hold 0, on five seeds or more of one task, or three of several tasks pooled
(stratified bootstrap); "not enough data" is said of everything else, runs shorter than a claim speaks of included. Published
returns to put beside these are in [benchmarks.md](benchmarks.md).
"""


def planned_runs(number: str, scale: str) -> str:
    """What a figure would take, in words."""
    budget = plan.FIGURES[number].budgets[scale]
    return f"{len(plan.planned(number, scale))} runs of {budget.steps / 1e6:g}M frames"


def made_of(number: str, scale: str, found: Sequence[Row]) -> str:
    """What has been run of a figure: a line of how much of the plan, where and of which commit."""
    ran = {(row["variant"], row["env"], row["seed"]) for row in found}
    wanted = {(run.variant, run.env, run.seed) for run in plan.planned(number, scale)}
    missing = len(wanted - ran)
    commits = ", ".join(sorted({row["commit"][:9] for row in found}))
    machines = ", ".join(sorted({row["machine"] for row in found}))
    seeds = ", ".join(map(str, sorted({row["seed"] for row in found})))
    left = f"; {missing} of {len(wanted)} planned runs have not been made" if missing else ""
    return f"{len(ran)} runs, seeds {seeds}, commit {commits}, {machines}{left}."


def over_tasks(found: Sequence[Row], column: str) -> str:
    """How likely a run of the first variant is above one of each other's, over the tasks; "" without any."""
    by_variant = drawing.scores(found, column)
    if len(by_variant) < 2:
        return ""
    first, *others = by_variant
    lines = []
    for other in others:
        common = [task for task in by_variant[first] if task in by_variant[other]]
        if len(common) < 2:
            continue
        share = statistics.probability_of_improvement(by_variant[first], by_variant[other])
        lines.append(f"{other} {share:.2f}")
    return f"\nProbability that a run of {first} is above one of: {', '.join(lines)}.\n" if lines else ""


def section(number: str, scale: str, found: Sequence[Row]) -> str:
    """One figure."""
    figure = plan.FIGURES[number]
    title = f"### Figure {number}: {figure.title}" if number.isdigit() else f"### {figure.title}"
    table = drawing.table(found, figure.draws)
    return f"{title}\n\n{made_of(number, scale, found)}\n\n{table}{over_tasks(found, figure.draws)}"


def scale_part(scale: str, figures: Mapping[str, Sequence[Row]]) -> str:
    """Everything at one scale."""
    planned = [number for number, figure in plan.FIGURES.items() if scale in figure.budgets]
    left = [f"{number} ({planned_runs(number, scale)})" for number in planned if number not in figures]
    parts = [f"## Scale {scale}\n"]
    if not figures:
        return f"{parts[0]}\nNothing has been run: {', '.join(left)}.\n"
    parts += [section(number, scale, found) for number, found in figures.items()]
    if left:
        parts.append(f"### Not run\n\n{', '.join(left)}.\n")
    judged = claims.judge_all(figures)
    counts = [f"{sum(f.verdict == v for _, f in judged)} {v}" for v in (evidence.AGREES, evidence.DISAGREES, evidence.NOT_ENOUGH)]
    parts.append(f"### The paper's claims\n\n{', '.join(counts)}.\n\n{claims.table(judged)}")
    return "\n".join(parts)


def page(results: Path) -> str:
    """The whole page.

    Raises:
        rows.VersionError: a CSV is of another version, figure or scale.
    """
    return "\n".join([_HEAD, *(scale_part(scale, read_figures(results, scale)) for scale in _SCALES)])


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 where the page is not today's, 2 where a CSV is refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results_page", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the CSVs")
    parser.add_argument("--page", type=Path, default=PAGE, help="what is written")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is another")
    args = parser.parse_args(argv)
    try:
        text = page(args.results)
    except rows.VersionError as exc:
        print(f"benchmarks.results_page: {exc}", file=sys.stderr)
        return 2
    if args.check:
        if args.page.is_file() and args.page.read_text() == text:
            return 0
        print(f"{args.page} is not what the CSVs make: python -m benchmarks.results_page", file=sys.stderr)
        return 1
    args.page.write_text(text)
    print(args.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
