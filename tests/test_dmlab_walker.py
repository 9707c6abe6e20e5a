"""A scripted walker that knows where everything stands: every point of a level can be had, and the end comes on its frame."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
from labs import FRAMES, STILL


def pose(lab):
    observations = lab.observations()
    return observations["DEBUG.POS.TRANS"], observations["DEBUG.POS.ROT"]


# The walker knows where everything stands. It plans on a grid, keeps clear of what it must not touch, and walks slowly enough
# to stop in time: the player slides on for a sixth of its speed.
CELL = 16
CLEARANCE = 60
WALKING_SPEED = 140


def plan(start, goal, avoid):
    """Way points from one place to another around squares, or [] where there is none."""
    columns, rows = 1584 // CELL, 1328 // CELL

    def cell(x, y):
        return min(int(x // CELL), columns - 1), min(int(y // CELL), rows - 1)

    def is_free(place):
        x, y = place[0] * CELL + CELL / 2, place[1] * CELL + CELL / 2
        inside = 20 < x < 1564 and 20 < y < 1308
        return inside and all(max(abs(x - ax), abs(y - ay)) > CLEARANCE for ax, ay in avoid)

    first, last = cell(*start), cell(*goal)
    parents, queue = {first: None}, deque([first])
    while queue:
        place = queue.popleft()
        if place == last:
            way = []
            while place is not None:
                way.append((place[0] * CELL + CELL / 2, place[1] * CELL + CELL / 2))
                place = parents[place]
            return way[::-1]
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            near = place[0] + dx, place[1] + dy
            if near not in parents and (near == last or is_free(near)):
                parents[near] = place
                queue.append(near)
    return []


def collect(lab, wanted, unwanted, skip):
    """Walks from one wanted object to the nearest next until the episode ends; returns the reward of every step."""
    rewards, left, way = [], list(wanted), []
    previous = pose(lab)[0]
    while lab.is_running():
        (x, y, _), (_, yaw, _) = pose(lab)
        speed = math.hypot(x - previous[0], y - previous[1]) * 60 / skip
        previous = (x, y)
        if not way and left:
            left.sort(key=lambda place: math.hypot(place[0] - x, place[1] - y))
            way = next(filter(None, (plan((x, y), place, unwanted) for place in left)), [])
        while way and math.hypot(way[0][0] - x, way[0][1] - y) < 24:
            way.pop(0)
        action = STILL.copy()
        if way:
            bearing = math.degrees(math.atan2(way[0][1] - y, way[0][0] - x))
            off = (yaw - bearing + 180) % 360 - 180
            action[0] = max(-512, min(512, round(off / 0.1056 / skip)))
            action[3] = int(abs(off) < 20 and speed < WALKING_SPEED)
        rewards.append(lab.step(action, num_steps=skip))
        if rewards[-1]:
            left = [place for place in left if max(abs(place[0] - x), abs(place[1] - y)) > 75]
            way = []
    return rewards


def objects_of(lab, good):
    names = ("can", "balloon") if good else ("hat", "cake")
    return [(x, y) for name, x, y in lab._scene.objects if name in names]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_walker_that_knows_the_places_gets_every_point(stand_in, sign):
    lab = stand_in()
    totals = []
    for seed in range(4):
        lab.reset(seed=seed)
        rewards = collect(lab, objects_of(lab, sign > 0), objects_of(lab, sign < 0), skip=2)
        totals.append(sum(rewards))
        # Step by step two frames, so the frame of the tenth pickup is known: the episode ends 12 frames later, not on time.
        tenth = next(i for i, total in enumerate(np.cumsum(np.abs(rewards))) if total == 10) + 1
        assert lab.num_steps() - 2 * tenth == 12
        assert lab.num_steps() < FRAMES
    assert totals == [sign * 10] * 4


def test_the_end_is_on_the_exact_frame_at_any_skip(stand_in):
    """The same walk, replayed with longer steps, ends with the same frame and the same return."""
    lab = stand_in()
    lab.reset(seed=0)
    recorded = []
    step = lab.step

    def record(action, num_steps=1):
        recorded.append(action)
        return step(action, num_steps)

    lab.step = record
    total = sum(collect(lab, objects_of(lab, True), objects_of(lab, False), skip=2))
    frames = lab.num_steps()
    # Pairs of frames that ask for the same are joined into steps of up to 10 frames.
    lab.step = step
    lab.reset(seed=0)
    replayed, i = 0.0, 0
    while lab.is_running():
        j = i + 1
        while j < len(recorded) and j - i < 5 and np.array_equal(recorded[j], recorded[i]):
            j += 1
        replayed += lab.step(recorded[i], num_steps=2 * (j - i))
        i = j
    assert replayed == total
    assert lab.num_steps() == frames
