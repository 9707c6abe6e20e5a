"""Charts as inline SVG: drawn here, with colours by class, so that a page's style sheet decides about light and dark.

Text is as large as the page's own where a chart is 400 pixels wide, which is what a column of a page is, on a telephone too.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sf_fixpo.records.comparison import Band

COLORS = 7  # of the style sheet; from there on lines are dashed
WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 38
_ROOM = 0.5  # of the height that the lines take: what their intervals may add above and below
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: in the legend.
        band: its points, and the interval around them where there is one.
        color: number of its colour; of several with the same one only the first is in the legend.
    """

    label: str
    band: Band
    color: int


@dataclass(frozen=True)
class Chart:
    """A picture of lines.

    Attributes:
        title: over it.
        note: below the title: what is drawn.
        unit: of the vertical axis.
        series: the lines; none: the chart says so.
        levels: (value, what it is) of horizontal lines.
        from_zero: whether the vertical axis starts at 0.
        log: whether it is logarithmic; values that are not positive are left out.
    """

    title: str
    note: str
    unit: str
    series: Sequence[Series]
    levels: Sequence[tuple[float, str]] = ()
    from_zero: bool = False
    log: bool = False


@dataclass(frozen=True)
class Bars:
    """Rows of parts, one after the other: what something is made of.

    Attributes:
        title: over it.
        note: below the title.
        unit: of the parts.
        rows: (label, part by name).
    """

    title: str
    note: str
    unit: str
    rows: Sequence[tuple[str, dict[str, float]]] = field(default_factory=tuple)


def short_number(value: float) -> str:
    """A number as an axis has it: 60k, 1.5M, 0.02."""
    if not math.isfinite(value):
        return "n/a"
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.4g}{prefix}"
    return f"{value:.3g}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two others, at most so many."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from below the one to above the other, not more than seven of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**i for i in range(first, last + 1, max(1, math.ceil((last - first) / 6)))]


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def at_x(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - low) / ((high - low) or 1.0)

    def at_y(self, value: float) -> float:
        low, high = self.y
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / ((high - low) or 1.0)


def _axes(chart: Chart) -> _Axes:
    """Room for every point and level, and for the intervals as far as they do not make the lines flat."""
    bands = [series.band for series in chart.series]
    steps = np.concatenate([band.x for band in bands])
    y = np.concatenate([*(band.y for band in bands), np.asarray([value for value, _ in chart.levels])])
    y = y[np.isfinite(y) & (y > 0 if chart.log else True)]
    if not len(y):
        y = np.asarray([0.1, 1.0])
    low, high = float(y.min()), float(y.max())
    ends = [band.y + sign * band.half for band in bands if band.half is not None for sign in (-1, 1)]
    if ends and not chart.log:
        room = _ROOM * (high - low or abs(high))
        around = np.concatenate(ends)
        around = around[np.isfinite(around)]
        low, high = max(low - room, float(min(around, default=low))), min(high + room, float(max(around, default=high)))
        low, high = min(low, float(y.min())), max(high, float(y.max()))
    if chart.log:
        powers = log_ticks(low, high)
        low, high = min(low, powers[0]), max(high, powers[-1])
        return _Axes((float(steps.min()), float(steps.max())), (low, high if high > low else 10 * low), True)
    low = min(0.0, low) if chart.from_zero else low
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    bottom = low if chart.from_zero and low == 0 else low - margin
    return _Axes((float(steps.min()), float(steps.max())), (bottom, high + margin), False)


def color_class(color: int) -> str:
    """The class of a line's colour."""
    return f"c{color % COLORS}{' dashed' if color // COLORS % 2 else ''}"


def _path(axes: _Axes, x: np.ndarray, y: np.ndarray) -> str:
    """A line through the points, broken where a value is no number, or not positive on a logarithmic axis."""
    parts, pen = [], "M"
    for at, value in zip(x.tolist(), y.tolist(), strict=True):
        if not math.isfinite(value) or (axes.log and value <= 0):
            pen = "M"
            continue
        parts.append(f"{pen}{axes.at_x(at):.1f} {axes.at_y(value):.1f}")
        pen = "L"
    return "".join(parts)


def _draw_series(axes: _Axes, series: Series) -> str:
    band, color = series.band, color_class(series.color)
    shapes = []
    if band.half is not None and np.isfinite(band.half).all() and not axes.log:
        x = np.concatenate([band.x, band.x[::-1]])
        y = np.clip(np.concatenate([band.y - band.half, (band.y + band.half)[::-1]]), *axes.y)
        shapes.append(f'<path class="band {color}" d="{_path(axes, x, y)}Z"/>')
    shapes.append(f'<path class="line {color}" d="{_path(axes, band.x, band.y)}"/>')
    if len(band.x) <= 20:
        at = [
            (x, y) for x, y in zip(band.x.tolist(), band.y.tolist(), strict=True) if math.isfinite(y) and (y > 0 or not axes.log)
        ]
        shapes += [f'<circle class="dot {color}" cx="{axes.at_x(x):.1f}" cy="{axes.at_y(y):.1f}" r="2.5"/>' for x, y in at]
    return "".join(shapes)


def _draw_frame(axes: _Axes, chart: Chart, x_label: str) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    shapes = []
    for value in log_ticks(*axes.y) if axes.log else ticks(*axes.y):
        at = axes.at_y(value)
        shapes.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        shapes.append(f'<text x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{short_number(value)}</text>')
    for value in ticks(*axes.x, most=5):
        at = axes.at_x(value)
        shapes.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        shapes.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{short_number(value)}</text>')
    for value, _ in chart.levels:
        shapes.append(f'<path class="level" d="M{_LEFT} {axes.at_y(value):.1f}H{right}"/>')
    middle = (_LEFT + right) / 2
    shapes.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    return "".join(shapes)


def _summary(chart: Chart) -> str:
    """What a reader hears who sees no picture: where each line starts and ends."""
    parts = []
    for series in chart.series:
        known = series.band.y[np.isfinite(series.band.y)]
        if len(known):
            parts.append(f"{series.label}: from {short_number(known[0])} to {short_number(known[-1])}")
    return f"{chart.title}. {chart.note} " + "; ".join(parts)


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours; none for a single one without a name."""
    items = [f'<li><span class="swatch {color}"></span>{html.escape(name)}</li>' for name, color in entries if name]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _data(chart: Chart, axes: _Axes) -> str:
    """What the page's script reads values from: lines and, in the picture's units, where the axes are."""
    series = [
        {
            "label": series.label,
            "x": [round(value, 3) for value in series.band.x.tolist()],
            "y": [float(f"{value:.5g}") if math.isfinite(value) else None for value in series.band.y.tolist()],
        }
        for series in chart.series
    ]
    content = {"x": axes.x, "left": _LEFT, "right": WIDTH - _RIGHT, "series": series}
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _figure(title: str, note: str, body: str, number: str) -> str:
    caption = f'<figcaption id="{number}"><strong>{html.escape(title)}</strong><small>{html.escape(note)}</small></figcaption>'
    return f"<figure>{caption}{body}</figure>"


def draw(chart: Chart, number: int, x_label: str = "environment steps") -> str:
    """The chart as HTML: caption, SVG, legend, and its data for the page's script.

    Args:
        chart: what to draw.
        number: of the chart on the page.
        x_label: below the horizontal axis.
    """
    caption = f"chart{number}"
    if not chart.series:
        return _figure(chart.title, chart.note, '<p class="empty">not in these logs</p>', caption)
    axes = _axes(chart)
    body = _draw_frame(axes, chart, x_label) + "".join(_draw_series(axes, series) for series in chart.series)
    cursor = f'<path class="cursor" d="M0 {_TOP}V{HEIGHT - _BOTTOM}" visibility="hidden"/>'
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{html.escape(_summary(chart))}">'
        f"{body}{cursor}</svg>"
    )
    labels: dict[str, str] = {}
    for series in chart.series:
        labels.setdefault(color_class(series.color), series.label)
    legend = _legend([(name, color) for color, name in labels.items()] + [(name, "rule") for _, name in chart.levels])
    unit = f'<p class="unit">{html.escape(chart.unit)}</p>' if chart.unit else ""
    readout = '<p class="readout" aria-live="polite"></p>'
    return _figure(chart.title, chart.note, unit + svg + readout + legend + _data(chart, axes), caption)


def draw_bars(bars: Bars, number: int) -> str:
    """The bars as HTML, with what each part is in words too."""
    rows = [(label, {name: value for name, value in parts.items() if value > 0}) for label, parts in bars.rows]
    rows = [(label, parts) for label, parts in rows if parts]
    if not rows:
        return _figure(bars.title, bars.note, '<p class="empty">not in these logs</p>', f"chart{number}")
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    longest = max(sum(parts.values()) for _, parts in rows)
    height, shapes = 44, []
    for row, (label, parts) in enumerate(rows):
        x, y = 0.0, row * height
        total = sum(parts.values())
        shapes.append(
            f'<text x="0" y="{y + 14}">{html.escape(_cut(label))}: {short_number(total)} {html.escape(bars.unit)}</text>'
        )
        for name, value in parts.items():
            width = WIDTH * value / longest
            said = f"{name}: {value:.3g} {bars.unit}, {100 * value / total:.0f} %"
            color = color_class(names.index(name))
            shapes.append(
                f'<rect class="bar {color}" x="{x:.1f}" y="{y + 20}" width="{max(width, 0.1):.1f}" height="16">'
                f"<title>{html.escape(said)}</title></rect>"
            )
            x += width
    words = "; ".join(f"{label}: " + ", ".join(f"{k} {v:.3g}" for k, v in parts.items()) for label, parts in rows)
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {len(rows) * height}" role="img" tabindex="0" '
        f'aria-label="{html.escape(f"{bars.title}, {bars.unit}. {words}")}">{"".join(shapes)}</svg>'
    )
    return _figure(
        bars.title, bars.note, svg + _legend([(name, color_class(i)) for i, name in enumerate(names)]), f"chart{number}"
    )


def _cut(text: str, most: int = 48) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
