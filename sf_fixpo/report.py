"""One HTML page about a run, or about the runs of a sweep grouped by what varies: it needs no network and no other file.

    python -m sf_fixpo.report DIR [DIR ...] [--out=report.html]

DIR is the folder of a run, of a sweep, or any folder that holds runs. Runs that differ by their seed alone are one group: mean
and 95 % interval. Settings are shown as `fixpo-hub` would publish them: no secrets, no paths of this machine.

Exit status: 0 written; 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sf_fixpo import cli
from sf_fixpo.hub import public_config
from sf_fixpo.records.report_data import RunData, group_runs, read_run
from sf_fixpo.records.report_page import make_page
from sf_fixpo.records.run_folders import find_runs, is_run, unique_names
from sf_fixpo.records.run_logs import LogError

_PROGRAM = "fixpo-report"


def read_runs(folders: Sequence[Path], policy_id: int) -> list[RunData]:
    """The runs in some folders. One of a sweep that has written nothing yet is left out, and that is said.

    Raises:
        LogError: a folder holds no run, or none that can be read; or a run that was named by itself cannot be.
    """
    paths = find_runs(folders)
    named = {folder.resolve() for folder in folders if is_run(folder)}
    runs, left_out = [], []
    for path, name in zip(paths, unique_names(paths), strict=True):
        try:
            runs.append(read_run(path, name, policy_id, lambda config, name=name: public_config(config, name)))
        except LogError as exc:
            if path in named:
                raise
            left_out.append(str(exc))
    if not runs:
        raise LogError("\n".join(left_out))
    for line in left_out:
        print(f"{_PROGRAM}: left out: {line}", file=sys.stderr)
    return runs


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="folder of a run, of a sweep, or that holds runs")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page; default: report.html")
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    args = cli.parse(parser, argv)
    if args.policy_id < 0:
        parser.error(f"--policy_id={args.policy_id}: must be an integer >= 0")
    try:
        page = make_page(group_runs(read_runs(args.dirs, args.policy_id)), time.strftime("%d %B %Y, %H:%M"))
        args.out.write_text(page, encoding="utf-8")
    except LogError as exc:
        for line in str(exc).splitlines():
            print(f"{_PROGRAM}: {line}", file=sys.stderr)
        return 2
    except OSError as exc:
        print(f"{_PROGRAM}: --out={args.out}: must be a file that can be written: {exc.strerror or exc}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
