"""Plots a run, or several over each other, from its logs; or one update step by step, as the paper's Figure 2.

    python -m sf_fixpo.plot DIR [DIR ...] [--out FILE.png] [--x {env_steps,policy_version}]
    python -m sf_fixpo.plot DIR --trace

DIR is an experiment folder: `config.json`, `updates.jsonl` (or `trace.jsonl`), and the episode returns in `.summary/`, where
sample-factory writes them. Colours are those of Okabe and Ito, which stay apart for colour-blind readers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from sf_fixpo import cli
from sf_fixpo.records.health import describe
from sf_fixpo.records.run_logs import Experiment, LogError, read_config, read_experiment, read_trace

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RED, BLUE, GREEN = "#D55E00", "#0072B2", "#009E73"
X_LABELS = {"env_steps": "environment steps", "policy_version": "policy version"}


def x_values(experiment: Experiment, x: str) -> np.ndarray:
    """Position of every row on the horizontal axis."""
    return experiment.column(x)


def positions_of(experiment: Experiment, steps: np.ndarray, x: str) -> np.ndarray:
    """Positions of what is logged by environment steps; versions are read off the update log."""
    if x == "env_steps" or not experiment.rows:
        return steps
    return np.interp(steps, experiment.column("env_steps"), experiment.column("policy_version"))


def plot_runs(experiments: Sequence[Experiment], x: str = "env_steps") -> Figure:
    """Six panels: episode return, KL against its bound, entropy, mean KL, beta, and what the fixup phase took.

    Over the entropy a grey band marks where the health check found something (`records.health`), for a single run.
    """
    figure = Figure(figsize=(12.5, 13.5), layout="constrained")
    (return_axes, kl_axes), (entropy_axes, mean_axes), (beta_axes, fixup_axes) = figure.subplots(3, 2)
    for number, experiment in enumerate(experiments):
        color = PALETTE[number % len(PALETTE)]
        style = "-" if number < len(PALETTE) else "--"
        _draw_points(return_axes, experiment, experiment.return_steps, experiment.returns, x, color, style)
        _draw_points(entropy_axes, experiment, experiment.entropy_steps, experiment.entropies, x, color, style)
        if len(experiments) == 1:
            _draw_health(entropy_axes, experiment, x)
        if experiment.rows:
            _draw_kl(kl_axes, experiment, x, color, style, alone=len(experiments) == 1)
            _draw_mean(mean_axes, experiment, x, color, style, alone=len(experiments) == 1)
            _draw_beta(beta_axes, experiment, x, color, style, alone=len(experiments) == 1)
            _draw_fixup(fixup_axes, experiment, x, color)
    if any(row["backtracks"] for experiment in experiments for row in experiment.rows):
        fixup_axes.plot([], [], "x", color="black", label="update that went back towards the previous policy")
    _draw_bounds(kl_axes, experiments)
    _label(return_axes, "Episode return", "mean of the latest episodes", x)
    _label(kl_axes, "Trust region: largest KL of a published policy", "KL max over states, nats", x)
    _label(entropy_axes, "Entropy of the policy", "nats", x)
    _label(mean_axes, "How far an update moves the policy on average", "mean KL, nats", x)
    _label(beta_axes, "Lagrange multiplier", "beta", x)
    _label(fixup_axes, "Fixup phase", "gradient steps per update", x)
    return_axes.set_ylim(auto=True)
    kl_axes.set_ylim(bottom=0)
    fixup_axes.set_ylim(bottom=-0.3)
    fixup_axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if mean_axes.lines:
        mean_axes.set_yscale("log")
    empty = "no update log"
    texts = {return_axes: "no episode has been logged yet", kl_axes: empty, mean_axes: empty, entropy_axes: "not in these logs"}
    for axes, text in texts.items():
        _say_where_empty(axes, text)
    for axes in (return_axes, kl_axes, entropy_axes, mean_axes, beta_axes, fixup_axes):
        if axes.get_legend_handles_labels()[0]:  # below, where it hides nothing
            columns = 1 if axes is fixup_axes else 2
            axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns)
    return figure


def _draw_points(
    axes: Axes, experiment: Experiment, steps: np.ndarray, values: np.ndarray, x: str, color: str, style: str
) -> None:
    label = experiment.name if len(values) else None
    axes.plot(positions_of(experiment, steps, x), values, style, color=color, label=label)


def _say_where_empty(axes: Axes, text: str) -> None:
    if not any(np.size(line.get_xdata()) for line in axes.lines):
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35")
        axes.set_yticks([])
        axes.set_xticks([])


def _label(axes: Axes, title: str, y_label: str, x: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_ylabel(y_label)
    axes.set_xlabel(X_LABELS[x])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)


def _draw_kl(axes: Axes, experiment: Experiment, x: str, color: str, style: str, alone: bool) -> None:
    positions, kl_max = x_values(experiment, x), experiment.column("kl_max")
    if alone:  # a second line for each of many runs would hide more than it shows
        primary = experiment.column("kl_max_primary")
        axes.plot(positions, primary, color="0.6", linewidth=0.8, label="largest in the primary phase")
    worst = np.nanmax(kl_max / experiment.column("eps_kl"))
    axes.plot(positions, kl_max, style, color=color, linewidth=1.2, label=f"{experiment.name} (max {worst:.3f} of bound)")


def _draw_bounds(axes: Axes, experiments: Sequence[Experiment]) -> None:
    """A line at each different bound, and one where beta turns; runs with the same settings share them."""
    bounds = {row["eps_kl"] for experiment in experiments for row in experiment.rows}
    turns = {row["eps_kl"] / experiment.config["c_beta"] for experiment in experiments for row in experiment.rows[-1:]}
    for eps_kl in sorted(bounds):
        axes.axhline(eps_kl, color="black", linestyle="--", linewidth=1.2, label=f"the bound, eps_kl = {eps_kl:g}")
    for turn in sorted(turns):
        axes.axhline(turn, color="black", linestyle=":", linewidth=1.2, label=f"eps_kl / c_beta = {turn:.3g}")


def _draw_mean(axes: Axes, experiment: Experiment, x: str, color: str, style: str, alone: bool) -> None:
    positions, kl_mean = x_values(experiment, x), experiment.column("kl_mean", absent=np.nan)
    axes.plot(positions, kl_mean, style, color=color, linewidth=1.2, label=experiment.name)
    if alone and (target := experiment.config.get("kl_mean_target")):
        axes.axhline(target, color="black", linestyle=":", linewidth=1.2, label=f"kl_mean_target = {target:g}")


def _draw_health(axes: Axes, experiment: Experiment, x: str) -> None:
    """A grey band over the updates at which a rule of the health check held, with the rules' names in the legend."""
    names = sorted({name for row in experiment.rows for name in row.get("health", ())})
    band = {"transform": axes.get_xaxis_transform(), "color": "0.3", "alpha": 0.12}
    for name in names:
        held = np.asarray([name in row.get("health", ()) for row in experiment.rows])
        axes.fill_between(x_values(experiment, x), 0, 1, where=held, **band)
        axes.fill_between([], [], color="0.3", alpha=0.3, label=f"{name}: {held.sum()} of {len(held)} updates")


def _draw_beta(axes: Axes, experiment: Experiment, x: str, color: str, style: str, alone: bool) -> None:
    positions, beta = x_values(experiment, x), experiment.column("beta")
    if beta.ndim == 1:
        axes.plot(positions, beta, style, color=color, label=experiment.name)
        of_mean = experiment.column("beta_of_mean", absent=0.0)
        if of_mean.any():
            axes.plot(positions, of_mean, ":", color=color, label=f"{experiment.name}: of the mean KL")
        return
    tasks = beta.shape[1]
    for task in range(tasks):
        task_color = PALETTE[task % len(PALETTE)] if alone else color
        name = f"{experiment.name}: task {task}" if tasks <= 8 else f"{experiment.name}: {tasks} tasks" if task == 0 else None
        axes.plot(positions, beta[:, task], style, color=task_color, linewidth=0.9, alpha=0.8, label=name)


def _draw_fixup(axes: Axes, experiment: Experiment, x: str, color: str) -> None:
    positions, fixup, primary = x_values(experiment, x), experiment.column("fixup_steps"), experiment.column("primary_steps")
    share = 100 * fixup.sum() / max(1, primary.sum())
    back = experiment.column("backtracks") > 0
    label = f"{experiment.name}: {fixup.mean():.2f} beside {primary.mean():.0f} primary steps ({share:.1f} %)"
    label += f", {back.sum()} went back" if back.any() else ""
    axes.vlines(positions, 0, fixup, color=color, linewidth=0.8, alpha=0.5)
    axes.plot(positions, fixup, ".", color=color, markersize=4, label=label)
    axes.plot(positions[back], fixup[back], "x", color="black", markersize=6)


def phase_spans(rows: Sequence[dict[str, Any]]) -> tuple[list[tuple[int, int]], list[int]]:
    """Where the fixup phases are in a trace.

    Args:
        rows: one per gradient step, in order.

    Returns:
        `(first, end)` steps of every fixup phase that took steps, and the step each phase without any would start at.
    """
    spans, empty = [], []
    start = 0
    for _, group in groupby(rows, key=lambda row: (row["policy_version"], row["epoch"])):
        phases = [row["phase"] for row in group]
        fixups = phases.count("fixup")
        end = start + len(phases)
        if fixups:
            spans.append((end - fixups, end))
        else:
            empty.append(end)
        start = end
    return spans, empty


def plot_trace(rows: Sequence[dict[str, Any]], title: str, fixup: str = "every_epoch") -> Figure:
    """The paper's Figure 2: KL and beta at every gradient step of one or more updates.

    Args:
        rows: the trace, in order.
        title: over the plot.
        fixup: the run's `--fixup`: without a fixup phase after each epoch there is no line where it took no step.
    """
    figure = Figure(figsize=(12.5, 5), layout="constrained")
    kl_axes = figure.subplots()
    beta_axes = kl_axes.twinx()
    steps = np.arange(len(rows)) + 0.5  # step i is drawn in the middle of [i, i + 1)
    spans, empty = phase_spans(rows)
    versions = [row["policy_version"] for row in rows]
    starts = [i for i in range(len(rows)) if i == 0 or versions[i] != versions[i - 1]]
    if fixup != "every_epoch":
        update_ends = {*starts[1:], len(rows)}
        empty = [step for step in empty if fixup == "last_epoch" and step in update_ends]
    for number, (first, end) in enumerate(spans):
        kl_axes.axvspan(first, end, color=GREEN, alpha=0.35, lw=0, label="fixup phase" if number == 0 else None)
    for number, step in enumerate(empty):
        label = "fixup phase without a step" if number == 0 else None
        kl_axes.axvline(step, color=GREEN, linewidth=1.1, alpha=0.8, label=label)
    kl_lines = kl_axes.plot(steps, [row["kl_max"] for row in rows], color=RED, linewidth=1.4, label="KL max (left)")
    last = rows[-1]
    eps_kl, turn = last["eps_kl"], last["eps_kl"] / last["c_beta"]
    kl_axes.axhline(eps_kl, color="black", linestyle="--", linewidth=1.1, label=f"eps_kl = {eps_kl:g}")
    kl_axes.axhline(turn, color="black", linestyle=":", linewidth=1.1, label=f"eps_kl / c_beta = {turn:.3g}")
    beta = np.asarray([row["beta"] for row in rows], dtype=float).reshape(len(rows), -1)
    name = "beta (right)" if beta.shape[1] == 1 else f"beta of {beta.shape[1]} tasks (right)"
    for task in range(beta.shape[1]):
        beta_axes.plot(steps, beta[:, task], color=BLUE, linewidth=1.2, label=name if task == 0 else None)
    _mark_updates(kl_axes, starts, versions)
    kl_axes.set_title(title, fontsize=11, pad=18)
    kl_axes.set_xlabel("gradient step")
    kl_axes.set_ylabel("KL max over states of the minibatch, nats", color=kl_lines[0].get_color())
    beta_axes.set_ylabel("beta", color=BLUE)
    kl_axes.set_ylim(bottom=0)
    kl_axes.set_xlim(0, len(rows))
    kl_axes.set_zorder(beta_axes.get_zorder() + 1)
    kl_axes.patch.set_visible(False)
    handles, labels = kl_axes.get_legend_handles_labels()
    more_handles, more_labels = beta_axes.get_legend_handles_labels()
    figure.legend(handles + more_handles, labels + more_labels, fontsize=8, ncols=6, loc="outside lower center")
    return figure


def _mark_updates(axes: Axes, starts: Sequence[int], versions: Sequence[int]) -> None:
    """A grey line where each update starts, with the version it started from above it."""
    for start in starts:
        if start:
            axes.axvline(start, color="0.4", linewidth=1.4)
        text = f"update from version {versions[start]}"
        axes.annotate(text, (start, 1), (3, 4), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8)


def make_figure(directories: Sequence[Path], trace: bool, x: str, policy_id: int) -> Figure:
    """The figure the command line asks for; what the health check found in the runs is printed to stderr.

    Raises:
        LogError: something is missing.
    """
    if not trace:
        experiments = [read_experiment(directory, policy_id) for directory in directories]
        for experiment in experiments:
            for line in describe(experiment.rows):
                print(f"{experiment.name}: {line}", file=sys.stderr)
        return plot_runs(experiments, x)
    if len(directories) > 1:
        raise LogError("--trace draws one experiment: give one folder")
    directory = directories[0]
    rows = read_trace(directory, policy_id)
    return plot_trace(
        rows, f"{directory.resolve().name}: every gradient step", read_config(directory).get("fixup", "every_epoch")
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 where something to plot is missing."""
    parser = argparse.ArgumentParser(prog="python -m sf_fixpo.plot", description="Plots experiments from their logs.")
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="experiment folder")
    parser.add_argument("--out", type=Path, help="PNG file; default: plot.png or trace.png in the first folder")
    parser.add_argument("--trace", action="store_true", help="draw trace.jsonl, every gradient step (the paper's Figure 2)")
    parser.add_argument("--x", choices=tuple(X_LABELS), default="env_steps", help="horizontal axis")
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    args = cli.parse(parser, argv)
    out = args.out or args.dirs[0] / ("trace.png" if args.trace else "plot.png")
    try:
        figure = make_figure(args.dirs, args.trace, args.x, args.policy_id)
        figure.savefig(out, dpi=130, format="png")
    except (LogError, OSError) as exc:
        print(f"Nothing plotted: {exc}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
