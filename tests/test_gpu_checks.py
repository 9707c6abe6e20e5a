"""The checks for a GPU, as far as a machine without one can hold them to account."""

import pytest
import torch

from benchmarks import gpu_checks


def test_without_a_gpu_nothing_is_claimed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_checks.main([])
    assert ended.value.code == 2
    assert "torch sees no GPU here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_checks.main(["--only=encoding_in_parts,nothing"])
    assert "--only: unknown nothing; of a_skipped_adam_step_is_no_step, " in capsys.readouterr().err


def test_a_check_that_cannot_run_is_a_result_and_the_others_go_on(monkeypatch, capsys):
    def broken():
        raise ValueError("no such thing")

    monkeypatch.setitem(gpu_checks.CHECKS, "broken", broken)
    monkeypatch.setitem(gpu_checks.CHECKS, "a_figure", lambda: {"passed": True, "ms": 1.23456})
    results = gpu_checks.run(["broken", "a_figure"])
    assert results == {
        "broken": {"passed": False, "error": "ValueError: no such thing"},
        "a_figure": {"passed": True, "ms": 1.23456},
    }
    assert "Traceback" in capsys.readouterr().err
    assert gpu_checks.table(results).splitlines()[2:] == [
        "| broken | passed | False |",
        "| broken | error | ValueError: no such thing |",
        "| a figure | passed | True |",
        "| a figure | ms | 1.23 |",
    ]
