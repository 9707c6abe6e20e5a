"""Solves the puzzles of rooms_keys_doors_puzzle: an oracle that knows nothing of how they were made."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sf_fixpo.envs.dmlab.stand_in.puzzles import Gap, Puzzle, RoomPlace, gap, neighbours


@dataclass(frozen=True)
class State:
    """What a player of a puzzle has done.

    Attributes:
        room: where the player is.
        hand: colour of the key in hand; empty for none.
        taken: (room, number in it) of the things that were taken.
        opened: the doors that were.
    """

    room: RoomPlace
    hand: str = ""
    taken: frozenset[tuple[RoomPlace, int]] = frozenset()
    opened: frozenset[Gap] = frozenset()


Move = tuple[str, RoomPlace, int]  # `take` a thing of a room by its number, or `go` to a room


def moves(puzzle: Puzzle, state: State) -> list[tuple[Move, State, int]]:
    """What can be done next: the move, the state after it, and what it pays."""
    found: list[tuple[Move, State, int]] = []
    for number, thing in enumerate(puzzle.rooms[state.room]):
        key = (state.room, number)
        if key in state.taken:
            continue
        hand, pays = (state.hand, 50) if thing == "goal" else (thing, 1)
        found.append((("take", *key), State(state.room, hand, state.taken | {key}, state.opened), pays))
    for near in neighbours(state.room):
        between = gap(state.room, near)
        if between in puzzle.openings or between in state.opened:
            found.append((("go", near, 0), State(near, state.hand, state.taken, state.opened), 0))
        elif between in puzzle.doors and puzzle.doors[between] == state.hand:
            found.append((("go", near, 0), State(near, "", state.taken, state.opened | {between}), 1))
    return found


def solve(puzzle: Puzzle) -> list[Move] | None:
    """The shortest sequence of moves that takes the goal; None where there is none."""
    first = State(puzzle.start)
    ways: dict[State, tuple[Move, State] | None] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        for move, after, pays in moves(puzzle, state):
            if after in ways:
                continue
            ways[after] = (move, state)
            if pays == 50:
                return _trace(ways, after)
            queue.append(after)
    return None


def _trace(ways: dict[State, tuple[Move, State] | None], state: State) -> list[Move]:
    """The moves that led to a state."""
    found: list[Move] = []
    while (step := ways[state]) is not None:
        found.append(step[0])
        state = step[1]
    return found[::-1]
