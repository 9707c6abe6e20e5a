"""What the psychlab levels share: a cross that starts a trial, buttons that react to the gaze, staircases."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.panel import Gaze, PanelLevel

Box = tuple[float, float, float, float]  # left, top, right, bottom: shares of the panel
Rgb = tuple[int, int, int]

BUTTON = 0.1  # a side
RIGHT, WRONG = (100, 255, 100), (255, 100, 100)
BLACK: Rgb = (0, 0, 0)
_WHITE: Rgb = (255, 255, 255)
_CROSS: Rgb = (255, 0, 0)
_CROSS_SIZE, _CROSS_BAR = 0.1, 0.02
_FIXATION: Box = (0.475, 0.475, 0.525, 0.525)


def inside(where: Gaze, box: Box) -> bool:
    """Whether a gaze falls into a box."""
    return where is not None and box[0] <= where[0] < box[2] and box[1] <= where[1] < box[3]


def fill(image: np.ndarray, box: Box, colour: Rgb) -> None:
    """Paints a box, in place."""
    side = image.shape[0]
    left, top, right, bottom = (round(share * side) for share in box)
    image[top:bottom, left:right] = colour


@dataclass
class Button:
    """A place that answers.

    Attributes:
        box: where it is.
        right: whether it is the right answer.
        colour: it has now.
    """

    box: Box
    right: bool
    colour: Rgb = BLACK


class Trials(PanelLevel):
    """One trial after another until the time is up or all are done.

    A cross in the middle, gazed at, starts a trial. A gaze on a button answers: it turns green or red, and when the gaze leaves
    it the reward comes and the trial ends.
    """

    frames = 300 * FRAMES_PER_SECOND
    trials = 60
    side = 512  # pixels of the panel

    def start(self, rng: np.random.Generator) -> None:
        """Begins with the first cross."""
        self.rng = rng
        self._end = self.frames
        self._done = 0
        self._begin_episode()
        self._fixate()

    def _fixate(self) -> None:
        self.fixating, self.pressed = True, None
        self.buttons: list[Button] = []
        self._image: np.ndarray | None = None

    @abstractmethod
    def _begin_episode(self) -> None:
        """Draws what stays for the episode."""

    @abstractmethod
    def _begin_trial(self) -> None:
        """Draws a trial: sets `buttons`, or goes on in `_wait` until it does."""

    @abstractmethod
    def _draw(self, image: np.ndarray) -> None:
        """Paints what the trial shows on a white panel; the buttons come over it."""

    def _wait(self, where: Gaze) -> None:
        """One frame of a trial that has no buttons yet."""

    def _answered(self, button: Button) -> None:
        """Colours after an answer: here those of the button itself."""
        button.colour = RIGHT if button.right else WRONG

    def _end_trial(self, right: bool) -> None:
        """What an answer changes for the next trials."""

    def changed(self) -> None:
        """Has the panel drawn anew."""
        self._image = None

    def gaze(self, where: Gaze, frame: int) -> float:
        """Moves the trial on by one frame."""
        if self.fixating:
            if inside(where, _FIXATION):
                self.fixating = False
                self._begin_trial()
                self.changed()
            return 0.0
        if self.pressed is not None:
            if inside(where, self.pressed.box):
                return 0.0
            right = self.pressed.right
            self._end_trial(right)
            self._done += 1
            if self._done == self.trials:
                self._end = min(self._end, frame)
            self._fixate()
            return float(right)
        if not self.buttons:
            self._wait(where)
            return 0.0
        self.pressed = next((button for button in self.buttons if inside(where, button.box)), None)
        if self.pressed is not None:
            self._answered(self.pressed)
            self.changed()
        return 0.0

    def image(self) -> np.ndarray:
        """The cross, or the trial and its buttons."""
        if self._image is None:
            self._image = np.full((self.side, self.side, 3), _WHITE, np.uint8)
            if self.fixating:
                near, far = 0.5 - _CROSS_SIZE / 2, 0.5 + _CROSS_SIZE / 2
                fill(self._image, (near, 0.5 - _CROSS_BAR / 2, far, 0.5 + _CROSS_BAR / 2), _CROSS)
                fill(self._image, (0.5 - _CROSS_BAR / 2, near, 0.5 + _CROSS_BAR / 2, far), _CROSS)
            else:
                self._draw(self._image)
                for button in self.buttons:
                    fill(self._image, button.box, button.colour)
        return self._image

    def last_frame(self) -> int:
        """The clock's, or that of the last trial."""
        return self._end


class Staircase:
    """A level of difficulty that follows the answers of an episode, in blocks as long as the level is high."""

    def __init__(self, most: int):
        """Begins at 1 and never goes above `most`."""
        self.level, self._most = 1, most
        self._answers: list[bool] = []

    def answer(self, right: bool) -> None:
        """One up after a block without a mistake; one down after one with at most half of it right."""
        self._answers.append(right)
        if len(self._answers) < self.level:
            return
        correct = sum(self._answers)
        if correct == self.level:
            self.level = min(self.level + 1, self._most)
        elif correct <= self.level // 2:
            self.level = max(self.level - 1, 1)
        self._answers = []
