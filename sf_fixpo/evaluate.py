"""Plays a trained policy, or a random agent, for a fixed number of episodes: mean return and its standard error.

    python -m sf_fixpo.evaluate DIR [--episodes=50] [--checkpoint=best|latest|PATH] [--random] [--json FILE]

Worker processes each play several environments, one forward pass for all of them. How many episodes each environment plays is
fixed beforehand: taking the first N to finish would prefer short episodes.

Exit codes: 0 done; 1 a worker failed, its error is printed; 2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sample_factory.utils.attr_dict import AttrDict

from envs import UnknownEnvError, find_suite
from sf_fixpo.evaluation_worker import Job, play_in_process

MAX_ENVS_PER_WORKER = 8


class BadInputError(ValueError):
    """What was asked for does not exist; one line each."""


class WorkerError(RuntimeError):
    """A worker failed or died; the message holds its error."""


@dataclass(frozen=True)
class EvalResult:
    """Returns of the episodes played.

    Attributes:
        returns: one per episode, grouped by the environment that played them.
        lengths: steps of each episode, in the same order.
        mean: of the returns.
        se: standard error of the mean; NaN for one episode.
        engine: what simulated them, where the environment says so, else the suite's name.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    mean: float
    se: float
    engine: str


def share_out(total: int, parts: int) -> list[int]:
    """Splits `total` into `parts` whole numbers that differ by at most one."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def make_result(returns: list[float], lengths: list[int], engine: str) -> EvalResult:
    """Mean and standard error (with n - 1) of the returns of at least one episode."""
    se = statistics.stdev(returns) / math.sqrt(len(returns)) if len(returns) > 1 else math.nan
    return EvalResult(tuple(returns), tuple(lengths), statistics.fmean(returns), se, engine)


def evaluate(
    cfg: Any,
    checkpoint_path: str | os.PathLike | None,
    episodes: int = 50,
    workers: int = 2,
    seed: int = 0,
    deterministic: bool = False,
    on_episode: Callable[[float], None] | None = None,
) -> EvalResult:
    """Plays `episodes` episodes of `cfg.env` on the CPU.

    Args:
        cfg: the run's configuration; it is not changed.
        checkpoint_path: the policy's weights; None for an agent that chooses uniformly at random.
        episodes: how many, at least 1.
        workers: processes; no more than episodes are started.
        seed: of environments and actions. The same seed and number of workers repeat the result where the engine can.
        deterministic: take the likeliest action (a Gaussian's mean) in place of a sample.
        on_episode: called with each return as it comes in.

    Raises:
        WorkerError: a worker failed or died.
        ValueError: `episodes` or `workers` is below 1.
    """
    if episodes < 1 or workers < 1:
        raise ValueError(f"episodes={episodes}, workers={workers}: both must be at least 1")
    shares = share_out(episodes, min(episodes, workers))
    cfg = AttrDict(cfg)
    cfg.update(seed=seed, device="cpu", num_workers=len(shares), serial_mode=True)
    jobs = [
        Job(cfg, str(checkpoint_path) if checkpoint_path else None, index, share, seed, deterministic, MAX_ENVS_PER_WORKER)
        for index, share in enumerate(shares)
    ]
    workers_by_pipe: dict[Connection, tuple[int, BaseProcess]] = {}
    finished = False
    try:
        for job in jobs:
            receiver, process = _start(job)
            workers_by_pipe[receiver] = (job.index, process)
        episodes_played, engine = _collect(workers_by_pipe, on_episode)
        finished = True
    finally:
        for receiver, (_, process) in workers_by_pipe.items():
            if not finished:  # a worker failed, or Ctrl-C: nobody waits for the others' episodes
                process.terminate()
            process.join()
            receiver.close()
    return make_result([value for value, _ in episodes_played], [length for _, length in episodes_played], engine)


def _start(job: Job) -> tuple[Connection, BaseProcess]:
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=play_in_process, args=(sender, job), daemon=True, name=f"evaluation_{job.index}")
    process.start()
    sender.close()  # so that only the worker holds it, and its death ends the pipe
    return receiver, process


def _collect(
    workers: dict[Connection, tuple[int, BaseProcess]], on_episode: Callable[[float], None] | None
) -> tuple[list[tuple[float, int]], str]:
    """Reads the workers' messages until all are done: `(return, length)` of every episode in a fixed order, and the engine."""
    waiting = dict(workers)
    found: dict[tuple[int, int, int], tuple[float, int]] = {}
    engines: set[str] = set()
    while waiting:
        ready = set(wait(list(waiting)))
        for receiver in [pipe for pipe in waiting if pipe in ready]:
            index, process = waiting[receiver]
            kind, *content = _receive(receiver, index, process)
            if kind == "episode":
                slot, number, episode_return, length = content
                found[index, slot, number] = (episode_return, length)
                if on_episode:
                    on_episode(episode_return)
            elif kind == "engine":
                engines.add(content[0])
            elif kind == "error":
                raise WorkerError(f"evaluation worker {index} failed:\n{content[0]}")
            else:
                del waiting[receiver]
    return [found[key] for key in sorted(found)], ", ".join(sorted(engines))


def _receive(receiver: Connection, index: int, process: BaseProcess) -> tuple:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise WorkerError(f"evaluation worker {index} died ({cause}) before its episodes were done") from None


def find_checkpoint(directory: Path, which: str | None, policy_id: int = 0) -> Path:
    """The checkpoint file that is meant.

    Args:
        directory: the experiment's folder.
        which: `best`, `latest`, a path, or None for the best one, or the latest where none was saved as best.
        policy_id: which policy of a population.

    Raises:
        BadInputError: there is no such file.
    """
    folder = directory / f"checkpoint_p{policy_id}"
    kinds = {"best": "best_*.pth", "latest": "checkpoint_*.pth"}
    wanted = ("best", "latest") if which is None else (which,)
    for kind in wanted:
        if kind not in kinds:
            if Path(kind).is_file():
                return Path(kind)
            raise BadInputError(f"--checkpoint={kind}: no such file; best, latest, or the path of one")
        files = sorted(folder.glob(kinds[kind]))
        if files:
            return files[-1]
    raise BadInputError(f"{folder}: no {' or '.join(wanted)} checkpoint")


def load_config(directory: Path, env: str | None = None) -> AttrDict:
    """The run's configuration, checked against what can be played here.

    Raises:
        BadInputError: it cannot be read, or its environment cannot be made on this machine.
    """
    path = directory / "config.json"
    try:
        cfg = AttrDict(json.loads(path.read_text()))
    except (OSError, ValueError) as exc:
        raise BadInputError(f"{path}: cannot be read, is this an experiment folder? {exc}") from exc
    trained_on, cfg.env = cfg.env, env or cfg.env
    try:
        suite = find_suite(cfg.env)
        if suite is not find_suite(trained_on):  # for a random agent: the run's settings say nothing about this suite
            cfg.update(suite.presets.get("paper", {}))
    except UnknownEnvError as exc:
        raise BadInputError(str(exc)) from None
    parser = argparse.ArgumentParser()
    suite.add_args(parser)
    for flag, default in vars(parser.parse_args([])).items():  # flags younger than the run, or of another suite
        cfg.setdefault(flag, default)
    if needed := suite.missing():
        raise BadInputError(f"--env={cfg.env}: {needed}")
    if found := suite.faults(cfg):
        raise BadInputError("\n".join(found))
    return cfg


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m sf_fixpo.evaluate", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dir", type=Path, metavar="DIR", help="experiment folder, with config.json and checkpoint_p0/")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--checkpoint", help="best, latest, or a path; default: best where there is one, else latest")
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help="processes; default: one per core")
    parser.add_argument("--deterministic", action="store_true", help="likeliest action instead of a sample")
    parser.add_argument("--random", action="store_true", help="a uniformly random agent, for comparison")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env", help="another environment than the one trained on (a test level)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    args = parser.parse_args(argv)
    for name, least in (("episodes", 1), ("workers", 1), ("seed", 0), ("policy_id", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name}={getattr(args, name)}: must be an integer >= {least}")
    if args.random and (args.checkpoint or args.deterministic):
        parser.error("--random plays no checkpoint: leave out --checkpoint and --deterministic")
    return args


def _play_with_progress(console: Console, cfg: AttrDict, checkpoint: Path | None, args: argparse.Namespace) -> EvalResult:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    total = 0.0
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("episodes", total=args.episodes)

        def on_episode(episode_return: float) -> None:
            nonlocal total
            total += episode_return
            done = progress.tasks[bar].completed + 1
            progress.update(bar, advance=1, description=f"episodes, mean so far {total / done:.2f}")

        return evaluate(cfg, checkpoint, args.episodes, args.workers, args.seed, args.deterministic, on_episode)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = parse_args(argv)
    console = Console()
    try:
        cfg = load_config(args.dir, args.env)
        checkpoint = None if args.random else find_checkpoint(args.dir, args.checkpoint, args.policy_id)
        result = _play_with_progress(console, cfg, checkpoint, args)
    except BadInputError as exc:
        print(exc, file=sys.stderr)
        return 2
    except WorkerError as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    agent = checkpoint.name if checkpoint else "random"
    se = "n/a" if math.isnan(result.se) else f"{result.se:.3f}"
    text = f"{cfg.env} ({result.engine}), {agent}: return {result.mean:.3f}, standard error {se}, n = {len(result.returns)}"
    console.print(text, highlight=False, soft_wrap=True)
    if args.json:
        record = {
            **asdict(result),
            "se": None if math.isnan(result.se) else result.se,
            "env": cfg.env,
            "checkpoint": None if args.random else str(checkpoint),
            "agent": "random" if args.random else "policy",
            "deterministic": args.deterministic,
            "seed": args.seed,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
