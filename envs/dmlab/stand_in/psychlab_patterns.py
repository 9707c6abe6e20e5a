"""psychlab_sequential_comparison and psychlab_visual_search: patterns of small signs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.panel import Gaze
from sf_fixpo.envs.dmlab.stand_in.trials import Box, Button, Rgb, Staircase, Trials, fill, inside

_RED, _AMBER, _LIME, _CYAN, _BLUE, _VIOLET, _PINK = (
    (255, 0, 0),
    (255, 191, 0),
    (127, 255, 0),
    (0, 255, 255),
    (0, 63, 255),
    (127, 0, 255),
    (255, 0, 191),
)
_TURQUOISE = (64, 224, 208)

_E = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]], bool)
_SQUARE = np.ones((5, 5), bool)
ORIENTATIONS = 4
SQUARE = ORIENTATIONS  # the sign after the four E


def _stamp(image: np.ndarray, raster: np.ndarray, left: float, top: float, size: float, colour: Rgb) -> None:
    """Paints a raster into a box of the panel, in place."""
    rows, columns = raster.shape
    for i, j in np.argwhere(raster):
        x, y = left + j * size / columns, top + i * size / rows
        fill(image, (x, y, x + size / columns, y + size / rows), colour)


@dataclass(frozen=True)
class Sign:
    """One sign of a pattern.

    Attributes:
        place: column and row, of 8 x 8.
        kind: 0 to 3 is an E turned by so many quarters, 4 a square.
        colour: its number.
    """

    place: tuple[int, int]
    kind: int
    colour: int


class SequentialComparison(Trials):
    """Two patterns one after the other: did one sign change its colour, its orientation, or what it is?"""

    side = 256
    COLOURS = (_RED, _AMBER, _LIME, _CYAN, _BLUE, _VIOLET, _PINK)
    KINDS = ("both", "colour", "orientation", "squares", "mixed")
    DELAYS = (8, 16, 32, 64, 128, 256)  # frames
    _PLACES = tuple((x, y) for x in range(7) for y in range(7) if not (2 <= x <= 5 and 2 <= y <= 5))
    _CORNER, _PLACE = 0.125, 0.75 / 8
    _FRAME_SIZE, _FRAME_CORNERS = 0.094, (0.3125, 0.5625)
    _NEW: Box = (0.0, 0.45, 0.1, 0.55)
    _SAME: Box = (0.9, 0.45, 1.0, 0.55)

    def _begin_episode(self) -> None:
        self.staircase = Staircase(len(self._PLACES))

    def _begin_trial(self) -> None:
        self.kind = self.KINDS[int(self.rng.integers(len(self.KINDS)))]
        chosen = self.rng.permutation(len(self._PLACES))[: self.staircase.level]
        same_kind, same_colour = int(self.rng.integers(ORIENTATIONS)), int(self.rng.integers(len(self.COLOURS)))
        self.pattern = [self._sign(self._PLACES[int(i)], same_kind, same_colour) for i in chosen]
        self.studied = list(self.pattern)
        self.differs = bool(self.rng.random() < 0.5)
        self.phase = "study"
        x, y = (self._FRAME_CORNERS[int(i)] for i in self.rng.integers(2, size=2))
        self.frame_box: Box = (x, y, x + self._FRAME_SIZE, y + self._FRAME_SIZE)
        self.filled = False

    def _sign(self, place: tuple[int, int], kind: int, colour: int) -> Sign:
        """A sign in which everything that the trial's kind leaves free is drawn."""
        free_colour, free_kind = int(self.rng.integers(len(self.COLOURS))), int(self.rng.integers(ORIENTATIONS))
        return {
            "both": Sign(place, free_kind, free_colour),
            "colour": Sign(place, kind, free_colour),
            "orientation": Sign(place, free_kind, colour),
            "squares": Sign(place, SQUARE, free_colour),
            "mixed": Sign(place, SQUARE if self.rng.random() < 0.5 else free_kind, free_colour),
        }[self.kind]

    def _change(self) -> None:
        """Changes one sign in what the trial's kind leaves free."""
        i = int(self.rng.integers(len(self.pattern)))
        sign = self.pattern[i]
        shifted_colour = (sign.colour + int(self.rng.integers(1, len(self.COLOURS)))) % len(self.COLOURS)
        turned = (sign.kind + int(self.rng.integers(1, ORIENTATIONS))) % ORIENTATIONS
        if self.kind == "mixed":
            self.pattern[i] = replace(sign, kind=int(self.rng.integers(ORIENTATIONS)) if sign.kind == SQUARE else SQUARE)
        elif self.kind == "orientation" or (self.kind == "both" and self.rng.random() < 0.5):
            self.pattern[i] = replace(sign, kind=turned)
        else:
            self.pattern[i] = replace(sign, colour=shifted_colour)

    def _wait(self, where: Gaze) -> None:
        """Study, until the gaze has been on the turquoise frame and left it; then a blank of so many frames."""
        if self.phase == "study":
            on = inside(where, self.frame_box)
            if self.filled and not on:
                self.phase = "blank"
                self.delay = self.DELAYS[int(self.rng.integers(len(self.DELAYS)))]
                self.changed()
            elif on and not self.filled:
                self.filled = True
                self.changed()
            return
        self.delay -= 1
        if self.delay <= 0:
            self.phase = "test"
            if self.differs:
                self._change()
            self.buttons = [Button(self._NEW, self.differs), Button(self._SAME, not self.differs)]
            self.changed()

    def _end_trial(self, right: bool) -> None:
        self.staircase.answer(right)

    def _draw(self, image: np.ndarray) -> None:
        if self.phase == "blank":
            return
        for sign in self.pattern:
            raster = _SQUARE if sign.kind == SQUARE else np.rot90(np.pad(_E, ((0, 0), (1, 1))), sign.kind)
            left, top = (self._CORNER + (p + 0.1) * self._PLACE for p in sign.place)
            _stamp(image, raster, left, top, 0.8 * self._PLACE, self.COLOURS[sign.colour])
        if self.phase == "study":
            fill(image, self.frame_box, _TURQUOISE)
            if not self.filled:
                left, top, right, bottom = self.frame_box
                rim = 0.02
                fill(image, (left + rim, top + rim, right - rim, bottom - rim), (255, 255, 255))


def _raster(*rows: str) -> np.ndarray:
    """A sign of 3 x 3 in its field of 4 x 4."""
    return np.pad(np.array([[mark == "X" for mark in row] for row in rows]), ((0, 1), (0, 1)))


class VisualSearch(Trials):
    """Is there a magenta T among the signs?"""

    frames = 150 * FRAMES_PER_SECOND
    trials = 80
    SHAPES: Mapping[str, np.ndarray] = {
        "T": _raster("XXX", ".X.", ".X."),
        "turned T": _raster(".X.", ".X.", "XXX"),
        "L": _raster("X..", "X..", "XXX"),
        "mirrored L": _raster("..X", "..X", "XXX"),
        "corner": _raster("XXX", "X..", "X.."),
        "mirrored corner": _raster("XXX", "..X", "..X"),
        "S": _raster(".XX", ".X.", "XX."),
        "Z": _raster("XX.", ".X.", ".XX"),
    }
    MAGENTA: Rgb = _PINK
    COLOURS: tuple[Rgb, ...] = (_PINK, _AMBER, _CYAN, _BLUE, _VIOLET)
    KINDS = ("shape", "colour", "conjunction")
    SET_SIZES = (1, 1, 1, 2, 2, 4, 8, 16, 24, 32)
    _PLACES, _CORNER, _PLACE = 7, 0.1, 56 / 512
    _ABSENT: Box = (0.35, 0.9, 0.45, 1.0)
    _PRESENT: Box = (0.55, 0.9, 0.65, 1.0)

    def _begin_episode(self) -> None:
        self.staircase = Staircase(len(self.SET_SIZES))

    def _begin_trial(self) -> None:
        kind = self.KINDS[int(self.rng.integers(len(self.KINDS)))]
        size = self.SET_SIZES[self.staircase.level - 1]
        others = self._others(kind)
        signs = [others[int(i)] for i in self.rng.integers(len(others), size=size)]
        present = bool(self.rng.random() < 0.5)
        if present:
            signs[0] = ("T", self.MAGENTA)
        places = self.rng.permutation(self._PLACES**2)[:size]
        self.signs = [(int(p) % self._PLACES, int(p) // self._PLACES, *sign) for p, sign in zip(places, signs, strict=True)]
        self.buttons = [Button(self._ABSENT, not present), Button(self._PRESENT, present)]

    def _others(self, kind: str) -> list[tuple[str, Rgb]]:
        """What signs there can be besides the one to be found."""
        pairs = [pair for pair in itertools.product(self.SHAPES, self.COLOURS) if pair != ("T", self.MAGENTA)]
        if kind == "shape":
            return [pair for pair in pairs if pair[1] == self.MAGENTA]
        return [pair for pair in pairs if pair[0] == "T"] if kind == "colour" else pairs

    def _end_trial(self, right: bool) -> None:
        self.staircase.answer(right)

    def _draw(self, image: np.ndarray) -> None:
        for column, row, shape, colour in self.signs:
            left, top = self._CORNER + (column + 0.1) * self._PLACE, self._CORNER + (row + 0.1) * self._PLACE
            _stamp(image, self.SHAPES[shape], left, top, 0.8 * self._PLACE, colour)
