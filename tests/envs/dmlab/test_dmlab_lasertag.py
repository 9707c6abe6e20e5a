"""The four lasertag levels: the rules of weapons and shields, how opponents play, and what a player that aims gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.levels.players.cells import cell_of, centre
from benchmarks.levels.players.tagging import hunt_bots
from sf_fixpo.envs.dmlab.stand_in.lasertag import OneOpponentSmall, ThreeOpponentsLarge, ThreeOpponentsSmall
from sf_fixpo.envs.dmlab.stand_in.scene import Pose
from sf_fixpo.envs.dmlab.stand_in.tag_rules import WEAPONS, Fighter, splash_damage

FOLDER = "contributed/dmlab30/lasertag_"


def test_eighteen_hits_of_rapid_tag_a_fresh_opponent():
    fighter = Fighter()
    hits = 1
    while not fighter.hurt(WEAPONS["rapid"].damage, 1.0):
        hits += 1
    assert hits == 18
    assert fighter.tagged == 1.0
    assert not fighter.hurt(100, 2.0), "nobody is tagged twice"
    fighter.place(1.0, 2.0, 3.0)
    assert (fighter.health, fighter.tagged, fighter.hand) == (125, None, "rapid")


def test_armour_takes_two_thirds_and_health_fades_to_a_hundred():
    fighter = Fighter(armour=50)
    fighter.hurt(50, 0)
    assert (fighter.armour, fighter.health) == (pytest.approx(17), pytest.approx(108))
    fighter.hurt(50, 0)
    assert (fighter.armour, fighter.health) == (0, pytest.approx(75))
    other = Fighter()
    other.fade(10)
    assert other.health == 115
    other.fade(100)
    assert other.health == 100
    assert not other.take("health")
    other.hurt(70, 0)
    assert other.take("health")
    assert other.health == 80
    assert other.take("armour")
    assert other.armour == 50


def test_shots_cost_ammunition_and_time():
    fighter = Fighter()
    assert fighter.shoot(0.0) is WEAPONS["rapid"]
    assert fighter.shoot(0.05) is None
    assert fighter.shoot(0.1) is WEAPONS["rapid"]
    for i in range(98):
        assert fighter.shoot(1 + i * 0.1) is WEAPONS["rapid"]
    assert fighter.hand == "impulse"
    assert fighter.shoot(20) is WEAPONS["impulse"]
    assert fighter.take("disc")
    assert fighter.hand == "disc"
    assert fighter.shoot(30) is WEAPONS["disc"]
    assert fighter.shoot(31) is None


def test_a_projectile_hurts_less_with_distance():
    orb = WEAPONS["orb"]
    assert splash_damage(orb, 0) == 100
    assert splash_damage(orb, 60) == 50
    assert splash_damage(orb, 120) == 0


def begin(level_class, seed=0):
    level = level_class()
    return level, level.start(np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("level_class", "bots", "items", "rooms"), [(ThreeOpponentsSmall, 3, 3, 3), (ThreeOpponentsLarge, 3, 6, 4)]
)
def test_what_an_arena_has(level_class, bots, items, rooms):
    names, rooms_seen = Counter(), Counter()
    for seed in range(40):
        level, scene = begin(level_class, seed)
        assert level.last_frame() == 14_400
        assert len(level.bots) == bots
        assert len(level.lying) == items
        assert not {item.cell for item in level.lying} & set(level.starts)
        assert {item.cell for item in level.lying} <= level.cells
        places = [cell_of(bot.x, bot.y) for bot in level.bots] + [cell_of(*scene.start[:2])]
        assert len(set(places)) == bots + 1
        assert set(places) <= set(level.starts)
        rooms_seen[len(level.starts) // 3] += 1
        names.update(item.name for item in level.lying)
    assert rooms_seen.most_common(1)[0][0] == rooms
    assert set(names) == {"orb", "beam", "disc", "health", "armour"}


def duel(seed=0, distance=300.0, blind=False):
    """A player and an opponent face to face in the open, the opponent standing still."""
    level, _ = begin(OneOpponentSmall, seed)
    level.cells = frozenset((x, y) for x in range(1, 10) for y in range(1, 10))
    level.lying = []
    bot = level.bots[0]
    bot.place(300 + distance, 500, 180.0 if not blind else 0.0)
    bot.way = [(-9, -9)]
    level._walk = lambda bot, dt: None
    level.player.place(300, 500, 0.0)
    return level, bot


def test_an_opponent_shoots_after_its_reaction_time_and_not_at_whom_it_does_not_see():
    level, _ = duel()
    pose_ = Pose(300, 500, 0)
    level.elapsed(58, pose_)
    assert level.player.health == pytest.approx(125 - 58 / 60, abs=0.05)
    level.elapsed(110, pose_)
    assert level.player.health < 120
    level, bot = duel(blind=True)
    level._heading = lambda bot: 0.0
    level.elapsed(300, pose_)
    assert level.player.health == pytest.approx(120, abs=0.1)
    level, bot = duel()
    level.cells -= {(4, 5)}
    level.elapsed(300, pose_)
    assert level.player.health == pytest.approx(120, abs=0.1), "a wall is between"
    assert bot.health == pytest.approx(120, abs=0.1)


def test_a_tag_pays_one_and_being_tagged_nothing():
    level, bot = duel()
    bot.ready = 1e9
    level.act([0, 0, 0, 0, 1, 0, 0])
    rewards = [level.elapsed(frame, Pose(300, 500, 0)) for frame in range(2, 241, 2)]
    assert [reward for reward in rewards if reward] == [1.0]
    assert 17 * 6 <= 2 * rewards.index(1.0) <= 21 * 6, "eighteen hits at ten a second"
    level, bot = duel(distance=100)
    pose_ = Pose(300, 500, 180)
    rewards = [level.elapsed(frame, pose_) for frame in range(2, 600, 2)]
    assert not any(rewards)
    assert level.holds()
    assert level.next_scene(pose_) is None, "lies until the button is pressed"
    level.act([0, 0, 0, 0, 1, 0, 0])
    assert level.elapsed(800, pose_) == 0
    assert level.next_scene(pose_) is not None
    assert not level.holds()
    assert level.player.health == 125


def test_a_shot_needs_the_angle_and_the_height():
    for yaw, pitch, hits in ((0, 0, True), (20, 0, False), (180, 0, False), (0, 30, False), (0, -30, False)):
        level, bot = duel()
        bot.ready = 1e9
        level.act([0, 0, 0, 0, 1, 0, 0])
        level.elapsed(12, Pose(300, 500, yaw, pitch))
        assert (bot.health < 124) == hits


def test_an_orb_against_a_wall_tags_its_shooter():
    level, bot = duel()
    bot.tagged, bot.ready = 0.0, 1e9
    level._restart = lambda fighter: None
    level.player.take("orb")
    level.act([0, 0, 0, 0, 1, 0, 0])
    paid = [level.elapsed(frame, Pose(970, 500, 0)) or 0.0 for frame in range(2, 241, 2)]
    assert [reward for reward in paid if reward] == [-1.0]


def test_items_are_taken_and_come_back():
    level, _ = begin(OneOpponentSmall)
    item = next(item for item in level.lying if item.name in ("orb", "beam", "disc"))
    x, y = centre(item.cell)
    level.bots[0].tagged = 1e9
    level.elapsed(2, Pose(x, y, 0))
    assert level.player.hand == item.name
    assert item.back == pytest.approx(5, abs=0.1)
    shed = [move for move in level.moves(2) if move[0] == 20 + level.lying.index(item)]
    assert shed
    assert cell_of(*shed[0][1:3]) not in level.cells
    assert level.moves(2) == []


@pytest.mark.parametrize("level_class", [ThreeOpponentsSmall, ThreeOpponentsLarge])
def test_a_line_is_free_where_every_point_of_it_is_in_the_open(level_class):
    level, _ = begin(level_class)
    rng, cells = np.random.default_rng(0), sorted(level.cells)
    free = 0
    for _ in range(300):
        one, other = (np.array(centre(cells[rng.integers(len(cells))])) + rng.uniform(-49, 49, 2) for _ in range(2))
        line = one + np.linspace(0, 1, 2000)[:, None] * (other - one)
        expected = all(cell in level.cells for cell in {cell_of(x, y) for x, y in line})
        touches_a_corner = np.hypot(*((line + 50) % 100 - 50).T).min() < 0.5
        assert touches_a_corner or level.sees(tuple(one), tuple(other)) == expected
        free += expected
    assert 20 < free < 280
    straight = tuple(centre(cells[0]))
    assert level.sees(straight, straight)


def test_an_opponent_moves_as_one(stand_in):
    """Head, body and legs are three things of the map, put in place by one command; all leave the view together."""
    lab = stand_in(FOLDER + "one_opponent_small")
    noop = np.zeros(7, np.intc)

    def places():
        """Ahead of the player, straight and a little to the left."""
        x, y, _, yaw, _ = lab._pose()
        return [(x + 150 * np.cos(np.radians(a)), y + 150 * np.sin(np.radians(a))) for a in (yaw, yaw + 20)]

    def both_free(seed):
        lab.reset(seed=seed)
        return all(lab._level.sees(lab._pose()[:2], place) for place in places())

    next(filter(both_free, range(20)))
    level, ahead = lab._level, places()
    bot = level.bots[0]
    level._play_bot = lambda *args: 0.0

    def view(place, tagged):
        bot.x, bot.y, bot.tagged = *place, tagged
        for _ in range(3):
            lab.step(noop, num_steps=4)
        return lab.observations()["RGB_INTERLEAVED"][:-10].astype(int)  # without the bar of shield points, which fade

    empty, here, there, gone = view(ahead[0], 0.0), view(ahead[0], None), view(ahead[1], None), view(ahead[0], 0.0)
    assert np.array_equal(empty, gone), "no part of it is left behind"
    height = len(empty)
    for frame, other in ((here, there), (there, here)):
        seen = np.abs(frame - empty).sum(2) > 0
        rows = np.flatnonzero(seen.any(1))
        assert rows[-1] - rows[0] > height / 4, "from head to legs"
        alone = seen & (np.abs(frame - other).sum(2) > 0)
        assert alone[rows[0] : rows[-1] + 1].any(1).mean() > 0.9, "no part stays where it was"


def test_opponents_roam_the_whole_maze_and_stay_in_it():
    level, _ = begin(ThreeOpponentsSmall, 3)
    seen = set()
    for frame in range(2, 14_400, 40):
        level.elapsed(frame, Pose(-550, 150, 0))
        for bot in level.bots:
            assert cell_of(bot.x, bot.y) in level.cells
            seen.add(cell_of(bot.x, bot.y))
    assert len(seen) > 0.6 * len(level.cells)


@pytest.mark.parametrize(("name", "least"), [("one_opponent_small", 2), ("three_opponents_small", 3)])
def test_a_player_that_aims_tags_opponents(stand_in, name, least):
    lab = stand_in(FOLDER + name)
    lab.reset(seed=1)
    rewards = hunt_bots(lab, 3600)
    assert set(rewards) <= {-1.0, 0.0, 1.0, 2.0}
    assert sum(rewards) >= least


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_opponent_small", "three_opponents_small", "one_opponent_large", "three_opponents_large"])
def test_a_player_that_aims_gets_half_of_what_humans_get(stand_in, name):
    """Human scores are of the level itself: a measure of what is a lot, not a comparison."""
    human = {
        "one_opponent_small": 12.65,
        "three_opponents_small": 18.55,
        "one_opponent_large": 18.6,
        "three_opponents_large": 31.5,
    }
    lab = stand_in(FOLDER + name)
    totals = []
    for seed in range(3):
        lab.reset(seed=seed)
        totals.append(sum(hunt_bots(lab, 14_400)))
    assert np.mean(totals) >= human[name] / 2
