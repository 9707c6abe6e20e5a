"""The water maze and the keys and doors: their rules, and what a walker that knows the places gets."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.levels.players.cells import cell_of, centre, hunt
from benchmarks.levels.players.floors import pose
from benchmarks.levels.players.keys import KeysPlayer
from benchmarks.levels.players.open_places import swim
from benchmarks.levels.players.puzzles import solve
from sf_fixpo.envs.dmlab.stand_in.keys_doors import KeysDoorsPuzzle, gap_cell, walkable
from sf_fixpo.envs.dmlab.stand_in.puzzles import COLOURS, neighbours, random_puzzle
from sf_fixpo.envs.dmlab.stand_in.scene import Pose
from sf_fixpo.envs.dmlab.stand_in.watermaze import Watermaze

WATER = "contributed/dmlab30/rooms_watermaze"
KEYS = "contributed/dmlab30/rooms_keys_doors_puzzle"
MIDDLE = (1000, 1000)


# ---- the water maze


def test_the_platform_is_anywhere_and_the_starts_are_eight():
    platforms, starts = [], Counter()
    for seed in range(400):
        level = Watermaze()
        scene = level.start(np.random.default_rng(seed))
        platforms.append(math.dist(level.platform, MIDDLE))
        x, y, _ = scene.start
        assert 690 <= math.dist((x, y), MIDDLE) <= 728
        starts[round(math.degrees(math.atan2(y - 1000, x - 1000))) % 360] += 1
    assert set(starts) == set(range(0, 360, 45))
    assert min(starts.values()) > 25
    # Uniform in a disc: half of them lie within 1 / sqrt 2 of its radius.
    assert max(platforms) <= 580
    assert np.mean(np.array(platforms) < 580 / math.sqrt(2)) == pytest.approx(0.5, abs=0.08)


def test_a_visit_pays_five_single_points_and_ends_elsewhere():
    level = Watermaze()
    level.start(np.random.default_rng(0))
    here, away = Pose(*level.platform, 90.0), Pose(level.platform[0] + 65, level.platform[1], 90.0)
    assert level.elapsed(98, away) is None
    assert not level.holds()
    assert level.watchful()
    paid = {frame: level.elapsed(frame, here) for frame in range(100, 160, 2)}
    assert {frame: points for frame, points in paid.items() if points} == dict.fromkeys((100, 112, 124, 136, 148), 1.0)
    assert level.holds()
    assert level.elapsed(160, here) == 0
    scene = level.next_scene(here)
    assert scene is not None
    assert math.dist(scene.start[:2], MIDDLE) > 600
    assert not level.holds()


def test_a_swimmer_that_knows_the_platform_gets_five_points_a_visit(stand_in):
    lab = stand_in(WATER)
    for seed in range(2):
        lab.reset(seed=seed)
        platform = lab._level.platform
        rewards, positions = swim(lab, 1800)
        assert set(rewards) <= {0.0, 1.0}
        assert sum(rewards) >= 25
        assert lab._level.platform == platform
        # From the first point of a visit to its last the player is held.
        first = rewards.index(1.0)
        held = positions[first + 1 : first + 13]
        assert all(math.dist(place, platform) < 2 for place in held)
        later = [math.dist(a, b) for a, b in zip(positions[first:], positions[first + 1 :], strict=False)]
        assert max(later) > 300, "started again elsewhere"


# ---- keys and doors


@given(st.integers(0, 2**31 - 1))
def test_every_puzzle_can_be_solved_and_keeps_to_the_grid(seed):
    puzzle = random_puzzle(np.random.default_rng(seed))
    assert solve(puzzle) is not None
    assert all(0 <= x < 3 and 0 <= y < 3 for x, y in puzzle.rooms)
    assert all(len(things) <= 2 for things in puzzle.rooms.values())
    things = [thing for things in puzzle.rooms.values() for thing in things]
    assert things.count("goal") == 1
    assert "goal" in puzzle.rooms[puzzle.goal]
    assert set(things) <= {*COLOURS, "goal"}
    assert 1 <= puzzle.length <= 3
    for one, other in (*puzzle.doors, *puzzle.openings):
        assert other in neighbours(one)
        assert one in puzzle.rooms
        assert other in puzzle.rooms
    lone = [thing for thing in set(things) - {"goal"} if thing not in puzzle.doors.values()]
    assert len(lone) <= 1


def test_puzzles_of_all_lengths_come_up():
    puzzles = [random_puzzle(np.random.default_rng(seed)) for seed in range(300)]
    lengths = Counter(puzzle.length for puzzle in puzzles)
    assert set(lengths) == {1, 2, 3}
    assert min(lengths.values()) > 70
    # In most of them there are doors that no key opens.
    lying = [{thing for things in puzzle.rooms.values() for thing in things} for puzzle in puzzles]
    assert sum(bool(set(puzzle.doors.values()) - things) for puzzle, things in zip(puzzles, lying, strict=True)) > 250


def test_a_key_in_hand_is_lost_to_the_next_and_used_up_by_a_door():
    level = KeysDoorsPuzzle()
    seed = next(s for s in range(99) if len({t for t in _things(level, s) if t != "goal"}) >= 2)
    _things(level, seed)
    numbers = [i for i, (thing, _) in enumerate(level._shown) if thing != "goal"]
    one, other = numbers[0], next(i for i in numbers if level._shown[i][0] != level._shown[numbers[0]][0])
    for number in (one, other):
        assert level.took((number,), 10, Pose(0, 0, 0)) == 1
        assert level.hand == level._shown[number][0]
    image = np.zeros((72, 96, 3), np.uint8)
    level.paint(image)
    painted = np.argwhere(image.any(axis=2))
    assert level.hand == "black" or (painted.min(axis=0).tolist(), painted.max(axis=0).tolist()) == ([2, 2], [8, 8])
    between = next(iter(level.shut))
    level.hand = level.shut[between]
    before = len(level.shut)
    x, y = centre(gap_cell(between))
    assert level.elapsed(20, Pose(x - 80, y - 80, 0)) is None
    assert level.elapsed(22, Pose(x, y, 0)) == 1
    assert (level.hand, len(level.shut)) == ("", before - 1)
    scene = level.next_scene(Pose(x, y, 7))
    assert scene is not None
    assert scene.start == (x, y, 7)
    assert len(scene.grid.screens) == before - 1
    assert len(scene.items) == len(level._things)


def _things(level, seed):
    """The things of an episode."""
    level.start(np.random.default_rng(seed))
    return [thing for thing, _ in level._things]


def test_a_walker_that_knows_the_solution_gets_the_goal(stand_in):
    lab = stand_in(KEYS)
    for seed in range(5):
        lab.reset(seed=seed)
        player, length = KeysPlayer(lab), lab._level.puzzle.length
        rewards = hunt(lab, player.look, frames=3600, skip=2, slow=180)
        assert not lab.is_running()
        assert set(rewards) <= {0.0, 1.0, 50.0}
        assert rewards.count(50.0) == 1
        assert sum(rewards) >= 50 + 2 * length - 2, "a chance door may save one"
        goal = rewards.index(50.0)
        assert lab.num_steps() - 2 * (goal + 1) == 12


def test_walls_that_are_not_seen_and_shut_doors_stop_everyone(stand_in):
    lab = stand_in(KEYS)
    rng = np.random.default_rng(2)
    for seed in range(2):
        lab.reset(seed=seed)
        cells = walkable(lab._level.puzzle)
        for _ in range(250):
            action = np.array([rng.integers(-200, 201), 0, rng.integers(-1, 2), 1, 0, 1, 0], np.intc)
            lab.step(action, num_steps=4)
            if not lab.is_running():
                break
            (x, y, _), _ = pose(lab)
            assert all(cell_of(x + dx, y + dy) in cells for dx in (-15, 15) for dy in (-15, 15))
            assert not any(cell_of(x, y) == gap_cell(between) and _beyond(between, x, y, lab) for between in lab._level.shut)


def _beyond(between, x, y, lab):
    """Whether a player stands in a shut door."""
    middle = centre(gap_cell(between))
    across = x - middle[0] if between[1][0] > between[0][0] else y - middle[1]
    return abs(across) < 15
