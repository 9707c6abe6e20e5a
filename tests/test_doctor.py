"""The doctor: real engines in processes of their own, one that crashes, one that hangs; exit status and JSON."""

from __future__ import annotations

import json
from functools import partial

import gymnasium as gym
import pytest
from faulty_envs import hangs_at_start, raises_at_start, vanishes_at_start

from sf_fixpo import doctor, enjoy
from sf_fixpo.playing.trial import TrialError, attempt
from sf_fixpo.running.machine import FAIL, OK, WARN, Check

ENV = "gym_CartPole-v1"


@pytest.fixture
def good_machine(monkeypatch):
    monkeypatch.setattr(doctor, "machine_checks", lambda train_dir: [Check("train_dir", OK, train_dir)])


def test_an_environment_that_runs_here(tmp_path, capsys):
    doctor.main([f"--env={ENV}", "--json", f"--train_dir={tmp_path}"])
    said = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in said["checks"]}
    assert checks[f"engine {ENV}"]["status"] == checks["rendering"]["status"] == OK
    assert "random steps/s" in checks[f"engine {ENV}"]["found"]
    assert "600 x 400 pixels, H.264 film" in checks["rendering"]["found"]
    assert said["status"] in (OK, WARN, FAIL)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_engine_of_every_suite(tmp_path, capsys, monkeypatch, good_machine):
    assert doctor.main([f"--train_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    for env in ("dmlab_30_rooms_collect_good_objects", "mujoco_HalfCheetah", ENV):
        assert f"ok   engine {env}: starts" in out


def test_what_fails_is_told_from_what_is_missing(capsys, monkeypatch, good_machine):
    def look(env, missing, asked=False):
        suite = type("Suite", (), {"name": "x", "missing": staticmethod(lambda: missing)})
        return doctor.engine_check(env, suite, asked, 60)

    def failing(trial, cfg, timeout):
        raise TrialError("ended its process, exit code 4")

    monkeypatch.setattr(doctor, "attempt", failing)
    assert look(ENV, "pip install x").status == WARN
    assert look(ENV, "pip install x", asked=True).status == FAIL
    broken = look(ENV, None)
    assert (broken.status, broken.found) == (FAIL, "does not start: ended its process, exit code 4")
    assert doctor.rendering_check(ENV, 1).status == WARN
    assert doctor.main([f"--env={ENV}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 ok, 0 warn, 1 fail"
    assert lines[2].startswith("     -> fixpo-train --env=")


@pytest.mark.parametrize(
    ("trial", "said", "timeout"),
    [
        (raises_at_start, "RuntimeError: the engine does not start: no licence", 60),
        (vanishes_at_start, "ended its process, exit code 4", 60),
        (hangs_at_start, "no answer within 3 s", 3),
    ],
)
def test_an_engine_that_is_broken_breaks_nothing_else(trial, said, timeout):
    with pytest.raises(TrialError) as error:
        attempt(partial(trial, "name"), {}, timeout)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--env=nothing"], "--env=nothing: no such environment"),
        (["--env=gym_CartPol-v1"], "did you mean gym_CartPole-v1"),
        (["--env_start_timeout=0"], "--env_start_timeout=0.0: must be a number > 0, seconds"),
    ],
)
def test_bad_input(capsys, argv, said, good_machine):
    try:
        status = doctor.main(argv)
    except SystemExit as end:
        status = end.code
    assert status == 2
    out, err = capsys.readouterr()
    assert said in err
    assert not out


def test_a_program_gets_json_and_nothing_else(capsys, monkeypatch, good_machine):
    monkeypatch.setattr(doctor, "engine_checks", lambda *args: iter([Check("engine x", FAIL, "no", "do")]))
    assert doctor.main(["--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["status"] == FAIL
    assert said["checks"][-1] == {"name": "engine x", "status": "fail", "found": "no", "advice": "do"}


class Blind(gym.Env):
    """Draws, it says, and finds no way to: what engines raise then is their own."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it
    observation_space, action_space, render_mode = gym.spaces.Discrete(2), gym.spaces.Discrete(2), "rgb_array"

    def render(self):
        raise RuntimeError("gladLoadGL error")


def test_an_engine_that_cannot_draw_here_is_one_message():
    slots = enjoy.Slots(Blind())
    assert slots.draws
    with pytest.raises(enjoy.BadInputError, match="--env=gym_Blind: cannot draw here: RuntimeError: gladLoadGL error"):
        enjoy.take_frame(slots, "gym_Blind")
