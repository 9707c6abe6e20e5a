"""Runs drawn in a terminal: one as a panel, a few side by side, many as a table. Made of rich's pieces, from `View`s."""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sf_fixpo.records.live import View, duration_text, number_text, size_text, sparkline

PANEL_WIDTH = 62
_MOST_PANELS = 4
_SPARK = 24
_MOST_TASKS = 12
_STATES = {"running": "cyan", "starting": "dim", "finished": "green"}


def _kl_style(kl: float | None) -> str:
    if kl is None:
        return ""
    return "green" if kl <= 1 else "bold red"


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if len(values) else None


def _state(view: View) -> Text:
    return Text(view.state, style=_STATES.get(view.state, "yellow"))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _bar(view: View) -> RenderableType:
    if view.target is None:
        return Text(f"{view.steps:,} steps")
    grid = Table.grid(padding=(0, 1))
    left = "" if view.is_over else f"{duration_text(view.seconds_left)} left"
    bar = ProgressBar(total=max(1, view.target), completed=min(view.steps, view.target), width=14)
    grid.add_row(bar, Text(f"{view.steps:,} / {view.target:,}"), Text(left, style="bold"))
    return grid


def _phases(view: View) -> Text:
    """The three phases of an update that take most, as shares of its time."""
    total = sum(view.phases.values())
    if not total:
        return Text("-")
    largest = sorted(view.phases.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in largest)
    return Text(f"{1000 * total:,.0f} ms: {shares}")


def _usage(view: View) -> Text:
    usage = view.usage
    if usage is None:
        return Text("-")
    text = f"{usage.cpu:.1f} cores, {size_text(usage.memory)}, {usage.processes} processes"
    return Text(f"{text}, GPU {usage.gpu}" if usage.gpu else text)


def _tasks(view: View) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("task", overflow="ellipsis", no_wrap=True, max_width=24)
    for name in ("return", "KL", "beta", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, figures in list(view.tasks.items())[:_MOST_TASKS]:
        cells = [number_text(figures.get(key), form) for key, form in (("return", ".2f"), ("kl_max", ".3f"), ("beta", ".3g"))]
        table.add_row(Text(name), *cells, _percent(figures.get("sample_share")))
    if len(view.tasks) > _MOST_TASKS:
        table.add_row(f"and {len(view.tasks) - _MOST_TASKS} more")
    return table


def draw_panel(view: View, width: int = PANEL_WIDTH) -> Panel:
    """One run, in so many columns at most."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    kl = _last(view.kl)
    lines: list[tuple[str, RenderableType]] = [
        ("steps", _bar(view)),
        ("FPS", Text(number_text(view.fps, ",.0f"))),
        ("return", Text(f"{number_text(_last(view.returns), '.2f'):<9}{sparkline(view.returns, _SPARK)}")),
    ]
    if len(view.kl):
        bound = sparkline(view.kl, _SPARK, 0.0, 1.0)
        lines += [
            (
                "KL/eps_kl",
                Text(f"{number_text(kl, '.2f'):<9}{bound}  worst {number_text(view.worst, '.3f')}", _kl_style(view.worst)),
            ),
            ("beta", Text(f"{number_text(_last(view.beta), '.3g'):<9}{sparkline(view.beta, _SPARK)}")),
            ("fixup", Text(f"{_percent(view.fixup)} of the primary steps")),
            ("samples", Text(f"{number_text(view.lag, '.1f')} versions old, {_percent(view.stale)} stale")),
            ("update", _phases(view)),
        ]
    lines.append(("machine", _usage(view)))
    if view.health:
        lines.append(("health", Text(", ".join(view.health), style="bold yellow")))
    for name, content in lines:
        grid.add_row(name, content)
    body = Group(grid, _tasks(view)) if view.tasks else grid
    title = Text.assemble((view.name, "bold"), "  ", _state(view))
    return Panel(
        body, title=title, subtitle=Text(view.what), title_align="left", subtitle_align="left", width=min(width, PANEL_WIDTH)
    )


def draw_table(views: Sequence[View], most: int) -> RenderableType:
    """Many runs, a line each; those that run come first where not all have room.

    Args:
        views: of the runs.
        most: lines.
    """
    shown = list(views) if len(views) <= most else sorted(views, key=lambda view: view.is_over)[:most]
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("steps", "left", "FPS", "return"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for name in ("KL/eps", "worst", "beta", "fixup"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("health")
    for view in shown:
        done = f"{view.steps:,}" if not view.target else f"{100 * min(1.0, view.steps / view.target):.0f} %"
        table.add_row(
            Text(view.name),
            _state(view),
            done,
            "" if view.is_over else duration_text(view.seconds_left),
            number_text(view.fps, ",.0f"),
            number_text(_last(view.returns), ".2f"),
            Text(sparkline(view.returns, 12)),
            number_text(_last(view.kl), ".2f"),
            Text(number_text(view.worst, ".3f"), _kl_style(view.worst)),
            number_text(_last(view.beta), ".3g"),
            _percent(view.fixup),
            Text(", ".join(view.health), style="yellow"),
        )
    rest = [Text(f"and {len(views) - len(shown)} more")] if len(shown) < len(views) else []
    return Group(table, *rest)


def draw(views: Sequence[View], width: int, height: int) -> RenderableType:
    """As many as there are, in a window of so many columns and lines."""
    if len(views) <= _MOST_PANELS:
        return Columns([draw_panel(view, width) for view in views])
    return draw_table(views, max(1, height - 4))
