"""explore_{goal_locations,object_locations,obstructed_goals}_{small,large}: what to find in a maze that is new in every episode.

What all share with DeepMind Lab's: 90 or 120 seconds, a grid of 11 x 11 or 17 x 17 cells of 100 units, up to four rooms with
sides of three to five cells or nine of 3 x 3, in each of them four places for objects and five where the player may start,
textures drawn for the episode. An object at a cell's centre is touched at 47 units, so never through a wall. When
there is nothing left to find, the same maze is filled again and the player starts at a place drawn anew. That comes with the
first report of the engine after the pickup: no `watchful` here, because an exact frame would cost a fifth of the speed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.grids import CELL_SIZE, Grid, Panel, Patch
from sf_fixpo.envs.dmlab.stand_in.mazes import Cell, Maze, outlines, random_maze
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.resources import PIXEL_STRETCH
from sf_fixpo.envs.dmlab.stand_in.scene import Level, Placed, Pose, Scene
from sf_fixpo.envs.dmlab.stand_in.wad import Point, Room

WALLS = ("WALLGREY", "WALLGRN", "WALLBLU", "WALLPINK", "WALLVIO", "WALLTEAL")
FLOORS = ("FLOORBRN", "FLOORBLU", "FLOORGRN", "FLOORGRY")

_WALL_HEIGHT = 100
_OBJECTS_A_ROOM = 4
_STARTS_A_ROOM = 5


@dataclass(frozen=True)
class MazeKind:
    """How large the mazes of a level are.

    Attributes:
        size: columns and rows.
        rooms: fewest and most rooms.
        sides: shortest and longest side of a room, cells.
        seconds: of an episode.
    """

    size: tuple[int, int]
    rooms: tuple[int, int]
    sides: tuple[int, int]
    seconds: int


SMALL = MazeKind((11, 11), (2, 4), (3, 5), 90)
LARGE = MazeKind((17, 17), (9, 9), (3, 3), 120)


class MazeLevel(Level):
    """A maze of an episode's own, searched until the time is up."""

    kind = SMALL
    _reward: float  # of one object

    @property
    def frames(self) -> int:  # type: ignore[override]
        """The clock's."""
        return self.kind.seconds * FRAMES_PER_SECOND

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the maze, its textures and the places."""
        self._rng = rng
        self._maze = random_maze(rng, self.kind.size, self.kind.rooms, self.kind.sides)
        self._wall = WALLS[int(rng.integers(len(WALLS)))]
        self._floor = FLOORS[int(rng.integers(len(FLOORS)))]
        objects, self._starts = _places(rng, self._maze)
        self._objects = self._choose(rng, objects)
        self._build()
        return self._filled()

    @abstractmethod
    def _choose(self, rng: np.random.Generator, places: list[Point]) -> tuple[Placed, ...]:
        """What stands where in this episode.

        Args:
            rng: of the episode.
            places: for objects, in all rooms; one at least.
        """

    def _build(self) -> None:
        """Makes of the maze what all scenes of the episode share."""
        self._room = maze_room(self._maze, self._wall, self._floor)

    def _filled(self) -> Scene:
        """The maze with everything there is to find, and the player at a place drawn now."""
        self._left = len(self._objects)
        x, y = self._starts[int(self._rng.integers(len(self._starts)))]
        return self._scene((x, y, int(self._rng.integers(360))))

    def _scene(self, start: tuple[float, float, int]) -> Scene:
        """The maze around a player who starts anew."""
        return Scene((self._room,), self._objects, start)

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


class GoalLocationsLarge(GoalLocations):
    """explore_goal_locations_large."""

    kind = LARGE


class ObjectLocations(MazeLevel):
    """explore_object_locations_small: apples at +1 in half of the places; all come back when the last is gone."""

    _reward = 1.0

    def _choose(self, rng: np.random.Generator, places: list[Point]) -> tuple[Placed, ...]:
        chosen = rng.permutation(len(places))[: len(places) // 2]
        return tuple(("apple", *places[int(i)]) for i in chosen)


class ObjectLocationsLarge(ObjectLocations):
    """explore_object_locations_large."""

    kind = LARGE


class ObstructedGoals(GoalLocations):
    """explore_obstructed_goals_small: as goal locations, with a door in every connecting cell.

    Each start shuts all doors, then opens those on a way from there to the goal, which is one of the shortest, and a random half
    of the others. Doors do not move while one plays.
    """

    def _build(self) -> None:
        patch = Patch(self._floor, self._wall)
        self._cells = dict.fromkeys(sorted(self._maze.open_cells), patch)

    def _scene(self, start: tuple[float, float, int]) -> Scene:
        here = (int(start[0] // CELL_SIZE), int(start[1] // CELL_SIZE))
        goal = (int(self._objects[0][1] // CELL_SIZE), int(self._objects[0][2] // CELL_SIZE))
        passed = set(self._way(here, goal))
        shut = [door for door in self._maze.doorways if door not in passed]
        kept = self._rng.permutation(len(shut))[len(shut) // 2 :]
        screens = tuple(door_screen(shut[int(i)]) for i in sorted(kept))
        grid = Grid(self._cells, _WALL_HEIGHT, screens=screens)
        return Scene((), self._objects, start, grid=grid)

    def _way(self, start: Cell, goal: Cell) -> list[Cell]:
        """One of the shortest ways, drawn."""
        parents: dict[Cell, Cell | None] = {start: None}
        queue = deque([start])
        while goal not in parents:
            x, y = queue.popleft()
            near = [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
            for i in self._rng.permutation(4):
                cell = near[int(i)]
                if cell in self._cells and cell not in parents:
                    parents[cell] = (x, y)
                    queue.append(cell)
        way: list[Cell] = []
        here: Cell | None = goal
        while here is not None:
            way.append(here)
            here = parents[here]
        return way


class ObstructedGoalsLarge(ObstructedGoals):
    """explore_obstructed_goals_large."""

    kind = LARGE


def door_screen(cell: Cell) -> tuple[Point, Point, Panel]:
    """A shut door across the middle of a connecting cell: those on even columns lead from west to east."""
    x, y = cell
    if x % 2 == 0:
        middle = (x + 0.5) * CELL_SIZE
        return (middle, y * CELL_SIZE), (middle, (y + 1) * CELL_SIZE), Panel("DOOR")
    middle = (y + 0.5) * CELL_SIZE
    return (x * CELL_SIZE, middle), ((x + 1) * CELL_SIZE, middle), Panel("DOOR")


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
