"""Plays a trained policy, or a random agent, for a fixed number of episodes of each level: mean return and standard error.

    python -m sf_fixpo.evaluate DIR [--episodes=50] [--checkpoint=best|latest|PATH] [--split=test|train] [--random] [--json FILE]
    python -m sf_fixpo.evaluate --random --env=NAME [flags of its suite]

A run is evaluated on one environment for each of its tasks: of DMLab levels the test variant, or with `--split=train` the level
itself. Returns are those of the environment, whatever shaping the run was trained with. How many episodes each environment plays
is fixed beforehand: taking the first N to finish would prefer short episodes. The result also goes to DIR/eval_*.json.

Exit codes: 0 done; 1 a worker failed, its error is printed; 2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo import cli
from sf_fixpo.envs import find_suite
from sf_fixpo.envs.cores import allowed_cores
from sf_fixpo.envs.dmlab.names import dmlab30_level
from sf_fixpo.envs.dmlab.scores import NoScoreError, Scores, human_normalised
from sf_fixpo.playing.downloads import DownloadError, local_folder
from sf_fixpo.playing.evaluation import ENVS_PER_WORKER, EvalResult, WorkerError, evaluate_all
from sf_fixpo.playing.evaluation_worker import MAX_STEPS
from sf_fixpo.playing.experiment import SPLITS, BadInputError, find_checkpoint, load_configs


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m sf_fixpo.evaluate", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "dir",
        type=Path,
        nargs="?",
        metavar="DIR",
        help="experiment folder, with config.json and checkpoint_p0/, or hub:USER/NAME; none with --random",
    )
    parser.add_argument("--episodes", type=int, default=50, help="of each level")
    parser.add_argument("--checkpoint", help="best, latest, or a path; default: best where there is one, else latest")
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    parser.add_argument("--split", choices=SPLITS, default="test", help="variants of the levels, where there are two")
    parser.add_argument("--workers", type=int, default=allowed_cores(), help="processes, for all levels; default: one per core")
    parser.add_argument(
        "--envs_per_worker", type=int, default=ENVS_PER_WORKER, help="environments a process plays at once, which all need memory"
    )
    parser.add_argument("--max_steps", type=int, default=MAX_STEPS, help="leave an episode that has not ended after so many")
    parser.add_argument("--deterministic", action="store_true", help="likeliest action instead of a sample")
    parser.add_argument("--random", action="store_true", help="a uniformly random agent, for comparison")
    parser.add_argument("--seed", type=int, default=0, help="of the environments and of sampled actions")
    parser.add_argument("--env", help="another environment than those of the run, such as one level alone")
    parser.add_argument("--json", type=Path, help="where the result goes; default: DIR/eval_<checkpoint>_<split>.json")
    parser.add_argument("--background_of", type=int, metavar="PID", help=argparse.SUPPRESS)  # of a training run
    argv = list(sys.argv[1:] if argv is None else argv)
    # by hand: argparse takes what it does not know for a positional argument where there is a space in it, as JSON has
    others = [arg for arg in argv if arg.startswith("--") and not _known(parser, arg)]
    args = cli.parse(parser, [arg for arg in argv if arg not in others])
    args.env_flags = others
    least_of = {"episodes": 1, "workers": 1, "envs_per_worker": 1, "max_steps": 1, "seed": 0, "policy_id": 0}
    for name, least in least_of.items():
        if getattr(args, name) < least:
            parser.error(f"--{name}={getattr(args, name)}: must be an integer >= {least}")
    if args.random and (args.checkpoint or args.deterministic):
        parser.error("--random plays no checkpoint: leave out --checkpoint and --deterministic")
    if args.dir is None and not (args.random and args.env):
        parser.error("DIR: say which run; without one a random agent plays: --random --env=NAME")
    if args.env_flags and args.dir is not None:
        parser.error(
            f"unrecognized arguments: {' '.join(args.env_flags)} (leave them out: a run has its own; they are for --random "
            "without DIR)"
        )
    return args


def _known(parser: argparse.ArgumentParser, arg: str) -> bool:
    """Whether a parser has a flag of this name, or one that begins so."""
    name = arg.partition("=")[0]
    return name in ("--", "--version") or any(flag.startswith(name) for flag in parser._option_string_actions)


def _without_a_run(args: argparse.Namespace) -> list[AttrDict]:
    """What a random agent plays without a run: the environment of `--env`, with the flags of its suite.

    Raises:
        BadInputError: unknown environment or flag.
    """
    from sf_fixpo import train

    try:
        argv = [f"--env={args.env}", "--experiment=random", "--device=cpu", f"--train_dir={tempfile.gettempdir()}"]
        return [train.parse_cfg([*argv, "--restart_behavior=resume", *args.env_flags])]
    except train.BadInputError as exc:
        raise BadInputError(str(exc)) from exc


def level_name(env: str) -> str:
    """What an environment is called in results: a DMLab level by its own name, anything else as in `--env`."""
    return (find_suite(env).name == "dmlab" and dmlab30_level(env)) or env


def result_path(args: argparse.Namespace, checkpoint: Path | None) -> Path | None:
    """Where the result goes; None without a run and without `--json`.

    Raises:
        BadInputError: nothing can be written there; better said before the episodes than after.
    """
    agent = checkpoint.stem if checkpoint else "random"
    if args.dir is None and args.json is None:
        return None
    path = args.json or Path(str(args.dir), f"eval_{agent}_{(args.env or args.split).replace('/', '_')}.json")
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
        raise BadInputError(f"--json={path}: cannot be written")
    return path


def _play_with_progress(
    console: Console, cfgs: Sequence[AttrDict], checkpoint: Path | None, args: argparse.Namespace
) -> list[EvalResult]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    counts, total = [0] * len(cfgs), 0.0
    # without a thread that draws ten times a second for nobody: by what it uses, one that waits would not be seen to have stalled
    with Progress(*columns, console=console, auto_refresh=console.is_terminal) as progress:
        bar = progress.add_task("episodes", total=args.episodes * len(cfgs))

        def on_episode(env: int, episode_return: float) -> None:
            nonlocal total
            total += episode_return
            counts[env] += 1
            if len(cfgs) == 1:
                text = f"episodes, mean so far {total / counts[env]:.2f}"
            else:
                text = f"episodes, {counts.count(args.episodes)} of {len(cfgs)} levels done"
            progress.update(bar, advance=1, description=text)

        return evaluate_all(
            cfgs,
            checkpoint,
            args.episodes,
            args.workers,
            args.seed,
            args.deterministic,
            on_episode,
            args.envs_per_worker,
            args.max_steps,
        )


def scores_of(results: dict[str, EvalResult]) -> tuple[Scores | None, str]:
    """The normalised scores of DMLab levels, and one line about them: the score, or why there is none.

    Args:
        results: by level. Of no suite but DMLab is there anything to say: the line is empty.
    """
    if not all(dmlab30_level(level) for level in results):
        return None, ""
    engines = {result.engine for result in results.values()}
    try:
        scores = human_normalised({level: result.mean for level, result in results.items()}, ", ".join(sorted(engines)))
    except NoScoreError as exc:
        return None, str(exc)
    return scores, f"{scores.name}: {scores.mean_capped:.1f} (without the cap {scores.mean_normalised:.1f})"


def _number(value: float, form: str = ".3f") -> str:
    return "n/a" if math.isnan(value) else format(value, form)


def show(console: Console, title: str, results: dict[str, EvalResult], scores: Scores | None) -> None:
    """Prints a line for one level, a table for several."""
    if len(results) == 1:
        [(level, result)] = results.items()
        text = f"{level} ({result.engine}), {title}: return {result.mean:.3f}, standard error {_number(result.se)}"
        console.print(f"{text}, n = {len(result.returns)}", highlight=False, soft_wrap=True)
        return
    table = Table(title=f"{title} ({', '.join(sorted({result.engine for result in results.values()}))})", box=None)
    table.add_column("level", no_wrap=True)
    for heading in ("return", "se", "n", *((f"{'stand-in' if scores.stand_in else 'human'} %", "capped") if scores else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for level, result in results.items():
        row = [level, _number(result.mean, ".2f"), _number(result.se, ".2f"), str(len(result.returns))]
        if scores:
            row += [f"{scores.normalised[level]:.1f}", f"{scores.capped[level]:.1f}"]
        table.add_row(*row)
    console.print(table)


def _score(scores: Scores) -> dict[str, Any]:
    figures = {"name": scores.name, "capped": scores.mean_capped, "normalised": scores.mean_normalised}
    return {**figures, "stand_in": scores.stand_in}


def make_record(
    args: argparse.Namespace,
    envs: Sequence[str],
    checkpoint: Path | None,
    results: dict[str, EvalResult],
    scores: Scores | None,
    line: str,
) -> dict[str, Any]:
    """The result as JSON has it: what was played, each level, the score; of one level everything at the top too."""
    levels = {}
    for env, (level, result) in zip(envs, results.items(), strict=True):
        levels[level] = {
            "env": env,
            **asdict(result),
            "se": None if math.isnan(result.se) else result.se,
            "normalised": scores.normalised[level] if scores else None,
            "capped": scores.capped[level] if scores else None,
        }
    engines = sorted({result.engine for result in results.values()})
    record = {
        "env": envs[0] if len(envs) == 1 else list(envs),
        "split": None if args.env else args.split,
        "engine": ", ".join(engines),
        "checkpoint": str(checkpoint) if checkpoint else None,
        "agent": "policy" if checkpoint else "random",
        "deterministic": args.deterministic,
        "seed": args.seed,
        "episodes": args.episodes,
        "score": _score(scores) if scores else None,
        "no_score": None if scores else line or None,
        "levels": levels,
    }
    return {**next(iter(levels.values())), **record} if len(levels) == 1 else record


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = parse_args(argv)
    if args.background_of is not None:
        from sf_fixpo.running.supervision import end_with_parent

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training run is told, and says what becomes of this
        end_with_parent(args.background_of)
    console = Console()
    try:
        if args.dir:
            args.dir = local_folder(args.dir, args.checkpoint, args.policy_id)
        cfgs = load_configs(args.dir, args.split, args.env) if args.dir else _without_a_run(args)
        checkpoint = None if args.random else find_checkpoint(args.dir, args.checkpoint, args.policy_id)
        path = result_path(args, checkpoint)
        played = _play_with_progress(console, cfgs, checkpoint, args)
    except BadInputError as exc:
        print(exc, file=sys.stderr)
        return 2
    except (DownloadError, WorkerError) as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    results = dict(zip((level_name(cfg.env) for cfg in cfgs), played, strict=True))
    scores, line = scores_of(results)
    show(console, checkpoint.name if checkpoint else "random", results, scores)
    if line:
        console.print(line, highlight=False, soft_wrap=True)
    if cut := sum(result.cut for result in played):
        console.print(f"{cut} episode(s) had not ended after --max_steps={args.max_steps} and count as they were", soft_wrap=True)
    record = make_record(args, [cfg.env for cfg in cfgs], checkpoint, results, scores, line)
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
