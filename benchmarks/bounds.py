"""Who bounds what: how far the policies that each run deployed had moved, by its update log; a markdown table.

    python -m benchmarks.bounds train_dir/fixpo train_dir/trpo ...

Every row is of the same measurement: the KL, in nats, of what actors load from what collected the batch, at every state of it,
in eval mode, statistics of the normaliser included: in the first update of a run these alone go far where nothing holds them.
Runs of `--algo=APPO` write no update log.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sf_fixpo.records.run_logs import LogError, read_experiment

HEAD = (
    "run",
    "algorithm",
    "updates",
    "worst state KL / eps_kl",
    "from the 2nd update on",
    "updates over eps_kl",
    "median worst state KL",
    "largest mean KL",
    "median mean KL",
    "seconds an update",
    "last logged return",
)


def cells(name: str, algo: str, rows: Sequence[dict[str, Any]], last_return: float | None) -> tuple[str, ...]:
    """One run's line.

    Args:
        name: of the run.
        algo: of the run.
        rows: its update log, one at least.
        last_return: None where no episode has ended.
    """
    worst = [max(row["kl_max"], row["kl_max_stale"] or 0.0) for row in rows]
    relative = [kl / row["eps_kl"] for kl, row in zip(worst, rows, strict=True)]
    seconds = statistics.median(sum(row["seconds"].values()) for row in rows)
    return (
        name,
        algo,
        f"{len(rows):,}",
        f"{max(relative):.3f}",
        f"{max(relative[1:]):.3f}" if rows[1:] else "none",
        f"{sum(kl > 1 for kl in relative) / len(rows):.1%}",
        f"{statistics.median(worst):.4f}",
        f"{max(row['kl_mean'] for row in rows):.4f}",
        f"{statistics.median(row['kl_mean'] for row in rows):.4f}",
        f"{seconds:.3f}",
        "none" if last_return is None else f"{last_return:.1f}",
    )


def table(folders: Sequence[Path]) -> str:
    """Of all runs, in the order given.

    Raises:
        LogError: a folder holds no run, or its update log is missing or empty.
    """
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for folder in folders:
        run = read_experiment(folder)
        if not run.rows:
            raise LogError(f"{folder}: no update log (APPO writes none), or nothing in it")
        last = float(run.returns[-1]) if len(run.returns) else None
        lines.append(f"| {' | '.join(cells(run.name, str(run.config['algo']), run.rows, last))} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bounds", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of runs")
    try:
        print(table(parser.parse_args(argv).folders))
    except LogError as exc:
        print(f"benchmarks.bounds: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
