"""A run always ends, says why, and leaves no process: faulty environments, killed processes, Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time

import pytest
from faulty_envs import hangs_at_start, vanishes_at_start
from programs import LONG, PARALLEL, SERIAL, checkpoints_of, rows_of, started, train, train_command
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.learning import checkpoints
from sf_fixpo.running.supervision import EnvironmentStartError, RunContext, probe_environment

FAULTY = "tests/helpers/faulty_envs.py"
NO_SECOND_TRY = ("--max_env_crashes=0", "--max_restarts=0")


def run_faulty(tmp_path, fault: str, *flags: str):
    argv = [FAULTY, fault, f"--train_dir={tmp_path}", "--experiment=faulty", LONG, *NO_SECOND_TRY, *flags]
    with started(tmp_path / "output", *argv) as run:
        status = run.wait(60)
        run.assert_nothing_left()
    assert "Traceback" not in run.stdout
    return status, run


# it is tried before any mode begins
@pytest.mark.parametrize("mode", [pytest.param(SERIAL, marks=pytest.mark.slow), PARALLEL], ids=["serial", "parallel"])
def test_environment_that_raises_when_it_is_made_ends_the_run_with_its_own_error(tmp_path, mode):
    status, run = run_faulty(tmp_path, "raises_at_start", *mode)
    assert status == 1
    assert "environment gym_CartPole-v1 could not be started: RuntimeError: the engine does not start: no licence" in run.stderr
    assert "in raises_at_start" in run.stderr, "the environment's own traceback says where"


@pytest.mark.parametrize(
    ("factory", "timeout", "said"),
    [
        (vanishes_at_start, 60, "environment engine ended its process at the start, exit code 4"),
        (hangs_at_start, 4, r"environment engine did not start within 4 s \(--env_start_timeout\)"),
    ],
    ids=["vanishes", "hangs"],
)
def test_environment_that_does_not_come_back_from_being_made(factory, timeout, said):
    context = RunContext()
    context.env_registry["engine"] = factory
    with pytest.raises(EnvironmentStartError, match=f"^{said}$"):
        probe_environment(context, AttrDict(env="engine"), timeout)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_environment_that_ends_its_process_when_it_is_made(tmp_path):
    status, run = run_faulty(tmp_path, "vanishes_at_start", *PARALLEL)
    assert status == 1
    assert "ended its process at the start, exit code 4" in run.stderr


@pytest.mark.slow
def test_environment_that_hangs_when_it_is_made_is_given_up(tmp_path):
    status, run = run_faulty(tmp_path, "hangs_at_start", *PARALLEL, "--env_start_timeout=5")
    assert status == 1
    assert "did not start within 5 s (--env_start_timeout)" in run.stderr


@pytest.mark.slow
def test_environment_that_cannot_be_made_in_a_worker_ends_the_run(tmp_path):
    status, run = run_faulty(tmp_path, "raises_in_worker", *PARALLEL)
    assert status == 1
    assert "RuntimeError: the port is taken" in run.stderr
    assert re.search(r"process rollout_proc1 died \(exit code 1\)", run.stderr)


def test_environment_that_raises_in_a_step_ends_the_run_with_its_own_error(tmp_path):
    status, run = run_faulty(tmp_path, "raises_in_step", *PARALLEL)
    assert status == 1
    assert "RuntimeError: the gearbox is broken" in run.stderr
    assert re.search(r"process rollout_proc1 died \(exit code 78\)", run.stderr)
    assert rows_of(tmp_path / "faulty")
    assert len(checkpoints_of(tmp_path / "faulty")) == 1, "what was learned until then is kept"


@pytest.mark.slow
def test_environment_that_raises_in_a_step_of_a_serial_run(tmp_path):
    # in one process there is only worker 0
    status, run = run_faulty(tmp_path, "raises_in_step", *SERIAL, "--num_workers=2", "--num_envs_per_worker=2")
    assert status == 1
    assert "RuntimeError: the gearbox is broken" in run.stderr


@pytest.mark.slow
def test_environment_that_ends_its_process_in_a_step_ends_the_run(tmp_path):
    status, run = run_faulty(tmp_path, "vanishes_in_step", *PARALLEL)
    assert status == 1
    assert re.search(r"process rollout_proc1 died \(exit code 3\)", run.stderr)
    assert len(checkpoints_of(tmp_path / "faulty")) == 1


@pytest.mark.slow
def test_environment_that_hangs_in_a_step_does_not_keep_the_run_from_ending(tmp_path):
    # the other worker goes on to the goal
    status, run = run_faulty(tmp_path, "hangs_in_step", *PARALLEL, "--train_for_env_steps=4000")
    assert status == 1
    assert "Some processes did not stop within 5 s: killed" in run.stderr
    assert checkpoints_of(tmp_path / "faulty")


@pytest.mark.slow
def test_environment_that_raises_when_it_is_closed_does_not_keep_the_run_from_ending(tmp_path):
    _, run = run_faulty(tmp_path, "raises_at_the_end", *PARALLEL, "--train_for_env_steps=640")
    assert "RuntimeError: the door is stuck" in run.stderr
    assert checkpoints_of(tmp_path / "faulty")


@pytest.fixture
def learning(tmp_path):
    """A parallel run that has made some updates; each process imports for seconds, so that one worker has to do."""
    flags = (*PARALLEL, "--num_workers=1", "--num_envs_per_worker=4", LONG, "--log_level=info")
    with started(tmp_path / "output", *train_command(tmp_path, "run", *flags)) as run:
        run.wait_until(lambda: len(rows_of(tmp_path / "run")) >= 3)
        yield run


def test_killed_learner_ends_the_run(learning):
    os.kill(int(re.search(r"LearnerWorker_p0\tpid (\d+)", learning.stderr)[1]), signal.SIGKILL)
    assert learning.wait(60) == 1
    assert "process learner_proc0 died (exit code -9)" in learning.stderr
    learning.assert_nothing_left()


def test_killed_main_process_takes_all_others_with_it(learning):
    assert len(learning.processes()) > 4
    learning.popen.send_signal(signal.SIGKILL)
    assert learning.wait(5) == -signal.SIGKILL
    learning.assert_nothing_left()


def test_ctrl_c_while_the_environment_starts(tmp_path):
    argv = [FAULTY, "hangs_at_start", f"--train_dir={tmp_path}", "--experiment=faulty", *PARALLEL]
    with started(tmp_path / "output", *argv) as run:
        run.wait_until(lambda: len(run.processes()) > 1)
        run.popen.send_signal(signal.SIGINT)
        assert run.wait(20) == 130, run.report()
        run.assert_nothing_left()
    assert "Traceback" not in run.stderr


def test_ctrl_c_in_the_instant_that_starts_the_probe_leaves_no_process(monkeypatch):
    start = multiprocessing.context.SpawnProcess.start

    def interrupted(self):
        start(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", interrupted)
    context = RunContext()
    context.env_registry["hangs"] = hangs_at_start
    with pytest.raises(KeyboardInterrupt):
        probe_environment(context, AttrDict(env="hangs"), timeout=50)
    assert multiprocessing.active_children() == [], "the program would wait for it when it ends"


@pytest.mark.slow
def test_ctrl_c_while_the_processes_start(tmp_path):
    with started(tmp_path / "output", *train_command(tmp_path, "run", *PARALLEL, LONG)) as run:
        run.wait_until(lambda: len(run.processes()) >= 5)  # they import for seconds before they can ask for anything
        os.killpg(run.popen.pid, signal.SIGINT)
        assert run.wait(60) == 130, run.report()
        run.assert_nothing_left()
    assert run.stderr == ""


def test_ctrl_c_saves_and_ends(learning, tmp_path):
    pressed = time.monotonic()
    os.killpg(learning.popen.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    assert learning.wait(60) == 130
    assert time.monotonic() - pressed < 30
    learning.assert_nothing_left()
    assert "Traceback" not in learning.stderr
    *_, saved = checkpoints_of(tmp_path / "run")  # one more where an update ended between the two that the stop saves
    assert checkpoints.load(saved)["env_steps"] >= 64


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)], ids=["SIGTERM", "SIGUSR1"]
)
def test_preemption_saves_and_ends_with_a_status_of_its_own(learning, tmp_path, number):
    asked = time.monotonic()
    os.killpg(learning.popen.pid, number)  # a cluster may send it to every process of a job
    assert learning.wait(60) == 75
    assert time.monotonic() - asked < 30
    learning.assert_nothing_left()
    assert "Traceback" not in learning.stderr
    assert "leaked" not in learning.stderr
    *_, saved = checkpoints_of(tmp_path / "run")
    state = checkpoints.load(saved)
    rows = [json.loads(row) for row in rows_of(tmp_path / "run")]
    assert state["env_steps"] >= rows[-1]["env_steps"], "nothing that was learned is lost"
    assert state["fixpo"]["multiplier"]["beta"].tolist() == pytest.approx([rows[-1]["beta"]])


def test_preemption_while_the_environment_starts(tmp_path):
    argv = [FAULTY, "hangs_at_start", f"--train_dir={tmp_path}", "--experiment=faulty", *PARALLEL]
    with started(tmp_path / "output", *argv) as run:
        run.wait_until(lambda: len(run.processes()) > 1)
        os.killpg(run.popen.pid, signal.SIGTERM)
        assert run.wait(20) == 75, run.report()
        run.assert_nothing_left()
    assert "Traceback" not in run.stderr


def test_preemption_of_a_serial_run(tmp_path):
    with started(tmp_path / "output", *train_command(tmp_path, "run", *SERIAL, LONG)) as run:
        run.wait_until(lambda: len(rows_of(tmp_path / "run")) >= 3)
        for process in run.processes():  # Slurm's way: those in sessions of their own too
            process.send_signal(signal.SIGTERM)
        assert run.wait(30) == 75, run.report()
    assert checkpoints_of(tmp_path / "run")


NAN = """
import gymnasium
import numpy as np

class Gives(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
    taken = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.taken += 1
        return np.full(2, np.nan if self.taken == 150 else 0.0, np.float32), 1.0, self.taken % 100 == 0, False, {}

gymnasium.register("Nan-v0", entry_point=Gives)
"""


@pytest.mark.parametrize("mode", [SERIAL, pytest.param(PARALLEL, marks=pytest.mark.slow)], ids=["serial", "parallel"])
def test_an_observation_that_is_none_is_named_and_what_was_learned_is_kept(tmp_path, mode):
    (tmp_path / "nan_env.py").write_text(NAN)
    run = train(tmp_path, "run", *mode, "--env=gym_nan_env:Nan-v0", LONG, env={"PYTHONPATH": str(tmp_path)})
    assert run.popen.returncode == 1, run.report()
    message = "fixpo-train: gym_nan_env:Nan-v0: observation holds NaN at step 50 of an episode"
    assert message in run.stderr.splitlines()
    assert "Traceback" not in run.stderr
    assert rows_of(tmp_path / "run")
    assert len(checkpoints_of(tmp_path / "run")) == 1
    evaluated = [*map(str, ("-m", "sf_fixpo.evaluate", tmp_path / "run", "--episodes=4", "--workers=1", "--envs_per_worker=1"))]
    with started(tmp_path, *evaluated, env={"PYTHONPATH": str(tmp_path)}) as run:
        assert run.wait(60) == 1, run.report()
    assert "gym_nan_env:Nan-v0: observation holds NaN at step 50 of an episode" in run.stderr
    assert "Traceback" not in run.stderr
