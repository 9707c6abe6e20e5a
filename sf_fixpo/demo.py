"""The demonstration behind `make demo`: train FixPO from pixels on two CPU cores, then play, audit and plot what it learned.

Exit status 0 where the agent's mean return is above the random agent's by at least three standard errors of the difference, the
audit finds every version inside the bound, and the plots are drawn; else 1, or that of the training.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from rich.console import Console

from sf_fixpo import audit, cli, plot, train
from sf_fixpo.playing.evaluation import EvalResult, evaluate
from sf_fixpo.playing.experiment import find_checkpoint, load_config

ENV = "dmlab_30_rooms_collect_good_objects"
MINUTES = 9.0
EPISODES = 64


def standard_errors_apart(agent: EvalResult, other: EvalResult) -> float:
    """The difference of two means in units of its own standard error."""
    spread = math.hypot(agent.se, other.se)
    return (agent.mean - other.mean) / spread if spread > 0 else math.inf * (agent.mean - other.mean)


def main(argv: list[str] | None = None) -> int:
    """Runs the demonstration; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sf_fixpo.demo", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="to play afterwards, for each agent")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--train_dir", type=Path, default=Path("train_dir"), help="where the run goes")
    args = cli.parse(parser, argv)
    console = Console()

    console.rule(f"1. FixPO on {ENV}, {args.minutes:g} minutes")
    flags = [f"--env={ENV}", "--preset=laptop", "--experiment=demo", "--restart_behavior=overwrite", "--audit_every=50"]
    flags += [f"--train_dir={args.train_dir}", f"--seed={args.seed}", f"--train_for_seconds={round(args.minutes * 60)}"]
    status = train.main(flags)
    if status:
        return status

    folder = args.train_dir / "demo"
    console.rule(f"2. {args.episodes} episodes of the agent, and of a random one")
    cfg = load_config(folder)
    agent = evaluate(cfg, find_checkpoint(folder, "latest"), args.episodes, seed=args.seed + 1)
    other = evaluate(cfg, None, args.episodes, seed=args.seed + 1)
    apart = standard_errors_apart(agent, other)
    console.print(
        f"agent   {agent.mean:+.2f}  (standard error {agent.se:.2f}, {len(agent.returns)} episodes, engine {agent.engine})"
    )
    console.print(f"random  {other.mean:+.2f}  (standard error {other.se:.2f}, {len(other.returns)} episodes)")
    console.print(f"difference: {apart:.1f} standard errors")

    console.rule("3. The guarantee, recomputed in float64")
    audited = audit.main([str(folder)])
    console.rule("4. Plots")
    plotted = plot.main([str(folder)])
    return int(bool(audited or plotted) or apart < 3.0)


if __name__ == "__main__":
    sys.exit(main())
