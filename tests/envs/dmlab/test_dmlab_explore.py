"""The six levels of the explore family that came after the first two: what they draw, and what a walker that knows them gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.levels.players.cells import Knowledge, Ledger, around, cell_of, hunt
from benchmarks.levels.players.sights import doors, good_ones, maze_goal
from sf_fixpo.envs.dmlab.stand_in.maze_levels import (
    GoalLocationsLarge,
    ObjectLocationsLarge,
    ObstructedGoals,
    ObstructedGoalsLarge,
)
from sf_fixpo.envs.dmlab.stand_in.object_rewards import SIXTEEN_COLOURS, ObjectRewardsFew, ObjectRewardsMany
from sf_fixpo.envs.dmlab.stand_in.scene import Pose

FOLDER = "contributed/dmlab30/"
NOWHERE = Pose(0.0, 0.0, 0.0)
seeds = st.integers(0, 2**31 - 1)


def reachable(start, cells):
    seen, pending = {start}, [start]
    while pending:
        new = [near for near in around(pending.pop()) if near in cells and near not in seen]
        seen.update(new)
        pending += new
    return seen


def test_large_mazes_have_nine_rooms_and_their_places():
    for seed in range(40):
        level = GoalLocationsLarge()
        scene = level.start(np.random.default_rng(seed))
        assert level.frames == level.last_frame() == 7200
        assert len(level._maze.rooms) == 9
        assert len(set(level._starts)) == 45
        assert scene.start[:2] in level._starts
        assert len(scene.objects) == 1
        apples = ObjectLocationsLarge().start(np.random.default_rng(seed)).objects
        assert len(set(apples)) == 18
        assert {apple[0] for apple in apples} == {"apple"}


@pytest.mark.parametrize("level_class", [ObstructedGoals, ObstructedGoalsLarge])
@given(seed=seeds)
def test_some_way_to_the_goal_is_open_and_half_of_the_other_doors_are_shut(level_class, seed):
    level = level_class()
    scene = level.start(np.random.default_rng(seed))
    goal = scene.objects
    cells = level._maze.open_cells
    for _ in range(3):
        shut = doors(scene)
        assert shut <= set(level._maze.doorways)
        assert cell_of(*goal[0][1:]) in reachable(cell_of(*scene.start[:2]), cells - shut)
        passed = len(level._maze.doorways) - 2 * len(shut)  # at most, as the odd one stays shut
        assert passed >= -1
        for (bx, by), (ex, ey), panel in scene.grid.screens:
            assert abs(bx - ex) + abs(by - ey) == 100
            assert panel.texture == "DOOR"
            x, y = cell_of((bx + ex) / 2, (by + ey) / 2)
            # Walls on both ends: the door closes the cell.
            ends = [(x, y - 1), (x, y + 1)] if bx == ex else [(x - 1, y), (x + 1, y)]
            assert not cells.intersection(ends)
        assert level.picked_up("goal", 1, 10, NOWHERE) == 10
        scene = level.next_scene(NOWHERE)
        assert scene.objects == goal


def test_doors_are_drawn_anew_at_each_start():
    level = ObstructedGoals()
    scene = level.start(np.random.default_rng(1))
    seen = set()
    for _ in range(20):
        seen.add(frozenset(doors(scene)))
        level.picked_up("goal", 1, 10, NOWHERE)
        scene = level.next_scene(NOWHERE)
    assert len(seen) > 5


@pytest.mark.parametrize(("level_class", "kinds", "frames"), [(ObjectRewardsFew, 4, 5400), (ObjectRewardsMany, 8, 7200)])
def test_kinds_keep_their_worth_for_an_episode(level_class, kinds, frames):
    looks_seen, places_seen = set(), set()
    for seed in range(30):
        level = level_class()
        scene = level.start(np.random.default_rng(seed))
        looks = [item.look for item in scene.items]
        assert len(looks) == len(set(looks)) == kinds
        assert level.last_frame() == frames
        for _ in range(4):
            assert [item.look for item in scene.items] == looks
            places = {(item.x, item.y) for item in scene.items}
            places_seen.add((seed, frozenset(places)))
            assert len(places) == kinds
            assert scene.start[:2] not in places
            rewards = [level.took((number,), 10, NOWHERE) for number in reversed(range(kinds))]
            assert rewards == [-1] * (kinds // 2) + [2] * (kinds // 2)
            scene = level.next_scene(NOWHERE)
        assert level.took((0,), 10, NOWHERE) == 2
        assert level.next_scene(NOWHERE) is None, "others are left"
        looks_seen.update(looks)
        assert len(set(level._places)) == 2 * kinds
        assert not set(level._places) & set(level._starts)
    assert len(looks_seen) >= 30 * kinds - 3
    assert len(places_seen) > 100
    assert len(set(SIXTEEN_COLOURS)) == 16


@pytest.mark.parametrize(
    "level", ["explore_goal_locations_large", "explore_obstructed_goals_small", "explore_obstructed_goals_large"]
)
def test_a_walker_finds_goals(stand_in, level):
    lab = stand_in(FOLDER + level)
    lab.reset(seed=1)
    rewards = hunt(lab, maze_goal, frames=1800)
    assert set(rewards) == {0.0, 10.0}
    assert sum(rewards) >= 40


def test_nobody_walks_through_a_door(stand_in):
    """Straight at the nearest shut door: the player stays on its side."""
    lab = stand_in(FOLDER + "explore_obstructed_goals_small")
    tried = 0
    for seed in range(12):
        lab.reset(seed=seed)
        scene, cells = lab._scene, lab._level._maze.open_cells
        shut = doors(scene)
        near = reachable(cell_of(*scene.start[:2]), cells - shut)
        door = min((cell for cell in shut if len(near.intersection(around(cell))) == 1), default=None)
        if door is None:
            continue  # every door stands between two places that can be reached
        known = Knowledge(cells, [((door[0] + 0.5) * 100, (door[1] + 0.5) * 100)], shut - {door})
        entrance = next(cell for cell in around(door) if cell in near)
        hunt(lab, lambda lab, known=known: known, frames=600)
        if lab._scene is not scene:
            continue  # the goal lay on the way
        tried += 1
        (x, y), middle = lab.observations()["DEBUG.POS.TRANS"][:2], [(c + 0.5) * 100 for c in door]
        side = [e - d for e, d in zip(entrance, door, strict=True)]
        assert (x - middle[0]) * side[0] + (y - middle[1]) * side[1] >= 15
    assert tried >= 2


@pytest.mark.parametrize(("level", "least"), [("few", 30), ("many", 40)])
def test_a_walker_collects_good_objects_and_leaves_the_bad(stand_in, level, least):
    lab = stand_in(f"{FOLDER}explore_object_rewards_{level}")
    lab.reset(seed=3)
    ledger = Ledger(lab)
    rewards = hunt(lab, lambda lab: good_ones(lab, ledger), frames=2400)
    counted = Counter(rewards)
    assert set(counted) <= {0.0, 2.0, -1.0, 1.0, 4.0}
    assert sum(rewards) >= least
    assert counted[-1.0] <= 3
