"""The maps of the language levels, drawn as text: `*` is wall, `O` a place for an object, `P` one where the player may start.

Rows run from north to south. `R` marks nothing but floor; rooms are told by their columns and rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sf_fixpo.envs.dmlab.stand_in.mazes import Cell


@dataclass(frozen=True)
class TextMap:
    """A map, its places and its rooms.

    Attributes:
        rows: from north to south.
        rooms: how many there are.
        room_of: number of the room in which a column and a row (of the text) lie; None for corridors.
    """

    rows: tuple[str, ...]
    rooms: int
    room_of: Callable[[int, int], int | None]

    def cells(self, marks: str) -> list[Cell]:
        """Cells with one of some marks, as the map has them: rows counted northwards, and 1 added for the outer wall."""
        height = len(self.rows)
        return [
            (column + 1, height - row) for row, line in enumerate(self.rows) for column, mark in enumerate(line) if mark in marks
        ]

    def room(self, cell: Cell) -> int | None:
        """The room of a cell of the map."""
        return self.room_of(cell[0] - 1, len(self.rows) - cell[1])


AREA = TextMap(
    ("O....O", "..PP..", "O....O"),
    2,
    lambda column, row: column // 3,
)
TWO_ROOMS = TextMap(
    ("O..***..O", "..P...P..", "O..***..O"),
    2,
    lambda column, row: None if 3 <= column <= 5 else column // 6,
)
FOUR_ROOMS = TextMap(
    ("O.O*O.O", "...*...", "..P.P..", "**...**", "..P.P..", "...*...", "O.O*O.O"),
    4,
    lambda column, row: None if 3 in (column, row) else 2 * (row // 4) + column // 4,
)
SIX_ROOMS = TextMap(
    (
        "O..***..O",
        "..P...P..",
        "O..*.*..O",
        "****.****",
        "O..*.*..O",
        "..P...P..",
        "O..*.*..O",
        "****.****",
        "O..*.*..O",
        "..P...P..",
        "O..***..O",
    ),
    6,
    lambda column, row: None if 3 <= column <= 5 or row % 4 == 3 else 2 * (row // 4) + column // 6,
)
DESCRIBED = TextMap(("..O.O", "P....", "..O.O"), 1, lambda column, row: 0)
# `Y` and `N` are the places of the answers, `Q` those of the four objects in question.
QUESTION = TextMap((".....Y", "P..QQ*", "P..QQ*", ".....N"), 1, lambda column, row: 0)
