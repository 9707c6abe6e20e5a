"""What a sweep is made of: descriptions, the manifest, whole files; and secrets, which are in none of them."""

from __future__ import annotations

import os

import pytest
from launching import make_sweep, quick_run

from sf_fixpo.launcher import files, resume, run, sweep
from sf_fixpo.launcher.secret_values import SecretsFileError, read_secrets
from sf_fixpo.launcher.sweep import Run, Sweep, SweepError, describe_runs

SECRET = "0123456789abcdef0123456789abcdef01234567"  # the form of a W&B key


class Description:
    """A RunDescription of given commands, without importing sample-factory; `generate_experiments` is all that is used."""

    run_name = "d"

    def __init__(self, *commands, env=None):
        self.commands, self.env = commands, env

    def generate_experiments(self, train_dir, makedirs):
        assert not makedirs
        for number, command in enumerate(self.commands):
            yield f"{command} --train_dir={train_dir}/d/e_", f"{number:02d}_e", "d/e_", self.env


def faults_of(*commands, env=None) -> list[str]:
    with pytest.raises(SweepError) as caught:
        describe_runs(Description(*commands, env=env), "t")
    return str(caught.value).splitlines()


# --- descriptions and the manifest


def test_a_description_of_sample_factory_becomes_runs(tmp_path):
    from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription

    grid = ParamGrid([("seed", [0, 1]), ("eps_kl", [0.5])]).generate_params()
    description = RunDescription("s", [Experiment("e", "python -m x --name='two words'", grid, env_vars={"A": 1})])
    folder, runs = describe_runs(description, tmp_path)
    assert folder == tmp_path / "s"
    assert not list(tmp_path.iterdir()), "nothing is made before everything is checked"
    assert [made.name for made in runs] == ["00_e_see_0_e.kl_0.5", "01_e_see_1_e.kl_0.5"]
    assert runs[0].folder == "e_/00_e_see_0_e.kl_0.5"
    assert runs[0].env == {"A": "1"}
    assert runs[0].command == (
        *("python", "-m", "x", "--name=two words", "--seed=0", "--eps_kl=0.5"),
        *("--experiment=00_e_see_0_e.kl_0.5", f"--train_dir={tmp_path}/s/e_"),
    )
    made = Sweep.create(folder, runs)
    assert Sweep.load(folder).runs == made.runs
    Sweep.create(folder, runs)  # the same again
    with pytest.raises(SweepError, match="holds a sweep of other runs"):
        Sweep.create(folder, runs[:1])


@pytest.mark.parametrize("name", ["paper_figures", "dmlab_levels_x_seeds", "eps_kl_x_c_beta"])
def test_every_run_of_a_shipped_sweep_is_a_command_line_that_training_takes(tmp_path, name):
    from sf_fixpo.train import parse_cfg

    folder, runs = describe_runs(run.find_sweep_module(f"sf_fixpo.launcher.sweeps.{name}").RUN_DESCRIPTION, tmp_path)
    assert len(runs) == {"paper_figures": 300, "dmlab_levels_x_seeds": 24, "eps_kl_x_c_beta": 75}[name]
    for made in runs[:: max(1, len(runs) // 6)]:
        assert made.command[:3] == ("python", "-m", "sf_fixpo.train")
        cfg = parse_cfg([*made.command[3:], "--device=cpu"])
        assert (folder / made.folder).parent == type(tmp_path)(cfg.train_dir)
        assert cfg.experiment == made.name


def test_the_figures_have_the_papers_six_tasks_and_the_suite_has_those():
    from sf_fixpo.envs.pool.mujoco import TASKS
    from sf_fixpo.launcher.sweeps import paper_figures

    assert len(paper_figures.TASKS) == len(set(paper_figures.TASKS)) == 6
    assert set(paper_figures.TASKS) <= set(TASKS)


def test_all_faults_of_a_description_are_told():
    found = faults_of("python 'x", "python --restart_behavior=overwrite", f"python --wandb_key={SECRET}")
    assert [line.split(":")[0] for line in found] == ["run 00_e", "run 01_e", "run 02_e"]
    assert "No closing quotation" in found[0]
    assert "must be resume" in found[1]
    assert faults_of() == ["the description has no runs; it must have one at least"]
    twice = [quick_run("x", "a"), quick_run("x", "a"), Run("a/b", (), "")]
    assert len(sweep.run_faults(twice)) == 3


def test_a_folder_that_is_no_sweep(tmp_path):
    make_sweep(tmp_path / "inner", a=[])
    with pytest.raises(SweepError, match=rf"there are sweeps in {tmp_path}/inner"):
        Sweep.load(tmp_path)
    (tmp_path / "inner/.sweep/manifest.json").write_text("{}")
    with pytest.raises(SweepError, match="not the manifest of a sweep"):
        Sweep.load(tmp_path / "inner")


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


# --- secrets


@pytest.mark.parametrize(
    "argument",
    [
        f"--wandb_key={SECRET}",
        "--api-key=x",
        "WANDB_API_KEY=x",
        "--hf_token=x",
        f"--tag={SECRET}",
        "--x=hf_" + "A" * 34,
        "--token",
    ],
)
def test_a_command_with_a_secret_is_refused_without_repeating_it(argument):
    (line,) = faults_of(f"env python {argument}")
    assert "looks like a secret" in line
    assert SECRET not in line
    assert "A" * 34 not in line


def test_the_value_of_a_secret_of_this_environment_is_found_anywhere(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "correct horse")
    (line,) = faults_of("python '--note=a correct horse'")
    assert "correct horse" not in line


@pytest.mark.parametrize("env", [{"WANDB_API_KEY": "x"}, {"MY_SECRET": "x"}, {"A": SECRET}])
def test_an_environment_with_a_secret_is_refused(env):
    (line,) = faults_of("python", env=env)
    assert "in its env_vars: looks like a secret" in line


def test_what_only_sounds_alike_is_not_refused(tmp_path):
    made = Description("python --normalize_input_keys obs --monkey=2 --num_tokens=3 --experiment=token_ring")
    assert describe_runs(made, tmp_path)


def test_secrets_reach_the_run_and_no_file(tmp_path, capfd):
    secrets = tmp_path / "secrets"
    secrets.write_text(f"# for W&B\nWANDB_API_KEY={SECRET}\n\nOTHER = two=words \n")
    secrets.chmod(0o600)
    folder = tmp_path / "s"
    # in two halves, because the command itself is written down
    key = f"{SECRET[:20]!r} + {SECRET[20:]!r}"
    look = f"import os; assert os.environ['WANDB_API_KEY'] == {key}; assert os.environ['OTHER'] == 'two=words'"
    Sweep.create(folder, [Run("a", ("python", "-c", look), "a")])
    assert resume.main([str(folder), f"--secrets_file={secrets}", "--max_parallel=1"]) == 0, capfd.readouterr().out
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert not [path for path in written if SECRET in path.read_text()]
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err


def test_secrets_files_that_are_refused(tmp_path):
    path = tmp_path / "secrets"
    with pytest.raises(SecretsFileError, match="No such file"):
        read_secrets(path)
    path.write_text(f"KEY {SECRET}\n")
    path.chmod(0o640)
    with pytest.raises(SecretsFileError, match="mode is 640, others could read it: chmod 600"):
        read_secrets(path)
    path.chmod(0o600)
    with pytest.raises(SecretsFileError, match="line 1 must be KEY=VALUE") as caught:
        read_secrets(path)
    assert SECRET not in str(caught.value)
