"""A scripted walker for levels on square cells: it knows the map and goes to the nearest place it wants, and again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from benchmarks.levels.players.floors import STILL, pose, turn_towards

SIDE = 100
SPEED = 60  # frames a second


def cell_of(x, y):
    """The cell of a point."""
    return int(x // SIDE), int(y // SIDE)


def centre(cell):
    """The middle of a cell, units."""
    return (cell[0] + 0.5) * SIDE, (cell[1] + 0.5) * SIDE


def around(cell):
    """The four neighbours of a cell."""
    x, y = cell
    return ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1))


@dataclass
class Knowledge:
    """What a walker knows of a level at a moment.

    Attributes:
        cells: where it can walk.
        wanted: points to go to.
        avoided: cells that it does not enter.
        passes: whether it can go from one cell to a neighbour.
    """

    cells: Collection
    wanted: Iterable
    avoided: Collection = ()
    passes: Callable = lambda one, other: True


def way(here, goals, known):
    """Cells from here to the nearest of some, here left out; None where none can be reached."""
    parents, queue = {here: None}, deque([here])
    while queue:
        cell = queue.popleft()
        if cell in goals:
            found = []
            while cell != here:
                found.append(cell)
                cell = parents[cell]
            return found[::-1]
        for near in around(cell):
            if near in known.cells and near not in parents and near not in known.avoided and known.passes(cell, near):
                parents[near] = cell
                queue.append(near)
    return None


def hunt(lab, look, frames, skip=4, slow=1000.0):
    """Plays by what `look(lab)` says there is to be had.

    Args:
        lab: a running stand-in.
        look: gives `Knowledge`; asked before every step.
        frames: how many to play at most.
        skip: frames a step.
        slow: units/s above which it does not accelerate.

    Returns:
        The reward of every step.
    """
    rewards, begin = [], lab.num_steps()
    previous = None
    while lab.is_running() and lab.num_steps() - begin < frames:
        (x, y, _), (_, yaw, _) = pose(lab)
        known = look(lab)
        here = cell_of(x, y)
        targets = {cell_of(*point): point for point in known.wanted}
        route = way(here, targets, known)
        action = STILL.copy()
        if route is not None:
            last = route[-1] if route else here
            points = [centre(cell) for cell in route[:-1]] + [targets[last]]
            # The next cell's centre, unless it is as good as reached.
            point = points[1] if len(points) > 1 and math.dist(points[0], (x, y)) < 30 else points[0]
            off = turn_towards(action, point, x, y, yaw, skip)
            speed = 0.0 if previous is None else math.dist(previous, (x, y)) * SPEED / skip
            action[3] = int(abs(off) < 30 and speed < slow)
        previous = (x, y)
        rewards.append(lab.step(action, num_steps=skip))
    return rewards


class Ledger:
    """Which items of a lab's present scene are still there; it listens to what the level is told."""

    def __init__(self, lab):
        self._lab, self._scene, self._taken = lab, lab._scene, set()
        level, took = lab._level, lab._level.took

        def listen(items, frame, pose):
            self.left()
            self._taken.update(items)
            return took(items, frame, pose)

        level.took = listen

    def left(self):
        """Numbers of the items."""
        if self._scene is not self._lab._scene:
            self._scene, self._taken = self._lab._scene, set()
        return [number for number in range(len(self._scene.items)) if number not in self._taken]
