"""The table of spaces in docs/environments.md: what FixPO learns in each kind of observation and action, beside chance.

    python -m benchmarks.spaces                              # all, a quarter of an hour on two free cores
    python -m benchmarks.spaces --only=MultiBinary           # those with this in their name

Each row is one run of `--preset=laptop` on the task of benchmarks/follow.py, audited.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.follow import ACTIONS, OBSERVATIONS
from sf_fixpo import audit, cli, train
from sf_fixpo.playing.evaluation import evaluate
from sf_fixpo.playing.experiment import find_checkpoint, load_config
from sf_fixpo.records.update_log import UPDATE_LOG, kl_over_bound, latest_rows

ENV = "--env=gym_benchmarks.follow:Follow"
EPISODES = 100


class Row(NamedTuple):
    """What became of a kind: mean returns of 10, and the largest KL of a published policy over eps_kl."""

    kind: str
    learned: float
    chance: float
    worst: float


def kinds() -> dict[str, dict[str, str]]:
    """Names of rows, and the arguments of the environment behind each."""
    observations = {f"observation: {name}": {"observation": name} for name in OBSERVATIONS}
    return observations | {f"action: {name}": {"action": name} for name in ACTIONS}


def learn(kind: str, folder: Path, steps: int, seed: int = 1) -> Row:
    """Trains on a kind, audits the run, plays it and chance.

    Args:
        kind: of `kinds()`.
        folder: for the run.
        steps: of the environment.
        seed: of everything.

    Raises:
        RuntimeError: training failed, or the audit found a state over its bound.
    """
    flags = [ENV, f"--env_kwargs={json.dumps(kinds()[kind])}", f"--seed={seed}", "--preset=laptop", "--audit_every=4"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = train.main([*flags, f"--train_for_env_steps={steps}", f"--train_dir={folder}", "--experiment=run"])
        status = status or audit.main([str(folder / "run"), "--quiet"])
    if status:
        raise RuntimeError(f"{kind}: {said.getvalue()[-2000:]}")
    cfg = load_config(folder / "run")
    learned = evaluate(cfg, find_checkpoint(folder / "run", "latest"), EPISODES, workers=1, seed=seed + 1)
    chance = evaluate(cfg, None, EPISODES, workers=1, seed=seed + 1)
    worst = max(map(kl_over_bound, latest_rows(folder / "run" / UPDATE_LOG)))
    return Row(kind, learned.mean, chance.mean, worst)


def main(argv: list[str] | None = None) -> int:
    """Prints the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spaces", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--steps", type=int, default=20_000, help="of the environment, a run")
    args = cli.parse(parser, argv)
    print("| kind | learned | by chance | largest KL / eps_kl |\n|---|---|---|---|", flush=True)
    for kind in kinds():
        if args.only in kind:
            with tempfile.TemporaryDirectory() as folder:
                row = learn(kind, Path(folder), args.steps)
            print(f"| {row.kind} | {row.learned:.1f} | {row.chance:.1f} | {row.worst:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
