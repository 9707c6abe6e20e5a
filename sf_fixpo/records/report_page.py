"""The page of a report: one HTML document that needs nothing else, from what `report_data` has read."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from sf_fixpo import __version__
from sf_fixpo.records.charts import draw, draw_bars, short_number
from sf_fixpo.records.comparison import REPETITION, differing, interval, last_tenth, value_text
from sf_fixpo.records.report_charts import charts_of, phase_bars
from sf_fixpo.records.report_data import Group, RunData, is_enforced, kls_over_bound

_TEMPLATE = Path(__file__).with_name("report_template.html")
_MOST_FILMS = 4
_SHOWN_FAULT_FREE = "Nothing to report: no update undone, none went back, no rule of the health check held."


def make_page(groups: Sequence[Group], when: str) -> str:
    """The document.

    Args:
        groups: of runs, one at least.
        when: it is made, in words.
    """
    runs = [run for group in groups for run in group.runs]
    sections = {
        "Summary": _verdict(runs) + _summary(groups),
        "Charts": _charts(groups),
        "Faults": _faults(runs),
        "Evaluations": _evaluations(groups),
        "What differs": _differences(runs),
        "Configuration": _configuration(runs),
        "Films": _films(runs),
    }
    sections = {name: content for name, content in sections.items() if content}
    envs = ", ".join(dict.fromkeys(str(run.experiment.config.get("env")) for run in runs))
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(runs[0].name if len(runs) == 1 else f"{len(runs)} runs on {envs}"),
        lead=html.escape(f"{_count(len(runs), 'run')} in {_count(len(groups), 'group')} on {envs}, {when}"),
        links="".join(f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name in sections),
        sections="\n".join(
            f'<section aria-labelledby="{_anchor(name)}"><h2 id="{_anchor(name)}">{name}</h2>{content}</section>'
            for name, content in sections.items()
        ),
        footer=f"sf_fixpo {__version__}",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table that scrolls for itself where it is wide; cells that begin like a number are set to the right.

    Args:
        heads: of the columns.
        rows: of plain text.
        caption: for who does not see it.
    """
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
    lines = []
    for row in rows:
        cells = [
            f'<td class="n">{html.escape(text)}</td>' if _is_number(text) else f"<td>{html.escape(text)}</td>" for text in row
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">{body}</div>'


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or (text[:1] in "-+" and text[1:2].isdigit())


def with_interval(values: Sequence[float]) -> str:
    """Mean and half width of its 95 % interval over runs, as text; `n/a` without a value."""
    known = [value for value in values if math.isfinite(value)]
    mean, half = interval(known)
    return "n/a" if math.isnan(mean) else f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}"


def _worst(run: RunData) -> float:
    return float(np.max(kls_over_bound(run.rows))) if run.rows else math.nan


def _beta_at_end(run: RunData) -> float:
    return float(np.mean(run.rows[-1]["beta"])) if run.rows else math.nan


def _fixup_share(run: RunData) -> float:
    primary = sum(row["primary_steps"] for row in run.rows)
    return 100 * sum(row["fixup_steps"] for row in run.rows) / primary if primary else math.nan


def _end(run: RunData) -> float:
    return float(run.rows[-1]["env_steps"]) if run.rows else float(max(run.experiment.return_steps, default=math.nan))


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _verdict(runs: Sequence[RunData]) -> str:
    """Whether the guarantee held, in a sentence."""
    bound = [run for run in runs if run.rows and is_enforced(run.experiment.config)]
    if not bound:
        others = "<code>--fixup=off</code>, <code>--kl_stat=mean</code>, or another algorithm"
        return f"<p>No run here promises a bound at every state ({others}).</p>"
    updates = sum(len(run.rows) for run in bound)
    broken = sum(int((~(kls_over_bound(run.rows) <= 1)).sum()) for run in bound)
    worst = float(np.max([_worst(run) for run in bound]))  # what is no number stays so
    said = f"at {updates:,} updates of {_count(len(bound), 'run')} the largest KL / eps_kl was {worst:.4f}"
    if broken:
        return f'<p><span class="bad">The guarantee is broken</span> at {broken:,} updates: {said}.</p>'
    return f'<p><span class="good">The guarantee held</span>: {said}. <code>fixpo-audit</code> recomputes it.</p>'


def _summary(groups: Sequence[Group]) -> str:
    heads = ("group", "runs", "return, last tenth", "worst KL / eps_kl", "beta at the end", "fixup steps, %")
    heads += ("steps", "frames/s", "faults")
    rows = []
    for group in groups:
        runs = group.runs
        worst = float(np.max([_worst(run) for run in runs if run.rows] or [math.nan]))
        rows.append(
            (
                group.name if group.label == group.name else f"{group.label}: {group.name}",
                str(len(runs)),
                with_interval([last_tenth(run.experiment.return_steps, run.experiment.returns) for run in runs]),
                "n/a" if math.isnan(worst) else f"{worst:.4f}",
                with_interval([_beta_at_end(run) for run in runs]),
                with_interval([_fixup_share(run) for run in runs]),
                short_number(_mean([_end(run) for run in runs])),
                with_interval([float(run.fps[:, 1].mean()) if len(run.fps) else math.nan for run in runs]),
                str(sum(len(run.faults) for run in runs)),
            )
        )
    note = "<p>Mean over the runs of a group ± half the width of its 95 % interval (Student's t), where there are several.</p>"
    return table(heads, rows, "Summary of the groups") + note


def _charts(groups: Sequence[Group]) -> str:
    drawn = [draw(chart, number) for number, chart in enumerate(charts_of(groups))]
    drawn.append(draw_bars(phase_bars(groups), len(drawn)))
    hint = "<p>A chart that has the focus reads its values out with the arrow keys.</p>"
    return f'{hint}<div class="charts">{"".join(drawn)}</div>'


def _faults(runs: Sequence[RunData]) -> str:
    rows = [(run.name, fault) for run in runs for fault in run.faults]
    return table(("run", "what"), rows, "Faults") if rows else f"<p>{_SHOWN_FAULT_FREE}</p>"


def _evaluations(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        for run in group.runs:
            for row in run.evaluations:
                for level, result in row["levels"].items():
                    se = "n/a" if result.get("se") is None else f"{result['se']:.3g}"
                    at = f"{row['env_steps']:,}"
                    rows.append((run.name, level, str(row.get("engine")), at, f"{result['mean']:.4g}", se, str(result["n"])))
            for score in run.scores:
                se = "n/a" if score.se is None else f"{score.se:.3g}"
                rows.append((run.name, score.level, score.engine, score.agent, f"{score.mean:.4g}", se, str(score.episodes)))
    heads = ("run", "level", "engine", "steps or checkpoint", "mean return", "standard error", "episodes")
    return table(heads, rows, "Evaluations") if rows else ""


def _differences(runs: Sequence[RunData]) -> str:
    if len(runs) == 1:
        return ""
    configs = [run.experiment.config for run in runs]
    names = differing(configs)
    if not names:
        return "<p>All settings are the same.</p>"
    names = [name for name in names if name != REPETITION] + [name for name in names if name == REPETITION]
    rows = [(run.name, *(value_text(config.get(name, ...)) for name in names)) for run, config in zip(runs, configs, strict=True)]
    return table(("run", *names), rows, "Settings that differ")


def _configuration(runs: Sequence[RunData]) -> str:
    """Every setting that all runs share, and each run's command."""
    configs = [run.experiment.config for run in runs]
    different = set(differing(configs))
    shared: Mapping[str, Any] = {name: value for name, value in sorted(configs[0].items()) if name not in different}
    left_out = ("cli_args", "command_line", "experiment", "train_dir")
    rows = [(f"--{name}", value_text(value)) for name, value in shared.items() if name not in left_out]
    settings = table(("flag", "value"), rows, "Settings")
    commands = [(run.name, str(config.get("command_line") or "")) for run, config in zip(runs, configs, strict=True)]
    commands = [pair for pair in commands if pair[1]]
    shown = table(("run", "command line"), commands, "Commands") if commands else ""
    what = "All settings" if len(runs) == 1 else "What all runs share"
    return f"{shown}<details><summary>{what}: {len(rows)} flags</summary>{settings}</details>"


def _films(runs: Sequence[RunData]) -> str:
    films = [(run.name, path) for run in runs for path in run.films[-1:]][:_MOST_FILMS]
    figures = []
    for name, path in films:
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure><video controls preload="metadata" src="data:video/mp4;base64,{data}"></video>'
            f"<figcaption>{html.escape(name)}: {html.escape(path.name)}</figcaption></figure>"
        )
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""
