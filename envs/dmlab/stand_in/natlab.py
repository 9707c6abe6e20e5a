"""natlab_fixed_large_map, natlab_varying_map_regrowth and natlab_varying_map_randomized: mushrooms in a desert.

A map is drawn from a fixed set, one or a hundred, which fixed seeds make: land, plants, mushrooms and places to start belong to
the map. The land is flat. What grows back waits outside, and is put in its place when its time has come.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.acs import pickup_call
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.resources import ITEM
from sf_fixpo.envs.dmlab.stand_in.scene import Item, Level, Look, Move, Pose, Scene
from sf_fixpo.envs.dmlab.stand_in.wad import Point, Room, Thing

_MUSHROOM = Look("mushroom", scale=0.8)
_STARTS = 10
_MARGIN = 60  # units between a wall and whatever stands on the land
_APART = 96  # units, along the farther axis, between any two things: none is touched with another
_HEIGHT = 500
_TIMES = ("night", "day", "dawn")
_SHED = Room(((-800.0, 0.0), (-800.0, 400.0), (-400.0, 400.0), (-400.0, 0.0)), 100, "WALLGREY", "FLOORDRK", "CEILING")
_SHED_MIDDLE = (-600.0, 200.0)
_MOST_REGROWN = 4  # of one mushroom: the shortest time, 24 s, fits four times into an episode after the first pickup

Range = tuple[int, int, int]  # least, likeliest, most


@dataclass(frozen=True)
class Land:
    """One map.

    Attributes:
        mushrooms: where they grow.
        cacti: places.
        rocks: places.
        bushes: places.
        starts: places.
        regrow: seconds after which each mushroom is back, on average.
        time: of the day.
    """

    mushrooms: tuple[Point, ...]
    cacti: tuple[Point, ...]
    rocks: tuple[Point, ...]
    bushes: tuple[Point, ...]
    starts: tuple[Point, ...]
    regrow: tuple[float, ...]
    time: str


class NatLab(Level):
    """Mushrooms at +1 until the time is up.

    Attributes:
        side: of the land, units.
        maps: how many there are.
        numbers: of mushrooms, cacti, rocks and bushes.
        times: how often it is night, day and dawn.
        grows_back: whether mushrooms do.
    """

    frames = 120 * FRAMES_PER_SECOND
    side = 2048.0
    maps = 100
    numbers: tuple[Range, Range, Range, Range]
    times: tuple[int, int, int]
    grows_back = False

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the map, the start and the yaw."""
        self._rng = rng
        self.land = land = self.make_land(int(rng.integers(self.maps)))
        time = land.time if self.maps > 1 else _TIMES[int(rng.integers(len(_TIMES)))]
        self._due: list[tuple[int, int]] = []  # frame at which a mushroom is back, and its number
        self._regrown = [0] * len(land.mushrooms)
        x, y = land.starts[int(rng.integers(len(land.starts)))]
        side = self.side
        sky = f"SKY{time.upper()}"
        plants = [(Look("cactus"), *place) for place in land.cacti] + [(Look("rock"), *place) for place in land.rocks]
        room = Room(((0.0, 0.0), (0.0, side), (side, side), (side, 0.0)), _HEIGHT, sky, f"LAND{time.upper()[:4]}", sky)
        return Scene(
            (room, _SHED),
            (),
            (x, y, int(rng.integers(360))),
            items=tuple(Item(_MUSHROOM, *place) for place in land.mushrooms),
            props=tuple((Look("bush"), *place, 0.0) for place in land.bushes),
            obstacles=tuple(plants),
            things=tuple(self._spares()) if self.grows_back else (),
        )

    @classmethod
    @lru_cache(maxsize=128)  # each takes some milliseconds
    def make_land(cls, number: int) -> Land:
        """One of the maps: the same in every episode and on every machine."""
        rng = np.random.default_rng([zlib.crc32(cls.__name__.encode()), number])
        counts = [round(rng.triangular(*each)) for each in cls.numbers]
        places = cls._places(rng, sum(counts) + _STARTS)
        groups = [tuple(places.pop() for _ in range(count)) for count in (*counts, _STARTS)]
        regrow = tuple(float(seconds) for seconds in rng.uniform(48, 72, counts[0]))
        share = np.array(cls.times) / sum(cls.times)
        return Land(*groups, regrow, _TIMES[int(rng.choice(len(_TIMES), p=share))])  # type: ignore[call-arg]

    @classmethod
    def _places(cls, rng: np.random.Generator, count: int) -> list[Point]:
        """Places all over the land, none close to another."""
        places: list[Point] = []
        while len(places) < count:
            x, y = (round(float(part)) for part in rng.uniform(_MARGIN, cls.side - _MARGIN, 2))
            if all(max(abs(x - a), abs(y - b)) >= _APART for a, b in places):
                places.append((float(x), float(y)))
        return places

    def _spares(self) -> list[Thing]:
        """What will grow back, outside; each counts as the mushroom in whose place it comes."""
        (thing,) = _MUSHROOM.things(*_SHED_MIDDLE, ITEM)
        return [
            replace(thing, call=pickup_call(mushroom), number=_spare(mushroom, i))
            for mushroom in range(len(self.land.mushrooms))
            for i in range(_MOST_REGROWN)
        ]

    def took(self, items: tuple[int | None, ...], frame: int, pose: Pose) -> float:
        """A point for each."""
        del pose
        for number in items:
            if self.grows_back and number is not None and self._regrown[number] < _MOST_REGROWN:
                seconds = self.land.regrow[number] * self._rng.uniform(0.5, 1.5)
                self._due.append((frame + round(seconds * FRAMES_PER_SECOND), number))
        return float(len(items))

    def moves(self, frame: int) -> list[Move]:
        """Puts into their places the mushrooms whose time has come."""
        due = [number for when, number in self._due if when <= frame]
        if not due:
            return []
        self._due = [(when, number) for when, number in self._due if when > frame]
        found = []
        for number in due:
            x, y = self.land.mushrooms[number]
            found.append(Move(_spare(number, self._regrown[number]), round(x), round(y), 0))
            self._regrown[number] += 1
        return found

    def last_frame(self) -> int:
        """The clock's, always."""
        return self.frames


def _spare(mushroom: int, time: int) -> int:
    """The number by which the map knows a mushroom that grows back."""
    return 1 + mushroom * _MOST_REGROWN + time


class FixedLargeMap(NatLab):
    """One map, learnt by heart: only the start and the light differ. How large it is, and how many grow there, is our choice."""

    side = 3600.0
    maps = 1
    numbers = ((59, 60, 61), (44, 45, 46), (39, 40, 41), (11, 12, 13))
    times = (1, 1, 1)


class VaryingMapRegrowth(NatLab):
    """A hundred maps with few mushrooms, which grow back."""

    numbers = ((5, 22, 27), (0, 10, 38), (1, 5, 39), (0, 0, 19))
    times = (8, 6, 4)
    grows_back = True


class VaryingMapRandomized(NatLab):
    """A hundred maps with many mushrooms."""

    numbers = ((10, 35, 72), (1, 23, 39), (1, 22, 34), (0, 0, 17))
    times = (7, 7, 5)
