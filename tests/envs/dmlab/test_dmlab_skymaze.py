"""The two sky mazes: what they draw, that there is no way up, and that a walker that knows the path reaches the goal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labs import STILL

from benchmarks.levels.players.cells import Knowledge, cell_of, centre, hunt
from benchmarks.levels.players.floors import pose, turn_towards
from benchmarks.levels.players.sights import downhill_to_the_goal
from sf_fixpo.envs.dmlab.stand_in.scene import Pose
from sf_fixpo.envs.dmlab.stand_in.skymaze import IrreversiblePathHard, IrreversiblePathVaried, course_grid, random_course

HARD = "contributed/dmlab30/skymaze_irreversible_path_hard"
VARIED = "contributed/dmlab30/skymaze_irreversible_path_varied"
LEVELS = (HARD, VARIED)
seeds = st.integers(0, 2**31 - 1)


def neighbours(one, other):
    return abs(one[0] - other[0]) + abs(one[1] - other[1]) == 1


def downhill(start, heights):
    """Where one can get to without climbing."""
    seen, pending = {start}, [start]
    while pending:
        here = pending.pop()
        for near in heights:
            if neighbours(here, near) and near not in seen and heights[near] <= heights[here]:
                seen.add(near)
                pending.append(near)
    return seen


@given(seeds, st.floats(0, 1))
def test_only_the_main_path_leads_to_the_goal(seed, difficulty):
    course = random_course(np.random.default_rng(seed), difficulty)
    heights, main, n = course.heights, course.main, course.n
    assert n == 4 + round(6 * difficulty)
    assert all(0 <= x <= 2 * n and 0 <= y <= 2 * n for x, y in heights)
    assert all(neighbours(*pair) for pair in itertools.pairwise(main))
    assert len(main) == len(set(main))
    levels = [heights[cell] for cell in main]
    assert levels[:2] == [800, 700]
    assert all(drop in (0, 20, 40) for drop in -np.diff(levels[1:]))
    assert min(levels) >= 440
    assert all(height % 20 == 0 for height in heights.values())
    assert set(heights) == {*main, *itertools.chain(*course.sides)}
    assert n - 3 <= (abs(main[0][0] - main[-1][0]) + abs(main[0][1] - main[-1][1])) / 2 <= n - 2
    assert all(0 < x < 2 * n for x, _ in (main[0], main[-1]))
    for side in course.sides:
        assert heights[side[-1]] <= min(heights[cell] for cell in main if neighbours(cell, side[-1])) - 20
        assert main[-1] not in downhill(side[-1], heights)
    # Whoever leaves the main path behind cannot come back to it.
    for side in course.sides:
        for cell in side:
            reached = downhill(cell, heights)
            assert main[-1] not in reached or heights[cell] >= heights[main[-1]]


def test_the_hard_one_has_seven_paths_and_the_varied_one_has_all_sizes():
    rng = np.random.default_rng(0)
    counts = [len(random_course(rng, 0.9).sides) for _ in range(40)]
    assert max(counts) == 6
    assert np.mean(counts) > 5
    sizes = set()
    for seed in range(60):
        level = IrreversiblePathVaried()
        level.start(np.random.default_rng(seed))
        sizes.add(level._course.n)
    assert sizes == set(range(4, 11))
    level = IrreversiblePathHard()
    level.start(np.random.default_rng(0))
    assert level._course.n == 9


def test_unseen_walls_stand_around_all_platforms():
    course = random_course(np.random.default_rng(3), 0.9)
    grid = course_grid(course)
    for cell in course.heights:
        for near in ((cell[0] + 1, cell[1]), (cell[0] - 1, cell[1]), (cell[0], cell[1] + 1), (cell[0], cell[1] - 1)):
            border = (min(cell, near), max(cell, near))
            assert (border in grid.borders) == (near not in course.heights)
    assert all(not panel.texture for panel in grid.borders.values())


def test_the_goal_pays_once_and_ends_the_episode():
    level = IrreversiblePathHard()
    level.start(np.random.default_rng(0))
    assert level.last_frame() == 3600
    goal = level._course.main[-1]
    level.elapsed(100, Pose(*centre((goal[0] + 2, goal[1])), 0))
    assert not level.watchful()
    level.elapsed(102, Pose(*centre((goal[0] + 1, goal[1])), 0))
    assert level.watchful()
    assert level.took((0,), 1000, Pose(0, 0, 0)) == 100
    assert level.last_frame() == 1012
    assert not level.watchful()


@pytest.mark.parametrize("level", LEVELS)
def test_a_walker_on_the_main_path_reaches_the_goal(stand_in, level):
    lab = stand_in(level)
    for seed in range(3):
        lab.reset(seed=seed)
        rewards = hunt(lab, downhill_to_the_goal, frames=3600, slow=160)
        assert sum(rewards) == 100
        assert not lab.is_running()
        assert lab.num_steps() < 3600


def test_there_is_no_way_back_up_and_none_over_the_edge(stand_in):
    """Down to the second platform, then against the first, jumping too, and against every edge."""
    lab = stand_in(HARD)
    rng = np.random.default_rng(0)
    for seed in range(3):
        lab.reset(seed=seed)
        heights, main = lab._level._course.heights, lab._level._course.main
        known = Knowledge(main[:2], [centre(main[1])])
        hunt(lab, lambda lab, known=known: known, frames=360, slow=160)
        (x, y, z), _ = pose(lab)
        assert cell_of(x, y) == main[1]
        assert z * 1.2 == pytest.approx(700 + 50 * 1.2, abs=25)
        for _ in range(60):
            (x, y, _), (_, yaw, _) = pose(lab)
            action = STILL.copy()
            action[3] = action[5] = action[4] = 1
            turn_towards(action, centre(main[0]), x, y, yaw, 4)
            assert lab.step(action, num_steps=4) == 0
        lowest = 800
        for _ in range(100):
            assert lab.step(np.array([rng.integers(-200, 201), 0, rng.integers(-1, 2), 1, 1, 1, 1], np.intc), num_steps=4) in (
                0,
                100,
            )
            if not lab.is_running():
                break
            (x, y, _), _ = pose(lab)
            assert cell_of(x, y) in heights
            assert heights[cell_of(x, y)] <= max(lowest, heights[main[1]])
            lowest = min(lowest, heights[cell_of(x, y)])
        assert lowest < 800
