"""A scripted walker for the stand-in engine.

It knows where everything stands, plans on a grid and keeps clear of what it must not touch. It walks slowly enough to stop in
time: the player slides on for a sixth of its speed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

STILL = np.zeros(7, np.intc)
Box = tuple[float, float, float, float]  # west, south, east, north


@dataclass(frozen=True)
class Walker:
    """How carefully to walk, and where.

    Attributes:
        floors: rectangles that make up the place where the player's centre can be.
        cell: of the planning grid, units.
        clearance: to what must not be touched, centre to centre, along the farther axis.
        tolerance: distance at which a way point counts as reached.
        speed: units/s.
    """

    floors: tuple[Box, ...]
    cell: float = 16
    clearance: float = 60
    tolerance: float = 24
    speed: float = 140

    def plan(self, start, goal, avoid):
        """Way points from one place to another around squares, or [] where there is none."""
        first, last = self._cell(*start), self._cell(*goal)
        parents: dict = {first: None}
        queue = deque([first])
        while queue:
            place = queue.popleft()
            if place == last:
                way = []
                while place is not None:
                    way.append(self._centre(place))
                    place = parents[place]
                return way[::-1]
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
                near = place[0] + dx, place[1] + dy
                if near not in parents and (near == last or self._is_free(near, avoid)):
                    parents[near] = place
                    queue.append(near)
        return []

    def _cell(self, x, y):
        return int(x // self.cell), int(y // self.cell)

    def _centre(self, place):
        return place[0] * self.cell + self.cell / 2, place[1] * self.cell + self.cell / 2

    def _is_free(self, place, avoid):
        x, y = self._centre(place)
        inside = any(west < x < east and south < y < north for west, south, east, north in self.floors)
        return inside and all(max(abs(x - ax), abs(y - ay)) > self.clearance for ax, ay in avoid)

    def collect(self, lab, wanted, unwanted, skip, most=None):
        """Walks from one wanted object to the nearest next, until the episode ends, `most` rewards have come or there is no way.

        Returns:
            The reward of every step.
        """
        rewards, left, way = [], list(wanted), []
        previous = pose(lab)[0]
        while lab.is_running() and (most is None or sum(map(bool, rewards)) < most):
            (x, y, _), (_, yaw, _) = pose(lab)
            speed = math.hypot(x - previous[0], y - previous[1]) * 60 / skip
            previous = (x, y)
            if not way and left:
                left.sort(key=lambda place: math.hypot(place[0] - x, place[1] - y))
                way = next(filter(None, (self.plan((x, y), place, unwanted) for place in left)), None)
                if way is None:
                    return rewards
            while way and math.hypot(way[0][0] - x, way[0][1] - y) < self.tolerance:
                way.pop(0)
            action = STILL.copy()
            if way:
                off = turn_towards(action, way[0], x, y, yaw, skip)
                action[3] = int(abs(off) < 20 and speed < self.speed)
            rewards.append(lab.step(action, num_steps=skip))
            if rewards[-1]:
                left = [place for place in left if max(abs(place[0] - x), abs(place[1] - y)) > 60 + self.speed / 9]
                way = []
        return rewards


def pose(lab):
    """Position and rotation."""
    observations = lab.observations()
    return observations["DEBUG.POS.TRANS"], observations["DEBUG.POS.ROT"]


def turn_towards(action, place, x, y, yaw, skip):
    """Makes an action turn the player to a place; returns by how many degrees."""
    bearing = math.degrees(math.atan2(place[1] - y, place[0] - x))
    off = (yaw - bearing + 180) % 360 - 180
    action[0] = max(-512, min(512, round(off / 0.1056 / skip)))
    return off


def places(lab, *names):
    """Where objects of some names stand in the lab's present scene."""
    return [(x, y) for name, x, y in lab._scene.objects if name in names]
