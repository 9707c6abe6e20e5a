"""Peers beside ours: the same tasks, the same two cores, each with its published settings, a run at a time.

    python -m benchmarks.peers --out=benchmarks/results/peers.csv                        # five seeds of all: hours
    python -m benchmarks.peers --tasks=CartPole --peers=fixpo,sb3_ppo --seeds=0,1,2
    python -m benchmarks.peers --table --out=benchmarks/results/peers.csv                # of what is there

Every environment writes down its own episodes, so that all systems are measured by one yardstick: returns while training, with
the policy's own noise, against steps and against seconds since the first step. Runs that `--out` has are not run again; a run
that was cut off is run anew. Seeds are the outermost loop: a benchmark that is cut off has the same seeds of all.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import Curve, interval
from benchmarks.curves import COLUMNS
from benchmarks.peers.others import PUBLISHED
from benchmarks.peers.tasks import RECORDS, TASKS, curve, episodes
from sf_fixpo import cli
from sf_fixpo.algorithm.config import FixPOConfig
from sf_fixpo.envs.pool.mujoco import TUNED

BINS = 35
# MuJoCo's tuned preset, with Gymnasium's simulators in place of one EnvPool
_TUNED = {**TUNED, "batched_sampling": False, "num_envs_per_worker": TUNED["env_agents"]}
_TASK_FLAGS = {
    "CartPole": "--preset=laptop",
    "Pendulum": "--preset=laptop --gamma=0.9",
    "Memory": "--preset=laptop --use_rnn=True --rnn_type=lstm --rnn_size=32 --recurrence=32",
    "HalfCheetah": " ".join(
        f"--{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for flag, value in _TUNED.items()
        if flag != "env_agents"
    ),
}
# of the other algorithm: neither takes what it would not heed
_FOREIGN = {"fixpo": ("ppo_clip_ratio", "kl_loss_coeff"), "appo": tuple(field.name for field in fields(FixPOConfig))}
OURS = {"fixpo": "FIXPO", "appo": "APPO"}
NEEDS = {
    "sb3_ppo": "stable-baselines3",
    "sb3_trpo": "sb3-contrib",
    "sb3_recurrent_ppo": "sb3-contrib",
    "tianshou_ppo": "tianshou",
}


def command(peer: str, task: str, steps: int, seed: int, folder: Path) -> list[str]:
    """What trains."""
    if peer not in OURS:
        return [sys.executable, "-m", "benchmarks.peers.others", peer, task, f"--steps={steps}", f"--seed={seed}"]
    flags = re.split(r" (?=--)", _TASK_FLAGS[task])
    own = [word for flag in flags if flag.split()[0].partition("=")[0][2:] not in _FOREIGN[peer] for word in flag.split()]
    flags = [f"--env=gym_benchmarks.peers.tasks:{task}", *own, f"--algo={OURS[peer]}", f"--seed={seed}"]
    flags += [f"--train_for_env_steps={steps}", f"--train_dir={folder}", "--experiment=run", "--device=cpu"]
    return [sys.executable, "-m", "sf_fixpo.train", *flags]


def run(peer: str, task: str, steps: int, seed: int) -> list[dict[str, Any]]:
    """Trains once; the rows of its curve.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder, "records")
        records.mkdir()
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = {**os.environ, **threads, RECORDS: str(records)}
        done = subprocess.run(command(peer, task, steps, seed, Path(folder)), env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{peer} on {task}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
        parts = curve(episodes(records), steps, BINS)
    common = {"sweep": sweep_of(steps, task), "variant": f"{peer}_{task}", "env": task, "algo": peer, "seed": seed}
    return [{**common, **{key: round(value, 4) for key, value in part.items()}} for part in parts]


def sweep_of(steps: int | None, task: str) -> str:
    """By which the CSV tells apart runs of other lengths than a task's own."""
    return "peers" if steps in (None, TASKS[task].steps) else f"peers of {steps}"


def pairs(peers: Sequence[str], tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(peer, task) of all that have settings for each other, task by task."""
    for task in tasks:
        yield from ((peer, task) for peer in peers if peer in OURS or task in PUBLISHED[peer])


def read(path: Path, steps: int | None = None) -> dict[tuple[str, str, int], Curve]:
    """The runs of a CSV, by (peer, task, seed).

    Args:
        path: of the CSV; it need not be there.
        steps: of the runs that are asked for; None for those of the tasks' own lengths.

    Raises:
        ValueError: it is no CSV of this benchmark.
    """
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: has other columns than this version's")
        rows = [row for row in reader if row["env"] in TASKS and row["sweep"] == sweep_of(steps, row["env"])]
    found: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["algo"], row["env"], int(row["seed"])), []).append(row)
    return {key: _curve(key[2], of) for key, of in found.items()}


def _curve(seed: int, rows: Sequence[dict[str, str]]) -> Curve:
    steps, seconds, returns = (np.asarray([float(row[name]) for row in rows]) for name in ("steps", "seconds", "return"))
    return Curve(seed, steps, seconds, returns, fixup_share=math.nan, kl_max_rel=math.nan)


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Adds a run to the CSV, all of it or nothing."""
    fresh = not path.is_file()
    text = ",".join(COLUMNS) + "\n" if fresh else ""
    text += "".join(",".join(str(row.get(column, "")) for column in COLUMNS) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def table(runs: dict[tuple[str, str, int], Curve]) -> str:
    """Of each task its systems, in Markdown: means over seeds and half widths of their 95 % intervals by Student's t."""
    heads = [
        "task",
        "system",
        "seeds",
        "return, last tenth",
        "return at equal time",
        "M steps to threshold",
        "s to threshold",
        "steps/s",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for task in dict.fromkeys(task for _, task, _ in runs):
        of_task: dict[str, list[Curve]] = {}
        for (peer, where, _), found in runs.items():
            if where == task:
                of_task.setdefault(peer, []).append(found)
        seconds = min(found.seconds[-1] for curves in of_task.values() for found in curves)
        for peer, curves in of_task.items():
            lines.append(f"| {' | '.join([task, peer, *_cells(curves, TASKS[task].threshold, seconds)])} |")
    return "\n".join(lines) + "\n"


def _cells(curves: Sequence[Curve], threshold: float, seconds: float) -> list[str]:
    def shown(values: Sequence[float], digits: int) -> str:
        mean, half = interval(values)
        return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")

    reached = [found for found in curves if math.isfinite(found.steps_to(threshold))]
    times = [float(found.seconds[found.returns >= threshold][0]) for found in reached]
    how_many = f" ({len(reached)} of {len(curves)})"
    return [
        str(len(curves)),
        shown([found.last for found in curves], 1),
        shown([found.at_time(seconds) for found in curves], 1) + f" at {seconds:.0f} s",
        shown([found.steps_to(threshold) / 1e6 for found in reached], 3) + how_many if reached else f"none of {len(curves)}",
        shown(times, 0) if reached else "",
        shown([found.steps[-1] / found.seconds[-1] for found in curves], 0),
    ]


def _missing(peers: Sequence[str]) -> str | None:
    """What is not installed of what the peers need."""
    for peer in peers:
        try:
            importlib.metadata.version(NEEDS.get(peer, "sf_fixpo"))
        except importlib.metadata.PackageNotFoundError:
            return f"--peers={peer}: {NEEDS[peer]} is not installed: pip install -e '.[peers]'"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n", 1)[0])
    names = [*OURS, *PUBLISHED]
    parser.add_argument("--peers", default=",".join(names), help=f"of {', '.join(names)}")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of each")
    parser.add_argument("--steps", type=int, help="of each run; as many as each task says")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.csv"), help="CSV of all runs, which grows")
    parser.add_argument("--table", action="store_true", help="runs nothing")
    return parser


def faults(peers: Sequence[str], tasks: Sequence[str], seeds: Sequence[str], steps: int | None) -> list[str]:
    """What is wrong with the flags, a line each."""
    found = []
    for flag, values, allowed in (("--peers", peers, [*OURS, *PUBLISHED]), ("--tasks", tasks, [*TASKS])):
        if wrong := [value for value in values if value not in allowed]:
            found.append(f"{flag}={','.join(wrong)}: must be of {', '.join(allowed)}")
    if not all(seed.isdigit() for seed in seeds):
        found.append(f"--seeds={','.join(seeds)}: must be whole numbers >= 0, comma-separated")
    if steps is not None and steps < 1:
        found.append(f"--steps={steps}: must be at least 1")
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 for what cannot be run."""
    parser = _parser()
    args = cli.parse(parser, argv)
    peers, tasks, seeds = (value.split(",") for value in (args.peers, args.tasks, args.seeds))
    wrong = faults(peers, tasks, seeds, args.steps)
    if not wrong and not args.table and (missing := _missing(peers)):
        wrong.append(missing)
    try:
        known = read(args.out, args.steps)
    except ValueError as exc:
        wrong.append(f"--out={exc}")
    if wrong:
        parser.error("\n".join(wrong))
    for seed, (peer, task) in itertools.product(map(int, seeds), pairs(peers, tasks)):
        if not args.table and (peer, task, seed) not in known:
            append(args.out, run(peer, task, args.steps or TASKS[task].steps, seed))
            print(f"{peer} {task} {seed}", flush=True)
    print(table(read(args.out, args.steps)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
