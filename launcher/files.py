"""JSON files that are whole or absent at any time, on a local disk and over NFS."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

# What a file must have and of what kind, and what it may have.
Kinds = Mapping[str, type | tuple[type, ...]]
_NOTHING: Kinds = MappingProxyType({})
NUMBER = (int, float)
_LARGEST = 2**63


class SweepError(ValueError):
    """A sweep cannot be made or read; the message says why, one line a fault."""


@contextmanager
def _temporary(path: Path, content: dict[str, Any]) -> Iterator[Path]:
    """A complete file beside `path`, on the disk; removed again where the block has not renamed it."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}.tmp")
    data = (json.dumps(content, indent=1) + "\n").encode()
    try:
        file = temporary.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces `path`, making its folder where there is none; a crash leaves the old file or the new one."""
    with _temporary(path, content) as temporary:
        temporary.replace(path)


def create_json(path: Path, content: dict[str, Any]) -> bool:
    """Creates `path` with its whole content, unless it exists.

    A hard link rather than O_EXCL: nobody can read a half-written file, and it is atomic on every version of NFS.

    Returns:
        Whether it was created here: of several that try at once, exactly one gets True.
    """
    with _temporary(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


def read_json(path: Path, needs: Kinds = _NOTHING, may_have: Kinds = _NOTHING) -> dict[str, Any] | None:
    """The content of `path`; None where there is no such file.

    Args:
        path: of the file.
        needs: keys that it must have, with the types of their values.
        may_have: keys that it may lack.

    Raises:
        SweepError: it is not a JSON object, or not such a one; the message names the file and what to do.
    """
    help_text = "; it was damaged, or not written by the launcher: put it back from a copy, or move it away"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as exc:
        raise SweepError(f"{path}: not JSON ({exc}){help_text}") from exc
    if not isinstance(content, dict):
        raise SweepError(f"{path}: not a JSON object{help_text}")
    for key, kind in {**may_have, **needs}.items():
        if (key in content and not is_of(content[key], kind)) or (key in needs and key not in content):
            raise SweepError(f"{path}: has {str(content.get(key, 'nothing'))[:40]!r} as {key}{help_text}")
    return content


def is_of(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value of a JSON file is of a type, and a number one that can be reckoned with: finite, and no bool."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kind) and (not isinstance(value, NUMBER) or -_LARGEST < value < _LARGEST)
