"""The table of spaces in docs/environments.md: what FixPO learns in each kind of observation and action, beside chance.

    python -m benchmarks.spaces                              # all, a quarter of an hour on two free cores
    python -m benchmarks.spaces --only=MultiBinary           # those with this in their name

Each row is one run of `--preset=laptop` on the task of benchmarks/follow.py, audited.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.follow import ACTIONS, OBSERVATIONS
from benchmarks.programs import run_program
from sf_fixpo import cli

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
        RuntimeError: a program ended with another status than 0: the audit's is 1 where a state is over its bound.
    """
    flags = [ENV, f"--env_kwargs={json.dumps(kinds()[kind])}", f"--seed={seed}"]
    where = [f"--train_dir={folder}", "--experiment=run"]
    run_program("sf_fixpo.train", *flags, "--preset=laptop", f"--train_for_env_steps={steps}", "--audit_every=4", *where)
    run_program("sf_fixpo.audit", folder / "run", "--quiet")
    returns = {}
    for who, arguments in (("learned", [folder / "run"]), ("chance", [*flags, "--random"])):
        path = folder / f"{who}.json"
        run_program("sf_fixpo.evaluate", *arguments, f"--episodes={EPISODES}", "--workers=1", f"--json={path}")
        returns[who] = json.loads(path.read_text())["mean"]
    rows = [json.loads(line) for line in (folder / "run" / "updates.jsonl").read_text().splitlines()]
    return Row(kind, returns["learned"], returns["chance"], max(row["kl_max"] / row["eps_kl"] for row in rows))


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
