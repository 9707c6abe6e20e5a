"""Imports the engines: DeepMind Lab, whose own loader is older than today's Python, and ViZDoom; says why where that fails.

DeepMind Lab's `__init__.py` loads its compiled module by two modules that may be gone: `imp` (from Python 3.12 on) and
`pkg_resources` (from setuptools 82 on). Here they are there for the time of the import. Nothing but the standard library is
imported, so that a trial in a process of its own is short.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import MappingProxyType, ModuleType

# They are programs of their own, whose abort is status 134 to the script that runs them; the engine then aborts likewise.
COMPILER_FAILED = (
    "DeepMind Lab's map compilers, q3map2 and bspc, abort (status 134) where memory or the temporary directory is full, or where "
    "the path of that is long: their own words are above; TMPDIR=/tmp is a short one, and fewer workers need less memory"
)

_SECONDS_FOR_A_TRIAL = 120.0
# What is used of each module: a folder that happens to have its name can be imported too, and has nothing in it.
_USED = MappingProxyType({"deepmind_lab": "Lab", "vizdoom": "DoomGame"})
_TRIAL = "import sys; from sf_fixpo.envs.dmlab.loader import load; getattr(load(sys.argv[1]), sys.argv[2])"


def load(name: str) -> ModuleType:
    """Imports an engine's module.

    Args:
        name: `deepmind_lab` or `vizdoom`.

    Raises:
        ImportError: it is not there, or a library that it needs is not; whatever else its loader raises is passed on.
    """
    with _old_modules(), warnings.catch_warnings():
        # Python 3.11 warns of `imp`, setuptools of `pkg_resources`: nobody here can change the loader that imports them.
        warnings.filterwarnings("ignore", "the imp module is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        return importlib.import_module(name)


def found(name: str) -> bool:
    """Whether an engine's module is there; it is not imported to find out."""
    # A module that was put into sys.modules by hand has no spec, and find_spec would raise.
    return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None


def lack(name: str) -> str | None:
    """Why an engine's module cannot be imported; None where it can.

    What is found is imported once, in a process of its own: a build for another Python may end the process it is imported in.

    Args:
        name: `deepmind_lab` or `vizdoom`.

    Returns:
        The end of a sentence that begins with the engine's name.
    """
    if not found(name):
        return "is not installed"
    if sys.modules.get(name) is not None:
        return None
    spec = importlib.util.find_spec(name)
    place = (spec and (spec.origin or ", ".join(spec.submodule_search_locations or ()))) or name
    failure = _failure(name, place)
    return failure and f"is installed ({place}) but cannot be imported: {failure}"


def ending(code: int) -> str:
    """An exit status in words: `exit code 1`, `SIGABRT, status 134`.

    Args:
        code: of a process; negative, or above 128 where a shell passed it on, for a signal.
    """
    number = -code if code < 0 else code - 128
    try:
        return f"{signal.Signals(number).name}, status {128 + number}"
    except ValueError:
        return f"exit code {code}"


@lru_cache
def _failure(name: str, place: str) -> str | None:
    """What an import of the module found at `place` ends with; None where it works."""
    del place  # what is found elsewhere is tried anew
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, name, _USED[name]],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS_FOR_A_TRIAL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its import did not end within {_SECONDS_FOR_A_TRIAL:.0f} s"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()
    if done.returncode == 1 and said:
        return said[-1]  # the exception
    return ": ".join([f"its import ended the process with {ending(done.returncode)}", *said[-1:]])


@contextmanager
def _old_modules() -> Iterator[None]:
    """Gives stand-ins for those of `imp` and `pkg_resources` that this Python has not."""
    makers: dict[str, Callable[[], ModuleType]] = {"imp": _make_imp, "pkg_resources": _make_pkg_resources}
    absent = [name for name in makers if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = makers[name]()
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def _make_imp() -> ModuleType:
    def load_dynamic(name: str, path: str, file: object = None) -> ModuleType:
        """A compiled module in place of whatever has its name."""
        del file
        loader = importlib.machinery.ExtensionFileLoader(name, path)
        spec = importlib.machinery.ModuleSpec(name, loader, origin=path)
        spec.has_location = True
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loader.exec_module(module)
        return module

    module = ModuleType("imp")
    module.load_dynamic = load_dynamic  # type: ignore[attr-defined]
    return module


def _make_pkg_resources() -> ModuleType:
    def resource_filename(package: str, resource: str) -> str:
        """A file beside the package's modules."""
        return os.path.join(os.path.dirname(os.path.abspath(sys.modules[package].__file__ or "")), resource)

    module = ModuleType("pkg_resources")
    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    return module
