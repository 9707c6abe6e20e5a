"""Sweeps with real processes on the local backend: what becomes of every run, whatever happens to it or to its launcher."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest
from launching import ProcessBackend, make_sweep, starts, states, statuses, steps_logged
from programs import started

from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.claims import RUN_MARK
from sf_fixpo.launcher.driver import drive
from sf_fixpo.launcher.sweep import Sweep

TESTS_ON_PATH = {"PYTHONPATH": "tests/helpers"}


def left_of(sweep) -> list[psutil.Process]:
    """Training processes of a sweep, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK, "").startswith(f"{sweep.folder}:"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def resume(tmp_path, sweep, *flags: str):
    """`launcher.resume` in a process of its own; it starts faster than `launcher.run`, which imports the description."""
    return started(tmp_path / f"out_{time.monotonic()}", "-m", "sf_fixpo.launcher.resume", sweep.folder, *flags)


def test_eight_runs_on_two_cores_with_everything_that_can_happen(tmp_path):
    flags = ["--max_parallel=2", "--max_retries=1", "--run_timeout=4"]
    command = ["-m", "sf_fixpo.launcher.run", "--run=faulty_sweep", f"--train_dir={tmp_path}", *flags]
    with started(tmp_path / "out", *command, env=TESTS_ON_PATH) as run:
        assert run.wait(60) == 1, run.report()
        run.assert_nothing_left()
    sweep = Sweep.load(tmp_path / "faulty")
    end = {name: (s.status, s.attempt, s.exit_code) for name, s in states(sweep).items()}
    assert end == {
        "00_fine_see_0": ("finished", 1, 0),
        "01_fine_see_1": ("finished", 1, 0),
        "00_raises_once": ("finished", 2, 0),
        "00_raises": ("failed", 2, 1),
        "00_killed_once": ("finished", 2, 0),
        "00_killed": ("failed", 2, -9),
        "00_hangs_once": ("finished", 2, 0),
        "00_bad_input": ("failed", 1, 2),
    }
    found = states(sweep)
    assert found["00_killed"].reason == "killed by SIGKILL"
    assert found["00_bad_input"].reason.startswith("bad input")
    assert (found["00_hangs_once"].steps, found["00_hangs_once"].mean_return) == (300, 3.5)
    assert "RuntimeError: the fault that was asked for" in run.stdout, "the launcher shows the end of a failed run's log"
    assert "5 finished, 3 failed" in run.stdout
    folder = sweep.run_folder(sweep.runs["00_killed_once"])
    log = (folder / "sweep_log.txt").read_text()
    assert log.index("from update 0") < log.index("from update 1"), "the second attempt goes on where the first was killed"
    cores = {
        line.split(" ", 1)[1]
        for name in ("00_fine_see_0", "01_fine_see_1")
        for line in [(sweep.run_folder(sweep.runs[name]) / "starts").read_text().strip()]
    }
    if len(os.sched_getaffinity(0)) >= 2:
        assert len(cores) == 2, "two runs at a time have cores of their own"


def test_two_launchers_on_one_folder_run_nothing_twice(tmp_path):
    sweep = make_sweep(tmp_path / "s", **{f"r{n}": ["--pace=0.15"] for n in range(6)})
    with resume(tmp_path, sweep, "--max_parallel=2") as first, resume(tmp_path, sweep, "--max_parallel=2") as second:
        assert first.wait(60) == 0, first.report()
        assert second.wait(60) == 0, second.report()
    assert set(statuses(sweep).values()) == {"finished"}
    assert [len(starts(sweep, name)) for name in sweep.runs] == [1] * 6
    assert [state.attempt for state in states(sweep).values()] == [1] * 6


def test_a_launcher_that_waits_takes_over_from_one_that_was_killed(tmp_path):
    sweep = make_sweep(tmp_path / "s", a=["--updates=8", "--pace=0.5"], b=[])
    with resume(tmp_path, sweep, "--max_parallel=1", "--stop_timeout=5") as first:
        first.wait_until(lambda: len(steps_logged(sweep, "a")) >= 1)
        with resume(tmp_path, sweep, "--max_parallel=1", "--stop_timeout=5") as second:
            second.wait_until(lambda: statuses(sweep)["b"] == "finished")  # while the first one holds a
            os.kill(first.popen.pid, signal.SIGKILL)
            first.popen.wait()
            assert second.wait(60) == 0, second.report()
    assert statuses(sweep) == {"a": "finished", "b": "finished"}
    assert steps_logged(sweep, "a") == [100 * n for n in range(1, 9)], "nothing was done twice or left out"
    assert len(starts(sweep, "a")) == 2


def test_resume_after_the_launcher_was_killed(tmp_path, capsys):
    from sf_fixpo.launcher import status

    sweep = make_sweep(tmp_path / "s", a=["--updates=6", "--pace=0.3"], b=["--updates=6", "--pace=0.3", "--deaf"])
    with resume(tmp_path, sweep, "--max_parallel=2") as run:
        run.wait_until(lambda: all(len(steps_logged(sweep, name)) >= 1 for name in sweep.runs))
        os.kill(run.popen.pid, signal.SIGKILL)
        run.popen.wait()
        assert len(left_of(sweep)) == 2, "the trainings themselves were not killed"
        assert status.main([str(sweep.folder), "--json"]) == 0
        assert [row["status"] for row in json.loads(capsys.readouterr().out)] == ["lost", "lost"]
        with resume(tmp_path, sweep, "--stop_timeout=1") as second:
            assert second.wait(60) == 0, second.report()
    assert [len(starts(sweep, name)) for name in sweep.runs] == [2, 2]
    assert steps_logged(sweep, "a") == [100 * n for n in range(1, 7)], "the first attempt had ended before the second began"
    assert sorted(set(steps_logged(sweep, "b"))) == [100 * n for n in range(1, 7)]
    assert not left_of(sweep)


def test_stop_from_another_process_and_resume(tmp_path):
    sweep = make_sweep(tmp_path / "s", a=["--updates=4", "--pace=0.5"], b=["--updates=4", "--pace=0.5"], c=[])
    with resume(tmp_path, sweep, "--max_parallel=2") as run:
        run.wait_until(lambda: all(len(steps_logged(sweep, name)) >= 1 for name in "ab"))
        with started(tmp_path / "stop", "-m", "sf_fixpo.launcher.stop", sweep.folder) as stopper:
            assert stopper.wait(30) == 0, stopper.report()
        assert "3 of 3 runs are stopped" in stopper.stdout
        assert run.wait(30) == 1, run.report()
        assert not left_of(sweep)
    found = states(sweep)
    assert {name: (s.status, s.reason, s.exit_code) for name, s in found.items()} == {
        "a": ("stopped", "sf_fixpo.launcher.stop", 75),
        "b": ("stopped", "sf_fixpo.launcher.stop", 75),
        "c": ("stopped", "sf_fixpo.launcher.stop", None),
    }
    with resume(tmp_path, sweep) as again:
        assert again.wait(60) == 0, again.report()
    assert steps_logged(sweep, "a") == [100, 200, 300, 400]
    assert [len(starts(sweep, name)) for name in "abc"] == [2, 2, 1]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_lets_the_runs_save_and_leaves_nothing(tmp_path, signum, status):
    sweep = make_sweep(tmp_path / "s", a=["--updates=9", "--pace=0.3"], deaf=["--updates=99", "--pace=0.3", "--deaf"], c=[])
    with resume(tmp_path, sweep, "--max_parallel=2", "--stop_timeout=1.5") as run:
        run.wait_until(lambda: all(len(steps_logged(sweep, name)) >= 1 for name in ("a", "deaf")))
        run.popen.send_signal(signum)
        assert run.wait(30) == status, run.report()
        assert not left_of(sweep)
    found = states(sweep)
    assert (found["a"].status, found["a"].exit_code) == ("stopped", 75)
    assert (found["deaf"].status, found["deaf"].exit_code) == ("stopped", -9)
    assert found["c"].status == "queued"
    assert not starts(sweep, "c")


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    sweep = make_sweep(tmp_path / "s", deaf=["--updates=99", "--pace=0.3", "--deaf"])
    with resume(tmp_path, sweep, "--max_parallel=1", "--stop_timeout=100") as run:
        run.wait_until(lambda: len(steps_logged(sweep, "deaf")) >= 1)
        run.popen.send_signal(signal.SIGINT)
        run.wait_until(lambda: "heard SIGTERM" in sweep.log_path(sweep.runs["deaf"]).read_text())
        run.popen.send_signal(signal.SIGINT)
        assert run.wait(20) == 130, run.report()
        assert not left_of(sweep)
    assert (states(sweep)["deaf"].status, states(sweep)["deaf"].exit_code) == ("stopped", -9)


def test_what_asks_to_run_again_is_run_again_without_counting(tmp_path):
    sweep = make_sweep(tmp_path / "s", moved=["--fault=preempt"], stuck=["--fault=preempt", "--times=99"])
    with resume(tmp_path, sweep, "--max_parallel=2") as run:
        assert run.wait(60) == 1, run.report()
    found = states(sweep)
    assert (found["moved"].status, found["moved"].attempt, found["moved"].failures) == ("finished", 2, 0)
    # its first attempt made a step; the second did nothing but ask again
    assert (found["stuck"].status, found["stuck"].attempt, found["stuck"].failures) == ("failed", 2, 1)
    assert "without a step" in found["stuck"].reason


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_job_says_so_and_goes_on_in_the_next(tmp_path, signum):
    sweep = make_sweep(tmp_path / "s", a=["--updates=10", "--pace=0.4"])  # long enough for a rival to come and go
    job = ["-m", "sf_fixpo.launcher.job", sweep.folder, "a"]
    with started(tmp_path / "first", *job) as run:
        run.wait_until(lambda: len(steps_logged(sweep, "a")) >= 1)
        with started(tmp_path / "second", *job) as rival:
            assert rival.wait(20) == 4, "the run is held"
        run.popen.send_signal(signum)
        assert run.wait(20) == 75
        run.assert_nothing_left()
    assert (states(sweep)["a"].status, states(sweep)["a"].reason) == ("queued", "preempted")
    with started(tmp_path / "third", *job) as run:
        assert run.wait(20) == 0, run.report()
    assert steps_logged(sweep, "a") == [100 * n for n in range(1, 11)]
    with started(tmp_path / "fourth", *job) as run:
        assert run.wait(20) == 0, "nothing to do"
    assert len(starts(sweep, "a")) == 2


def test_a_job_that_vanishes_is_submitted_again_but_not_for_ever(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "s", a=["--updates=4", "--pace=0.3"], cursed=["--updates=999", "--pace=0.05"])
    backend = ProcessBackend(sweep, JobOptions(stop_timeout=2))
    killed = 0

    def kill_jobs(seconds: float) -> None:
        nonlocal killed
        time.sleep(seconds)
        # `a` loses its first job, `cursed` each one as soon as it runs
        for name, lost in (("a", 1), ("cursed", 99)):
            jobs = backend.processes[name]
            if (
                len(jobs) <= lost
                and jobs[-1].poll() is None
                and len(starts(sweep, name)) >= len(jobs)
                and steps_logged(sweep, name)
            ):
                jobs[-1].kill()
                jobs[-1].wait()
                killed += 1

    monkeypatch.setattr(backend, "wait", kill_jobs)
    try:
        drive(backend, sweep.runs.values())
    finally:
        backend.close()
    found = states(sweep)
    assert found["a"].status == "finished"
    assert steps_logged(sweep, "a") == [100, 200, 300, 400]
    assert found["cursed"].status == "failed"
    assert "vanished 4 times" in found["cursed"].reason
    assert killed == 5
    assert not left_of(sweep), "what the dead jobs left running was ended"
