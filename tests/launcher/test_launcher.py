"""The launcher's parts: claims, verdicts, descriptions, secrets, packing, flags, the status table."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from unittest.mock import ANY

import pytest
from launching import local_args, local_backend, make_sweep, states
from programs import REPO
from rich.console import Console

from sf_fixpo.launcher import claims, driver, files, job, progress, resume, run, status, stop
from sf_fixpo.launcher.backend import BACKENDS, BackendError, JobOptions, find_backend, job_command
from sf_fixpo.launcher.backends.local import cores_in_order, slots, visible_gpus
from sf_fixpo.launcher.job import PREEMPTED, Ending, judge
from sf_fixpo.launcher.sweep import FAILED, FINISHED, QUEUED, RUNNING, STOPPED, Run, RunState, Sweep

# --- claims


def test_of_many_that_claim_at_once_one_gets_the_run(tmp_path):
    made = make_sweep(tmp_path, a=[])
    gate, got = threading.Barrier(8), []

    def contend():
        gate.wait()
        got.append(claims.claim(made, made.runs["a"]))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [mine for mine in got if mine is not None]
    assert len(winners) == 1
    assert claims.holder(made, made.runs["a"])["pid"] == os.getpid()
    winners[0].release()
    assert claims.holder(made, made.runs["a"]) is None
    again = claims.claim(made, made.runs["a"])
    assert again is not None
    assert not again.follows_dead


def hold_elsewhere(made, **changes) -> claims.Claim:
    """A claim on run `a` as another process would have made it."""
    mine = claims.claim(made, made.runs["a"])
    assert mine is not None
    files.write_json(mine.path, {**mine.content, **changes})
    return mine


def test_a_dead_process_of_this_host_holds_nothing(tmp_path):
    made = make_sweep(tmp_path, a=[])
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    hold_elsewhere(made, pid=child.pid, pid_start=time.time())
    deadline = time.monotonic() + 10
    while claims.holder(made, made.runs["a"]) is not None:  # a process that nobody has waited for counts as dead, too
        assert time.monotonic() < deadline
    child.wait()
    following = claims.claim(made, made.runs["a"])
    assert following is not None
    assert following.follows_dead


def test_a_pid_that_another_process_has_got_meanwhile_holds_nothing(tmp_path):
    made = make_sweep(tmp_path, a=[])
    hold_elsewhere(made, pid=os.getpid(), pid_start=1.0)
    assert claims.holder(made, made.runs["a"]) is None


def test_another_host_holds_a_run_as_long_as_its_heart_beats(tmp_path, monkeypatch):
    made = make_sweep(tmp_path, a=[])
    other = hold_elsewhere(made, scope="another host", host="other", pid=1, pid_start=1.0)
    assert claims.claim(made, made.runs["a"]) is None
    assert not other.is_lost()
    long_ago = time.time() - claims.HEARTBEAT_LIMIT - 5
    os.utime(other.path, (long_ago, long_ago))
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.0)
    assert not other.is_lost(), "its heartbeat"
    assert claims.claim(made, made.runs["a"]) is None
    os.utime(other.path, (long_ago, long_ago))
    following = claims.claim(made, made.runs["a"])
    assert following is not None
    assert following.follows_dead
    assert other.is_lost(), "it finds itself replaced"
    assert not following.is_lost()


def test_a_holder_that_was_replaced_kills_its_training_and_writes_nothing(tmp_path, monkeypatch):
    made = make_sweep(tmp_path, a=["--updates=999", "--pace=0.05"])
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.0)
    results = []
    thread = threading.Thread(target=lambda: results.append(job.Job(made, made.runs["a"], JobOptions(max_retries=3)).execute()))
    thread.start()
    while states(made)["a"].status != RUNNING:
        time.sleep(0.02)
    # as if this host had been cut off for minutes
    files.create_json(made.claims_folder() / "a" / "000002.json", {"released": True, "scope": "another host"})
    thread.join(20)
    assert results == [job.HELD]
    assert states(made)["a"].status == RUNNING, "that is for the new holder to say"
    with pytest.raises(ProcessLookupError):
        os.kill(states(made)["a"].pid or 0, 0)


# --- verdicts


@pytest.mark.parametrize(
    ("ending", "failures", "status", "is_failure", "again"),
    [
        (Ending(0), 0, FINISHED, False, False),
        (Ending(0, signalled=True, stop_reason="asked"), 0, FINISHED, False, False),
        (Ending(PREEMPTED, moved_on=True), 9, QUEUED, False, False),
        (Ending(PREEMPTED, signalled=True), 9, QUEUED, False, False),
        (Ending(-15, signalled=True), 9, QUEUED, False, False),
        (Ending(PREEMPTED), 0, QUEUED, True, True),
        (Ending(PREEMPTED), 2, FAILED, True, False),
        (Ending(PREEMPTED, signalled=True, stop_reason="asked"), 0, STOPPED, False, False),
        (Ending(2), 0, FAILED, True, False),
        (Ending(127, error="cannot be started"), 0, FAILED, True, False),
        (Ending(1), 1, QUEUED, True, True),
        (Ending(1), 2, FAILED, True, False),
        (Ending(-9), 0, QUEUED, True, True),
        (Ending(-9, hung=True), 0, QUEUED, True, True),
        (Ending(-9, hung=True), 2, FAILED, True, False),
    ],
)
def test_what_follows_from_an_ending(ending, failures, status, is_failure, again):
    verdict = judge(ending, failures, max_retries=2)
    assert (verdict.status, verdict.is_failure, verdict.again) == (status, is_failure, again)


def test_a_program_that_does_not_exist_fails_at_once(tmp_path):
    made = Sweep.create(tmp_path, [Run("a", ("no-such-program",), "a")])
    assert job.Job(made, made.runs["a"], JobOptions(max_retries=5)).execute() == 127
    assert states(made)["a"].attempt == 1
    assert "no-such-program" in states(made)["a"].reason


def test_a_failed_run_keeps_its_status_until_another_launch(tmp_path):
    made = make_sweep(tmp_path, a=["--fault=raise"])
    execute = job.Job(made, made.runs["a"], JobOptions()).execute
    assert (execute(), execute(), states(made)["a"].attempt) == (1, 1, 1)
    assert driver.make_ready(made, made.runs.values()) == [made.runs["a"]]
    assert states(made)["a"].status == QUEUED
    assert states(made)["a"].failures == 0
    assert execute() == 0


def test_settling_leaves_alone_what_is_held_or_has_ended(tmp_path):
    made = make_sweep(tmp_path, a=[])
    mine = claims.claim(made, made.runs["a"])
    assert not job.settle(made, made.runs["a"], STOPPED, "asked")
    made.write_state(made.runs["a"], RunState(FINISHED))
    mine.release()
    assert job.settle(made, made.runs["a"], STOPPED, "asked")
    assert job.settle(made, made.runs["a"], QUEUED, "asked")
    assert states(made)["a"].status == FINISHED


# --- the local backend


def test_runs_are_packed_on_gpus_and_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("sf_fixpo.launcher.backends.local.cores_in_order", lambda: list(range(9)))
    made = slots(local_args("--experiments_per_gpu=2"))
    assert [env["CUDA_VISIBLE_DEVICES"] for env, _ in made] == ["3", "GPU-5", "3", "GPU-5"]
    assert [cores for _, cores in made] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert made[0][0]["OMP_NUM_THREADS"] == "1"
    assert len(slots(local_args("--max_parallel=9"))) == 2, "never more than the GPUs hold"
    assert [env["CUDA_VISIBLE_DEVICES"] for env, _ in slots(local_args("--num_gpus=1"))] == ["3"]
    hidden = slots(local_args("--num_gpus=0", "--cpus_per_run=4"))
    assert [(env["CUDA_VISIBLE_DEVICES"], cores) for env, cores in hidden] == [("", [0, 1, 2, 3]), ("", [4, 5, 6, 7])]
    assert {tuple(cores) for _, cores in slots(local_args("--num_gpus=0", "--max_parallel=20"))} == {()}, "cores are too few"
    assert {tuple(cores) for _, cores in slots(local_args("--cpus_per_run=0"))} == {()}


def test_gpus_that_the_environment_shows(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 2")
    assert visible_gpus() == ["1", "2"]


def test_the_cores_of_this_machine():
    assert sorted(cores_in_order()) == sorted(os.sched_getaffinity(0))


def test_the_launcher_takes_under_50_ms_a_run(tmp_path):
    made = Sweep.create(tmp_path, [Run(f"noop_{n:03d}", ("true",), f"noop_{n:03d}") for n in range(200)])
    backend = local_backend(made, "--max_parallel=2")
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        driver.drive(backend, made.runs.values())
    finally:
        backend.close()
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert {state.status for state in states(made).values()} == {FINISHED}
    # processor time: on a machine that does other things, too, the clock says little (benchmarks/launcher.py has both)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds / 200 < 0.05


# --- progress


def test_progress_comes_from_the_update_log_and_the_output(tmp_path):
    log = tmp_path / "sweep_log.txt"
    assert progress.read_progress(tmp_path, log) == progress.Progress()
    log.write_text("1,000/9,000 steps | 7 FPS | return -1.50 | KL\n2,048/9,000 steps | 9 FPS | return - | KL\n")
    assert progress.read_progress(tmp_path, log) == progress.Progress(2048, -1.5), "APPO writes no update log"
    log.write_text("│ return      │ 475.16 (mean of the last 100 episodes) │\n│ steps │ 9,000 │\n", encoding="utf-8")
    rows = tmp_path / "updates.jsonl"
    rows.write_text('{"env_steps": 64}\n{"env_steps": 128}\n{"env_st')
    assert progress.read_progress(tmp_path, log) == progress.Progress(128, 475.16), "a row that is being written is left out"
    rows.write_text('{"env_steps": 256, "tasks": {"a": {"return": 1.0}, "b": {"return": 2.0}, "c": {"return": null}}}\n')
    assert progress.read_progress(tmp_path, log) == progress.Progress(256, 1.5)


# --- command lines


def test_all_faults_of_a_command_line_in_one_message(capsys):
    argv = [
        "--max_retries=-1",
        "--run_timeout=soon",
        "--max_paralel=3",
        "--cpus_per_run=-7",
        "--stop_timeout=nan",
        "--experiments_per_gpu=0",
    ]
    assert run.main(["--run=x", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("sf_fixpo.launcher.run: ").partition(":")[0] for line in lines] == [
        "--run_timeout=soon",
        "--max_paralel=3",
        "--max_retries=-1",
        "--stop_timeout=nan",
        "--cpus_per_run=-7",
        "--experiments_per_gpu=0",
    ]
    assert "did you mean --max_parallel" in lines[1]


@pytest.mark.parametrize(
    ("main", "argv", "message"),
    [
        (run.main, [], "--run: say which sweep"),
        (run.main, ["--run=no.such.module"], "--run=no.such.module: cannot be imported"),
        (run.main, ["--run=json"], "no RUN_DESCRIPTION"),
        (run.main, ["--run=x", "--backend=cloud"], "--backend=cloud: must be one of local, slurm, ray, kubernetes"),
        (run.main, ["--run=x", "--cpus_per_run=100000"], "--cpus_per_run=100000: 100000 cores are needed"),
        (run.main, ["--run=x", "--num_gpus=1000"], "--num_gpus=1000: must be at most"),
        (run.main, ["--run=x", "--secrets_file=/none"], "--secrets_file=/none: cannot be read"),
        (resume.main, ["/none"], "/none: not the folder of a sweep"),
        (resume.main, [], "sweep"),
        (stop.main, ["/none"], "/none: not the folder of a sweep"),
        (status.main, ["/none"], "/none: not the folder of a sweep"),
        (status.main, ["/none", "--lines=0"], "--lines=0: must be an integer >= 1"),
        (job.main, ["/none", "a"], "/none: not the folder of a sweep"),
    ],
)
def test_bad_input(main, argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_runs_that_do_not_exist(tmp_path, capsys):
    make_sweep(tmp_path, a=[])
    assert status.main([str(tmp_path), "--tail=b"]) == 2
    assert stop.main([str(tmp_path), "--only=a,b"]) == 2
    assert job.main([str(tmp_path), "b"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("no run of") == 3


def test_a_backend_whose_library_is_missing_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "needs_it.py").write_text("import a_library_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "odd", "needs_it:Backend")
    with pytest.raises(BackendError, match=r"needs a_library_that_nobody_has; pip install 'sf_fixpo\[cluster\]'"):
        find_backend("odd")


def test_resume_defaults_to_the_flags_of_the_last_launch(tmp_path, capsys):
    made = make_sweep(tmp_path, a=["--fault=raise", "--times=9"])
    assert resume.main([str(tmp_path), "--max_retries=1", "--max_parallel=1"]) == 1
    assert made.last_launch()[1]["max_retries"] == 1
    assert resume.main([str(tmp_path)]) == 1
    assert states(made)["a"].attempt == 4
    assert resume.main([str(tmp_path), "--max_retries=0"]) == 1
    assert states(made)["a"].attempt == 5
    assert "the end of" in capsys.readouterr().out


def test_stopping_what_has_not_started_starts_nothing(tmp_path, capsys):
    made = make_sweep(tmp_path, a=[], b=[])
    assert stop.main([str(tmp_path), "--only=a"]) == 0
    assert "1 of 1 runs are stopped" in capsys.readouterr().out
    assert job.Job(made, made.runs["a"], JobOptions()).execute() == job.STOPPED_STATUS
    assert not (tmp_path / "a").exists()
    assert resume.main([str(tmp_path)]) == 0
    assert {state.status for state in states(made).values()} == {FINISHED}


def test_the_command_of_a_job_holds_every_option(tmp_path):
    made = make_sweep(tmp_path, a=[])
    options = JobOptions(max_retries=3, run_timeout=60.0, secrets_file="/s", ranks=4, nodes=2)
    argv = job_command(made, made.runs["a"], options, python="py")
    assert argv[:5] == ["py", "-m", "sf_fixpo.launcher.job", str(tmp_path), "a"]
    flags = ["--max_retries=3", "--run_timeout=60.0", "--stop_timeout=45.0", "--secrets_file=/s", "--ranks=4", "--nodes=2"]
    assert argv[5:] == flags
    assert job.read_arguments(argv[3:]) == (ANY, made.runs["a"], options)


# --- status


def test_the_status_table_and_its_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    made = make_sweep(tmp_path, one=[], two=["--fault=raise"], three=[])
    assert resume.main([str(tmp_path), "--max_parallel=1", "--max_retries=0"]) == 1
    made.write_state(made.runs["three"], replace(states(made)["three"], status=RUNNING))
    capsys.readouterr()
    assert status.main([str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "1 finished, 1 failed, 1 lost" in table
    (line,) = [line for line in table.splitlines() if line.startswith("two")]
    assert line.split()[1:5] == ["failed", "1", "1", "100"]
    assert line.endswith("exit code 1") or "exit code 1" in line
    rows = [status.look(made, one) for one in made.runs.values()]
    short = Console(width=160)
    with short.capture() as captured:
        short.print(status.make_table(made, rows, time.time(), most=2))
    lines = captured.get().splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["three", "two"], "the lost and the failed one first"
    assert lines[4] == "and 1 more"
    assert status.main([str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["status"], row["exit_code"], row["steps"], row["mean_return"]) for row in rows] == [
        ("one", "finished", 0, 300, 3.5),
        ("two", "failed", 1, 100, 1.5),
        ("three", "lost", 0, 300, 3.5),
    ]
    assert status.main([str(tmp_path), "--tail=two", "--lines=1"]) == 0
    assert capsys.readouterr().out == "RuntimeError: the fault that was asked for\n"


def test_watching_ends_with_the_sweep(tmp_path):
    made = make_sweep(tmp_path, a=["--pace=0.2"])
    watcher = subprocess.Popen(
        [sys.executable, "-m", "sf_fixpo.launcher.status", str(tmp_path), "--watch"], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    assert job.Job(made, made.runs["a"], JobOptions()).execute() == 0
    table = watcher.communicate(timeout=30)[0]
    assert "1 finished" in " ".join(table.split()), "a narrow terminal breaks the line"
    assert watcher.returncode == 0


def test_the_launcher_imports_no_algorithm_code():
    programs = ("run", "resume", "stop", "status", "job", "backends.local")
    found = "[name for name in sys.modules if name.split('.')[0] in ('torch', 'sample_factory') or name.startswith('sf_fixpo.')]"
    code = f"import sys; import {', '.join('sf_fixpo.launcher.' + name for name in programs)}; print({found})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert loaded
    assert all(name.startswith("sf_fixpo.launcher") or name == "sf_fixpo.cli" for name in loaded)
