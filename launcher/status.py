"""Shows how far a sweep is: `python -m sf_fixpo.launcher.status DIR [--watch] [--tail=RUN] [--json]`.

Exit status: 0; 2 bad input.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sf_fixpo.launcher.claims import holder
from sf_fixpo.launcher.flags import BadInputError, FlagParser, complain
from sf_fixpo.launcher.progress import tail_lines
from sf_fixpo.launcher.sweep import FAILED, FINISHED, QUEUED, RUNNING, STOPPED, Run, Sweep, SweepError

PROGRAM = "sf_fixpo.launcher.status"
# A run whose state says that it runs, and whose job is dead: the next launcher that looks takes it over.
LOST = "lost"
_STYLES = {FINISHED: "green", RUNNING: "cyan", FAILED: "bold red", LOST: "bold magenta", STOPPED: "yellow", QUEUED: "dim"}
_URGENCY = (LOST, FAILED, RUNNING, STOPPED, QUEUED, FINISHED)
_REFRESH_SECONDS = 1.0
_OTHER_LINES = 5  # of the display, beside one for each run


def look(sweep: Sweep, run: Run) -> dict[str, Any]:
    """Everything known of a run, as plain values: the fields of `RunState`, its name, its job; status `lost` for a dead job."""
    state = sweep.state(run)
    row = {"name": run.name, **asdict(state), "job_id": sweep.last_job(run)}
    if state.status == RUNNING and holder(sweep, run) is None and sweep.state(run).status == RUNNING:
        row["status"] = LOST
    return row


def _age(row: dict[str, Any], now: float) -> str:
    if row["started"] is None:
        return ""
    seconds = int((row["ended"] or now) - row["started"])
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}"


def make_table(sweep: Sweep, rows: list[dict[str, Any]], now: float, most: int = sys.maxsize) -> Group:
    """The table for people.

    Args:
        sweep: the sweep.
        rows: of `look`.
        now: seconds since 1970.
        most: how many runs are shown; where there are more, those that somebody may have to do something about come first.
    """
    shown = rows if len(rows) <= most else sorted(rows, key=lambda row: _URGENCY.index(row["status"]))[:most]
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("attempt", "exit", "steps", "return", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("host")
    table.add_column("why")
    for row in shown:
        table.add_row(
            Text(row["name"]),
            Text(row["status"], style=_STYLES[row["status"]]),
            str(row["attempt"] or ""),
            "" if row["exit_code"] is None else str(row["exit_code"]),
            f"{row['steps']:,}" if row["steps"] else "",
            "" if row["mean_return"] is None else f"{row['mean_return']:.4g}",
            _age(row, now),
            Text(row["host"]),
            Text(row["reason"]),
        )
    counts = Counter(row["status"] for row in rows)
    summary = ", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status])
    rest = [Text(f"and {len(rows) - len(shown)} more")] if len(shown) < len(rows) else []
    return Group(Text(f"{sweep.folder}: {summary}", style="bold"), table, *rest)


def _watch(sweep: Sweep, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = [look(sweep, run) for run in sweep.runs.values()]
            most = max(1, console.height - _OTHER_LINES) if console.is_terminal else sys.maxsize
            live.update(make_table(sweep, rows, time.time(), most), refresh=True)
            if all(row["status"] in (FINISHED, FAILED, STOPPED) for row in rows):
                return
            time.sleep(_REFRESH_SECONDS)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = FlagParser(PROGRAM, (__doc__ or "").split("\n", 1)[0])
    parser.add_argument("sweep", help="Folder of the sweep: <train_dir>/<name>")
    parser.add_argument("--watch", action="store_true", help="Until all runs have ended, or Ctrl-C")
    parser.add_argument("--tail", default="", metavar="RUN", help="Print the end of a run's log")
    parser.add_argument("--lines", default=20, type=int, help="Of the log, for --tail")
    parser.add_argument("--json", action="store_true", help="One JSON list, for programs")
    try:
        args = parser.parse(sys.argv[1:] if argv is None else argv)
        if args.lines < 1:
            parser.found.append(f"--lines={args.lines}: must be an integer >= 1")
        if parser.found:
            raise BadInputError("\n".join(parser.found))
        sweep = Sweep.load(args.sweep)
        if args.tail and args.tail not in sweep.runs:
            raise BadInputError(f"--tail={args.tail}: no run of {sweep.folder}; there are {', '.join(sweep.runs)}")
    except (BadInputError, SweepError) as exc:
        return complain(PROGRAM, exc)
    try:
        return _show(sweep, args)
    except SweepError as exc:
        return complain(PROGRAM, exc)


def _show(sweep: Sweep, args: Any) -> int:
    """What the flags ask for; returns the exit status."""
    if args.tail:
        print("\n".join(tail_lines(sweep.log_path(sweep.runs[args.tail]), args.lines)))
    elif args.json:
        print(json.dumps([look(sweep, run) for run in sweep.runs.values()], indent=1))
    elif args.watch:
        try:
            _watch(sweep, Console())
        except KeyboardInterrupt:
            return 0
    else:
        Console().print(make_table(sweep, [look(sweep, run) for run in sweep.runs.values()], time.time()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
