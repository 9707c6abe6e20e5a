"""The learner's process: what is saved when, on a file system that is slow."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch
from signal_slot.signal_slot import EventLoop

from benchmarks.synthetic import box_actions, make_cfg, make_env_info, small_shape
from sf_fixpo.learning.worker import FixPOLearnerWorker


@pytest.fixture
def worker(tmp_path):
    """One that has begun, in this process and in no run."""
    shape = small_shape(action_space=box_actions(2))
    cfg = make_cfg("FIXPO", shape, "cpu", tmp_path, keep_checkpoints=100, serial_mode=True)
    versions = SimpleNamespace(policy_versions=torch.zeros([1], dtype=torch.int32))
    worker = FixPOLearnerWorker(EventLoop("loop"), cfg, make_env_info(shape.obs_space, shape.action_space), versions, None, 0)
    worker.learner.init()
    return worker


@pytest.fixture
def slow(monkeypatch):
    """Makes each rename take 0.3 s."""
    replace = os.replace

    def late(*args):
        time.sleep(0.3)
        replace(*args)

    monkeypatch.setattr(os, "replace", late)


def test_saves_that_were_asked_for_meanwhile_are_not_made(worker, slow):
    """Four are waiting once the first has taken 0.3 s: the next is made when as much time has gone into other things."""
    begun = time.monotonic()
    assert [worker.save() for _ in range(5)] == [True, False, False, False, False]
    assert time.monotonic() - begun < 1.0
    time.sleep(0.35)
    assert worker.save()


def test_the_best_waits_for_no_other(worker, slow):
    best = (0, "reward", 1.0)
    assert worker.save()
    assert worker.save_best(*best)
    assert not worker.save_best(0, "reward", 2.0)
    time.sleep(0.35)
    assert worker.save_best(0, "reward", 3.0)


def test_fast_saves_are_all_made(worker):
    for step in range(3):
        worker.learner.env_steps = step
        assert worker.save()
        time.sleep(0.5)  # much longer than one takes, as it is in a run
    folder = worker.learner.checkpoint_dir(worker.cfg, 0)
    assert len([name for name in os.listdir(folder) if name.startswith("checkpoint_")]) == 3


def test_every_save_is_a_sign_of_life(worker, monkeypatch):
    beats = []
    monkeypatch.setattr(worker, "_report_heartbeat", lambda: beats.append(None))
    worker.save()
    worker.save_best(0, "reward", 1.0)
    assert len(beats) == 2
