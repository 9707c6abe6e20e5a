"""How a training starts, as one process or as several ranks: a run's command, what is put in front of it, its environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from sf_fixpo.launcher.claims import RUN_MARK, end_orphans
from sf_fixpo.launcher.secret_values import read_secrets
from sf_fixpo.launcher.sweep import Run, Sweep

# The number of an attempt -> what in front of a run's command starts all of its ranks; nothing for a run that is one process.
Starter = Callable[[int], list[str]]
ALGORITHM = "FIXPO"  # the only one that trains with several ranks
_NAMED = 3  # runs in a message


def as_they_are(attempt: int) -> list[str]:
    """A run that is one process."""
    return []


def torchrun(ranks: int, *place: str) -> list[str]:
    """What starts a command as several ranks on this machine, by torchrun; the launcher starts it again, not torchrun.

    Args:
        ranks: here.
        place: torchrun's flags of where the ranks meet; none for ranks that are all here.
    """
    program = [sys.executable, "-m", "sf_fixpo.running.torchrun", *(place or ("--standalone",))]
    return [*program, f"--nproc_per_node={ranks}", "--max-restarts=0", "--no-python"]


def starter_here(ranks: int) -> Starter:
    """Starts runs whose ranks are all on one machine."""
    return as_they_are if ranks == 1 else lambda _: torchrun(ranks)


def algorithm_faults(runs: Iterable[Run], ranks: int) -> list[str]:
    """Names the runs that do not train with several ranks, in one line; what else a command may be, is not known here."""
    found = []
    for run in runs if ranks > 1 else ():
        words = [word for argument in run.command for word in argument.split("=", 1)]
        given = [value for flag, value in pairwise(words) if flag == "--algo"]
        if given and given[-1] != ALGORITHM:
            found.append(f"{run.name} (--algo={given[-1]})")
    if not found:
        return []
    names = ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
    return [f"--ranks={ranks}: only --algo={ALGORITHM} trains with several ranks, unlike {names}"]


def start_training(
    sweep: Sweep, run: Run, starter: Collection[str], mark: str, log_path: Path, env: Mapping[str, str], secrets_file: str = ""
) -> subprocess.Popen:
    """Starts the training of a run in a session of its own.

    Args:
        sweep: the sweep.
        run: one of its runs.
        starter: what is put in front of the run's command.
        mark: of all its processes.
        log_path: where the output goes.
        env: variables on top of this process's environment, under the run's own.
        secrets_file: whose variables go on top of all; "" for none.

    Raises:
        OSError: it cannot be started.
        SecretsFileError: the file cannot be read.
    """
    command = list(run.command)
    if command[0].startswith("python"):
        command[0] = sys.executable
    env = {**os.environ, **env, **run.env, RUN_MARK: mark, "PYTHONUNBUFFERED": "1"}
    if secrets_file:
        env.update(read_secrets(secrets_file))
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [*starter, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            # on a host that has not this folder, an image, the job's own has to do
            cwd=sweep.cwd if os.path.isdir(sweep.cwd) else None,
            start_new_session=True,
        )


def kill_training(process: subprocess.Popen, mark: str | None) -> None:
    """Kills a training and its workers: it leads a process group of its own.

    Args:
        process: of the training.
        mark: of a run of several ranks, each of which leads another group; None for one process.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if mark is not None:
        end_orphans(mark, 0.0)
