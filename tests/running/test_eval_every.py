"""Evaluations while a run trains: real training runs, real evaluations, and what is left of them however the run ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import psutil
import pytest
import torch
from programs import LONG, PARALLEL, SERIAL, Run, checkpoints_of, json_lines, started, train, train_command
from rich.console import Console
from sample_factory.utils.attr_dict import AttrDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.synthetic import make_cfg, small_shape, vector_space
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.running import eval_during_training
from sf_fixpo.running.eval_during_training import (
    EVALUATION_LOG,
    FOLDER,
    EvaluationDuringTraining,
    Pinned,
    eval_faults,
    make_row,
    newest_checkpoint,
    pin,
)

LEVEL = "gym_CartPole-v1"
FLAGS = ("--eval_episodes=2", "--keep_checkpoints=1")


def rows_of(experiment: Path) -> list[dict]:
    return json_lines(experiment / EVALUATION_LOG) if (experiment / EVALUATION_LOG).exists() else []


def left_in(experiment: Path, suffix: str) -> list[Path]:
    return list((experiment / FOLDER).glob(f"*{suffix}"))


def evaluation_processes(run: Run) -> list[psutil.Process]:
    """The evaluations, without their workers."""
    # what a training process has just forked still has its name, but not yet the evaluation's
    return [process for process in run.processes() if "sf_fixpo.evaluate" in process.cmdline()]


# -- whole runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_evaluated_at_its_last_checkpoint_without_a_word(tmp_path):
    run = train(tmp_path, "run", *SERIAL, *FLAGS, "--train_for_env_steps=1000", "--eval_every=600", timeout=280)
    assert run.popen.returncode == 0, run.report()
    assert run.stderr == ""
    experiment = tmp_path / "run"
    [checkpoint] = checkpoints_of(experiment)
    rows = rows_of(experiment)
    assert rows[-1]["checkpoint"] == checkpoint.name, "the first one may have been left out, the last one never"
    assert checkpoint.name == f"checkpoint_{rows[-1]['policy_version']:09d}_{rows[-1]['env_steps']}.pth"
    result = json.loads(left_in(experiment, f"p0_{checkpoint.stem}.json")[0].read_text())
    assert rows[-1]["levels"] == {LEVEL: {"mean": result["mean"], "se": result["se"], "n": 2}}
    assert result["episodes"] == 2
    assert left_in(experiment, ".pth") == left_in(experiment, ".log") == []
    events = EventAccumulator(str(experiment / ".summary" / "0"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars(f"eval/{LEVEL}")]
    assert scalars == [(row["env_steps"], pytest.approx(row["levels"][LEVEL]["mean"])) for row in rows]


@pytest.mark.slow
def test_an_evaluation_that_fails_is_a_warning_and_no_more(tmp_path):
    # a program of its own has changed the environment's actions, which the evaluation cannot know
    flags = (f"--train_dir={tmp_path}", "--experiment=run", *SERIAL, *FLAGS, "--train_for_env_steps=500", "--eval_every=100000")
    with started(tmp_path / "output", "tests/helpers/tuple_env.py", *flags) as run:
        assert run.wait(280) == 0, run.report()
        run.assert_nothing_left()
    assert "failed" in run.stderr
    assert "exit status 1" in run.stderr
    assert "size mismatch" in run.stderr
    assert "Traceback" not in run.stderr
    assert rows_of(tmp_path / "run") == []
    [log] = left_in(tmp_path / "run", ".log")
    assert "Traceback" in log.read_text()


@pytest.fixture
def evaluating(tmp_path):
    """A run whose evaluation is so long that it is under way whatever happens."""
    flags = (*PARALLEL, LONG, "--eval_every=64", "--eval_episodes=100000")
    with started(tmp_path / "output", *train_command(tmp_path, "run", *flags)) as run:
        run.wait_until(lambda: bool(evaluation_processes(run)))
        yield run


@pytest.mark.slow
def test_an_evaluation_stands_behind_everything_else_and_ends_with_ctrl_c(evaluating, tmp_path):
    evaluating.wait_until(lambda: [process.nice() for process in evaluation_processes(evaluating)] == [19])
    [process] = evaluation_processes(evaluating)
    evaluating.wait_until(lambda: process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE)
    environment = process.environ()
    assert (environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    assert os.getsid(process.pid) == os.getsid(evaluating.popen.pid), "priorities may count within a session only"
    assert len(left_in(tmp_path / "run", ".pth")) >= 1
    os.killpg(evaluating.popen.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    assert evaluating.wait(60) == 130, evaluating.report()
    evaluating.assert_nothing_left()
    assert evaluating.stderr == ""
    assert left_in(tmp_path / "run", ".pth") == left_in(tmp_path / "run", ".log") == []


@pytest.mark.slow
def test_a_killed_run_takes_its_evaluation_with_it(evaluating):
    evaluating.popen.send_signal(signal.SIGKILL)
    assert evaluating.wait(5) == -signal.SIGKILL
    evaluating.assert_nothing_left()


def test_the_end_of_a_run_waits_for_an_evaluation_no_longer_than_it_may(tmp_path):
    flags = ("--train_for_env_steps=500", "--eval_every=100000", "--eval_episodes=1000000", "--eval_finish_seconds=2")
    run = train(tmp_path, "run", *SERIAL, *flags)
    assert run.popen.returncode == 0, run.report()
    assert "did not end within --eval_finish_seconds=2" in run.stderr
    assert rows_of(tmp_path / "run") == left_in(tmp_path / "run", ".pth") == []


# -- which checkpoint, and when -----------------------------------------------------------------------------------------------


class Training:
    """What the observer sees of a run: a runner, whose learner saves where it is asked to, and keeps one checkpoint."""

    def __init__(self, train_dir: Path, **flags):
        shape = small_shape(vector_space(4), gym.spaces.Discrete(2))
        self.cfg = make_cfg("APPO", shape, train_dir=train_dir, env=LEVEL)
        flags = {"eval_every": 100, "eval_episodes": 2, "eval_workers": 1, "eval_finish_seconds": 200.0} | flags
        self.cfg.update(experiment="run", num_policies=1, **flags)
        self.experiment = train_dir / "run"
        self.checkpoints = self.experiment / "checkpoint_p0"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        (self.experiment / "config.json").write_text(json.dumps(self.cfg))
        self.network = make_actor_critic(self.cfg, shape.obs_space, shape.action_space)
        self.env_steps: dict[int, int] = {}
        self.saves, self.scalars = 0, []
        self.save_periodic = SimpleNamespace(emit=self.save)
        self.writers = {0: SimpleNamespace(add_scalar=lambda *args: self.scalars.append(args), flush=lambda: None)}

    def save(self) -> None:
        self.saves += 1
        shutil.rmtree(self.checkpoints)
        self.checkpoints.mkdir()
        steps = self.env_steps[0]
        torch.save({"model": self.network.state_dict()}, self.checkpoints / f"checkpoint_{steps // 10:09d}_{steps}.pth")

    def step(self, observer: EvaluationDuringTraining, env_steps: int) -> None:
        self.env_steps[0] = env_steps
        observer.on_training_step(self, 0)


@pytest.fixture
def observed(tmp_path, monkeypatch):
    # these tests wait for evaluations, which at the lowest priority get nothing while other tests keep all cores busy
    monkeypatch.setattr(eval_during_training, "_LOWEST_PRIORITY", 0)
    training = Training(tmp_path)
    observer = EvaluationDuringTraining(training.cfg, Console(quiet=True))
    yield training, observer
    observer.close()


@pytest.mark.slow
def test_while_one_is_evaluated_only_the_newest_checkpoint_waits(observed):
    training, observer = observed
    for steps in (0, 60, 130, 190):
        training.step(observer, steps)
    assert training.saves == 1, "at 130, the first update past 100"
    running = observer._running
    assert running is not None
    for steps in (210, 305, 390):  # longer than these steps take, the evaluation needs for its imports
        training.step(observer, steps)
    assert training.saves == 3
    assert observer._running is running
    assert [path.name for path in sorted((training.experiment / FOLDER).glob("*.pth"))] == [
        "p0_checkpoint_000000013_130.pth",
        "p0_checkpoint_000000030_305.pth",
    ], "both have long been removed by the learner, and what was saved at 210 is needed no more"
    training.env_steps[0] = 420
    training.save()  # as the end of a training does
    observer.finish(training)
    assert [row["env_steps"] for row in rows_of(training.experiment)] == [130, 420]
    assert [row["policy_version"] for row in rows_of(training.experiment)] == [13, 42]
    assert [(tag, step) for tag, _, step in training.scalars] == [(f"eval/{LEVEL}", 130), (f"eval/{LEVEL}", 420)]
    assert left_in(training.experiment, ".pth") == left_in(training.experiment, ".log") == []
    before = time.monotonic()
    observer.finish(training)
    assert time.monotonic() - before < 1, "the last checkpoint has been evaluated"
    assert len(rows_of(training.experiment)) == 2


@pytest.mark.parametrize(
    ("logged", "steps", "saves"), [(130, 190, 0), (130, 200, 1), (90, 130, 1), (None, 130, 1), (350, 399, 0)]
)
def test_a_resumed_run_goes_on_where_its_evaluations_stopped(observed, monkeypatch, logged, steps, saves):
    training, observer = observed
    monkeypatch.setattr(observer, "_start_next", lambda: None)
    lines = [json.dumps({"env_steps": logged, "policy_id": 0}), '{"env_steps": 70, "poli'] if logged else []
    (training.experiment / EVALUATION_LOG).write_text("\n".join([json.dumps({"env_steps": 900, "policy_id": 1}), *lines]))
    training.step(observer, steps)
    assert training.saves == saves


def test_a_score_is_a_scalar_too(observed):
    training, observer = observed
    level = "rooms_watermaze_test"
    pinned = Pinned(training.experiment / "p0_checkpoint_000000013_130.pth", 0, 13, 130)
    score = {"name": "mean capped human-normalised score over 1 level", "capped": 50.0, "normalised": 50.0}
    result = {"mean": 29.03, "se": 0.5, "returns": [28.53, 29.53]}
    row = make_row(pinned, {"engine": "deepmind_lab", "split": "test", "score": score, "levels": {level: result}}, 7.04)
    assert row["checkpoint"] == "checkpoint_000000013_130.pth"
    assert row["levels"] == {level: {"mean": 29.03, "se": 0.5, "n": 2}}
    assert row["score"] == score
    observer._write_scalars(training, row)
    assert training.scalars == [(f"eval/{level}", 29.03, 130), ("eval/_mean_capped_human_normalised", 50.0, 130)]


def test_what_a_killed_run_has_left_is_removed(observed):
    training, observer = observed
    (training.experiment / FOLDER).mkdir()
    for name in ("p0_checkpoint_000000013_130.pth", "p0_checkpoint_000000013_130.json"):
        (training.experiment / FOLDER / name).touch()
    observer.on_start(training)
    assert [path.suffix for path in (training.experiment / FOLDER).iterdir()] == [".json"]


@pytest.mark.parametrize("links", [True, False])
def test_a_pinned_checkpoint_outlives_the_one_it_was(tmp_path, monkeypatch, links):
    def no_links(source, target):
        raise PermissionError("this file system has no hard links")

    if not links:
        monkeypatch.setattr(eval_during_training.os, "link", no_links)
    assert pin(tmp_path, 0, tmp_path / "into") is None, "there is none yet"
    for name, content in (("checkpoint_000000009_900.pth", "old"), ("checkpoint_000000010_1000.pth", "new")):
        (tmp_path / name).write_text(content)
    (tmp_path / "checkpoint_temp.pth").touch()
    assert newest_checkpoint(tmp_path) == (10, 1000, tmp_path / "checkpoint_000000010_1000.pth")
    pinned = pin(tmp_path, 3, tmp_path / "into")
    assert pinned is not None
    assert (pinned.policy_id, pinned.policy_version, pinned.env_steps) == (3, 10, 1000)
    (tmp_path / "checkpoint_000000010_1000.pth").unlink()
    assert pinned.path.read_text() == "new"


def test_bad_flags():
    good = {"eval_every": 0, "eval_episodes": 1, "eval_workers": 1, "eval_finish_seconds": 0.0}
    assert eval_faults(AttrDict(good)) == []
    bad = {"eval_every": -1, "eval_episodes": 0, "eval_workers": 0, "eval_finish_seconds": float("nan")}
    assert eval_faults(AttrDict(bad)) == [
        "--eval_every=-1: must be an integer >= 0",
        "--eval_episodes=0: must be an integer >= 1",
        "--eval_workers=0: must be an integer >= 1",
        "--eval_finish_seconds=nan: must be a number >= 0, seconds",
    ]
