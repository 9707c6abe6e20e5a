"""Frames/s of whole runs: FixPO beside APPO beside the simulator alone, for each suite, and where the learner's time goes.

    python -m benchmarks.throughput --suites=stand_in,mujoco,atari,vizdoom --seconds=40 --pairs=1 --json=throughput.json

A run's frames/s is the slope of the frames in its own log between its first report with frames and its last, so that starting
processes does not count. The simulator alone is stepped with random actions by as many processes as the run has workers, each
with as many environments: the ceiling, which no learning, no inference and no copying leaves free. Runs go A, B, B, A. Rows that
`--json` has already are not measured again, so that a benchmark that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

ALONE, ALGOS = "simulator", ("FIXPO", "APPO")
_DOOM = "sf_fixpo.run sf_examples.vizdoom.train_vizdoom"


@dataclass(frozen=True)
class Suite:
    """What is run.

    Attributes:
        env: of the run.
        flags: of the run, for both algorithms.
        program: that trains, and the script it runs where it is no suite of ours.
    """

    env: str
    flags: str = "--preset=laptop"
    program: str = "sf_fixpo.train"


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "stand_in": Suite("dmlab_30_rooms_collect_good_objects"),
        "mujoco": Suite("mujoco_HalfCheetah"),
        "atari": Suite("atari_pong"),
        "vizdoom": Suite("doom_basic", "--num_workers=2 --num_envs_per_worker=8 --use_rnn=True", _DOOM),
    }
)
_REPORT = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\].*Total num frames: (\d+)")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        suite: a key of SUITES.
        algo: `FIXPO`, `APPO`, or `simulator` for the simulator alone.
        pair: which of the rounds.
        frames_per_s: frames that the environment simulated, repeated ones included.
        learner_share: of the time between the first and the last update, what the learner was at work; None where no log says it.
        phases: the same by phase of the update.
    """

    suite: str
    algo: str
    pair: int
    frames_per_s: float
    learner_share: float | None = None
    phases: dict[str, float] = field(default_factory=dict)


def reported_speed(text: str) -> float:
    """Frames/s between the first report of a log that has frames and its last.

    Raises:
        ValueError: it has fewer than two such reports.
    """
    found = [(datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(), int(frames)) for at, frames in _REPORT.findall(text)]
    found = [(at, frames) for at, frames in found if frames > 0]
    if len(found) < 2 or found[-1][0] <= found[0][0]:
        raise ValueError(f"{len(found)} report(s) with frames: the run was too short (--seconds)")
    return (found[-1][1] - found[0][1]) / (found[-1][0] - found[0][0])


def shares(rows: Sequence[dict[str, Any]], frames_per_s: float) -> dict[str, float]:
    """Share of the time that the learner spent in each phase, by the rows of an update log after the first.

    Args:
        rows: of the update log; the first update tests itself and is left out.
        frames_per_s: of the run, by which the frames of the rows become time.
    """
    counted = rows[1:]
    if not counted or frames_per_s <= 0:
        return {}
    seconds = (counted[-1]["env_steps"] - rows[0]["env_steps"]) / frames_per_s
    phases = {phase for row in counted for phase in row["seconds"]}
    return {phase: sum(row["seconds"].get(phase, 0.0) for row in counted) / seconds for phase in sorted(phases)}


def _arguments(suite: Suite, algo: str, folder: Path, seconds: int) -> list[str]:
    where = [f"--train_dir={folder}", "--experiment=run", f"--train_for_seconds={seconds}", "--seed=0", "--device=cpu"]
    return [f"--env={suite.env}", f"--algo={algo}", *suite.flags.split(), *where]


def measure_run(name: str, algo: str, pair: int, seconds: int) -> Row:
    """A whole run.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    suite = SUITES[name]
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", *suite.program.split(), *_arguments(suite, algo, Path(folder), seconds)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise RuntimeError(f"{name}, {algo}: exit status {done.returncode}\n{done.stderr[-2000:]}")
        experiment = Path(folder) / "run"
        speed = reported_speed((experiment / "sf_log.txt").read_text(errors="replace"))
        log = experiment / "updates.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    phases = shares(rows, speed)
    return Row(name, algo, pair, speed, sum(phases.values()) if phases else None, phases)


def _step_alone(name: str, worker: int, seconds: float, started: Any, results: Any) -> None:
    from sample_factory.algo.utils.context import global_env_registry
    from sample_factory.algo.utils.make_env import make_env_func_batched
    from sample_factory.utils.attr_dict import AttrDict

    suite = SUITES[name]
    cfg = _settings(suite)
    if suite.program == "sf_fixpo.train":
        from sf_fixpo.envs import find_suite
        from sf_fixpo.running.preparing import registered_context

        registered_context(cfg, find_suite(suite.env).make_env)
    elif suite.env not in global_env_registry():
        from sf_examples.vizdoom.train_vizdoom import register_vizdoom_components

        register_vizdoom_components()
    envs = []
    for i in range(cfg.num_envs_per_worker):
        config = AttrDict(worker_index=worker, vector_index=i, env_id=worker * cfg.num_envs_per_worker + i)
        envs.append(make_env_func_batched(cfg, config))
        envs[-1].reset()
    actions = [_actions(env) for env in envs]
    started.wait()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for env, action in zip(envs, actions, strict=True):
            env.step(action)
        steps += sum(env.num_agents for env in envs)
    frameskip = cfg.env_frameskip if cfg.summaries_use_frameskip else 1
    results.put(frameskip * steps / (time.perf_counter() - start))


def _actions(env: Any) -> Any:
    """One random action for each agent, as a policy worker hands them over: sample-factory's wrapper takes tensors."""
    import numpy as np
    import torch

    drawn = [env.action_space.sample() for _ in range(env.num_agents)]
    return torch.from_numpy(np.array(drawn)).reshape(env.num_agents, -1)


def _settings(suite: Suite) -> Any:
    """The run's configuration."""
    arguments = _arguments(suite, "FIXPO", Path(tempfile.gettempdir()) / "throughput", 1)
    if suite.program == "sf_fixpo.train":
        from sf_fixpo.train import parse_cfg

        return parse_cfg(arguments)
    from sf_examples.vizdoom.doom.doom_params import add_doom_env_args, doom_override_defaults

    from sf_fixpo.api import parse_full_cfg, parse_sf_args

    parser, _ = parse_sf_args(arguments)
    add_doom_env_args(parser)
    doom_override_defaults(parser)
    return parse_full_cfg(parser, arguments)


def measure_alone(name: str, pair: int, seconds: int) -> Row:
    """The simulator alone, in as many processes as the run has workers.

    Raises:
        RuntimeError: one of them failed; its error is on the terminal.
    """
    workers = _settings(SUITES[name]).num_workers
    context = get_context("spawn")
    started, results = context.Barrier(workers), context.SimpleQueue()
    args = (float(seconds), started, results)
    processes = [context.Process(target=_step_alone, args=(name, i, *args)) for i in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{name}: the simulator alone failed, exit codes {[process.exitcode for process in processes]}")
    return Row(name, ALONE, pair, sum(results.get() for _ in processes))


def table_of(rows: Sequence[Row]) -> Table:
    """For people: medians over the rounds."""
    table = Table(title="Frames/s of whole runs")
    columns = ("suite", "what", "frames/s", "over APPO", "of the ceiling", "learner at work", "in")
    for name in columns:
        table.add_column(name, justify="left" if name in ("suite", "what", "in") else "right")
    for suite in dict.fromkeys(row.suite for row in rows):
        mine = [row for row in rows if row.suite == suite]
        speed = {
            algo: statistics.median(row.frames_per_s for row in mine if row.algo == algo)
            for algo in dict.fromkeys(row.algo for row in mine)
        }
        for algo in sorted(speed, key=[ALONE, *ALGOS].index):
            busy = [row.learner_share for row in mine if row.algo == algo and row.learner_share is not None]
            last = [row for row in mine if row.algo == algo][-1]
            phases = sorted(last.phases.items(), key=lambda item: -item[1])[:3]
            table.add_row(
                suite,
                algo,
                f"{speed[algo]:,.0f}",
                f"{speed[algo] / speed['APPO']:.2f}" if algo == "FIXPO" and "APPO" in speed else "",
                f"{100 * speed[algo] / speed[ALONE]:.0f} %" if algo != ALONE and ALONE in speed else "",
                f"{100 * statistics.median(busy):.0f} %" if busy else "",
                ", ".join(f"{phase} {100 * share:.0f} %" for phase, share in phases),
            )
    return table


def main(argv: list[str] | None = None) -> int:
    """Measures what is not known yet, prints the table, writes `--json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--suites", default=",".join(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--seconds", type=int, default=40, help="of each run; the simulator alone takes a quarter of that")
    parser.add_argument("--pairs", type=int, default=1, help="rounds; every second one runs backwards")
    parser.add_argument("--json", type=Path, help="rows are kept here, and those that are here are not measured again")
    args = parser.parse_args(argv)
    suites = args.suites.split(",")
    if unknown := [name for name in suites if name not in SUITES]:
        parser.error(f"--suites={args.suites}: no {', '.join(unknown)}; must be of {', '.join(SUITES)}")
    if args.seconds < 20 or args.pairs < 1:
        parser.error(f"--seconds={args.seconds} --pairs={args.pairs}: must be integers >= 20 and >= 1")
    rows = [Row(**row) for row in json.loads(args.json.read_text())] if args.json and args.json.is_file() else []
    for suite in suites:
        for pair in range(args.pairs):
            for algo in (ALONE, *ALGOS)[:: 1 if pair % 2 == 0 else -1]:
                if any((row.suite, row.algo, row.pair) == (suite, algo, pair) for row in rows):
                    continue
                seconds = args.seconds
                rows.append(
                    measure_alone(suite, pair, seconds // 4) if algo == ALONE else measure_run(suite, algo, pair, seconds)
                )
                if args.json:
                    args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    Console(width=130).print(table_of([row for row in rows if row.suite in suites]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
