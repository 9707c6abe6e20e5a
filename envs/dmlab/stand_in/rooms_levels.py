"""rooms_select_nonmatching_object and rooms_exploit_deferred_effects: two levels whose world changes with what is picked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.resources import PIXEL_STRETCH
from sf_fixpo.envs.dmlab.stand_in.scene import Level, Placed, Pose, Scene, without_nearest
from sf_fixpo.envs.dmlab.stand_in.shapes import SHAPES
from sf_fixpo.envs.dmlab.stand_in.sprites import caged
from sf_fixpo.envs.dmlab.stand_in.wad import Point, Room


def _room(corners: Sequence[Point], height: float, floor: str) -> Room:
    """Grey walls under the sky; the height is in units."""
    return Room(corners, height=round(height / PIXEL_STRETCH), wall="WALLGREY", floor=floor, ceiling="CEILING")


class SelectNonmatchingObject(Level):
    """rooms_select_nonmatching_object: look at the example, go through the teleporter, take what is not like the example.

    Room 1 shows the example in a cage and has the teleporter (+1). In room 2 stand the match (-10) and another shape (+10); to
    take either leads back to room 1. The match is drawn once an episode, everything else once a round.
    """

    frames = 12 * FRAMES_PER_SECOND

    # Both rooms face east. The second is a hall of 256 x 376 behind the alcove that the player arrives in.
    _FIRST_ROOM = _room(((0, 0), (0, 384), (384, 384), (384, 0)), 128, "FLOORBRN")
    _FIRST_START = (24.0, 192.0, 0.0)
    _TELEPORTER: Placed = ("teleporter", 320.0, 192.0)
    _EXAMPLE_PLACES = ((296.0, 64.0), (296.0, 320.0))
    _SECOND_ROOM = _room(
        ((0, 120), (0, 248), (128, 248), (128, 376), (384, 376), (384, 0), (128, 0), (128, 120)), 128, "FLOORBRN"
    )
    _SECOND_START = (32.0, 184.0, 0.0)
    _CHOICE_PLACES = ((344.0, 56.0), (344.0, 312.0))
    _REWARD = 10.0
    _TELEPORT_REWARD = 1.0

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the match and begins the first round."""
        self._rng = rng
        self._match = SHAPES[int(rng.integers(len(SHAPES)))]
        self._in_first_room = True
        return self._round()

    def _round(self) -> Scene:
        """Draws what changes from round to round; gives room 1 and keeps room 2 for later."""
        others = [shape for shape in SHAPES if shape != self._match]
        other = others[int(self._rng.integers(len(others)))]
        example = self._EXAMPLE_PLACES[int(self._rng.integers(2))]
        left, right = (self._match, other) if self._rng.integers(2) else (other, self._match)
        choices = tuple((name, *place) for name, place in zip((left, right), self._CHOICE_PLACES, strict=True))
        self._second = Scene((self._SECOND_ROOM,), choices, self._SECOND_START)
        return Scene((self._FIRST_ROOM,), (self._TELEPORTER,), self._FIRST_START, ((caged(self._match), *example),))

    def picked_up(self, name: str, count: int, frame: int, pose: Pose) -> float:
        """One point for the teleporter, minus ten for the match, ten for the other shape."""
        del count, frame, pose
        if name == "teleporter":
            return self._TELEPORT_REWARD
        return -self._REWARD if name == self._match else self._REWARD

    def next_scene(self, pose: Pose) -> Scene:
        """Every pickup leads to the other room."""
        del pose
        self._in_first_room = not self._in_first_room
        return self._round() if self._in_first_room else self._second

    def last_frame(self) -> int:
        """The clock's, always."""
        return self.frames

    def watchful(self) -> bool:
        """Always, as every pickup changes the world."""
        return True


@dataclass(frozen=True)
class ExploitSetting:
    """One of the settings an episode of rooms_exploit_deferred_effects is drawn from.

    Attributes:
        two_rooms: whether there is a second room, with the cakes, behind the door.
        box: whether there is a box.
        open_door: whether the door is open, and the floor bright, from the beginning.
    """

    two_rooms: bool
    box: bool
    open_door: bool


class ExploitDeferredEffects(Level):
    """rooms_exploit_deferred_effects: a box costs something, but opens the way to cakes.

    Ten apples (+1) in the first room, ten cakes (+10) in the second; the box (-3) makes the floor bright and opens the door. The
    episode ends shortly after the tenth pickup, the box being one; what is touched after the tenth is worth nothing.
    """

    frames = 60 * FRAMES_PER_SECOND
    settings: tuple[ExploitSetting, ...]

    _SIZE = (608.0, 544.0)
    _CORRIDOR = (120.0, 128.0)  # length and width
    _HEIGHT = 80
    _CELLS = 5  # a side
    _SPACING = 120.0
    _OBJECTS_A_ROOM = 10
    _REWARDS: Mapping[str, float] = {"apple": 1.0, "cake": 10.0, "box": -3.0}
    _PICKUPS_TO_END = 10
    _FRAMES_AFTER_LAST = 12  # 0.2 s

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the setting, the cells and the yaw."""
        setting = self.settings[int(rng.integers(len(self.settings)))]
        self._two_rooms, self._bright, self._box_left = setting.two_rooms, setting.open_door, setting.box
        self._pickups = 0
        self._end = self.frames
        count = self._OBJECTS_A_ROOM
        *places, box, spawn = self._places(rng, count + 2)
        self._objects: tuple[Placed, ...] = tuple(("apple", x, y) for x, y in places)
        if setting.box:
            self._objects += (("box", *box),)
        self._cakes: tuple[Placed, ...] = ()
        if setting.two_rooms:
            east = self._SIZE[0] + self._CORRIDOR[0]
            self._cakes = tuple(("cake", x + east, y) for x, y in self._places(rng, count))
        return self._scene((*spawn, int(rng.integers(360))))

    def _places(self, rng: np.random.Generator, count: int) -> list[Point]:
        """Centres of distinct cells of a room's grid, which lies in the middle of the room."""
        cells = rng.permutation(self._CELLS**2)[:count]
        margins = [(length - (self._CELLS - 1) * self._SPACING) / 2 for length in self._SIZE]
        return [
            (margins[0] + int(cell) % self._CELLS * self._SPACING, margins[1] + int(cell) // self._CELLS * self._SPACING)
            for cell in cells
        ]

    def _scene(self, start: tuple[float, float, float]) -> Scene:
        """The world as it is now. Nothing is built behind a door that is shut."""
        opened = self._two_rooms and self._bright
        return Scene((self._walls(opened),), self._objects + (self._cakes if opened else ()), start)

    def _walls(self, opened: bool) -> Room:
        width, depth = self._SIZE
        length, gap = self._CORRIDOR
        south, north, east = (depth - gap) / 2, (depth + gap) / 2, width + length
        corners = [(0.0, 0.0), (0.0, depth), (width, depth), (width, north)]
        if opened:
            corners += [(east, north), (east, depth), (east + width, depth), (east + width, 0.0), (east, 0.0), (east, south)]
        corners += [(width, south), (width, 0.0)]
        walls = _room(corners, self._HEIGHT, "FLOORBRT" if self._bright else "FLOORDRK")
        return replace(walls, other_walls={3: "DOOR"}) if self._two_rooms and not opened else walls

    def picked_up(self, name: str, count: int, frame: int, pose: Pose) -> float:
        """What it is worth, up to the tenth."""
        if self._box_left:
            self._objects = without_nearest(self._objects, name, pose, count)
        counted = min(count, self._PICKUPS_TO_END - self._pickups)
        self._pickups += counted
        if counted and self._pickups == self._PICKUPS_TO_END:
            self._end = min(frame + self._FRAMES_AFTER_LAST, self.frames)
        return self._REWARDS[name] * counted

    def next_scene(self, pose: Pose) -> Scene | None:
        """After the box a bright floor and an open door, around a player who has not moved."""
        if not self._box_left or any(name == "box" for name, _, _ in self._objects):
            return None
        self._box_left, self._bright = False, True
        return self._scene((pose.x, pose.y, pose.yaw))

    def last_frame(self) -> int:
        """The clock's, or 0.2 s after the tenth pickup."""
        return self._end

    def watchful(self) -> bool:
        """While there is a box, as it changes the world; then before the tenth pickup: two can come between two reports."""
        return self._box_left or self._PICKUPS_TO_END - 2 <= self._pickups < self._PICKUPS_TO_END


class ExploitDeferredEffectsTrain(ExploitDeferredEffects):
    """What the box does and what an open door is worth, apart from each other."""

    settings = (
        ExploitSetting(two_rooms=False, box=True, open_door=False),
        ExploitSetting(two_rooms=True, box=False, open_door=False),
        ExploitSetting(two_rooms=True, box=False, open_door=True),
    )


class ExploitDeferredEffectsTest(ExploitDeferredEffects):
    """Both together: the box and nine cakes make 87."""

    hold_out = True
    settings = (ExploitSetting(two_rooms=True, box=True, open_door=False),)
