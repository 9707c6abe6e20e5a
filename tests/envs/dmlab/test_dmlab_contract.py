"""One contract for every engine that plays DMLab-30 levels: DeepMind Lab where it is installed, and its stand-in.

It knows nothing but the interface both have; test_dmlab_stand_in.py looks into the stand-in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from labs import EXPLOIT_TEST, EXPLOIT_TRAIN, FRAMES, NONMATCHING, SIZE, SKIP, STILL, TEST, TRAIN, random_walk

from sf_fixpo.envs.dmlab import engines

FORWARD = np.array([0, 0, 0, 1, 0, 0, 0], np.intc)
COMPILED = "contributed/dmlab30/explore_goal_locations_small"


@dataclass(frozen=True)
class Rules:
    """What a random agent cannot get past.

    Attributes:
        frames: of an episode in which nothing is picked up.
        fixed: whether every episode is as long.
        rewards: what one step can pay, with steps of `SKIP` frames.
        least: total of an episode.
        most: total of an episode.
    """

    frames: int
    fixed: bool
    rewards: tuple[float, ...]
    least: float
    most: float


RULES = {
    TRAIN: Rules(3600, False, (-1, 0, 1), -10, 10),
    NONMATCHING: Rules(720, True, (-10, 0, 1, 10), -63, 77),
    EXPLOIT_TRAIN: Rules(3600, False, (-3, 0, 1, 10), -3, 100),
}
every_paper_level = pytest.mark.parametrize("level", RULES, ids=lambda level: level.rpartition("/")[2])


@pytest.fixture(params=engines.installed_engines(), scope="module")
def engine(request):
    return engines.engine_module(request.param)


@pytest.fixture
def make_lab(engine, tmp_path):
    """Makes Labs that are closed when the test ends."""
    labs = []

    def make(level=TRAIN, observations=("RGB_INTERLEAVED",), config=SIZE, **kwargs):
        labs.append(engine.Lab(level, list(observations), config=dict(config), **kwargs))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


@every_paper_level
def test_specs(make_lab, level):
    lab = make_lab(level, observations=["RGB_INTERLEAVED", "INSTR"])
    assert lab.action_spec() == [
        {"name": "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME", "min": -512, "max": 512},
        {"name": "LOOK_DOWN_UP_PIXELS_PER_FRAME", "min": -512, "max": 512},
        {"name": "STRAFE_LEFT_RIGHT", "min": -1, "max": 1},
        {"name": "MOVE_BACK_FORWARD", "min": -1, "max": 1},
        {"name": "FIRE", "min": 0, "max": 1},
        {"name": "JUMP", "min": 0, "max": 1},
        {"name": "CROUCH", "min": 0, "max": 1},
    ]
    specs = {spec["name"]: spec for spec in lab.observation_spec()}
    assert specs["RGB_INTERLEAVED"]["dtype"] is np.uint8
    assert tuple(specs["RGB_INTERLEAVED"]["shape"]) == (72, 96, 3)
    assert specs["INSTR"]["dtype"] is str
    assert not lab.is_running()


@pytest.mark.parametrize(("width", "height"), [(96, 72), (48, 36), (160, 120), (320, 240)])
def test_observations_have_exactly_the_size_asked_for(make_lab, width, height):
    lab = make_lab(observations=["RGB_INTERLEAVED", "INSTR"], config={"width": str(width), "height": str(height)})
    lab.reset(seed=1)
    observations = lab.observations()
    assert set(observations) == {"RGB_INTERLEAVED", "INSTR"}
    frame = observations["RGB_INTERLEAVED"]
    assert frame.dtype == np.uint8
    assert frame.shape == (height, width, 3)
    assert frame.std() > 5
    assert observations["INSTR"] == ""
    assert isinstance(observations["INSTR"], str)


def test_frames_belong_to_the_caller(make_lab):
    lab = make_lab()
    lab.reset(seed=1)
    frame = lab.observations()["RGB_INTERLEAVED"]
    before = frame.copy()
    for _ in range(5):
        lab.step(FORWARD, num_steps=SKIP)
        lab.observations()
    assert np.array_equal(frame, before)


@every_paper_level
def test_the_paper_levels_show_pixels_and_no_instruction(make_lab, level):
    lab = make_lab(level, observations=["RGB_INTERLEAVED", "INSTR"])
    lab.reset(seed=2)
    for _ in range(2):
        observations = lab.observations()
        frame = observations["RGB_INTERLEAVED"]
        assert (frame.dtype, frame.shape) == (np.uint8, (72, 96, 3))
        assert frame.std() > 5
        assert observations["INSTR"] == ""
        lab.step(FORWARD, num_steps=SKIP)


@every_paper_level
def test_same_seed_on_a_fresh_lab_is_the_same_episode(make_lab, level):
    first, second = make_lab(level), make_lab(level)
    first.reset(seed=12)
    second.reset(seed=12)
    frames, rewards = random_walk(first, seed=3, steps=150)
    again, rewards_again = random_walk(second, seed=3, steps=150)
    assert rewards == rewards_again
    assert np.array_equal(frames, again)


@every_paper_level
def test_other_seeds_are_other_episodes(make_lab, level):
    lab = make_lab(level)
    starts = []
    for seed in range(4):
        lab.reset(seed=seed)
        starts.append(lab.observations()["RGB_INTERLEAVED"])
    assert len({frame.tobytes() for frame in starts}) == 4


def test_reset_without_a_seed_draws_one(make_lab):
    lab = make_lab()
    starts = set()
    for _ in range(3):
        lab.reset()
        starts.add(lab.observations()["RGB_INTERLEAVED"].tobytes())
    assert len(starts) == 3


@pytest.mark.parametrize("seed", [np.int64(3), np.int32(3), "3", 1.5])
def test_a_seed_that_is_no_python_int_is_refused(make_lab, seed):
    """How large one may be is the engine's business: DeepMind Lab has no limit, and ours are below 2**31."""
    lab = make_lab()
    with pytest.raises((ValueError, TypeError)):
        lab.reset(seed=seed)


def test_the_seeds_that_we_give_are_accepted(make_lab):
    lab = make_lab()
    for seed in (0, 2**31 - 1):
        lab.reset(seed=seed)
        assert lab.is_running()


@every_paper_level
def test_an_episode_without_pickups_lasts_until_the_clock_ends_it(make_lab, level):
    lab = make_lab(level)
    lab.reset(seed=5)
    steps = total = 0
    while lab.is_running():
        total += lab.step(STILL, num_steps=SKIP)
        steps += 1
    assert steps == RULES[level].frames // SKIP
    assert lab.num_steps() == RULES[level].frames
    assert total == 0


def test_frames_are_counted_for_any_number_of_steps(make_lab):
    lab = make_lab()
    lab.reset(seed=5)
    for expected, count in ((1, 1), (2, 1), (5, 3), (12, 7), (112, 100)):
        lab.step(STILL, num_steps=count)
        assert lab.num_steps() == expected
    lab.step(STILL, num_steps=FRAMES)
    assert not lab.is_running()


@every_paper_level
def test_random_episodes_keep_to_the_levels_rules(make_lab, level):
    lab, rules = make_lab(level), RULES[level]
    for seed in range(3):
        lab.reset(seed=seed)
        _, rewards = random_walk(lab, seed=seed, steps=rules.frames // SKIP)
        assert not lab.is_running()
        assert set(rewards) <= set(rules.rewards)
        assert rules.least <= sum(rewards) <= rules.most
        assert lab.num_steps() == rules.frames if rules.fixed else lab.num_steps() <= rules.frames


@every_paper_level
def test_the_end_of_an_episode_is_the_end(make_lab, level):
    lab = make_lab(level)
    lab.reset(seed=1)
    lab.step(STILL, num_steps=RULES[level].frames)
    assert not lab.is_running()
    with pytest.raises(RuntimeError):
        lab.observations()
    with pytest.raises(RuntimeError):
        lab.step(STILL)
    lab.reset(seed=2)
    assert lab.is_running()
    assert lab.num_steps() == 0
    lab.observations()


def test_nothing_goes_before_the_first_reset(make_lab):
    lab = make_lab()
    with pytest.raises(RuntimeError):
        lab.observations()
    with pytest.raises(RuntimeError):
        lab.step(STILL)


@pytest.mark.parametrize("action", [np.zeros(7), np.zeros(7, np.int64), np.zeros(6, np.intc), np.zeros((1, 7), np.intc)])
def test_an_action_of_another_type_or_shape_is_refused(make_lab, action):
    lab = make_lab()
    lab.reset(seed=1)
    with pytest.raises(ValueError):  # noqa: PT011 (the texts differ)
        lab.step(action)


def test_an_action_out_of_range_is_not_refused(make_lab):
    lab = make_lab()
    lab.reset(seed=1)
    lab.step(np.array([9999, -9999, 5, -5, 3, 0, 0], np.intc), num_steps=SKIP)


def test_an_unknown_level_is_refused(engine):
    with pytest.raises(RuntimeError, match="Level not found"):
        engine.Lab("contributed/dmlab30/no_such_level", ["RGB_INTERLEAVED"], config=SIZE).reset(seed=1)


def test_an_unknown_observation_is_refused(engine):
    with pytest.raises(ValueError, match="NO_SUCH"):
        engine.Lab(TRAIN, ["NO_SUCH"], config=SIZE)


def test_config_values_must_be_strings_and_observations_a_list(engine):
    with pytest.raises((TypeError, ValueError)):
        engine.Lab(TRAIN, ["RGB_INTERLEAVED"], config={"width": 96, "height": 72})
    with pytest.raises((TypeError, ValueError)):
        engine.Lab(TRAIN, ("RGB_INTERLEAVED",), config=SIZE)


@pytest.mark.parametrize("level", [TEST, EXPLOIT_TEST])
def test_a_test_level_needs_leave(engine, make_lab, level):
    for config in (SIZE, {**SIZE, "allowHoldOutLevels": "false"}):
        with pytest.raises(RuntimeError):
            engine.Lab(level, ["RGB_INTERLEAVED"], config=config).reset(seed=1)
    lab = make_lab(level, config={**SIZE, "allowHoldOutLevels": "true"})
    lab.reset(seed=1)
    assert lab.observations()["RGB_INTERLEAVED"].shape == (72, 96, 3)


class Cache:
    """A level cache in memory that writes down how it is called."""

    def __init__(self, keeps):
        self.keeps, self.maps, self.calls = keeps, {}, []

    def fetch(self, key, pk3_path):
        self.calls.append((key, pk3_path))
        if key not in self.maps:
            return False
        Path(pk3_path).write_bytes(self.maps[key])
        return True

    def write(self, key, pk3_path):
        self.calls.append((key, pk3_path))
        if self.keeps:
            self.maps[key] = Path(pk3_path).read_bytes()


@pytest.mark.parametrize("level", [TRAIN, COMPILED])
@pytest.mark.parametrize("keeps", [True, False], ids=["that keeps maps", "that never has one"])
def test_a_level_cache_is_accepted(make_lab, level, keeps):
    """Whether it is asked is the engine's business; if so, with strings, and a hit is played like a new map."""
    cache = Cache(keeps)
    starts = []
    for _ in range(2):
        lab = make_lab(level, level_cache=cache)
        lab.reset(seed=1)
        starts.append(lab.observations()["RGB_INTERLEAVED"])
    assert np.array_equal(*starts)
    assert all(type(key) is str and type(path) is str for key, path in cache.calls)


def test_several_labs_in_one_process_do_not_meet(make_lab):
    alone = make_lab()
    alone.reset(seed=7)
    frames, _ = random_walk(alone, seed=1, steps=30)
    labs = [make_lab() for _ in range(3)]
    for number, lab in enumerate(labs):
        lab.reset(seed=7 + number)
    for lab in labs[1:]:
        random_walk(lab, seed=9, steps=10)
    again, _ = random_walk(labs[0], seed=1, steps=30)
    assert np.array_equal(frames, again)


def test_closing_twice_is_fine_and_a_closed_lab_is_closed(make_lab):
    lab = make_lab()
    lab.reset(seed=1)
    lab.close()
    lab.close()


ENDS = {
    "closed": "lab.close()",
    "forgotten": "lab.step(lab_action, num_steps=4)",
    "exit": "sys.exit(7)",
    "killed in a step": """
threading.Timer(0.1, os.kill, (os.getpid(), 9)).start()
while True:
    lab.reset(seed=1)
    lab.step(lab_action, num_steps=100)
""",
}
STATUS = {"closed": 0, "forgotten": 0, "exit": 7, "killed in a step": -9}


def play_in_a_process(engine, folder, end):
    """Starts an episode with `folder` as temporary directory, ends as told; returns the exit status and what is left there."""
    code = f"""
import os, sys, threading
import numpy as np
from sf_fixpo.envs.dmlab.loader import load
Lab = load("{engine.__name__}").Lab
lab_action = np.zeros(7, np.intc)
lab = Lab("{NONMATCHING}", ["RGB_INTERLEAVED"], config={SIZE})
lab.reset(seed=1)
{ENDS[end]}
"""
    environment = {**os.environ, "TMPDIR": str(folder)}
    # No pipes: an engine that outlived its process would hold them open.
    done = subprocess.run(
        [sys.executable, "-c", code],
        timeout=60,
        env=environment,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode, sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_and_leaves_nothing_for_good(engine, tmp_path, end):
    status, left = play_in_a_process(engine, tmp_path, end)
    assert status == STATUS[end]
    assert all(name.startswith("dmlab_") for name in left)
    if end == "closed":
        assert left == []
    elif engine.__name__ != engines.DEEPMIND_LAB:  # which leaves its folder behind without `close`
        assert left == [] or end == "killed in a step"
        assert play_in_a_process(engine, tmp_path, "closed") == (0, []), "the next engine removes what a killed one has left"
