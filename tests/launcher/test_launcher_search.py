"""Search with Optuna: trials are runs; it is resumed where it was killed, and gives up trials that fall behind."""

from __future__ import annotations

import json
import os
import signal
import types

import optuna
import pytest
from launching import states
from optuna.trial import TrialState
from programs import started

from sf_fixpo.launcher import job, resume, run, search
from sf_fixpo.launcher.sweep import PRUNED, Sweep, SweepError

TRIALS = 8


def test_a_search_that_is_killed_goes_on_and_prunes(tmp_path, monkeypatch, capfd):
    # a trial takes a second or two, so it has to be looked at more often than a real one
    monkeypatch.setattr(search, "_LOOK_SECONDS", 0.03)
    monkeypatch.setattr(job, "_CHECK_SECONDS", 0.03)
    flags = ["--search=optuna", f"--trials={TRIALS}", "--search_parallel=2", "--max_parallel=2", "--report_steps=200"]
    command = ["-m", "sf_fixpo.launcher.run", "--run=search_sweep", f"--train_dir={tmp_path}", *flags]
    folder = tmp_path / "climb_search"
    with started(tmp_path / "out", *command, env={"PYTHONPATH": "tests/helpers"}) as first:
        first.wait_until(lambda: (folder / "trial_0001" / "updates.jsonl").exists())
        os.kill(first.popen.pid, signal.SIGKILL)
        first.popen.wait()
        assert resume.main([str(folder), "--stop_timeout=5"]) == 0, capfd.readouterr().out
    output = capfd.readouterr().out
    study = optuna.load_study(storage=f"sqlite:///{folder}/.sweep/optuna.db", study_name="search")
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    sweep = Sweep.load(folder)
    found = states(sweep)
    for trial in trials:
        state = found[f"trial_{trial.number:04d}"]
        command_line = sweep.runs[f"trial_{trial.number:04d}"].command
        assert {f"--{flag}={value}" for flag, value in trial.params.items()} < set(command_line)
        if trial.state == TrialState.PRUNED:
            assert (state.status, state.reason) == ("stopped", PRUNED)
            assert state.steps < 2000
        else:
            assert (state.status, state.steps, state.mean_return) == ("finished", 2000, trial.value)
            assert trial.value == pytest.approx(20 * trial.params["height"] + 0.5, abs=0.01)
    pruned = [trial.params["height"] for trial in trials if trial.state == TrialState.PRUNED]
    assert max(pruned) < study.best_params["height"]
    assert [found[f"trial_000{number}"].attempt for number in (0, 1)] == [2, 2], "those of the killed launcher went on"
    assert f"best: trial_{study.best_trial.number:04d}, return {study.best_value:.4g}: --height=" in output
    assert f"{len(pruned)} pruned" in output


def test_a_search_space_is_read(tmp_path):
    made = search.read_space({"a": (1, 8, "log"), "b": (0.5, 2), "c": ["x", 1, True]})
    assert made["a"] == optuna.distributions.IntDistribution(1, 8, log=True)
    assert made["b"] == optuna.distributions.FloatDistribution(0.5, 2)
    assert made["c"] == optuna.distributions.CategoricalDistribution(["x", 1, True])


@pytest.mark.parametrize("values", [(1,), (2, 1), (0.0, 1.0, "log"), (1, 2, "linear"), 3, []])
def test_a_search_space_that_is_none(values):
    with pytest.raises(SweepError, match=r"SEARCH_SPACE\['a'\]=.*must be \(low, high\)"):
        search.read_space({"a": values, "b": (0, 1)})


def description(command: str, space=None):
    experiment = types.SimpleNamespace(cmd=command)
    return types.SimpleNamespace(RUN_DESCRIPTION=types.SimpleNamespace(experiments=[experiment]), SEARCH_SPACE=space)


def options_of(module) -> search.SearchOptions:
    args = types.SimpleNamespace(trials=5, search_parallel=1, search_seed=0, report_steps=0)
    return search.SearchOptions.of(module, args)


def test_options_of_a_search_survive_the_disk(tmp_path):
    space = {"eps_kl": (0.1, 1.0, "log"), "fixup": ["off", "every_epoch"]}
    options = options_of(description("python x --train_for_env_steps=1000", space))
    assert options.report_steps == 50
    sweep = Sweep.create(tmp_path, ())
    options.save(sweep)
    assert search.SearchOptions.load(sweep) == options
    options_of(description("python x --train_for_env_steps=1000", space)).save(sweep)
    with pytest.raises(SweepError, match="holds another search"):
        options_of(description("python x --train_for_env_steps=1000", {"eps_kl": (0.1, 2.0)})).save(sweep)
    assert json.loads((tmp_path / ".sweep/search.json").read_text())["trials"] == 5


def test_all_faults_of_a_search_at_once(capsys):
    with pytest.raises(SweepError) as caught:
        options_of(description("python x --restart_behavior=restart", None))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["run base", "--report_steps=0", "SEARCH_SPACE"]
    assert run.main(["--run=x", "--search=grid", "--trials=0", "--search_parallel=0"]) == 2
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "--search=grid",
        "--trials=0",
        "--search_parallel=0",
    ]


def test_the_search_that_ships_can_be_searched():
    module = run.find_sweep_module("sf_fixpo.launcher.sweeps.eps_kl_x_c_beta")
    assert set(search.read_space(module.SEARCH_SPACE)) == {"eps_kl", "c_beta", "beta_lr", "fixup"}
