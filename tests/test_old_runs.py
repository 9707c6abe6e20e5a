"""What released versions have written loads in this one (docs/stability.md); made as tests/data/runs/README.md says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from programs import ENV, json_lines, train

from sf_fixpo import audit, evaluate, export, plot, report
from sf_fixpo.learning import checkpoints
from sf_fixpo.records.update_log import latest_rows

RUNS = Path(__file__).parent / "data" / "runs"
OLD = sorted(path for version in RUNS.iterdir() if version.is_dir() for path in version.iterdir())
EACH = pytest.mark.parametrize("old", OLD, ids=[f"{path.parent.name} {path.name}" for path in OLD])


@pytest.fixture
def run(old, tmp_path) -> Path:
    return Path(shutil.copytree(old, tmp_path / old.name))


def test_every_released_version_is_there():
    changelog = (RUNS.parents[2] / "CHANGELOG.md").read_text()
    released = [line.split("[")[1].split("]")[0] for line in changelog.splitlines() if line.startswith("## [")]
    assert {path.parent.name for path in OLD} == set(released[2:]), "all but [Unreleased] and the newest, which writes them"


@pytest.mark.slow  # a start of the program each
@EACH
def test_it_is_resumed(run):
    before, [old] = json_lines(run / "updates.jsonl"), (run / "checkpoint_p0").iterdir()
    saved = checkpoints.load(old)
    done = train(run.parent, run.name, f"--env={ENV}", "--train_for_env_steps=900", "--keep_checkpoints=9")
    assert done.popen.returncode == 0, done.report()
    rows = json_lines(run / "updates.jsonl")
    assert rows[: len(before)] == before
    following = rows[len(before)]
    assert following["policy_version"] == saved["train_step"] + 10, "of ten steps an update"
    assert following["env_steps"] == saved["env_steps"] + 64
    # ten steps of Adam at 0.001; from --beta_init it would be ten times as far away
    assert 0 < abs(following["beta"] - before[-1]["beta"]) < 0.02
    assert old in (run / "checkpoint_p0").iterdir()
    assert json.loads((run / "config.json").read_text())["eps_kl"] == 0.02
    assert all(row["kl_max"] <= 0.02 for row in rows)


@EACH
def test_it_is_exported_and_so_held_against_the_actor(run, capsys):
    assert export.main([str(run), "--format=torchscript", "--check_steps=50"]) == 0, capsys.readouterr().err
    assert list(run.glob("export/*.ts"))


@pytest.mark.slow  # a start of a worker each
@EACH
def test_it_is_evaluated(run, capsys):
    assert evaluate.main([str(run), "--episodes=2", "--workers=1"]) == 0, capsys.readouterr().err
    [result] = run.glob("eval_*.json")
    assert json.loads(result.read_text())["mean"] > 0


@EACH
def test_it_is_plotted_and_reported(run, tmp_path, capsys):
    assert plot.main([str(run)]) == 0, capsys.readouterr().err
    assert report.main([str(run), f"--out={tmp_path / 'report.html'}"]) == 0, capsys.readouterr().err
    assert run.name in (tmp_path / "report.html").read_text()
    assert len(latest_rows(run / "updates.jsonl", 0)) == 10


@EACH
def test_its_audit_files_are_refused_by_name_and_what_is_needed(run, capsys):
    """They hold what the learner made of the batch, and not what the actors saw: nothing can be recomputed from that."""
    [file] = (run / "audit").iterdir()
    assert "normalized_obs" in torch.load(file, weights_only=True)
    assert audit.main([str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{file}: written by an older version of sf_fixpo" in said
    assert "use sf_fixpo 0.1.0 for it" in said
    assert "move it away" in said
