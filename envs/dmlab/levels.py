"""The levels the stand-in engine can play: what stands where, what it is worth, when the episode ends.

A level is a class with the few methods of `Level`; `LEVELS` maps DeepMind Lab's level names to them. Adding a level means adding
a class here (and, where it needs a new object, one drawing in `sprites.py` and one name in `resources.OBJECTS`).
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from envs.dmlab.motion import FRAMES_PER_SECOND
from envs.dmlab.resources import PIXEL_STRETCH, editor_number
from envs.dmlab.wad import PLAYER_START, Room, Thing, map_lumps, pack_wad, text_map

LEVEL_FOLDER = "contributed/dmlab30/"


@dataclass(frozen=True)
class Scene:
    """The world at the start of an episode.

    Attributes:
        rooms: the walls.
        objects: (name, x, y) of everything that can be picked up.
        start: (x, y, yaw in whole degrees) of the player.
    """

    rooms: tuple[Room, ...]
    objects: tuple[tuple[str, float, float], ...]
    start: tuple[float, float, int]

    def wad(self) -> bytes:
        """The scene as a WAD with the map `MAP01`."""
        x, y, yaw = self.start
        things = [Thing(x, y, PLAYER_START, yaw)]
        things += [Thing(ox, oy, editor_number(name)) for name, ox, oy in self.objects]
        return pack_wad(map_lumps("MAP01", text_map(self.rooms, things)))


class Level(ABC):
    """One episode after another of one level.

    Attributes:
        frames: most frames an episode can last.
        hold_out: whether it is a test level, which DeepMind Lab starts only where the config allows it.
    """

    frames: int
    hold_out = False

    @abstractmethod
    def start(self, rng: np.random.Generator) -> Scene:
        """Begins an episode; every choice comes from `rng`."""

    @abstractmethod
    def picked_up(self, name: str, count: int, frame: int) -> float:
        """The reward for picking up `count` objects called `name` up to `frame`."""

    @abstractmethod
    def last_frame(self) -> int:
        """The frame with which the episode ends, as far as is known by now."""

    def watchful(self) -> bool:
        """Whether the next pickup may end the episode, so that its exact frame counts."""
        return False


@dataclass(frozen=True)
class Decor:
    """Texture names of a room."""

    wall: str
    floor: str


NORMAL = Decor("WALLGREY", "FLOORBRN")
RED_BLUE = Decor("WALLRED", "FLOORBLU")


@dataclass(frozen=True)
class CollectSetting:
    """One of the settings an episode of rooms_collect_good_objects is drawn from."""

    good: str
    bad: str
    decor: Decor


class CollectGoodObjects(Level):
    """rooms_collect_good_objects: ten good objects at +1, ten bad ones at -1, and the end shortly after the tenth pickup."""

    frames = 60 * FRAMES_PER_SECOND
    settings: tuple[CollectSetting, ...]

    _SIZE = (1584.0, 1328.0)
    _GRID = (10, 9)
    _SPACING = 150.0
    _OBJECTS_A_KIND = 10
    _PICKUPS_TO_END = 10
    _FRAMES_AFTER_LAST = 12  # 0.2 s
    _HEIGHT = 192

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the setting, the cells and the yaw."""
        setting = self.settings[int(rng.integers(len(self.settings)))]
        self._rewards: Mapping[str, float] = {setting.good: 1.0, setting.bad: -1.0}
        self._pickups = 0
        self._end = self.frames
        columns, rows = self._GRID
        count = 2 * self._OBJECTS_A_KIND
        cells = rng.permutation(columns * rows)[: count + 1]
        places = [self._place(int(cell)) for cell in cells]
        names = [setting.good] * self._OBJECTS_A_KIND + [setting.bad] * self._OBJECTS_A_KIND
        width, depth = self._SIZE
        room = Room(
            corners=((0.0, 0.0), (0.0, depth), (width, depth), (width, 0.0)),
            height=round(self._HEIGHT / PIXEL_STRETCH),
            wall=setting.decor.wall,
            floor=setting.decor.floor,
            ceiling="CEILING",
        )
        objects = tuple((name, x, y) for name, (x, y) in zip(names, places[1:], strict=True))
        return Scene((room,), objects, (*places[0], int(rng.integers(360))))

    def _place(self, cell: int) -> tuple[float, float]:
        """Centre of a grid cell; the grid lies in the middle of the arena."""
        columns, rows = self._GRID
        x = (self._SIZE[0] - (columns - 1) * self._SPACING) / 2 + cell % columns * self._SPACING
        y = (self._SIZE[1] - (rows - 1) * self._SPACING) / 2 + cell // columns * self._SPACING
        return x, y

    def picked_up(self, name: str, count: int, frame: int) -> float:
        """One point for a good object, minus one for a bad one."""
        self._pickups += count
        if self._pickups >= self._PICKUPS_TO_END and self._end == self.frames:
            self._end = min(frame + self._FRAMES_AFTER_LAST, self.frames)
        return self._rewards[name] * count

    def last_frame(self) -> int:
        """The clock's, or 0.2 s after the tenth pickup."""
        return self._end

    def watchful(self) -> bool:
        """Whether nine were picked up."""
        return self._pickups == self._PICKUPS_TO_END - 1


class CollectGoodObjectsTrain(CollectGoodObjects):
    """The three settings of training."""

    settings = (
        CollectSetting(good="can", bad="hat", decor=NORMAL),
        CollectSetting(good="balloon", bad="cake", decor=NORMAL),
        CollectSetting(good="balloon", bad="cake", decor=RED_BLUE),
    )


class CollectGoodObjectsTest(CollectGoodObjects):
    """The combination held out: hat and can between the other walls."""

    hold_out = True
    settings = (CollectSetting(good="can", bad="hat", decor=RED_BLUE),)


LEVELS: Mapping[str, type[Level]] = {
    "rooms_collect_good_objects_train": CollectGoodObjectsTrain,
    "rooms_collect_good_objects_test": CollectGoodObjectsTest,
}


def find_level(path: str) -> type[Level] | None:
    """The class of a level given as DeepMind Lab names it, with or without its folder; None where there is none."""
    return LEVELS.get(path.removeprefix(LEVEL_FOLDER))


def episode_rng(level: str, seed: int) -> np.random.Generator:
    """The generator of all choices in one episode: a function of the level and the seed only."""
    name = level.removeprefix(LEVEL_FOLDER)
    return np.random.default_rng(np.random.SeedSequence([zlib.crc32(name.encode()), seed]))
