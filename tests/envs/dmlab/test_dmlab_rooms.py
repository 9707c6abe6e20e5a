"""The stand-in's rooms_select_nonmatching_object and rooms_exploit_deferred_effects: their rules, and what can be had there."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from labs import EXPLOIT_TEST, EXPLOIT_TRAIN, FRAMES, NONMATCHING, SIZE, STILL

from benchmarks.levels.players.floors import places, pose, turn_towards
from benchmarks.levels.players.open_places import OPEN, SHUT, walk_rounds
from sf_fixpo.envs.dmlab.stand_in.levels import episode_rng
from sf_fixpo.envs.dmlab.stand_in.rooms_levels import (
    ExploitDeferredEffectsTest,
    ExploitDeferredEffectsTrain,
    SelectNonmatchingObject,
)
from sf_fixpo.envs.dmlab.stand_in.scene import Pose
from sf_fixpo.envs.dmlab.stand_in.sprites import caged

HOLD_OUT = {**SIZE, "allowHoldOutLevels": "true"}

# A walker for objects 120 apart: a clearance that leaves the lines half-way between them.
BEFORE_THE_DOOR = (544.0, 272.0)  # whoever goes through the door touches what stands here


@pytest.mark.parametrize("sign", [1, -1])
def test_a_walker_makes_a_round_of_the_two_rooms_in_about_28_steps(stand_in, sign):
    lab = stand_in(NONMATCHING)
    for seed in range(3):
        lab.reset(seed=seed)
        rewards = walk_rounds(lab, sign)
        assert len(rewards) == 180
        assert lab.num_steps() == 720
        paid = [reward for reward in rewards if reward]
        rounds = len(paid) // 2
        assert paid[: 2 * rounds] == [1.0, sign * 10.0] * rounds
        assert rounds == 6
        steps = np.diff([i for i, reward in enumerate(rewards) if reward == sign * 10])
        assert all(26 <= count <= 30 for count in steps)
        assert sum(rewards) in ((66, 67) if sign > 0 else (-54, -53))


def test_the_example_is_the_match_and_only_the_match_stays(stand_in):
    lab = stand_in(NONMATCHING)
    lab.reset(seed=3)
    match, others, examples, sides = lab._level._match, [], set(), set()
    for _ in range(30):
        ((example, *place),) = lab._scene.scenery
        assert example == caged(match)
        examples.add(tuple(place))
        lab._level.next_scene(Pose(0, 0, 0))
        names = [name for name, _, _ in lab._level._second.objects]
        assert match in names
        sides.add(names.index(match))
        others += [name for name in names if name != match]
        lab._enter(lab._engine(), lab._level.next_scene(Pose(0, 0, 0)))
    assert len(others) == 30
    assert len(set(others)) > 10
    assert len(examples) == len(sides) == 2


def test_the_example_is_seen_and_cannot_be_had(stand_in):
    lab = stand_in(NONMATCHING)
    frames = set()
    for seed in range(40):
        lab.reset(seed=seed)
        frames.add(lab.observations()["RGB_INTERLEAVED"].tobytes())
    assert len(frames) > 30, "36 shapes at two places look different from the start"
    ((_, ex, ey),) = lab._scene.scenery
    for _ in range(40):
        (x, y, _), (_, yaw, _) = pose(lab)
        action = STILL.copy()
        action[3] = 1
        turn_towards(action, (ex, ey), x, y, yaw, skip=4)
        assert lab.step(action, num_steps=4) == 0
    (x, y, _), _ = pose(lab)
    assert 30 < max(abs(x - ex), abs(y - ey)) < 60


def test_an_idle_player_stays_in_the_first_room_for_720_frames(stand_in):
    lab = stand_in(NONMATCHING)
    lab.reset(seed=0)
    assert lab.step(STILL, num_steps=719) == 0
    assert lab.is_running()
    lab.step(STILL)
    assert not lab.is_running()


def test_the_world_changes_in_mid_step_and_no_frame_is_lost(stand_in):
    """Straight ahead through the teleporter: however many frames a step has, the player is equally far into room 2."""
    lab = stand_in(NONMATCHING)
    forward = STILL.copy()
    forward[3] = 1
    ends, views = [], []
    for skip in (1, 2, 4, 7, 84):
        lab.reset(seed=0)
        assert sum(lab.step(forward, num_steps=skip) for _ in range(84 // skip)) == 1
        assert lab.num_steps() == 84
        assert lab._scene is lab._level._second
        ends.append(np.concatenate(pose(lab)))
        views.append(lab.observations()["RGB_INTERLEAVED"])
    # Touched in frame 52 at the latest, and from rest at x = 32 again: some 30 frames at up to 320 units/s.
    assert 32 + 100 < ends[0][0] < 32 + 170
    for end in ends[1:]:
        assert end == pytest.approx(ends[0], abs=0.01)
    assert all(np.array_equal(view, views[0]) for view in views[1:])


def setting_of(scene):
    names = {name for name, _, _ in scene.objects}
    return (
        len(scene.rooms[0].corners) > 6,
        "box" in names,
        "cake" in names,
        scene.rooms[0].floor,
        bool(scene.rooms[0].other_walls),
    )


def test_the_three_settings_of_training_and_the_one_held_out():
    level = ExploitDeferredEffectsTrain()
    scenes = [level.start(episode_rng(EXPLOIT_TRAIN, seed)) for seed in range(600)]
    counts = Counter(map(setting_of, scenes))
    assert set(counts) == {
        (False, True, False, "FLOORDRK", False),
        (False, False, False, "FLOORDRK", True),
        (True, False, True, "FLOORBRT", False),
    }
    assert all(150 < count < 250 for count in counts.values())
    assert np.mean([scene.start[2] for scene in scenes]) == pytest.approx(180, abs=20)
    test = ExploitDeferredEffectsTest()
    scenes += (held_out := [test.start(episode_rng(EXPLOIT_TEST, seed)) for seed in range(50)])
    assert set(map(setting_of, held_out)) == {(False, True, False, "FLOORDRK", True)}
    for scene in scenes:
        kinds = Counter(name for name, _, _ in scene.objects)
        assert kinds["apple"] == 10
        assert kinds["box"] in (0, 1)
        assert kinds["cake"] in (0, 10)
        assert len({(x, y) for _, x, y in scene.objects} | {scene.start[:2]}) == len(scene.objects) + 1
        for name, x, y in scene.objects:
            column, row = (x - 64 - (728 if name == "cake" else 0)) / 120, (y - 32) / 120
            assert column in range(5)
            assert row in range(5)


def free_door(lab, first):
    """Starts the next episode, from seed `first` on, with a way from everywhere to the door and none of it used."""
    for seed in range(first, 1000):
        lab.reset(seed=seed)
        if BEFORE_THE_DOOR not in places(lab, "apple", "box"):
            return seed
    raise AssertionError("no such seed")


def test_every_setting_of_training_pays_what_it_can(stand_in):
    lab = stand_in(EXPLOIT_TRAIN)
    totals, seed = {}, -1
    while len(totals) < 3:
        seed = free_door(lab, seed + 1)
        setting = setting_of(lab._scene)
        if setting in totals:
            continue
        walker, wanted = (OPEN, "cake") if places(lab, "cake") else (SHUT, "apple")
        rewards = walker.collect(lab, places(lab, wanted), places(lab, *({"apple", "box"} - {wanted})), skip=2)
        totals[setting] = sum(rewards)
        tenth = [i for i, reward in enumerate(rewards) if reward][9] + 1
        assert lab.num_steps() - 2 * tenth == 12
        assert not lab.is_running()
    assert sorted(totals.values()) == [10, 10, 100]


def test_the_box_opens_the_way_to_87_points(stand_in):
    lab = stand_in(EXPLOIT_TEST, config=HOLD_OUT)
    seed = -1
    for _ in range(2):
        seed = free_door(lab, seed + 1)
        apples = set(places(lab, "apple"))
        rewards = SHUT.collect(lab, places(lab, "box"), apples, skip=2, most=1)
        assert rewards[-1] == -3
        assert set(places(lab, "apple")) == apples
        assert len(places(lab, "cake")) == 10
        assert not places(lab, "box")
        rewards += OPEN.collect(lab, places(lab, "cake"), apples, skip=2)
        assert Counter(filter(None, rewards)) == {-3.0: 1, 10.0: 9}
        assert not lab.is_running()
        assert lab.num_steps() < FRAMES


def test_the_box_moves_nobody_and_brings_nothing_back(stand_in):
    lab = stand_in(EXPLOIT_TEST, config=HOLD_OUT)
    for seed in range(4):
        lab.reset(seed=seed)
        apples = set(places(lab, "apple"))
        nearest = min(apples, key=lambda place: math.dist(place, lab._scene.start[:2]))
        rewards = SHUT.collect(lab, [nearest], (apples - {nearest}) | set(places(lab, "box")), skip=2, most=1)
        assert rewards[-1] == 1
        (box,) = places(lab, "box")
        step, positions = lab.step, []

        def remember(action, num_steps, step=step, positions=positions):
            positions.append(pose(lab)[0])
            return step(action, num_steps)

        lab.step = remember
        rewards = SHUT.collect(lab, [box], apples - {nearest}, skip=2, most=1)
        assert rewards[-1] == -3
        assert set(places(lab, "apple")) == apples - {nearest}, "what was taken before the box does not come back"
        position, rotation = pose(lab)
        assert math.dist(position, positions[-1]) < 12, "one tic's walk at most"
        assert max(abs(position[0] - box[0]), abs(position[1] - box[1])) < 48
        yaw = lab._scene.start[2]
        assert (rotation[1] - yaw + 180) % 360 - 180 == pytest.approx(0, abs=0.51), "maps know whole degrees"
        step(STILL, num_steps=2)
        assert (pose(lab)[1][1] - yaw + 180) % 360 - 180 == pytest.approx(0, abs=0.01), "the next tic makes up for the rest"


def test_what_comes_after_the_tenth_pickup_is_worth_nothing():
    level = ExploitDeferredEffectsTrain()
    level.start(np.random.default_rng(0))
    level._box_left = False
    assert level.picked_up("apple", 1, 40, Pose(0, 0, 0)) == 1
    assert level.picked_up("cake", 2, 60, Pose(0, 0, 0)) == 20
    assert not level.watchful()
    assert level.picked_up("cake", 5, 80, Pose(0, 0, 0)) == 50
    assert level.watchful()
    assert level.last_frame() == FRAMES
    assert level.picked_up("cake", 1, 90, Pose(0, 0, 0)) == 10
    assert level.picked_up("cake", 2, 100, Pose(0, 0, 0)) == 10
    assert level.last_frame() == 112
    assert level.picked_up("cake", 1, 106, Pose(0, 0, 0)) == 0
    assert level.last_frame() == 112


@pytest.mark.parametrize("level", [EXPLOIT_TEST, NONMATCHING])
def test_an_episode_that_changes_its_world_repeats_bit_for_bit(stand_in, level):
    results = []
    for lab in (stand_in(level, config=HOLD_OUT) for _ in range(2)):
        lab.reset(seed=6)
        first, frames, rewards = lab._scene, [], []
        for _ in range(60):
            (x, y, _), (_, yaw, _) = pose(lab)
            action = STILL.copy()
            action[3] = 1
            goal = (places(lab, "box", "teleporter") or places(lab, *(name for name, _, _ in lab._scene.objects)))[0]
            turn_towards(action, goal, x, y, yaw, skip=4)
            rewards.append(lab.step(action, num_steps=4))
            frames.append(lab.observations()["RGB_INTERLEAVED"])
        assert lab._scene is not first
        results.append((np.array(frames), rewards))
    assert results[0][1] == results[1][1]
    assert np.array_equal(results[0][0], results[1][0])


def test_the_other_shape_is_never_the_match():
    level = SelectNonmatchingObject()
    for seed in range(50):
        level.start(episode_rng(NONMATCHING, seed))
        names = [name for name, _, _ in level._second.objects]
        assert len(set(names)) == 2
