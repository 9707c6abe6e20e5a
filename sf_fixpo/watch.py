"""Shows runs that were started elsewhere while they go on: steps, time left, return, trust region, phases, machine.

    python -m sf_fixpo.watch DIR [DIR ...] [--once]

DIR is the folder of a run, of a sweep, or any folder that holds runs. A few are shown side by side, many as a table; where the
output is no terminal, a line for each run every ten seconds. It reads what the runs write and disturbs nothing, and ends when all
of them have.

Exit status: 0; 2 bad input.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.live import Live

from sf_fixpo import cli
from sf_fixpo.records.follow import ALIVE, DEAD, ELSEWHERE, NOBODY, RunFollower, holder_of
from sf_fixpo.records.live import View, plain_line
from sf_fixpo.records.live_view import draw
from sf_fixpo.records.run_folders import find_runs, unique_names
from sf_fixpo.records.run_logs import LogError
from sf_fixpo.running.usage import UsageMeter

_PROGRAM = "fixpo-watch"
_TERMINAL_SECONDS, _PLAIN_SECONDS = 1.0, 10.0
_SEARCH_SECONDS = 10.0  # between searches for runs that have begun since


class Watch:
    """All runs in some folders, those too that begin later."""

    def __init__(self, folders: Sequence[Path], policy_id: int):
        """Finds the runs.

        Raises:
            LogError: a folder is not there, or holds no run.
        """
        self._folders, self._policy_id = folders, policy_id
        self._followers: dict[Path, RunFollower] = {}
        self._meters: dict[int, UsageMeter] = {}
        self._searched = 0.0
        self._search()

    def _search(self) -> None:
        paths = find_runs(self._folders)
        for path, name in zip(paths, unique_names(paths), strict=True):
            if path not in self._followers:
                self._followers[path] = RunFollower(path, name, self._policy_id)
        self._searched = time.monotonic()

    def look(self) -> list[View]:
        """Every run at this moment."""
        if time.monotonic() - self._searched > _SEARCH_SECONDS:
            try:
                self._search()
            except LogError:  # removed meanwhile: what was found before is still shown
                self._searched = time.monotonic()
        return [self._look(path, follower) for path, follower in self._followers.items()]

    def _look(self, path: Path, follower: RunFollower) -> View:
        holder = holder_of(path)
        if holder is None:
            return follower.look(NOBODY)
        if holder.host != socket.gethostname():
            return follower.look(ELSEWHERE)
        try:
            started = psutil.Process(holder.pid).create_time()
        except psutil.Error:
            return follower.look(DEAD)
        if holder.pid not in self._meters:
            self._meters[holder.pid] = UsageMeter(holder.pid)
        return replace(follower.look(ALIVE, started), usage=self._meters[holder.pid].latest)

    def close(self) -> None:
        """Ends what measures."""
        for meter in self._meters.values():
            meter.close()


def watch(runs: Watch, console: Console, once: bool) -> None:
    """Until all runs are over."""
    if not console.is_terminal:
        while True:
            views = runs.look()
            for view in views:
                console.print(f"{view.name}: {plain_line(view)}", highlight=False, soft_wrap=True, markup=False)
            if once or all(view.is_over for view in views):
                return
            time.sleep(_PLAIN_SECONDS)
    if once:
        console.print(draw(runs.look(), console.width, sys.maxsize))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            views = runs.look()
            live.update(draw(views, console.width, console.height), refresh=True)
            if all(view.is_over for view in views):
                return
            time.sleep(_TERMINAL_SECONDS)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="folder of a run, of a sweep, or that holds runs")
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    parser.add_argument("--once", action="store_true", help="look once, and end")
    args = cli.parse(parser, argv)
    if args.policy_id < 0:
        parser.error(f"--policy_id={args.policy_id}: must be an integer >= 0")
    try:
        runs = Watch(args.dirs, args.policy_id)
    except LogError as exc:
        for line in str(exc).splitlines():
            print(f"{_PROGRAM}: {line}", file=sys.stderr)
        return 2
    try:
        watch(runs, Console(), args.once)
    except KeyboardInterrupt:
        return 0
    finally:
        runs.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
