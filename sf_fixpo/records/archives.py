"""What torch saves is a zip archive: whether one is whole, and no larger than it looks, before torch unfolds it."""

from __future__ import annotations

import io
import zipfile


def archive_fault(data: bytes) -> str | None:
    """Why an archive should not be given to torch, in words; None where it is whole.

    Torch compares no checksums, and takes what a compressed or a doubly listed member unfolds to.

    Args:
        data: of the file.

    Raises:
        Exception: of `zipfile`, in many kinds, where it is no archive at all.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        # torch compresses nothing
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > len(data):
            return "it holds more than its size"
        # by this bit a member is a folder: torch then takes whatever the memory for its numbers happened to hold
        folders = [member.filename for member in members if member.external_attr & 0x10]
        damaged = archive.testzip() or next(iter(folders), None)
    return f"{damaged} in it is damaged" if damaged else None
