"""No policy worker ever acts with weights that did not come through the publication gate: asynchronous runs, watched."""

from __future__ import annotations

from collections import Counter

import pytest
from programs import ENV, json_lines, started

# a learning rate at which every update overshoots: the primary phase leaves weights that must not be seen
OVERSHOOTING = (
    f"--env={ENV}",
    "--serial_mode=False",
    "--async_rl=True",
    "--num_workers=2",
    "--num_envs_per_worker=4",
    "--rollout=8",
    "--batch_size=32",
    "--num_batches_per_epoch=2",
    "--num_epochs=2",
    "--fixup_batch_size=0",
    "--learning_rate=0.03",
    "--lr_schedule=constant",
    "--eps_kl=0.05",
    "--encoder_mlp_layers",
    "16",
    "--device=cpu",
)


def record(tmp_path, mode: str, updates: int):
    """Rows that published, rows that loaded, and the update log of a watched run."""
    log = tmp_path / "weights.jsonl"
    argv = ["tests/helpers/weight_recorder.py", log, mode, f"--train_dir={tmp_path}", "--experiment=run", *OVERSHOOTING]
    with started(tmp_path / "output", *argv, f"--train_for_env_steps={64 * updates}") as run:
        assert run.wait(150) == 0, run.report()
        run.assert_nothing_left()
    events = json_lines(log)
    return *([e for e in events if e["what"] == what] for what in ("published", "loaded")), json_lines(
        tmp_path / "run/updates.jsonl"
    )


@pytest.mark.slow
def test_every_weight_that_a_worker_loads_was_published(tmp_path):
    published, loaded, updates = record(tmp_path, "publish", updates=200)
    assert len(updates) >= 200
    assert sum(row["fixup_steps"] for row in updates) >= 20, "the primary phase must leave weights that may not be seen"
    assert [row["version"] for row in published] == [0] + [row["policy_version"] for row in updates]

    newest_version_of = {row["digest"]: row["version"] for row in published}
    assert {row["digest"] for row in loaded} <= newest_version_of.keys()
    assert len({row["digest"] for row in loaded}) >= 30, "or the test has hardly looked"
    # weights may be newer than their label (they are written first), never older
    assert all(newest_version_of[row["digest"]] >= row["version"] for row in loaded)
    assert {row["version"] for row in loaded} <= {row["version"] for row in published}
    for worker in {row["pid"] for row in loaded}:
        versions = [row["version"] for row in loaded if row["pid"] == worker]
        assert versions == sorted(set(versions)), "versions only grow"


@pytest.mark.slow
def test_a_leak_would_be_seen(tmp_path):
    published, loaded, updates = record(tmp_path, "leak", updates=10)
    vouched_for = {row["digest"] for row in published}
    seen = Counter(row["digest"] in vouched_for for row in loaded)
    assert seen[False] >= 3, f"weights from the middle of {len(updates)} updates must show up as such: {seen}"
