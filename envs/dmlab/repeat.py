"""Plays an episode again that an engine did not survive.

python -m sf_fixpo.envs.dmlab.repeat FILE
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

from sf_fixpo import cli
from sf_fixpo.envs.dmlab.env import DmLabEnv


def repeat(record: dict) -> str:
    """Plays a recorded episode; what became of it.

    Args:
        record: as `broken.write_episode` writes it.

    Raises:
        RuntimeError: the engine failed again.
    """
    where = {"seed": 0, "dmlab_engine": record["engine"], "dmlab_use_level_cache": False, "dmlab_level_cache_path": ""}
    env = DmLabEnv(record["level"], SimpleNamespace(**record["flags"], **where))
    try:
        env.begin(record["seed"])
        frames = 0
        for action in record["actions"]:
            _, _, ended, _, info = env.step(action)
            frames += info["num_frames"]
            if ended:
                break
        return f"{record['level']}, seed {record['seed']}: no fault in {frames} frames"
    finally:
        env.close()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 no fault, 1 the fault again, 2 no such file."""
    parser = ArgumentParser(prog="python -m sf_fixpo.envs.dmlab.repeat", description="Plays a broken episode again")
    parser.add_argument("file", type=Path, help="what the message of the fault names")
    path = cli.parse(parser, argv).file
    try:
        record = json.loads(path.read_text())
        missing = {"level", "engine", "seed", "flags", "actions"} - set(record)
    except (OSError, ValueError) as exc:
        print(f"{path}: must be the file that the fault's message names: {exc}", file=sys.stderr)
        return 2
    if missing:
        print(f"{path}: must be the file that a fault's message names; it has no {', '.join(sorted(missing))}", file=sys.stderr)
        return 2
    try:
        print(repeat(record))
    except RuntimeError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
