"""Human-normalised scores: numbers worked out by hand, sample-factory's own formula, and what a score may be called."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS, HUMAN_SCORES, RANDOM_SCORES

from sf_fixpo.envs.dmlab import engines, names
from sf_fixpo.envs.dmlab.scores import DMLAB30_SCORE, NoScoreError, human_normalised, normalised_score

LAB = engines.DEEPMIND_LAB
TESTS = [names.test_level(level) for level in DMLAB30_LEVELS]


@pytest.mark.parametrize(
    ("level", "mean", "score"),
    [
        ("rooms_collect_good_objects_test", 10.0, 100.0),
        ("rooms_collect_good_objects_test", 0.073, 0.0),
        ("rooms_collect_good_objects_test", 5.0365, 50.0),  # half-way between 0.073 and 10
        ("rooms_collect_good_objects_test", -10.0, -101.470736),  # -1007.3 / 9.927
        ("rooms_exploit_deferred_effects_test", 100.0, 118.600371),  # 9149.9 / 77.149
        ("rooms_select_nonmatching_object_test", 33.106, 50.0),  # half-way between 0.312 and 65.9
        ("language_execute_random_task_test", 0.0, 2.274554),  # 591.3 / 259.963: random is -5.913
    ],
)
def test_normalised_scores_by_hand(level, mean, score):
    assert normalised_score(level, mean) == pytest.approx(score, abs=1e-6)


def test_a_training_level_is_compared_with_its_test_variant():
    for level in DMLAB30_LEVELS:
        assert normalised_score(level, 7.0) == normalised_score(names.test_level(level), 7.0)


def test_the_cap_comes_after_the_mean_over_episodes_and_before_the_mean_over_levels():
    # per level 118.6 -> 100 and 50; uncapped their mean is 84.3. Capping single episodes would give the first less than 100
    means = {
        "rooms_exploit_deferred_effects_test": float(np.mean([200.0, 0.0])),
        "rooms_select_nonmatching_object_test": float(np.mean([66.212, 0.0])),
    }
    scores = human_normalised(means, LAB)
    assert scores.capped == {key: pytest.approx(value) for key, value in zip(means, (100.0, 50.0), strict=True)}
    assert scores.mean_capped == pytest.approx(75.0)
    assert scores.mean_normalised == pytest.approx((118.600371 + 50) / 2)


def test_scores_are_sample_factorys():
    engines.sample_factory_tables()  # sample-factory's module can be imported where there is no DeepMind Lab
    from sf_examples.dmlab import dmlab_env

    rng = np.random.default_rng(0)
    returns = {level: list(rng.normal(0, 100, 7)) for level in DMLAB30_LEVELS}
    written = {}
    writer = SimpleNamespace(add_scalar=lambda key, value, step: written.update({key: value}))
    runner = SimpleNamespace(cfg=SimpleNamespace(env="dmlab_30", num_policies=1), policy_avg_stats={})
    dmlab_env.dmlab_extra_episodic_stats_processing.new_level_returns[0] = {key: list(value) for key, value in returns.items()}
    dmlab_env.dmlab_extra_summaries(runner, 0, 1, writer)
    scores = human_normalised({names.test_level(level): float(np.mean(values)) for level, values in returns.items()}, LAB)
    assert scores.mean_normalised == pytest.approx(written["_dmlab/000_mean_human_norm_score"], rel=1e-12)
    assert scores.mean_capped == pytest.approx(written["_dmlab/000_capped_mean_human_norm_score"], rel=1e-12)
    for number, level in enumerate(DMLAB30_LEVELS):
        mine = (scores.normalised[names.test_level(level)], scores.capped[names.test_level(level)])
        keys = (f"_dmlab/{number:02d}_{level}_human_norm_score", f"_dmlab/capped_{number:02d}_{level}_human_norm_score")
        assert mine == pytest.approx([written[key] for key in keys], rel=1e-12)


def test_a_human_scores_100_and_a_random_agent_0_on_all_thirty():
    for table, score in ((HUMAN_SCORES, 100.0), (RANDOM_SCORES, 0.0)):
        scores = human_normalised({level: table[names.score_name(level)] for level in TESTS}, LAB)
        assert scores.name == DMLAB30_SCORE
        assert scores.mean_capped == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("levels", "name"),
    [
        (TESTS[1:], "mean capped human-normalised score over 29 levels"),
        (TESTS[:1], "mean capped human-normalised score over 1 level"),
        (DMLAB30_LEVELS, "mean capped human-normalised score over 30 levels, training variants among them"),
        ([*TESTS[1:], DMLAB30_LEVELS[0]], "mean capped human-normalised score over 30 levels, training variants among them"),
        ([*TESTS, DMLAB30_LEVELS[0]], "mean capped human-normalised score over 31 levels, training variants among them"),
    ],
)
def test_only_all_thirty_test_variants_make_a_dmlab_30_score(levels, name):
    assert human_normalised(dict.fromkeys(levels, 1.0), LAB).name == name


def test_on_the_stand_in_the_same_formula_has_another_name():
    means = {level: HUMAN_SCORES[names.score_name(level)] / 2 for level in TESTS}
    here, there = human_normalised(means, engines.VIZDOOM), human_normalised(means, LAB)
    assert here.mean_capped == there.mean_capped
    assert (here.stand_in, there.stand_in) == (True, False)
    assert here.name == "stand-in score over 30 levels, no score of DMLab-30"
    one = human_normalised({DMLAB30_LEVELS[0]: 1.0}, engines.VIZDOOM)
    assert one.name == "stand-in score over 1 level, training variants among them, no score of DMLab-30"
    with pytest.raises(NoScoreError, match="the engines are deepmind_lab, vizdoom"):
        human_normalised(means, "deepmind_lab, vizdoom")


def test_there_is_no_score_without_a_reference():
    with pytest.raises(NoScoreError, match="no_such_level is not a level"):
        human_normalised({"no_such_level": 1.0}, LAB)
    with pytest.raises(NoScoreError, match="no level was evaluated"):
        human_normalised({}, LAB)
