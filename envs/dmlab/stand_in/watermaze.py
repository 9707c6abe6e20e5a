"""rooms_watermaze: a round pool with a platform that is not seen; who finds it gets five points and starts again elsewhere."""

from __future__ import annotations

import math

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.resources import PIXEL_STRETCH
from sf_fixpo.envs.dmlab.stand_in.scene import Level, Pose, Scene
from sf_fixpo.envs.dmlab.stand_in.wad import Point, Room

_SIDES = 16
_APOTHEM = 760.0  # units from the middle to a wall
_MIDDLE: Point = (1000.0, 1000.0)
_HEIGHT = 200
_PICTURES = 8  # on every other wall
_STARTS = 8
_START_RADIUS = 709.0
_PLATFORM_RADIUS = 580.0  # of the disc in which its middle lies
_REACH = 64.0  # from the platform's middle to a side of its octagon
_CLOSE = _REACH + 60.0  # farther than the player comes between two reports
_POINTS = 5
_FRAMES_A_POINT = 12  # 0.2 s


def _arena() -> Room:
    """The pool; its first corner is such that every even wall faces a multiple of 45 degrees."""
    radius = _APOTHEM / math.cos(math.pi / _SIDES)
    angles = [-2 * math.pi * (i - 0.5) / _SIDES for i in range(_SIDES)]
    corners = [(_MIDDLE[0] + radius * math.cos(angle), _MIDDLE[1] + radius * math.sin(angle)) for angle in angles]
    pictures = {2 * i: f"PICTURE{i}" for i in range(_PICTURES)}
    return Room(corners, round(_HEIGHT / PIXEL_STRETCH), "WALLPOOL", "WATER", "CEILING", other_walls=pictures)


class Watermaze(Level):
    """Visits to a platform whose place is drawn once an episode."""

    frames = 120 * FRAMES_PER_SECOND
    _ARENA = _arena()

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the platform and the first start."""
        self._rng = rng
        radius, angle = _PLATFORM_RADIUS * math.sqrt(rng.random()), 2 * math.pi * rng.random()
        self.platform: Point = (_MIDDLE[0] + radius * math.cos(angle), _MIDDLE[1] + radius * math.sin(angle))
        return self._outside()

    def _outside(self) -> Scene:
        """The player at the wall, at a place drawn now."""
        self._touched: int | None = None  # the frame
        self._paid = 0
        self._close = False
        angle = 2 * math.pi * int(self._rng.integers(_STARTS)) / _STARTS
        x, y = _MIDDLE[0] + _START_RADIUS * math.cos(angle), _MIDDLE[1] + _START_RADIUS * math.sin(angle)
        return Scene((self._ARENA,), (), (x, y, int(self._rng.integers(360))))

    def elapsed(self, frame: int, pose: Pose) -> float | None:
        """Looks whether the player is on the platform; then gives a point every 0.2 s."""
        dx, dy = abs(pose.x - self.platform[0]), abs(pose.y - self.platform[1])
        distance = max(dx, dy, (dx + dy) / math.sqrt(2))
        self._close = distance < _CLOSE
        if self._touched is None:
            if distance >= _REACH:
                return None
            self._touched = frame
        due = (frame - self._touched) // _FRAMES_A_POINT + 1
        if due == self._paid:
            return None
        points, self._paid = min(due, _POINTS) - self._paid, due
        return float(points)

    def next_scene(self, pose: Pose) -> Scene | None:
        """On to the middle of the platform at the first point, to another start 0.2 s after the fifth."""
        if self._paid > _POINTS:
            return self._outside()
        return Scene((self._ARENA,), (), (*self.platform, pose.yaw)) if self._paid == 1 else None

    def holds(self) -> bool:
        """On the platform."""
        return self._touched is not None

    def watchful(self) -> bool:
        """On the platform and near it."""
        return self._close

    def last_frame(self) -> int:
        """The clock's, always."""
        return self.frames
