"""One index of a Kubernetes Job: `python -m sf_fixpo.launcher.backends.pod SWEEP_FOLDER JOB_NAME [flags of launcher.job]`.

JOB_COMPLETION_INDEX says which of the Job's runs is meant; their list lies beside the sweep's manifest. The exit status is
`launcher.job`'s.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sf_fixpo.launcher import job
from sf_fixpo.launcher.claims import HEARTBEAT_LIMIT
from sf_fixpo.launcher.files import read_json, write_json
from sf_fixpo.launcher.sweep import Sweep

# A run whose node was lost stays claimed by the dead job until its heartbeat is too old, and a little longer.
_HELD_SECONDS = HEARTBEAT_LIMIT + 30.0
_HELD_LOOK_SECONDS = 5.0


def write_runs(sweep: Sweep, job_name: str, names: Sequence[str]) -> None:
    """Writes which runs a Job has, in the order of its indexes."""
    write_json(_runs_path(sweep.folder, job_name), {"runs": list(names)})


def read_runs(folder: str | os.PathLike, job_name: str) -> list[str]:
    """The runs of a Job.

    Args:
        folder: of the sweep.
        job_name: of the Job.

    Raises:
        FileNotFoundError: the Job has no list there.
        ValueError: the list cannot be read.
    """
    path = _runs_path(Path(folder), job_name)
    found = read_json(path)
    if found is None:
        raise FileNotFoundError(f"{path}: there is no such file; is the volume the one that the launcher wrote to?")
    return found["runs"]


def _runs_path(folder: Path, job_name: str) -> Path:
    return Sweep(folder, []).state_folder / "kubernetes" / f"{job_name}.json"


def _exit_preempted(*_: object) -> NoReturn:
    raise SystemExit(job.PREEMPTED)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    folder, job_name, *flags = sys.argv[1:] if argv is None else argv
    # the first process of a container ignores what it has no handler for; `launcher.job` has its own while a run runs
    signal.signal(signal.SIGTERM, _exit_preempted)
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    try:
        names = read_runs(folder, job_name)
        name = names[int(index)]
    except (OSError, ValueError, IndexError) as exc:
        print(f"sf_fixpo.launcher.backends.pod: JOB_COMPLETION_INDEX={index}: {exc}", file=sys.stderr)
        return job.BAD_INPUT
    deadline = time.monotonic() + _HELD_SECONDS
    while (status := job.main([folder, name, *flags])) == job.HELD and time.monotonic() < deadline:
        time.sleep(_HELD_LOOK_SECONDS)
    return status


if __name__ == "__main__":
    sys.exit(main())
