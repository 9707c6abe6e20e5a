"""A figure out of its raw rows: one panel a task, a line a variant with its 95 % t interval, every seed a dot; and a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.compare import interval
from sf_fixpo.plot import PALETTE

Row = Mapping[str, Any]
# Gaussian: entropy = sum over the actions of log sigma + this
_UNIT_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
ACTIONS = {"mujoco_Walker2d": 6, "mujoco_HalfCheetah": 6, "mujoco_Hopper": 3, "mujoco_Swimmer": 2, "mujoco_Reacher": 2}
LABELS = {
    "return": "return",
    "success": "success",
    "fixup_per_update": "fixup steps an update",
    "kl_max_rel": "largest KL / eps_kl",
    "action_std": "standard deviation of the actions",
}


def value(row: Row, column: str) -> float | None:
    """What is drawn of a row; None where it has no such number.

    Args:
        row: as `rows.read` gives it.
        column: one of the CSV, `fixup_per_update`, or `action_std` (geometric mean over the actions, from the entropy).
    """
    if column == "fixup_per_update":
        return None if not row["updates"] else row["fixup_steps"] / row["updates"]
    if column == "action_std":
        if row["entropy"] is None or row["env"] not in ACTIONS:
            return None
        return math.exp(row["entropy"] / ACTIONS[row["env"]] - _UNIT_ENTROPY)
    return row[column]


def runs(rows: Sequence[Row], column: str) -> dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]]:
    """By variant, task and seed: steps [n] and values [n], where there are any."""
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row in rows:
        if (y := value(row, column)) is not None:
            found.setdefault((row["variant"], row["env"], row["seed"]), []).append((row["steps"], y))
    return {key: tuple(np.asarray(points, dtype=float).T) for key, points in found.items()}  # type: ignore[misc]


def final(steps: np.ndarray, values: np.ndarray) -> float:
    """Mean over the last tenth of the steps."""
    return float(values[steps > 0.9 * steps[-1]].mean())


def scores(rows: Sequence[Row], column: str = "return", of: Callable[..., float] = final) -> dict[str, dict[str, list[float]]]:
    """By variant and task: one number of each seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for (variant, env, _), curve in runs(rows, column).items():
        found.setdefault(variant, {}).setdefault(env, []).append(of(*curve))
    return found


def shown(mean: float, half: float) -> str:
    """Four significant digits and the half width of the interval, where there is one."""
    return f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.3g}"


def table(rows: Sequence[Row], column: str) -> str:
    """Markdown: by task and variant how many seeds, the final value, the worst KL, fixup steps, seconds an update."""
    heads = ["task", "variant", "seeds", LABELS[column], "worst KL / eps_kl", "fixup / primary steps", "s an update", "s a run"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    finals = scores(rows, column)
    for env, variant in sorted({(row["env"], row["variant"]) for row in rows}):
        mine = [row for row in rows if (row["env"], row["variant"]) == (env, variant)]
        values = finals.get(variant, {}).get(env, [])
        logged = [row for row in mine if row["updates"]]
        cells = [env, variant, str(len({row["seed"] for row in mine})), shown(*interval(values)) if values else "none logged"]
        if logged:
            share = sum(r["fixup_steps"] for r in logged) / max(1, sum(r["primary_steps"] for r in logged))
            updates = sum(r["updates"] for r in logged)
            seconds = sum(r["update_seconds"] * r["updates"] for r in logged) / updates
            cells += [f"{max(r['kl_max_rel'] for r in logged):.3f}", f"{100 * share:.2f} %", f"{seconds:.3f}"]
        else:
            cells += ["", "", ""]
        last: dict[int, float] = {}
        for row in mine:
            last[row["seed"]] = max(last.get(row["seed"], 0.0), row["seconds"] or 0.0)
        lines.append(f"| {' | '.join([*cells, f'{np.mean(list(last.values())):.0f}'])} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], column: str, title: str) -> Figure:
    """One panel a task; the band is the 95 % interval of the mean by Student's t where there are two seeds or more."""
    envs, variants = sorted({row["env"] for row in rows}), list(dict.fromkeys(row["variant"] for row in rows))
    columns = min(3, len(envs))
    figure = Figure(figsize=(5 * columns, 3.6 * math.ceil(len(envs) / columns)), layout="constrained")
    panels = figure.subplots(math.ceil(len(envs) / columns), columns, squeeze=False).flatten()
    curves = runs(rows, column)
    for panel, env in zip(panels, envs, strict=False):
        panel.set(title=env, xlabel="steps", ylabel=LABELS[column])
        panel.xaxis.set_major_formatter(EngFormatter())
        for number, variant in enumerate(variants):
            own = [curve for key, curve in curves.items() if key[:2] == (variant, env)]
            _draw_variant(panel, own, PALETTE[number % len(PALETTE)], "-" if number < len(PALETTE) else "--", variant)
    for panel in panels[len(envs) :]:
        panel.set_axis_off()
    figure.suptitle(title)
    if curves:
        figure.legend(*_legend(panels), loc="outside lower center", ncols=min(6, len(variants)))
    return figure


def _legend(panels: Iterable[Any]) -> tuple[list[Any], list[str]]:
    by_label = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    return list(by_label.values()), list(by_label)


def _draw_variant(panel: Any, curves: Sequence[tuple[np.ndarray, np.ndarray]], color: str, style: str, label: str) -> None:
    for steps, values in curves:
        panel.plot(steps, values, color=color, linewidth=0.6, alpha=0.4)
        panel.plot(steps[-1], values[-1], "o", color=color, markersize=3)
    if not curves:
        return
    # where every seed has logged something
    low, high = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.linspace(low, high, 60) if high > low else np.asarray([high])
    each = np.stack([np.interp(grid, *curve) for curve in curves])
    panel.plot(grid, each.mean(0), color=color, linestyle=style, linewidth=1.8, label=label)
    if len(curves) > 1:
        bands = np.asarray([interval(list(column)) for column in each.T])
        panel.fill_between(grid, bands[:, 0] - bands[:, 1], bands[:, 0] + bands[:, 1], color=color, alpha=0.15, linewidth=0)


def draw_traces(traces: Mapping[str, Sequence[Row]], title: str) -> Figure:
    """Figure 2: largest KL over eps_kl and beta at every gradient step of the traced updates; one panel a run."""
    figure = Figure(figsize=(10, 3.2 * len(traces)), layout="constrained")
    for panel, (name, steps) in zip(figure.subplots(len(traces), 1, squeeze=False).flatten(), traces.items(), strict=True):
        x = np.arange(len(steps))
        fixup = np.asarray([step["phase"] == "fixup" for step in steps])
        kl = np.asarray([step["kl_max"] / step["eps_kl"] for step in steps])
        panel.plot(x, kl, ".", color=PALETTE[0], markersize=3, label="primary steps")
        panel.plot(x[fixup], kl[fixup], ".", color=PALETTE[1], markersize=4, label="fixup steps")
        panel.axhline(1.0, color="black", linewidth=0.8)
        panel.axhline(1 / steps[0]["c_beta"], color="black", linewidth=0.8, linestyle=":")
        panel.set(title=name, xlabel="gradient step", ylabel="largest KL / eps_kl")
        beta = panel.twinx()
        beta.plot(x, [step["beta"] for step in steps], color=PALETTE[2], linewidth=0.8, label="beta")
        beta.set_ylabel("beta")
        panel.legend(loc="upper left")
    figure.suptitle(title)
    return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """As PNG and SVG; the same numbers make the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "sf_fixpo"}):
        figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return [path.with_suffix(".png"), path.with_suffix(".svg")]
