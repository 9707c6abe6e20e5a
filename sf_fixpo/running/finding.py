"""Is there such a script? Asked before anything is imported that takes seconds."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any


class ScriptError(RuntimeError):
    """A script cannot be run, or does not register what it should."""


def find_script(script: dict[str, Any]) -> None:
    """Looks for a script beforehand, so that what it fails to import itself is shown as its own error.

    A module is looked for in the working directory too, which is on Python's path from then on, as for `python -m`.

    Args:
        script: `module`, a module's name, or `path`, a file's.

    Raises:
        ScriptError: there is no such file or module, or it is a package that cannot be run.
    """
    if "path" in script:
        if not os.path.isfile(script["path"]):
            raise ScriptError(f"{script['path']}: no such file")
        return
    here, module = os.getcwd(), script["module"]
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except (ImportError, ValueError) as exc:
        raise ScriptError(f"{module}: {exc}") from exc
    if spec is None:
        raise ScriptError(
            f"{module}: no such module, here or on PYTHONPATH, or a package without __main__; name one that `python -m` runs"
        )
