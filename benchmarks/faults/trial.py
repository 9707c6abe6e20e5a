"""One fault, tried: a run is started, trains, is broken, and what it does then is measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.faults import inside
from benchmarks.faults.plan import GOES_ON, HEARTBEAT_SECONDS, MODES, SAVE_SECONDS, Fault
from sf_fixpo.learning import checkpoints
from sf_fixpo.records.update_log import UPDATE_LOG, read_rows

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 240.0
_UPDATES_FIRST, _UPDATES_AFTER = 4, 4
_TINY = (
    f"--env=gym_benchmarks.faults.inside:{inside.ENV_ID}",
    *("--rollout=16", "--batch_size=32", "--num_batches_per_epoch=2", "--num_epochs=2", "--device=cpu"),
    *("--encoder_mlp_layers", "16", "--train_for_env_steps=1000000000", f"--save_every_sec={SAVE_SECONDS}"),
    *("--heartbeat_interval=2", "--env_start_timeout=200", f"--heartbeat_reporting_interval={HEARTBEAT_SECONDS}"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a fault.

    Attributes:
        name: of the fault.
        noticed: seconds until the run said so or ended; None where it had nothing to notice.
        exit: its exit status.
        message: the line that says the cause.
        lost: seconds of training that are in no checkpoint at the end.
        left: processes, files in shared memory, temporary files left over.
        wrong: what is not as it must be; "" where all is.
    """

    name: str
    noticed: float | None
    exit: int | None
    message: str
    lost: float
    left: tuple[int, int, int]
    wrong: str


class Trial:
    """A run of `inside` in a folder of its own, with everything it starts marked."""

    def __init__(self, fault: Fault, folder: Path):
        """Starts nothing yet."""
        self.fault, self.folder = fault, folder
        self.train_dir, self.orders, self.temporary = folder / "train_dir", folder / "orders", folder / "tmp"
        for path in (self.train_dir, self.orders, self.temporary):
            path.mkdir(parents=True)
        self.experiment = self.train_dir / "run"
        self.pids: set[int] = set()
        self.prefix: list[str] = []  # of the command line
        self.popen: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts the run, or starts it again."""
        flags = [*_TINY, *MODES[self.fault.mode], *self.fault.flags, f"--train_dir={self.train_dir}", "--experiment=run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(self.temporary)}
        environment[inside.FOLDER] = str(self.orders)
        # a cache that torch keeps for all runs of a user is no leftover of this one
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "cache")
        with (self.folder / "output.txt").open("ab") as output:
            self.popen = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "benchmarks.faults.inside", *flags],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def text(self) -> str:
        """What it has printed, without colours."""
        return re.sub(r"\x1b\[\d*m", "", (self.folder / "output.txt").read_text(errors="replace"))

    def processes(self) -> list[psutil.Process]:
        """All of the run's, by whatever they were started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(inside.FOLDER) == str(self.orders):
                    found.append(process)
                    self.pids.add(process.pid)
        return found

    def ended(self) -> int | None:
        """The exit status, once it has one."""
        return self.popen.poll() if self.popen is not None else None

    def wait_for(self, condition: Callable[[], bool], seconds: float = _PATIENCE_SECONDS, ends: bool = False) -> bool:
        """Waits; whether it came about. Where the run ends that is no more to be expected, unless `ends`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if not ends and self.ended() is not None:
                return condition()
            time.sleep(0.1)
        return False

    def rows(self) -> list[dict]:
        """Of its update log."""
        with suppress(FileNotFoundError):
            return list(read_rows(self.experiment / UPDATE_LOG))
        return []

    def saved(self) -> list[Path]:
        """Its checkpoints, oldest first."""
        return sorted(self.experiment.glob("checkpoint_p0/checkpoint_*.pth"))

    def trains(self, updates: int = _UPDATES_FIRST) -> bool:
        """Waits until it has made so many more updates, and a checkpoint."""
        before = len(self.rows())
        return self.wait_for(lambda: len(self.rows()) >= before + updates and bool(self.saved()))

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Asks it to end."""
        if self.popen is not None and self.ended() is None:
            self.popen.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(60)
        return self.ended()

    def lost(self) -> float:
        """Seconds of training above its newest readable checkpoint."""
        rows, saved = self.rows(), self.saved()
        if not rows or not saved or int(saved[-1].stem.split("_")[2]) >= rows[-1]["env_steps"]:
            return 0.0
        return (self.experiment / UPDATE_LOG).stat().st_mtime - saved[-1].stat().st_mtime

    def left(self) -> tuple[int, int, int]:
        """Processes, shared memory, temporary files, ten seconds after its end at the latest."""
        deadline = time.monotonic() + 10
        while (found := self._left()) != (0, 0, 0) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _left(self) -> tuple[int, int, int]:
        names = (path.name.split("_") for path in Path("/dev/shm").glob("torch_*"))
        shared = sum(len(name) > 1 and name[1].isdigit() and int(name[1]) in self.pids for name in names)
        return len(self.processes()), shared, len(list(self.temporary.iterdir()))

    def close(self) -> None:
        """Kills what is left."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        if self.popen is not None:
            self.popen.wait(10)


def _pid(trial: Trial, place: str) -> int:
    path = trial.orders / f"pid.{place}"
    if not trial.wait_for(path.exists):
        raise RuntimeError(f"{place} was never there\n{trial.text()[-2000:]}")
    return int(path.read_text())


def _send(number: int) -> Callable[[Trial], float]:
    def action(trial: Trial) -> float:
        pid = _pid(trial, trial.fault.place)
        os.kill(pid, number)
        return time.time()

    return action


def _inside(kind: str) -> Callable[[Trial], float]:
    def action(trial: Trial) -> float:
        place = {"environment": "env"}.get(trial.fault.place, trial.fault.place)
        _pid(trial, place)
        (trial.orders / f".{place}").write_text(kind)
        (trial.orders / f".{place}").rename(trial.orders / f"strike.{place}")
        struck = trial.orders / f"struck.{place}"
        trial.wait_for(struck.exists, ends=True)
        return struck.stat().st_mtime

    return action


def _kill_all(trial: Trial) -> float:
    os.kill(trial.popen.pid if trial.popen is not None else 0, signal.SIGKILL)
    return time.time()


def _suspend(trial: Trial) -> float:
    processes = trial.processes()
    for process in processes:
        process.suspend()
    time.sleep(2 * HEARTBEAT_SECONDS)
    for process in processes:
        process.resume()
    return time.time()


def _clock(seconds: float) -> Callable[[Trial], float]:
    def action(trial: Trial) -> float:
        (trial.orders / ".clock").write_text(str(seconds))
        (trial.orders / ".clock").rename(trial.orders / "clock")
        time.sleep(2 * HEARTBEAT_SECONDS)
        return time.time()

    return action


def _late(trial: Trial) -> float:
    (trial.orders / "late").write_text("15")
    time.sleep(40)
    return time.time()


def _fill(trial: Trial) -> float:
    with suppress(OSError), (trial.train_dir / "filler").open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    return time.time()


def _read_only(trial: Trial) -> float:
    """By a second mount over the first: what has open files cannot be made read-only itself, as a kernel in trouble can."""
    subprocess.run(["mount", "--bind", str(trial.train_dir), str(trial.train_dir)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(trial.train_dir)], check=True)
    return time.time()


def _damage(how: Callable[[bytes], bytes], every: bool) -> Callable[[Trial], float]:
    def action(trial: Trial) -> float:
        trial.stop()
        (trial.folder / "output.txt").rename(trial.folder / "output_before.txt")
        for path in trial.saved() if every else trial.saved()[-1:]:
            path.write_bytes(how(path.read_bytes()))
        trial.start()
        return time.time()

    return action


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]


ACTIONS: dict[str, Callable[[Trial], float]] = {
    "kill -9": _send(signal.SIGKILL),
    "SIGSTOP": _send(signal.SIGSTOP),
    "suspended for longer than a heartbeat": _suspend,
    "engine exits in a step": _inside("exit"),
    "NaN reward": _inside("nan_reward"),
    "NaN weights": _inside("nan_weights"),
    "disk full": _fill,
    "read-only from now on": _read_only,
    "newest truncated": _damage(_truncated, every=False),
    "newest with a bit flipped": _damage(_flipped, every=False),
    "all truncated": _damage(_truncated, every=True),
    "an hour forward": _clock(3600.0),
    "an hour back": _clock(-3600.0),
    "answers after 15 s": _late,
}
_MOUNTED = ("disk full", "read-only from the start", "read-only from now on")
_FROM_THE_START = ("read-only from the start", "full")


def _prepare(trial: Trial) -> None:
    kind = trial.fault.kind
    if kind in _MOUNTED:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(trial.train_dir)], check=True)
    if kind == "read-only from the start":
        _read_only(trial)
    if kind == "full":
        own = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
        trial.prefix = ["unshare", "-m", "sh", "-c", own, "sh"]


def _verdict(fault: Fault, status: int | None, noticed: float | None, lost: float, left: tuple[int, int, int], line: str) -> str:
    """What is wrong with an outcome, in words; "" where nothing is."""
    wrong = []
    if status != fault.exit:
        wrong.append(f"exit {status}, must be {'trains on' if fault.exit == GOES_ON else fault.exit}")
    if fault.says and not line:
        wrong.append("does not say the cause")
    if noticed is not None and noticed > fault.within:
        wrong.append(f"noticed after {noticed:.0f} s")
    if lost > 2 * SAVE_SECONDS + 5 and fault.kind not in _MOUNTED:  # an interval, and a save that is under way
        wrong.append(f"{lost:.0f} s lost")
    names = ("processes", "shared files", "temporary files")
    wrong += [f"{count} {what} left" for count, what in zip(left, names, strict=True) if count]
    return "; ".join(wrong)


def attempt(fault: Fault, keep: Path | None = None) -> Outcome:
    """Tries one fault.

    Args:
        fault: which.
        keep: where the output goes if the outcome is wrong.
    """
    folder = Path(tempfile.mkdtemp(prefix="fixpo_fault_"))
    trial = Trial(fault, folder)
    try:
        _prepare(trial)
        trial.start()
        at = time.time()
        if fault.kind not in _FROM_THE_START:
            if not trial.trains():
                raise RuntimeError(f"{fault.name}: the run did not begin to train\n{trial.text()[-3000:]}")
            trial.processes()
            action = _kill_all if (fault.kind, fault.place) == ("kill -9", "whole run") else ACTIONS.get(fault.kind)
            at = (action or _inside(fault.kind))(trial)
        cause = re.compile(f".*{fault.says}.*")
        seen = trial.wait_for(lambda: bool(fault.says and cause.search(trial.text())) or trial.ended() is not None, 150)
        noticed = time.time() - at if seen and (fault.says or fault.exit != GOES_ON) else None
        if fault.exit == GOES_ON:
            went_on = trial.trains(_UPDATES_AFTER)
            status = trial.stop() if went_on else trial.ended()
        else:
            trial.wait_for(lambda: trial.ended() is not None, 150, ends=True)
            status = trial.ended()
        lines = [line for line in trial.text().splitlines() if fault.says and re.search(fault.says, line)]
        line = lines[0] if lines else ""
        line = re.sub(r"^\[[^\]]*\](\[\d+\])? ", "", line.strip()).replace(str(folder), "...").replace(f"{Path.cwd()}/", "")
        lost, left = trial.lost(), trial.left()
        for path in trial.saved() if fault.place != "checkpoint" else ():
            checkpoints.load(path)
        wrong = _verdict(fault, status, noticed, lost, left, line)
        if wrong and keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{re.sub(r'[^a-z0-9]+', '_', fault.name.lower())}.txt").write_text(
                trial.text() + "\n".join(map(str, trial.temporary.iterdir()))
            )
        return Outcome(
            fault.name, None if noticed is None else round(noticed, 1), status, line[:160], round(lost, 1), left, wrong
        )
    finally:
        trial.close()
        if fault.kind in _MOUNTED:
            while os.path.ismount(trial.train_dir):
                subprocess.run(["umount", "--lazy", str(trial.train_dir)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """Those that are known, by name."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return {row["name"]: Outcome(**{**row, "left": tuple(row["left"])}) for row in rows}
