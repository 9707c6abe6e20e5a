"""Maps that are made of square cells: floors of different colours and heights, see-through fences, walls that are not seen.

A cell is open or solid. Between two open cells there is nothing to see unless their floors differ in height; an invisible or a
painted panel can stand on the border, or across the middle of a cell. Lengths of a map are units of DeepMind Lab; heights are
divided by Doom's stretch and rounded when they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sf_fixpo.envs.dmlab.stand_in.mazes import Cell
from sf_fixpo.envs.dmlab.stand_in.wad import Point, Thing

CELL_SIZE = 100.0  # units a side
_STRETCH = 1.2  # of Doom's vertical units, as in resources.py
_SIDES = (
    # neighbour, the border's ends with the cell on its right, in cells from the cell's south-west corner, and whether the border
    # is the neighbour's to write where that is open: the western or southern one of two does
    ((0, -1), (1, 0), (0, 0), True),
    ((-1, 0), (0, 0), (0, 1), True),
    ((0, 1), (0, 1), (1, 1), False),
    ((1, 0), (1, 1), (1, 0), False),
)


@dataclass(frozen=True)
class Patch:
    """What a cell is like.

    Attributes:
        floor: texture name.
        wall: texture name of the solid cells around it, and of the step below it.
        height: of the floor, units.
    """

    floor: str
    wall: str
    height: float = 0.0


@dataclass(frozen=True)
class Panel:
    """A thin wall between open places.

    Attributes:
        texture: name; empty for a wall that is not seen.
    """

    texture: str = ""


Border = tuple[Cell, Cell]  # two neighbours, the western or southern one first


@dataclass(frozen=True)
class Grid:
    """A map of cells; cell (x, y) begins x and y cells east and north of the origin.

    Attributes:
        cells: the open ones. They need not hang together.
        ceiling: height of the sky above 0, units.
        borders: panels between two open cells.
        screens: (begin, end, panel) of panels anywhere else in the open, units; both sides lie in one cell.
        sky: texture name of the ceiling.
    """

    cells: Mapping[Cell, Patch]
    ceiling: float
    borders: Mapping[Border, Panel] = field(default_factory=dict)
    screens: Sequence[tuple[Point, Point, Panel]] = ()
    sky: str = "CEILING"


def border(one: Cell, other: Cell) -> Border:
    """The border of two neighbours."""
    return (one, other) if one < other else (other, one)


def centre(cell: Cell) -> Point:
    """The middle of a cell, units."""
    return (cell[0] + 0.5) * CELL_SIZE, (cell[1] + 0.5) * CELL_SIZE


def grid_map(grid: Grid, things: Iterable[Thing]) -> bytes:
    """The UDMF `TEXTMAP` lump of a grid and the things on it."""
    return _Writer(grid).text(things)


class _Writer:
    """The parts of one map as they come: corners and sectors are shared."""

    def __init__(self, grid: Grid):
        self._grid = grid
        self._corners: dict[Point, int] = {}
        self._sectors: dict[Patch, int] = {}
        self._lines: list[str] = []
        self._sides: list[str] = []

    def text(self, things: Iterable[Thing]) -> bytes:
        for cell, patch in sorted(self._grid.cells.items()):
            self._cell(cell, patch)
        for begin, end, panel in self._grid.screens:
            cell = (int(begin[0] + end[0]) // int(2 * CELL_SIZE), int(begin[1] + end[1]) // int(2 * CELL_SIZE))
            sector = self._sector(self._grid.cells[cell])
            self._line(begin, end, self._side(sector, 0.0, middle=panel.texture), self._side(sector, 0.0, middle=panel.texture))
        parts = ['namespace="zdoom";']
        parts += [f"vertex{{x={x};y={y};}}" for x, y in self._corners]
        parts += self._lines
        parts += self._sides
        for patch in self._sectors:
            parts.append(
                f"sector{{heightfloor={round(patch.height / _STRETCH)};heightceiling={round(self._grid.ceiling / _STRETCH)};"
                f'lightlevel=255;texturefloor="{patch.floor}";textureceiling="{self._grid.sky}";}}'
            )
        parts += [thing.text() for thing in things]
        return "\n".join(parts).encode("ascii")

    def _cell(self, cell: Cell, patch: Patch) -> None:
        """The borders of an open cell, those of which `_SIDES` says so."""
        x, y = cell
        for (dx, dy), (bx, by), (ex, ey), theirs in _SIDES:
            near = (x + dx, y + dy)
            other, panel = self._grid.cells.get(near), None
            if other is not None:
                if theirs:
                    continue
                panel = self._grid.borders.get((cell, near))
                if panel is None and (other is patch or other == patch):  # equality of dataclasses makes two tuples
                    continue
            begin, end = ((x + bx) * CELL_SIZE, (y + by) * CELL_SIZE), ((x + ex) * CELL_SIZE, (y + ey) * CELL_SIZE)
            # Textures go on from one cell to the next: their place along the wall counts.
            along = (begin[0] + begin[1]) * (1 if (ex - bx) + (ey - by) > 0 else -1) % 128
            if other is None:
                self._line(begin, end, self._side(self._sector(patch), along, middle=patch.wall))
                continue
            texture = "" if panel is None else panel.texture
            front = self._side(
                self._sector(patch), along, middle=texture, bottom=other.wall if other.height > patch.height else ""
            )
            back = self._side(
                self._sector(other), along, middle=texture, bottom=patch.wall if patch.height > other.height else ""
            )
            self._line(begin, end, front, back, blocking=panel is not None)

    def _sector(self, patch: Patch) -> int:
        return self._sectors.setdefault(patch, len(self._sectors))

    def _corner(self, point: Point) -> int:
        return self._corners.setdefault((float(point[0]), float(point[1])), len(self._corners))

    def _side(self, sector: int, along: float, middle: str = "", bottom: str = "") -> int:
        textures = f'texturemiddle="{middle}";' if middle else ""
        textures += f'texturebottom="{bottom}";' if bottom else ""
        self._sides.append(f"sidedef{{sector={sector};offsetx={round(along)};{textures}}}")
        return len(self._sides) - 1

    def _line(self, begin: Point, end: Point, front: int, back: int | None = None, blocking: bool = True) -> None:
        rest = "" if back is None else f"sideback={back};twosided=true;"
        rest += "blocking=true;" if blocking else ""
        self._lines.append(f"linedef{{v1={self._corner(begin)};v2={self._corner(end)};sidefront={front};{rest}}}")
