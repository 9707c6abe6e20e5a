"""Starts a sweep: `python -m sf_fixpo.launcher.run --run=sf_fixpo.launcher.sweeps.<name> --train_dir=DIR [flags]`.

Exit status: 0 every run finished; 1 a run failed or was stopped; 2 bad input, nothing was started; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sf_fixpo.launcher.backend import Backend, BackendError
from sf_fixpo.launcher.driver import conclude, drive, make_ready, say
from sf_fixpo.launcher.flags import (
    BadInputError,
    FlagParser,
    add_backend_args,
    add_job_args,
    add_search_args,
    complain,
    job_faults,
    job_options,
    search_faults,
)
from sf_fixpo.launcher.starting import algorithm_faults
from sf_fixpo.launcher.sweep import Sweep, SweepError, describe_runs, program_faults

if TYPE_CHECKING:
    from sf_fixpo.launcher.search import SearchOptions

PROGRAM = "sf_fixpo.launcher.run"
INTERRUPTED, TERMINATED = 130, 143
# Flags that say what, not how: `resume` does not take them from the last launch.
_WHAT = ("run", "train_dir", "experiment_suffix", "backend", "sweep", "search")


class _TerminatedError(BaseException):
    """SIGTERM reached the launcher."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, with _TerminatedError."""

    def end(*_: Any) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def find_sweep_module(module_name: str) -> Any:
    """Imports a module with a `RUN_DESCRIPTION`.

    Raises:
        BadInputError: there is no such module, or nothing in it that describes runs.
    """
    if not module_name:
        raise BadInputError("--run: say which sweep, such as --run=sf_fixpo.launcher.sweeps.paper_figures")
    name = module_name.removesuffix(".py").replace("/", ".")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise BadInputError(f"--run={module_name}: cannot be imported: {exc}") from exc
    if not hasattr(getattr(module, "RUN_DESCRIPTION", None), "generate_experiments"):
        raise BadInputError(
            f"--run={module_name}: the module has no RUN_DESCRIPTION; it must hold one, a RunDescription of sample-factory"
        )
    return module


def launch(backend: Backend, work: Callable[[], None]) -> int:
    """Does the work of a launch, and ends whatever must not outlive it.

    Args:
        backend: of the sweep.
        work: runs it; may add runs to the sweep.

    Returns:
        The launcher's exit status.

    Raises:
        BackendError: the backend's engine refused.
        SweepError: another launcher has the search.
    """
    sweep = backend.sweep
    flags = {name: value for name, value in vars(backend.args).items() if name not in _WHAT}
    sweep.save_launch(backend.args.backend, flags)
    started = time.monotonic()
    interrupted = None
    try:
        with sigterm_raises():
            try:
                work()
            finally:
                backend.close()
    except KeyboardInterrupt:
        interrupted = INTERRUPTED
    except _TerminatedError:
        interrupted = TERMINATED
    if not backend.attached:
        return interrupted or 0
    return interrupted or conclude(sweep, sweep.runs.values(), started)


def run_sweep(backend: Backend) -> int:
    """Runs what has not finished to its end.

    Returns:
        The launcher's exit status.
    """
    return launch(backend, lambda: drive(backend, make_ready(backend.sweep, backend.sweep.runs.values())))


def run_search(backend: Backend, options: SearchOptions) -> int:
    """Searches until the trials are used up.

    Returns:
        The launcher's exit status.
    """
    from sf_fixpo.launcher.search import Search

    if not backend.attached:
        raise BadInputError(
            "--search=optuna: needs a launcher that stays until the end, and these flags of the backend let it leave"
        )
    search = Search(backend, options)
    status = launch(backend, search.search)
    search.print_best()
    return status


def import_search() -> ModuleType:
    """The module that needs Optuna.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        return importlib.import_module("sf_fixpo.launcher.search")
    except ModuleNotFoundError as exc:
        raise BadInputError(f"--search=optuna: needs {exc.name}; pip install 'sf_fixpo[search]'") from exc


def _parse(argv: list[str]) -> tuple[argparse.Namespace, type[Backend]]:
    parser = FlagParser(PROGRAM, (__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--run", default="", help="Module with a RUN_DESCRIPTION")
    parser.add_argument("--train_dir", default="train_dir", help="Where the sweep's folder goes; the same path on every host")
    parser.add_argument("--experiment_suffix", default="", help="Appended to the folders of the experiments")
    add_job_args(parser)
    add_search_args(parser)
    backend = add_backend_args(parser, argv)
    args = parser.parse(argv)
    found = parser.found + job_faults(args) + search_faults(args) + backend.faults(args)
    if found:
        raise BadInputError("\n".join(found))
    return args, backend


def _start(argv: list[str]) -> int:
    args, cls = _parse(argv)
    module = find_sweep_module(args.run)
    description = module.RUN_DESCRIPTION
    description.experiment_suffix = args.experiment_suffix
    if args.search:
        options = import_search().SearchOptions.of(module, args)
        folder = Path(args.train_dir) / f"{description.run_name}_search"
        sweep = Sweep.load(folder) if Sweep(folder, ()).manifest_path.exists() else Sweep.create(folder, (), source=args.run)
        options.save(sweep)
        return run_search(cls(sweep, job_options(args), args), options)
    folder, runs = describe_runs(description, args.train_dir)
    found = program_faults(runs, os.getcwd()) if args.backend == "local" else []
    if found := found + algorithm_faults(runs, args.ranks):
        raise BadInputError("\n".join(found))
    sweep = Sweep.create(folder, runs, source=args.run)
    say(f"{len(sweep.runs)} runs in {sweep.folder}")
    return run_sweep(cls(sweep, job_options(args), args))


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    try:
        return _start(sys.argv[1:] if argv is None else argv)
    except (BadInputError, BackendError, SweepError) as exc:
        return complain(PROGRAM, exc)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
