"""What a report is made of: a run's logs, evaluations, films and faults, read from its folder; and groups of such runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sf_fixpo.records.comparison import group_names
from sf_fixpo.records.health import describe
from sf_fixpo.records.model_card import LevelScore, level_scores
from sf_fixpo.records.run_folders import sweep_state
from sf_fixpo.records.run_logs import EVALUATION_LOG, FPS_TAG, Experiment, read_experiment, read_scalars
from sf_fixpo.records.update_log import UPDATE_LOG, is_number, is_number_or_none, kl_over_bound, read_rows

_LARGEST_FILM = 4 << 20  # bytes: what a page can carry
_LONGEST_LABEL = 32  # letters: what a legend can


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        name: unique among those of a report.
        experiment: its logs.
        fps: [n, 2] environment steps and frames a second.
        evaluations: rows of the evaluation log (`--eval_every`), oldest first.
        scores: of `fixpo-evaluate`, in files beside the logs.
        faults: what went wrong, one line each; empty where nothing did.
        films: that `fixpo-enjoy` has recorded, small enough for a page.
    """

    name: str
    experiment: Experiment
    fps: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    evaluations: Sequence[Mapping[str, Any]] = ()
    scores: Sequence[LevelScore] = ()
    faults: Sequence[str] = ()
    films: Sequence[Path] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The update log."""
        return self.experiment.rows

    @property
    def steps(self) -> np.ndarray:
        """[updates] environment steps."""
        return self.experiment.column("env_steps")


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed at most.

    Attributes:
        name: what distinguishes them from other groups.
        runs: one at least.
        label: the name, or a letter where names are too long for a legend.
    """

    name: str
    runs: Sequence[RunData]
    label: str


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """The runs by what varies between them, in the order of their first."""
    names = group_names([run.experiment.config for run in runs])
    if len(set(names)) == 1 and len(runs) == 1:
        names = [runs[0].name]
    different = list(dict.fromkeys(names))
    labels = different if max(map(len, different)) <= _LONGEST_LABEL else [_letters(i) for i in range(len(different))]
    return [
        Group(name, [run for run, own in zip(runs, names, strict=True) if own == name], label)
        for name, label in zip(different, labels, strict=True)
    ]


def _letters(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    first, last = divmod(number, 26)
    return (_letters(first - 1) if first else "") + chr(ord("A") + last)


def kls_over_bound(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """[updates] `kl_over_bound` of each."""
    return np.asarray([kl_over_bound(row) for row in rows], dtype=float)


def is_enforced(config: Mapping[str, Any]) -> bool:
    """Whether a run promises its bound at every state."""
    return config.get("algo") == "FIXPO" and config.get("fixup") != "off" and config.get("kl_stat", "max") == "max"


def read_run(folder: Path, name: str, policy_id: int, publish: Callable[[Mapping[str, Any]], dict[str, Any]]) -> RunData:
    """Reads a run's folder.

    Args:
        folder: of the run.
        name: what it is called in the report.
        policy_id: which policy of a population.
        publish: makes of its configuration what may be shown.

    Raises:
        LogError: a log is missing or not readable.
    """
    read = read_experiment(folder, policy_id)
    experiment = Experiment(
        name, publish(read.config), read.rows, read.return_steps, read.returns, read.entropy_steps, read.entropies
    )
    fps = read_scalars(folder, FPS_TAG, policy_id)
    seconds = float(np.ptp(fps[:, 1])) if len(fps) else 0.0
    films = [path for path in sorted(folder.glob("videos/*.mp4")) if path.stat().st_size <= _LARGEST_FILM]
    return RunData(
        name=name,
        experiment=experiment,
        fps=fps[:, ::2],
        evaluations=_read_evaluations(folder, policy_id),
        scores=_read_scores(folder),
        faults=[
            *sweep_faults(sweep_state(folder)),
            *file_faults(folder, policy_id, len(read.rows)),
            *faults_of(experiment, seconds),
        ],
        films=films,
    )


def _read_evaluations(folder: Path, policy_id: int) -> list[dict[str, Any]]:
    try:
        rows = list(read_rows(folder / EVALUATION_LOG))
    except (OSError, ValueError):
        return []
    return [row for row in rows if _is_evaluation(row) and row.get("policy_id") == policy_id]


def _is_evaluation(row: Any) -> bool:
    """Whether a row of the evaluation log has what is shown."""
    if not isinstance(row, dict) or not is_number(row.get("env_steps")) or not isinstance(row.get("levels"), dict):
        return False
    return all(
        isinstance(level, dict)
        and is_number(level.get("mean"))
        and is_number(level.get("n"))
        and is_number_or_none(level.get("se", ""))
        for level in row["levels"].values()
    )


def _read_scores(folder: Path) -> list[LevelScore]:
    found: list[LevelScore] = []
    for path in sorted(folder.glob("eval_*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # not written by fixpo-evaluate
            found += level_scores(json.loads(path.read_text()))
    return found


def sweep_faults(state: Mapping[str, Any]) -> list[str]:
    """What the launcher knows of a run of a sweep, where it did not simply go well."""
    found = []
    if state.get("status") in ("failed", "stopped"):
        found.append(f"{state['status']}: {state.get('reason') or 'no reason is known'} (exit status {state.get('exit_code')})")
    if (attempts := state.get("attempt") or 0) > 1:
        found.append(f"started {attempts} times by the launcher")
    return found


def file_faults(folder: Path, policy_id: int, living: int) -> list[str]:
    """What the files of a run tell of its past: updates made a second time, evaluations that failed.

    Args:
        folder: of the run.
        policy_id: which policy of a population.
        living: rows of the update log that lived on.
    """
    found = []
    path = folder / UPDATE_LOG
    written = sum(row.get("policy_id") == policy_id for row in read_rows(path)) if path.is_file() else 0
    if written > living:
        found.append(f"killed and resumed: {written - living} updates after the last checkpoint were lost and made again")
    if failed := sorted(folder.glob("evaluations/*.log")):
        found.append(f"{len(failed)} evaluation(s) did not end well: see {', '.join(path.name for path in failed[:3])}")
    return found


def _plural(count: int, what: str) -> str:
    return f"{count:,} update{'s' if count != 1 else ''} {what}"


def faults_of(experiment: Experiment, seconds: float = 0.0) -> list[str]:
    """What the update log says went wrong, worst first.

    Args:
        experiment: the run.
        seconds: between the first and the last that it logged.
    """
    rows, config = experiment.rows, experiment.config
    found = []
    if rows and is_enforced(config) and (over := int((~(kls_over_bound(rows) <= 1)).sum())):
        found.append(_plural(over, "over the bound: THE GUARANTEE IS BROKEN"))
    counts = (
        ("rolled_back", "undone, because a number was not finite"),
        ("backtracks", "went back along the line to the previous policy"),
        ("skipped_minibatches", "with minibatches without enough valid samples"),
    )
    for key, what in counts:
        if count := sum(bool(row.get(key)) for row in rows):
            found.append(_plural(count, what))
    found += describe(rows)
    target, limit = config.get("train_for_env_steps"), config.get("train_for_seconds")
    # nothing is logged while processes start and while the first samples are collected
    had_its_time = isinstance(limit, int | float) and seconds >= 0.9 * limit
    if rows and is_number(target) and rows[-1]["env_steps"] < target and not had_its_time:
        found.append(f"not at its end: {rows[-1]['env_steps']:,} of {target:,} steps (stopped, or running still)")
    return found


def phase_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds of an update by phase, in the order of Algorithm 1; empty without rows."""
    names = dict.fromkeys(name for row in rows for name in row.get("seconds", {}))
    order = ("prepare", "self_test", "reference", "statistics", "primary", "check", "fixup", "back", "publish")
    known = [name for name in order if name in names] + [name for name in names if name not in order]
    return {name: sum(row.get("seconds", {}).get(name, 0.0) for row in rows) / len(rows) for name in known}


def share_curve(rows: Sequence[Mapping[str, Any]], window: int = 20) -> np.ndarray:
    """[updates] fixup steps over primary steps of the latest updates."""
    fixup = np.cumsum([0, *(row["fixup_steps"] for row in rows)])
    primary = np.cumsum([0, *(row["primary_steps"] for row in rows)])
    end = np.arange(1, len(rows) + 1)
    start = np.maximum(0, end - window)
    return (fixup[end] - fixup[start]) / np.maximum(1, primary[end] - primary[start])
