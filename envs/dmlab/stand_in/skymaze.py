"""skymaze_irreversible_path_hard and skymaze_irreversible_path_varied: platforms in the sky that one can only walk down.

A grid of (2 n + 1) x (2 n + 1) cells; each is a platform or an unseen wall. One path leads from the start to the goal; others
leave it and end too deep to come back on to it. A step up is higher than the player can climb, so that every choice is for good.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.grids import Grid, Panel, Patch, border, centre
from sf_fixpo.envs.dmlab.stand_in.mazes import Cell
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.scene import Item, Level, Look, Pose, Scene

_GOAL_REWARD = 100.0
_FRAMES_AFTER_GOAL = 12  # 0.2 s
_STEP = 20  # units: heights go by it
_START_HEIGHT = 800
_FIRST_DROP = 100  # from the start to the path
_LOWEST = 440  # of the main path
_DROP_CHANCE = 0.3
_CEILING = 1000
_MARGIN = 10  # cells of abyss around the grid
_ABYSS = Patch("ABYSS", "CEILING", 0.0)
_FLOORS = ("SKYROSE", "SKYGOLD", "SKYLIME", "SKYMINT", "SKYPLUM", "SKYSAND")  # by height, in turn
_CLOSE = 150  # units; farther than the player comes between two reports, and than its reach
_ATTEMPTS = 30  # for a path, before fewer cells are asked for


@dataclass(frozen=True)
class Course:
    """Where the platforms are.

    Attributes:
        n: path cells a side; the grid has 2 n + 1 cells a side, and path cells lie on even rows and columns.
        heights: of each platform, units.
        main: cells of the path to the goal in order, the ones between path cells too; the first is the start, the last the goal.
        sides: the same of each path that leads nowhere, without the two cells of the main path between which it lies.
    """

    n: int
    heights: dict[Cell, int]
    main: list[Cell]
    sides: list[list[Cell]]


def random_course(rng: np.random.Generator, difficulty: float) -> Course:
    """A course as hard as told.

    Args:
        rng: makes all choices.
        difficulty: from 0 to 1; size and number of paths grow with it.
    """
    n, paths = 4 + round(6 * difficulty), 1 + round(7 * difficulty)
    longest = max(2, int(n * (0.3 + difficulty)))
    path = None
    while path is None:
        start, goal = _ends(rng, n)
        path = _walk(rng, n, start, {goal}, set(), _distance(start, goal) + longest)
    main = _with_between(path)
    heights = dict(zip(main, _main_heights(rng, len(main)), strict=True))
    sides: list[list[Cell]] = []
    taken = set(path)
    for _ in range(paths - 1):
        side = None
        for place in rng.permutation(len(path) - 2):
            leave = path[1 + int(place)]
            side = _walk(rng, n, leave, set(path[1:]) - {leave}, taken, longest + 1)
            if side is not None:
                break
        if side is None:
            break  # no place for it anywhere
        taken.update(side)
        cells = _with_between(side)
        ends = heights[cells[0]], heights[cells[-1]]
        inner = cells[1:-1]
        lowest = min(ends) - _STEP * int(rng.integers(1, 4))
        drops = (ends[0] - lowest) // _STEP
        for i, cell in enumerate(inner):
            heights[cell] = ends[0] - _STEP * (drops * (i + 1) // len(inner))
        sides.append(inner)
    return Course(n, heights, main, sides)


def _distance(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _ends(rng: np.random.Generator, n: int) -> tuple[Cell, Cell]:
    """Start in the first third of the rows, goal in the last, not in the outer columns, n - 3 or n - 2 path cells apart."""
    third = (n + 1 + 2) // 3
    while True:
        start = (int(rng.integers(1, n)), int(rng.integers(third)))
        goal = (int(rng.integers(1, n)), n - int(rng.integers(third)))
        if n - 3 <= _distance(start, goal) <= n - 2:
            return start, goal


def _walk(rng: np.random.Generator, n: int, start: Cell, ends: set[Cell], taken: set[Cell], most: int) -> list[Cell] | None:
    """A random walk without loops over free path cells from a cell to one of some ends; None where none was found.

    Args:
        rng: makes all choices.
        n: path cells run from 0 to n both ways.
        start: not free itself.
        ends: where it may end, with one free cell at least between it and the start.
        taken: path cells that are not free.
        most: steps.
    """
    for _ in range(_ATTEMPTS):
        path = [start]
        while len(path) <= most:
            x, y = path[-1]
            near = [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
            inside = [cell for cell in near if 0 <= cell[0] <= n and 0 <= cell[1] <= n and cell not in path]
            free = [cell for cell in inside if (len(path) > 1 if cell in ends else cell not in taken)]
            if not free:
                break
            path.append(free[int(rng.integers(len(free)))])
            if path[-1] in ends:
                return path
    return None


def _with_between(path: list[Cell]) -> list[Cell]:
    """Path cells and the cells between them, in the grid's coordinates."""
    cells = [(2 * path[0][0], 2 * path[0][1])]
    for (x1, y1), (x2, y2) in itertools.pairwise(path):
        cells += [(x1 + x2, y1 + y2), (2 * x2, 2 * y2)]
    return cells


def _main_heights(rng: np.random.Generator, count: int) -> list[int]:
    """Heights along the main path, the start's first."""
    heights = [_START_HEIGHT, _START_HEIGHT - _FIRST_DROP]
    while len(heights) < count:
        drop = _STEP * int(rng.integers(1, 3)) if rng.random() < _DROP_CHANCE else 0
        heights.append(max(_LOWEST, heights[-1] - drop))
    return heights


def course_grid(course: Course) -> Grid:
    """A course as a map: platforms over an abyss, with unseen walls around all of them."""
    cells: dict[Cell, Patch] = dict.fromkeys(itertools.product(range(-_MARGIN, 2 * course.n + 1 + _MARGIN), repeat=2), _ABYSS)  # type: ignore[arg-type]
    for cell, height in course.heights.items():
        cells[cell] = Patch(_FLOORS[height // _STEP % len(_FLOORS)], "WALLGREY", height)
    unseen = {}
    for x, y in course.heights:
        for near in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            if near not in course.heights:
                unseen[border((x, y), near)] = Panel()
    return Grid(cells, _CEILING, unseen)


class IrreversiblePath(Level):
    """Down the one path that leads to the goal, +100; the episode ends shortly after it, or on time."""

    frames = 60 * FRAMES_PER_SECOND
    can_jump = False

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the course and the yaw."""
        self._end = self.frames
        self._close = False
        self._course = random_course(rng, self._difficulty(rng))
        goal = Item(Look("goal", scale=1.62), *centre(self._course.main[-1]))
        start = (*centre(self._course.main[0]), int(rng.integers(360)))
        return Scene((), (), start, items=(goal,), grid=course_grid(self._course))

    @abstractmethod
    def _difficulty(self, rng: np.random.Generator) -> float:
        """Of an episode, from 0 to 1."""

    def took(self, items: tuple[int | None, ...], frame: int, pose: Pose) -> float:
        """The goal, and the end 0.2 s later."""
        del items, pose
        self._end = min(frame + _FRAMES_AFTER_GOAL, self.frames)
        return _GOAL_REWARD

    def last_frame(self) -> int:
        """The clock's, or 0.2 s after the goal."""
        return self._end

    def elapsed(self, frame: int, pose: Pose) -> None:
        """Keeps an eye on how far the goal is."""
        del frame
        x, y = centre(self._course.main[-1])
        self._close = max(abs(pose.x - x), abs(pose.y - y)) < _CLOSE

    def watchful(self) -> bool:
        """Near the goal, whose frame decides the end."""
        return self._close and self._end == self.frames


class IrreversiblePathHard(IrreversiblePath):
    """Nine path cells a side and seven paths."""

    def _difficulty(self, rng: np.random.Generator) -> float:
        del rng
        return 0.9


class IrreversiblePathVaried(IrreversiblePath):
    """From four path cells a side and one path to ten and eight."""

    def _difficulty(self, rng: np.random.Generator) -> float:
        return float(rng.random())
