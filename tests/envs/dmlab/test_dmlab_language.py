"""The four language levels: texts, objects and rewards, and what a walker that understands them gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sf_examples.dmlab.dmlab30 import DMLAB_VOCABULARY_SIZE
from sf_examples.dmlab.dmlab_utils import string_to_hash_bucket

from benchmarks.levels.players.cells import Ledger, cell_of, hunt
from benchmarks.levels.players.sights import goals_of
from sf_fixpo.envs.dmlab.env import word_buckets
from sf_fixpo.envs.dmlab.stand_in.language import SelectDescribedObject, SelectLocatedObject, wrong_reward
from sf_fixpo.envs.dmlab.stand_in.language_maps import AREA, FOUR_ROOMS, SIX_ROOMS, TWO_ROOMS
from sf_fixpo.envs.dmlab.stand_in.language_tasks import AnswerQuantitativeQuestion, ExecuteRandomTask
from sf_fixpo.envs.dmlab.stand_in.looks import COLOURS, SHAPE_NAMES, SIX_COLOURS
from sf_fixpo.envs.dmlab.stand_in.scene import Pose

FOLDER = "contributed/dmlab30/language_"
CLASSES = {
    "select_described_object": SelectDescribedObject,
    "select_located_object": SelectLocatedObject,
    "execute_random_task": ExecuteRandomTask,
    "answer_quantitative_question": AnswerQuantitativeQuestion,
}
WORDS = ["Pick", "the", "object", "in", "room", "Every", "near", "Are", "all", "objects", "Is", "any", "anything", "most"]
VOCABULARY = {*WORDS, *SHAPE_NAMES, *SIX_COLOURS, *(f"{colour}?" for colour in SIX_COLOURS)}
NOWHERE = Pose(0.0, 0.0, 0.0)
NAME_OF = {COLOURS[name]: name for name in SIX_COLOURS}


def rounds(level_class, count):
    """So many rounds of a level, in which every goal is taken."""
    level = level_class()
    level.start(np.random.default_rng(count))
    for _ in range(count):
        yield level, level.round
        for goal in sorted(level.round.goals):
            level.took((goal,), 10, NOWHERE)
        assert level.next_scene(NOWHERE) is level.round.scene


def named(look):
    return look.sight, NAME_OF[look.colour]


def test_the_vocabulary_has_66_words_each_in_a_bucket_and_no_text_is_longer_than_eight():
    assert len(VOCABULARY) == 66
    texts = {current.text for level_class in CLASSES.values() for _, current in rounds(level_class, 700)}
    words = {word for text in texts for word in text.split()}
    assert words == VOCABULARY
    assert max(len(text.split()) for text in texts) == 8
    for text in texts:
        buckets = word_buckets(text)
        theirs = [string_to_hash_bucket(word, DMLAB_VOCABULARY_SIZE) for word in text.split()]
        assert list(buckets) == theirs + [0] * (16 - len(theirs))
    # As sample-factory hashes them: two words may share a bucket, most do not.
    assert len({word_buckets(word)[0] for word in VOCABULARY}) > 60


@pytest.mark.parametrize("level_class", CLASSES.values())
def test_objects_and_starts_have_places_of_their_own_on_the_floor(level_class):
    for _, current in rounds(level_class, 100):
        scene = current.scene
        places = [(item.x, item.y) for item in scene.items] + [prop[1:3] for prop in scene.props] + [scene.start[:2]]
        assert len(set(places)) == len(places)
        assert all(cell_of(*place) in scene.grid.cells for place in places)
        outside = {near for x, y in scene.grid.cells for near in ((x + 1, y), (x, y + 1), (x - 1, y), (x, y - 1))}
        assert all(x >= 0 and y >= 0 for x, y in outside)
        assert reachable(scene) == set(scene.grid.cells)


def reachable(scene):
    here = cell_of(*scene.start[:2])
    seen, pending = {here}, [here]
    while pending:
        x, y = pending.pop()
        new = [c for c in ((x + 1, y), (x, y + 1), (x - 1, y), (x, y - 1)) if c in scene.grid.cells and c not in seen]
        seen.update(new)
        pending += new
    return seen


def test_described_objects():
    seen, goals = set(), Counter()
    for _, current in rounds(SelectDescribedObject, 400):
        shapes = [item.look.sight for item in current.scene.items]
        assert current.text == shapes[0] != shapes[1]
        assert -10 <= current.scene.start[2] <= 10
        goals[current.text] += 1
        seen.update(item.look.colour for item in current.scene.items)
        assert (current.each, current.wrong) == (0, -10)
    assert set(goals) == set(SelectDescribedObject.SHAPES)
    assert seen == set(COLOURS.values())


def test_located_objects():
    maps = {AREA.rows: AREA, TWO_ROOMS.rows: TWO_ROOMS, FOUR_ROOMS.rows: FOUR_ROOMS, SIX_ROOMS.rows: SIX_ROOMS}
    by_cells = {frozenset(text.cells(".OP")): text for text in maps.values()}
    counts, texts = Counter(), set()
    for _, current in rounds(SelectLocatedObject, 600):
        scene, words = current.scene, current.text.split()
        text = by_cells[frozenset(scene.grid.cells)]
        counts[text.rows] += 1
        texts.add(current.text)
        colour, floor = words[2], words[6]
        cells = [cell_of(item.x, item.y) for item in scene.items]
        assert set(cells) == set(text.cells("O"))
        assert len(cells) == 2 * text.rooms
        floors = {text.room(cell): patch.floor for cell, patch in scene.grid.cells.items() if text.room(cell) is not None}
        assert len(set(floors.values())) == text.rooms
        goal_room = text.room(cells[0])
        assert floors[goal_room] == f"LANG{floor.upper()[:3]}"
        colours = [NAME_OF[item.look.colour] for item in scene.items]
        assert colours[0] == colours[2] == colour
        assert colours[1] == colours[3] != colour
        assert text.room(cells[1]) == goal_room != text.room(cells[2])
        assert text.rooms > 2 or text.room(cells[3]) != goal_room
        assert current.wrong == {2: -3, 4: -1, 6: -1}[text.rooms]
    assert all(100 < count < 200 for count in counts.values())
    assert len(texts) == 36


def satisfies(text, item, items):
    """Whether an object is what a text of execute_random_task asks for: read anew from the words."""
    words = text.split()
    shape, colour = named(item.look)
    if "near" in words:
        cut = words.index("near")
        return fits(words[:cut], item) and any(
            fits(words[cut + 1 :], other) for other in items if other is not item and near(item, other)
        )
    return fits([word for word in words if word != "Every"], item) and bool(shape and colour)


def fits(words, item):
    return all(word == "object" or word in named(item.look) for word in words)


ROOM_MAPS = {frozenset(text.cells(".OP")): text for text in (AREA, TWO_ROOMS, FOUR_ROOMS, SIX_ROOMS)}


def near(one, other):
    text = ROOM_MAPS[near.cells]
    return text.room(cell_of(one.x, one.y)) == text.room(cell_of(other.x, other.y))


def test_random_tasks_have_the_goals_that_their_words_say():
    kinds = Counter()
    for _, current in rounds(ExecuteRandomTask, 2000):
        near.cells = frozenset(current.scene.grid.cells)
        items = current.scene.items
        assert {i for i, item in enumerate(items) if satisfies(current.text, item, items)} == current.goals
        rooms, words = ROOM_MAPS[near.cells].rooms, current.text.split()
        kind = "every" if words[0] == "Every" else "near" if "near" in words else "pick"
        kinds[kind, rooms] += 1
        worth = 10 + (len(current.goals) if kind == "every" else 0)
        assert current.wrong == wrong_reward(worth, len(items) - len(current.goals))
        assert (current.each, len(current.goals) > 1) == ((1, True) if kind == "every" else (0, False))
        assert len(items) in {
            ("pick", 2): (3,),
            ("pick", 4): (5, 7),
            ("pick", 6): (9, 11),
            ("near", 2): (4,),
            ("near", 4): (8,),
        }.get((kind, rooms), range(4, 9))
    # Of 19: pick 4 / 2 / 2, every 4 / 2, near 2 / 3.
    shares = {("pick", 2): 4, ("pick", 4): 2, ("pick", 6): 2, ("every", 2): 4, ("every", 4): 2, ("near", 2): 2, ("near", 4): 3}
    assert set(kinds) == set(shares)
    assert all(count == pytest.approx(2000 * shares[kind] / 19, rel=0.25) for kind, count in kinds.items())


@pytest.mark.parametrize(
    ("worth", "others", "costs"), [(10, 2, 5), (10, 3, 3), (10, 4, 3), (10, 6, 2), (10, 8, 1), (10, 10, 1), (12, 2, 6)]
)
def test_a_wrong_object_costs_what_makes_chance_worthless(worth, others, costs):
    assert wrong_reward(worth, others) == -costs


def answer_to(text, objects):
    """Yes or no, read from the words."""
    words = text.removesuffix("?").split()
    if words[:2] == ["Are", "all"]:
        return all(colour == words[4] for shape, colour in objects if shape == words[2])
    if words[:2] == ["Is", "any"]:
        return (words[2], words[3]) in objects
    if words[:2] == ["Is", "anything"]:
        return any(colour == words[2] for _, colour in objects)
    colours = [colour == words[4] for shape, colour in objects if shape == words[2]]
    return sum(colours) > len(colours) - sum(colours)


def test_questions_have_the_answers_that_the_objects_give():
    kinds = Counter()
    for level, current in rounds(AnswerQuantitativeQuestion, 800):
        objects = [named(look) for look, *_ in current.scene.props]
        assert len(objects) == 4
        yes = answer_to(current.text, objects)
        assert current.goals == {0 if yes else 1}
        assert level.question.yes == yes
        assert [item.look.colour for item in current.scene.items] == [COLOURS["white"], COLOURS["black"]]
        kinds[" ".join(current.text.split()[:2]), yes] += 1
        assert current.wrong == -10
    assert len(kinds) == 8
    assert all(count == pytest.approx(100, abs=35) for count in kinds.values())


def test_every_pays_one_each_and_eleven_for_the_last():
    level = next(level for level, current in rounds(ExecuteRandomTask, 200) if len(current.goals) > 1)
    goals = sorted(level.round.goals)
    text = level.instruction()
    assert [level.took((goal,), 10, NOWHERE) for goal in goals] == [1.0] * (len(goals) - 1) + [11.0]
    level.next_scene(NOWHERE)
    assert level.instruction() == level.round.text != text or level.round.goals


def test_a_wrong_object_ends_the_round_and_nothing_counts_after_it():
    level = next(level for level, current in rounds(ExecuteRandomTask, 200) if len(current.goals) > 1)
    wrong = max(level.round.goals) + 1
    assert level.took((wrong, 0), 10, NOWHERE) == level.round.wrong < 0
    before = level.round
    assert level.next_scene(NOWHERE) is not before.scene
    assert level.round is not before


@pytest.mark.parametrize(
    ("name", "least"), [("select_described_object", 80), ("select_located_object", 40), ("execute_random_task", 40)]
)
def test_a_walker_that_understands_gets_the_goals(stand_in, name, least):
    lab = stand_in(FOLDER + name, observations=("RGB_INTERLEAVED", "INSTR", "DEBUG.POS.TRANS", "DEBUG.POS.ROT"))
    lab.reset(seed=2)
    ledger = Ledger(lab)
    texts = set()

    def look(lab):
        assert lab.observations()["INSTR"] == lab._level.round.text
        texts.add(lab._level.round.text)
        return goals_of(lab, ledger)

    rewards = hunt(lab, look, frames=1200)
    assert sum(rewards) >= least
    assert min(rewards) >= -3
    assert len(texts) >= 3


def test_a_walker_that_understands_answers_questions(stand_in):
    lab = stand_in(FOLDER + "answer_quantitative_question")
    lab.reset(seed=2)
    ledger = Ledger(lab)
    rewards = hunt(lab, lambda lab: goals_of(lab, ledger), frames=1200)
    assert set(rewards) == {0.0, 10.0}
    assert sum(rewards) >= 50
