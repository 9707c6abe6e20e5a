"""The few compiled scripts of a map (the `BEHAVIOR` lump): they count which things were picked up, and move things about.

The engine runs ACS bytecode, format `ACS0`; no compiler is needed for programs of a few words. What they count stands in the
engine's global variables, which ViZDoom gives to Python as `USER1` to `USER60`; a new map begins with zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

ITEMS_A_VARIABLE = 24  # one bit each: a game variable is exact up to 2 ** 31
ITEM_VARIABLES = 4
ANY_VARIABLE = ITEM_VARIABLES + 1  # counts pickups that need not be told apart
MOST_ITEMS = ITEMS_A_VARIABLE * ITEM_VARIABLES
MOVE_SCRIPT, MOVE_THREE_SCRIPT = 50, 51

EXECUTE = 80  # the action special that runs a script

_TERMINATE, _PUSH, _ADD, _PUSH_ARGUMENT, _DROP = 1, 3, 14, 28, 54
_MULTIPLY, _ADD_TO_GLOBAL, _SET_POSITION, _TURN_OVER_GLOBAL = 16, 183, 283, 301
_FIXED_ONE = 65536  # the engine's positions are 16.16 fixed point


def pickup_call(number: int | None) -> tuple[int, int, int]:
    """The arguments of `EXECUTE` that record a pickup.

    Args:
        number: of the item; None only counts it.

    Raises:
        ValueError: more items than can be told apart.
    """
    if number is None:
        return ANY_VARIABLE, 0, 1
    if not 0 <= number < MOST_ITEMS:
        raise ValueError(f"item {number}: only {MOST_ITEMS} can be told apart")
    return 1 + number // ITEMS_A_VARIABLE, 0, 1 << number % ITEMS_A_VARIABLE


def picked_items(before: Sequence[int], after: Sequence[int]) -> tuple[int | None, ...]:
    """What was picked up between two readings of the variables: numbers of items, and None for each that has none.

    Args:
        before: the first `ANY_VARIABLE` variables.
        after: the same, later.
    """
    found: list[int | None] = []
    for variable, (old, new) in enumerate(zip(before[:ITEM_VARIABLES], after[:ITEM_VARIABLES], strict=True)):
        changed = new ^ old
        found += [variable * ITEMS_A_VARIABLE + bit for bit in range(ITEMS_A_VARIABLE) if changed >> bit & 1]
    return (*found, *[None] * (after[ITEM_VARIABLES] - before[ITEM_VARIABLES]))


@lru_cache(maxsize=1)
def behavior_lump() -> bytes:
    """The `BEHAVIOR` lump of every map: one script a counter, and two that put things at a place.

    Scripts 1 to `ITEM_VARIABLES` turn over a bit of the global variable of their number, so that an item can come back; the next
    one counts in its own. `MOVE_SCRIPT` takes the thing's number and x, y, z in whole units; `MOVE_THREE_SCRIPT` the same, and
    moves the two with the next numbers as well, for a command costs much.
    """
    counting = [
        (n, 1, (_PUSH_ARGUMENT, 0, _ADD_TO_GLOBAL if n == ANY_VARIABLE else _TURN_OVER_GLOBAL, n, _TERMINATE))
        for n in range(1, ANY_VARIABLE + 1)
    ]
    place: list[int] = []
    for argument in (1, 2, 3):
        place += [_PUSH_ARGUMENT, argument, _PUSH, _FIXED_ONE, _MULTIPLY]

    def moves(things: int) -> tuple[int, ...]:
        words: list[int] = []
        for i in range(things):
            words += [_PUSH_ARGUMENT, 0, _PUSH, i, _ADD, *place, _PUSH, 0, _SET_POSITION, _DROP]
        return (*words, _TERMINATE)

    return _pack([*counting, (MOVE_SCRIPT, 4, moves(1)), (MOVE_THREE_SCRIPT, 4, moves(3))])


def _pack(scripts: Iterable[tuple[int, int, Sequence[int]]]) -> bytes:
    """Scripts (number, arguments, words of code) in the format `ACS0`, with an empty table of strings."""
    body, directory = b"", []
    for number, arguments, words in scripts:
        directory.append((number, 8 + len(body), arguments))
        body += struct.pack(f"<{len(words)}i", *words)
    table = struct.pack("<i", len(directory)) + b"".join(struct.pack("<3i", *entry) for entry in directory)
    return b"ACS\0" + struct.pack("<i", 8 + len(body)) + body + table + struct.pack("<i", 0)
