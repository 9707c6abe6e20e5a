"""JSON files that are whole or absent at any time, on a local disk and over NFS."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of `path`; None where there is no such file.

    Raises:
        ValueError: it is not a JSON object; the message names the file.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise ValueError(f"{path}: not JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content
