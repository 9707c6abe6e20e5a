"""The instrument for the worst states: its KL is the learner's, and its facts are those of the files."""

import json
from pathlib import Path

import pytest
import torch
from busy import BUSY

from benchmarks import worst_states
from benchmarks.synthetic import make_batch, make_learner, small_shape, take_snapshot
from sf_fixpo.audit import load_config
from sf_fixpo.records import audit_files


@pytest.mark.parametrize("core", [{}, {"use_rnn": True, "rnn_type": "gru", "rnn_size": 8}], ids=["mlp", "gru"])
def test_it_measures_what_the_learner_measured(core, tmp_path, capsys):
    shape = small_shape(**BUSY, **core)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, audit_every=1, reference="behaviour")
    rows, snapshots = [], []
    for seed in range(4):
        snapshots.append(take_snapshot(learner))
        learner.train(make_batch(learner, seed=seed, snapshots=snapshots[-3:], done_rate=0.1))
        rows.append(learner.last_record.to_row())
    folder = Path(learner.folder)
    (folder / "config.json").write_text(json.dumps(dict(learner.cfg)))
    files = [path for _, _, path in audit_files.list_files(folder / audit_files.FOLDER)]
    for path, row in zip(files, rows, strict=True):
        states = worst_states.states_of(audit_files.load(path), load_config(folder), {})
        worst = max(row["kl_max"], row["kl_max_stale"] or 0.0)
        assert float(states.kl.max()) == pytest.approx(worst / row["eps_kl"], rel=1e-3)
        assert float(states.facts["stale"].mean()) == pytest.approx(row["stale_fraction"])
        assert float(states.facts["lag, versions"].mean()) == pytest.approx(row["lag_mean"])
    assert worst_states.main([str(folder)]) == 0
    assert "over 4 updates | all states | the worst 0.1 %" in capsys.readouterr().out


def test_steps_since_an_end_are_counted_within_a_trajectory():
    ends = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool).view(-1)
    assert worst_states.steps_since(ends, 4).tolist() == [4, 4, 0, 1, 4, 4, 4, 4]


def test_a_folder_without_audit_files_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        worst_states.main([str(tmp_path)])
    assert ended.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
