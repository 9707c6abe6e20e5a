"""Checkpoint files: written whole or not at all, read without running code, checked before use, never silently ignored."""

from __future__ import annotations

import fnmatch
import io
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sf_fixpo.records.archives import archive_fault

log = logging.getLogger("rl")

_NAME = re.compile(r"[^_]+_(\d+)_(\d+)(_.*)?\.pth")  # prefix, train_step, env_steps, suffix
_PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds between the attempts at what the system refuses
_LISTINGS, _LISTING_PAUSE = 20, 0.1  # of a folder whose files vanish before they are opened
_SHOWN = 5  # faulty tensors that are named; the rest is counted
_ABSENT = object()


class CheckpointError(RuntimeError):
    """There are checkpoints, and none can be used."""


class UnreadableError(ValueError):
    """What a file holds is no checkpoint, or a damaged one: reading it again will not help."""


def save_atomically(state: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes `state` beside `path`, forces it to the disk, and renames it: a crash leaves the old file or the new one.

    Raises:
        OSError: the disk is full, for one; the old file is untouched.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(state, buffer)  # in memory: torch makes a RuntimeError about positions of a full disk
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # the rename is durable once the folder is, which not every system can open or force to the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads one checkpoint: compares its checksums, which torch does not, and unpickles it with `weights_only=True`.

    Raises:
        UnreadableError: the content is at fault.
        OSError, MemoryError: the system is.
    """
    data = Path(path).read_bytes()  # whatever the file system refuses, it refuses here
    try:
        if fault := archive_fault(data):
            raise UnreadableError(fault)
        state = unpickle(data)
    except (UnreadableError, MemoryError):
        raise
    except Exception as exc:
        if "allocate memory" in str(exc):  # torch says it with a RuntimeError
            raise MemoryError(str(exc)) from exc
        raise UnreadableError(f"{type(exc).__name__}: {exc}") from exc
    # anew, so that a fault of the device is not taken for one of the content
    return state if torch.device(device).type == "cpu" else unpickle(data, device)


def unpickle(data: bytes, device: torch.device | str = "cpu") -> Any:
    """Allows, beside torch's own types, exactly the NumPy scalars that sample-factory saves, and nothing that runs code."""
    number = np.float64(0.0).__reduce__()[0]  # the function that a pickled scalar names, wherever this NumPy keeps it
    scalar_types: list[Any] = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    scalar_types += [(number, "numpy.core.multiarray.scalar"), (number, "numpy._core.multiarray.scalar")]
    with torch.serialization.safe_globals(scalar_types):
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)


def load_newest(
    folder: str | os.PathLike,
    pattern: str,
    device: torch.device | str = "cpu",
    *,
    set_aside: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Any] | None:
    """Reads the newest checkpoint, by the steps in its name, whose content is whole; warns for each one that is not.

    Another process may save and remove meanwhile: where a file vanishes before it is opened, the folder is listed again.

    Args:
        folder: need not exist.
        pattern: of the names, as in `checkpoint_*.pth`.
        device: where the tensors go.
        set_aside: renames what was passed over to `unreadable_*`: a torn newest file would outlive good ones. Only for the
            learner that owns the folder.
        sleep: waits for so many seconds.

    Returns:
        The checkpoint, a dict with a dict `model`; None where there is no file at all.

    Raises:
        CheckpointError: there are files and the content of none is whole, or the system goes on refusing to read one: an older
            one is no substitute for that.
    """
    for attempt in range(_LISTINGS):
        # twice where it seems empty: a listing may miss both the file that comes and the one that goes in its course
        paths = _patiently(lambda: _listing(folder, pattern) or _listing(folder, pattern), folder, sleep)
        try:
            state, unreadable = _newest_readable(paths, device, sleep)
            break
        except FileNotFoundError as exc:
            if attempt == _LISTINGS - 1:
                raise CheckpointError(f"{exc.filename} is listed and cannot be found, {_LISTINGS} times") from exc
            sleep(_LISTING_PAUSE)
    if paths and state is None:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoint(s) in {folder} can be read; not starting from scratch over "
            "them. Move them away, or use --restart_behavior=restart (keeps them under another name) or overwrite."
        )
    for path in unreadable if set_aside else ():
        _put_aside(path, "unreadable")
    return state


def _listing(folder: str | os.PathLike, pattern: str) -> list[Path]:
    """Oldest first. `glob` would take a folder that cannot be read for an empty one, and read its name as a pattern."""
    try:
        names = fnmatch.filter(os.listdir(folder), pattern)
    except FileNotFoundError:
        return []
    return [Path(folder, name) for name in sorted(names, key=lambda name: (_steps(name) or (-1, -1), name))]


def _steps(name: str) -> tuple[int, int] | None:
    """train_step and env_steps of a checkpoint's name; None where it is not one."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def _newest_readable(paths: Sequence[Path], device: torch.device | str, sleep: Callable) -> tuple[dict | None, list[Path]]:
    unreadable: list[Path] = []
    for path in reversed(paths):
        try:
            state = _patiently(lambda path=path: load(path, device), path, sleep)
            if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
                raise UnreadableError("not a dict with a dict 'model'")
            return state, unreadable
        except UnreadableError as exc:
            log.warning("Checkpoint %s cannot be read (%s); trying the one before it", path, exc)
            unreadable.append(path)
    return None, unreadable


def _patiently(action: Callable[[], Any], what: str | os.PathLike, sleep: Callable, pauses: Sequence[float] = _PAUSES) -> Any:
    """What `action` returns, called again where the system refuses; that a file is not there is passed on at once."""
    try:
        return action()
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as exc:
        message = f"{what} cannot be read at present ({type(exc).__name__}: {exc})"
        if not pauses:
            raise CheckpointError(f"{message}; it may well be whole: nothing was changed, try again later") from exc
    log.warning("%s; trying again in %.1f s", message, pauses[0])
    sleep(pauses[0])
    return _patiently(action, what, sleep, pauses[1:])


def tidy(folder: str | os.PathLike, prefix: str, written: str | os.PathLike, keep: int) -> None:
    """After a save: puts the files of a line that was left aside as `superseded_*`, and removes the oldest of this one.

    A run that resumed from an older checkpoint saves at fewer steps than the line it left had reached. What the system refuses to
    rename or remove is logged, and tried again after the next save.

    Args:
        folder: where they lie.
        prefix: `checkpoint` or `best`: files `{prefix}_{train_step}_{env_steps}{suffix}.pth`; others are left alone.
        written: the file that was just saved; it stays.
        keep: how many of this line stay, that one included.

    Raises:
        ValueError: `written` is not so named.
    """
    name = Path(written).name
    reached = _steps(name)
    if reached is None or not name.startswith(f"{prefix}_"):
        raise ValueError(f"{name}: must be {prefix}_<train_step>_<env_steps>.pth")
    found: list[Path] = []
    with _tolerated(folder):
        found = [path for path in _listing(folder, f"{prefix}_*.pth") if path.name != name]
    steps = {path: _steps(path.name) for path in found}
    older = [path for path, at in steps.items() if at is not None and at <= reached]
    for path in [path for path, at in steps.items() if at is not None and at > reached]:
        _put_aside(path, "superseded")
    for path in older[: max(0, len(older) + 1 - keep)]:
        with _tolerated(path):
            path.unlink()


def _put_aside(path: Path, why: str) -> None:
    target, number = path.with_name(f"{why}_{path.name}"), 1
    with _tolerated(path):
        while target.exists():
            number += 1
            target = path.with_name(f"{why}_{number}_{path.name}")
        path.rename(target)
        log.warning("Checkpoint %s is put aside as %s", path, target.name)


@contextmanager
def _tolerated(path: str | os.PathLike) -> Iterator[None]:
    """That somebody else has moved a file is no fault, and another refusal is not worth the run."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as exc:
        log.warning("%s cannot be put aside or removed (%s)", path, exc)


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
    """Restores what `rng_state` returned; of the GPUs, those that are there."""
    _set_generators(state, torch.default_generator, np.random, random)
    for device, cuda in zip(range(torch.cuda.device_count()), state.get("cuda", ()), strict=False):
        torch.cuda.set_rng_state(cuda.cpu(), device)


def _set_generators(state: dict[str, Any], torch_generator: torch.Generator, numpy_generator: Any, generator: Any) -> None:
    torch_generator.set_state(state["torch"].cpu())
    inner = state["numpy"]["state"]
    numpy_generator.set_state({**state["numpy"], "state": {**inner, "key": inner["key"].cpu().numpy().astype(np.uint32)}})
    version, internal, gauss = state["python"]
    generator.setstate((version, tuple(internal), gauss))


def saved_betas(state: dict[str, Any]) -> int | None:
    """How many multipliers a checkpoint was saved with; None where it holds none, or nothing that could be them."""
    try:
        return state["fixpo"]["multiplier"]["beta"].numel()
    except (KeyError, TypeError, AttributeError, IndexError):
        return None


def architecture_faults(expected: dict[str, Tensor], found: dict[str, Any]) -> list[str]:
    """Where a checkpoint's tensors are of other names, shapes or kinds than the run's: a line for each."""
    names = sorted(expected.keys() | found.keys(), key=str)
    pairs = ((name, _mismatch(expected.get(name, _ABSENT), found.get(name, _ABSENT))) for name in names)
    return [f"{name}: {mismatch}" for name, mismatch in pairs if mismatch]


def state_faults(expected: dict[str, Tensor], found: object, what: str) -> list[str]:
    """Which tensors of a saved state do not fit, or are not finite: a line for each of the first, then a count.

    Args:
        expected: the tensors of this run. Floats may be of another precision, integers of another width.
        found: what the checkpoint holds.
        what: the name of the state; each line begins with it.
    """
    if not isinstance(found, dict):
        return [f"{what}: {len(expected)} named tensors in this run, {_described(found)} in the checkpoint"]
    lines = architecture_faults(expected, found)
    for name, tensor in found.items():
        if name in expected and _mismatch(expected[name], tensor) is None and not (finite := tensor.isfinite()).all():
            lines.append(f"{name}: {int((~finite).sum())} of {tensor.numel()} numbers in the checkpoint are not finite")
    more = [f"{what}: {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"{what}.{line}" for line in lines[:_SHOWN]] + more


def checkpoint_faults(state: Any, model_state: dict[str, Tensor], parameters: Sequence[Tensor], betas: int | None) -> list[str]:
    """What keeps a whole checkpoint from being taken over: a line for each fault, which begins with the entry's name.

    Args:
        state: the checkpoint; one of APPO has no entry `fixpo`.
        model_state: the state of this run's network.
        parameters: those of this run's optimizer (Adam, or one with Adam's moments), in order.
        betas: how many multipliers this run has; None where it has no use for the entry `fixpo`.
    """
    if not isinstance(state, dict):
        return [f"the checkpoint: must be a dict, is {_described(state)}"]
    lines = _count_faults(state, ("train_step", "env_steps"))
    lines += state_faults(model_state, state.get("model", _ABSENT), "model")
    lines += _optimizer_faults(state.get("optimizer"), parameters)
    rate = state.get("curr_lr", _ABSENT)
    if not _is_number(rate) or rate < 0:  # 0 is where a linear decay ends
        lines.append(f"curr_lr: must be a finite number >= 0, is {_described(rate)}")
    if "fixpo" in state and betas is not None:
        lines += _fixpo_faults(state["fixpo"], betas)
    return lines


def _optimizer_faults(found: Any, parameters: Sequence[Tensor]) -> list[str]:
    try:
        saved, indices = dict(found["state"]), [index for group in found["param_groups"] for index in group["params"]]
    except (TypeError, KeyError, ValueError, IndexError):
        return ["optimizer: must be a dict with 'state' and 'param_groups'"]
    if indices != list(range(len(parameters))):  # as torch numbers them
        return [f"optimizer.param_groups: {len(parameters)} parameters in this run, {len(indices)} in the checkpoint"]
    expected: dict[str, Tensor] = {}
    tensors: dict[str, Any] = {}
    for index, moments in saved.items():  # none for a parameter that never had a gradient
        if index not in indices or not isinstance(moments, dict):
            tensors[str(index)] = moments
            continue
        parameter = parameters[int(index)]
        expected |= {f"{index}.exp_avg": parameter, f"{index}.exp_avg_sq": parameter, f"{index}.step": torch.zeros(())}
        tensors |= {f"{index}.{key}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in moments}
        if _is_number(moments.get("step")):  # not every optimizer counts in a tensor
            tensors[f"{index}.step"] = torch.tensor(float(moments["step"]))
    return state_faults(expected, tensors, "optimizer.state")


def _fixpo_faults(found: Any, betas: int) -> list[str]:
    if not isinstance(found, dict):
        return [f"fixpo: must be a dict, is {_described(found)}"]
    multiplier = {name: torch.zeros(betas) for name in ("beta", "exp_avg", "exp_avg_sq", "steps")}
    lines = state_faults(multiplier, found.get("multiplier", _ABSENT), "fixpo.multiplier")
    if "mean_multiplier" in found:  # not in the checkpoints of older versions
        lines += state_faults({"beta": torch.zeros(betas)}, found["mean_multiplier"], "fixpo.mean_multiplier")
    lines += _count_faults(found, ("updates", "rollbacks_in_row", "lr_schedule_step"), "fixpo.")
    try:  # on generators of no use
        _set_generators(found["rng"], torch.Generator(), np.random.RandomState(), random.Random())
    except Exception as exc:  # noqa: BLE001 - each generator has its own way of refusing what is no state of it
        lines.append(f"fixpo.rng: must be states of random generators ({type(exc).__name__}: {str(exc).partition(chr(10))[0]})")
    return lines


def _count_faults(state: dict[str, Any], names: Sequence[str], where: str = "") -> list[str]:
    values = {name: state.get(name, _ABSENT) for name in names}
    wrong = {name: value for name, value in values.items() if type(value) is not int or value < 0}
    return [f"{where}{name}: must be a whole number >= 0, is {_described(value)}" for name, value in wrong.items()]


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _mismatch(here: object, there: object) -> str | None:
    if isinstance(here, Tensor) and isinstance(there, Tensor) and _kind(here) == _kind(there):
        if here.shape == there.shape:
            return None
        return f"{tuple(here.shape)} in this run, {tuple(there.shape)} in the checkpoint"
    return f"{_described(here)} in this run, {_described(there)} in the checkpoint"


def _kind(tensor: Tensor) -> str:
    kind = "float" if tensor.is_floating_point() else "integer"
    return str(tensor.dtype) if tensor.is_complex() or tensor.dtype == torch.bool else kind


def _described(x: object) -> str:
    if x is _ABSENT:
        return "absent"
    if isinstance(x, Tensor):
        return f"{tuple(x.shape)} {_kind(x)}"
    return repr(x)[:40] if x is None or isinstance(x, (int, float, str)) else f"a {type(x).__name__}"
