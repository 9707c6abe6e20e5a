"""Every fault, one by one, and the page about them.

    python -m benchmarks.faults [--only=async,learner] [--jobs=1] [--results=FILE.json] [--page=docs/faults.md]

A fault whose outcome is in `--results` is not tried again unless `--only` names it or it came out wrong. Some need the right to
mount (root): a full disk, a folder that cannot be written, a shared memory without room.

Exit status: 0 every outcome is as it must be, 1 one is not or is not known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.faults.page import page
from benchmarks.faults.plan import all_faults
from benchmarks.faults.trial import Outcome, attempt, read_outcomes


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="words, by commas, that a fault's name must hold")
    parser.add_argument("--jobs", type=int, default=1, help="faults that are tried at a time")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/faults.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/faults.md"))
    parser.add_argument("--keep", type=Path, help="folder for what was printed by the runs whose outcome is wrong")
    args = parser.parse_args(argv)
    words = [word for word in args.only.split(",") if word]
    known, lock = read_outcomes(args.results), threading.Lock()
    order = all_faults()
    chosen = [f for f in order if all(word in f.name for word in words)]
    todo = [f for f in chosen if words or f.name not in known or known[f.name].wrong]

    def save() -> None:
        rows = [asdict(known[f.name]) for f in order if f.name in known]
        temporary = args.results.with_suffix(".tmp")
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
        temporary.replace(args.results)
        args.page.write_text(page(known))

    def one(fault) -> None:
        try:
            outcome = attempt(fault, args.keep)
        except (RuntimeError, OSError, subprocess.SubprocessError) as exc:
            outcome = Outcome(fault.name, None, None, "", 0.0, (0, 0, 0), f"could not be tried: {str(exc)[:200]}")
            print(f"{fault.name}: {exc}", file=sys.stderr, flush=True)
        with lock:
            known[fault.name] = outcome
            save()
            noticed = "" if outcome.noticed is None else f", noticed after {outcome.noticed:.0f} s"
            print(f"{fault.name}: {outcome.wrong or 'as it must be'}{noticed}, exit {outcome.exit}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, todo))
    save()
    return int(any(fault.name not in known or known[fault.name].wrong for fault in chosen))


if __name__ == "__main__":
    sys.exit(main())
