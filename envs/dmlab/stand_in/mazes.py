"""Random mazes of rooms and corridors on a grid of square cells, and the outlines of their walls.

A cell is open or a block of wall, as in the text maps of DeepMind Lab. Rooms and corridors begin at odd columns and rows, so that
a block lies between any two of them. How a maze is made, after DeepMind Lab's own generator: rooms are placed at random,
corridors are dug into what is left by a backtracking walk, one cell connects every two of them that lie side by side, and dead
ends are filled. Its last step, which shortens detours, is left out. All choices come from the generator that is passed in; equal
generators give equal mazes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np

Cell = tuple[int, int]  # column (counted eastwards) and row (northwards), from 0
Corner = tuple[int, int]  # cell (x, y) lies between the corners (x, y) and (x + 1, y + 1)

_DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))
_ATTEMPTS = 1000  # to place a room where there is none


@dataclass(frozen=True)
class Maze:
    """Where one can walk.

    Attributes:
        open_cells: rooms, corridors and doorways: one connected region.
        rooms: the cells of each room, column by column.
        doorways: the cells that connect a room or a corridor with another.
    """

    open_cells: frozenset[Cell]
    rooms: tuple[tuple[Cell, ...], ...]
    doorways: tuple[Cell, ...]


def random_maze(
    rng: np.random.Generator,
    size: tuple[int, int] = (11, 11),
    rooms: tuple[int, int] = (2, 4),
    sides: tuple[int, int] = (3, 5),
    extra: float = 0.0,
) -> Maze:
    """A maze in which every cell can be reached from every other.

    Args:
        rng: makes all choices.
        size: columns and rows, the outer wall included; odd.
        rooms: fewest and most rooms; as many as the fewest must have place in rows and columns, at the shortest sides.
        sides: of a room, cells; odd: every room is as wide as the first one way, and up to the second the other way.
        extra: chance of each connecting cell that is not needed.

    Raises:
        ValueError: arguments that are not as said.
    """
    if any(length % 2 == 0 for length in (*size, *sides)) or not 1 <= sides[0] <= sides[1]:
        raise ValueError(f"size={size} and sides={sides} must be odd, and sides in order")
    place = math.prod((cells - 1) // (sides[0] + 1) for cells in size)
    if not 1 <= rooms[0] <= min(rooms[1], place):
        raise ValueError(f"rooms={rooms} must be in order and from 1; size={size} with sides={sides} has place for {place}")
    found = _place_rooms(rng, size, rooms[1], sides)
    while len(found) < rooms[0]:  # a large room in the middle leaves place for few
        found = _place_rooms(rng, size, rooms[1], sides)
    regions = {cell: number for number, room in enumerate(found) for cell in room}
    for x in range(1, size[0], 2):
        for y in range(1, size[1], 2):
            if (x, y) not in regions:
                _dig(rng, (x, y), max(regions.values()) + 1, regions, size)
    doorways = _join(rng, regions, size, extra)
    in_rooms = frozenset(cell for room in found for cell in room)
    left = frozenset(_without_dead_ends({*regions, *doorways}, in_rooms))
    return Maze(left, tuple(found), tuple(cell for cell in doorways if cell in left))


def _place_rooms(rng: np.random.Generator, size: tuple[int, int], most: int, sides: tuple[int, int]) -> list[tuple[Cell, ...]]:
    """Rooms at random places, apart from each other; fewer than asked for where there was no luck."""
    rooms: list[tuple[Cell, ...]] = []
    taken: list[tuple[int, int, int, int]] = []  # west, south, east, north, the last two just outside
    shortest, longest = sides
    for draws in rng.random((_ATTEMPTS, 4)):
        if len(rooms) == most:
            break
        begins, lengths = [], []
        turned = draws[3] < 0.5
        for axis, (cells, place) in enumerate(zip(size, draws[:2], strict=True)):
            largest = min(longest, cells - 2) if turned == bool(axis) else shortest
            lengths.append(shortest + 2 * int(draws[2] * ((largest - shortest) // 2 + 1)))
            begins.append(1 + 2 * int(place * ((cells - 2 - lengths[-1]) // 2 + 1)))
        west, south = begins
        east, north = west + lengths[0], south + lengths[1]
        if all(west >= e or w >= east or south >= n or s >= north for w, s, e, n in taken):
            taken.append((west, south, east, north))
            rooms.append(tuple((x, y) for x in range(west, east) for y in range(south, north)))
    return rooms


def _dig(rng: np.random.Generator, start: Cell, number: int, regions: dict[Cell, int], size: tuple[int, int]) -> None:
    """Digs corridors from a cell to wherever there is solid wall; adds their cells to `regions` under `number`."""
    regions[start] = number
    path = [start]
    while path:
        x, y = path[-1]
        ways = [
            (dx, dy)
            for dx, dy in _DIRECTIONS
            if 0 < x + 2 * dx < size[0] and 0 < y + 2 * dy < size[1] and (x + 2 * dx, y + 2 * dy) not in regions
        ]
        if not ways:
            path.pop()
            continue
        dx, dy = ways[int(rng.integers(len(ways)))]
        regions[x + dx, y + dy] = number
        regions[x + 2 * dx, y + 2 * dy] = number
        path.append((x + 2 * dx, y + 2 * dy))


def _join(rng: np.random.Generator, regions: dict[Cell, int], size: tuple[int, int], extra: float) -> list[Cell]:
    """Connecting cells: one, at random, for every two regions that lie side by side, and others with the chance `extra`."""
    between: dict[tuple[int, int], list[Cell]] = {}
    for x in range(1, size[0] - 1):
        for y in range(1, size[1] - 1):
            if (x + y) % 2 == 1 and (x, y) not in regions:
                dx, dy = (1, 0) if x % 2 == 0 else (0, 1)
                one, other = sorted((regions[x - dx, y - dy], regions[x + dx, y + dy]))
                if one != other:
                    between.setdefault((one, other), []).append((x, y))
    doorways = []
    for cells in between.values():
        chosen = int(rng.integers(len(cells)))
        drawn = rng.random(len(cells)) < extra
        doorways += [cell for i, cell in enumerate(cells) if i == chosen or drawn[i]]
    return doorways


def _without_dead_ends(cells: set[Cell], rooms: Set[Cell]) -> set[Cell]:
    """The cells without corridors that lead nowhere."""
    left = set(cells)
    pending = [cell for cell in sorted(cells) if cell not in rooms]
    while pending:
        x, y = pending.pop()
        around = [(x + dx, y + dy) for dx, dy in _DIRECTIONS if (x + dx, y + dy) in left]
        if (x, y) in left and len(around) <= 1:
            left.remove((x, y))
            pending += [cell for cell in around if cell not in rooms]
    return left


def outlines(open_cells: Iterable[Cell]) -> list[list[Corner]]:
    """Closed loops along the border of a set of cells, with the open side on the right; only where they turn.

    The outer border of a region runs clockwise, the borders of blocks in it counter-clockwise. Open cells that touch at a
    corner only are kept apart. The outer border of the region furthest west comes first.
    """
    cells = set(open_cells)
    leaving: dict[Corner, list[Corner]] = {}
    for x, y in cells:
        for (dx, dy), begin, end in (
            ((0, -1), (x + 1, y), (x, y)),
            ((-1, 0), (x, y), (x, y + 1)),
            ((0, 1), (x, y + 1), (x + 1, y + 1)),
            ((1, 0), (x + 1, y + 1), (x + 1, y)),
        ):
            if (x + dx, y + dy) not in cells:
                leaving.setdefault(begin, []).append(end)
    loops = []
    for start in sorted(leaving):
        # The first corner of a loop in this order is one where it turns.
        while leaving[start]:
            loops.append(_loop(start, leaving))
    return loops


def _loop(start: Corner, leaving: dict[Corner, list[Corner]]) -> list[Corner]:
    """Follows a border from a corner back to it, and takes its pieces out of `leaving`."""
    turns: list[Corner] = []
    here, heading = start, (0, 0)
    while not turns or here != start:
        ends = leaving[here]
        right = (here[0] + heading[1], here[1] - heading[0])
        end = right if right in ends else ends[0]
        ends.remove(end)
        step = (end[0] - here[0], end[1] - here[1])
        if step != heading:
            turns.append(here)
        here, heading = end, step
    return turns
