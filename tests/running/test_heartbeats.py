"""Who is silent for too long, and which evaluation does nothing any more."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from programs import started

from sf_fixpo.running.heartbeats import Heartbeats, ProcessorUse, Silent


class Now:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_one_silent_component_of_a_kind_is_enough():
    now = Now()
    heard = Heartbeats(30, now)
    heard.receive("RolloutWorker_w0", "rollout_proc0")
    heard.receive("RolloutWorker_w1", "rollout_proc1")
    now.seconds = 20
    heard.receive("RolloutWorker_w0", "rollout_proc0")
    now.seconds = 31
    assert heard.silent() == [Silent("RolloutWorker_w1", "rollout_proc1", 31)]
    assert str(heard.silent()[0]) == "RolloutWorker_w1 in process rollout_proc1 for 31 s"


def test_the_first_to_fall_silent_comes_first():
    now = Now()
    heard = Heartbeats(30, now)
    heard.receive("learner", "learner_proc0")
    now.seconds = 5
    heard.receive("a worker that waits for it", "rollout_proc0")
    now.seconds = 40
    assert [silent.component for silent in heard.silent()] == ["learner", "a worker that waits for it"]


def test_at_the_limit_nobody_is_silent():
    now = Now()
    heard = Heartbeats(30, now)
    heard.receive("learner", "learner_proc0")
    now.seconds = 30
    assert heard.silent() == []


@pytest.mark.parametrize(
    ("program", "stalls"),
    [("while True: pass", False), ("import time\nwhile True: time.sleep(0.5)", True)],
    ids=["works", "sleeps"],
)
def test_a_process_that_sleeps_for_ever_has_stalled(program, stalls):
    now = Now()
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        time.sleep(1.0)  # to start takes processor time
        use = ProcessorUse(process.pid, 20.0, now)
        time.sleep(1.0)
        assert not use.stalled(), "not before the window is over"
        now.seconds = 21
        assert use.stalled() is stalls
    finally:
        process.kill()
        process.wait()


def test_a_process_that_is_stopped_has_stalled_and_one_that_works_on_has_not():
    now = Now()
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        process.send_signal(signal.SIGSTOP)
        use = ProcessorUse(process.pid, 10.0, now)
        time.sleep(0.2)
        now.seconds = 11
        assert use.stalled()
        process.send_signal(signal.SIGCONT)
        time.sleep(1.0)
        now.seconds = 22
        assert not use.stalled()
    finally:
        process.kill()
        process.wait()


def test_an_evaluation_whose_worker_is_stopped_has_stalled(tmp_path):
    """What waits for the worker is a process that does nothing, its progress bar included."""
    now = Now()
    flags = ("--env=gym_CartPole-v1", "--random", "--episodes=1000000", "--workers=1")
    with started(tmp_path, "-m", "sf_fixpo.evaluate", *flags) as run:

        def workers():
            return [process for process in run.processes() if "spawn_main" in " ".join(process.cmdline())]

        run.wait_until(workers)
        stopped = workers()[0]
        stopped.suspend()
        time.sleep(1.0)  # what it has said already is taken in
        use = ProcessorUse(run.popen.pid, 5.0, now)
        time.sleep(3.0)
        now.seconds = 6.0
        assert use.stalled()
        stopped.resume()
        run.popen.kill()
        run.wait(5)
        run.assert_nothing_left()
