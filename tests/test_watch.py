"""`fixpo-watch` on folders of runs, and on a run that goes on."""

from __future__ import annotations

import os
import socket

import pytest
from programs import LONG, SERIAL, rows_of, started, train_command
from rich.console import Console
from small_runs import update_row, write_run, write_sweep

from sf_fixpo import watch as program
from sf_fixpo.running import usage
from sf_fixpo.running.usage import UsageMeter, gpu_text


def test_runs_that_are_over_are_shown_once(tmp_path, capsys):
    write_sweep(tmp_path / "sweep")
    write_run(tmp_path / "sweep" / "grid" / "short", [update_row(1)])
    assert program.main([str(tmp_path / "sweep")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("eps0.2_seed0: 12,000/12,000 steps | - FPS | return 48.00 | ")
    assert lines[0].endswith("| finished")
    assert lines[-1].endswith("| ended")


def test_a_terminal_gets_panels(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    monkeypatch.setattr(program, "Console", lambda: Console(force_terminal=True, width=100))
    for flags in ([], ["--once"]):
        assert program.main([str(tmp_path / "run"), *flags]) == 0
        out = capsys.readouterr().out
        assert "╭" in out
        assert "finished" in out


def test_who_holds_a_folder_is_asked(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run", [update_row(1)])
    lock = tmp_path / ".run.lock"
    for text, state in (
        (f"process {os.getpid()} on {socket.gethostname()}", "left"),
        (f"process 99999999 on {socket.gethostname()}", "killed"),
        ("process 1 on elsewhere.example", "left"),
    ):
        lock.write_text(text + "\n")
        assert program.main([str(folder), "--once"]) == 0
        assert capsys.readouterr().out.strip().endswith(state)


def test_a_run_that_begins_later_is_found(tmp_path, monkeypatch):
    write_run(tmp_path / "sweep" / "a")
    runs = program.Watch([tmp_path / "sweep"], 0)
    write_run(tmp_path / "sweep" / "b")
    assert len(runs.look()) == 1
    monkeypatch.setattr(program, "_SEARCH_SECONDS", 0.0)
    assert [view.name for view in runs.look()] == ["a", "b"]
    runs.close()


def test_a_run_that_goes_on_is_seen_with_its_machine(tmp_path):
    with started(tmp_path / "out", *train_command(tmp_path, "run", *SERIAL, LONG)) as run:
        run.wait_until(lambda: len(rows_of(tmp_path / "run")) >= 3)
        runs = program.Watch([tmp_path / "run"], 0)
        try:
            run.wait_until(lambda: (view := runs.look()[0]).usage is not None and view.fps is not None)
            [view] = runs.look()
        finally:
            runs.close()
        assert view.state == "running"
        assert view.steps > 0
        assert view.usage.processes >= 1
        assert view.usage.memory > 50 << 20
        assert view.seconds_left is not None


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["absent"], "absent: no such folder"), (["."], "holds no run"), (["run", "--policy_id=-1"], "--policy_id=-1: must be")],
)
def test_bad_input(tmp_path, monkeypatch, capsys, argv, said):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        status = program.main(argv)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_what_a_process_takes_is_measured_and_its_end_is_no_error(monkeypatch):
    monkeypatch.setattr(usage, "ask_gpu", lambda: "40 %")
    meter = UsageMeter(os.getpid())
    measured = meter.measure()
    meter.close()
    assert measured.processes >= 1
    assert measured.gpu == "40 %"
    gone = UsageMeter(99999999)
    assert gone.measure() is None
    gone.close()


def test_a_gpu_in_words():
    assert gpu_text("37, 2048, 81920\n12, 1, 1\n") == "37 %, 2.0 of 80 GiB"
    for text in ("", "N/A, 1, 2", "1, 2"):
        assert gpu_text(text) is None
