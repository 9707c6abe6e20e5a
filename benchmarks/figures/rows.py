"""Raw rows of a figure: a line for each run and each part of its steps, the CSV that all else is made from."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures.plan import Planned
from sf_fixpo.records.run_logs import ENTROPY_TAG, RETURN_TAG, LogError, read_config, read_tags
from sf_fixpo.records.update_log import UPDATE_LOG, kl_over_bound, latest_rows

VERSION = "1"  # of the columns' meaning: a file of another one is refused
SUCCESS_TAG = "policy_stats/avg_success"
_WHICH = ("version", "figure", "scale", "variant", "env", "algo", "seed", "commit", "machine")
_FIGURES = ("steps", "frames", "return", "success", "seconds", "updates", "primary_steps", "fixup_steps", "fixup_max")
_FIGURES += ("beta_q05", "beta_q50", "beta_q95", "kl_max_rel", "kl_median_rel", "over_bound", "entropy", "update_seconds")
COLUMNS = _WHICH + _FIGURES
TEXTS = frozenset({"version", "figure", "scale", "variant", "env", "algo", "commit", "machine"})
PARTS = 40


class VersionError(ValueError):
    """A CSV of other columns, or of another version, or of another figure; it is not mixed in."""


def machine() -> str:
    """What a run's seconds depend on, in words."""
    return f"{len(os.sched_getaffinity(0))} cores {platform.machine()}"


def run_rows(folder: Path, figure: str, scale: str, run: Planned, parts: int = PARTS) -> list[dict[str, Any]]:
    """The rows of one finished run.

    Args:
        folder: of the experiment.
        figure: its number.
        scale: its scale.
        run: which of the figure's.
        parts: of the run's steps.

    Returns:
        One row for each part in which something was logged: `frames` at its end (environment frames) and `steps` (decisions of
        the policy), mean logged return and success there, `seconds` since the run's first log entry. Of the updates there: how
        many, their primary and fixup steps, the most fixup steps of one, quantiles of beta, the largest and the median
        worst-state KL of a deployed policy over its bound, how many passed it, mean entropy (nats), seconds an update. APPO has
        no updates here.

    Raises:
        LogError: the folder holds no run.
    """
    config = read_config(folder)
    tags = read_tags(folder, [RETURN_TAG, SUCCESS_TAG, ENTROPY_TAG])
    log = folder / UPDATE_LOG
    updates = latest_rows(log) if log.is_file() else []
    if not updates and config["algo"] != "APPO":
        raise LogError(f"{log}: no update, though the run has finished")
    at = np.asarray([row["env_steps"] for row in updates], dtype=float)
    start = min((points[0, 1] for points in tags.values() if len(points)), default=0.0)
    common = {"version": VERSION, "figure": figure, "scale": scale, "variant": run.variant, "env": run.env}
    common |= {"algo": config["algo"], "seed": run.seed, "commit": config.get("git_hash", "unknown"), "machine": machine()}
    # the last update of a run ends a little after the steps that were asked for
    total = max([config["train_for_env_steps"], *at, *(points[-1, 0] for points in tags.values() if len(points))])
    rows = []
    for low, high in pairwise(np.linspace(0, total, parts + 1)):
        inside = {tag: points[(points[:, 0] > low) & (points[:, 0] <= high)] for tag, points in tags.items()}
        chosen = [updates[i] for i in np.flatnonzero((at > low) & (at <= high))]
        figures = _logged(inside, start) | (_of_updates(chosen) if chosen else {})
        if figures:
            where = {"frames": int(high), "steps": int(high) // config.get("env_frameskip", 1)}
            rows.append({**common, **where, **figures})
    return rows


def _logged(inside: Mapping[str, np.ndarray], start: float) -> dict[str, float]:
    names = {RETURN_TAG: "return", SUCCESS_TAG: "success", ENTROPY_TAG: "entropy"}
    found = {names[tag]: float(points[:, 2].mean()) for tag, points in inside.items() if len(points)}
    times = [points[-1, 1] - start for points in inside.values() if len(points)]
    return found | ({"seconds": float(max(times))} if times else {})


def _of_updates(updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    betas = np.asarray([np.mean(row["beta"]) for row in updates])
    over = [kl_over_bound(dict(row)) for row in updates]
    figures: dict[str, float] = {"updates": len(updates), "over_bound": sum(not kl <= 1 for kl in over), "kl_max_rel": max(over)}
    figures["kl_median_rel"] = float(np.median(over))
    figures |= {f"beta_q{round(100 * q):02d}": float(np.quantile(betas, q)) for q in (0.05, 0.5, 0.95)}
    figures |= {name: sum(row[name] for row in updates) for name in ("primary_steps", "fixup_steps")}
    figures["fixup_max"] = max(row["fixup_steps"] for row in updates)
    figures["update_seconds"] = float(np.mean([sum(row["seconds"].values()) for row in updates]))
    entropies = [row["entropy"] for row in updates if row.get("entropy") is not None]
    return figures | ({"entropy": float(np.mean(entropies))} if entropies else {})


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a figure's rows, the whole file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list[str](COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    temporary.replace(path)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a figure's CSV: numbers as floats, what is not there as None.

    Raises:
        VersionError: its columns or its version are others, or it is of several figures or scales.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        raw = list(reader)
        columns = tuple(reader.fieldnames or ())
    again = "make it again by python -m benchmarks.figure, or move it away"
    if columns != COLUMNS or any(row["version"] != VERSION for row in raw):
        versions = ", ".join(sorted({str(row.get("version", "none")) for row in raw})) or "none"
        raise VersionError(f"{path}: of version {versions}, this program's is {VERSION} ({len(COLUMNS)} columns); {again}")
    if len({(row["figure"], row["scale"]) for row in raw}) > 1:
        raise VersionError(f"{path}: rows of several figures or scales; {again}")
    try:
        return [{key: _value(key, text) for key, text in row.items()} for row in raw]
    except ValueError as exc:
        raise VersionError(f"{path}: {exc}; {again}") from exc


def _value(key: str, text: str) -> Any:
    if key in TEXTS:
        return text
    if key == "seed":
        return int(text)
    return float(text) if text else None


def csv_name(figure: str, scale: str) -> str:
    """The file's name."""
    return f"figure_{figure}_{scale}.csv"
