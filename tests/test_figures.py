"""The paper's figures: what is planned are commands that the program takes; rows, statistics and pictures of one real figure."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small_hub import row
from tensorboardX import SummaryWriter
from torch.distributions import Normal

from benchmarks import figure as program
from benchmarks.figures import drawing, plan, rows, statistics
from sf_fixpo import train
from sf_fixpo.launcher.sweep import FINISHED, RunState, Sweep, describe_runs

ALL = [(number, scale) for number, figure in plan.FIGURES.items() for scale in figure.budgets]
PLANNED = plan.Planned("fixpo--mujoco_Walker2d", "fixpo", "mujoco_Walker2d", 0, 0, "")


@pytest.mark.parametrize("number", plan.FIGURES)
def test_every_variant_is_a_command_that_the_program_takes(number, tmp_path):
    for scale in plan.FIGURES[number].budgets:
        folder, runs = describe_runs(plan.description(number, scale, tmp_path), tmp_path)
        wanted = plan.planned(number, scale)
        assert {plan.run_name(run) for run in wanted} <= {run.name for run in runs}
        by_name = {run.name: run for run in runs}
        for run in wanted:
            assert folder / by_name[plan.run_name(run)].folder == plan.run_folder(folder, run)
        # one of each variant, at one scale: what differs between tasks and seeds is a name and a number
        each = list({run.variant: run for run in wanted}.values())
        for run in each if scale == "laptop" else each[:1]:
            flags = [flag for flag in by_name[plan.run_name(run)].command[3:] if not flag.startswith("--init_from")]
            cfg = train.parse_cfg(flags)
            assert (cfg.env, cfg.seed) == (run.env, run.seed)
            assert "{" not in shlex.join(flags)


def test_transfer_goes_on_from_the_pretraining_of_its_seed(tmp_path):
    folder, runs = describe_runs(plan.description("7", "laptop", tmp_path), tmp_path)
    transfers = [run for run in runs if "--transfer" in run.name or "transfer_" in run.name]
    assert len(transfers) == 2 * 3 * 5
    folders = {str(folder / run.folder) for run in runs}
    for run in transfers:
        (source,) = [flag.removeprefix("--init_from=") for flag in run.command if flag.startswith("--init_from=")]
        assert source in folders
        assert "pretrain_" in source
        assert source.rpartition("_")[2] == run.name.rpartition("_")[2]
    assert plan.chosen_variants("7", "laptop", "transfer_appo") == ["pretrain_appo", "transfer_appo"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["9"], "figure 9: must be one of 1, 2, 3, 4, 5, 6, 7, 8, robustness"),
        (["3", "--scale=huge"], "--scale=huge: must be one of smoke, laptop, paper"),
        (["3", "--methods=fixpo,sac"], "--methods=sac: figure 3 has fixpo, appo, trpo, kl_projection"),
        (["atari"], "--scale=smoke: figure atari has laptop, paper"),
    ],
)
def test_what_is_unknown_is_refused_with_the_list(argv, message, capsys, tmp_path):
    assert program.main([*argv, f"--train_dir={tmp_path}", f"--out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def some_rows(variant="fixpo", env="mujoco_Walker2d", seed=0, returns=(1.0, 2.0), **more):
    common = dict.fromkeys(rows.COLUMNS) | {"version": rows.VERSION, "figure": "3", "scale": "smoke", "algo": variant.upper()}
    common |= {"variant": variant, "env": env, "seed": seed, "commit": "c", "machine": "m"} | more
    return [common | {"steps": 100.0 * (i + 1), "frames": 100.0 * (i + 1), "return": y} for i, y in enumerate(returns)]


@pytest.mark.parametrize("change", [{"version": "0"}, {"figure": "5"}])
def test_a_csv_of_another_version_is_refused_before_anything_runs(change, capsys, tmp_path):
    path = tmp_path / rows.csv_name("3", "smoke")
    rows.write(path, some_rows() + some_rows(seed=1, **change))
    before = path.read_bytes()
    assert program.main(["3", f"--train_dir={tmp_path / 'runs'}", f"--out={tmp_path}"]) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == before
    assert not (tmp_path / "runs").exists()


def test_a_csv_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("sweep,variant\na,b\n")
    with pytest.raises(rows.VersionError, match="of version none"):
        rows.read(path)


def make_run(folder, algo="FIXPO"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        f'{{"algo": "{algo}", "train_for_env_steps": 800, "git_hash": "abc", "env_frameskip": 4, "env": "x"}}'
    )
    logged = [row(i, env_steps=200 * i, beta=float(i), kl_max=0.2 * i, eps_kl=0.5, fixup_steps=i) for i in range(1, 5)]
    if algo != "APPO":
        (folder / "updates.jsonl").write_text("".join(json.dumps(r) + "\n" for r in logged))
    writer = SummaryWriter(str(folder / ".summary" / "0"))
    for i in range(1, 5):
        writer.add_scalar("reward/reward", 10.0 * i, 200 * i, walltime=1000.0 + i)
        writer.add_scalar("policy_stats/avg_success", 0.1 * i, 200 * i, walltime=1000.0 + i)
    writer.close()


def test_rows_are_the_logs_in_parts(tmp_path):
    make_run(tmp_path / "run")
    first, second = rows.run_rows(tmp_path / "run", "3", "smoke", PLANNED, parts=2)
    assert (second["frames"], second["steps"]) == (800, 200)
    assert (first["return"], second["return"]) == (15.0, 35.0)
    assert second["success"] == pytest.approx(0.35)
    assert second["seconds"] == 3.0
    assert (first["updates"], second["updates"], second["fixup_steps"], second["fixup_max"]) == (2, 2, 7, 4)
    assert (first["kl_max_rel"], second["kl_max_rel"]) == pytest.approx((0.8, 1.6))
    assert (first["over_bound"], second["over_bound"]) == (0, 2)
    assert second["beta_q50"] == pytest.approx(3.5)
    assert (second["commit"], second["seed"], second["variant"]) == ("abc", 0, "fixpo")
    path = tmp_path / "out" / "x.csv"
    rows.write(path, [first, second])
    again = rows.read(path)
    assert [r["return"] for r in again] == [15.0, 35.0]
    assert again[0]["entropy"] == pytest.approx(first["entropy"]) if "entropy" in first else again[0]["entropy"] is None


def test_appo_has_rows_without_updates(tmp_path):
    make_run(tmp_path / "run", "APPO")
    (only,) = rows.run_rows(tmp_path / "run", "3", "smoke", PLANNED, parts=1)
    assert only["return"] == 25.0
    assert "updates" not in only


def test_the_interquartile_mean_cuts_whole_runs():
    assert statistics.iqm([0, 1, 5]) == 2.0, "of three runs none is cut"
    assert statistics.iqm([-100, 1, 2, 100]) == 1.5
    assert statistics.iqm([-9, -9, 1, 2, 3, 4, 9, 99]) == 2.5


def test_pooled_scores_have_an_interval_by_resampling_within_tasks():
    rng = np.random.default_rng(3)
    tasks = {name: list(rng.normal(0.0, 1.0, 10)) for name in "abc"}
    middle, low, high = statistics.pooled_iqm(tasks, resamples=2000)
    assert low < middle < high
    assert high - low < 2.0
    assert statistics.pooled_iqm(tasks, resamples=2000) == (middle, low, high), "no chance in it"
    # strata that do not vary: nothing is left to resample, whatever lies between the tasks
    assert statistics.pooled_iqm({"a": [0.0, 0.0], "b": [9.0, 9.0]}, resamples=100) == (4.5, 4.5, 4.5)
    assert np.isnan(statistics.pooled_iqm({"a": [1.0], "b": [1.0, 2.0]})[1])


def test_probability_of_improvement_is_a_mean_over_tasks():
    one, other = {"a": [1, 2], "b": [5, 5], "only": [0]}, {"a": [0, 0], "b": [5, 5]}
    assert statistics.probability_of_improvement(one, other) == 0.75
    with pytest.raises(ValueError, match="no task"):
        statistics.probability_of_improvement({"a": [1]}, {"b": [1]})


def test_a_drawdown_is_the_largest_fall():
    assert statistics.drawdown([1, 5, 2, 6, 5]) == 3.0
    assert statistics.drawdown([]) == 0.0


def test_a_standard_deviation_is_read_off_the_entropy():
    entropy = 6 * float(Normal(0.0, 0.3).entropy())
    assert drawing.value(some_rows(entropy=entropy)[0], "action_std") == pytest.approx(0.3)


def test_every_seed_is_drawn_and_the_mean_has_a_band():
    data = [r for seed in range(3) for r in some_rows(seed=seed, returns=(0.0, 10.0 + seed))]
    data += some_rows(variant="appo", returns=(3.0, 4.0))
    picture = drawing.draw(data, "return", "title")
    (panel,) = picture.axes
    ends = [line.get_ydata()[-1] for line in panel.get_lines() if line.get_marker() == "o"]
    assert ends == [10.0, 11.0, 12.0, 4.0]
    assert len(panel.collections) == 1, "one run has no interval"
    text = drawing.table(data, "return")
    assert "| mujoco_Walker2d | fixpo | 3 | 11 ± 2.48 |" in text
    assert "| mujoco_Walker2d | appo | 1 | 4 |" in text


@pytest.mark.slow
def test_figure_4_runs_its_part_of_figure_3_once(tmp_path, capsys):
    where = [f"--train_dir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--methods=fixpo"]
    assert program.main(["4", *where]) == 0, capsys.readouterr()
    table = rows.read(tmp_path / "out" / "figure_4_smoke.csv")
    assert {r["variant"] for r in table} == {"fixpo"}
    assert max(r["kl_max_rel"] for r in table if r["updates"]) <= 1
    assert any(r["return"] is not None for r in table)
    for suffix in ("png", "svg", "md"):
        assert (tmp_path / "out" / f"figure_4_smoke.{suffix}").stat().st_size > 100
    sweep = Sweep.load(tmp_path / "runs" / "figure_3_smoke")
    assert [sweep.state(run).status for run in sweep.runs.values()].count(FINISHED) == 1
    assert "finished, " in capsys.readouterr().out
    assert program.main(["3", *where]) == 0
    assert "finished, " not in capsys.readouterr().out, "nothing was run again"
    with (tmp_path / "out" / "figure_3_smoke.csv").open() as file:
        assert {r["figure"] for r in csv.DictReader(file)} == {"3"}


def test_what_an_earlier_call_has_made_stays(tmp_path):
    out, train_dir = tmp_path / "out", tmp_path / "runs"
    rows.write(out / rows.csv_name("3", "smoke"), some_rows(variant="trpo"))
    folder, runs = describe_runs(plan.description("3", "smoke", train_dir), train_dir)
    sweep = Sweep.create(folder, runs)
    (wanted,) = plan.selected("3", "smoke", ["fixpo"])
    make_run(plan.run_folder(folder, wanted))
    sweep.write_state(sweep.runs[plan.run_name(wanted)], RunState(status=FINISHED))
    assert program.main(["3", "--methods=fixpo", f"--train_dir={train_dir}", f"--out={out}"]) == 0
    assert [r["variant"] for r in rows.read(out / rows.csv_name("3", "smoke"))][-2:] == ["trpo", "trpo"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_figures_at_the_smoke_scale_take_less_than_four_minutes(tmp_path):
    start = time.monotonic()
    assert program.main(["all", f"--train_dir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]) == 0
    assert time.monotonic() - start < 240
    assert len(list((tmp_path / "out").glob("*.csv"))) == 8


@pytest.mark.slow
def test_a_killed_figure_goes_on(tmp_path):
    where = [f"--train_dir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--methods=fixpo"]
    folder = plan.run_folder(tmp_path / "runs" / "figure_3_smoke", plan.selected("3", "smoke", ["fixpo"])[0])
    first = subprocess.Popen([sys.executable, "-m", "benchmarks.figure", "3", *where], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (folder / "updates.jsonl").is_file():
        assert time.monotonic() < end, "no update"
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) in (0, 143)
    assert program.main(["3", *where]) == 0
    sweep = Sweep.load(tmp_path / "runs" / "figure_3_smoke")
    assert sweep.state(sweep.runs[folder.name]).status == FINISHED
    assert (tmp_path / "out" / "figure_3_smoke.csv").is_file()
