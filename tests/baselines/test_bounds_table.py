"""The table of who bounds what: its numbers by hand, and what it says of a folder that has none."""

from __future__ import annotations

import json

from updates import run

from benchmarks import bounds
from benchmarks.synthetic import make_learner, small_shape
from sf_fixpo.records.update_log import UPDATE_LOG


def test_the_numbers_are_the_logs(tmp_path, capsys):
    learner = make_learner("TRPO", small_shape(), train_dir=tmp_path)
    run(learner, 1)
    path = tmp_path / "synthetic" / UPDATE_LOG
    row = json.loads(path.read_text())
    rows = [
        {
            **row,
            "policy_version": i,
            "eps_kl": eps,
            "kl_max": kl,
            "kl_max_stale": stale,
            "kl_mean": mean,
            "seconds": {"a": i, "b": 0.5},
        }
        for i, (eps, kl, stale, mean) in enumerate([(1.0, 4.0, None, 0.3), (1.0, 0.5, 2.0, 0.1), (0.5, 0.5, 0.25, 0.2)])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bounds.main([str(tmp_path / "synthetic")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "| synthetic | TRPO | 3 | 4.000 | 2.000 | 66.7% | 2.0000 | 0.3000 | 0.2000 | 1.500 | none |"


def test_a_folder_without_a_log_is_refused(tmp_path, capsys):
    assert bounds.main([str(tmp_path)]) == 2
    assert "benchmarks.bounds: " in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"algo": "APPO"}')
    assert bounds.main([str(tmp_path)]) == 2
    assert "APPO writes none" in capsys.readouterr().err
