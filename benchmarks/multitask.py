"""One policy on five levels: one beta for all, one beta per task, and APPO, over several seeds.

    python -m benchmarks.multitask --seeds=3 --steps=1_500_000 --out=multitask_runs

The claim to test is the paper's (section 6): one shared beta stops progress on several tasks at once, and one beta per task would
lift it. Every run trains with the laptop preset on the ViZDoom stand-in for the same number of frames; then its last checkpoint
plays every level. A finished run is not repeated when the same command is given again, an unfinished one is resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.runs import RunError, run_or_read
from sf_fixpo.audit import ViolationError, audit
from sf_fixpo.envs import find_suite
from sf_fixpo.playing.evaluation import evaluate_all
from sf_fixpo.playing.experiment import find_checkpoint, load_config
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows

LEVELS = (
    "rooms_collect_good_objects",
    "rooms_exploit_deferred_effects",
    "rooms_select_nonmatching_object",
    "explore_object_locations_small",
    "explore_goal_locations_small",
)
VARIANTS = {
    "FIXPO, shared": ("--algo=FIXPO", "--beta_scope=shared"),
    "FIXPO, per task": ("--algo=FIXPO", "--beta_scope=per_task"),
    "APPO": ("--algo=APPO",),
}
AUDIT_EVERY = 10


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        variant: key of VARIANTS.
        seed: of the run.
        steps: frames asked for.
        seconds: wall-clock time of the training.
        returns: by level, mean return of the episodes played with the last checkpoint.
        errors: by level, standard error of that mean.
        beta: by level, its mean over the updates; empty for APPO.
        kl: by level, mean over the updates of kl_max / eps_kl of the published policy.
        share: by level, of the samples trained on.
        worst_kl: largest kl_max / eps_kl of a published policy on any level.
        fixup_share: gradient steps of the fixup phase over those of the primary phase.
        backtracks: updates that went back towards the previous policy.
        audited: published versions recomputed in float64, none over the bound.
    """

    variant: str
    seed: int
    steps: int
    seconds: float
    returns: dict[str, float]
    errors: dict[str, float]
    beta: dict[str, float]
    kl: dict[str, float]
    share: dict[str, float]
    worst_kl: float | None = None
    fixup_share: float | None = None
    backtracks: int | None = None
    audited: int | None = None


def flags(variant: str, seed: int, steps: int) -> list[str]:
    """The command line of one run, without its place."""
    common = ["--env=dmlab_30", f"--dmlab_levels={','.join(LEVELS)}", "--dmlab_engine=vizdoom", "--preset=laptop"]
    # 40 environments: each half of a worker plays every level twice
    # the rewards of a step go from 1 to 10, so they are squashed as IMPALA does; what is played afterwards is scored without
    common += ["--dmlab_optimistic_rewards=True"]
    # with the preset's 3 epochs and bound of 0.5 beta stays at 0, and its scope makes no difference (pilot runs, seed 100)
    common += ["--num_epochs=6", "--eps_kl=0.2", "--exploration_loss_coeff=0.01"]
    common += [f"--train_for_env_steps={steps}", f"--seed={seed}", "--num_envs_per_worker=20", "--worker_num_splits=2"]
    return [*common, f"--audit_every={AUDIT_EVERY}", *VARIANTS[variant]]


def summarise(folder: Path, variant: str, seed: int, steps: int, seconds: float, episodes: int) -> RunResult:
    """Plays every level with a finished run's last checkpoint, reads its log, and audits it.

    Raises:
        RunError: a published version is over the bound.
    """
    cfg = load_config(folder)
    tasks = find_suite(cfg.env).tasks(cfg)
    cfgs = [{**cfg, "env": f"dmlab_30_{task}"} for task in tasks]
    played = evaluate_all(cfgs, find_checkpoint(folder, "latest"), episodes, workers=2, seed=seed)
    returns = {task: result.mean for task, result in zip(tasks, played, strict=True)}
    errors = {task: result.se for task, result in zip(tasks, played, strict=True)}
    common = (variant, seed, steps, round(seconds, 1), returns, errors)
    if not (folder / UPDATE_LOG).is_file():
        return RunResult(*common, {}, {}, {})
    rows = latest_rows(folder / UPDATE_LOG)

    def mean(key: str) -> dict[str, float]:
        return {task: statistics.fmean(row["tasks"][task][key] for row in rows) for task in tasks}

    try:
        audited = len(audit(folder, quiet=True))
    except ViolationError as exc:
        raise RunError(f"{folder.name}: {exc}") from exc
    return RunResult(
        *common,
        beta=mean("beta"),
        kl={task: kl / rows[0]["eps_kl"] for task, kl in mean("kl_max").items()},
        share=mean("sample_share"),
        worst_kl=max(task["kl_max"] / row["eps_kl"] for row in rows for task in row["tasks"].values()),
        fixup_share=sum(row["fixup_steps"] for row in rows) / sum(row["primary_steps"] for row in rows),
        backtracks=sum(row["backtracks"] for row in rows),
        audited=audited,
    )


def make_table(results: list[RunResult], key: str, digits: int = 2) -> str:
    """Markdown: a row for each level, a column for each variant; mean over seeds, in brackets their standard deviation."""
    variants = [variant for variant in VARIANTS if any(getattr(r, key) for r in results if r.variant == variant)]
    lines = [f"| level | {' | '.join(variants)} |", "|---" * (len(variants) + 1) + "|"]
    for level in results[0].returns:
        cells = []
        for variant in variants:
            values = [getattr(result, key)[level] for result in results if result.variant == variant]
            spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        lines.append(f"| {level} | {' | '.join(cells)} |")
    return "\n".join(lines)


def make_report(results: list[RunResult]) -> str:
    """All tables, and a line for each run."""
    parts = []
    for key, title in (("returns", "return"), ("beta", "beta"), ("kl", "KL max / eps_kl"), ("share", "share of samples")):
        if any(getattr(result, key) for result in results):
            parts.append(f"{title}, mean over seeds (std)\n\n{make_table(results, key)}")
    for r in results:
        text = f"{r.variant}, seed {r.seed}: {r.seconds:.0f} s"
        if r.worst_kl is not None and r.fixup_share is not None:
            text += f", worst KL max / eps_kl {r.worst_kl:.4f}, fixup steps {r.fixup_share:.2%}, {r.backtracks} backtracks"
            text += f", {r.audited} versions audited, none over the bound"
        parts.append(text)
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing, one run at a time, and prints the tables.

    Returns:
        The exit code: 0, 1 where a run failed (the others are still run, and kept), or 2 by argparse.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multitask", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N-1 of each variant")
    parser.add_argument("--steps", type=int, default=1_500_000, help="frames of each run")
    parser.add_argument("--episodes", type=int, default=20, help="of each level, played with the last checkpoint")
    parser.add_argument("--out", type=Path, default=Path("train_dir/multitask"), help="folder of the runs and the tables")
    args = parser.parse_args(argv)
    for name in ("seeds", "steps", "episodes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)}: must be an integer >= 1")
    results, failed = [], False
    for seed in range(args.seeds):  # by seed first, so that a table is fair as soon as each variant has one
        for variant in VARIANTS:
            folder = args.out / f"{variant.lower().replace(', ', '_').replace(' ', '_')}_{args.steps}_seed{seed}"
            try:
                result = run_or_read(
                    folder,
                    flags(variant, seed, args.steps),
                    RunResult,
                    lambda seconds, f=folder, v=variant, s=seed: summarise(f, v, s, args.steps, seconds, args.episodes),
                )
            except RunError as exc:
                failed = True
                print(exc, file=sys.stderr, flush=True)
                continue
            results.append(result)
            print(f"{variant}, seed {seed}: {json.dumps({k: round(v, 2) for k, v in result.returns.items()})}", flush=True)
    if results:
        report = make_report(sorted(results, key=lambda r: (list(VARIANTS).index(r.variant), r.seed)))
        print(report)
        (args.out / "report.md").write_text(report + "\n")
        (args.out / "report.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
