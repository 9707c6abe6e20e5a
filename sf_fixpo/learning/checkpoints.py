"""Checkpoint files: written whole or not at all, read without running code, never silently ignored."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

log = logging.getLogger("rl")


class CheckpointError(RuntimeError):
    """There are checkpoints, and none can be used."""


def save_atomically(state: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes `state` beside `path`, forces it to the disk, and renames it: a crash leaves the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # the rename itself is durable once the folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads one checkpoint, with `weights_only=True`.

    sample-factory's own checkpoints hold NumPy scalars (the best return), which is why torch >= 2.6 refuses them; exactly these
    types are allowed here, and nothing that runs code.
    """
    number = np.float64(0.0).__reduce__()[0]  # the function that a pickled scalar names, wherever this NumPy keeps it
    scalar_types: list[Any] = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    scalar_types += [(number, "numpy.core.multiarray.scalar"), (number, "numpy._core.multiarray.scalar")]
    with torch.serialization.safe_globals(scalar_types):
        return torch.load(path, map_location=device, weights_only=True)


def load_newest(paths: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Reads the last of `paths` that can be read; warns for each one that cannot and sets it aside under another name.

    Set aside, because the files are kept and removed by the order of their names: a torn newest one would outlive good ones.

    Returns:
        The checkpoint; None where there is no path at all.

    Raises:
        CheckpointError: there are files, and none can be read.
    """
    unreadable: list[Path] = []
    for path in reversed(paths):
        try:
            state = load(path, device)
        except Exception as exc:  # noqa: BLE001 - a torn or foreign file fails in many ways, all of them mean 'not this one'
            log.warning("Checkpoint %s cannot be read (%s: %s); trying the one before it", path, type(exc).__name__, exc)
            unreadable.append(Path(path))
            continue
        for bad in unreadable:
            bad.rename(bad.with_name(f"unreadable_{bad.name}"))
        return state
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoint(s) in {Path(paths[-1]).parent} can be read; not starting from scratch over "
            "them. Move them away, or use --restart_behavior=restart (keeps them under another name) or overwrite."
        )
    return None


def rng_state() -> dict[str, Any]:
    """The state of every generator a learner draws from, as tensors and plain values."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
    generator = numpy_state["state"]
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {**numpy_state, "state": {**generator, "key": torch.from_numpy(generator["key"].astype(np.int64))}},
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what `rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    generator = state["numpy"]["state"]
    key = generator["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**generator, "key": key}})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def architecture_faults(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[str]:
    """Where a checkpoint's weights are of another architecture than the run's: one line for each of the first differences."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        here = tuple(expected[name].shape) if name in expected else "absent"
        there = tuple(found[name].shape) if name in found else "absent"
        if here != there:
            lines.append(f"{name}: {here} in this run, {there} in the checkpoint")
    return lines
