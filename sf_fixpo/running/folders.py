"""A run's folder: what it may be called, what may be removed for it, who works in it, and whether anything is left to do."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sample_factory.utils.typing import Config

from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.checkpointing import read_weights
from sf_fixpo.records.foreign import foreign_faults

try:
    import fcntl
except ImportError:  # where the system has no such locks, two runs in one folder are not noticed
    fcntl = None  # type: ignore[assignment]


class FolderInUseError(ValueError):
    """Another run works in the folder; the message says which."""


def folder_of(cfg: Config) -> Path:
    """The experiment's folder; it need not exist."""
    return Path(cfg.train_dir).absolute() / cfg.experiment


def name_faults(experiment: str) -> list[str]:
    """Whether an experiment's name stays inside `--train_dir`, and is a folder of its own there.

    Args:
        experiment: the value of `--experiment`; parts divided by a slash are folders in each other.

    Returns:
        One line at most: the flag, the value, what is allowed.
    """
    parts = experiment.split("/")
    if not experiment.strip() or {"", ".", ".."} & {part.strip() for part in parts} or "\0" in experiment:
        allowed = "must be the name of a folder inside --train_dir: not empty, not absolute, no part of it empty, '.' or '..'"
        return [f"--experiment={experiment}: {allowed}"]
    return []


def train_dir_faults(train_dir: str) -> list[str]:
    """Whether the folder of all experiments can be made and written."""
    path = Path(train_dir).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir():
        return [f"--train_dir={train_dir}: {nearest} is not a folder"]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [f"--train_dir={train_dir}: {nearest} cannot be written by this user"]
    return []


def removal_faults(cfg: Config) -> list[str]:
    """Whether what `--restart_behavior` would remove or move away is a run's folder and nothing else.

    Args:
        cfg: `train_dir`, `experiment`, `restart_behavior`.
    """
    folder = folder_of(cfg)
    if cfg.restart_behavior == "resume" or not os.path.lexists(folder):
        return []
    flag = f"--restart_behavior={cfg.restart_behavior}: {folder}"
    if folder.is_symlink() or not folder.is_dir():
        return [f"{flag} is not a folder but a link or a file; remove it yourself, or use another --experiment"]
    if any(folder.iterdir()) and not (folder / "config.json").is_file():
        return [
            f"{flag} holds no config.json, so it is no run's folder; remove what is in it yourself, or use another --experiment"
        ]
    return []


def experiment_faults(cfg: Config) -> list[str]:
    """All of the above."""
    found = name_faults(cfg.experiment) + train_dir_faults(cfg.train_dir)
    return found or removal_faults(cfg)


# What a network is made with and a checkpoint's weights then replace: on resume they could do nothing.
_ONLY_AT_THE_START = (
    "init_from",
    "initial_stddev",
    "policy_initialization",
    "policy_init_gain",
    "policy_head_init_scale",
    "value_normalization",
)


def start_faults(cfg: Config) -> list[str]:
    """What keeps a run from being resumed: flags that only its start could have heeded, and code that came from outside.

    Args:
        cfg: as parsed, with `cli_args`, before what was saved is taken over.

    Raises:
        ValueError: the folder's config.json cannot be read.
    """
    path = folder_of(cfg) / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(saved, dict):
        raise ValueError("it is no JSON object")
    return foreign_faults(path.parent, saved) + [
        f"--{name}={value}: {path.parent} was started with {saved[name]!r}, and only a start heeds it; leave it out, or use "
        "another --experiment or --restart_behavior=restart"
        for name, value in cfg.cli_args.items()
        if name in _ONLY_AT_THE_START and name in saved and saved[name] != value
    ]


def init_faults(cfg: Config) -> list[str]:
    """Whether `--init_from` names a checkpoint that can be read, for every policy; one line at most."""
    if not cfg.init_from:
        return []
    try:
        for policy_id in range(cfg.num_policies):
            read_weights(cfg.init_from, policy_id)
    except checkpoints.CheckpointError as exc:
        return [str(exc)]
    return []


@contextmanager
def sole_run(cfg: Config) -> Iterator[None]:
    """Holds the lock of an experiment's folder; the system gives it back when the process ends, however it ends.

    It lies beside the folder, which `--restart_behavior` may move away or remove while it is held.

    Raises:
        FolderInUseError: another run holds it.
    """
    folder = folder_of(cfg)
    path = folder.with_name(f".{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, f"--experiment={cfg.experiment}: another run works in {folder}")
    if file is None:
        yield
        return
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # before it is given back: who waits for it finds that it is gone, and makes another
                path.unlink()


def _locked(path: Path, refusal: str) -> IO[str] | None:
    """The lock file, held; None where the file system knows no locks."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise FolderInUseError(
                f"{refusal}{f' ({holder})' if holder else ''}; wait for its end, or use another name"
            ) from None
        except OSError:
            file.close()
            return None
        if _is_still(path, file):
            break
        file.close()  # its holder has removed it just now
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _is_still(path: Path, file: IO[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def saved_states(cfg: Config) -> list[dict[str, Any] | None]:
    """The newest checkpoint of each policy that a resumed run goes on from; None for one without any.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    prefix = {"latest": "checkpoint", "best": "best"}[cfg.load_checkpoint_kind]
    folders = (folder_of(cfg) / f"checkpoint_p{policy_id}" for policy_id in range(cfg.num_policies))
    return [checkpoints.load_newest(folder, f"{prefix}_*.pth") for folder in folders]


def already_done(cfg: Config, states: list[dict[str, Any] | None]) -> str | None:
    """That a run has had all its steps, in a sentence; None where there are some left.

    Args:
        cfg: `train_for_env_steps`.
        states: of its policies, as `saved_states` gives them.
    """
    steps = [state["env_steps"] for state in states if state is not None and isinstance(state.get("env_steps"), int)]
    if len(steps) < len(states) or min(steps) < cfg.train_for_env_steps:
        return None
    return (
        f"{folder_of(cfg)} is finished: {min(steps):,} steps of --train_for_env_steps={cfg.train_for_env_steps:,}. "
        "Nothing was done; ask for more steps to go on, or use --restart_behavior=restart."
    )
