"""One run, killed with SIGKILL at a random moment and resumed, many times over: what is lost, and does it learn all the same?

    python -m benchmarks.cycles --cycles=100 --seed=0 --out=cycles [flags of sf_fixpo.train]

A small serial run on CartPole unless flags say otherwise. Most kills come some seconds after the first update of a cycle, one in
five while the program starts. After each every checkpoint of the folder is read. At the end the run trains on, in peace, to the
steps that uninterrupted ones of other seeds get, and all play episodes. A cycle that is in cycles.jsonl is not repeated.

Exit status: 0 nothing corrupt, steps monotone, no more lost than a save interval and one update, beta continuous, the return
within the spread of the uninterrupted runs; 1 otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sf_fixpo.learning import checkpoints
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows, read_rows

SAVE_SECONDS = 2
_START_SECONDS, _TRAIN_SECONDS, _AT_THE_START = 10.0, 6.0, 0.2
_PATIENCE_SECONDS = 900.0
_DEFAULT = [
    "--env=gym_CartPole-v1",
    "--serial_mode=True",
    "--async_rl=False",
    "--num_workers=1",
    "--num_envs_per_worker=8",
    "--rollout=32",
    "--batch_size=256",
    "--num_batches_per_epoch=1",
    "--num_epochs=2",
    "--learning_rate=0.001",
    "--device=cpu",
]


@dataclass(frozen=True)
class Cycle:
    """One start and its end.

    Attributes:
        number: of the cycle.
        updates: that it made.
        corrupt: checkpoints that could not be read afterwards.
        steps_before: in the log when it was started.
        steps_resumed: of the first update that it made; None where it made none.
        lost_seconds: of training, from the last save, or the first update of this cycle where that is later, to the last update
            before the kill: what an earlier cycle lost is its own.
        beta_jump: |beta after its first update - beta of the update before that|; None where there is no such pair.
        beta_step: the largest such difference within the cycle.
    """

    number: int
    updates: int
    corrupt: int
    steps_before: int
    steps_resumed: int | None
    lost_seconds: float
    beta_jump: float | None
    beta_step: float


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(read_rows(folder / UPDATE_LOG))
    except FileNotFoundError:
        return []


def _start(folder: Path, flags: list[str], seed: int) -> subprocess.Popen:
    argv = [
        sys.executable,
        "-m",
        "sf_fixpo.train",
        *flags,
        f"--seed={seed}",
        f"--save_every_sec={SAVE_SECONDS}",
        "--env_start_timeout=600",
    ]
    argv += [f"--train_dir={folder.parent}", f"--experiment={folder.name}"]
    with (folder.parent / f"{folder.name}.txt").open("a") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(argv, stdout=output, stderr=output, env=environment, start_new_session=True)


def _size(folder: Path) -> int:
    log = folder / UPDATE_LOG
    return log.stat().st_size if log.exists() else 0


def corrupt_checkpoints(folder: Path) -> int:
    """How many files that a resume would take cannot be read, or were set aside as such."""
    found = len(list(folder.glob("checkpoint_p0/unreadable_*")))
    for path in folder.glob("checkpoint_p0/checkpoint_*.pth"):
        try:
            checkpoints.load(path)
        except checkpoints.UnreadableError:
            found += 1
    return found


def cycle(number: int, folder: Path, flags: list[str], rng: random.Random) -> Cycle:
    """Starts the run, kills it, looks at what is left."""
    before = _rows(folder)
    size = _size(folder)
    at_the_start, delay = rng.random() < _AT_THE_START, rng.random()
    process = _start(folder, [*flags, "--train_for_env_steps=100000000000"], seed=0)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not at_the_start and _size(folder) == size:
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"cycle {number}: no update, exit status {process.poll()}: see {folder}.txt")
        time.sleep(0.05)
    until, began = time.monotonic() + delay * (_START_SECONDS if at_the_start else _TRAIN_SECONDS), math.inf
    while time.monotonic() < until:
        if began == math.inf and _size(folder) > size:
            began = time.time()
        time.sleep(0.05)
    ended = process.poll()
    if ended is not None:
        raise RuntimeError(f"cycle {number}: ended by itself, exit status {ended}: see {folder}.txt")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    rows = _rows(folder)
    made = rows[len(before) :]
    saved = [path.stat().st_mtime for path in folder.glob("checkpoint_p0/checkpoint_*.pth")]
    lost = (folder / UPDATE_LOG).stat().st_mtime - max([began, *saved]) if made else 0.0
    earlier = [row for row in latest_rows(folder / UPDATE_LOG) if made and row["policy_version"] < made[0]["policy_version"]]
    steps = [abs(b["beta"] - a["beta"]) for a, b in itertools.pairwise(made)]
    return Cycle(
        number=number,
        updates=len(made),
        corrupt=corrupt_checkpoints(folder),
        steps_before=before[-1]["env_steps"] if before else 0,
        steps_resumed=made[0]["env_steps"] if made else None,
        lost_seconds=round(max(0.0, lost), 2),
        beta_jump=abs(made[0]["beta"] - earlier[-1]["beta"]) if earlier else None,
        beta_step=max(steps, default=0.0),
    )


def final_return(folder: Path, flags: list[str], seed: int, steps: int, episodes: int) -> float:
    """Trains to so many steps and plays; a finished run is only played."""
    result = folder.parent / f"{folder.name}.json"
    process = _start(folder, [*flags, f"--train_for_env_steps={steps}"], seed)
    if process.wait() != 0:
        raise RuntimeError(f"{folder.name}: exit status {process.returncode}: see {folder}.txt")
    argv = [sys.executable, "-m", "sf_fixpo.evaluate", str(folder), f"--episodes={episodes}", f"--json={result}"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return next(iter(json.loads(result.read_text())["levels"].values()))["mean"]


def faults(cycles: list[Cycle], interrupted: float, others: list[float], rows: list[dict[str, Any]]) -> list[str]:
    """What should not have been; empty where all is well.

    Args:
        cycles: all of them.
        interrupted: final return of the run that was killed.
        others: of the uninterrupted ones.
        rows: of the killed run's log, as a reader takes them.
    """
    found = [f"cycle {c.number}: {c.corrupt} corrupt checkpoint(s)" for c in cycles if c.corrupt]
    found += [f"cycle {c.number}: {c.lost_seconds} s lost" for c in cycles if c.lost_seconds > SAVE_SECONDS + 1]
    steps = [row["env_steps"] for row in rows]
    found += [] if all(a < b for a, b in itertools.pairwise(steps)) else ["env_steps of the log are not monotone"]
    versions = [row["policy_version"] for row in rows]
    found += [] if all(a < b for a, b in itertools.pairwise(versions)) else ["versions are not monotone"]
    largest = max(c.beta_step for c in cycles)
    found += [f"cycle {c.number}: beta jumps by {c.beta_jump:.3g}" for c in cycles if (c.beta_jump or 0) > 1.5 * largest]
    spread = statistics.stdev(others) if len(others) > 1 else 0.0
    low, high = min(others) - spread, max(others) + spread
    if not low <= interrupted <= high:
        found.append(f"final return {interrupted:.1f} is outside {low:.1f} to {high:.1f} of the uninterrupted runs")
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cycles", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--peaceful", type=int, default=3, help="uninterrupted runs to compare with")
    parser.add_argument("--episodes", type=int, default=50, help="played with each result")
    parser.add_argument("--steps", type=int, default=100_000, help="that every run is trained to, at the least")
    parser.add_argument("--out", type=Path, default=Path("cycles"))
    args, flags = parser.parse_known_args(argv)
    flags = flags or list(_DEFAULT)
    args.out.mkdir(parents=True, exist_ok=True)
    table, folder = args.out / "cycles.jsonl", args.out / "killed"
    done = [Cycle(**json.loads(line)) for line in table.read_text().splitlines()] if table.exists() else []
    for number in range(len(done), args.cycles):
        done.append(cycle(number, folder, flags, random.Random(f"{args.seed} {number}")))
        with table.open("a") as file:
            file.write(json.dumps(asdict(done[-1])) + "\n")
    steps = max(args.steps, _rows(folder)[-1]["env_steps"] + 1)
    target = args.out / "steps.json"  # those of the first time, where the command is given again
    steps = json.loads(target.read_text()) if target.exists() else steps
    target.write_text(json.dumps(steps))
    interrupted = final_return(folder, flags, 0, steps, args.episodes)
    others = [final_return(args.out / f"peaceful_{i}", flags, i, steps, args.episodes) for i in range(1, args.peaceful + 1)]
    found = faults(done, interrupted, others, latest_rows(folder / UPDATE_LOG))
    updates, lost = sum(c.updates for c in done), max(c.lost_seconds for c in done)
    jumps = [c.beta_jump for c in done if c.beta_jump is not None]
    print(f"{len(done)} cycles, {updates} updates, {steps:,} steps, {sum(c.corrupt for c in done)} corrupt checkpoints")
    print(f"lost at most {lost:.1f} s at a save interval of {SAVE_SECONDS} s")
    print(f"beta: {max(jumps, default=0):.3g} at most across a resume, {max(c.beta_step for c in done):.3g} within a cycle")
    print(f"final return {interrupted:.1f}; uninterrupted: {', '.join(f'{r:.1f}' for r in others)}")
    for line in found:
        print(f"benchmarks.cycles: {line}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
