"""What a policy thinks, drawn beside what its environment shows: action distribution, value, reward.

Frames and pictures are uint8 [height, width, 3], RGB; coordinates are (x, y), pixels from the upper left corner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw, ImageFont

PANEL_WIDTH = 320
MAX_CATEGORIES = 20  # of one head: beyond, the likeliest are drawn
MAX_ROWS = 40  # of all heads

_MARGIN, _ROW, _HISTORY_TOP, _ROWS_TOP = 10, 16, 54, 104
_BAR_LEFT, _BAR_RIGHT = 164, 272
_BACKGROUND, _TROUGH, _TEXT, _DIM = (22, 24, 30), (44, 48, 58), (228, 230, 235), (150, 155, 165)
_BAR, _CHOSEN, _LINE = (84, 124, 196), (255, 168, 38), (112, 204, 146)
_UNBOUNDED = 3.0  # axis of a Gaussian whose action space has no bounds: from -3 to 3


@dataclass(frozen=True)
class Categories:
    """A categorical head at one step.

    Attributes:
        probabilities: one for each category.
        chosen: number of the category that was chosen.
    """

    probabilities: np.ndarray
    chosen: int


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian head at one step; all arrays have one entry for each dimension.

    Attributes:
        means: of the distribution.
        stds: its standard deviations.
        chosen: the action, before the environment clips it.
    """

    means: np.ndarray
    stds: np.ndarray
    chosen: np.ndarray


@dataclass(frozen=True)
class Moment:
    """One step of an episode.

    Attributes:
        frame: what the environment showed when the action was chosen.
        heads: of the action distribution, in order.
        value: the critic's estimate of the discounted sum of rewards from here on.
        reward: what the step brought.
        episode_return: sum of the episode's rewards, this one included.
        step: its number, from 1.
        done: whether the episode ended with it.
    """

    frame: np.ndarray
    heads: tuple[Categories | Gaussian, ...]
    value: float
    reward: float
    episode_return: float
    step: int
    done: bool


@dataclass(frozen=True)
class _Row:
    """One line of the panel: a trough, a bar from `start` to `end`, and (x, color) of marks; all in [0, 1] along the trough."""

    label: str
    start: float
    end: float
    marks: tuple[tuple[float, tuple[int, int, int]], ...]
    number: str
    highlighted: bool


def dmlab_action_labels(actions: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Short names of DeepMind Lab's actions, such as `forward + small look left`.

    Args:
        actions: seven numbers each: look right, look down (pixels), strafe right, move forward, fire, jump, crouch. Where a set
            turns by several amounts, the least is called small and the others large.
    """
    least = [min((abs(action[axis]) for action in actions if action[axis]), default=0) for axis in (0, 1)]
    several = [len({abs(action[axis]) for action in actions if action[axis]}) > 1 for axis in (0, 1)]

    def look(action: Sequence[int], axis: int, negative: str, positive: str) -> str:
        size = ("small " if abs(action[axis]) == least[axis] else "large ") if several[axis] else ""
        return _signed(action[axis], f"{size}look {negative}", f"{size}look {positive}")

    return tuple(
        " + ".join(
            filter(
                None,
                [
                    _signed(action[3], "backward", "forward"),
                    _signed(action[2], "strafe left", "strafe right"),
                    look(action, 0, "left", "right"),
                    look(action, 1, "up", "down"),
                    *(name for name, on in zip(("fire", "jump", "crouch"), action[4:], strict=True) if on),
                ],
            )
        )
        or "nothing"
        for action in actions
    )


def _signed(number: int, negative: str, positive: str) -> str:
    return "" if number == 0 else (negative if number < 0 else positive)


def upscale(frame: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel as a square of `factor` x `factor`."""
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


class Overlay:
    """Draws the moments of one episode, in order: the frame at the left, the panel at the right."""

    def __init__(
        self, title: str, action_space: spaces.Space, names: Sequence[str] | None = None, scale: int = 1, note: str = ""
    ):
        """Lays the panel out.

        Args:
            title: its first line.
            action_space: Discrete, one-dimensional Box, or a Tuple of these.
            names: of the actions of a Discrete space; None where they have none.
            scale: the frame is drawn this many times larger.
            note: a few words beside the value.
        """
        self._title, self._scale, self._note = title, scale, note
        is_tuple = isinstance(action_space, spaces.Tuple)
        self._spaces = tuple(action_space) if is_tuple else (action_space,)
        self._labels = [_labels(space, f"{i}: " if is_tuple else "", names) for i, space in enumerate(self._spaces)]
        rows = sum(min(len(labels), MAX_CATEGORIES) if _is_discrete(space) else len(labels) for space, labels in self._heads())
        self._hidden = max(0, rows - MAX_ROWS)
        self._rows = rows - self._hidden
        self._values: deque[float] = deque(maxlen=PANEL_WIDTH - 2 * _MARGIN)
        self._small, self._large = ImageFont.load_default(11), ImageFont.load_default(13)

    @property
    def panel_height(self) -> int:
        """Of the panel; a higher frame decides the picture's height."""
        return _ROWS_TOP + _ROW * (self._rows + (self._hidden > 0)) + 8

    @staticmethod
    def bar_box(row: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a row's trough, the last two exclusive, within the panel."""
        top = _ROWS_TOP + _ROW * row
        return _BAR_LEFT, top + 3, _BAR_RIGHT, top + _ROW - 2

    def draw(self, moment: Moment) -> np.ndarray:
        """The picture of a moment: as high as the higher one of frame and panel."""
        frame = upscale(moment.frame, self._scale)
        height, width = frame.shape[:2]
        picture = Image.new("RGB", (width + PANEL_WIDTH, max(height, self.panel_height)), _BACKGROUND)
        picture.paste(Image.fromarray(frame), (0, (picture.height - height) // 2))
        picture.paste(self._panel(moment), (width, 0))
        return np.asarray(picture)

    def _heads(self) -> list[tuple[spaces.Space, tuple[str, ...]]]:
        return list(zip(self._spaces, self._labels, strict=True))

    def _panel(self, moment: Moment) -> Image.Image:
        panel = Image.new("RGB", (PANEL_WIDTH, self.panel_height), _BACKGROUND)
        pen = ImageDraw.Draw(panel)
        pen.text((_MARGIN, 4), _fit(self._title, self._large, PANEL_WIDTH - 2 * _MARGIN), _TEXT, self._large)
        pen.text((_MARGIN, 21), f"step {moment.step}", _TEXT, self._small)
        pen.text((90, 21), f"reward {moment.reward:+.2f}", _CHOSEN if moment.reward else _DIM, self._small)
        pen.text((200, 21), f"return {moment.episode_return:.2f}", _TEXT, self._small)
        pen.text((_MARGIN, 37), f"value {moment.value:.3f}", _LINE, self._small)
        pen.text((200, 37), self._note, _DIM, self._small)
        self._draw_history(pen, moment.value)
        for index, row in enumerate(self._make_rows(moment)[: self._rows]):
            self._draw_row(pen, index, row)
        if self._hidden:
            pen.text((_MARGIN, _ROWS_TOP + _ROW * self._rows), f"and {self._hidden} more", _DIM, self._small)
        return panel

    def _draw_history(self, pen: ImageDraw.ImageDraw, value: float) -> None:
        self._values.append(value)
        bottom = _ROWS_TOP - 8
        pen.rectangle((_MARGIN, _HISTORY_TOP, PANEL_WIDTH - _MARGIN - 1, bottom), _TROUGH)
        values = np.nan_to_num(np.asarray(self._values))
        least, span = values.min(), max(float(np.ptp(values)), 1e-6)
        heights = bottom - 2 - (values - least) / span * (bottom - _HISTORY_TOP - 4)
        points = [(_MARGIN + x, float(y)) for x, y in enumerate(heights)]
        pen.line([*points, points[-1]], _LINE)

    def _make_rows(self, moment: Moment) -> list[_Row]:
        rows = []
        for (space, labels), head in zip(self._heads(), moment.heads, strict=True):
            if isinstance(head, Categories):
                rows += _category_rows(labels, head)
            else:
                rows += _gaussian_rows(labels, head, space)
        return rows

    def _draw_row(self, pen: ImageDraw.ImageDraw, index: int, row: _Row) -> None:
        left, top, right, bottom = self.bar_box(index)
        color = _CHOSEN if row.highlighted else _TEXT
        label = _fit(row.label, self._small, left - _MARGIN - 6)
        pen.text((_MARGIN, top - 2), label, color, self._small)
        pen.rectangle((left, top, right - 1, bottom - 1), _TROUGH)
        width = right - left - 1
        start, end = round(left + row.start * width), round(left + row.end * width)
        if end > start:
            pen.rectangle((start, top, end, bottom - 1), _CHOSEN if row.highlighted else _BAR)
        if row.highlighted:  # seen however small the bar is
            pen.rectangle((left, top, right - 1, bottom - 1), outline=_CHOSEN)
        for place, mark_color in row.marks:
            x = round(left + place * width)
            pen.rectangle((max(left, x - 1), top, min(right - 1, x + 1), bottom - 1), mark_color)
        pen.text((right + 6, top - 2), row.number, color, self._small)


def _is_discrete(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Discrete)


def _labels(space: spaces.Space, prefix: str, names: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(space, spaces.Discrete):
        if names is not None and not prefix and len(names) == space.n:
            return tuple(names)
        return tuple(f"{prefix}action {i}" for i in range(int(space.n)))
    return tuple(f"{prefix}dimension {i}" for i in range((space.shape or (0,))[0]))


def _category_rows(labels: Sequence[str], head: Categories) -> list[_Row]:
    shown: np.ndarray = np.arange(len(labels))
    if len(labels) > MAX_CATEGORIES:
        shown = np.argsort(-head.probabilities, kind="stable")[:MAX_CATEGORIES]
        if head.chosen not in shown:
            shown[-1] = head.chosen
    return [
        _Row(str(labels[i]), 0.0, float(p := np.nan_to_num(head.probabilities[i])), (), f"{p:.0%}", int(i) == head.chosen)
        for i in shown
    ]


def _gaussian_rows(labels: Sequence[str], head: Gaussian, space: spaces.Space) -> list[_Row]:
    """A bar of one standard deviation to either side of the mean, with marks at the mean and at the action."""
    bounded = isinstance(space, spaces.Box) and space.is_bounded()
    low = np.asarray(space.low if bounded else -_UNBOUNDED, float)  # type: ignore[attr-defined]
    high = np.asarray(space.high if bounded else _UNBOUNDED, float)  # type: ignore[attr-defined]

    def along(values: np.ndarray) -> np.ndarray:
        return np.clip(np.nan_to_num((values - low) / (high - low)), 0.0, 1.0)

    starts, ends = along(head.means - head.stds), along(head.means + head.stds)
    middles, actions = along(head.means), along(head.chosen)
    return [
        _Row(
            label,
            float(starts[i]),
            float(ends[i]),
            ((float(middles[i]), _TEXT), (float(actions[i]), _CHOSEN)),
            f"{head.chosen[i]:+.2f}",
            False,
        )
        for i, label in enumerate(labels)
    ]


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
