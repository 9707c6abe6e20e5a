"""psychlab_arbitrary_visuomotor_mapping and psychlab_continuous_recognition: memory for pictures.

Their photographs are not part of DeepMind Lab. Here the pictures are plain colours, as in DeepMind Lab itself where it is started
with `datasetPath=dummy`.
"""

from __future__ import annotations

import colorsys

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.trials import BUTTON, RIGHT, WRONG, Box, Button, Rgb, Trials, fill

_PICTURE: Box = (0.125, 0.125, 0.875, 0.875)
_DULL_RIGHT, _DULL_WRONG = (100, 200, 100), (200, 100, 100)

_HUES, _SATURATIONS, _LIGHTNESSES = 60, 8, 5
PICTURES = _HUES * _SATURATIONS * _LIGHTNESSES


def picture_colour(number: int) -> Rgb:
    """One of the 2400 plain colours: 60 hues, saturation 0.3 to 1, lightness 0.2 to 0.8.

    Args:
        number: from 0.
    """
    hue = number % _HUES / _HUES
    saturation = 0.3 + 0.7 * (number // _HUES % _SATURATIONS) / (_SATURATIONS - 1)
    lightness = 0.2 + 0.6 * (number // (_HUES * _SATURATIONS)) / (_LIGHTNESSES - 1)
    r, g, b = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * r), round(255 * g), round(255 * b)


def _around(x: float, y: float) -> Box:
    half = BUTTON / 2
    return x - half, y - half, x + half, y + half


class _Pictures(Trials):
    """A plain colour in the middle."""

    def _begin_episode(self) -> None:
        self.order = self.rng.permutation(PICTURES)  # none comes up twice as a new one
        self.picture = -1

    def _draw(self, image: np.ndarray) -> None:
        fill(image, _PICTURE, picture_colour(self.picture))


class ArbitraryVisuomotorMapping(_Pictures):
    """Which of four buttons goes with a picture is told once, when it comes up first.

    The set begins with one picture; after a pass in which all were right a new one joins it.
    """

    _BUTTONS = tuple(_around(x, y) for x, y in ((0.5, 0.05), (0.5, 0.95), (0.05, 0.5), (0.95, 0.5)))

    def _begin_episode(self) -> None:
        super()._begin_episode()
        self.mapping: dict[int, int] = {}  # picture: number of its button
        self._answered_before: set[int] = set()
        self._grow()

    def _grow(self) -> None:
        """A new picture, with a button drawn for it; then the next pass."""
        self.mapping[int(self.order[len(self.mapping)])] = int(self.rng.integers(len(self._BUTTONS)))
        self._shuffle()

    def _shuffle(self) -> None:
        pictures = list(self.mapping)
        self._pass = [pictures[int(i)] for i in self.rng.permutation(len(pictures))]
        self._mistakes = 0

    def _begin_trial(self) -> None:
        if not self._pass:
            if self._mistakes:
                self._shuffle()
            else:
                self._grow()
        self.picture = self._pass.pop()
        right = self.mapping[self.picture]
        self.buttons = [Button(box, i == right) for i, box in enumerate(self._BUTTONS)]
        if self.picture not in self._answered_before:
            for button in self.buttons:
                button.colour = _DULL_RIGHT if button.right else _DULL_WRONG

    def _answered(self, button: Button) -> None:
        for each in self.buttons:
            each.colour = RIGHT if each.right else WRONG

    def _end_trial(self, right: bool) -> None:
        self._answered_before.add(self.picture)
        self._mistakes += not right


class ContinuousRecognition(_Pictures):
    """Left for a picture that is new, right for one that came up before in the episode."""

    _NEW: Box = (0.0, 0.45, 0.1, 0.55)
    _OLD: Box = (0.9, 0.45, 1.0, 0.55)

    def _begin_episode(self) -> None:
        super()._begin_episode()
        self.seen: list[int] = []

    def _begin_trial(self) -> None:
        new = not self.seen or bool(self.rng.random() < 0.5)
        self.picture = int(self.order[len(self.seen)]) if new else self.seen[int(self.rng.integers(len(self.seen)))]
        if new:
            self.seen.append(self.picture)
        self.buttons = [Button(self._NEW, new), Button(self._OLD, not new)]
