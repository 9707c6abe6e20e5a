"""A run's logs, read for people: its configuration, its update log and trace, and what is in its TensorBoard files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sf_fixpo.records.update_log import TRACE_LOG, UPDATE_LOG, latest_rows, read_rows

RETURN_TAG = "reward/reward"
ENTROPY_TAG = "train/entropy"
FPS_TAG = "perf/_fps"
EVALUATION_LOG = "evaluations.jsonl"


class LogError(ValueError):
    """A log is missing or not readable; the message says what."""


@dataclass(frozen=True)
class Experiment:
    """What one folder holds.

    Attributes:
        name: the folder's name.
        config: sample-factory's config.json.
        rows: the update log, in the order of versions; empty for APPO, which has none.
        return_steps: environment steps of the logged returns, [n].
        returns: mean returns of the latest episodes, [n].
        entropy_steps: environment steps of the entropies, [m].
        entropies: of the policy, nats, [m]: each update's, or for APPO what sample-factory logs.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    return_steps: np.ndarray
    returns: np.ndarray
    entropy_steps: np.ndarray
    entropies: np.ndarray

    def column(self, key: str, absent: float | None = None) -> np.ndarray:
        """One number of every row; [updates], or [updates, tasks] where it is one per task.

        Args:
            key: its name.
            absent: what stands for it in rows of an older version, which lack it; None: an error.
        """
        if absent is None and not all(key in row for row in self.rows):
            raise LogError(f"{self.name}: its update log has rows without {key}: another version wrote them, or they are damaged")
        values = [row.get(key) for row in self.rows]
        return np.asarray([absent if value is None else value for value in values], dtype=float)


def read_config(directory: Path) -> dict[str, Any]:
    """Reads an experiment's config.json.

    Raises:
        LogError: no such folder or file, or it is not JSON.
    """
    if not directory.is_dir():
        raise LogError(f"{directory}: no such folder; must be that of an experiment")
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as exc:
        raise LogError(f"{path}: cannot be read, is this an experiment folder? {exc}") from exc
    if not isinstance(config, dict):
        raise LogError(f"{path}: is no JSON object, is this an experiment folder?")
    return config


def read_tags(directory: Path, tags: Sequence[str], policy_id: int = 0) -> dict[str, np.ndarray]:
    """[n, 3] environment steps, wall-clock seconds and value of each tag in the TensorBoard files; none where there are none."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator  # slow to import

    found = dict.fromkeys(tags, np.empty((0, 3)))
    folder = directory / ".summary" / str(policy_id)
    if not any(folder.glob("events*")):
        return found
    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    accumulator.Reload()
    for tag in set(tags) & set(accumulator.Tags()["scalars"]):
        events = sorted((event.step, event.wall_time, event.value) for event in accumulator.Scalars(tag))
        found[tag] = np.asarray(events, dtype=float)
    return found


def read_scalars(directory: Path, tag: str, policy_id: int = 0) -> np.ndarray:
    """`read_tags` for one of them."""
    return read_tags(directory, [tag], policy_id)[tag]


def read_returns(directory: Path, policy_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Episode returns of the TensorBoard files: environment steps [n] and mean returns [n], both empty where there are none."""
    points = read_scalars(directory, RETURN_TAG, policy_id)
    return points[:, 0], points[:, 2]


def read_experiment(directory: Path, policy_id: int = 0) -> Experiment:
    """Reads everything the panels need.

    Raises:
        LogError: the folder, its configuration or its log is missing or not readable.
    """
    config = read_config(directory)
    path = directory / UPDATE_LOG
    rows: list[dict[str, Any]] = []
    if path.is_file():
        try:
            rows = latest_rows(path, policy_id)
        except (ValueError, KeyError) as exc:
            raise LogError(f"{path}: not an update log: {exc}; it must be as its run wrote it") from exc
    elif config.get("algo") != "APPO":
        raise LogError(f"{path}: no such file; has the run made its first update?")
    steps, returns = read_returns(directory, policy_id)
    entropies = [(row["env_steps"], row["entropy"]) for row in rows if row.get("entropy") is not None]
    points = np.asarray(entropies, dtype=float).reshape(-1, 2)
    if not rows:
        points = read_scalars(directory, ENTROPY_TAG, policy_id)[:, ::2]
    return Experiment(directory.resolve().name, config, rows, steps, returns, points[:, 0], points[:, 1])


def read_trace(directory: Path, policy_id: int = 0) -> list[dict[str, Any]]:
    """Rows of the trace of one policy, in the order of the gradient steps.

    Raises:
        LogError: there is no trace, or nothing in it.
    """
    read_config(directory)
    path = directory / TRACE_LOG
    if not path.is_file():
        raise LogError(f"{path}: no such file; train with --trace_updates=100,101")
    try:
        rows = [row for row in read_rows(path) if row["policy_id"] == policy_id]
    except (ValueError, KeyError) as exc:
        raise LogError(f"{path}: not a trace: {exc}") from exc
    if not rows:
        raise LogError(f"{path}: holds no step of policy {policy_id}; look at --policy_id")
    return rows
