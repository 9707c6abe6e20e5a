"""The four psychlab levels: trials, staircases, what is drawn, and what a player that knows the answers gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.levels.players.gazes import CROSS, Gazer, middle
from sf_fixpo.envs.dmlab.stand_in.panel import PanelView, gaze_point, look_at
from sf_fixpo.envs.dmlab.stand_in.psychlab_images import (
    PICTURES,
    ArbitraryVisuomotorMapping,
    ContinuousRecognition,
    picture_colour,
)
from sf_fixpo.envs.dmlab.stand_in.psychlab_patterns import SQUARE, SequentialComparison, VisualSearch
from sf_fixpo.envs.dmlab.stand_in.trials import RIGHT, WRONG, Staircase

FOLDER = "contributed/dmlab30/psychlab_"
CLASSES = {
    "arbitrary_visuomotor_mapping": ArbitraryVisuomotorMapping,
    "continuous_recognition": ContinuousRecognition,
    "sequential_comparison": SequentialComparison,
    "visual_search": VisualSearch,
}
NOWHERE = None


def begin(level_class, seed=0):
    """A level at its first cross."""
    level = level_class()
    level.start(np.random.default_rng(seed))
    return level


def answer(level, right=True):
    """Plays a trial with one answer; what it pays, and the buttons that it had."""
    frames = 0

    def look(where):
        nonlocal frames
        frames += 1
        return level.gaze(where, frames)

    assert look(CROSS) == 0
    if isinstance(level, SequentialComparison):
        look(middle(level.frame_box))
        while not level.buttons:
            look(NOWHERE)
    buttons = level.buttons
    button = next(button for button in buttons if button.right == right)
    assert look(middle(button.box)) == 0
    assert look(middle(button.box)) == 0, "nothing as long as the gaze stays"
    assert button.colour == (RIGHT if right else WRONG)
    return look(NOWHERE), buttons


@given(st.floats(0, 0.999), st.floats(0, 0.999))
@example(0.375, 0.0)
@example(0.0, 0.0)
def test_looking_at_a_point_is_the_inverse_of_the_gaze(x, y):
    assert gaze_point(*look_at(x, y)) == pytest.approx((x, y), abs=1e-9)


def test_the_panel_spans_63_degrees_and_59_pixels():
    left, right = look_at(0, 0.5)[0], look_at(1, 0.5)[0]
    assert right - left == pytest.approx(63.5, abs=0.1)
    view = PanelView(ArbitraryVisuomotorMapping(), 96, 72)
    view.start(np.random.default_rng(0))
    view.yaw, view.pitch = look_at(0.5, 0.5)
    frame = view.view()
    white = (frame == 255).all(axis=2) | ((frame == (255, 0, 0)).all(axis=2))
    columns = np.flatnonzero(white[10])
    assert columns[-1] - columns[0] + 1 == pytest.approx(59, abs=2)
    assert tuple(frame[36, 48]) != (255, 255, 255), "the cross is where the gaze is"
    view.yaw = 180.0
    assert not (view.view() == 255).all(axis=2).any(), "the panel is behind the player"


def test_a_gaze_beside_the_panel_is_none():
    assert gaze_point(40, 0) is None
    assert gaze_point(0, 40) is None
    assert gaze_point(180, 0) is None
    assert gaze_point(0, 0)[1] == pytest.approx(0.5 + 1 / 112)


@pytest.mark.parametrize("name", CLASSES)
def test_a_right_answer_pays_one_and_a_wrong_one_nothing(name):
    level = begin(CLASSES[name])
    assert level.gaze((0.3, 0.5), 1) == 0
    assert level.fixating, "only the cross starts a trial"
    assert answer(level)[0] == 1
    assert level.fixating
    assert answer(level, right=False)[0] == 0
    assert level.fixating


@pytest.mark.parametrize("name", CLASSES)
def test_the_last_trial_or_the_clock_ends_the_episode(name):
    level = begin(CLASSES[name])
    clock = (150 if name == "visual_search" else 300) * 60
    assert level.last_frame() == level.frames == clock
    for trial in range(level.trials):
        assert level.last_frame() == clock, trial
        answer(level)
    assert level.last_frame() < clock


def test_the_staircase():
    stairs = Staircase(10)
    seen = []
    for right in (True, True, True, True, False, True, True, False, False, False):
        seen.append(stairs.level)
        stairs.answer(right)
    # 1: all right; 2, 2: all right; 3, 3, 3: two of three stay; 3, 3, 3: one of three goes down.
    assert seen == [1, 2, 2, 3, 3, 3, 3, 3, 3, 2]
    assert stairs.level == 2
    stairs.answer(False)
    assert stairs.level == 1
    stairs.answer(False)
    assert stairs.level == 1


def test_pictures_are_2400_different_places_of_a_colour_table():
    colours = [picture_colour(number) for number in range(PICTURES)]
    assert len(colours) == 2400
    assert len(set(colours)) > 2200
    assert all(0 <= part <= 255 for colour in colours for part in colour)


def test_a_new_picture_joins_after_a_pass_without_mistakes():
    level = begin(ArbitraryVisuomotorMapping)
    shown = []
    for _ in range(10):
        level.gaze(CROSS, 1)
        shown.append(level.picture)
        colours = Counter(button.colour for button in level.buttons)
        first = shown.count(level.picture) == 1
        assert colours == ({(100, 200, 100): 1, (200, 100, 100): 3} if first else {(0, 0, 0): 4})
        button = next(button for button in level.buttons if button.right)
        level.gaze(middle(button.box), 2)
        assert Counter(b.colour for b in level.buttons) == {RIGHT: 1, WRONG: 3}
        level.gaze(NOWHERE, 3)
    assert [len(set(shown[: n + 1])) for n in (0, 2, 5, 9)] == [1, 2, 3, 4]
    assert len({shown[0], *shown[1:3]}) == 2
    answer(level, right=False)
    known = dict(level.mapping)
    assert len(known) == 5
    for _ in range(4 + 5):
        answer(level)
        assert level.mapping == known, "no new one after a pass with a mistake"
    answer(level)
    assert len(level.mapping) == 6
    assert list(level.mapping.items())[:5] == list(known.items())


def test_half_of_the_pictures_are_new():
    news = []
    for seed in range(20):
        level = begin(ContinuousRecognition, seed)
        seen = set()
        for trial in range(60):
            level.gaze(CROSS, 1)
            new = level.picture not in seen
            assert new or trial
            assert [button.right for button in level.buttons] == [new, not new]
            seen.add(level.picture)
            news.append(new)
            level.gaze(middle(level.buttons[0].box), 2)
            level.gaze(NOWHERE, 3)
    assert np.mean(news) == pytest.approx(0.5, abs=0.05)


def test_what_changes_between_the_two_patterns():
    kinds, differs, delays = Counter(), [], set()
    for seed in range(60):
        level = begin(SequentialComparison, seed)
        for _ in range(6):
            paid, _ = answer(level)
            assert paid == 1
            before, after = level.studied, level.pattern
            changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert len(changed) == level.differs
            assert len({sign.place for sign in after}) == len(after)
            assert not any(2 <= x <= 5 and 2 <= y <= 5 for x, y in (sign.place for sign in after))
            for a, b in changed:
                assert a.place == b.place
                assert level.kind not in ("colour", "squares") or a.kind == b.kind
                assert level.kind != "orientation" or a.colour == b.colour
                assert level.kind != "mixed" or (a.kind == SQUARE) != (b.kind == SQUARE)
            kinds[level.kind] += 1
            differs.append(level.differs)
            delays.add(level.delay)
    assert set(kinds) == set(SequentialComparison.KINDS)
    assert np.mean(differs) == pytest.approx(0.5, abs=0.1)


def test_the_blank_lasts_as_long_as_drawn():
    lengths = set()
    for seed in range(40):
        level = begin(SequentialComparison, seed)
        level.gaze(CROSS, 1)
        level.gaze(middle(level.frame_box), 2)
        level.gaze(middle(level.frame_box), 3)
        assert level.phase == "study"
        level.gaze(NOWHERE, 4)
        assert (level.image() == 255).all()
        count = 0
        while not level.buttons:
            level.gaze(NOWHERE, 5)
            count += 1
        lengths.add(count)
    assert lengths == set(SequentialComparison.DELAYS)


def test_what_is_to_be_found_among_what():
    kinds, present = Counter(), []
    for seed in range(40):
        level = begin(VisualSearch, seed)
        for _ in range(8):
            step = level.staircase.level
            paid, buttons = answer(level)
            assert paid == 1
            signs = [(shape, colour) for _, _, shape, colour in level.signs]
            assert len({(x, y) for x, y, *_ in level.signs}) == len(signs) == (1, 1, 1, 2, 2, 4)[step - 1]
            found = signs.count(("T", VisualSearch.MAGENTA))
            assert found == buttons[1].right
            present.append(found)
            others = [sign for sign in signs if sign != ("T", VisualSearch.MAGENTA)]
            kinds[all(c == VisualSearch.MAGENTA for _, c in others), all(s == "T" for s, _ in others)] += len(others) > 0
    assert np.mean(present) == pytest.approx(0.5, abs=0.1)
    assert all(kinds[kind] > 20 for kind in ((True, False), (False, True), (False, False)))


@pytest.mark.parametrize("name", CLASSES)
def test_a_player_that_knows_the_answers_gets_a_point_a_trial(stand_in, name):
    lab = stand_in(FOLDER + name)
    lab.reset(seed=1)
    player = Gazer(lab)
    player.play(8)
    assert sum(player.rewards) == lab._level._done == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_a_player_that_knows_the_answers_gets_every_point(stand_in, name):
    lab = stand_in(FOLDER + name)
    lab.reset(seed=1)
    player = Gazer(lab)
    player.play(lab._level.trials)
    assert sum(player.rewards) == lab._level.trials
    assert not lab.is_running()
    assert lab.num_steps() < lab._level.frames / 2


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_seed_is_the_same_episode_at_any_number_of_frames_a_step(stand_in, name):
    rng = np.random.default_rng(0)
    turns = [(int(rng.integers(-40, 41)), int(rng.integers(-20, 21))) for _ in range(100)]
    seen = []
    for skip in (4, 2, 1):
        lab = stand_in(FOLDER + name)
        lab.reset(seed=5)
        frames, total = [], 0.0
        for right, down in turns:
            for _ in range(4 // skip):
                total += lab.step(np.array([right, down, 0, 1, 1, 1, 1], np.intc), num_steps=skip)
            frames.append(lab.observations()["RGB_INTERLEAVED"])
        seen.append((np.array(frames), total))
        assert np.allclose(lab.observations()["DEBUG.POS.TRANS"][:2], 0), "nobody walks"
    for frames, total in seen[1:]:
        assert total == seen[0][1]
        assert np.array_equal(frames, seen[0][0])


def test_a_pass_over_a_button_in_one_step_counts(stand_in):
    """The gaze is looked up every frame: from the cross beyond a button and back in two steps."""
    lab = stand_in(FOLDER + "continuous_recognition")
    lab.reset(seed=0)
    player = Gazer(lab)
    player.look(*CROSS)
    assert lab._level.buttons
    player.look(-0.2, 0.5)
    assert sum(player.rewards) == 1, "left is right: the first picture is new"
