"""Does a run that goes on for hours keep its size? Memory, open files and shared memory of each of its processes.

    python -m benchmarks.soak --minutes=60 --out=soak [flags of sf_fixpo.train]

Trains on the collect level (stand-in) with the laptop preset unless flags say otherwise, and looks every few seconds. The first
quarter is warm-up. The slope is that of a straight line through the means of ten blocks of the rest, with its 95 % interval:
samples of one block depend on each other. What surely (the lower end of the interval) grows by more than a process may is a leak.

Writes samples.csv, result.json and table.md to `--out`; `--read` computes the latter two anew from the samples.

Exit status: 0 nothing grows; 1 something does, or the run ended by itself; 2 bad input.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

MIB = 1 << 20
BLOCKS = 10
_T_95 = 2.306  # Student's t at 97.5 % with BLOCKS - 2 degrees of freedom
ALLOWED = {"memory": 16.0, "files": 6.0, "shared": 1.0}  # growth an hour: MiB, files, MiB
UNITS = {"memory": "MiB", "files": "files", "shared": "MiB"}
_ROLES = (
    (r"ROLLOUT worker (\d+)\s+pid (\d+)", "rollout worker {0}"),
    (r"InferenceWorker_p(\S+)\s+pid (\d+)", "policy worker {0}"),
    (r"LearnerWorker_p(\d+)\s+pid (\d+)", "learner {0}"),
)


@dataclass(frozen=True)
class Trend:
    """How one quantity of one process moves.

    Attributes:
        process: which one, or `all` for the run's shared memory.
        quantity: key of ALLOWED.
        mean: over what was kept.
        slope: an hour.
        half_width: of its 95 % interval.
    """

    process: str
    quantity: str
    mean: float
    slope: float
    half_width: float

    @property
    def leaks(self) -> bool:
        """Whether it grows, surely, by more than is allowed."""
        return self.slope - self.half_width > ALLOWED[self.quantity]


def trend(process: str, quantity: str, seconds: np.ndarray, values: np.ndarray) -> Trend:
    """Fits the line.

    Args:
        process: its name.
        quantity: key of ALLOWED.
        seconds: [N] when it was looked at, N >= BLOCKS.
        values: [N].
    """
    blocks = np.array_split(np.arange(len(seconds)), BLOCKS)
    x = np.array([seconds[block].mean() for block in blocks]) / 3600
    y = np.array([values[block].mean() for block in blocks])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residual = y - y.mean() - slope * centred
    error = float(np.sqrt(residual @ residual / (BLOCKS - 2) / (centred @ centred)))
    return Trend(process, quantity, float(values.mean()), slope, _T_95 * error)


def trends(rows: list[dict[str, str]], warm_up: float = 0.25) -> list[Trend]:
    """Of every process that was there all the time."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for quantity in ALLOWED:
            if row[quantity] != "":
                series[row["process"], quantity].append((float(row["seconds"]), float(row[quantity])))
    end = max(float(row["seconds"]) for row in rows)
    found = []
    for (process, quantity), points in series.items():
        kept = np.array([point for point in points if point[0] > warm_up * end])
        if len(kept) >= BLOCKS and points[0][0] <= warm_up * end and points[-1][0] > 0.95 * end:
            found.append(trend(process, quantity, kept[:, 0], kept[:, 1]))
    return found


def roles(log_path: Path) -> dict[int, str]:
    """Names of the processes by their ids, from sample-factory's log file."""
    with suppress(OSError):
        text = log_path.read_text(errors="replace")
        return {int(m[2]): name.format(m[1]) for pattern, name in _ROLES for m in re.finditer(pattern, text)}
    return {}


def look(main: psutil.Process, names: dict[int, str], seconds: float) -> list[dict[str, object]]:
    """One row a process, and one for the shared memory of all: MiB of its own memory, open files, MiB shared."""
    rows: list[dict[str, object]] = []
    pids = set()
    for process in (main, *main.children(recursive=True)):
        with suppress(psutil.Error):
            pids.add(process.pid)
            name = "main" if process.pid == main.pid else names.get(process.pid)
            if name is not None:
                own = process.memory_full_info().uss / MIB
                rows.append({"seconds": seconds, "process": name, "memory": own, "files": process.num_fds(), "shared": ""})
    shared = 0
    for path in Path("/dev/shm").glob("torch_*"):
        with suppress(OSError, ValueError, IndexError):
            if int(path.name.split("_")[1]) in pids:
                shared += path.stat().st_size
    return [*rows, {"seconds": seconds, "process": "all", "memory": "", "files": "", "shared": shared / MIB}]


def run(out: Path, minutes: float, every: float, flags: list[str]) -> int | None:
    """Trains and looks; the exit status where the run ended by itself, else None."""
    out.mkdir(parents=True, exist_ok=True)
    default = ["--env=dmlab_30_rooms_collect_good_objects", "--preset=laptop", "--num_workers=2"]
    argv = [sys.executable, "-m", "sf_fixpo.train", *(flags or default), f"--train_dir={out}", "--experiment=soak"]
    argv += ["--train_for_env_steps=100000000000", "--env_start_timeout=600", "--restart_behavior=overwrite"]
    names = ["seconds", "process", "memory", "files", "shared"]
    with (out / "output.txt").open("w") as output, (out / "samples.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, names)
        writer.writeheader()
        process = subprocess.Popen(argv, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
        started = time.monotonic()
        try:
            while (seconds := time.monotonic() - started) < 60 * minutes:
                if process.poll() is not None:
                    return process.returncode
                writer.writerows(look(psutil.Process(process.pid), roles(out / "soak" / "sf_log.txt"), round(seconds, 1)))
                table.flush()
                time.sleep(every)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
    return None


def table_of(found: list[Trend]) -> str:
    """Markdown."""
    lines = ["| process | what | mean | slope an hour (95 %) | |", "|---|---|---|---|---|"]
    for each in found:
        slope = f"{each.slope:+.2f} ± {each.half_width:.2f} {UNITS[each.quantity]}"
        lines.append(f"| {each.process} | {each.quantity} | {each.mean:.1f} | {slope} | {'leaks' if each.leaks else 'flat'} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=10, help="seconds between two looks")
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--read", action="store_true", help="train nothing, read the samples that are there")
    args, flags = parser.parse_known_args(argv)
    if args.minutes * 60 < 4 * BLOCKS * args.every / 3:
        parser.error(f"--minutes={args.minutes}: too short for {BLOCKS} blocks of looks every {args.every:g} s")
    status = None if args.read else run(args.out, args.minutes, args.every, flags)
    with (args.out / "samples.csv").open() as file:
        found = trends(list(csv.DictReader(file)))
    (args.out / "result.json").write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    (args.out / "table.md").write_text(table_of(found))
    print(table_of(found), end="")
    if status is not None:
        print(f"benchmarks.soak: the run ended by itself, exit status {status}: {args.out / 'output.txt'}", file=sys.stderr)
    return int(status is not None or not found or any(each.leaks for each in found))


if __name__ == "__main__":
    sys.exit(main())
