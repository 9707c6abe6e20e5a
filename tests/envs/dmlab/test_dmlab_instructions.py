"""Instructions as sample-factory's own DMLab environment gives them to the network, on every text that the levels can make."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sf_examples.dmlab.dmlab_model import DmlabEncoder

from sf_fixpo import train
from sf_fixpo.envs.dmlab import engines
from sf_fixpo.envs.dmlab.env import make_env, word_buckets
from sf_fixpo.envs.dmlab.stand_in.language import SelectDescribedObject, SelectLocatedObject
from sf_fixpo.envs.dmlab.stand_in.language_tasks import AnswerQuantitativeQuestion, ExecuteRandomTask
from sf_fixpo.envs.dmlab.stand_in.looks import SHAPE_NAMES, SIX_COLOURS
from sf_fixpo.learning.networks import make_actor_critic


def texts():
    """Every instruction of the four levels."""
    colours, shapes = SIX_COLOURS, SHAPE_NAMES
    yield from SelectDescribedObject.SHAPES
    yield from (f"Pick the {one} object in the {other} room" for one, other in product(colours, colours))
    yield from (*colours, *shapes)
    yield from (f"{colour} {shape}" for colour, shape in product(colours, shapes))
    yield from (f"Every {shape}" for shape in shapes)
    yield from (f"Every {colour} object" for colour in colours)
    yield from (f"{one} near {other}" for one, other in permutations(shapes, 2))
    yield from (f"{shape} near {colour} object" for shape, colour in product(shapes, colours))
    yield from (f"{one} object near {other} object" for one, other in permutations(colours, 2))
    for shape, colour in product(shapes, colours):
        yield from (f"Are all {shape} objects {colour}?", f"Is any {shape} {colour}?", f"Are most {shape} objects {colour}?")
    yield from (f"Is anything {colour}?" for colour in colours)


TEXTS = set(texts())


def theirs(monkeypatch, folder, level):
    """sample-factory's own environment, which the stand-in plays."""
    tables = engines.sample_factory_tables()
    monkeypatch.setattr(tables, "deepmind_lab", engines.engine_module(engines.VIZDOOM))
    settings = {"action_repeat": 4, "benchmark_mode": False, "renderer": "software", "dataset_path": "", "gpu_index": 0}
    settings |= {"with_instructions": True, "extended_action_set": True, "level_cache_path": str(folder)}
    return tables.DmlabGymEnv(0, f"contributed/dmlab30/{level}", res_w=96, res_h=72, **settings)


def test_every_text_is_the_numbers_that_sample_factory_makes_of_it():
    tables = engines.sample_factory_tables()
    env = object.__new__(tables.DmlabGymEnv)
    env.main_observation, env.instructions_observation = "RGB_INTERLEAVED", "INSTR"
    env.instructions = np.zeros(16, np.int32)
    for text in TEXTS:
        seen = env.format_obs_dict({"RGB_INTERLEAVED": None, "INSTR": text})["INSTR"]
        assert tuple(seen) == word_buckets(text)
        assert np.count_nonzero(seen) == len(text.split()) <= 8


@pytest.mark.parametrize("level", [SelectDescribedObject, SelectLocatedObject, ExecuteRandomTask, AnswerQuantitativeQuestion])
def test_the_levels_make_no_other_text(level):
    one = level()
    one.start(np.random.default_rng(0))
    for _ in range(400):
        assert one.instruction() in TEXTS
        one._next()


def test_sample_factorys_own_environment_plays_on_the_stand_in_and_sees_the_same(monkeypatch, tmp_path):
    env = theirs(monkeypatch, tmp_path, "language_execute_random_task")
    try:
        observation, _ = env.reset()
        text = env.dmlab.observations()["INSTR"]
        assert text in TEXTS
        assert tuple(observation["INSTR"]) == word_buckets(text)
        assert observation["obs"].shape == (72, 96, 3)
    finally:
        env.close()


def test_a_checkpoint_made_on_the_stand_in_loads_into_a_network_for_deepmind_lab(monkeypatch, tmp_path):
    """Into ours on the spaces of sample-factory's own environment, and its encoder into sample-factory's own."""
    argv = ["--env=dmlab_30_language_execute_random_task", "--preset=paper", "--dmlab_engine=vizdoom", "--pixel_format=HWC"]
    cfg = train.parse_cfg([*argv, "--experiment=x"])
    ours, other = make_env(cfg.env, cfg), theirs(monkeypatch, tmp_path, "language_execute_random_task")
    ours.close()
    other.close()
    assert {**ours.observation_space} == {**other.observation_space}  # type: ignore[dict-item]
    assert ours.action_space == other.action_space
    cfg.pixel_format = "CHW"
    space = spaces.Dict({**other.observation_space, "obs": spaces.Box(0, 255, (3, 72, 96), np.uint8)})
    made, loaded = (make_actor_critic(cfg, space, other.action_space) for _ in range(2))
    assert not torch.equal(embedding(made.encoder), embedding(loaded.encoder))
    loaded.load_state_dict(made.state_dict())
    assert torch.equal(embedding(made.encoder), embedding(loaded.encoder))
    encoder = DmlabEncoder(cfg, space)
    encoder.load_state_dict(made.encoder.state_dict())  # strict: no name more, none less
    assert torch.equal(embedding(made.encoder), embedding(encoder))


def embedding(encoder):
    """Of the words; drawn at random."""
    return encoder.word_embedding.weight
