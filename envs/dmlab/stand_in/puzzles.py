"""The puzzles of rooms_keys_doors_puzzle: rooms on a grid of 3 x 3, doors between them, keys and a goal in them.

A core sequence of one to three keys and doors leads to the goal. Around it are a trap, a red herring, rooms and doors that no key
opens, and keys that open nothing: opening the wrong door, or taking a key with another in hand, can make the goal unreachable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

COLOURS = ("red", "green", "blue", "white", "black")
GRID = 3  # rooms a side
OBJECTS_A_ROOM = 2
_EMPTY_ROOM_CHANCE = {1: 0.8, 2: 0.5, 3: 0.0}

RoomPlace = tuple[int, int]  # column and row on the grid of rooms
Gap = tuple[RoomPlace, RoomPlace]  # between two neighbours, the western or southern one first


@dataclass
class Puzzle:
    """What is where.

    Attributes:
        start: the room in which the player starts.
        goal: the room of the goal.
        length: of the core sequence.
        rooms: all rooms, with what lies in them: colours of keys, and `goal`.
        doors: colours by where they are.
        openings: gaps without a door.
    """

    start: RoomPlace
    goal: RoomPlace
    length: int
    rooms: dict[RoomPlace, list[str]] = field(default_factory=dict)
    doors: dict[Gap, str] = field(default_factory=dict)
    openings: set[Gap] = field(default_factory=set)


def gap(one: RoomPlace, other: RoomPlace) -> Gap:
    """Between two neighbours."""
    return (one, other) if one < other else (other, one)


def neighbours(room: RoomPlace) -> list[RoomPlace]:
    """The places next to one that are on the grid."""
    x, y = room
    near = [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
    return [(a, b) for a, b in near if 0 <= a < GRID and 0 <= b < GRID]


def random_puzzle(rng: np.random.Generator) -> Puzzle:
    """A puzzle that can be solved."""
    while True:
        puzzle = _core(rng)
        if puzzle is not None:
            break
    colours = list(puzzle.doors.values())  # of the core, in order
    unused = [colour for colour in COLOURS if colour not in colours]
    trapped = int(rng.integers(len(colours)))
    trap = _hang(rng, puzzle, colours[trapped])
    if trap is not None:
        later = colours[trapped + 1 :] or colours[trapped:]
        puzzle.rooms[trap].append(_pick(rng, later))
    _hang(rng, puzzle, _pick(rng, colours))  # the red herring
    if rng.random() < 0.5:
        _hang(rng, puzzle, _pick(rng, unused))
    if rng.random() < _EMPTY_ROOM_CHANCE[puzzle.length]:
        _hang(rng, puzzle, None)
    for colour in [_pick(rng, unused), _pick(rng, unused), *([_pick(rng, colours)] if rng.random() < 0.5 else [])]:
        free = [g for g in _walls(puzzle) if not _joins_the_core(g, puzzle, colour, colours)]
        if free:
            puzzle.doors[free[int(rng.integers(len(free)))]] = colour
    useless = [colour for colour in COLOURS if colour not in puzzle.doors.values()]
    if useless and rng.random() < 0.5:
        _put(rng, puzzle, list(puzzle.rooms), _pick(rng, useless))
    return puzzle


def _pick(rng: np.random.Generator, choices: list[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _core(rng: np.random.Generator) -> Puzzle | None:
    """The start, the rooms of the core sequence with their doors, their keys and the goal; None where they have no place."""
    start = (int(rng.integers(GRID)), int(rng.integers(GRID)))
    length = int(rng.integers(1, 4))
    puzzle = Puzzle(start, start, length, {start: []})
    last = start
    for i in rng.permutation(len(COLOURS))[:length]:
        colour = COLOURS[int(i)]
        known = list(puzzle.rooms)
        # The key lies in any room and the door is in the last one, or the other way about.
        hanging, holding = ([last], known) if rng.random() < 0.5 else (known, [last])
        new = _hang(rng, puzzle, colour, hanging)
        if new is None or not _put(rng, puzzle, holding, colour):
            return None
        last = new
    puzzle.goal = last
    puzzle.rooms[last].append("goal")
    return puzzle


def _hang(rng: np.random.Generator, puzzle: Puzzle, colour: str | None, on: list[RoomPlace] | None = None) -> RoomPlace | None:
    """Adds a room next to one of some, as near to the start as possible, behind a door or an opening; None without place."""
    options = [(base, new) for base in on or list(puzzle.rooms) for new in neighbours(base) if new not in puzzle.rooms]
    if not options:
        return None

    def far(option: tuple[RoomPlace, RoomPlace]) -> int:
        return abs(option[1][0] - puzzle.start[0]) + abs(option[1][1] - puzzle.start[1])

    nearest = min(map(far, options))
    near = [option for option in options if far(option) == nearest]
    base, new = near[int(rng.integers(len(near)))]
    puzzle.rooms[new] = []
    if colour is None:
        puzzle.openings.add(gap(base, new))
    else:
        puzzle.doors[gap(base, new)] = colour
    return new


def _put(rng: np.random.Generator, puzzle: Puzzle, rooms: list[RoomPlace], thing: str) -> bool:
    """Puts a thing into one of some rooms; whether there was place."""
    # The last room of the core gets the goal, for which a place is kept.
    free = [room for room in rooms if len(puzzle.rooms[room]) < OBJECTS_A_ROOM]
    if free:
        puzzle.rooms[free[int(rng.integers(len(free)))]].append(thing)
    return bool(free)


def _walls(puzzle: Puzzle) -> list[Gap]:
    """Gaps between neighbouring rooms with nothing in them yet."""
    gaps = {gap(room, near) for room in puzzle.rooms for near in neighbours(room) if near in puzzle.rooms}
    return sorted(gaps - set(puzzle.doors) - puzzle.openings)


def _joins_the_core(where: Gap, puzzle: Puzzle, colour: str, colours: list[str]) -> bool:
    """Whether a door in a colour of the core would lead to the goal itself, past the sequence."""
    return colour in colours and puzzle.goal in where
