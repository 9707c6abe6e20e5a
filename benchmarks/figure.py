"""One of the paper's figures, made again: runs what is missing of it, then raw rows, picture and table.

    python -m benchmarks.figure 3 [--scale=smoke|laptop|paper] [--methods=fixpo,trpo] [--train_dir=train_dir]

1 to 8, and the sweeps of the text: robustness, batch, multitask, atari. Runs go through the launcher, side by side, and are
neither repeated nor begun anew: the same command goes on with a figure that was ended, and draws what has finished. Figure 4
reads runs of figure 3. Exit status: 0, 1 a run failed, 2 bad input, 130 and 143 ended by a signal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import drawing, plan, rows
from benchmarks.figures.plan import Planned
from sf_fixpo.launcher.backend import BackendError, JobOptions, find_backend
from sf_fixpo.launcher.driver import ALL_FINISHED, NOT_ALL_FINISHED, drive, make_ready
from sf_fixpo.launcher.run import INTERRUPTED, TERMINATED, launch
from sf_fixpo.launcher.sweep import FINISHED, Sweep, SweepError, describe_runs
from sf_fixpo.records.run_logs import LogError, read_trace

RESULTS = Path("benchmarks/results")


def make_runs(sweep: Sweep, wanted: Sequence[Planned], jobs: int) -> int:
    """Runs what has not finished, what others go on from first.

    Args:
        sweep: of the figure.
        wanted: its runs that are to be there.
        jobs: how many at a time; 0: as many as cores.

    Returns:
        ALL_FINISHED, NOT_ALL_FINISHED, or that of a signal.

    Raises:
        BackendError, SweepError: as the launcher.
    """
    cls = find_backend("local")
    parser = argparse.ArgumentParser()
    cls.add_args(parser)
    args = parser.parse_args([f"--max_parallel={jobs}"] if jobs else [])
    args.backend = "local"

    backend = cls(sweep, JobOptions(), args)

    def work() -> None:
        for stage in sorted({run.stage for run in wanted}):
            drive(backend, make_ready(sweep, [sweep.runs[plan.run_name(run)] for run in wanted if run.stage == stage]))

    status = launch(backend, work)
    if status in (INTERRUPTED, TERMINATED):
        return status
    # the launcher speaks of the whole sweep, of which only a part may have been asked for
    done = all(sweep.state(sweep.runs[plan.run_name(run)]).status == FINISHED for run in wanted)
    return ALL_FINISHED if done else NOT_ALL_FINISHED


def collect(sweep: Sweep, number: str, scale: str, wanted: Sequence[Planned]) -> list[dict[str, Any]]:
    """The rows of the runs that have finished, wherever they began."""
    found = []
    for run in wanted:
        if sweep.state(sweep.runs[plan.run_name(run)]).status == FINISHED:
            found += rows.run_rows(plan.run_folder(sweep.folder, run), number, scale, run)
    return found


def traces(sweep: Sweep, wanted: Sequence[Planned]) -> dict[str, list[dict[str, Any]]]:
    """By variant: the gradient steps of the first seed's traced updates (figure 2)."""
    return {run.variant: read_trace(plan.run_folder(sweep.folder, run)) for run in wanted if run.seed == 0}


def make(number: str, scale: str, methods: str, train_dir: Path, out: Path, jobs: int = 0) -> int:
    """Runs, writes and draws one figure.

    Returns:
        The exit status.

    Raises:
        plan.UnknownError, rows.VersionError, SweepError, BackendError, LogError: what the program answers with 2.
    """
    figure, _ = plan.find(number, scale)
    names = plan.chosen_variants(number, scale, methods)
    wanted = plan.selected(number, scale, names)
    csv = out / rows.csv_name(number, scale)
    before = rows.read(csv) if csv.is_file() else []  # refused before hours of runs, and not after
    folder, runs = describe_runs(plan.description(number, scale, train_dir), train_dir)
    sweep = Sweep.create(folder, runs, source=f"benchmarks.figure {number}")
    status = make_runs(sweep, wanted, jobs)
    found = collect(sweep, number, scale, wanted)
    # what another call has made of this figure stays
    mine = {(row["variant"], row["env"], row["seed"]) for row in found}
    found += [row for row in before if (row["variant"], row["env"], row["seed"]) not in mine]
    if not found:
        return status or NOT_ALL_FINISHED
    order = {(run.variant, run.env, run.seed): i for i, run in enumerate(plan.planned(number, scale))}
    found.sort(key=lambda row: (order.get((row["variant"], row["env"], row["seed"]), len(order)), row["steps"]))
    rows.write(csv, found)
    read = rows.read(csv)
    title = f"{figure.title} ({scale})"
    paths = drawing.save(drawing.draw(read, figure.draws, title), csv)
    if number == "2" and status == ALL_FINISHED:
        paths += drawing.save(drawing.draw_traces(traces(sweep, wanted), title), out / f"figure_2_{scale}_steps.png")
    text = drawing.table(read, figure.draws)
    csv.with_suffix(".md").write_text(text)
    print(text, end="")
    print("\n".join(map(str, [csv, csv.with_suffix(".md"), *paths])))
    return status


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figure", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("number", help=f"one of {', '.join(plan.FIGURES)}; or all, the eight figures in turn")
    parser.add_argument("--scale", default="smoke", help=f"one of {', '.join(plan.SCALES)}")
    parser.add_argument("--methods", default="", help="variants of the figure, comma-separated; all where none is named")
    parser.add_argument("--train_dir", type=Path, default=Path("train_dir"), help="where the runs go, and are looked for")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of CSV, table and pictures")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; 0: as many as cores")
    args = parser.parse_args(argv)
    numbers = [str(n) for n in range(1, 9)] if args.number == "all" else [args.number]
    status = 0
    try:
        for number in numbers:
            status = max(status, make(number, args.scale, args.methods, args.train_dir, args.out, args.jobs))
            if status in (INTERRUPTED, TERMINATED):
                break
    except (plan.UnknownError, rows.VersionError, SweepError, BackendError, LogError) as exc:
        print(f"benchmarks.figure: {exc}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
