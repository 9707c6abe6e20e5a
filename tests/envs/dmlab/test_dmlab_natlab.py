"""The three natlab levels: their maps, what grows back, and what a walker that knows the places gets."""

from __future__ import annotations

import numpy as np
import pytest
from labs import STILL

from benchmarks.levels.players.floors import pose, turn_towards
from benchmarks.levels.players.open_places import Gatherer
from sf_fixpo.envs.dmlab.stand_in.natlab import FixedLargeMap, VaryingMapRandomized, VaryingMapRegrowth
from sf_fixpo.envs.dmlab.stand_in.scene import Pose

FOLDER = "contributed/dmlab30/natlab_"
CLASSES = (FixedLargeMap, VaryingMapRegrowth, VaryingMapRandomized)
NOWHERE = Pose(0.0, 0.0, 0.0)


def everything(land):
    return [*land.mushrooms, *land.cacti, *land.rocks, *land.bushes, *land.starts]


@pytest.mark.parametrize("level_class", CLASSES)
def test_a_map_is_the_same_in_every_episode_and_stands_apart(level_class):
    level = level_class()
    number = min(3, level.maps - 1)
    land = level.make_land(number)
    assert land == level_class().make_land(number)
    places = np.array(everything(land))
    distances = np.abs(places[:, None] - places[None]).max(axis=-1)
    assert distances[np.triu_indices(len(places), 1)].min() >= 96
    assert places.min() >= 60
    assert places.max() <= level.side - 60


def test_the_fixed_map_differs_in_start_and_light_only():
    scenes = [FixedLargeMap().start(np.random.default_rng(seed)) for seed in range(60)]
    assert len({scene.items for scene in scenes}) == 1
    assert len({scene.obstacles for scene in scenes}) == 1
    assert {scene.rooms[0].wall for scene in scenes} == {"SKYNIGHT", "SKYDAY", "SKYDAWN"}
    assert len({scene.start[:2] for scene in scenes}) == 10


@pytest.mark.parametrize(
    ("level_class", "least", "mean", "most"), [(VaryingMapRegrowth, 5, 18, 27), (VaryingMapRandomized, 10, 39, 72)]
)
def test_a_hundred_maps_with_as_many_mushrooms_as_read_from_the_files(level_class, least, mean, most):
    level = level_class()
    lands = [level.make_land(number) for number in range(100)]
    counts = [len(land.mushrooms) for land in lands]
    assert least <= min(counts) <= max(counts) <= most
    assert np.mean(counts) == pytest.approx(mean, rel=0.1)
    assert len(set(lands)) == 100
    assert {land.time for land in lands} == {"night", "day", "dawn"}
    seen = set()
    for seed in range(300):
        level.start(np.random.default_rng(seed))
        seen.add(level.land)
    assert 80 < len(seen) <= 100


def test_what_grows_back_and_when():
    level = VaryingMapRegrowth()
    delays = []
    for seed in range(40):
        scene = level.start(np.random.default_rng(seed))
        count = len(scene.items)
        assert len(scene.things) == 4 * count
        assert level.took(tuple(range(count)), 100, NOWHERE) == count
        assert level.moves(100 + 24 * 60 - 1) == []
        for frame in range(100, 100 + 108 * 60 + 2, 2):
            for move in level.moves(frame):
                assert (move.x, move.y) == level.land.mushrooms[(move.number - 1) // 4]
                delays.append((frame - 100) / 60)
    assert len(delays) > 500
    assert 24 <= min(delays) <= max(delays) <= 108.1
    assert np.mean(delays) == pytest.approx(60, abs=3)
    other = VaryingMapRandomized()
    other.start(np.random.default_rng(0))
    other.took((0,), 100, NOWHERE)
    assert not any(other.moves(frame) for frame in range(100, 7200, 2))


@pytest.mark.parametrize("name", ["fixed_large_map", "varying_map_regrowth", "varying_map_randomized"])
def test_a_walker_gathers_mushrooms(stand_in, name):
    lab = stand_in(FOLDER + name)
    lab.reset(seed=4)
    gatherer = Gatherer(lab)
    while lab.num_steps() < 1200:
        gatherer.step()
    assert sum(gatherer.rewards) >= 6
    assert len(gatherer.gone) == sum(gatherer.rewards), "each counts once"


def test_a_mushroom_is_picked_again_where_it_has_grown_back(stand_in):
    lab = stand_in(FOLDER + "varying_map_regrowth")
    lab.reset(seed=4)
    level = lab._level
    level.land = level.land.__class__(**{**level.land.__dict__, "regrow": (2.0,) * len(level.land.regrow)})
    gatherer = Gatherer(lab)
    while not any(gatherer.rewards):
        gatherer.step()
    first = next(iter(gatherer.gone))
    away = [place for i, place in enumerate(level.land.mushrooms) if i != first]
    assert away
    # Away from it until it is back, then to it again.
    back = lab.num_steps() + 3 * 60
    while lab.num_steps() < back:
        lab.step(np.array([0, 0, 0, -1, 0, 0, 0], np.intc), num_steps=4)
    assert first not in gatherer.gone
    place = level.land.mushrooms[first]
    for _ in range(200):
        (x, y, _), (_, yaw, _) = pose(lab)
        action = STILL.copy()
        action[3] = int(abs(turn_towards(action, place, x, y, yaw, 4)) < 40)
        if lab.step(action, num_steps=4):
            break
    assert max(abs(x - place[0]), abs(y - place[1])) < 75
