"""Where runs are: a folder that is given may be a run, a sweep, or anything that holds runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sf_fixpo.records.run_logs import LogError

_DEPTH = 4  # of a sweep's folder: groups of runs, runs, and what somebody has put around them


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs in some folders, each once, in order.

    Raises:
        LogError: a folder is not there, or holds no run; one line for each.
    """
    found: dict[Path, None] = {}
    faults = []
    for folder in folders:
        runs = [folder] if is_run(folder) else list(_below(folder, _DEPTH)) if folder.is_dir() else []
        if not runs:
            what = "holds no run (no config.json in it or in the folders below)" if folder.is_dir() else "no such folder"
            faults.append(f"{folder}: {what}; give the folder of a run, <train_dir>/<experiment>, or of a sweep")
        found.update(dict.fromkeys(path.resolve() for path in runs))
    if faults:
        raise LogError("\n".join(faults))
    return list(found)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "config.json").is_file()


def _below(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if is_run(path):
            yield path
        elif depth > 1:
            yield from _below(path, depth - 1)


def unique_names(folders: Sequence[Path]) -> list[str]:
    """What each run is called: the shortest end of its path that no other has."""
    names = [folder.name for folder in folders]
    for parts in range(2, 6):
        if len(set(names)) == len(names):
            return names
        names = [
            "/".join(folder.parts[-parts:]) if names.count(name) > 1 else name
            for folder, name in zip(folders, names, strict=True)
        ]
    return names


def sweep_state(folder: Path) -> dict[str, Any]:
    """What the launcher has written of a run of a sweep (`launcher.sweep.RunState`); empty for a run of its own."""
    for parent in list(folder.parents)[:_DEPTH]:
        path = parent / ".sweep" / "runs" / f"{folder.name}.json"
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        return state if isinstance(state, dict) else {}
    return {}
