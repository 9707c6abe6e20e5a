"""Learning curves of a sweep's runs as one small CSV: what is committed of a study, and what its tables are made from.

    python -m benchmarks.curves DIR [DIR ...] --out=benchmarks/results/NAME.csv [--bins=35]

A row for each run and each part of its steps. `return` is the mean of what the runner logged there (each the mean of the latest
100 episodes), `seconds` the time since the run's first log entry, the others are means over the updates there, and `kl_max_rel`
the largest KL of a published policy over its bound; APPO has no update log, and its entropy is what sample-factory logs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sf_fixpo.records.run_logs import ENTROPY_TAG, RETURN_TAG, read_config, read_scalars
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows

COLUMNS = ("sweep", "variant", "env", "algo", "seed", "steps", "seconds", "return", "entropy", "kl_mean", "kl_max_rel")
COLUMNS += ("near_bound_fraction", "beta", "beta_of_mean", "beta_zero_fraction", "explained_variance")
COLUMNS += ("fixup_share", "backtracks", "lag_mean")
_MEANS = ("kl_mean", "near_bound_fraction", "beta_of_mean", "beta_zero_fraction", "lag_mean", "entropy", "explained_variance")


def find_runs(folder: Path) -> list[Path]:
    """The experiment folders of a sweep, or a folder that is one."""
    return sorted(path.parent for path in folder.rglob("config.json"))


def curve(folder: Path, sweep: str, variant: str, bins: int) -> Iterator[dict[str, Any]]:
    """The rows of one run."""
    config = read_config(folder)
    total = config["train_for_env_steps"]
    edges = np.linspace(0, total, bins + 1)
    returns, entropies = read_scalars(folder, RETURN_TAG), read_scalars(folder, ENTROPY_TAG)
    log = folder / UPDATE_LOG
    updates = latest_rows(log) if log.is_file() else []
    at = np.asarray([row["env_steps"] for row in updates], dtype=float)
    start = min((points[0, 1] for points in (returns, entropies) if len(points)), default=0.0)
    for low, high in pairwise(edges):
        row: dict[str, Any] = {"sweep": sweep, "variant": variant, "steps": int(high)}
        row |= {"env": config["env"], "algo": config["algo"], "seed": config["seed"]}
        inside = returns[(returns[:, 0] > low) & (returns[:, 0] <= high)]
        chosen = [updates[i] for i in np.flatnonzero((at > low) & (at <= high))]
        if len(inside):
            row |= {"return": inside[:, 2].mean(), "seconds": inside[-1, 1] - start}
        if chosen:
            row |= _update_figures(chosen)
        else:
            logged = entropies[(entropies[:, 0] > low) & (entropies[:, 0] <= high)]
            row |= {"entropy": logged[:, 2].mean()} if len(logged) else {}
        if len(row) > 6:
            yield row


def _update_figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    figures = {}
    for key in _MEANS:
        values = [np.mean(row[key]) for row in rows if row.get(key) is not None]
        if values:
            figures[key] = float(np.mean(values))
    figures["beta"] = float(np.mean([np.mean(row["beta"]) for row in rows]))
    figures["kl_max_rel"] = max(max(row["kl_max"], row["kl_max_stale"] or 0.0) / row["eps_kl"] for row in rows)
    figures["fixup_share"] = sum(row["fixup_steps"] for row in rows) / max(1, sum(row["primary_steps"] for row in rows))
    figures["backtracks"] = sum(row["backtracks"] for row in rows)
    return figures


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 where there is no run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="folder of a sweep")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--bins", type=int, default=35, help="parts of a run's steps, a row each")
    args = parser.parse_args(argv)
    rows = []
    for sweep in args.dirs:
        for run in find_runs(sweep):
            variant = (run.relative_to(sweep).parts or (run.name,))[0].rstrip("_")
            rows += curve(run, sweep.resolve().name, variant, args.bins)
    if not rows:
        print(f"benchmarks.curves: no run in {', '.join(map(str, args.dirs))}", file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
