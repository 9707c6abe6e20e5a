"""Secrets (the W&B key, the hub token): where they may come from, and a look for them where they must not be."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

# Inherited from the launcher's environment by every backend's jobs.
SECRET_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

_SECRET_NAME = re.compile(r"(^|[_-])(key|apikey|token|secret|passw(or)?d|credentials?)$", re.IGNORECASE)
# A W&B key (40 hexadecimal digits, newer ones with a prefix) and a token of the Hugging Face hub.
_SECRET_VALUE = re.compile(r"[0-9a-f]{40}|wandb_v1_\w{20,}|hf_[A-Za-z0-9]{30,}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOW = "secrets go by environment (WANDB_API_KEY, HF_TOKEN) or --secrets_file"


class SecretsFileError(ValueError):
    """A secrets file cannot be used; the message never quotes its content."""


def looks_secret(name: str) -> bool:
    """Whether a flag or variable of this name would hold a secret."""
    return _SECRET_NAME.search(name.lstrip("-")) is not None


def description_faults(run_name: str, command: Iterable[str], env: Mapping[str, str]) -> list[str]:
    """Where a run's command or environment seems to hold a secret, one line a place, which does not repeat the value."""
    found = []
    for argument in command:
        name, has_value, _ = argument.partition("=")
        is_flag = argument.startswith("-") or (has_value and _VARIABLE.fullmatch(name))
        if is_flag and looks_secret(name):
            found.append(f"run {run_name}: {name} in its command: looks like a secret; {_HOW}")
        elif _holds_secret(argument):
            found.append(f"run {run_name}: the value of {name if is_flag else 'an argument'} looks like a secret; {_HOW}")
    for name, value in env.items():
        if looks_secret(name) or _holds_secret(value):
            found.append(f"run {run_name}: {name} in its env_vars: looks like a secret; {_HOW}")
    return found


def _holds_secret(text: str) -> bool:
    known = (os.environ.get(name, "") for name in SECRET_VARIABLES)
    # a value of a few letters may well be part of something harmless
    return _SECRET_VALUE.search(text) is not None or any(len(value) >= 8 and value in text for value in known)


def read_secrets(path: str | os.PathLike) -> dict[str, str]:
    """Reads a secrets file: lines of KEY=VALUE, empty lines and # comments.

    Raises:
        SecretsFileError: it cannot be read, others may read it, or a line is not KEY=VALUE.
    """
    flag = f"--secrets_file={path}"
    try:
        mode = Path(path).stat().st_mode
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SecretsFileError(f"{flag}: cannot be read: {getattr(exc, 'strerror', None) or type(exc).__name__}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecretsFileError(f"{flag}: its mode is {stat.S_IMODE(mode):03o}, others could read it: chmod 600 {path}")
    secrets = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, has_value, value = line.partition("=")
        if not has_value or not _VARIABLE.fullmatch(name.strip()):
            raise SecretsFileError(f"{flag}: line {number} must be KEY=VALUE")
        secrets[name.strip()] = value.strip()
    return secrets
