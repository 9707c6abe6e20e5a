"""Evaluations while a run trains: `--eval_every`.

Each one is `python -m sf_fixpo.evaluate` on a checkpoint of that moment, in processes of the lowest priority that take what the
training leaves over. There is one at a time. Where the machine leaves so little that the next is due before one has ended, the
newest waits and those between are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.utils.typing import Config
from sample_factory.utils.utils import experiment_dir, log

from sf_fixpo.records.run_logs import EVALUATION_LOG
from sf_fixpo.running.heartbeats import ProcessorUse
from sf_fixpo.running.supervision import deaf_children, kill_tree

FOLDER = "evaluations"  # of the experiment's folder: the checkpoints being evaluated, full results, output of those that failed
_LOWEST_PRIORITY = 19
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
_POLL_SECONDS = 0.1
_CHECKPOINT = re.compile(r"checkpoint_(\d+)_(\d+)\.pth")


def add_eval_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of evaluations during training."""
    group = parser.add_argument_group("evaluation during training")
    group.add_argument(
        "--eval_every", default=0, type=int, help="Environment steps (frames) between evaluations, in the background; 0: none"
    )
    group.add_argument("--eval_episodes", default=10, type=int, help="Of each level, in one evaluation")
    group.add_argument("--eval_workers", default=1, type=int, help="Processes of one evaluation, for all levels")
    group.add_argument(
        "--eval_finish_seconds",
        default=300.0,
        type=float,
        help="How long the end of the training waits for the evaluation of the last checkpoint, at most; 0: not at all",
    )


def eval_faults(cfg: Any) -> list[str]:
    """What is wrong with the flags, one line a fault: the flag, the value, what is allowed."""
    found = []
    for flag, least in (("eval_every", 0), ("eval_episodes", 1), ("eval_workers", 1)):
        if (value := getattr(cfg, flag)) < least:
            found.append(f"--{flag}={value}: must be an integer >= {least}")
    if not cfg.eval_finish_seconds >= 0:
        found.append(f"--eval_finish_seconds={cfg.eval_finish_seconds}: must be a number >= 0, seconds")
    return found


@dataclass(frozen=True)
class Pinned:
    """A checkpoint that stays until it is evaluated, however many the run keeps.

    Attributes:
        path: a hard link to it, or a copy where the file system has none.
        policy_id: whose it is.
        policy_version: of the weights.
        env_steps: when it was saved.
    """

    path: Path
    policy_id: int
    policy_version: int
    env_steps: int

    @property
    def result(self) -> Path:
        """Where the evaluation writes every episode's return."""
        return self.path.with_suffix(".json")

    @property
    def output(self) -> Path:
        """What the evaluation prints; kept where it fails."""
        return self.path.with_suffix(".log")


@dataclass(frozen=True)
class _Running:
    pinned: Pinned
    process: subprocess.Popen
    since: float
    use: ProcessorUse


def newest_checkpoint(folder: Path) -> tuple[int, int, Path] | None:
    """Policy version, environment steps and path of the newest checkpoint in a folder; None where there is none."""
    matches = ((match, path) for path in folder.glob("checkpoint_*.pth") if (match := _CHECKPOINT.fullmatch(path.name)))
    return max(((int(match[1]), int(match[2]), path) for match, path in matches), default=None)


def pin(folder: Path, policy_id: int, into: Path) -> Pinned | None:
    """Pins the newest checkpoint of a policy; None where there is none, or it was removed in this instant."""
    found = newest_checkpoint(folder)
    if found is None:
        return None
    version, env_steps, path = found
    into.mkdir(parents=True, exist_ok=True)
    target = into / f"p{policy_id}_{path.name}"
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except FileNotFoundError:
        return None
    except OSError:
        try:
            shutil.copyfile(path, target)
        except FileNotFoundError:
            return None
    return Pinned(target, policy_id, version, env_steps)


def evaluated_steps(log_path: Path, policy_id: int) -> int:
    """Environment steps of a policy's last evaluation in the log; 0 where there is none."""
    return max((row["env_steps"] for row in _rows(log_path) if row["policy_id"] == policy_id), default=0)


def _rows(log_path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = log_path.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        with suppress(ValueError):  # torn by a crash
            yield json.loads(line)


def make_row(pinned: Pinned, record: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A row of the evaluation log.

    Args:
        pinned: what was evaluated.
        record: what `sf_fixpo.evaluate` wrote.
        seconds: it took.
    """
    levels = {
        level: {"mean": result["mean"], "se": result["se"], "n": len(result["returns"])}
        for level, result in record["levels"].items()
    }
    return {
        "env_steps": pinned.env_steps,
        "policy_id": pinned.policy_id,
        "policy_version": pinned.policy_version,
        "checkpoint": pinned.path.name.partition("_")[2],
        "engine": record["engine"],
        "split": record["split"],
        "levels": levels,
        "score": record["score"],
        "seconds": round(seconds, 1),
    }


def lower_priority(pid: int) -> None:
    """The lowest priority for processor and disk that the system offers without asking for rights."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        process.nice(_LOWEST_PRIORITY if os.name == "posix" else psutil.IDLE_PRIORITY_CLASS)  # type: ignore[attr-defined]
        if hasattr(process, "ionice") and hasattr(psutil, "IOPRIO_CLASS_IDLE"):
            process.ionice(psutil.IOPRIO_CLASS_IDLE)


class EvaluationDuringTraining(AlgoObserver):
    """Has a checkpoint saved at every multiple of `--eval_every` and evaluates it; see the module.

    A row for each goes to `evaluations.jsonl`, its means to TensorBoard. One that fails is a warning, and the training goes on.
    """

    def __init__(self, cfg: Config, console: Console):
        """Starts nothing yet.

        Args:
            cfg: of the run.
            console: where the end of the training says what it waits for.
        """
        self._cfg = cfg
        self._console = console
        self._experiment = Path(experiment_dir(cfg, mkdir=False))
        self._folder = self._experiment / FOLDER
        self._log_path = self._experiment / EVALUATION_LOG
        self._next: dict[int, int] = {}
        self._wanted: dict[int, int] = {}
        self._waiting: dict[int, Pinned] = {}
        self._running: _Running | None = None
        self._done: dict[int, int] = {}

    def on_start(self, runner: Runner) -> None:
        """Removes what a run that was killed has left."""
        for left in self._folder.glob("*.pth"):
            left.unlink(missing_ok=True)

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Asks for a checkpoint where one is due, looks after the evaluation that runs, starts the next."""
        for policy_id, env_steps in runner.env_steps.items():
            if self._is_due(policy_id, env_steps):
                self._wanted[policy_id] = env_steps
                runner.save_periodic.emit()
        for policy_id, env_steps in list(self._wanted.items()):
            newest = newest_checkpoint(self._checkpoints(policy_id))
            if newest is not None and newest[1] >= env_steps and self._pin(policy_id):
                del self._wanted[policy_id]
        self._poll(runner)
        self._start_next()

    def finish(self, runner: Runner) -> None:
        """After a training that ended well: evaluates the last checkpoint, within `--eval_finish_seconds`."""
        if not self._cfg.eval_finish_seconds:
            return
        deadline = time.monotonic() + self._cfg.eval_finish_seconds
        for policy_id in range(self._cfg.num_policies):
            newest = newest_checkpoint(self._checkpoints(policy_id))
            under_way = self._running is not None and (self._running.pinned.policy_id, self._running.pinned.env_steps)
            if newest is None or newest[1] <= self._last_done(policy_id) or under_way == (policy_id, newest[1]):
                self._drop(policy_id)
            elif self._waiting.get(policy_id) is None or self._waiting[policy_id].env_steps < newest[1]:
                self._pin(policy_id)
        if self._running is None and not self._waiting:
            return
        self._console.print(
            f"Evaluating the last checkpoint: {self._cfg.eval_finish_seconds:.0f} s at most (--eval_finish_seconds)",
            highlight=False,
        )
        while time.monotonic() < deadline:
            self._poll(runner)
            self._start_next()
            if self._running is None:
                return
            time.sleep(_POLL_SECONDS)
        log.warning(
            "The last evaluation did not end within --eval_finish_seconds=%g: stopped. python -m sf_fixpo.evaluate %s plays it",
            self._cfg.eval_finish_seconds,
            self._experiment,
        )

    def close(self) -> None:
        """Ends whatever runs, and leaves no process and no pinned checkpoint."""
        if self._running is not None:
            self._end(self._running)
        for policy_id in list(self._waiting):
            self._drop(policy_id)

    def _is_due(self, policy_id: int, env_steps: int) -> bool:
        """Whether a multiple of `--eval_every` has been passed since the last one that was, in an earlier run or in this."""
        every = self._cfg.eval_every
        due = env_steps >= self._next.setdefault(policy_id, (self._last_done(policy_id) // every + 1) * every)
        if due:
            self._next[policy_id] = (env_steps // every + 1) * every
        return due

    def _last_done(self, policy_id: int) -> int:
        if policy_id not in self._done:
            self._done[policy_id] = evaluated_steps(self._log_path, policy_id)
        return self._done[policy_id]

    def _checkpoints(self, policy_id: int) -> Path:
        return self._experiment / f"checkpoint_p{policy_id}"

    def _pin(self, policy_id: int) -> bool:
        """Pins the newest checkpoint for the next evaluation, in place of an older one that still waits."""
        pinned = pin(self._checkpoints(policy_id), policy_id, self._folder)
        if pinned is None:
            return False
        before = self._waiting.pop(policy_id, None)
        if before is not None and before.path != pinned.path:
            before.path.unlink(missing_ok=True)
            log.info("Evaluation at %d steps is left out: that at %d has not begun", before.env_steps, pinned.env_steps)
        self._waiting[policy_id] = pinned
        if self._running is not None:
            log.info("Evaluation at %d steps waits for that at %d", pinned.env_steps, self._running.pinned.env_steps)
        return True

    def _drop(self, policy_id: int) -> None:
        waiting = self._waiting.pop(policy_id, None)
        if waiting is not None:
            waiting.path.unlink(missing_ok=True)

    def _start_next(self) -> None:
        if self._running is not None or not self._waiting:
            return
        pinned = min(self._waiting.values(), key=lambda waiting: waiting.env_steps)
        del self._waiting[pinned.policy_id]
        command = [sys.executable, "-m", "sf_fixpo.evaluate", str(self._experiment), f"--checkpoint={pinned.path}"]
        command += [f"--episodes={self._cfg.eval_episodes}", f"--workers={self._cfg.eval_workers}"]
        command += [f"--seed={self._cfg.seed or 0}", f"--json={pinned.result}", f"--background_of={os.getpid()}"]
        # of the training's own session and group: systems that share the processor out by session forget priorities between them
        environment = {**os.environ, **_ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""}
        try:
            with pinned.output.open("wb") as output, deaf_children():
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
                )
                use = ProcessorUse(process.pid, self._cfg.heartbeat_reporting_interval)
                self._running = _Running(pinned, process, time.monotonic(), use)
        except OSError as exc:
            pinned.path.unlink(missing_ok=True)
            log.warning("Evaluation at %d steps could not be started: %s", pinned.env_steps, exc)
            return
        lower_priority(process.pid)
        log.info("Evaluation at %d steps started, process %d", pinned.env_steps, process.pid)

    def _poll(self, runner: Runner) -> None:
        running = self._running
        if running is None:
            return
        if (status := running.process.poll()) is None:
            if running.use.stalled():
                log.warning("Evaluation at %d steps does nothing any more: ended", running.pinned.env_steps)
                self._done[running.pinned.policy_id] = running.pinned.env_steps
                self._end(running)
            return
        self._running = None
        running.pinned.path.unlink(missing_ok=True)
        self._done[running.pinned.policy_id] = running.pinned.env_steps
        try:
            if status:
                raise ValueError(f"exit status {status}: {_last_lines(running.pinned.output)}")
            row = make_row(running.pinned, json.loads(running.pinned.result.read_text()), time.monotonic() - running.since)
            with self._log_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except (OSError, ValueError, KeyError) as exc:
            log.warning("Evaluation at %d steps failed (%s has it all): %s", running.pinned.env_steps, running.pinned.output, exc)
            return
        running.pinned.output.unlink(missing_ok=True)
        self._write_scalars(runner, row)
        means = ", ".join(f"{level} {result['mean']:.2f}" for level, result in row["levels"].items())
        log.info("Evaluation at %d steps, %.0f s: %s", row["env_steps"], row["seconds"], means)

    def _write_scalars(self, runner: Runner, row: dict[str, Any]) -> None:
        writer = runner.writers[row["policy_id"]]
        for level, result in row["levels"].items():
            writer.add_scalar(f"eval/{level}", result["mean"], row["env_steps"])
        if row["score"]:
            name = "stand_in_score" if row["score"].get("stand_in") else "mean_capped_human_normalised"
            writer.add_scalar(f"eval/_{name}", row["score"]["capped"], row["env_steps"])
        writer.flush()

    def _end(self, running: _Running) -> None:
        self._running = None
        kill_tree([running.process.pid] if running.process.poll() is None else [])
        running.process.wait()
        running.pinned.path.unlink(missing_ok=True)
        running.pinned.output.unlink(missing_ok=True)


def _last_lines(path: Path, count: int = 3) -> str:
    """The end of a program's output, as one line."""
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return " | ".join([line.strip() for line in lines if line.strip()][-count:])
