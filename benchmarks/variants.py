"""What a learner is turned into for a benchmark: another batch, a fixup phase of a given length, no guarantee at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.shapes import Shape
from sf_fixpo.algorithm.trust_region import FixupResult

UNGUARDED = (
    "UNGUARDED"  # FixPO's learner with nothing that serves the bound: what is left is what its guarantee is paid on top of
)


def of_batch(shape: Shape, samples: int) -> Shape:
    """A shape whose updates take another number of samples, in minibatches of the same size where it has several.

    Args:
        shape: to be changed.
        samples: of an update; 0: the shape's own.

    Raises:
        ValueError: they are no whole number of minibatches and trajectories.
    """
    cfg = shape.cfg
    several = cfg["num_batches_per_epoch"] > 1
    size = cfg["batch_size"] if several else samples
    if samples and (samples % size or samples % cfg["rollout"]):
        raise ValueError(f"{samples} samples are no whole number of minibatches of {size} and trajectories of {cfg['rollout']}")
    return shape.with_flags(batch_size=size, num_batches_per_epoch=samples // size) if samples else shape


def force_fixup(learner: Any, steps: int) -> None:
    """Has every fixup phase begin with so many steps, whatever is inside: each on the next slice, and a check of it after each.

    That is what the phase does where a step is needed; here it is made at will, so that it can be timed.

    Args:
        learner: FixPO's.
        steps: of each phase.
    """
    improvement, fixup = learner.improvement, learner.improvement.fixup

    def forced(progress: Any, batch: Any, verifier: Any) -> FixupResult:
        slots = improvement._slots if improvement.chunk_on(batch.valids.device) else None
        if slots is not None:
            slots.reset()
        for i in range(steps):
            part = verifier.slices[i % len(verifier.slices)]
            with progress.timer.phase("fixup"):
                improvement.fixup_step(progress, batch, part, progress.learning_rate, slots, True)
            with progress.timer.phase("check"):
                verifier.stage(improvement.candidate)
                verifier.evaluate([part])
        progress.fixup_steps += steps
        return fixup(progress, batch, verifier)

    improvement.fixup = forced


def without_guarantee(learner: Any) -> None:
    """Takes the trust region away: no check, no fixup, no admission of statistics; what a row says of the divergence is then 0.

    Args:
        learner: FixPO's; its publication stays.
    """
    improvement, verifier = learner.improvement, learner.verifier
    learner.fixpo = replace(learner.fixpo, fixup="off")
    improvement.ADMITS_STATISTICS = False

    def fixup(progress: Any, batch: Any, verifier: Any) -> FixupResult:
        verifier.stage(improvement.candidate)
        return FixupResult(satisfied=True)

    improvement.fixup = fixup
    verifier.kl = lambda: torch.zeros_like(verifier._batch.valids, dtype=torch.float32)
    verifier.parameters = lambda: verifier._batch.bound
