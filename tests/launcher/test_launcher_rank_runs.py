"""Trainings of two ranks through the launcher: one policy, and a lost rank is answered by the launcher's retry."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
from launching import states
from programs import SERIAL, json_lines, rows_of, started, train_command

from sf_fixpo.launcher.backends.pod import write_runs
from sf_fixpo.launcher.sweep import Run, Sweep

pytestmark = pytest.mark.slow
STEPS = 7_680


def training(folder):
    command = ("python", *train_command(folder, "a", *SERIAL, f"--train_for_env_steps={STEPS}"))
    return Sweep.create(folder, [Run("a", command, "a")])


def kill_rank(run, number):
    """Kills the program of a rank, which torchrun started, among the processes of a started program."""
    ranks = [process for process in run.processes() if process.environ().get("RANK") == number]
    programs = [process for process in ranks if "sf_fixpo.train" in process.cmdline()]
    min(programs, key=lambda process: process.create_time()).kill()


def assert_went_on(sweep):
    """The run has finished in a second attempt, and nothing of the first is lost but what came after its checkpoint."""
    state = states(sweep)["a"]
    assert (state.status, state.attempt, state.failures) == ("finished", 2, 1), state
    rows = json_lines(sweep.folder / "a" / "updates.jsonl")
    assert rows[-1]["env_steps"] >= STEPS
    assert all(len(row["ranks"]) == 2 for row in rows)


def test_two_ranks_on_this_machine_and_one_that_is_lost(tmp_path):
    sweep = training(tmp_path / "s")
    flags = ("--ranks=2", "--max_parallel=1", "--max_retries=1")
    with started(tmp_path / "out", "-m", "sf_fixpo.launcher.resume", str(sweep.folder), *flags) as launcher:
        launcher.wait_until(lambda: len(rows_of(sweep.folder / "a")) >= 15)
        kill_rank(launcher, "1")
        assert launcher.wait(240) == 0, launcher.report()
        launcher.assert_nothing_left()
    assert_went_on(sweep)


def test_two_pods_of_a_run_and_one_whose_rank_is_lost(tmp_path):
    sweep = training(tmp_path / "s")
    write_runs(sweep, "j", ["a", "a"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "sf_fixpo.launcher.backends.pod", str(sweep.folder), "j", "--ranks=2", "--nodes=2", "--max_retries=1"]
    with ExitStack() as stack:
        pods = []
        for index in range(2):
            env = {"JOB_COMPLETION_INDEX": str(index), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            pods.append(stack.enter_context(started(tmp_path / f"pod_{index}", *command, env=env)))
        pods[0].wait_until(lambda: len(rows_of(sweep.folder / "a")) >= 15)
        kill_rank(pods[1], "1")
        assert [pod.wait(240) for pod in pods] == [0, 0], [pod.report() for pod in pods]
        for pod in pods:
            pod.assert_nothing_left()
    assert_went_on(sweep)
    assert (sweep.folder / "a" / "sweep_log_node_1.txt").exists()


def test_ray_gives_all_ranks_of_a_run_one_task(tmp_path):
    sweep = training(tmp_path / "s")
    flags = (
        "--backend=ray",
        "--ray_address=local",
        "--ray_gpus_per_run=0",
        "--ranks=2",
        "--ray_cpus_per_run=0.5",
    )
    with started(tmp_path / "out", "-m", "sf_fixpo.launcher.resume", str(sweep.folder), *flags) as launcher:
        assert launcher.wait(240) == 0, launcher.report()
    assert states(sweep)["a"].status == "finished"
    assert len(json_lines(sweep.folder / "a" / "updates.jsonl")[-1]["ranks"]) == 2
