"""The ranks of a Slurm job: a step of it, with a task for each rank on all of the job's nodes.

    python -m sf_fixpo.launcher.backends.slurm_ranks start RANKS NODES CPUS GPUS COMMAND...     by the run's one job process
    python -m sf_fixpo.launcher.backends.slurm_ranks be COMMAND...                              by srun, once for each rank

Each attempt of a run is a step of its own; its exit status is the highest of its ranks'.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

STEP = "ranks"
_TIMEOUT = 60.0
# A rank that has ended is followed by the others within a minute, but for the last evaluation. What stays longer is stuck.
_WAIT_SECONDS = 1800
# Below the ports that Linux gives away by itself.
_FIRST_PORT, _PORTS = 10_000, 20_000
_MODULE = "sf_fixpo.launcher.backends.slurm_ranks"


def starter(ranks: int, nodes: int, cpus: int, gpus: int) -> list[str]:
    """What in front of a command starts it once for each rank, in a process of the job's first node.

    Args:
        ranks: of the run.
        nodes: that they are spread over, equally many on each.
        cpus: cores of each rank.
        gpus: of each rank, 0 or 1.
    """
    return [sys.executable, "-m", _MODULE, "start", *map(str, (ranks, nodes, cpus, gpus))]


def step_command(ranks: int, nodes: int, cpus: int, gpus: int, command: Sequence[str]) -> list[str]:
    """The step of all ranks; arguments as of `starter`."""
    each = ranks // nodes
    # Every task sees all GPUs of its node and takes that of its number there: they reach each other's memory.
    devices = [f"--gpus-per-node={each * gpus}", "--gpu-bind=none"] if gpus else []
    return [
        "srun", f"--job-name={STEP}", f"--ntasks={ranks}", f"--nodes={nodes}", f"--ntasks-per-node={each}",
        f"--cpus-per-task={cpus}", *devices, "--distribution=block", "--cpu-bind=none", "--export=ALL", "--unbuffered",
        # the step of the job process has the same cores and GPUs, and needs none
        "--overlap",
        # a rank that ends first is no reason to kill one that saves: ranks see for themselves that one is lost
        "--kill-on-bad-exit=0", f"--wait={_WAIT_SECONDS}",
        sys.executable, "-m", _MODULE, "be", *command,
    ]  # fmt: skip


def rank_environment(slurm: Mapping[str, str], hosts: Sequence[str]) -> dict[str, str]:
    """Who a task is, in torchrun's words.

    Args:
        slurm: environment of the task.
        hosts: of the step, in order; the task of rank 0 is on the first.
    """
    job, step = slurm["SLURM_JOB_ID"], slurm["SLURM_STEP_ID"]
    ranks = int(slurm["SLURM_STEP_NUM_TASKS"])
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(ranks // len(hosts)),
        "MASTER_ADDR": hosts[0],
        # another one for each step: what is left of the step before may still listen
        "MASTER_PORT": str(_FIRST_PORT + (7 * int(job) + int(step)) % _PORTS),
        "TORCHELASTIC_RUN_ID": f"{job}.{step}",
    }


def _slurm(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT, check=True).stdout


def _end_steps(job: str) -> None:
    """Ends what an attempt has left that was killed: Slurm lets a step live whose srun is gone."""
    listed = _slurm("squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i %j")
    rows = [line.split() for line in listed.splitlines() if line.strip()]
    if steps := [row[0] for row in rows if row[1:] == [STEP]]:
        _slurm("scancel", "--quiet", "--signal=KILL", *steps)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Becomes srun, or the command of a rank."""
    what, *rest = sys.argv[1:] if argv is None else argv
    if what == "start":
        _end_steps(os.environ["SLURM_JOB_ID"])
        ranks, nodes, cpus, gpus = map(int, rest[:4])
        command, env = step_command(ranks, nodes, cpus, gpus, rest[4:]), dict(os.environ)
    else:
        hosts = _slurm("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]).split()
        command, env = rest, {**os.environ, **rank_environment(os.environ, hosts)}
    os.execvpe(command[0], command, env)


if __name__ == "__main__":
    main()
