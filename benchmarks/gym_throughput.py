"""Frames/s on CartPole of the gym suite beside sample-factory's own example, by whole runs: A, B, B, A.

    python -m benchmarks.gym_throughput --pairs=3 --steps=60_000

Both train with the same sizes, in one process, and nearly all of the time is sampling (one epoch of one minibatch an update).
The suite's runs are with FixPO and with APPO, sample-factory's example is its own program with its own learner. Each figure is
sample-factory's own, in the last line of its log: all steps over the seconds of the main loop.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = (
    "--serial_mode=True --async_rl=False --batched_sampling=False --num_workers=1 --num_envs_per_worker=8 --worker_num_splits=1"
)
FLAGS += " --rollout=128 --recurrence=1 --use_rnn=False --batch_size=1024 --num_batches_per_epoch=1 --num_epochs=1 --device=cpu"
FLAGS += " --with_vtrace=False --save_every_sec=1000 --normalize_input=True --env_gpu_observations=False"
PROGRAMS = {
    "example": "-m sf_examples.train_gym_env --env=CartPole-v1 --algo=APPO",
    "gym suite, APPO": "-m sf_fixpo.train --env=gym_CartPole-v1 --preset=laptop --algo=APPO",
    "gym suite, FixPO": "-m sf_fixpo.train --env=gym_CartPole-v1 --preset=laptop",
}


def frames_per_second(program: str, steps: int, folder: Path) -> float:
    """Environment steps a second of one run.

    Args:
        program: key of PROGRAMS.
        steps: of the environment, that it trains for.
        folder: for the run.

    Raises:
        RuntimeError: it failed.
    """
    argv = [*PROGRAMS[program].split(), *FLAGS.split(), f"--train_for_env_steps={steps}"]
    argv += [f"--train_dir={folder}", "--experiment=run"]
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    found = re.findall(r"Collected \{0: \d+\}, FPS: ([\d.]+)", (folder / "run" / "sf_log.txt").read_text())
    if not found:
        raise RuntimeError(f"{program}: its log does not say how fast it was")
    return float(found[-1])


def main(argv: list[str] | None = None) -> int:
    """Prints a row a program: median of its runs, and the median of its ratios to the example beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gym_throughput", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=3, help="rounds; every second one runs backwards")
    parser.add_argument("--steps", type=int, default=60_000, help="of the environment, a run")
    args = parser.parse_args(argv)
    if min(args.pairs, args.steps) < 1:
        parser.error(f"--pairs={args.pairs} --steps={args.steps}: must be integers >= 1")
    figures: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(args.pairs):
        for name in list(PROGRAMS)[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                figures[name].append(frames_per_second(name, args.steps, Path(folder)))
    print("| program | frames/s, median of runs | over the example, median (lowest-highest) |\n|---|---|---|")
    for name, found in figures.items():
        ratios = [mine / its for mine, its in zip(found, figures["example"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"| {name} | {statistics.median(found):,.0f} | {spread} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
