"""Carries out the solution of a puzzle of rooms_keys_doors_puzzle."""

from __future__ import annotations

from benchmarks.levels.players.cells import Knowledge, cell_of, centre
from benchmarks.levels.players.floors import pose
from benchmarks.levels.players.puzzles import solve
from sf_fixpo.envs.dmlab.stand_in.keys_doors import gap_cell, room_cell, walkable


class KeysPlayer:
    """Carries out the shortest solution of a puzzle."""

    def __init__(self, lab):
        level = lab._level
        self.moves = solve(level.puzzle)
        self.cells = walkable(level.puzzle)
        kinds = iter(level._things)
        self.places = {
            (room, i): next(kinds)[1] for room in sorted(level.puzzle.rooms) for i in range(len(level.puzzle.rooms[room]))
        }

    def look(self, lab):
        """Where to go for the next move."""
        level = lab._level
        here = cell_of(*pose(lab)[0][:2])
        left = {cell for _, cell in level._things}
        while self.moves:
            kind, room, number = self.moves[0]
            cell = self.places[room, number] if kind == "take" else None
            inside = {room_cell(room, (i, j)) for i in range(3) for j in range(2)}
            if (kind == "take" and cell not in left) or (kind == "go" and here in inside):
                self.moves.pop(0)
                continue
            targets = [cell] if kind == "take" else sorted(inside - left)
            return Knowledge(self.cells, [centre(c) for c in targets], left - set(targets), passes=self.passes(level))
        return Knowledge(self.cells, [])

    def passes(self, level):
        """Through openings, open doors, and the doors that the key in hand opens."""
        shut = {gap_cell(between) for between, colour in level.shut.items() if colour != level.hand}
        return lambda one, other: other not in shut
