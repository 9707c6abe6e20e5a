"""Learner throughput: this package's learner beside stock sample-factory's, on the same synthetic batches in one process.

    python -m benchmarks.learner --shapes=dmlab,mujoco,vizdoom --device=cpu --json=learner.json
    python -m benchmarks.learner --shapes=vizdoom --batches=2048,8192 --forced_fixup_steps=0,2,8 --algos=APPO,FIXPO,UNGUARDED

The learners take turns, one update each, and every other round goes backwards: a machine that slows down slows all. Only
`learner.train(batch)` is timed. Before every update the batch's policy outputs are made anew by the policy the learner has
published, outside the timed region. Medians are over `--updates` updates after `--warmup` ones; the ratio to APPO is the median
of the ratios of neighbouring updates, its interval Student's t of their logarithms. `UNGUARDED` is FixPO's learner without the
trust region, so that the guarantee has a price; `--forced_fixup_steps` makes fixup steps whether they are needed or not. Memory,
host reads and kernel launches are measured in a process of their own for each learner.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sample_factory.algo.learning.learner import Learner
from sample_factory.utils.utils import log
from scipy.stats import t
from torch.profiler import ProfilerActivity, profile

from benchmarks.host_reads import HostReads
from benchmarks.shapes import SHAPES, Shape
from benchmarks.synthetic import ALGOS, fill_policy_outputs, make_batch, make_learner
from benchmarks.variants import UNGUARDED, force_fixup, of_batch, without_guarantee


@dataclass
class Timings:
    """What was measured of one learner, one entry an update; times in seconds."""

    train: list[float] = field(default_factory=list)
    check: list[float] = field(default_factory=list)
    fixup: list[float] = field(default_factory=list)
    fixup_steps: list[int] = field(default_factory=list)
    primary_steps: list[int] = field(default_factory=list)
    host_reads_logged: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of the result; None where a number does not exist or could not be had.

    Attributes:
        shape: name of the workload.
        batch: samples an update trains on.
        algo: `APPO` or `FIXPO`.
        device: `cpu` or `gpu`.
        device_name: the accelerator's name, or the number of threads.
        samples_per_s: `batch` over the median time of an update.
        ratio_to_appo: this learner's speed over APPO's.
        ratio_interval: 95 % interval of their geometric mean; None of fewer than two.
        ratio_spread: smallest and largest of the ratios it is the median of.
        price: time of an update over that of the learner without a guarantee, less 1.
        forced_fixup_steps: steps that each fixup phase was made to begin with.
        fixup_share: share of the learner's time in the fixup phase, its checks included.
        check_share: share in the checks.
        step_share: share in the steps.
        fixup_steps: mean gradient steps of the fixup phase in an update.
        primary_steps: mean gradient steps of the primary phase in an update.
        peak_bytes: most memory held while training: allocated on the GPU, or resident in the whole process on the CPU.
        host_reads: calls in an update that wait for a number of the device, counted the same way for both learners.
        host_reads_logged: the same as the learner itself logs it.
        launches: of kernels and graphs in an update, on a GPU.
        updates: how many updates the medians are over.
    """

    shape: str
    batch: int
    algo: str
    device: str
    device_name: str
    samples_per_s: float
    ratio_to_appo: float
    ratio_interval: tuple[float, float] | None
    ratio_spread: tuple[float, float]
    price: float | None
    forced_fixup_steps: int
    fixup_share: float
    check_share: float
    step_share: float
    fixup_steps: float | None
    primary_steps: float | None
    peak_bytes: int | None
    host_reads: int | None
    host_reads_logged: float | None
    launches: int | None
    updates: int


def host_reads(learner: Learner) -> HostReads:
    """Counts the reads of an update, but for Adam's step counts where it keeps them on the CPU: they wait for nothing."""
    fused = all(group.get("fused") for group in learner.optimizer.param_groups)
    counts = set() if fused else {state["step"].data_ptr() for state in learner.optimizer.state.values() if "step" in state}
    return HostReads(ignored=lambda tensor: tensor.data_ptr() in counts)


def quiet() -> None:
    """Keeps sample-factory's log to errors, so that the tables can be read."""
    log.setLevel(logging.ERROR)


def timed_update(learner: Learner, batch, seed: int) -> float:
    """Fills the batch by the published policy, trains on it, and returns the training's wall-clock seconds."""
    fill_policy_outputs(learner, batch, seed)
    _synchronize(learner.device)
    start = time.perf_counter()
    learner.train(batch)
    _synchronize(learner.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Workload:
    """What is measured in one go.

    Attributes:
        shape: what the learners train on.
        forced: fixup steps that each phase begins with.
        device: `cpu` or `gpu`.
        flags: that stock sample-factory's learner does not have.
    """

    shape: Shape
    forced: int
    device: str
    flags: Mapping[str, Any]

    def learner(self, algo: str, train_dir: str) -> Learner:
        """A learner of it: of `ALGOS`, or `UNGUARDED`."""
        own = {} if algo == "APPO" else self.flags
        learner = make_learner("FIXPO" if algo == UNGUARDED else algo, self.shape, self.device, train_dir, **own)
        if algo == UNGUARDED:
            without_guarantee(learner)
        if algo == "FIXPO" and self.forced:
            force_fixup(learner, self.forced)
        return learner


def time_in_turns(work: Workload, updates: int, warmup: int, algos: tuple[str, ...], train_dir: str) -> dict[str, Timings]:
    """Trains each algorithm's learner one update at a time, in turns.

    Returns:
        Timings by algorithm.

    Raises:
        RuntimeError: a learner left a batch out.
    """
    learners = {algo: work.learner(algo, f"{train_dir}/{algo}") for algo in algos}
    batches = {algo: make_batch(learner, seed=0) for algo, learner in learners.items()}
    timings = {algo: Timings() for algo in algos}
    for round_number in range(warmup + updates):
        order = algos if round_number % 2 == 0 else algos[::-1]
        for algo in order:
            learner = learners[algo]
            steps_before = learner.env_steps
            seconds = timed_update(learner, batches[algo], seed=round_number)
            if learner.env_steps == steps_before:
                raise RuntimeError(f"{algo} trained on nothing in update {round_number} of {work.shape.name}")
            if round_number >= warmup:
                _note(timings[algo], learner, seconds)
    return timings


def _note(timings: Timings, learner: Learner, seconds: float) -> None:
    timings.train.append(seconds)
    record = getattr(learner, "last_record", None)
    if record is not None:
        timings.check.append(record.seconds.get("check", 0.0))
        timings.fixup.append(record.seconds.get("fixup", 0.0))
        timings.fixup_steps.append(record.fixup_steps)
        timings.primary_steps.append(record.primary_steps)
        timings.host_reads_logged.append(record.host_reads)


@dataclass(frozen=True)
class Alone:
    """What is measured of one learner in a process of its own; None where the system does not tell, or nobody asked."""

    peak_bytes: int | None = None
    host_reads: int | None = None
    launches: int | None = None


def measure_alone(algo: str, work: Workload, threads: int) -> Alone:
    """Peak memory, host reads and launches of an update in this (fresh) process, after two updates to warm up.

    On the CPU the peak is the process's resident high-water mark (`VmHWM`; `ru_maxrss` would start at the parent's), which holds
    the libraries too: what differs between two learners is what counts.
    """
    quiet()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as train_dir:
        learner = work.learner(algo, train_dir)
        batch = make_batch(learner, seed=0)
        for seed in range(2):  # the second one records graphs, where there are any
            timed_update(learner, batch, seed)
        fill_policy_outputs(learner, batch, seed=2)
        if work.device == "gpu":
            torch.cuda.reset_peak_memory_stats(learner.device)
        with host_reads(learner) as counter:
            learner.train(batch)
        _synchronize(learner.device)
        peak = torch.cuda.max_memory_allocated(learner.device) if work.device == "gpu" else _high_water_mark()
        return Alone(peak, counter.count, _launches(learner, batch) if work.device == "gpu" else None)


def _launches(learner: Learner, batch: Any) -> int:
    """Kernels and graphs that the host launches in an update, as torch's profiler sees them."""
    fill_policy_outputs(learner, batch, seed=3)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        learner.train(batch)
        _synchronize(learner.device)
    names = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
    return sum(event.count for event in seen.key_averages() if event.key in names)


def _high_water_mark() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else None


def make_rows(work: Workload, timings: dict[str, Timings], alone: Mapping[str, Alone], threads: int) -> list[Row]:
    """Medians, ratios and shares from what was measured; a pure function."""
    batch = work.shape.cfg["batch_size"] * work.shape.cfg["num_batches_per_epoch"]
    reference = timings["APPO"].train if "APPO" in timings else None
    unguarded = timings[UNGUARDED].train if UNGUARDED in timings else None
    rows = []
    for algo, measured in timings.items():
        ratios = [appo / own for appo, own in zip(reference or measured.train, measured.train, strict=True)]
        prices = [own / bare - 1 for own, bare in zip(measured.train, unguarded or [], strict=bool(unguarded))]
        total, apart = sum(measured.train), alone.get(algo, Alone())
        rows.append(
            Row(
                shape=work.shape.name,
                batch=batch,
                algo=algo,
                device=work.device,
                device_name=torch.cuda.get_device_name() if work.device == "gpu" else f"{threads} thread(s)",
                samples_per_s=batch / statistics.median(measured.train),
                ratio_to_appo=statistics.median(ratios),
                ratio_interval=interval(ratios),
                ratio_spread=(min(ratios), max(ratios)),
                price=statistics.median(prices) if prices and algo == "FIXPO" else None,
                forced_fixup_steps=work.forced if algo == "FIXPO" else 0,
                fixup_share=(sum(measured.check) + sum(measured.fixup)) / total,
                check_share=sum(measured.check) / total,
                step_share=sum(measured.fixup) / total,
                fixup_steps=_mean(measured.fixup_steps),
                primary_steps=_mean(measured.primary_steps),
                peak_bytes=apart.peak_bytes,
                host_reads=apart.host_reads,
                host_reads_logged=_mean(measured.host_reads_logged),
                launches=apart.launches,
                updates=len(measured.train),
            )
        )
    return rows


def interval(ratios: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the geometric mean of ratios, by Student's t of their logarithms."""
    if len(ratios) < 2:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    middle, half = statistics.fmean(logs), float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle - half), math.exp(middle + half)


def _mean(values: list[int]) -> float | None:
    return statistics.fmean(values) if values else None


def make_table(rows: list[Row]) -> Table:
    """The result as a table; `n/a` is a number that does not exist for that learner, or was not asked for."""
    table = Table(title="Learner throughput (medians; updates of the learners interleaved)")
    for name in ("shape", "batch", "device", "algo"):
        table.add_column(name)
    numbers = ("samples/s", "to APPO", "95 %", "price %", "fixup %", "checks %", "steps %", "forced", "fixup/primary steps")
    for name in (*numbers, "peak MiB", "host reads", "launches"):
        table.add_column(name, justify="right")
    for row in rows:
        is_fixpo = row.fixup_steps is not None
        shares = [f"{100 * share:.1f}" if is_fixpo else "n/a" for share in (row.fixup_share, row.check_share, row.step_share)]
        table.add_row(
            row.shape, str(row.batch), f"{row.device}, {row.device_name}", row.algo,
            f"{row.samples_per_s:,.0f}", f"{row.ratio_to_appo:.3f}",
            "{:.2f}-{:.2f}".format(*row.ratio_interval) if row.ratio_interval else "n/a",
            _shown(row.price, lambda price: f"{100 * price:.1f}"), *shares, str(row.forced_fixup_steps),
            f"{row.fixup_steps:.1f} / {row.primary_steps:.0f}" if is_fixpo else "n/a",
            _shown(row.peak_bytes, lambda peak: f"{peak / 2**20:,.0f}"), _shown(row.host_reads, str), _shown(row.launches, str),
        )  # fmt: skip
    return table


def _shown(number: Any, text: Callable[[Any], str]) -> str:
    return "n/a" if number is None else text(number)


def _numbers(text: str) -> list[int]:
    """Whole numbers, none negative, by commas.

    Raises:
        ValueError: something else.
    """
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError(text)
    return numbers


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shapes", default="dmlab,mujoco", help=f"comma-separated, of: {', '.join(SHAPES)}")
    known = (*ALGOS, UNGUARDED)
    parser.add_argument("--algos", default="APPO,FIXPO", help=f"comma-separated, of: {', '.join(known)}")
    parser.add_argument("--batches", default="0", help="samples of an update, comma-separated; 0: the shape's own")
    parser.add_argument("--forced_fixup_steps", default="0", help="steps that FixPO's fixup phase begins with, comma-separated")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--graphs", default="on", choices=("on", "off"), help="gradient steps as CUDA graphs, on a GPU")
    parser.add_argument("--encoder_dtype", default="float32", choices=("float32", "bfloat16"), help="of FixPO's primary steps")
    parser.add_argument("--updates", type=int, default=10, help="timed updates of each learner")
    parser.add_argument("--warmup", type=int, default=2, help="updates of each learner that are not timed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 1 is what sample-factory's learner process uses")
    parser.add_argument("--skip_memory", action="store_true", help="leave out the separate processes for memory and host reads")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args(argv)
    # by itself the learner makes graphs where it can
    args.flags = {"encoder_dtype": args.encoder_dtype, "cuda_graphs": "auto" if args.graphs == "on" else "off"}
    args.shapes = [name for name in args.shapes.split(",") if name]
    args.algos = tuple(name for name in args.algos.split(",") if name)
    unknown = set(args.shapes) - set(SHAPES)
    if not args.shapes or unknown:
        parser.error(f"--shapes: unknown {', '.join(sorted(unknown)) or 'empty list'}; one or more of {', '.join(SHAPES)}")
    if not args.algos or set(args.algos) - set(known):
        parser.error(f"--algos: one or more of {', '.join(known)}")
    for name in ("batches", "forced_fixup_steps"):
        try:
            setattr(args, name, _numbers(getattr(args, name)))
        except ValueError:
            parser.error(f"--{name}={getattr(args, name)}: whole numbers from 0 on, by commas")
    try:
        args.works = [
            Workload(of_batch(SHAPES[shape], batch), forced, args.device, args.flags)
            for shape in args.shapes
            for batch in args.batches
            for forced in args.forced_fixup_steps
        ]
    except ValueError as exc:
        parser.error(f"--batches: {exc}")
    for name, least in (("updates", 1), ("warmup", 0), ("threads", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name}={getattr(args, name)}: at least {least}")
    if args.device == "gpu" and not torch.cuda.is_available():
        parser.error("--device=gpu: torch sees no GPU here")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and prints the table.

    Returns:
        The exit code: 0, or 2 by argparse for a bad command line. Failures of a learner raise.
    """
    args = parse_args(argv)
    quiet()
    torch.set_num_threads(args.threads)
    # a file or a pipe has no width of its own, and 80 columns cut the table's numbers off
    console = Console() if sys.stdout.isatty() else Console(width=200)
    rows: list[Row] = []
    for work in args.works:
        console.print(
            f"{work.shape.name}: {args.warmup} + {args.updates} updates each of {', '.join(args.algos)} on the {args.device}"
        )
        alone: dict[str, Alone] = {}
        for algo in () if args.skip_memory else args.algos:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                alone[algo] = pool.submit(measure_alone, algo, work, args.threads).result()
        with tempfile.TemporaryDirectory() as train_dir:
            timings = time_in_turns(work, args.updates, args.warmup, args.algos, train_dir)
        rows += make_rows(work, timings, alone, args.threads)
    console.print(make_table(rows))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
