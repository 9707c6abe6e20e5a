"""The contract of test_dmlab_contract.py for the levels beyond the paper's three: each family's clock, rewards and texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from labs import SIZE, SKIP, STILL, random_walk
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS
from test_dmlab_env import make_cfg

from sf_fixpo.envs.dmlab import engines, names
from sf_fixpo.envs.dmlab.env import lab_config
from sf_fixpo.envs.dmlab.names import needs_dataset
from sf_fixpo.envs.dmlab.simpler import SIMPLER

FOLDER = "contributed/dmlab30/"


@dataclass(frozen=True)
class Rules:
    """What nobody can get past.

    Attributes:
        seconds: of an episode in which nothing is touched.
        rewards: what one thing, or two at once, can pay.
        speaks: whether there is an instruction.
    """

    seconds: int
    rewards: tuple[float, ...]
    speaks: bool = False


_PRICES = (*range(-8, 13), 20, 22)
RULES = {
    "rooms_watermaze": Rules(120, (0, 1)),
    "rooms_keys_doors_puzzle": Rules(60, (0, 1, 50)),
    "language_select_described_object": Rules(60, (-10, 0, 10), True),
    "language_select_located_object": Rules(120, (-3, -1, 0, 10), True),
    "language_execute_random_task": Rules(120, _PRICES, True),
    "language_answer_quantitative_question": Rules(60, (-10, 0, 10), True),
    "lasertag_one_opponent_small": Rules(240, (-1, 0, 1)),
    "lasertag_three_opponents_small": Rules(240, (-1, 0, 1, 2, 3)),
    "lasertag_one_opponent_large": Rules(240, (-1, 0, 1)),
    "lasertag_three_opponents_large": Rules(240, (-1, 0, 1, 2, 3)),
    "natlab_fixed_large_map": Rules(120, (0, 1)),
    "natlab_varying_map_regrowth": Rules(120, (0, 1)),
    "natlab_varying_map_randomized": Rules(120, (0, 1)),
    "skymaze_irreversible_path_hard": Rules(60, (0, 100)),
    "skymaze_irreversible_path_varied": Rules(60, (0, 100)),
    "psychlab_arbitrary_visuomotor_mapping": Rules(300, (0, 1)),
    "psychlab_continuous_recognition": Rules(300, (0, 1)),
    "psychlab_sequential_comparison": Rules(300, (0, 1)),
    "psychlab_visual_search": Rules(150, (0, 1)),
    "explore_goal_locations_large": Rules(120, (0, 10)),
    "explore_object_locations_large": Rules(120, (0, 1)),
    "explore_obstructed_goals_small": Rules(90, (0, 10)),
    "explore_obstructed_goals_large": Rules(120, (0, 10)),
    "explore_object_rewards_few": Rules(90, (-1, 0, 1, 2)),
    "explore_object_rewards_many": Rules(120, (-1, 0, 1, 2)),
}
ONE_A_FAMILY = (
    "rooms_watermaze",
    "language_execute_random_task",
    "lasertag_three_opponents_large",
    "natlab_varying_map_regrowth",
    "skymaze_irreversible_path_hard",
    "psychlab_visual_search",
    "explore_obstructed_goals_small",
)
PAPER = {"rooms_collect_good_objects_train", "rooms_select_nonmatching_object", "rooms_exploit_deferred_effects_train"}


@pytest.fixture(params=engines.installed_engines(), scope="module")
def engine(request):
    return engines.engine_module(request.param)


@pytest.fixture
def make_lab(engine):
    """Makes Labs that are closed when the test ends."""
    labs = []

    def make(level, config=None):
        plain = {"datasetPath": "dummy"} if needs_dataset(level) else {}  # colours in place of photographs, on either engine
        labs.append(engine.Lab(FOLDER + level, ["RGB_INTERLEAVED", "INSTR"], config={**SIZE, **plain, **(config or {})}))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


def test_every_test_variant_is_its_level_with_other_settings():
    own_files = {"rooms_collect_good_objects_test", "rooms_exploit_deferred_effects_test"}
    for level in DMLAB30_LEVELS:
        test = names.test_level(level)
        assert names.level_file(test) == (test if test in own_files else level)
        config = lab_config(test, make_cfg())
        assert config["allowHoldOutLevels"] == "true"
        assert config["mixerSeed"] == str(0x600D5EED)
        assert "mixerSeed" not in lab_config(level, make_cfg())
        for engine in engines.installed_engines():
            assert names.level_file(test) in engines.playable_levels(engine)


@pytest.mark.parametrize("level", ONE_A_FAMILY)
def test_a_test_variant_has_episodes_of_its_own(make_lab, level):
    frames = []
    for config in ({}, lab_config(names.test_level(level), make_cfg(res_w=96, res_h=72))):
        lab = make_lab(level, config)
        lab.reset(seed=12)
        frames.append(lab.observations()["RGB_INTERLEAVED"])
        assert set(random_walk(lab, seed=3, steps=5)[1]) <= set(RULES[level].rewards)
    assert not np.array_equal(*frames)


def test_the_docs_say_where_a_level_is_simpler():
    page = (Path(__file__).parents[3] / "docs" / "levels.md").read_text()
    assert all(f"| {level} | {how} |" in page for level, how in SIMPLER.items())


def test_every_level_has_rules_here_or_in_the_other_contract():
    small = {"explore_goal_locations_small", "explore_object_locations_small"}
    assert {*RULES, *PAPER, *small} == set(DMLAB30_LEVELS)


@pytest.mark.parametrize("level", RULES)
def test_an_episode_is_a_function_of_its_seed_and_pays_what_the_rules_say(make_lab, level):
    rules, lab = RULES[level], make_lab(level)
    episodes = []
    for seed in (12, 12, 13):
        lab.reset(seed=seed)
        text = lab.observations()["INSTR"]
        assert isinstance(text, str)
        assert bool(text) == rules.speaks
        frames, rewards = random_walk(lab, seed=3, steps=40)
        assert (frames.dtype, frames.shape[1:]) == (np.uint8, (72, 96, 3))
        assert set(rewards) <= set(rules.rewards)
        episodes.append((frames, rewards, text))
    first, again, other = episodes
    assert first[1:] == again[1:]
    assert np.array_equal(first[0], again[0])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


@pytest.mark.slow
@pytest.mark.parametrize("level", ONE_A_FAMILY)
def test_whoever_stands_still_gets_nothing_until_the_clock_ends_it(make_lab, level):
    lab = make_lab(level)
    lab.reset(seed=5)
    total = steps = 0
    while lab.is_running():
        total += lab.step(STILL, num_steps=100 * SKIP)
        steps += 1
    assert total == 0
    assert lab.num_steps() == RULES[level].seconds * 60
    with pytest.raises(RuntimeError):
        lab.observations()
