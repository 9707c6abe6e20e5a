"""The study's sweeps and curves: flags that today's program takes, and numbers that are the logs'."""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import shlex

import pytest
from scipy import stats
from small_hub import row
from tensorboardX import SummaryWriter

from benchmarks import compare, curves, studies
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


def write_curves(path, **runs):
    """A CSV of `variant_seed`: returns, at 100, 200, ... steps and 10 s each."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("variant", "seed", "steps", "seconds", "return", "fixup_share", "kl_max_rel"))
        writer.writeheader()
        for name, returns in runs.items():
            variant, _, seed = name.partition("_")
            writer.writerow({"variant": variant, "seed": seed, "steps": 50})  # before its first return was logged
            for i, value in enumerate(returns, start=1):
                own = {"fixup_share": 0.01 * i, "kl_max_rel": 0.9 + 0.01 * i} if variant == "fixpo" else {}
                writer.writerow({"variant": variant, "seed": seed, "steps": 100 * i, "seconds": 10 * i, "return": value, **own})


def test_a_comparison_is_by_students_t(tmp_path, capsys):
    path = tmp_path / "x.csv"
    write_curves(
        path,
        fixpo_1=[0, 4, 8, 6, 9],
        fixpo_0=[1, 3, 9, 9, 10],
        fixpo_2=[0, 1, 4, 8, 8],
        appo_0=[0, 1, 2, 4, 8],
        appo_1=[0, 1, 2, 3],
    )
    runs = compare.read(path, "fixpo")
    assert [run.seed for run in runs] == [0, 1, 2]
    assert [run.last for run in runs] == [10.0, 9.0, 8.0], "the last tenth of the steps is the last of five parts"
    assert [run.fall for run in runs] == pytest.approx([0.0, 0.25, 0.0])
    assert [run.steps_to(8.0) for run in runs] == [300.0, 300.0, 400.0]
    assert [run.at_time(35.0) for run in runs] == [9.0, 8.0, 4.0]
    assert [run.fixup_share for run in runs] == pytest.approx([0.03] * 3)
    assert [run.kl_max_rel for run in runs] == pytest.approx([0.95] * 3)
    # t(0.975; 2) = 4.303, standard deviation 1 of three values
    assert compare.interval([10.0, 9.0, 8.0]) == pytest.approx((9.0, 4.3027 / 3**0.5), rel=1e-4)
    # Welch: variances 1 and 12.5 of 3 and 2 values; nu = (1/3 + 6.25)^2 / ((1/3)^2 / 2 + 6.25^2 / 1) = 1.108
    mean, half = compare.difference([10.0, 9.0, 8.0], [8.0, 3.0])
    assert mean == pytest.approx(3.5)
    assert half == pytest.approx(float(stats.t.ppf(0.975, 1.10808)) * (1 / 3 + 6.25) ** 0.5, rel=1e-3)
    assert compare.main([str(path), "--threshold=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| fixpo | 3 | 9.00 ± 2.48 | 7.67 ± 3.79 | 0.00 ± 0.00 (3 of 3) | 33 ± 14 | 25 % | 3.00 % | 0.950 |"
    assert lines[3].startswith("| appo | 2 | 5.50 ± 31.77 | 3.50 ± 6.35 | 0.00 (1 of 2) | 50 | 0 % |  |  |")
    assert lines[-1].startswith("fixpo - appo: 3.50 ± ")
    assert "of the steps" not in lines[-1], "one run of APPO's never got there"


def test_a_single_run_has_no_interval(tmp_path, capsys):
    path = tmp_path / "x.csv"
    write_curves(path, fixpo_1=[0, 8], appo_0=[0, 1, 8, 8])
    assert compare.main([str(path), "--threshold=8"]) == 0
    out = capsys.readouterr().out
    assert "±" not in out
    assert out.endswith("fixpo - appo: 0.00 at equal steps, 7.00 at equal time; fixpo takes 0.67 of the steps to 8\n")


def test_what_cannot_be_compared_is_named(tmp_path, capsys):
    path = tmp_path / "x.csv"
    write_curves(path, fixpo_1=[0, 8], appo_0=[0, 1])
    for argv, message in (
        ([str(path), "--variants=fixpo,ppo"], "no variant ppo; it has appo, fixpo"),
        ([str(path), "--variants=fixpo,fixpo"], "--variants=fixpo,fixpo: two or more"),
        ([str(tmp_path / "none.csv")], "none.csv"),
    ):
        with pytest.raises(SystemExit) as ended:
            compare.main([*argv, "--threshold=8"])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_tasks_are_pooled_in_units_of_a_reference(tmp_path, capsys):
    path = tmp_path / "x.csv"
    runs = {"fixpo": {"A": [1, 2, 3, 4], "B": [10, 20, 30, 40]}, "appo": {"A": [1, 1, 1, 1], "B": [20, 20, 20, 20]}}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("variant", "seed", "steps", "seconds", "return", "fixup_share", "kl_max_rel"))
        writer.writeheader()
        for algo, by_task in runs.items():
            for task, returns in by_task.items():
                for seed, value in enumerate(returns):
                    writer.writerow({"variant": f"{algo}_{task}", "seed": seed, "steps": 100, "seconds": 1, "return": value})
    assert compare.main([str(path), "--references=A:2,B:20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 0.5, 1, 1.5, 2 twice: without a quarter at each end 1, 1, 1.5, 1.5
    _, one, two, both, _ = lines[2].split(" | ")
    assert (one, two, both[:6]) == ("1.25 ± 1.03", "1.25 ± 1.03", "1.25 (")
    assert lines[3].startswith("| appo | 0.50 ± 0.00 | 1.00 ± 0.00 | 0.75 (0.75-0.75) | 8 |")
    # A: three of 4 above 1 and one equal; B: two of 4 above 20 and one equal
    assert lines[-1] == "a run of fixpo is above one of appo with probability 0.75"
    with pytest.raises(SystemExit):
        compare.main([str(path), "--references=A:2,C:20"])
    assert "no variant fixpo_C" in capsys.readouterr().err
