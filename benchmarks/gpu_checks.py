"""What only a GPU can show: each check of `docs/gpu_checks.md`, in one command, as a table and as JSON.

    python -m benchmarks.gpu_checks --out=DIR

Needs a CUDA device; a check that cannot run there says why in its row and makes the exit status 1. Times are medians of
synchronised repetitions on an idle device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.learner import quiet
from benchmarks.synthetic import SHAPES, fill_policy_outputs, make_batch, make_learner
from sf_fixpo.algorithm.trust_region import Divergence
from sf_fixpo.learning.mailbox import Mailbox
from sf_fixpo.learning.policy import action_parameters, full_precision
from sf_fixpo.learning.unrolling import unroll

Figures = dict[str, Any]
CHECKS: dict[str, Callable[[], Figures]] = {}


def check(function: Callable[[], Figures]) -> Callable[[], Figures]:
    """Adds a check under its name; it returns figures, `passed` among them where it can fail."""
    CHECKS[function.__name__] = function
    return function


@check
def a_skipped_adam_step_is_no_step() -> Figures:
    """Fused Adam with `found_inf` = 1 leaves weights and moments bit for bit, a gradient that is no number included."""
    weights = torch.randn(1000, device="cuda", requires_grad=True)
    adam = torch.optim.Adam([weights], lr=torch.tensor(1e-3, device="cuda"), fused=True, capturable=True)
    weights.grad = torch.randn_like(weights)
    adam.step()
    tensors = [weights, *adam.state[weights].values()]
    before = [tensor.detach().clone() for tensor in tensors]
    weights.grad.fill_(torch.nan)
    adam.grad_scale, adam.found_inf = None, torch.ones((), device="cuda")  # type: ignore[attr-defined]
    adam.step()
    same = [torch.equal(a, b.detach()) for a, b in zip(before, tensors, strict=True)]
    return {"passed": all(same)}


@check
def host_waits_of_an_update() -> Figures:
    """Waits that torch itself notices in one update of each learner (`set_sync_debug_mode`)."""
    found: Figures = {}
    for shape in SHAPES:
        for algo in ("APPO", "FIXPO"):
            learner, batch = _learner(algo, shape)
            learner.train(batch)
            fill_policy_outputs(learner, batch, 1)
            with warnings.catch_warnings(record=True) as noticed:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    learner.train(batch)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            said = [str(warning.message) for warning in noticed]
            found[f"{shape} {algo}"] = sum("synchroniz" in text for text in said)
            found[f"{shape} {algo}: weights that cuDNN copies"] = sum("contiguous chunk" in text for text in said)
    return found


def _learner(algo: str, shape: str, **flags: Any):
    learner = make_learner(algo, shape, "gpu", tempfile.mkdtemp(prefix="gpu_checks_"), **flags)
    return learner, make_batch(learner, seed=0)


def _median_ms(function: Callable[[], Any], repetitions: int = 30) -> float:
    times = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@check
def updates_with_cuda_graphs_are_those_without() -> Figures:
    """20 updates with steps one by one, twice, and as CUDA graphs; then a checkpoint is loaded, and all is recorded anew.

    cuDNN adds in no fixed order, so that two runs without graphs differ too: how far is the yardstick.
    """
    found: Figures = {"passed": True}
    for shape in SHAPES:
        ends = []
        for name, graphs in (("one by one", "off"), ("one by one again", "off"), ("graphs", "on")):
            learner, batch = _learner("FIXPO", shape, cuda_graphs=graphs)
            start = _weights(learner)
            times = [_timed_update(learner, batch, seed) for seed in range(20)]
            found[f"{shape}, {name}: ms an update"] = 1e3 * statistics.median(times[5:])
            ends.append(_weights(learner))
        moved = float((ends[0] - start).abs().max())
        usual, apart = (float((ends[0] - end).abs().max()) for end in ends[1:])
        found[f"{shape}: largest change of a weight"] = moved
        found[f"{shape}: largest difference of a weight, without graphs"] = usual
        found[f"{shape}: the same, with graphs"] = apart
        replays = learner.improvement._graphs.primary
        before = replays.captures
        learner.save()
        learner.set_policy_to_load(0)
        for seed in (20, 21):
            _timed_update(learner, batch, seed)
        found[f"{shape}: recordings before and after a load"] = f"{before}, {replays.captures}"
        found[f"{shape}: given up"] = str(replays.given_up)
        recorded = before >= 1 and replays.captures == before + 1 and replays.given_up is None
        found["passed"] &= recorded and apart <= max(3 * usual, 1e-3 * moved) and not learner.last_record.rolled_back
    return found


def _weights(learner: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.candidate.model.parameters()])


def _timed_update(learner: Any, batch: Any, seed: int) -> float:
    """Seconds of an update on a batch that the published policy plays anew before."""
    fill_policy_outputs(learner, batch, seed)
    torch.cuda.synchronize()
    start = time.perf_counter()
    learner.train(batch)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _write(places: list[Tensor], mailbox: Mailbox, stop: Any) -> None:
    version = 0
    while not stop.is_set():
        version += 1
        mailbox.put(lambda place, version=version: places[place].fill_(version), version)


def _wait_for_the_device() -> None:
    torch.cuda.current_stream().synchronize()


@check
def a_reader_in_another_process_gets_no_half_of_two_versions() -> Figures:
    """Torn copies of shared device memory: by a reader that waits for its copies before it looks again, or not."""
    context = mp.get_context("spawn")
    found: Figures = {}
    busy = torch.randn(4096, 4096, device="cuda")
    for settled in (True, False):
        places, lock, stop = [torch.zeros(1 << 27, device="cuda") for _ in range(2)], context.Lock(), context.Event()
        versions = torch.zeros(1, dtype=torch.int32).share_memory_()
        mailbox = Mailbox(lock, versions, 0, _wait_for_the_device)
        writer = context.Process(target=_write, args=(places, mailbox, stop))
        writer.start()
        if not settled:
            mailbox._settle = int
        while mailbox.version == 0:
            time.sleep(0.01)
        torn, mine = 0, torch.zeros_like(places[0])

        def read(place: int, mine: Tensor = mine, places: list[Tensor] = places) -> None:
            torch.mm(busy, busy)  # what an actor has queued before its copies
            mine.copy_(places[place])

        for _ in range(200):
            mailbox.take(read)
            torn += bool(mine.min() != mine.max())
        stop.set()
        writer.join()
        found[f"torn of 200, {'waiting' if settled else 'hasty'} reader"] = torn
    return {"passed": found["torn of 200, waiting reader"] == 0, **found}


@check
def what_reduced_precision_would_cost() -> Figures:
    """KL between a policy in float32 and itself with TF32 in one kind of operation, in units of the bound, largest state."""
    backends, found = torch.backends, {}
    leaves = {"matmul": backends.cuda.matmul, "conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn}  # type: ignore[attr-defined]
    for shape in SHAPES:
        learner, raw = _learner("FIXPO", shape)
        for seed in range(5):
            fill_policy_outputs(learner, raw, seed)
            learner.train(raw)
        batch: Any = learner._update[0]
        policy, divergence, eps = learner.gate.published, learner.divergence, learner.fixpo.eps_kl
        obs = policy.observe(batch.raw_obs)
        exact = batch.parameters(policy, obs, len(batch))
        kl = divergence.per_state(exact, batch.bound)
        for name, leaf in leaves.items():
            before, leaf.fp32_precision = leaf.fp32_precision, "tf32"
            states, packing = batch.samples["rnn_states"], batch.packing(slice(0, len(batch)))
            with torch.no_grad():
                rounded = action_parameters(policy.model, obs, states, packing)
            leaf.fp32_precision = before
            found[f"{shape}: {name}, KL to itself / eps_kl"] = _largest(divergence, rounded, exact) / eps
            moved = (divergence.per_state(rounded, batch.bound) - kl).abs().max()
            found[f"{shape}: {name}, change of a state's KL / eps_kl"] = float(moved) / eps
    return found


def _largest(divergence: Divergence, p: Tensor, q: Tensor) -> float:
    return float(divergence.per_state(p, q).max())


@check
def a_core_as_a_loop_or_packed() -> Figures:
    """The recurrent core of the DMLab shape, forward and backward, as a loop over steps and packed: time and difference."""
    learner, raw = _learner("FIXPO", "dmlab")
    learner.train(raw)
    batch: Any = learner._update[0]
    core, packing = learner.candidate.model.core, batch.packing(slice(0, len(batch)))
    features = torch.randn(len(batch), core.core.input_size, device="cuda", requires_grad=True)
    states = batch.samples["rnn_states"]

    def packed() -> Tensor:
        sequences, first = packing.pack(features, states)
        return packing.unpack(core(sequences, first)[0])

    def loop() -> Tensor:
        return unroll(core.core, features, states, packing.keep)

    with full_precision():
        difference = float((packed() - loop()).abs().max())
    times = {f"{f.__name__} ms": _median_ms(lambda f=f: f().sum().backward()) for f in (packed, loop)}
    return {"passed": difference <= 1e-5, "largest difference": difference, **times}


@check
def a_fixup_phase_in_chunks() -> Figures:
    """Updates that need fixup steps: the host deciding on each step, and the device in chunks; weights and time."""
    found: Figures = {"passed": True}
    for shape in SHAPES:
        weights = []
        for chunk in (0, 8):
            learner, batch = _learner("FIXPO", shape, fixup_chunk=chunk, learning_rate=3e-3)
            times, steps = [], 0
            for seed in range(6):
                times.append(_timed_update(learner, batch, seed))
                steps += learner.last_record.fixup_steps
            found[f"{shape}, chunk {chunk}: ms"] = 1e3 * statistics.median(times[1:])
            found[f"{shape}, chunk {chunk}: fixup steps"] = steps
            weights.append(_weights(learner))
            visits = learner.improvement._graphs.visits
            found[f"{shape}, chunk {chunk}: recordings of a visit"] = visits.captures
            found["passed"] &= visits.given_up is None
        difference = float((weights[0] - weights[1]).abs().max())
        found[f"{shape}: largest difference of a weight"] = difference
        found["passed"] &= difference <= 1e-3
    return found


@check
def encoding_in_parts() -> Figures:
    """An update of the DMLab shape with the encoder in parts of 200 images, as on a CPU, and with all of them at once."""
    found: Figures = {}
    for name in ("as it is", "all at once"):
        learner, batch = _learner("FIXPO", "dmlab")
        if name == "all at once":
            learner.candidate.samples_at_once = learner.verifier.staged.samples_at_once = lambda obs: sys.maxsize
        times = [_timed_update(learner, batch, seed) for seed in range(12)]
        found[f"{name}: ms an update"] = 1e3 * statistics.median(times[2:])
    return found


def run(names: list[str]) -> dict[str, Figures]:
    """The named checks one after the other; what raises is noted, and the others go on."""
    results: dict[str, Figures] = {}
    for name in names:
        try:
            results[name] = CHECKS[name]()
        except Exception as exc:  # noqa: BLE001 - a check that cannot run is a result
            traceback.print_exc()
            results[name] = {"passed": False, "error": f"{type(exc).__name__}: {exc}"}
        print(name, json.dumps(results[name]), flush=True)
    return results


def table(results: dict[str, Figures]) -> str:
    """The results in Markdown."""
    lines = ["| check | figure | value |", "|---|---|---|"]
    for name, figures in results.items():
        for key, value in figures.items():
            shown = f"{value:.3g}" if isinstance(value, float) else value
            lines.append(f"| {name.replace('_', ' ')} | {key} | {shown} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 where a check has failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_checks", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(CHECKS)}")
    parser.add_argument("--out", type=Path, help="folder for gpu_checks.json and gpu_checks.md")
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(CHECKS)
    if unknown := sorted(set(names) - set(CHECKS)):
        parser.error(f"--only: unknown {', '.join(unknown)}; of {', '.join(CHECKS)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    quiet()
    results = run(names)
    where = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(where, table(results), sep="\n")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "gpu_checks.json").write_text(json.dumps({**where, "checks": results}, indent=1) + "\n")
        (args.out / "gpu_checks.md").write_text(table(results))
    return int(not all(figures.get("passed", True) for figures in results.values()))


if __name__ == "__main__":
    sys.exit(main())
