"""Weak scaling of several learners of one policy (torchrun): seconds of an update by ranks, and what the exchanges cost.

    python -m benchmarks.ranks --shapes=mujoco,dmlab --ranks=1,2 --updates=7 --json=ranks.json

Each rank is a process with a batch of its own, the same size whatever their number, so that an update of R ranks trains on R
times the samples. The exchanges are counted and timed where they happen; beside that stands what they should cost: their number
times the latency and their bytes over the bandwidth, both measured beforehand between the same processes. What is measured above
that is mostly waiting for the slower rank. Rows that `--json` has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.learner import quiet, timed_update
from benchmarks.synthetic import SHAPES, make_batch, make_learner
from sf_fixpo.learning.meeting import Meeting, Rank
from sf_fixpo.learning.ranks import Ranks

_WARMUP = 2
_SMALL, _LARGE = 8, 1 << 20  # floats of the exchanges by which latency and bandwidth are measured


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        shape: name of the workload.
        ranks: R.
        batch: samples of an update, of all ranks.
        seconds: of an update, median of rank 0.
        spread: the smallest and the largest.
        samples_per_s: of all ranks.
        efficiency: samples_per_s over R times that of one rank.
        exchanges: of an update.
        bytes: that a rank gives into them.
        measured: seconds of an update in exchanges, the waiting for the other ranks included, median.
        predicted: seconds of the exchanges themselves.
        latency: seconds of a small exchange, median.
        bandwidth: bytes a second of a large one, median.
        updates: how many the medians are over.
    """

    shape: str
    ranks: int
    batch: int
    seconds: float
    spread: tuple[float, float]
    samples_per_s: float
    efficiency: float | None
    exchanges: float
    bytes: float
    measured: float
    predicted: float
    latency: float
    bandwidth: float
    updates: int


class Exchanges:
    """Counts and times what a rank exchanges."""

    def __init__(self, ranks: Any):
        """Looks over the shoulder of `Ranks`; a learner that is alone exchanges nothing."""
        self.count, self.bytes, self.seconds = 0, 0, 0.0
        if isinstance(ranks, Ranks):
            reduce: Any = ranks._reduce
            ranks._reduce = lambda tensor, *args: self._timed(tensor, reduce, tensor, *args)  # type: ignore[method-assign]
            table: Any = ranks.table
            ranks.table = lambda numbers: self._timed(numbers, table, numbers)  # type: ignore[method-assign]

    def _timed(self, tensor: torch.Tensor, function: Any, *args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        self.seconds += time.perf_counter() - start
        self.count, self.bytes = self.count + 1, self.bytes + tensor.nbytes
        return result


def seconds_of_an_exchange(ranks: Ranks, floats: int, times: int) -> float:
    """Median seconds of a sum of so many floats."""
    numbers, taken = torch.zeros(floats), []
    for _ in range(times):
        start = time.perf_counter()
        ranks.total(numbers)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def predicted_seconds(exchanges: float, data: float, ranks: int, latency: float, bandwidth: float) -> float:
    """Of exchanges whose bytes each pass 2 (R - 1) / R times over the wire, as a ring sends them."""
    return exchanges * latency + 2 * (ranks - 1) / ranks * data / bandwidth if ranks > 1 else 0.0


def _rank(number: int, count: int, port: int, shape: str, updates: int, results: Any) -> None:
    quiet()
    torch.set_num_threads(1)
    meeting = None
    if count > 1:
        meeting = Meeting(Rank(number, count, "127.0.0.1", port, hosts=number == 0), timeout=120.0, start_timeout=120.0)
        meeting.open()
    with tempfile.TemporaryDirectory() as folder:
        learner: Any = make_learner("FIXPO", shape, train_dir=folder, meeting=meeting)
        latency = bandwidth = 0.0
        if isinstance(learner.ranks, Ranks):
            latency = seconds_of_an_exchange(learner.ranks, _SMALL, 200)
            seconds = seconds_of_an_exchange(learner.ranks, _LARGE, 20)
            bandwidth = 2 * (count - 1) / count * 4 * _LARGE / max(1e-9, seconds - latency)
        batch = make_batch(learner, seed=number)
        exchanges, figures = Exchanges(learner.ranks), []
        for seed in range(_WARMUP + updates):
            before = exchanges.count, exchanges.bytes, exchanges.seconds
            taken = timed_update(learner, batch, seed)
            after = exchanges.count, exchanges.bytes, exchanges.seconds
            figures.append((taken, *(b - a for a, b in zip(before, after, strict=True))))
        if meeting is not None:
            meeting.say("left", "yes")
            meeting.hear_all("left", 60.0)
        if number == 0:
            results.put((figures[_WARMUP:], latency, bandwidth, len(batch["rewards"].flatten())))
            time.sleep(0.5)  # the others still look at the store


def measure(shape: str, ranks: int, updates: int, alone: float | None) -> Row:
    """One line.

    Args:
        shape: a key of SHAPES.
        ranks: R.
        updates: that are timed.
        alone: samples a second of one rank; None where that is what is measured, or is not known.

    Raises:
        RuntimeError: a rank failed; its error is on the terminal.
    """
    context = get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [context.Process(target=_rank, args=(i, ranks, port, shape, updates, results)) for i in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if results.empty() or any(process.exitcode for process in processes):
        raise RuntimeError(f"{shape}, {ranks} ranks: exit codes {[process.exitcode for process in processes]}")
    figures, latency, bandwidth, own = results.get()
    seconds, exchanges, data, measured = (statistics.median(column) for column in zip(*figures, strict=True))
    speed = ranks * own / seconds
    return Row(
        shape=shape,
        ranks=ranks,
        batch=ranks * own,
        seconds=seconds,
        spread=(min(row[0] for row in figures), max(row[0] for row in figures)),
        samples_per_s=speed,
        efficiency=1.0 if ranks == 1 else None if alone is None else speed / (ranks * alone),
        exchanges=exchanges,
        bytes=data,
        measured=measured,
        predicted=predicted_seconds(exchanges, data, ranks, latency, bandwidth),
        latency=latency,
        bandwidth=bandwidth,
        updates=updates,
    )


def table_of(rows: Sequence[Row]) -> Table:
    """For people."""
    table = Table(title="An update of several learners of one policy")
    for name in (
        "shape",
        "ranks",
        "batch",
        "s/update",
        "samples/s",
        "efficiency",
        "exchanges",
        "MB",
        "measured s",
        "predicted s",
    ):
        table.add_column(name, justify="left" if name == "shape" else "right")
    for row in rows:
        spread = f"{row.seconds:.3f} ({row.spread[0]:.3f}-{row.spread[1]:.3f})"
        efficiency = "" if row.efficiency is None else f"{row.efficiency:.2f}"
        costs = f"{row.exchanges:.0f}", f"{row.bytes / 1e6:.2f}", f"{row.measured:.3f}", f"{row.predicted:.3f}"
        table.add_row(row.shape, str(row.ranks), str(row.batch), spread, f"{row.samples_per_s:,.0f}", efficiency, *costs)
    return table


def main(argv: list[str] | None = None) -> int:
    """Measures what is not known yet, prints the table, writes `--json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shapes", default="mujoco,dmlab", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, 1 first")
    parser.add_argument("--updates", type=int, default=7, help="that are timed, of each")
    parser.add_argument("--json", type=Path, help="rows are kept here, and those that are here are not measured again")
    args = parser.parse_args(argv)
    shapes, numbers = args.shapes.split(","), args.ranks.split(",")
    if unknown := [name for name in shapes if name not in SHAPES]:
        parser.error(f"--shapes={args.shapes}: no {', '.join(unknown)}; must be of {', '.join(SHAPES)}")
    if not all(number.isdigit() and int(number) > 0 for number in numbers) or args.updates < 1:
        parser.error(f"--ranks={args.ranks} --updates={args.updates}: must be integers >= 1")
    rows = [Row(**row) for row in json.loads(args.json.read_text())] if args.json and args.json.is_file() else []
    for shape in shapes:
        for count in map(int, numbers):
            if any((row.shape, row.ranks) == (shape, count) for row in rows):
                continue
            alone = next((row.samples_per_s for row in rows if (row.shape, row.ranks) == (shape, 1)), None)
            rows.append(measure(shape, count, args.updates, alone))
            if args.json:
                args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    Console(width=130).print(table_of([row for row in rows if row.shape in shapes]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
