"""Plots: real logs in, a picture out; what is drawn is read back from the figure."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tensorboardX import SummaryWriter

from sf_fixpo import plot
from sf_fixpo.records.run_logs import read_experiment

EPS_KL, C_BETA = 0.5, 3.0


def make_experiment(folder, beta=1.0, updates: int = 4, with_returns: bool = True, algo: str = "FIXPO"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"algo": algo, "c_beta": C_BETA, "eps_kl": EPS_KL, "fixup": "every_epoch"}))
    rows = [
        {
            "policy_id": 0, "policy_version": 40 * i, "env_steps": 1000 * i, "eps_kl": EPS_KL, "kl_max": 0.1 * i,
            "kl_mean": 0.01 * i,
            "kl_max_primary": 0.15 * i, "beta": beta, "primary_steps": 40, "fixup_steps": i % 3, "backtracks": int(i == 2),
        }
        for i in range(1, updates + 1)
    ]  # fmt: skip
    if algo != "APPO":
        (folder / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if with_returns:
        writer = SummaryWriter(str(folder / ".summary" / "0"))
        for i in range(1, 6):
            writer.add_scalar("reward/reward", 10.0 * i, 800 * i)
            writer.add_scalar("train/entropy", 2.0 - 0.1 * i, 800 * i)
        writer.close()
    return folder


def trace_row(version: int, epoch: int, phase: str, kl_max: float = 0.2, beta=1.0) -> dict:
    return {
        "policy_id": 0, "policy_version": version, "epoch": epoch, "phase": phase, "kl_max": kl_max, "beta": beta,
        "eps_kl": EPS_KL, "c_beta": C_BETA,
    }  # fmt: skip


TRACE = [
    *[trace_row(40, 0, "primary") for _ in range(3)],
    *[trace_row(40, 0, "fixup") for _ in range(2)],
    *[trace_row(40, 1, "primary") for _ in range(3)],
    *[trace_row(80, 0, "primary") for _ in range(3)],
    trace_row(80, 0, "fixup"),
]


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_the_panels_show_the_logs(tmp_path):
    experiment = read_experiment(make_experiment(tmp_path / "run"))
    np.testing.assert_array_equal(experiment.return_steps, [800, 1600, 2400, 3200, 4000])
    np.testing.assert_array_equal(experiment.returns, [10, 20, 30, 40, 50])
    shown = panels(plot.plot_runs([experiment]))
    assert len(shown) == 6
    kl_axes = shown["Trust region: largest KL of a published policy"]
    drawn = [line.get_ydata() for line in kl_axes.lines]
    assert any(np.allclose(y, [0.1, 0.2, 0.3, 0.4]) for y in drawn if len(y) == 4)
    horizontal = [y[0] for y in drawn if len(y) == 2]
    assert horizontal == pytest.approx([EPS_KL, EPS_KL / C_BETA])
    legend = shown["Fixup phase"].get_legend_handles_labels()[1]
    assert "beside 40 primary steps" in legend[0]
    assert "1 went back" in legend[0]


def test_returns_by_version_lie_between_the_updates(tmp_path):
    experiment = read_experiment(make_experiment(tmp_path / "run"))
    np.testing.assert_allclose(plot.positions_of(experiment, experiment.return_steps, "policy_version"), [40, 64, 96, 128, 160])


def test_a_beta_for_each_task_is_a_line_for_each(tmp_path):
    experiment = read_experiment(make_experiment(tmp_path / "run", beta=[1.0, 2.0, 3.0]))
    assert len(panels(plot.plot_runs([experiment]))["Lagrange multiplier"].lines) == 3


def test_entropy_mean_kl_and_what_the_health_check_found_are_drawn(tmp_path, capsys):
    folder = make_experiment(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "updates.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"entropy": 1.0 - 0.2 * i, "beta_of_mean": 0.5, "health": ["collapse"] if i > 1 else []}
    (folder / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    appo = read_experiment(make_experiment(tmp_path / "appo", algo="APPO"))
    np.testing.assert_allclose(appo.entropies, [1.9, 1.8, 1.7, 1.6, 1.5], rtol=1e-6)
    shown = panels(plot.plot_runs([read_experiment(folder)]))
    np.testing.assert_allclose(shown["Entropy of the policy"].lines[0].get_ydata(), [1.0, 0.8, 0.6, 0.4])
    assert "collapse: 2 of 4 updates" in shown["Entropy of the policy"].get_legend_handles_labels()[1]
    assert len(shown["Lagrange multiplier"].lines) == 2
    mean = shown["How far an update moves the policy on average"]
    np.testing.assert_allclose(mean.lines[0].get_ydata(), [0.01, 0.02, 0.03, 0.04])
    assert plot.main([str(folder)]) == 0
    assert "run: collapse: at 2 of 4 updates, first at 3,000 steps" in capsys.readouterr().err


def test_a_run_without_episodes_says_so(tmp_path):
    experiment = read_experiment(make_experiment(tmp_path / "run", with_returns=False))
    assert "no episode" in panels(plot.plot_runs([experiment]))["Episode return"].texts[0].get_text()


def test_several_runs_stay_apart(tmp_path, capsys):
    folders = [make_experiment(tmp_path / name) for name in ("a_seed0", "a_seed1")]
    appo = make_experiment(tmp_path / "appo", algo="APPO")
    shown = panels(plot.plot_runs([read_experiment(folder) for folder in (*folders, appo)]))
    assert shown["Episode return"].get_legend_handles_labels()[1] == ["a_seed0", "a_seed1", "appo"]
    out = tmp_path / "both.png"
    assert plot.main([*map(str, folders), f"--out={out}", "--x=policy_version"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(out)


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = make_experiment(tmp_path / "run")
    with (folder / "updates.jsonl").open("a") as log:
        log.write('{"policy_id": 0, "poli')
    assert len(read_experiment(folder).rows) == 4


def test_the_trace_marks_every_fixup_phase():
    spans, empty = plot.phase_spans(TRACE)
    assert spans == [(3, 5), (11, 12)]
    assert empty == [8]


@pytest.mark.parametrize(("fixup", "lines"), [("every_epoch", [8]), ("last_epoch", [8]), ("off", [])])
def test_vertical_lines_are_where_a_phase_took_no_step(fixup, lines):
    figure = plot.plot_trace(TRACE, "title", fixup)
    green = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_color() == plot.GREEN]
    assert green == lines


def test_the_trace_is_drawn_beside_the_log(tmp_path):
    folder = make_experiment(tmp_path / "run")
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRACE))
    assert plot.main([str(folder), "--trace"]) == 0
    assert (folder / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(tmp_path, capsys):
    folder = make_experiment(tmp_path / "run")
    cases = [[str(tmp_path / "absent")], [str(tmp_path)], [str(folder), "--trace"], [str(folder), str(folder), "--trace"]]
    for argv in cases:
        assert plot.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("Nothing plotted: ")
        assert error.count("\n") == 1
    (folder / "updates.jsonl").write_text("not json\n{}\n")
    assert plot.main([str(folder)]) == 2
    (folder / "updates.jsonl").unlink()
    assert plot.main([str(folder)]) == 2
