"""Damaged and hostile inputs, and what must hold whatever they are: no hang, no program started, nothing overwritten.

`FUZZ_INPUTS=100000 pytest tests/fuzz` gives each test its share of so many inputs, other ones every time; without it each has a
few, the same every time.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("FUZZ_INPUTS", "0"))
COUNTS: Counter[str] = Counter()  # inputs of each test in this process

_SECONDS = 20  # of processor time, for one input
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "webbrowser.open")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "shutil.move", "os.truncate", "os.link", "os.symlink")
_guard: list[Path] = []  # the folder that may be written to, while an input is looked at
_seen: list[str] = []


class Hang(BaseException):
    """An input took longer than any may."""


def fuzz(share: float, few: int = 25) -> Callable:
    """Settings of a test by its share of all inputs, or with a few."""
    return settings(
        max_examples=max(few, round(INPUTS * share)),
        deadline=None,
        derandomize=INPUTS == 0,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


def _hook(event: str, args: tuple) -> None:
    """What the interpreter says of itself, looked at while an input is read."""
    if not _guard:
        return
    if event in _STARTS and args[0] != "git":  # which sample-factory asks for the version of the code
        _seen.append(f"{event}{args!r:.200}")
    elif event == "open":
        path, mode, flags = args
        writes = any(letter in (mode or "") for letter in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
        if writes and isinstance(path, str | bytes | os.PathLike) and not _is_inside(path):
            _seen.append(f"opens {path!r} to write")
    elif event in _CHANGES and not isinstance(args[0], int) and not _is_inside(args[0]):
        _seen.append(f"{event} {args[0]!r}")
    elif event == "import" and args[0].partition(".")[0] == "hostile_module":
        _seen.append("imports hostile_module")


def _is_inside(path: Any) -> bool:
    found = os.path.realpath(os.fsdecode(path))
    return found == os.devnull or "__pycache__" in found or found.startswith(f"{_guard[-1]}{os.sep}")


sys.addaudithook(_hook)


def _out_of_time(*unused: object) -> None:
    raise Hang(f"more than {_SECONDS} s of processor time")


@contextmanager
def guarded(name: str, folder: Path) -> Iterator[None]:
    """Around one input: fails where a program is started, something outside the folder is written, or it does not end.

    Args:
        name: of the door, for the count.
        folder: the only one that may be written to.
    """
    COUNTS[name] += 1
    before = signal.signal(signal.SIGVTALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    _seen.clear()
    _guard.append(folder.resolve())
    try:
        yield
    finally:
        _guard.pop()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert not _seen, list(_seen)


def refuses(action: Callable[[], Any], *allowed: type[BaseException]) -> Any:
    """What an action returns, or None where it raises what it may, which must say something; anything else is a fault."""
    try:
        return action()
    except allowed as exc:
        refusal = exc
    assert str(refusal).strip(), f"{type(refusal).__name__} without a word"
    return None


def digest(folder: Path) -> dict[str, str]:
    """Every file of a folder by its content."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# -- inputs ----------------------------------------------------------------------------------------------------------------------

_TEXTS = ["", "0", "-1", "1e400", "nan", "inf", "9" * 40, "../x", "/etc/passwd", "\0", "x" * 5000, "[", "{}", "None", "1,2",
          "a:b", "*", "hostile_module:f", "\ud800", "é", "%s%n", "{0.x}", "gym_hostile_module:f", "true", "~"]  # fmt: skip
texts = st.one_of(st.sampled_from(_TEXTS), st.text(max_size=20))
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**63, -(2**63), 10**400, 0, -1, 1e308, float("nan"), float("inf")])
)
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
json_values = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)), max_leaves=5
)


@st.composite
def damaged_bytes(draw: Any, data: bytes) -> bytes:
    """A file with bits flipped, parts cut out, doubled, or put in the place of others."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        length = draw(st.integers(0, min(64, len(found))))
        how = draw(st.sampled_from(["flip", "cut", "drop", "double", "put", "zero"]))
        if how == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del found[at:]
        elif how == "drop":
            del found[at : at + length]
        elif how == "double":
            found[at:at] = found[at : at + length]
        elif how == "put":
            found[at : at + length] = draw(st.binary(max_size=64))
        else:
            found[at : at + length] = bytes(length)
    return bytes(found)


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


@st.composite
def damaged_json(draw: Any, value: Any) -> Any:
    """A JSON value with some of its parts, or keys, changed, removed or added."""
    import copy

    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_places(found))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(json_values)
            continue
        parent = found
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()) or isinstance(parent, list):
            parent[path[-1]] = draw(json_values)
        elif draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[draw(texts)] = parent.pop(path[-1])
    return found
