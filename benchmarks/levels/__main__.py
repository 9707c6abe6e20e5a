"""Measures the thirty levels on the stand-in.

python -m benchmarks.levels                                            how fast each is, as a table
python -m benchmarks.levels scores --out=benchmarks/results/levels.csv random agent and scripted player; goes on where it was
python -m benchmarks.levels memory --count=64                          environments of mixed levels at once
python -m benchmarks.levels growth --episodes=10_000                   whether anything grows
python -m benchmarks.levels sheet --out=docs/levels.png                a frame of each
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.levels import growth, labs, scores, sheet, speed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levels", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("what", nargs="?", default="speed", choices=("speed", "scores", "memory", "growth", "sheet"))
    parser.add_argument("--levels", default="", help="some of them, a,b,c by the beginnings of their names; all")
    parser.add_argument("--seconds", type=float, default=4.0, help="speed: of stepping, each level")
    parser.add_argument("--episodes", type=int, default=100, help="scores, growth: of each level")
    parser.add_argument("--agents", default=",".join(scores.AGENTS), help="scores: random, walker or both")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="scores: begin no block of episodes after so long")
    parser.add_argument("--count", type=int, default=64, help="memory: environments")
    parser.add_argument("--out", type=Path, help="scores: the CSV; sheet: the picture")
    return parser


def _scores(args: argparse.Namespace, levels: list[str]) -> None:
    path = args.out or Path("benchmarks/results/levels.csv")
    until = time.monotonic() + 60 * args.minutes
    for level, agent, first in scores.missing_blocks(path, levels, args.agents.split(","), args.episodes):
        if time.monotonic() > until:
            break
        scores.add_block(path, level, agent, first, scores.play_block(level, agent, first))
    print(scores.table(scores.read(path), levels))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 where there is no such level or agent."""
    args = _parser().parse_args(argv)
    chosen = tuple(filter(None, args.levels.split(",")))
    levels = [level for level in labs.all_levels() if not chosen or level.startswith(chosen)]
    if not levels or not set(args.agents.split(",")) <= set(scores.AGENTS):
        print(f"--levels={args.levels} --agents={args.agents}: no such level or agent", file=sys.stderr)
        return 2
    if args.what == "scores":
        _scores(args, levels)
    elif args.what == "memory":
        print(f"{args.count} environments of mixed levels: {growth.mixed_memory(args.count) / 1024:.2f} GiB")
    elif args.what == "growth":
        print(growth.HEADER)
        for level in levels:
            print(growth.growth_of(level, args.episodes).line(), flush=True)
    elif args.what == "sheet":
        sheet.write_sheet(args.out or Path("docs/levels.png"))
    else:
        print(speed.table([speed.speed_of(level, args.seconds) for level in levels]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
