"""explore_object_rewards_few and explore_object_rewards_many: which kinds of objects are good is to be found out in each episode.

One open room of 11 x 11 cells. A kind is a shape with a pattern in two of sixteen colours; half of the kinds are worth +2, half
-1, for the whole episode. Every round has one object of each kind, on places shuffled anew; it ends with the last good one.
"""

from __future__ import annotations

import itertools

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.grids import Grid, Patch, centre
from sf_fixpo.envs.dmlab.stand_in.looks import PATTERNS, SHAPE_NAMES, Rgb
from sf_fixpo.envs.dmlab.stand_in.maze_levels import FLOORS, WALLS
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.scene import Item, Level, Look, Pose, Scene

_SIDE = 11  # cells
_WALL_HEIGHT = 100
_STARTS = 5
_GOOD, _BAD = 2.0, -1.0

# The text modes of old: dark and bright levels of each mixture, with brown for dark yellow.
_LEVELS = ((0, 170), (85, 255))
SIXTEEN_COLOURS: tuple[Rgb, ...] = tuple(
    (170, 85, 0) if (dark, red, green, blue) == (0, 1, 1, 0) else (_LEVELS[dark][red], _LEVELS[dark][green], _LEVELS[dark][blue])
    for dark, red, green, blue in itertools.product((0, 1), repeat=4)
)


class ObjectRewards(Level):
    """Rounds in one room until the time is up."""

    kinds: int  # good and bad ones together, and places for each twice

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the kinds, the places and the textures."""
        self._rng = rng
        self._looks = self._draw_kinds(rng)
        cells = [(1 + int(i) % _SIDE, 1 + int(i) // _SIDE) for i in rng.permutation(_SIDE**2)]
        self._starts, self._places = cells[:_STARTS], cells[_STARTS : _STARTS + 2 * self.kinds]
        patch = Patch(FLOORS[int(rng.integers(len(FLOORS)))], WALLS[int(rng.integers(len(WALLS)))])
        self._grid = Grid(dict.fromkeys([(x, y) for x in range(1, _SIDE + 1) for y in range(1, _SIDE + 1)], patch), _WALL_HEIGHT)
        return self._round()

    def _draw_kinds(self, rng: np.random.Generator) -> list[Look]:
        """Looks that all differ: the first half are those of good ones."""
        looks: list[Look] = []
        while len(looks) < self.kinds:
            first, second = (SIXTEEN_COLOURS[int(i)] for i in rng.permutation(len(SIXTEEN_COLOURS))[:2])
            shape = SHAPE_NAMES[int(rng.integers(len(SHAPE_NAMES)))]
            look = Look(shape, first, second, PATTERNS[int(rng.integers(len(PATTERNS)))])
            if look not in looks:
                looks.append(look)
        return looks

    def _round(self) -> Scene:
        """One object of each kind, and the player, on places drawn now."""
        self._good_left = self.kinds // 2
        places = [self._places[int(i)] for i in self._rng.permutation(len(self._places))[: self.kinds]]
        items = tuple(Item(look, *centre(cell)) for look, cell in zip(self._looks, places, strict=True))
        x, y = centre(self._starts[int(self._rng.integers(_STARTS))])
        return Scene((), (), (x, y, int(self._rng.integers(360))), items=items, grid=self._grid)

    def took(self, items: tuple[int | None, ...], frame: int, pose: Pose) -> float:
        """Two points for each of a good kind, minus one for each of a bad one."""
        del frame, pose
        good = sum(number is not None and number < self.kinds // 2 for number in items)
        self._good_left -= good
        return _GOOD * good + _BAD * (len(items) - good)

    def next_scene(self, pose: Pose) -> Scene | None:
        """The next round when all good ones are gone."""
        del pose
        return None if self._good_left else self._round()

    def last_frame(self) -> int:
        """The clock's."""
        return self.frames


class ObjectRewardsFew(ObjectRewards):
    """explore_object_rewards_few: four kinds."""

    frames = 90 * FRAMES_PER_SECOND
    kinds = 4


class ObjectRewardsMany(ObjectRewards):
    """explore_object_rewards_many: eight kinds."""

    frames = 120 * FRAMES_PER_SECOND
    kinds = 8
