"""DMLab's instruction encoder: this package's beside sample-factory's, on the same instructions in one process.

    python -m benchmarks.encoder --device=cpu --batch=1024 --json=encoder.json

The two hold the same weights and take turns, one pass each, and who goes first alternates: a machine that slows down slows both.
Times are medians over `--repetitions`; the speed-up is the median of the ratios of neighbouring passes. Without `--image` the
image's part is left out (it is the same in both), so that the times are of the instruction alone.

On a GPU sample-factory's encoder keeps the instruction's part on the CPU and copies the result: a pass ends when the GPU is done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sample_factory.model.encoder import Encoder
from sf_examples.dmlab.dmlab30 import DMLAB_INSTRUCTIONS, DMLAB_MAX_INSTRUCTION_LEN, DMLAB_VOCABULARY_SIZE
from sf_examples.dmlab.dmlab_model import DmlabEncoder as ExampleDmlabEncoder
from torch import Tensor, nn

from benchmarks.learner import quiet
from benchmarks.shapes import DMLAB
from benchmarks.synthetic import make_cfg
from sf_fixpo.learning.encoder import DmlabEncoder

KINDS = ("empty", "short", "mixed")
ENCODERS = {"sample-factory": ExampleDmlabEncoder, "sf_fixpo": DmlabEncoder}
PASSES = ("forward", "forward+backward")
DISTINCT = 30  # instructions in a mixed batch: about one for each level of DMLab-30
IMAGE_SHAPE = DMLAB.obs_space["obs"].shape or ()
_SHORT = 3


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        kind: of instructions, one of `KINDS`.
        what: `forward` (without gradient, as an actor's) or `forward+backward`.
        encoder: whose.
        device: `cpu` or `gpu`.
        device_name: the accelerator's name, or the number of threads.
        batch: samples of a pass.
        image: whether the image's part is timed with it.
        milliseconds: median time of a pass.
        speed_up: sample-factory's time over this encoder's.
        speed_up_spread: smallest and largest of the ratios it is the median of.
        repetitions: how many passes the medians are over.
    """

    kind: str
    what: str
    encoder: str
    device: str
    device_name: str
    batch: int
    image: bool
    milliseconds: float
    speed_up: float
    speed_up_spread: tuple[float, float]
    repetitions: int


class _NoImage(nn.Module):
    """In place of the image's part: no features."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)[:, :0]


def make_instructions(kind: str, batch: int, seed: int = 0) -> Tensor:
    """[batch, 16] int64 words: all empty, all the same three, or any of 30 instructions of 0 to 16 words."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, DMLAB_VOCABULARY_SIZE, (DISTINCT, DMLAB_MAX_INSTRUCTION_LEN))
    lengths = {"empty": [0], "short": [_SHORT], "mixed": rng.integers(0, DMLAB_MAX_INSTRUCTION_LEN + 1, DISTINCT)}[kind]
    rows = words[: len(lengths)] * (np.arange(DMLAB_MAX_INSTRUCTION_LEN) < np.asarray(lengths)[:, None])
    return torch.from_numpy(rows[rng.integers(0, len(rows), batch)])


def make_encoders(device: torch.device, image: bool) -> dict[str, Encoder]:
    """Both encoders, with the same weights, placed on the device as a learner places them."""
    with tempfile.TemporaryDirectory() as train_dir:
        cfg = make_cfg("APPO", DMLAB, train_dir=train_dir)
    instruction = gym.spaces.Box(0, DMLAB_VOCABULARY_SIZE, (DMLAB_MAX_INSTRUCTION_LEN,), np.int32)
    obs_space = gym.spaces.Dict([("obs", DMLAB.obs_space["obs"]), (DMLAB_INSTRUCTIONS, instruction)])
    encoders = {name: kind(cfg, obs_space) for name, kind in ENCODERS.items()}
    first, *others = encoders.values()
    for other in others:
        other.load_state_dict(first.state_dict())
    for encoder in encoders.values():
        if not image:
            encoder.basic_encoder = _NoImage()
        encoder.model_to_device(device)
    return encoders


def timed_pass(encoder: Encoder, obs: dict[str, Tensor], what: str, device: torch.device) -> float:
    """Seconds of one pass, until the device has finished it."""
    encoder.zero_grad(set_to_none=True)
    _synchronize(device)
    start = time.perf_counter()
    if what == "forward":
        with torch.no_grad():
            encoder(obs)
    else:
        encoder(obs).sum().backward()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turns(
    encoders: dict[str, Encoder], words: Tensor, what: str, device: torch.device, repetitions: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of each pass of each encoder, without the warm-up."""
    image = torch.rand(len(words), *IMAGE_SHAPE, device=device)
    inputs = {
        name: {"obs": image, DMLAB_INSTRUCTIONS: words.to(encoder.device_for_input_tensor(DMLAB_INSTRUCTIONS))}
        for name, encoder in encoders.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for round_number in range(warmup + repetitions):
        order = list(encoders) if round_number % 2 == 0 else list(encoders)[::-1]
        for name in order:
            took = timed_pass(encoders[name], inputs[name], what, device)
            if round_number >= warmup:
                seconds[name].append(took)
    return seconds


def make_rows(seconds: dict[str, list[float]], **where) -> list[Row]:
    """Medians and ratios from what was measured; the first encoder is the reference. A pure function."""
    reference = next(iter(seconds.values()))
    rows = []
    for name, own in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(reference, own, strict=True)]
        rows.append(
            Row(
                encoder=name,
                milliseconds=1e3 * statistics.median(own),
                speed_up=statistics.median(ratios),
                speed_up_spread=(min(ratios), max(ratios)),
                repetitions=len(own),
                **where,
            )
        )
    return rows


def make_table(rows: Sequence[Row]) -> Table:
    """The result as a table."""
    table = Table(title="DMLab's instruction encoder (medians; passes of the two interleaved)")
    for name in ("instructions", "pass", "device", "encoder"):
        table.add_column(name)
    for name in ("batch", "ms", "speed-up", "range"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.kind, row.what, f"{row.device}, {row.device_name}", row.encoder,
            str(row.batch), f"{row.milliseconds:.2f}", f"{row.speed_up:.2f}", "{:.2f}-{:.2f}".format(*row.speed_up_spread),
        )  # fmt: skip
    return table


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--batch", type=int, default=1024, help="samples of a pass")
    parser.add_argument("--repetitions", type=int, default=15, help="timed passes of each encoder")
    parser.add_argument("--warmup", type=int, default=3, help="passes of each encoder that are not timed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 1 is what sample-factory's learner process uses")
    parser.add_argument("--image", action="store_true", help="time the image's part with it (IMPALA's ResNet, 72 x 96)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args(argv)
    for name, least in (("batch", 1), ("repetitions", 1), ("warmup", 0), ("threads", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name}={getattr(args, name)}: at least {least}")
    if args.device == "gpu" and not torch.cuda.is_available():
        parser.error("--device=gpu: torch sees no GPU here")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and prints the table; returns the exit code: 0, or 2 by argparse for a bad command line."""
    args = parse_args(argv)
    quiet()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if args.device == "gpu" else "cpu")
    name = torch.cuda.get_device_name() if args.device == "gpu" else f"{args.threads} thread(s)"
    encoders = make_encoders(device, args.image)
    rows: list[Row] = []
    for kind in KINDS:
        words = make_instructions(kind, args.batch)
        for what in PASSES:
            seconds = time_in_turns(encoders, words, what, device, args.repetitions, args.warmup)
            where = {"device": args.device, "device_name": name, "batch": args.batch, "image": args.image}
            rows += make_rows(seconds, kind=kind, what=what, **where)
    # a file or a pipe has no width of its own, and 80 columns cut the table's numbers off
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(make_table(rows))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
