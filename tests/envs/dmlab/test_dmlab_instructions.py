"""Instructions as sample-factory's own DMLab environment gives them to the network, on every text that the levels can make."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from sample_factory.model.actor_critic import create_actor_critic
from sf_examples.dmlab.dmlab_model import DmlabEncoder
from test_dmlab_env import make_cfg

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


def theirs(monkeypatch, level):
    """sample-factory's own environment, which the stand-in plays."""
    tables = engines.sample_factory_tables()
    monkeypatch.setattr(tables, "deepmind_lab", engines.engine_module(engines.VIZDOOM))
    settings = {"action_repeat": 4, "res_w": 96, "res_h": 72, "benchmark_mode": False, "renderer": "software", "dataset_path": ""}
    settings |= {"with_instructions": True, "extended_action_set": True, "use_level_cache": False, "level_cache_path": "/tmp"}
    settings |= {"gpu_index": 0}
    code = tables.DmlabGymEnv.__init__.__code__
    known = code.co_varnames[: code.co_argcount]
    return tables.DmlabGymEnv(0, f"contributed/dmlab30/{level}", **{key: settings[key] for key in settings if key in known})


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


def test_sample_factorys_own_environment_plays_on_the_stand_in_and_sees_the_same(monkeypatch):
    env = theirs(monkeypatch, "language_execute_random_task")
    try:
        observation, _ = env.reset()
        text = env.dmlab.observations()["INSTR"]
        assert text in TEXTS
        assert tuple(observation["INSTR"]) == word_buckets(text)
        assert observation["obs"].shape == (72, 96, 3)
    finally:
        env.close()


def test_a_checkpoint_made_on_the_stand_in_loads_into_a_network_for_deepmind_lab(monkeypatch):
    """Into the one made from the spaces of sample-factory's own environment, with sample-factory's own encoder too."""
    argv = ["--env=dmlab_30_language_execute_random_task", "--preset=paper", "--dmlab_engine=vizdoom", "--experiment=x"]
    cfg = train.parse_cfg(argv)
    ours, other = make_env(cfg.env, cfg), theirs(monkeypatch, "language_execute_random_task")
    try:
        spaces = ours.observation_space, ours.action_space
        from sample_factory.envs.env_utils import RewardShapingInterface  # noqa: F401  (their wrappers need it imported)

        theirs_space = other.observation_space
    finally:
        ours.close()
        other.close()
    assert theirs_space["INSTR"] == spaces[0]["INSTR"]
    assert other.action_space == spaces[1]
    made = make_actor_critic(cfg, *spaces)
    again = make_actor_critic(make_cfg_like(cfg, "deepmind_lab"), *spaces)
    again.load_state_dict(made.state_dict())
    assert create_actor_critic and DmlabEncoder
    assert torch.equal(next(iter(again.parameters())), next(iter(made.parameters())))


def make_cfg_like(cfg, engine):
    """The same run on the other engine."""
    other = make_cfg()
    for key, value in cfg.items():
        setattr(other, key, value)
    other.dmlab_engine = engine
    return other
