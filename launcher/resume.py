"""Goes on with a sweep: `python -m sf_fixpo.launcher.resume DIR [flags]`: what has not finished, from its checkpoints.

Where and how it ran last are the defaults of the flags. Exit status as for `launcher.run`.
"""

from __future__ import annotations

import argparse
import sys

from sf_fixpo.launcher.backend import Backend, BackendError
from sf_fixpo.launcher.driver import say
from sf_fixpo.launcher.flags import BadInputError, FlagParser, add_backend_args, add_job_args, complain, job_faults, job_options
from sf_fixpo.launcher.run import INTERRUPTED, import_search, run_search, run_sweep
from sf_fixpo.launcher.starting import algorithm_faults
from sf_fixpo.launcher.sweep import Sweep, SweepError, is_search

PROGRAM = "sf_fixpo.launcher.resume"


def parse(program: str, description: str, argv: list[str]) -> tuple[Sweep, argparse.Namespace, type[Backend]]:
    """A command line with a sweep's folder, whose flags default to those of its last launch.

    Raises:
        BadInputError: all faults in one message.
        SweepError: the folder is not that of a sweep.
        BackendError: the backend cannot be had.
    """
    first = FlagParser(program, description)
    first.add_argument("sweep", nargs="?")
    folder = first.parse_known_args(argv)[0].sweep if not {"-h", "--help"} & set(argv) else None
    sweep = Sweep.load(folder) if folder is not None else None
    backend_name, flags = sweep.last_launch() if sweep is not None else ("local", {})
    parser = FlagParser(program, description)
    parser.add_argument("sweep", help="Folder of the sweep: <train_dir>/<name>")
    add_job_args(parser)
    backend = add_backend_args(parser, argv, backend_name)
    known = vars(parser.parse_known_args([str(folder)])[0])
    parser.set_defaults(**{name: value for name, value in flags.items() if name in known})
    args = parser.parse(argv)
    found = parser.found + job_faults(args) + backend.faults(args)
    found += algorithm_faults(sweep.runs.values() if sweep is not None else (), args.ranks)
    if found or sweep is None:
        raise BadInputError("\n".join(found))
    return sweep, args, backend


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    try:
        sweep, args, backend = parse(PROGRAM, (__doc__ or "").split("\n", 1)[0], sys.argv[1:] if argv is None else argv)
        say(f"{len(sweep.runs)} runs in {sweep.folder}")
        made = backend(sweep, job_options(args), args)
        if not is_search(sweep):
            return run_sweep(made)
        return run_search(made, import_search().SearchOptions.load(sweep))
    except (BadInputError, BackendError, SweepError) as exc:
        return complain(PROGRAM, exc)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
