"""A player who stands before a flat panel and can only look: the psychlab levels, drawn by NumPy without the engine.

The panel is 112 units a side, 90.5 units away, its middle one unit above the eye. Positions on it are shares of its side, x from
the left and y from the top. The gaze, a ray through the middle of the frame, is looked up in every frame of the episode.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import cv2
import numpy as np

from sf_fixpo.envs.dmlab.stand_in.motion import DEGREES_PER_PIXEL

_DISTANCE, _SIDE, _BELOW_MIDDLE = 90.5, 112.0, 1.0  # units
_ROUNDING = 1e-9  # of a place on the panel, by which two tangents may miss its edge
_MOST_PITCH = 85.0  # degrees up or down
_START_YAW = 22.5  # degrees to either side
_TAN = (1.0, 0.75)  # of half the field of view, across and down: 90 degrees at 4:3
_GROUND_AND_SKY = np.array([(102, 153, 102), (153, 204, 255)], np.uint8)
_EDGE = 1e-6  # of what lies ahead

Gaze = tuple[float, float] | None  # where on the panel, None beside it


class PanelLevel(ABC):
    """One episode after another of a level that is played by looking at a panel.

    Attributes:
        frames: most frames an episode can last.
        hold_out: always False: none has a test file of its own.
    """

    frames: int
    hold_out = False

    @abstractmethod
    def start(self, rng: np.random.Generator) -> None:
        """Begins an episode; every choice in it comes from `rng`."""

    @abstractmethod
    def gaze(self, where: Gaze, frame: int) -> float:
        """Told once a frame where the player looks; gives the reward of that frame."""

    @abstractmethod
    def image(self) -> np.ndarray:
        """What the panel shows, uint8 (side, side, 3); the same array as long as nothing changes."""

    @abstractmethod
    def last_frame(self) -> int:
        """The frame with which the episode ends, as far as is known by now."""

    def instruction(self) -> str:
        """The text of `INSTR`: none."""
        return ""


class PanelView:
    """The player's head: where it looks and what it sees."""

    def __init__(self, level: PanelLevel, width: int, height: int):
        """Knows a level and the size of the frames to give, pixels."""
        self._level = level
        self._size = (width, height)
        # From pixels to rays (right, down, ahead) of a player who looks straight ahead.
        self._rays = np.array(
            [
                [2 * _TAN[0] / width, 0.0, (1 / width - 1) * _TAN[0]],
                [0.0, 2 * _TAN[1] / height, (1 / height - 1) * _TAN[1]],
                [0.0, 0.0, 1.0],
            ]
        )
        self._columns, self._rows = np.arange(width)[None, :], np.arange(height)[:, None]
        self._image: np.ndarray | None = None
        # Two pixels of the panel for one of the frame, where both are parallel: less turns into noise.
        self._texture_side = min(512, 1 << math.ceil(math.log2(1.3 * width)))

    def start(self, rng: np.random.Generator) -> None:
        """Begins an episode with a yaw drawn around the panel's middle."""
        self._level.start(rng)
        self.yaw = float(rng.uniform(-_START_YAW, _START_YAW))  # degrees, right is positive
        self.pitch = 0.0  # degrees, down is positive

    def frame(self, right: int, down: int, number: int) -> float:
        """Lets one frame pass.

        Args:
            right: pixels that the action turns.
            down: the same.
            number: of the frame in the episode.

        Returns:
            The reward.
        """
        self.yaw = (self.yaw + right * DEGREES_PER_PIXEL + 180.0) % 360.0 - 180.0
        self.pitch = max(-_MOST_PITCH, min(_MOST_PITCH, self.pitch + down * DEGREES_PER_PIXEL))
        return self._level.gaze(gaze_point(self.yaw, self.pitch), number)

    def view(self) -> np.ndarray:
        """What the player sees, uint8 (height, width, 3), the caller's own."""
        image = self._level.image()
        if image is not self._image:
            side = self._texture_side
            self._image, self._texture = image, cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        pitch, yaw = math.radians(self.pitch), math.radians(self.yaw)
        lowered = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
        turned = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
        rays = turned @ lowered @ self._rays
        # From rays to pixels of the panel's picture, both times what lies ahead.
        scale = self._texture_side
        zoom, middle = scale * _DISTANCE / _SIDE, scale / 2 - 0.5
        onto = np.array([[zoom, 0, middle], [0, zoom, middle + scale * _BELOW_MIDDLE / _SIDE], [0, 0, 1]], float)
        seen = np.take(_GROUND_AND_SKY, (self._along(rays[1]) < 0).view(np.uint8), axis=0)
        ahead = self._along(rays[2])
        if ahead.max() <= _EDGE:
            return seen  # it is behind the player
        view = cv2.warpPerspective(
            self._texture,
            np.asarray(onto @ rays, np.float64),
            self._size,
            dst=seen.copy(),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_TRANSPARENT,
        )
        # A ray that leads away from the panel would meet it behind the player.
        if ahead.min() <= _EDGE:
            behind = ahead <= _EDGE
            view[behind] = seen[behind]
        return view

    def _along(self, row: np.ndarray) -> np.ndarray:
        """One coordinate of the rays of all pixels, float (height, width)."""
        return row[0] * self._columns + row[1] * self._rows + row[2]


def gaze_point(yaw: float, pitch: float) -> Gaze:
    """Where on the panel a gaze falls.

    Args:
        yaw: degrees to the right of the panel's middle.
        pitch: degrees down.
    """
    if abs(yaw) >= 90:
        return None
    x = 0.5 + _DISTANCE * math.tan(math.radians(yaw)) / _SIDE
    y = 0.5 + (_BELOW_MIDDLE + _DISTANCE * math.tan(math.radians(pitch)) / math.cos(math.radians(yaw))) / _SIDE
    x, y = (0.0 if abs(part) < _ROUNDING else part for part in (x, y))  # its edges are on it
    return (x, y) if 0 <= x < 1 and 0 <= y < 1 else None


def look_at(x: float, y: float) -> tuple[float, float]:
    """The yaw and the pitch, degrees, with which the gaze falls on a point of the panel."""
    yaw = math.atan((x - 0.5) * _SIDE / _DISTANCE)
    pitch = math.atan(((y - 0.5) * _SIDE - _BELOW_MIDDLE) * math.cos(yaw) / _DISTANCE)
    return math.degrees(yaw), math.degrees(pitch)
