"""Updates on synthetic batches, for tests of the learner: with a lag, older published policies have collected them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.synthetic import make_batch, take_snapshot
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows


def write_config(learner) -> None:
    """What a run writes beside its logs."""
    Path(learner.folder, "config.json").write_text(json.dumps(dict(learner.cfg), default=str))


def run(learner, updates, lag=0, first_seed=0, **batch_args) -> list[dict]:
    """Trains; returns the rows of the update log."""
    write_config(learner)
    snapshots = []
    for i in range(first_seed, first_seed + updates):
        snapshots = [*snapshots, take_snapshot(learner)][-(lag + 1) :] if lag else []
        played = snapshots[:: max(1, len(snapshots) // 4)]  # the oldest and some between; a batch has few trajectories
        learner.train(make_batch(learner, seed=i, snapshots=played, **batch_args))
    return latest_rows(f"{learner.folder}/{UPDATE_LOG}")


def tensors(model) -> dict:
    """Copies of a network's state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
