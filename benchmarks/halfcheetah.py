"""FixPO beside APPO on HalfCheetah over several seeds, with the paper's settings: a markdown table, and its numbers as JSON.

    python -m benchmarks.halfcheetah --seeds=3 --steps=1_000_000 --jobs=2 --out=halfcheetah_runs

Every run is `python -m sf_fixpo.train` in a process of its own, with one thread. A finished run leaves `result.json` in its
folder and is not repeated when the same command is given again; an unfinished one is resumed from its checkpoint. The final
return is the mean of what the runner logged over the last tenth of the steps. Each value is itself a mean of the latest 100
episodes, and none is logged before there are 100: with 64 simulators and episodes of 1000 steps, before 128,000 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.runs import RunError, run_or_read
from sf_fixpo.records.run_logs import read_returns
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows

VARIANTS = {
    "FIXPO, shared": ("--algo=FIXPO", "--fixup_optimizer=shared"),
    "FIXPO, fresh": ("--algo=FIXPO", "--fixup_optimizer=fresh"),
    "APPO": ("--algo=APPO",),
}
FINAL_SHARE = 0.1  # of the steps, over which the final return is the mean


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        variant: key of VARIANTS.
        seed: of the run.
        env: environment trained on.
        steps: environment steps asked for.
        final_return: mean return over the last tenth of the steps.
        seconds: wall-clock time of the run's processes, resumed ones added up.
        fixup_share: gradient steps of the fixup phase over those of the primary phase; None for APPO.
        max_fixup_steps: most of them in one update.
        beta_range: smallest and largest beta after an update.
        worst_kl: largest kl_max / eps_kl of a published policy.
        backtracks: updates that went back towards the previous policy.
    """

    variant: str
    seed: int
    env: str
    steps: int
    final_return: float
    seconds: float
    fixup_share: float | None = None
    max_fixup_steps: int | None = None
    beta_range: tuple[float, float] | None = None
    worst_kl: float | None = None
    backtracks: int | None = None


def run_name(variant: str, seed: int, env: str, steps: int) -> str:
    """Folder name of a run; runs of other lengths do not mix."""
    return f"{env}_{variant}_{steps}_seed{seed}".lower().replace(", ", "_")


def flags(variant: str, seed: int, env: str, steps: int) -> list[str]:
    """The command line of one run, without its place."""
    common = [f"--env={env}", "--preset=paper", f"--train_for_env_steps={steps}", f"--seed={seed}", "--device=cpu"]
    # seconds between two logged returns: the default, 20, would leave one or two for the last tenth of the steps
    return [*common, "--experiment_summaries_interval=2", *VARIANTS[variant]]


def run_once(variant: str, seed: int, env: str, steps: int, out: Path) -> RunResult:
    """Trains one run to its end, or reads the result of one that is finished.

    Raises:
        RunError: the training failed, or left no returns.
    """
    folder = out / run_name(variant, seed, env, steps)
    return run_or_read(
        folder,
        flags(variant, seed, env, steps),
        RunResult,
        lambda seconds: summarise(folder, variant, seed, env, steps, seconds),
    )


def summarise(folder: Path, variant: str, seed: int, env: str, steps: int, seconds: float) -> RunResult:
    """Reads a finished run's logs.

    Raises:
        RunError: there is no return in the last tenth of the steps.
    """
    at, returns = read_returns(folder)
    final = returns[at >= (1 - FINAL_SHARE) * steps]
    if not final.size:
        raise RunError(f"{folder.name}: no return was logged in the last {FINAL_SHARE:.0%} of {steps} steps; train longer")
    common = {"variant": variant, "seed": seed, "env": env, "steps": steps, "seconds": round(seconds, 1)}
    common["final_return"] = float(final.mean())
    if not (folder / UPDATE_LOG).is_file():
        return RunResult(**common)
    rows = latest_rows(folder / UPDATE_LOG)
    betas = [row["beta"] for row in rows]
    return RunResult(
        **common,
        fixup_share=sum(row["fixup_steps"] for row in rows) / sum(row["primary_steps"] for row in rows),
        max_fixup_steps=max(row["fixup_steps"] for row in rows),
        beta_range=(min(betas), max(betas)),
        worst_kl=max(row["kl_max"] / row["eps_kl"] for row in rows),
        backtracks=sum(row["backtracks"] for row in rows),
    )


def make_table(results: list[RunResult]) -> str:
    """Markdown: a row per variant; spreads are standard deviations over the seeds."""
    head = ["algorithm", "seeds", "final return, mean (std)", "fixup / primary steps", "most fixup steps", "beta"]
    head += ["worst KL max / eps_kl", "backtracks", "seconds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for variant in VARIANTS:
        runs = [result for result in results if result.variant == variant]
        if not runs:
            continue
        finals = [run.final_return for run in runs]
        spread = f"{statistics.stdev(finals):.0f}" if len(finals) > 1 else "one seed"
        cells = [variant, str(len(runs)), f"{statistics.fmean(finals):.0f} ({spread})", *_fixpo_cells(runs)]
        cells.append(f"{statistics.fmean(run.seconds for run in runs):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fixpo_cells(runs: list[RunResult]) -> list[str]:
    ranges = [run.beta_range for run in runs if run.beta_range is not None]
    if not ranges:
        return ["n/a"] * 5
    return [
        f"{100 * statistics.fmean(run.fixup_share or 0.0 for run in runs):.2f} %",
        str(max(run.max_fixup_steps or 0 for run in runs)),
        f"{min(low for low, _ in ranges):.2f}-{max(high for _, high in ranges):.2f}",
        f"{max(run.worst_kl or 0.0 for run in runs):.4f}",
        str(sum(run.backtracks or 0 for run in runs)),
    ]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.halfcheetah", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N-1 of each algorithm")
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of each run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--env", default="mujoco_HalfCheetah")
    parser.add_argument(
        "--out", type=Path, default=Path("train_dir/halfcheetah"), help="folder of the runs and of table.md/.json"
    )
    args = parser.parse_args(argv)
    for name in ("seeds", "steps", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)}: must be an integer >= 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing and prints the table.

    Returns:
        The exit code: 0, 1 where a run failed (the others are still run, and kept), or 2 by argparse.
    """
    args = parse_args(argv)
    results: list[RunResult] = []
    failures: list[str] = []
    # by seed first: a table can be read, and compared fairly, as soon as one seed of each algorithm is done
    wanted = [(variant, seed) for seed in range(args.seeds) for variant in VARIANTS]
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(run_once, variant, seed, args.env, args.steps, args.out) for variant, seed in wanted]
        for future in as_completed(futures):
            try:
                result = future.result()
            except RunError as exc:
                failures.append(str(exc))
                print(exc, file=sys.stderr, flush=True)
                continue
            results.append(result)
            text = f"return {result.final_return:.0f} in {result.seconds:.0f} s"
            print(f"{result.variant}, seed {result.seed}: {text} ({len(results)} of {len(wanted)})", flush=True)
    results.sort(key=lambda result: (list(VARIANTS).index(result.variant), result.seed))
    table = make_table(results)
    print(f"\n{args.env}, {args.steps:,} steps\n\n{table}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(table + "\n")
    (args.out / "table.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
