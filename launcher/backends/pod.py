"""One index of a Kubernetes Job: `python -m sf_fixpo.launcher.backends.pod SWEEP_FOLDER JOB_NAME [flags of launcher.job]`.

JOB_COMPLETION_INDEX says which of the Job's runs is meant; their list lies beside the sweep's manifest. With `--nodes` above 1 a
Job has one run, and the index says which of its nodes this is: node 0 holds the run, the others follow it, and all meet where
MASTER_ADDR and MASTER_PORT say. The exit status is `launcher.job`'s.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from sf_fixpo.launcher import job
from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.backends.following import Follower
from sf_fixpo.launcher.claims import HEARTBEAT_LIMIT
from sf_fixpo.launcher.files import read_json, write_json
from sf_fixpo.launcher.starting import Starter, torchrun
from sf_fixpo.launcher.sweep import Sweep

# A run whose node was lost stays claimed by the dead job until its heartbeat is too old, and a little longer.
_HELD_SECONDS = HEARTBEAT_LIMIT + 30.0
_LOOK_SECONDS = 2.0
_NAME_SECONDS = 60.0
# For all pods of a run to be placed, and their image to be there.
_JOIN_SECONDS = 1800


def write_runs(sweep: Sweep, job_name: str, names: Sequence[str]) -> None:
    """Writes which run each index of a Job has, in order; one that is spread over nodes is there once for each."""
    write_json(_runs_path(sweep.folder, job_name), {"runs": list(names)})


def read_runs(folder: str | os.PathLike, job_name: str) -> list[str]:
    """The runs of a Job, by index.

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


def starter_of_node(node: int, options: JobOptions) -> Starter:
    """Starts a node's ranks, which meet those of the others in the pod of node 0, where MASTER_ADDR and MASTER_PORT say.

    Args:
        node: number of this one.
        options: of the run.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]

    def starter(attempt: int) -> list[str]:
        _wait_for_name(address)
        return torchrun(
            options.ranks_per_node,
            f"--nnodes={options.nodes}",
            f"--node-rank={node}",
            f"--master-addr={address}",
            f"--master-port={port}",
            # nodes that are at different attempts do not meet
            f"--rdzv-id={attempt}",
            # for the other pods to be there
            f"--rdzv-conf=timeout={_JOIN_SECONDS}",
        )

    return starter


def _wait_for_name(host: str) -> None:
    """A pod's name is known some seconds after the pod is there; for what is wrong otherwise, torchrun has the words."""
    deadline = time.monotonic() + _NAME_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.getaddrinfo(host, None)
            return
        time.sleep(_LOOK_SECONDS)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    folder, job_name, *flags = sys.argv[1:] if argv is None else argv
    # the first process of a container ignores what it has no handler for; `launcher.job` has its own while a run runs
    signal.signal(signal.SIGTERM, _exit_preempted)
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    try:
        number = int(index)
        sweep, run, options = job.read_arguments([folder, read_runs(folder, job_name)[number], *flags])
        starter = starter_of_node(number, options) if options.nodes > 1 else None
    except (OSError, ValueError, LookupError) as exc:
        print(f"sf_fixpo.launcher.backends.pod: JOB_COMPLETION_INDEX={index}: {exc}", file=sys.stderr)
        return job.BAD_INPUT
    if starter is not None and number > 0:
        return Follower(sweep, run, options, starter, number).follow()
    deadline = time.monotonic() + _HELD_SECONDS
    while (status := job.run_job(sweep, run, options, starter)) == job.HELD and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return status


if __name__ == "__main__":
    sys.exit(main())
