"""The mazes and the two levels played in them: their shapes, what stands in them, and what a walker that knows them gets."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labs import STILL, random_walk

from sf_fixpo.envs.dmlab.stand_in.levels import episode_rng
from sf_fixpo.envs.dmlab.stand_in.maze_levels import CELL_SIZE, FLOORS, WALLS, GoalLocations, ObjectLocations, maze_room
from sf_fixpo.envs.dmlab.stand_in.mazes import outlines, random_maze
from sf_fixpo.envs.dmlab.stand_in.resources import PICKUP_REACH, PLAYER_RADIUS
from sf_fixpo.envs.dmlab.stand_in.scene import Pose
from sf_fixpo.envs.dmlab.stand_in.sprites import textures
from sf_fixpo.envs.dmlab.stand_in.wad import Room, text_map

GOAL = "contributed/dmlab30/explore_goal_locations_small"
OBJECTS = "contributed/dmlab30/explore_object_locations_small"
MAZE_FRAMES = 5400
NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1))

seeds = st.integers(0, 2**31 - 1)
odd_sizes = st.tuples(st.integers(2, 8), st.integers(4, 8)).map(lambda n: (2 * n[0] + 1, 2 * n[1] + 1))


def around(cell):
    return [(cell[0] + dx, cell[1] + dy) for dx, dy in NEIGHBOURS]


def reachable(start, cells):
    seen, queue = {start}, deque([start])
    while queue:
        for near in around(queue.popleft()):
            if near in cells and near not in seen:
                seen.add(near)
                queue.append(near)
    return seen


def cell_at(x, y):
    return int(x // CELL_SIZE), int(y // CELL_SIZE)


def area(loop):
    """Signed: negative clockwise."""
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(loop, loop[1:] + loop[:1], strict=True)) / 2


def border_edges(cells):
    """(begin, end) of every unit of border, the open cell on the right: an oracle of its own, edge by edge."""
    edges = set()
    for x, y in cells:
        corners = [(x, y), (x, y + 1), (x + 1, y + 1), (x + 1, y)]  # clockwise
        outside = [(x - 1, y), (x, y + 1), (x + 1, y), (x, y - 1)]
        for i in range(4):
            if outside[i] not in cells:
                edges.add((corners[i], corners[(i + 1) % 4]))
    return edges


def unit_edges(loop):
    """The edges of unit length that a loop of corners passes."""
    edges = []
    for (x1, y1), (x2, y2) in zip(loop, loop[1:] + loop[:1], strict=True):
        steps = abs(x2 - x1) + abs(y2 - y1)
        dx, dy = (x2 - x1) // steps, (y2 - y1) // steps
        edges += [((x1 + i * dx, y1 + i * dy), (x1 + (i + 1) * dx, y1 + (i + 1) * dy)) for i in range(steps)]
    return edges


@given(seeds, odd_sizes, st.integers(2, 6))
def test_every_maze_is_connected_walled_in_and_without_dead_ends(seed, size, most_rooms):
    maze = random_maze(np.random.default_rng(seed), size, (2, most_rooms))
    cells = maze.open_cells
    assert reachable(min(cells), cells) == cells
    assert all(0 < x < size[0] - 1 and 0 < y < size[1] - 1 for x, y in cells)
    assert 2 <= len(maze.rooms) <= most_rooms
    inside = [cell for room in maze.rooms for cell in room]
    assert len(inside) == len(set(inside))
    assert cells >= set(inside)
    for cell in cells - set(inside):
        assert sum(near in cells for near in around(cell)) >= 2


@given(seeds)
def test_rooms_are_rectangles_apart_from_each_other(seed):
    maze = random_maze(np.random.default_rng(seed))
    for room in maze.rooms:
        columns, rows = {x for x, _ in room}, {y for _, y in room}
        assert len(columns) in (3, 5)
        assert len(rows) in (3, 5)
        assert set(room) == {(x, y) for x in columns for y in rows}
        beside = {near for cell in room for near in around(cell)} - set(room)
        assert not beside.intersection(cell for other in maze.rooms for cell in other)


def test_mazes_differ_and_come_from_the_generator_only():
    mazes = [random_maze(np.random.default_rng(seed)) for seed in range(200)]
    assert mazes == [random_maze(np.random.default_rng(seed)) for seed in range(200)]
    assert len({maze.open_cells for maze in mazes}) > 195
    assert {len(maze.rooms) for maze in mazes} == {2, 3, 4}
    assert any(len(outlines(maze.open_cells)) > 1 for maze in mazes), "some have a way round"
    assert any(len(outlines(maze.open_cells)) == 1 for maze in mazes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (10, 11)},
        {"size": (7, 7)},
        {"size": (21, 3)},
        {"sides": (2, 5)},
        {"sides": (5, 3)},
        {"rooms": (0, 4)},
        {"rooms": (5, 6)},
    ],
)
def test_impossible_mazes_are_refused(wrong):
    with pytest.raises(ValueError, match="size="):
        random_maze(np.random.default_rng(0), **wrong)


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_outlines_are_closed_and_have_the_open_side_on_the_right(cells):
    loops = outlines(cells)
    edges = [edge for loop in loops for edge in unit_edges(loop)]
    assert len(edges) == len(set(edges)), "no wall twice"
    assert set(edges) == border_edges(cells)
    assert sum(area(loop) for loop in loops) == -len(cells)
    for loop in loops:
        assert len(loop) >= 4
        for i in range(len(loop)):
            (x1, y1), (x2, y2), (x3, y3) = loop[i - 2], loop[i - 1], loop[i]
            assert (x2 - x1) * (x3 - x2) + (y2 - y1) * (y3 - y2) == 0, "every corner is a right angle: straight walls are one"
            assert (x1 == x2) != (y1 == y2)


@given(seeds)
def test_the_room_of_a_maze_has_its_blocks_inside_and_touching_nothing(seed):
    maze = random_maze(np.random.default_rng(seed))
    room = maze_room(maze, "WALLGREY", "FLOORBRN")
    loops = [list(room.corners), *map(list, room.blocks)]
    assert area(loops[0]) < 0
    assert all(area(block) > 0 for block in loops[1:])
    assert sum(map(area, loops)) == -len(maze.open_cells) * CELL_SIZE**2
    corners = [corner for loop in loops for corner in loop]
    assert len(corners) == len(set(corners))


def test_a_text_map_gives_every_block_its_lines():
    square, block = ((0, 0), (0, 9), (9, 9), (9, 0)), ((3, 3), (6, 3), (6, 6), (3, 6))
    rooms = [Room(square, 128, "WALLGREY", "FLOORBRN", "CEILING", (block,)), Room(square, 128, "WALLRED", "FLOORBLU", "CEILING")]
    text = text_map(rooms, []).decode()
    lines = [line for line in text.splitlines() if line.startswith("linedef")]
    ends = [tuple(int(part.split("=")[1]) for part in line[8:].split(";")[:3]) for line in lines]
    loops = [range(4), range(4, 8), range(8, 12)]
    assert ends == [(loop[i], loop[(i + 1) % 4], loop[i]) for loop in loops for i in range(4)]
    sides = [line for line in text.splitlines() if line.startswith("sidedef")]
    assert sides == ['sidedef{sector=0;texturemiddle="WALLGREY";}'] * 8 + ['sidedef{sector=1;texturemiddle="WALLRED";}'] * 4
    assert text.count("vertex{") == 12
    assert text.count("sector{") == 2


@pytest.mark.parametrize("level_class", [GoalLocations, ObjectLocations])
@given(seed=seeds)
def test_objects_and_starts_stand_in_open_cells(level_class, seed):
    level = level_class()
    maze_cells = random_maze(np.random.default_rng(seed)).open_cells  # the level draws its maze first
    scene = level.start(np.random.default_rng(seed))
    places = [(x, y) for _, x, y in scene.objects]
    assert len(set(places)) == len(places)
    for _ in range(4):
        assert cell_at(*scene.start[:2]) in maze_cells
        assert scene.start[:2] not in places
        scene = _find_all(level, scene)
    for x, y in places:
        assert (x % CELL_SIZE, y % CELL_SIZE) == (50, 50)
        assert cell_at(x, y) in maze_cells
        # Touched from its own cell only: no wall is between.
        assert cell_at(x - PICKUP_REACH, y - PICKUP_REACH) == cell_at(x + PICKUP_REACH, y + PICKUP_REACH) == cell_at(x, y)
    assert 2 * PLAYER_RADIUS < CELL_SIZE


def _find_all(level, scene):
    """Tells a level that everything was picked up; returns the scene that comes then."""
    pose = Pose(0.0, 0.0, 0.0)
    for i, (name, _, _) in enumerate(scene.objects):
        assert i == 0 or level.next_scene(pose) is None
        level.picked_up(name, 1, 10, pose)
    following = level.next_scene(pose)
    assert following is not None
    return following


def test_what_the_levels_draw():
    goals, apples, decor, starts = Counter(), Counter(), set(), set()
    for seed in range(300):
        level = GoalLocations()
        scene = level.start(np.random.default_rng(seed))
        again = _find_all(level, scene)
        assert again.rooms == scene.rooms
        assert again.objects == scene.objects, "the goal stays where it is"
        starts.add(again.start != scene.start)
        goals[len(scene.objects), scene.objects[0][0]] += 1
        decor.add((scene.rooms[0].wall, scene.rooms[0].floor))
        level = ObjectLocations()
        scene = level.start(np.random.default_rng(seed))
        assert _find_all(level, scene).objects == scene.objects
        apples[len(scene.objects)] += 1
        assert {name for name, _, _ in scene.objects} == {"apple"}
    assert goals == {(1, "goal"): 300}
    assert set(apples) == {4, 6, 8}
    assert decor == {(wall, floor) for wall in WALLS for floor in FLOORS}
    assert {*WALLS, *FLOORS} <= set(textures())
    assert any(starts)


@pytest.mark.parametrize(("level_class", "reward"), [(GoalLocations, 10.0), (ObjectLocations, 1.0)])
def test_rewards_and_the_end(level_class, reward):
    level = level_class()
    scene = level.start(np.random.default_rng(3))
    assert level.last_frame() == level.frames == MAZE_FRAMES
    assert level.picked_up(scene.objects[0][0], 1, 100, Pose(0.0, 0.0, 0.0)) == reward
    assert level.last_frame() == MAZE_FRAMES


# ---- on the engine


def pose_of(lab):
    observations = lab.observations()
    return tuple(observations["DEBUG.POS.TRANS"][:2]), observations["DEBUG.POS.ROT"][1]


def maze_of(level, seed):
    """The maze of an episode: what a level draws first."""
    return random_maze(episode_rng(level, seed))


def centre(cell):
    return (cell[0] + 0.5) * CELL_SIZE, (cell[1] + 0.5) * CELL_SIZE


def way(start, goal, cells):
    """Centres of the cells from one to another, the first left out."""
    parents, queue = {goal: None}, deque([goal])
    while start not in parents:
        here = queue.popleft()
        for near in around(here):
            if near in cells and near not in parents:
                parents[near] = here
                queue.append(near)
    found = []
    while (start := parents[start]) is not None:
        found.append(centre(start))
    return found


def towards(place, position, yaw, skip):
    """An action that turns to a place and, when it lies ahead, walks."""
    bearing = math.degrees(math.atan2(place[1] - position[1], place[0] - position[0]))
    off = (yaw - bearing + 180) % 360 - 180
    action = STILL.copy()
    action[0] = max(-512, min(512, round(off / 0.1056 / skip)))
    action[3] = int(abs(off) < 30)
    return action


def search(lab, maze, steps, skip=4):
    """Walks to the nearest object, and again; returns actions, rewards, and the positions before and after each step."""
    actions, rewards, before, after = [], [], [], []
    left = []
    while lab.is_running() and len(actions) < steps:
        position, yaw = pose_of(lab)
        here = cell_at(*position)
        left = left or [cell_at(x, y) for _, x, y in lab._scene.objects]
        routes = [way(here, cell, maze.open_cells) for cell in left]
        route = min(routes, key=len)
        while route and math.dist(route[0], position) < 30:
            route.pop(0)
        actions.append(towards(route[0] if route else centre(here), position, yaw, skip))
        rewards.append(lab.step(actions[-1], num_steps=skip))
        if not lab.is_running():
            break
        before.append(position)
        after.append(pose_of(lab)[0])
        if rewards[-1]:
            left.remove(min(left, key=lambda cell: math.dist(centre(cell), before[-1])))
    return actions, rewards, before, after


def test_a_walker_finds_the_goal_again_and_again(stand_in):
    lab = stand_in(level=GOAL)
    for seed in (0, 1):
        lab.reset(seed=seed)
        maze = maze_of(GOAL, seed)
        ((_, *goal),) = lab._scene.objects
        _, rewards, before, after = search(lab, maze, steps=2000)
        assert lab.num_steps() == MAZE_FRAMES, "always full length"
        assert set(rewards) == {0.0, 10.0}
        found = [i for i, reward in enumerate(rewards[: len(after)]) if reward]
        assert len(found) >= 10
        begins = [after[i] for i in found]
        for i in found:
            assert max(abs(a - b) for a, b in zip(before[i], goal, strict=True)) < PICKUP_REACH + 4 * 320 / 60
            assert (after[i][0] % CELL_SIZE, after[i][1] % CELL_SIZE) == pytest.approx((50, 50), abs=11)
            assert cell_at(*after[i]) in {cell for room in maze.rooms for cell in room}
            assert cell_at(*after[i]) != cell_at(*goal)
        assert len({cell_at(*begin) for begin in begins}) > 3, "at random places"
        assert lab._scene.objects == (("goal", *goal),)


def test_a_walker_collects_all_apples_and_they_come_back(stand_in):
    lab = stand_in(level=OBJECTS)
    lab.reset(seed=2)
    maze = maze_of(OBJECTS, 2)
    apples = lab._scene.objects
    _, rewards, before, after = search(lab, maze, steps=2000)
    assert lab.num_steps() == MAZE_FRAMES
    jumps = [math.dist(a, b) > 4 * 320 / 60 + 12 for a, b in zip(before, after, strict=True)]
    total, resets = 0, 0
    for reward, jump in zip(rewards, jumps, strict=False):
        assert reward in (0, 1)
        total += int(reward)
        assert not jump or (reward and total % len(apples) == 0), "the player is moved when the last apple is gone, and only then"
        resets += total % len(apples) == 0 and reward > 0
    assert sum(jumps) >= resets - 1 >= 4
    assert lab._scene.objects == apples


def stands_free(x, y, radius, cells):
    """Whether a square around a point covers open cells only."""
    return all(cell_at(x + dx, y + dy) in cells for dx in (-radius, radius) for dy in (-radius, radius))


@pytest.mark.parametrize("level", [GOAL, OBJECTS])
def test_no_wall_can_be_walked_through_or_reached_through(stand_in, level):
    lab = stand_in(level=level)
    rng = np.random.default_rng(5)
    touching = 0
    for seed in range(4):
        lab.reset(seed=seed)
        cells = maze_of(level, seed).open_cells
        places = [place for _, *place in lab._scene.objects]
        for i in range(300):
            action = STILL.copy()
            action[0], action[2], action[3] = rng.integers(-300, 301) * (i % 8 == 0), rng.integers(-1, 2), 1
            before = pose_of(lab)[0]
            reward = lab.step(action, num_steps=2)
            x, y = pose_of(lab)[0]
            assert not reward or min(max(abs(a - before[0]), abs(b - before[1])) for a, b in places) < PICKUP_REACH + 11
            assert stands_free(x, y, PLAYER_RADIUS - 0.5, cells)
            touching += not stands_free(x, y, PLAYER_RADIUS + 0.5, cells)
    assert touching > 100, "the walls were there"


def test_the_same_seed_and_actions_give_the_same_frames_over_respawns(stand_in):
    lab = stand_in(level=GOAL)
    lab.reset(seed=4)
    actions, rewards, _, _ = search(lab, maze_of(GOAL, 4), steps=250)
    assert sum(rewards) >= 20
    episodes = []
    for other in (lab, stand_in(level=GOAL)):
        other.reset(seed=4)
        frames = [other.observations()["RGB_INTERLEAVED"]]
        for i, action in enumerate(actions):
            assert other.step(action, num_steps=4) == rewards[i]
            frames.append(other.observations()["RGB_INTERLEAVED"])
        episodes.append(frames)
    assert np.array_equal(*episodes)


def test_episodes_look_different(stand_in):
    lab = stand_in(level=OBJECTS)
    seen = []
    for seed in range(8):
        lab.reset(seed=seed)
        frames, _ = random_walk(lab, seed=0, steps=10)
        seen.append(frames.mean(axis=(0, 1, 2)).round())
    assert len({tuple(colour) for colour in seen}) == 8
