"""Runs of the programs as a user starts them, for tests: in a session of their own, marked, and looked for when they are over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

REPO = Path(__file__).resolve().parents[2]
ENV = "gym_CartPole-v1"
# Modules of `tests/helpers`, for programs as for tests.
HELPERS = {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPO / "tests" / "helpers"), os.environ.get("PYTHONPATH")]))}
_MARKER = "FIXPO_TEST_RUN"

# 64 samples an update, in 2 minibatches twice: seconds of processor time are in the imports
TINY = (
    f"--env={ENV}",
    "--rollout=16",
    "--batch_size=32",
    "--num_batches_per_epoch=2",
    "--num_epochs=2",
    "--fixup_batch_size=0",
    "--encoder_mlp_layers",
    "16",
    "--device=cpu",
)
SERIAL = (*TINY, "--serial_mode=True", "--async_rl=False", "--num_workers=1", "--num_envs_per_worker=4")
PARALLEL = (*TINY, "--serial_mode=False", "--async_rl=True", "--num_workers=2", "--num_envs_per_worker=2")
LONG = "--train_for_env_steps=1000000000"  # of the runs that a test ends itself


class Run:
    """A started program.

    Attributes:
        folder: where its output goes.
        popen: its process, the leader of its own process group.
    """

    def __init__(self, argv: list[str], folder: Path, env: dict[str, str] | None = None):
        """Starts `python argv...` from the repository root; its output goes to files in `folder`."""
        self.folder = folder
        self._mark = uuid.uuid4().hex
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {}), _MARKER: self._mark}
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            # a background job of a plain shell: the program would inherit that, and no Ctrl-C would reach it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, *argv], cwd=REPO, env=environment, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Everything that carries this run's mark, by whatever it was started; what is dead and unburied is not counted."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARKER) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile, or another user's
                continue
        return found

    def wait(self, timeout: float) -> int:
        """The exit status."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:.0f} s\n{self.report()}") from None

    def wait_until(self, condition: Callable[[], bool], timeout: float = 120) -> None:
        """Waits while the program runs; fails where it ends first."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}\n{self.report()}"
            assert time.monotonic() < deadline, f"nothing after {timeout:.0f} s\n{self.report()}"
            time.sleep(0.1)

    def assert_nothing_left(self, within: float = 10) -> None:
        """No process of the run may be alive, this many seconds from now at the latest."""
        deadline = time.monotonic() + within
        while left := self.processes():
            assert time.monotonic() < deadline, f"left over: {[(p.pid, p.cmdline()) for p in left]}\n{self.report()}"
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends whatever is left of the run; a test that failed in the middle must leave nothing behind."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.popen.wait(10)

    def report(self) -> str:
        """What a failed assertion should show."""
        return f"--- stdout\n{self.stdout[-3000:]}\n--- stderr\n{self.stderr[-6000:]}"


@contextmanager
def started(folder: Path, *argv: str, env: dict[str, str] | None = None) -> Iterator[Run]:
    """`python argv...`; nothing of it is left when the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run([str(arg) for arg in argv], folder, env)
    try:
        yield run
    finally:
        run.kill()


def train_command(train_dir: Path, experiment: str, *flags: str) -> list[str]:
    """Arguments of Python that train `experiment`."""
    return ["-m", "sf_fixpo.train", f"--train_dir={train_dir}", f"--experiment={experiment}", *flags]


def train(train_dir: Path, experiment: str, *flags: str, timeout: float = 120, env: dict[str, str] | None = None) -> Run:
    """A whole run of the training program, which must leave no process."""
    with started(train_dir / f"{experiment}_output", *train_command(train_dir, experiment, *flags), env=env) as run:
        run.wait(timeout)
        run.assert_nothing_left()
        return run


def rows_of(experiment: Path) -> list[str]:
    """The whole lines of an experiment's update log, so far."""
    log = experiment / "updates.jsonl"
    return [line for line in log.read_text().split("\n")[:-1] if line] if log.exists() else []


def json_lines(path: Path) -> list[dict]:
    """The rows of a log of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def checkpoints_of(experiment: Path) -> list[Path]:
    """Checkpoints of policy 0, oldest first."""
    return sorted((experiment / "checkpoint_p0").glob("checkpoint_*.pth"))
