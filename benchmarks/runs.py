"""Training runs of a benchmark: each a process of its own, resumed where it was cut off, not repeated once it is finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


class RunError(RuntimeError):
    """A run failed; the message says which, and where its output is."""


def run_or_read(folder: Path, flags: list[str], make: type[Result], summarise: Callable[[float], Result]) -> Result:
    """Trains one run to its end, or reads the result of one that is finished.

    Args:
        folder: of the experiment; it gets `result.json`, `output.txt` and `seconds.json`.
        flags: of `python -m sf_fixpo.train`, without those that say where.
        make: the dataclass of a result, for reading one.
        summarise: makes the result; gets the seconds that the run's processes took, resumed ones added up.

    Raises:
        RunError: the training failed.
    """
    result_path = folder / "result.json"
    if result_path.is_file():
        return make(**json.loads(result_path.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    log_path, seconds_path = folder / "output.txt", folder / "seconds.json"
    before = json.loads(seconds_path.read_text()) if seconds_path.is_file() else 0.0
    start = time.monotonic()
    where = [f"--train_dir={folder.parent}", f"--experiment={folder.name}"]
    with log_path.open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, "-m", "sf_fixpo.train", *flags, *where]
        code = subprocess.run(argv, stdout=log, stderr=log, env=environment).returncode
    seconds = before + time.monotonic() - start
    seconds_path.write_text(json.dumps(seconds))
    if code:
        last_lines = "\n".join(log_path.read_text(errors="replace").splitlines()[-5:])
        raise RunError(f"{folder.name}: exit code {code}; the end of {log_path}:\n{last_lines}")
    result: Any = summarise(seconds)
    temporary = result_path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(result), indent=1) + "\n")
    temporary.replace(result_path)
    return result
