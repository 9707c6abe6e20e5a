"""The learner's benchmark: what it measures is what it says it measures."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import learner as benchmark
from benchmarks.shapes import DMLAB, MUJOCO, SHAPES
from benchmarks.synthetic import fill_policy_outputs, make_batch, make_learner
from benchmarks.variants import force_fixup, of_batch, without_guarantee


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")  # stock sample-factory's
def test_rows_of_each_batch_and_each_length_of_the_fixup_phase(tmp_path, capsys):
    flags = ["--shapes=mujoco", "--batches=1024", "--forced_fixup_steps=0,3", "--algos=APPO,FIXPO,UNGUARDED"]
    assert benchmark.main([*flags, "--updates=2", "--warmup=1", "--skip_memory", f"--json={tmp_path / 'rows.json'}"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["algo"], row["forced_fixup_steps"]) for row in rows] == [
        ("APPO", 0),
        ("FIXPO", 0),
        ("UNGUARDED", 0),
        ("APPO", 0),
        ("FIXPO", 3),
        ("UNGUARDED", 0),
    ]
    assert all(row["batch"] == 1024 and row["samples_per_s"] > 0 and row["ratio_interval"] for row in rows)
    forced, bare = rows[4], rows[5]
    assert forced["fixup_steps"] >= 3 * 10, "in each of ten epochs"
    assert forced["price"] is not None
    assert bare["price"] is None
    assert (bare["check_share"], bare["fixup_steps"], bare["primary_steps"]) == (0.0, 0.0, forced["primary_steps"])
    assert "price" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--shapes=dmlab,nothing", "nothing"),
        ("--algos=PPO", "UNGUARDED"),
        ("--batches=1000", "1000"),
        ("--batches=-1", "-1"),
        ("--forced_fixup_steps=few", "few"),
    ],
)
def test_bad_flags_are_refused_by_name(flag, named, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main([flag])
    assert named in capsys.readouterr().err


def test_a_batch_keeps_its_minibatches_where_there_are_several():
    assert of_batch(MUJOCO, 2048).cfg["num_batches_per_epoch"] == 4
    assert of_batch(MUJOCO, 2048).cfg["batch_size"] == MUJOCO.cfg["batch_size"]
    assert of_batch(DMLAB, 2048).cfg["batch_size"] == 2048
    assert all(of_batch(shape, 0) is shape for shape in SHAPES.values())


def test_the_interval_is_students_of_the_logarithms():
    ratios = np.random.default_rng(0).lognormal(0.2, 0.1, 10)
    expected = stats.ttest_1samp(np.log(ratios), 0.0).confidence_interval(0.95)
    assert benchmark.interval(list(ratios)) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert benchmark.interval([1.0]) is None


def test_forced_steps_are_steps_and_without_a_guarantee_the_primary_phase_is_what_is_published(tmp_path):
    made = {}
    for kind, change in (("bare", without_guarantee), ("forced", lambda learner: force_fixup(learner, 2)), ("usual", id)):
        learner = make_learner("FIXPO", of_batch(MUJOCO, 1024), train_dir=tmp_path / kind, num_epochs=1, c_beta=50.0)
        change(learner)
        batch = make_batch(learner, seed=0)
        fill_policy_outputs(learner, batch, 0)
        learner.train(batch)
        made[kind] = learner
        published, candidate = learner.gate.published.state.clone_tensors(), learner.candidate.state.clone_tensors()
        assert all(torch.equal(published[name], candidate[name]) for name in published)
    assert made["usual"].last_record.fixup_steps == 0
    assert made["forced"].last_record.fixup_steps == 2
    weights = {kind: torch.cat([p.flatten() for p in learner.candidate.model.parameters()]) for kind, learner in made.items()}
    assert not torch.equal(weights["forced"], weights["usual"])
    assert made["bare"].last_record.check_passes == 0
