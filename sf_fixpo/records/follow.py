"""Follows a run through the files that it writes, from whatever process; each look reads only what is new."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf_fixpo.records.live import HISTORY, View, figures_of, time_left
from sf_fixpo.records.run_logs import FPS_TAG, RETURN_TAG, LogError, read_config
from sf_fixpo.records.update_log import UPDATE_LOG, is_number, kl_over_bound, row_fault

_SILENT_SECONDS = 120.0  # without a file that grows, a run whose process cannot be seen is taken for over
_FPS_SECONDS = 60.0  # that the speed is measured over
# Who works in a run's folder: a process that lives, one that has died, one of another machine, or nobody.
ALIVE, DEAD, ELSEWHERE, NOBODY = "alive", "dead", "elsewhere", "nobody"


@dataclass(frozen=True)
class Holder:
    """Who works in a run's folder, as its lock file says.

    Attributes:
        pid: of the process.
        host: where it runs.
    """

    pid: int
    host: str


def holder_of(folder: Path) -> Holder | None:
    """Who works in a folder now, or has died there; None where nobody says so."""
    with suppress(OSError, ValueError, IndexError):
        _, pid, _, host = folder.with_name(f".{folder.name}.lock").read_text().split()
        return Holder(int(pid), host)
    return None


class UpdateTail:
    """The update log of one policy, as far as it is written.

    Attributes:
        rows: the latest, oldest first.
        worst: the largest KL over the bound of all rows; None before the first.
        grown: when it last grew, by this machine's clock; None where it has no row yet.
    """

    def __init__(self, path: Path, policy_id: int = 0):
        """Reads nothing yet."""
        self._path, self._policy_id = path, policy_id
        self._at, self._rest = 0, b""
        self.rows: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self.worst: float | None = None
        self.grown: float | None = None

    def look(self) -> None:
        """Reads what is new; a log that is shorter than it was is another run's, and read from its start."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._at:
                    self.__init__(self._path, self._policy_id)
                file.seek(self._at)
                data = file.read()
                modified = self._path.stat().st_mtime
        except OSError:
            return
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with suppress(ValueError, RecursionError):  # torn by a crash
                self._take(json.loads(line))
        if self.rows:
            self.grown = modified

    def _take(self, row: Any) -> None:
        if row_fault(row) is not None or row.get("policy_id") != self._policy_id:
            return
        kl = kl_over_bound(row)
        while self.rows and self.rows[-1]["policy_version"] >= row["policy_version"]:
            self.rows.pop()  # made again after a crash
        self.rows.append(row)
        self.worst = kl if self.worst is None or not kl <= self.worst else self.worst


class ScalarTail:
    """The latest of some scalars, from TensorBoard's files."""

    def __init__(self, folder: Path):
        """Reads nothing yet.

        Args:
            folder: with the event files of a policy.
        """
        self._folder = folder
        self._events: Any = None

    def look(self, tags: Sequence[str]) -> list[list[tuple[int, float]]]:
        """Of each tag environment steps and values, oldest first; empty where none has been logged."""
        if self._events is None:
            if not any(self._folder.glob("events*")):
                return [[] for _ in tags]
            from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator  # slow to import

            self._events = EventAccumulator(str(self._folder), size_guidance={SCALARS: HISTORY})
        self._events.Reload()
        known = self._events.Tags()["scalars"]
        return [[(event.step, event.value) for event in self._events.Scalars(tag)] if tag in known else [] for tag in tags]


class RunFollower:
    """One run.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path, name: str, policy_id: int = 0):
        """Reads the configuration; logs at each look.

        Args:
            folder: of the run.
            name: what it is called.
            policy_id: which policy of a population.
        """
        self.folder = folder
        self._name = name
        self._config: dict[str, Any] = {}
        self._updates = UpdateTail(folder / UPDATE_LOG, policy_id)
        self._scalars = ScalarTail(folder / ".summary" / str(policy_id))
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, holder: str, started: float | None = None, now: float | None = None) -> View:
        """The run at this moment.

        Args:
            holder: who works in its folder: `ALIVE`, `DEAD`, `ELSEWHERE` or `NOBODY`.
            started: when that process was, seconds since 1970; None where it is not known.
            now: seconds since 1970.
        """
        now = time.time() if now is None else now
        with suppress(LogError):
            self._config = read_config(self.folder)
        self._updates.look()
        rows = list(self._updates.rows)
        returns, speeds = self._scalars.look((RETURN_TAG, FPS_TAG))
        steps = int(rows[-1]["env_steps"] if rows else returns[-1][0] if returns else 0)
        target, limit = (self._number(name) for name in ("train_for_env_steps", "train_for_seconds"))
        state = self._state(steps, target, holder, now)
        fps = None
        if state == "running":
            fps = self._fps(steps, now) or (speeds[-1][1] if speeds else None)
        clock_left = math.inf if started is None or not limit else limit - (now - started)
        return View(
            name=self._name,
            what=f"{self._config.get('algo', '?')} on {self._config.get('env', '?')}",
            state=state,
            steps=steps,
            target=target,
            fps=fps,
            seconds_left=time_left(steps, target, fps, clock_left),
            returns=[value for _, value in returns],
            worst=self._updates.worst,
            **figures_of(rows),
        )

    def _number(self, name: str) -> Any:
        """A setting that is a number; None where it is none."""
        value = self._config.get(name)
        return value if is_number(value) else None

    def _state(self, steps: int, target: int | None, holder: str, now: float) -> str:
        if holder == ALIVE:
            return "running" if steps else "starting"
        if target is not None and steps >= target:
            return "finished"
        grown = self._updates.grown
        if holder == ELSEWHERE:
            return "running" if grown is not None and now - grown < _SILENT_SECONDS else "silent"
        return "killed" if holder == DEAD else "ended"

    def _fps(self, steps: int, now: float) -> float | None:
        """Over the last minute; None before the second update that was seen."""
        if not self._seen or self._seen[-1][1] != steps:
            if self._seen and steps < self._seen[-1][1]:
                self._seen.clear()
            self._seen.append((now, steps))
        while len(self._seen) > 2 and self._seen[1][0] < now - _FPS_SECONDS:
            self._seen.popleft()
        (first, low), (last, high) = self._seen[0], self._seen[-1]
        return (high - low) / (last - first) if last > first else None
