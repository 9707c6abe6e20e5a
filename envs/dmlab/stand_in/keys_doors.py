"""rooms_keys_doors_puzzle: unseen walls, coloured fences, and keys of which one can carry one at a time."""

from __future__ import annotations

import itertools

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.grids import CELL_SIZE, Border, Grid, Panel, Patch, border, centre
from sf_fixpo.envs.dmlab.stand_in.looks import COLOURS
from sf_fixpo.envs.dmlab.stand_in.mazes import Cell
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.puzzles import GRID, Gap, Puzzle, RoomPlace, random_puzzle
from sf_fixpo.envs.dmlab.stand_in.scene import Item, Level, Look, Pose, Scene
from sf_fixpo.envs.dmlab.stand_in.sprites import FENCE_COLOURS
from sf_fixpo.envs.dmlab.stand_in.wad import Point

_KEY_REWARD, _DOOR_REWARD, _GOAL_REWARD = 1.0, 1.0, 50.0
_FRAMES_AFTER_GOAL = 12  # 0.2 s
_HEIGHT = 100
_PERIOD = (4, 3)  # cells from one room to the next: 3 x 2 of its own, and one of wall
_OBJECT_CELLS = ((0, 0), (2, 0))  # of a room: the outer ones of the lower row
_START_CELLS = ((1, 0), (0, 1), (1, 1), (2, 1))
_MARGIN = 8  # cells of floor around the rooms
_TOUCH = 22.0  # units from the player's middle to a fence; the player is stopped at 16
_CLOSE = 150.0  # farther than the player comes between two reports, and than a reach
_SQUARE = (12 / 640, 60 / 640)  # of the frame's width, from the left and from the top: the colour in hand


def room_cell(room: RoomPlace, cell: Cell) -> Cell:
    """A cell of a room, counted from its south-west corner, on the map."""
    return room[0] * _PERIOD[0] + cell[0], room[1] * _PERIOD[1] + cell[1]


def gap_cell(between: Gap) -> Cell:
    """The cell of the door or opening between two rooms: beside the upper row, or above the middle column."""
    room, other = between
    return room_cell(room, (3, 1) if other[0] > room[0] else (1, 2))


def screen(between: Gap, colour: str) -> tuple[Point, Point, Panel]:
    """A fence across the middle of its cell."""
    (x, y), panel = gap_cell(between), Panel(f"FENCE{colour.upper()[:3]}")
    middle = centre((x, y))
    if between[1][0] > between[0][0]:
        return (middle[0], y * CELL_SIZE), (middle[0], (y + 1) * CELL_SIZE), panel
    return (x * CELL_SIZE, middle[1]), ((x + 1) * CELL_SIZE, middle[1]), panel


def walkable(puzzle: Puzzle) -> set[Cell]:
    """The cells of rooms, doors and openings."""
    rooms = {room_cell(room, cell) for room in puzzle.rooms for cell in itertools.product(range(3), range(2))}
    return rooms | {gap_cell(between) for between in (*puzzle.doors, *puzzle.openings)}


class KeysDoorsPuzzle(Level):
    """One point for a key, one for the door that it opens, fifty for the goal, which ends the episode."""

    frames = 60 * FRAMES_PER_SECOND

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the puzzle, the start and the yaw."""
        self._end = self.frames
        self.puzzle = random_puzzle(rng)
        self.hand = ""
        self.shut = dict(self.puzzle.doors)
        self._close = False
        self._rebuild = False
        self._things: list[tuple[str, Cell]] = []
        for room, things in sorted(self.puzzle.rooms.items()):
            for thing, i in zip(things, rng.permutation(len(_OBJECT_CELLS)), strict=False):
                self._things.append((thing, room_cell(room, _OBJECT_CELLS[int(i)])))
        self._cells, self._borders = self._floor()
        start = room_cell(self.puzzle.start, _START_CELLS[int(rng.integers(len(_START_CELLS)))])
        return self._scene((*centre(start), int(rng.integers(360))))

    def _floor(self) -> tuple[dict[Cell, Patch], dict[Border, Panel]]:
        """One floor as far as one sees, and unseen walls around where one can walk."""
        patch = Patch("FLOORORA", "CEILING")
        columns, rows = (range(-_MARGIN, GRID * period + _MARGIN) for period in _PERIOD)
        open_cells = walkable(self.puzzle)
        unseen = {}
        for x, y in open_cells:
            for near in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if near not in open_cells:
                    unseen[border((x, y), near)] = Panel()
        return {(x, y): patch for x in columns for y in rows}, unseen

    def _scene(self, start: tuple[float, float, float]) -> Scene:
        """What is left, behind the doors that are shut."""
        self._shown = list(self._things)
        items = tuple(Item(_look(thing), *centre(cell)) for thing, cell in self._shown)
        screens = tuple(screen(between, colour) for between, colour in sorted(self.shut.items()))
        return Scene((), (), start, items=items, grid=Grid(self._cells, _HEIGHT, self._borders, screens))

    def took(self, items: tuple[int | None, ...], frame: int, pose: Pose) -> float:
        """A key comes into the hand, and what was in it is lost; the goal ends the episode."""
        del pose
        reward = 0.0
        for number in items:
            taken = self._shown[number or 0]
            self._things.remove(taken)
            if taken[0] == "goal":
                self._end = min(frame + _FRAMES_AFTER_GOAL, self.frames)
                reward += _GOAL_REWARD
            else:
                self.hand = taken[0]
                reward += _KEY_REWARD
        return reward

    def elapsed(self, frame: int, pose: Pose) -> float | None:
        """Opens the door that the player touches with its key in hand."""
        del frame
        goal = [centre(cell) for thing, cell in self._things if thing == "goal"]
        self._close = any(max(abs(pose.x - x), abs(pose.y - y)) < _CLOSE for x, y in goal)
        for between, colour in self.shut.items():
            (bx, by), (ex, ey), _ = screen(between, colour)
            if (
                colour == self.hand
                and min(bx, ex) - _TOUCH < pose.x < max(bx, ex) + _TOUCH
                and (min(by, ey) - _TOUCH < pose.y < max(by, ey) + _TOUCH)
            ):
                del self.shut[between]
                self.hand = ""
                self._rebuild = True
                return _DOOR_REWARD
        return None

    def next_scene(self, pose: Pose) -> Scene | None:
        """Without the door that was opened, around a player who has not moved."""
        if not self._rebuild:
            return None
        self._rebuild = False
        return self._scene((pose.x, pose.y, pose.yaw))

    def watchful(self) -> bool:
        """Near the goal, whose frame decides the end."""
        return self._close and self._end == self.frames

    def last_frame(self) -> int:
        """The clock's, or 0.2 s after the goal."""
        return self._end

    def paint(self, image: np.ndarray) -> None:
        """A filled square in the colour of the key in hand."""
        if self.hand:
            begin, end = (round(share * image.shape[1]) for share in _SQUARE)
            image[begin:end, begin:end] = FENCE_COLOURS[self.hand]


def _look(thing: str) -> Look:
    """What a key or the goal looks like."""
    return Look("ice_lolly", COLOURS["orange"]) if thing == "goal" else Look("key", FENCE_COLOURS[thing])
