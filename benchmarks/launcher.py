"""What the launcher itself costs: a sweep of runs that do nothing, on the local backend, beside starting them and nothing else.

    python -m benchmarks.launcher --runs=200

The bar is 50 ms of launcher time a run. Printed are the processor time of the launcher and, because it also waits for the disk,
the time by the clock, with one run at a time and nothing else to do meanwhile.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.backends.local import LocalBackend
from sf_fixpo.launcher.driver import conclude, drive
from sf_fixpo.launcher.sweep import Run, Sweep

NOTHING = ("true",)


def time_of(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of this process's own processor time."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_sweep(folder: Path, runs: int) -> int:
    """The sweep, one run at a time.

    Returns:
        The exit status of the launcher.
    """
    sweep = Sweep.create(folder, [Run(f"noop_{number:04d}", NOTHING, f"noop_{number:04d}") for number in range(runs)])
    parser = argparse.ArgumentParser()
    LocalBackend.add_args(parser)
    backend = LocalBackend(sweep, JobOptions(), parser.parse_args(["--max_parallel=1", "--num_gpus=0"]))
    try:
        drive(backend, sweep.runs.values())
    finally:
        backend.close()
    return conclude(sweep, sweep.runs.values(), time.monotonic())


def main(argv: list[str] | None = None) -> int:
    """Measures and prints.

    Returns:
        The exit status: 0, or 1 where a run failed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launcher", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error(f"--runs={args.runs}: must be an integer >= 1")
    bare = [time_of(lambda: subprocess.run(NOTHING, check=True))[0] for _ in range(args.runs)]
    status = 0

    def sweep() -> None:
        nonlocal status
        with tempfile.TemporaryDirectory() as folder:
            status = run_sweep(Path(folder), args.runs)

    clock, processor = time_of(sweep)
    rows = [("starting `true` and nothing else", sum(bare)), ("a run in a sweep, by the clock", clock)]
    rows += [("launcher time added, by the clock", clock - sum(bare)), ("launcher's processor time", processor)]
    print(f"\n| {args.runs} runs, one at a time | ms a run |\n|---|---|")
    for name, seconds in rows:
        print(f"| {name} | {1000 * seconds / args.runs:.1f} |")
    return status


if __name__ == "__main__":
    sys.exit(main())
