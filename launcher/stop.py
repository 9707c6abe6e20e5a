"""Stops a sweep: `python -m sf_fixpo.launcher.stop DIR [--only=RUN,RUN]`: its runs save a checkpoint and exit.

Exit status: 0 nothing of it runs any more; 1 something does; 2 bad input.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from sf_fixpo.launcher.backend import Backend, BackendError, find_backend
from sf_fixpo.launcher.claims import holder
from sf_fixpo.launcher.driver import say
from sf_fixpo.launcher.flags import BadInputError, FlagParser, add_job_args, complain, job_options
from sf_fixpo.launcher.job import settle
from sf_fixpo.launcher.sweep import STOPPED, Run, Sweep, SweepError

PROGRAM = "sf_fixpo.launcher.stop"
REASON = "sf_fixpo.launcher.stop"
# Beyond the time that a run gets to save: its job looks for the wish to stop twice a second, through a file server's cache.
_MARGIN_SECONDS = 15.0
_LOOK_SECONDS = 0.2


def stop(backend: Backend, runs: Sequence[Run], reason: str, timeout: float) -> list[Run]:
    """Asks the runs to stop, takes back the jobs that have not started, waits for the others, and then cancels those too.

    Args:
        backend: of the last launch.
        runs: to be stopped; those that have ended stay as they are.
        reason: in words.
        timeout: seconds that the runs get to save and exit.

    Returns:
        The runs that a job still holds.
    """
    sweep = backend.sweep
    runs = [run for run in runs if not sweep.state(run).has_ended]
    for run in runs:
        sweep.ask_to_stop(run, reason)
    backend.cancel([run for run in runs if holder(sweep, run) is None])
    deadline = time.monotonic() + timeout + _MARGIN_SECONDS
    while (runs := _not_settled(backend, runs, reason, timeout)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    if runs:
        backend.cancel(runs)
        time.sleep(_LOOK_SECONDS)
    return _not_settled(backend, runs, reason, 0.0)


def _not_settled(backend: Backend, runs: Sequence[Run], reason: str, timeout: float) -> list[Run]:
    sweep = backend.sweep
    left = []
    for run in runs:
        if not sweep.state(run).has_ended and not settle(sweep, run, STOPPED, reason, timeout):
            left.append(run)
    return left


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = FlagParser(PROGRAM, (__doc__ or "").split("\n", 1)[0])
    parser.add_argument("sweep", help="Folder of the sweep: <train_dir>/<name>")
    parser.add_argument("--only", default="", help="Names of runs, with commas between them; default: all")
    parser.add_argument("--stop_timeout", default=45.0, type=float, help="Seconds that a run gets to save before it is killed")
    try:
        args = parser.parse(sys.argv[1:] if argv is None else argv)
        if parser.found:
            raise BadInputError("\n".join(parser.found))
        sweep = Sweep.load(args.sweep)
        runs = list(sweep.runs.values())
        if args.only:
            unknown = [name for name in args.only.split(",") if name not in sweep.runs]
            if unknown:
                raise BadInputError(
                    "\n".join(f"--only={name}: no run of {sweep.folder}; there are {', '.join(sweep.runs)}" for name in unknown)
                )
            runs = [sweep.runs[name] for name in args.only.split(",")]
        backend = of_last_launch(sweep)
        left = stop(backend, runs, REASON, args.stop_timeout)
    except (BadInputError, BackendError, SweepError) as exc:
        return complain(PROGRAM, exc)
    for run in left:
        print(f"{PROGRAM}: {run.name}: still held by {holder(sweep, run)}", file=sys.stderr)
    stopped = sum(sweep.state(run).status == STOPPED for run in runs)
    go_on = f"python -m sf_fixpo.launcher.resume {sweep.folder}"
    say(f"{sweep.folder.name}: {stopped} of {len(runs)} runs are stopped; go on with: {go_on}")
    return 1 if left else 0


def of_last_launch(sweep: Sweep) -> Backend:
    """The backend of the sweep's last launch with its flags, for cancelling.

    Raises:
        BackendError: its library is not installed here.
    """
    name, flags = sweep.last_launch()
    cls = find_backend(name)
    parser = FlagParser(PROGRAM, "")
    add_job_args(parser)
    cls.add_args(parser)
    args = parser.parse([])
    for flag, value in flags.items():
        setattr(args, flag, value)
    return cls(sweep, job_options(args), args)


if __name__ == "__main__":
    sys.exit(main())
