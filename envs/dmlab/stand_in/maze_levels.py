"""explore_goal_locations_small and explore_object_locations_small: what to find in a maze that is new in every episode.

What both share with DeepMind Lab's: 90 seconds, a grid of 11 x 11 cells of 100 units, up to four rooms with sides of three to
five cells, in each of them four places for objects and five where the player may start, textures drawn for the episode. When
there is nothing left to find, the same maze is filled again and the player starts at a place drawn anew. That comes with the
first report of the engine after the pickup: no `watchful` here, because an exact frame would cost a fifth of the speed.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.mazes import Maze, outlines, random_maze
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.resources import PIXEL_STRETCH
from sf_fixpo.envs.dmlab.stand_in.scene import Level, Placed, Pose, Scene
from sf_fixpo.envs.dmlab.stand_in.wad import Point, Room

CELL_SIZE = 100.0  # units a side; an object at a cell's centre is touched at 47, so never through a wall
WALLS = ("WALLGREY", "WALLGRN", "WALLBLU", "WALLPINK", "WALLVIO", "WALLTEAL")
FLOORS = ("FLOORBRN", "FLOORBLU", "FLOORGRN", "FLOORGRY")

_WALL_HEIGHT = 100
_OBJECTS_A_ROOM = 4
_STARTS_A_ROOM = 5


class MazeLevel(Level):
    """A maze of an episode's own, searched until the time is up."""

    frames = 90 * FRAMES_PER_SECOND
    _reward: float  # of one object

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the maze, its textures and the places."""
        self._rng = rng
        maze = random_maze(rng)
        wall = WALLS[int(rng.integers(len(WALLS)))]
        floor = FLOORS[int(rng.integers(len(FLOORS)))]
        self._room = maze_room(maze, wall, floor)
        objects, self._starts = _places(rng, maze)
        self._objects = self._choose(rng, objects)
        return self._filled()

    @abstractmethod
    def _choose(self, rng: np.random.Generator, places: list[Point]) -> tuple[Placed, ...]:
        """What stands where in this episode.

        Args:
            rng: of the episode.
            places: for objects, in all rooms; one at least.
        """

    def _filled(self) -> Scene:
        """The maze with everything there is to find, and the player at a place drawn now."""
        self._left = len(self._objects)
        x, y = self._starts[int(self._rng.integers(len(self._starts)))]
        return Scene((self._room,), self._objects, (x, y, int(self._rng.integers(360))))

    def picked_up(self, name: str, count: int, frame: int, pose: Pose) -> float:
        """The same for each object."""
        del name, frame, pose
        self._left -= count
        return self._reward * count

    def next_scene(self, pose: Pose) -> Scene | None:
        """The same maze, filled again, when everything is found."""
        del pose
        return None if self._left else self._filled()

    def last_frame(self) -> int:
        """The clock's."""
        return self.frames


class GoalLocations(MazeLevel):
    """explore_goal_locations_small: one goal at +10, in the same place throughout the episode."""

    _reward = 10.0

    def _choose(self, rng: np.random.Generator, places: list[Point]) -> tuple[Placed, ...]:
        return (("goal", *places[int(rng.integers(len(places)))]),)


class ObjectLocations(MazeLevel):
    """explore_object_locations_small: apples at +1 in half of the places; all come back when the last is gone."""

    _reward = 1.0

    def _choose(self, rng: np.random.Generator, places: list[Point]) -> tuple[Placed, ...]:
        chosen = rng.permutation(len(places))[: len(places) // 2]
        return tuple(("apple", *places[int(i)]) for i in chosen)


def maze_room(maze: Maze, wall: str, floor: str) -> Room:
    """A maze as one room, with the blocks that are surrounded by open cells in it.

    Args:
        maze: cell (x, y) begins x and y cells east and north of the origin.
        wall: texture name.
        floor: texture name.
    """
    outer, *blocks = [tuple((x * CELL_SIZE, y * CELL_SIZE) for x, y in loop) for loop in outlines(maze.open_cells)]
    height = round(_WALL_HEIGHT / PIXEL_STRETCH)
    return Room(outer, height=height, wall=wall, floor=floor, ceiling="CEILING", blocks=tuple(blocks))


def _places(rng: np.random.Generator, maze: Maze) -> tuple[list[Point], list[Point]]:
    """Places for objects and places for the player: centres of cells of the rooms, none twice."""
    objects, starts = [], []
    for room in maze.rooms:
        centres = [((x + 0.5) * CELL_SIZE, (y + 0.5) * CELL_SIZE) for x, y in room]
        drawn = [centres[int(i)] for i in rng.permutation(len(centres))]
        objects += drawn[:_OBJECTS_A_ROOM]
        starts += drawn[_OBJECTS_A_ROOM : _OBJECTS_A_ROOM + _STARTS_A_ROOM]
    return objects, starts
