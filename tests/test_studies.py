"""The study's sweeps and curves: flags that today's program takes, and numbers that are the logs'."""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import shlex

import pytest
from small_hub import row
from tensorboardX import SummaryWriter

from benchmarks import curves, studies
from sf_fixpo import train

MODULES = [module.name for module in pkgutil.iter_modules(studies.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_every_run_of_a_study_is_a_command_that_the_program_takes(name, tmp_path):
    description = importlib.import_module(f"benchmarks.studies.{name}").RUN_DESCRIPTION
    assert description.run_name == name, "curves, results and notes go by one name"
    runs = list(description.generate_experiments(str(tmp_path)))
    assert len({(folder, experiment) for _, experiment, folder, _ in runs}) == len(runs)
    for command, *_ in runs:
        program, *flags = shlex.split(command)[2:]
        assert program == "sf_fixpo.train"
        train.parse_cfg(flags)


def test_seeds_are_outermost():
    runs = studies.study("x", "--env=e", {"a": "--b=1", "c": ""}, seeds=[7, 8]).generate_experiments("d")
    ends = [command.split("--env=e ")[1].partition(" --experiment")[0].split() for command, *_ in runs]
    assert ends == [["--b=1", "--seed=7"], ["--seed=7"], ["--b=1", "--seed=8"], ["--seed=8"]]


def make_run(folder, algo, seed):
    folder.mkdir(parents=True)
    config = {"env": "e", "algo": algo, "seed": seed, "train_for_env_steps": 400}
    (folder / "config.json").write_text(json.dumps(config))
    if algo == "FIXPO":
        logged = [row(i, env_steps=100 * i, kl_mean=0.01 * i, kl_max=0.1 * i, entropy=2.0 - 0.1 * i) for i in range(1, 5)]
        (folder / "updates.jsonl").write_text("".join(json.dumps(r) + "\n" for r in logged))
    writer = SummaryWriter(str(folder / ".summary" / "0"))
    for i in range(1, 5):
        writer.add_scalar("reward/reward", 10.0 * i, 100 * i, walltime=1000.0 + i)
        writer.add_scalar("train/entropy", 1.0 - 0.1 * i, 100 * i, walltime=1000.0 + i)
    writer.close()


def test_curves_are_means_over_parts_of_the_steps(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for seed in (3, 4):
        make_run(sweep / "ours_" / f"00_ours_see_{seed}", "FIXPO", seed)
    make_run(sweep / "theirs_" / "00_theirs_see_3", "APPO", 3)
    out = tmp_path / "results" / "sweep.csv"
    assert curves.main([str(sweep), f"--out={out}", "--bins=2"]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], r["seed"], r["steps"]) for r in rows] == [
        *[("ours", "3", "200"), ("ours", "3", "400"), ("ours", "4", "200"), ("ours", "4", "400")],
        *[("theirs", "3", "200"), ("theirs", "3", "400")],
    ]
    assert [float(r["return"]) for r in rows] == [15, 35] * 3
    assert [float(r["seconds"]) for r in rows] == [1, 3] * 3
    assert [float(r["entropy"]) for r in rows] == pytest.approx([1.85, 1.65, 1.85, 1.65, 0.85, 0.65])
    assert [float(r["kl_mean"]) for r in rows[:2]] == pytest.approx([0.015, 0.035])
    assert [float(r["kl_max_rel"]) for r in rows[:2]] == pytest.approx([0.4, 0.8])
    assert [float(r["fixup_share"]) for r in rows[:2]] == [0.25, 0.25]
    assert rows[4]["kl_mean"] == ""
    assert capsys.readouterr().out.strip() == str(out)


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert curves.main([str(tmp_path), f"--out={tmp_path / 'x.csv'}"]) == 1
    assert "no run" in capsys.readouterr().err
