"""The paper's twenty claims beside what has been run: agrees, disagrees or not enough data, from the figures' CSVs.

python -m benchmarks.claims [--scale=laptop] [--results=benchmarks/results]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import plan, rows
from benchmarks.figures.claims import judge_all, table


def read_figures(folder: Path, scale: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each figure that has a CSV.

    Raises:
        rows.VersionError: one of them is of another version, figure or scale.
        plan.UnknownError: there is no such scale.
    """
    if scale not in plan.SCALES:
        raise plan.UnknownError(f"--scale={scale}: must be one of {', '.join(plan.SCALES)}")
    found = {}
    for number in plan.FIGURES:
        path = folder / rows.csv_name(number, scale)
        if path.is_file() and (read := rows.read(path)):
            if (read[0]["figure"], read[0]["scale"]) != (number, scale):
                raise rows.VersionError(f"{path}: holds figure {read[0]['figure']} at scale {read[0]['scale']}")
            found[number] = read
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 where a CSV is refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scale", default="laptop", help=f"one of {', '.join(plan.SCALES)}")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the CSVs")
    args = parser.parse_args(argv)
    try:
        print(table(judge_all(read_figures(args.results, args.scale))), end="")
    except (rows.VersionError, plan.UnknownError) as exc:
        print(f"benchmarks.claims: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
