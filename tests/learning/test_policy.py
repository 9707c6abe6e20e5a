"""A policy as actors run it: what it is built like, what it leaves alone, and what it takes for known."""

import sys

import gymnasium as gym
import networks
import numpy as np
import pytest
import torch
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import ActorCritic, create_actor_critic

from benchmarks.synthetic import make_cfg, small_shape, vector_space
from sf_fixpo.learning.policy import Policy, forward

IMAGE = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 40, 40), np.uint8))
CONV = {"encoder_conv_architecture": "convnet_atari", "encoder_conv_mlp_layers": [16], "obs_scale": 255.0}


def maker(tmp_path, obs_space=None, **flags):
    shape = small_shape(obs_space=obs_space, **flags)
    cfg = make_cfg("FIXPO", shape, train_dir=tmp_path)
    spaces = gym.spaces.Dict(shape.obs_space.spaces), shape.action_space

    def make():
        model = create_actor_critic(cfg, *spaces)
        model.model_to_device(torch.device("cpu"))
        return model

    return make


def observations(count, width=8):
    return {"obs": torch.randn(count, width)}


@pytest.fixture
def make(tmp_path):
    return maker(tmp_path, normalize_input=True)


def test_a_policy_like_another_is_for_inference_only(make):
    trained = Policy(make().train())
    before = torch.get_rng_state()
    policy = Policy.like(trained, make)
    assert torch.equal(torch.get_rng_state(), before), "random numbers are given back"
    assert policy.state.equals(trained.state)
    assert not any(module.training for module in policy.model.modules())
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    assert all(parameter.requires_grad for parameter in trained.model.parameters())
    for plain in (trained, policy):
        assert not any(tensor.is_shared() for tensor in plain.model.state_dict().values())
    shared = Policy.like(trained, make, shared=True)
    assert all(tensor.is_shared() for tensor in shared.model.state_dict().values() if tensor.numel())
    for call in (lambda: Policy.like(trained, make, True), lambda: Policy(make(), True)):
        with pytest.raises(TypeError, match="positional"):
            call()


@pytest.mark.parametrize("training", [True, False])
def test_what_an_actor_would_do_is_computed_without_a_trace(make, training):
    policy, raw = Policy(make().train(training)), observations(6)
    before, modes = torch.get_rng_state(), [module.training for module in policy.model.modules()]
    state = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    obs = policy.observe(raw)
    parameters = policy.action_parameters(obs, torch.zeros(6, 1), None)
    assert not parameters.requires_grad
    assert [module.training for module in policy.model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in policy.model.state_dict().items())
    outputs = forward(policy.model, obs, torch.zeros(6, 1), None)
    assert outputs["action_logits"].requires_grad
    torch.testing.assert_close(outputs["action_logits"], parameters)
    assert torch.equal(torch.get_rng_state(), before), "no action is drawn"


def test_images_are_encoded_as_many_at_a_time_as_stay_in_the_cache(tmp_path):
    images = Policy(maker(tmp_path, IMAGE, **CONV)())
    assert images.fast_images
    assert images.samples_at_once(TensorDict(obs=torch.zeros(1, 3, 72, 96))) == 2**22 // (3 * 72 * 96) == 202
    assert images.samples_at_once(TensorDict(obs=torch.empty(1, 3, 2000, 2000))) == 1, "one at least"
    elsewhere = TensorDict(obs=torch.zeros(1, 3, 72, 96, device="meta"))
    assert images.samples_at_once(elsewhere) == sys.maxsize, "an accelerator is faster with all of them"
    both = TensorDict(obs=torch.zeros(1, 3, 72, 96), more=torch.zeros(1, 7))
    assert images.samples_at_once(both) == 202, "vectors do not count"
    vectors = Policy(maker(tmp_path / "b", vector_space(8))())
    assert vectors.samples_at_once(TensorDict(obs=torch.zeros(1, 8))) == sys.maxsize
    with networks.registered(networks.ViewingConv):
        unknown = Policy(maker(tmp_path / "c", IMAGE, **CONV)())
    assert unknown.samples_at_once(TensorDict(obs=torch.zeros(1, 3, 72, 96))) == sys.maxsize, "it may do anything with a batch"


@pytest.mark.parametrize(("at_once", "calls"), [(7, [7]), (8, [7]), (6, [6, 1]), (3, [3, 3, 1]), (1, [1] * 7)])
def test_parts_are_as_large_as_they_may_be(make, at_once, calls, monkeypatch):
    model, seen = make(), []
    whole, obs = model.forward_head, TensorDict(observations(7))
    monkeypatch.setattr(model, "forward_head", lambda part: seen.append(part) or whole(part))
    forward(model, obs, torch.zeros(7, 1), None, at_once)
    assert [len(part["obs"]) for part in seen] == calls
    assert (seen[0] is obs) == (len(calls) == 1), "where one part is all, it is not copied"


class OtherNormalizer(torch.nn.Module):
    """Not sample-factory's."""

    running_mean_std = None

    def forward(self, obs):
        return obs


class OfItsOwn(ActorCritic):
    """Normalises by a method of its own."""

    def normalize_obs(self, obs):
        return obs


def test_which_normalisers_are_known_and_which_have_statistics(tmp_path):
    plain, counting = (Policy(maker(tmp_path / str(on), normalize_input=on)()) for on in (False, True))
    assert (plain.known_normalizer, plain.has_statistics, plain.constant_observations) == (True, False, True)
    assert (counting.known_normalizer, counting.has_statistics, counting.constant_observations) == (True, True, False)
    plain.model.obs_normalizer = OtherNormalizer()
    assert (plain.known_normalizer, plain.has_statistics, plain.constant_observations) == (False, False, False)
    model = maker(tmp_path / "own")()
    model.__class__ = type("Own", (OfItsOwn, type(model)), {})
    assert not Policy(model).known_normalizer
