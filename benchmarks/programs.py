"""Programs of this package as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys


def run_program(module: str, *arguments: object) -> str:
    """Runs `python -m module arguments...`, one thread an OpenMP pool.

    Returns:
        Its standard output.

    Raises:
        RuntimeError: it ended with another status than 0; the message has the end of what it said.
    """
    argv = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv[2:])}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
