"""Learner throughput: this package's learner beside stock sample-factory's, on the same synthetic batches in one process.

    python -m benchmarks.learner --shapes=dmlab,mujoco --device=cpu --updates=7 --json=learner.json

The two learners take turns, one update each, and who goes first alternates: a machine that slows down slows both. Only
`learner.train(batch)` is timed. Before every update the batch's policy outputs are made anew by the policy the learner has
published, outside the timed region. Medians are over `--updates` updates after `--warmup` ones; the ratio to APPO is the median
of the ratios of neighbouring updates. Memory and host reads are measured in a process of their own for each learner.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
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

from benchmarks.host_reads import HostReads
from benchmarks.synthetic import ALGOS, SHAPES, fill_policy_outputs, make_batch, make_learner


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
        ratio_spread: smallest and largest of the ratios it is the median of.
        fixup_share: share of the learner's time in the fixup phase, its checks included.
        check_share: share in the checks.
        step_share: share in the steps.
        fixup_steps: mean gradient steps of the fixup phase in an update.
        primary_steps: mean gradient steps of the primary phase in an update.
        peak_bytes: most memory held while training: allocated on the GPU, or resident in the whole process on the CPU.
        host_reads: calls in an update that wait for a number of the device, counted the same way for both learners.
        host_reads_logged: the same as the learner itself logs it.
        updates: how many updates the medians are over.
    """

    shape: str
    batch: int
    algo: str
    device: str
    device_name: str
    samples_per_s: float
    ratio_to_appo: float
    ratio_spread: tuple[float, float]
    fixup_share: float
    check_share: float
    step_share: float
    fixup_steps: float | None
    primary_steps: float | None
    peak_bytes: int | None
    host_reads: int | None
    host_reads_logged: float | None
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


def learner_of(algo: str, shape: str, device: str, train_dir: str, flags: dict[str, Any]) -> Learner:
    """A learner of a shape, with flags that stock sample-factory's does not have."""
    return make_learner(algo, shape, device, train_dir, **({} if algo == "APPO" else flags))


def time_in_turns(
    shape: str, device: str, updates: int, warmup: int, algos: tuple[str, ...], train_dir: str, flags: dict[str, Any]
) -> dict[str, Timings]:
    """Trains each algorithm's learner one update at a time, in turns.

    Returns:
        Per algorithm what was measured, without the warm-up; also checks that every learner did train.

    Raises:
        RuntimeError: a learner left a batch out.
    """
    learners = {algo: learner_of(algo, shape, device, f"{train_dir}/{shape}_{algo}", flags) for algo in algos}
    batches = {algo: make_batch(learner, seed=0) for algo, learner in learners.items()}
    timings = {algo: Timings() for algo in algos}
    for round_number in range(warmup + updates):
        order = algos if round_number % 2 == 0 else algos[::-1]
        for algo in order:
            learner = learners[algo]
            steps_before = learner.env_steps
            seconds = timed_update(learner, batches[algo], seed=round_number)
            if learner.env_steps == steps_before:
                raise RuntimeError(f"{algo} trained on nothing in update {round_number} of {shape}")
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


def measure_alone(algo: str, shape: str, device: str, threads: int, flags: dict[str, Any]) -> tuple[int | None, int]:
    """Peak memory in bytes and host reads of one learner in this (fresh) process, after two updates to warm up.

    On the CPU the peak is the process's resident high-water mark (`VmHWM`; `ru_maxrss` would start at the parent's), which holds
    the libraries too: what differs between two learners is what counts. None where the system does not tell.
    """
    quiet()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as train_dir:
        learner = learner_of(algo, shape, device, train_dir, flags)
        batch = make_batch(learner, seed=0)
        for seed in range(2):  # the second one records graphs, where there are any
            timed_update(learner, batch, seed)
        fill_policy_outputs(learner, batch, seed=2)
        if device == "gpu":
            torch.cuda.reset_peak_memory_stats(learner.device)
        with host_reads(learner) as counter:
            learner.train(batch)
        _synchronize(learner.device)
        peak = torch.cuda.max_memory_allocated(learner.device) if device == "gpu" else _high_water_mark()
    return peak, counter.count


def _high_water_mark() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else None


def make_rows(
    shape: str, device: str, timings: dict[str, Timings], alone: dict[str, tuple[int | None, int | None]], threads: int
) -> list[Row]:
    """Medians, ratios and shares from what was measured; a pure function."""
    flags = SHAPES[shape].cfg
    batch = flags["batch_size"] * flags["num_batches_per_epoch"]
    reference = timings["APPO"].train if "APPO" in timings else None
    rows = []
    for algo, measured in timings.items():
        ratios = [appo / own for appo, own in zip(reference or measured.train, measured.train, strict=True)]
        total = sum(measured.train)
        peak, reads = alone.get(algo, (None, None))
        rows.append(
            Row(
                shape=shape,
                batch=batch,
                algo=algo,
                device=device,
                device_name=torch.cuda.get_device_name() if device == "gpu" else f"{threads} thread(s)",
                samples_per_s=batch / statistics.median(measured.train),
                ratio_to_appo=statistics.median(ratios),
                ratio_spread=(min(ratios), max(ratios)),
                fixup_share=(sum(measured.check) + sum(measured.fixup)) / total,
                check_share=sum(measured.check) / total,
                step_share=sum(measured.fixup) / total,
                fixup_steps=_mean(measured.fixup_steps),
                primary_steps=_mean(measured.primary_steps),
                peak_bytes=peak,
                host_reads=reads,
                host_reads_logged=_mean(measured.host_reads_logged),
                updates=len(measured.train),
            )
        )
    return rows


def _mean(values: list[int]) -> float | None:
    return statistics.fmean(values) if values else None


def make_table(rows: list[Row]) -> Table:
    """The result as a table; `n/a` is a number that does not exist for that learner."""
    table = Table(title="Learner throughput (medians; updates of the two learners interleaved)")
    for name in ("shape", "batch", "device", "algo"):
        table.add_column(name)
    for name in (
        "samples/s",
        "to APPO",
        "range",
        "fixup %",
        "checks %",
        "steps %",
        "fixup/primary steps",
        "peak MiB",
        "host reads",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        is_fixpo = row.fixup_steps is not None
        shares = [f"{100 * share:.1f}" if is_fixpo else "n/a" for share in (row.fixup_share, row.check_share, row.step_share)]
        table.add_row(
            row.shape, str(row.batch), f"{row.device}, {row.device_name}", row.algo,
            f"{row.samples_per_s:,.0f}", f"{row.ratio_to_appo:.3f}", "{:.2f}-{:.2f}".format(*row.ratio_spread), *shares,
            f"{row.fixup_steps:.1f} / {row.primary_steps:.0f}" if is_fixpo else "n/a",
            f"{row.peak_bytes / 2**20:,.0f}" if row.peak_bytes is not None else "n/a",
            str(row.host_reads) if row.host_reads is not None else "n/a",
        )  # fmt: skip
    return table


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shapes", default="dmlab,mujoco", help=f"comma-separated, of: {', '.join(SHAPES)}")
    parser.add_argument("--algos", default="APPO,FIXPO", help=f"comma-separated, of: {', '.join(ALGOS)}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--graphs", default="on", choices=("on", "off"), help="gradient steps as CUDA graphs, on a GPU")
    parser.add_argument("--encoder_dtype", default="float32", choices=("float32", "bfloat16"), help="of FixPO's primary steps")
    parser.add_argument("--updates", type=int, default=7, help="timed updates of each learner (at least 5 for a median)")
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
    if not args.algos or set(args.algos) - set(ALGOS):
        parser.error(f"--algos: one or more of {', '.join(ALGOS)}")
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
    console = Console() if sys.stdout.isatty() else Console(width=160)
    rows: list[Row] = []
    for shape in args.shapes:
        console.print(f"{shape}: {args.warmup} + {args.updates} updates each of {', '.join(args.algos)} on the {args.device}")
        alone: dict[str, tuple[int | None, int | None]] = {}
        if not args.skip_memory:
            for algo in args.algos:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    alone[algo] = pool.submit(measure_alone, algo, shape, args.device, args.threads, args.flags).result()
        with tempfile.TemporaryDirectory() as train_dir:
            timings = time_in_turns(shape, args.device, args.updates, args.warmup, args.algos, train_dir, args.flags)
        rows += make_rows(shape, args.device, timings, alone, args.threads)
    console.print(make_table(rows))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
