"""The model card: metadata that the Hub's own parser reads, and a text that says what is so and what is not."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard
from small_hub import BEST, evaluation, row

from sf_fixpo.records.model_card import Card, level_scores, make_card


def card_of(**changes) -> Card:
    config = {"env": "gym_CartPole-v1", "algo": "FIXPO", "eps_kl": 0.5, "kl_stat": "max", "fixup": "every_epoch"}
    values = {
        "repo_id": "me/run", "config": config, "rows": [row(1), row(2, kl_max=0.45, backtracks=1), row(3, beta=2.5)],
        "evaluations": [evaluation(), evaluation("random", None)], "checkpoints": [f"checkpoint_p0/{BEST}"], "pictures": [],
        "dmlab": False,
    }  # fmt: skip
    return Card(**{**values, **changes})


def test_metadata_parses_and_holds_the_evaluation():
    content = make_card(card_of())
    data = ModelCard(content).data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("sample-factory", "reinforcement-learning", "run")
    assert set(data.tags) >= {"deep-reinforcement-learning", "sample-factory", "fixpo", "gym_CartPole-v1"}
    [result] = data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_type) == (
        "reinforcement-learning",
        "gym_CartPole-v1",
        "mean_reward",
    )
    assert result.metric_value == "10.00 +/- 2.00"
    assert ModelCard(str(ModelCard(content))).data.to_dict() == data.to_dict()


def test_card_tells_how_the_trust_region_held():
    text = make_card(card_of(pictures=["plot.png", "replay.mp4"]))
    assert "Every published policy kept the KL at every state" in text
    for line in (
        "| policy updates | 3 |",
        "| environment steps | 192 |",
        "| worst KL over its bound, of all published policies | 0.9000 |",
        "| fixup phase, share of the learner's time (checks included) | 25.0 % |",
        "| fixup steps beside primary steps | 25.0 % |",
        "| updates that went back towards the previous policy | 1 |",
        "| updates undone (a number was not finite) | 0 |",
        "| multiplier beta at the end | 2.5 |",
        f"| gym_CartPole-v1 | gym | {BEST} | sampled | 10.00 | 1.15 | 3 |",
        "| gym_CartPole-v1 | gym | random | random | 10.00 | 1.15 | 3 |",
        "| `eps_kl` | `0.5` |",
        "hf download me/run --local-dir train_dir/run",
        f"python -m sf_fixpo.evaluate train_dir/run --checkpoint=train_dir/run/checkpoint_p0/{BEST}",
        "![plot.png](plot.png)",
    ):
        assert line in text, line
    assert "Film: [replay.mp4](replay.mp4)" in text
    assert "fixpo-enjoy hub:me/run" in text
    assert "DMLab" not in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rows": [row(1, kl_max=0.6)]}, "**Not every published policy kept**"),
        ({"rows": [row(1, stale_fraction=0.02)]}, "at most 2 % of a batch"),
        ({"rows": [row(1, beta=[0.5, 4.0])]}, "0.5 to 4 over 2 tasks"),
        ({"rows": []}, "no update log"),
        ({"evaluations": []}, "has not been evaluated"),
        ({"config": {"env": "x", "algo": "FIXPO", "fixup": "off"}}, "nothing was enforced"),
        ({"config": {"env": "x", "algo": "FIXPO", "kl_stat": "mean"}}, "bounds the mean KL"),
        ({"config": {"env": "x", "algo": "APPO"}}, "trained by APPO of sample-factory"),
    ],
)
def test_card_says_what_is_not_so(changes, text):
    content = make_card(card_of(**changes))
    assert text in content
    assert ModelCard(content).data.library_name == "sample-factory"


def test_an_evaluation_of_another_checkpoint_is_not_this_models_result():
    content = make_card(card_of(evaluations=[evaluation(checkpoint="checkpoint_000000001_64.pth")]))
    assert ModelCard(content).data.eval_results is None
    assert "checkpoint_000000001_64.pth" in content


@pytest.mark.parametrize(("engine", "stand_in"), [("vizdoom", True), ("deepmind_lab", False)])
def test_results_on_the_stand_in_are_never_called_dmlab30(engine, stand_in):
    level = "rooms_collect_good_objects_test"
    config = {"env": "dmlab_30_rooms_collect_good_objects", "algo": "FIXPO", "dmlab_engine": engine}
    content = make_card(card_of(config=config, dmlab=True, evaluations=[evaluation(env=level, engine=engine)]))
    data = ModelCard(content).data
    [result] = data.eval_results
    assert ("These are not DMLab-30 results" in content) == stand_in
    assert ("not DMLab-30" in result.dataset_name) == stand_in
    assert (result.dataset_type == level) != stand_in
    assert ("vizdoom-stand-in" in data.tags) == stand_in
    assert f"Engine: `{engine}`" in content


def test_a_policy_of_the_real_engine_scored_on_the_stand_in_says_so():
    config = {"env": "dmlab_30_rooms_collect_good_objects", "algo": "FIXPO", "dmlab_engine": "deepmind_lab"}
    assert "These are not DMLab-30 results" in make_card(
        card_of(config=config, dmlab=True, evaluations=[evaluation(engine="vizdoom")])
    )


def test_scores_of_several_levels_and_of_files_without_levels():
    single = {key: value for key, value in evaluation().items() if key != "levels"}
    assert level_scores(single) == level_scores(evaluation())
    two = {**evaluation(), "env": ["a", "b"], "levels": {"a": evaluation(), "b": evaluation(mean=3.0)}}
    two["score"] = {"name": "mean capped human-normalised score", "capped": 12.345, "normalised": 20.0}
    assert [(score.level, score.mean) for score in level_scores(two)] == [("a", 10.0), ("b", 3.0)]
    content = make_card(card_of(evaluations=[two]))
    assert "mean capped human-normalised score: 12.3 (without the cap 20.0)." in content
    assert len(ModelCard(content).data.eval_results) == 2
