"""The normaliser's statistics alone: from which samples they are counted, and how far they are let into the policy."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from hypothesis import given
from hypothesis import strategies as st
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.utils.normalize import ObservationNormalizer

from benchmarks.synthetic import make_batch, make_learner, small_shape
from sf_fixpo.learning import statistics
from sf_fixpo.learning.statistics import admit, count_and_normalize


def counts(policy):
    return policy.model.obs_normalizer.running_mean_std.running_mean_std["obs"]


@pytest.fixture
def learner(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    learner.train(make_batch(learner, seed=1))
    return learner


@pytest.mark.parametrize("chosen", [0, 1, 2, 5])
def test_statistics_are_of_the_samples_that_count(learner, chosen):
    """A deviation takes two; of fewer nothing is learned."""
    policy, obs = learner.candidate, torch.randn(5, 8) * 3
    other = learner.gate.published
    policy.state.copy_(other.state)
    counted = torch.arange(chosen)
    before = counts(policy).running_mean.clone()
    normalized = count_and_normalize(policy, TensorDict(obs=obs), counted)
    assert (chosen > 1) == bool((counts(policy).running_mean != before).any())
    assert not policy.model.training
    torch.testing.assert_close(normalized["obs"], policy.observe({"obs": obs})["obs"])
    if chosen == 5:
        alike = learner.verifier.staged
        alike.state.copy_(other.state)
        count_and_normalize(alike, TensorDict(obs=obs.clone()), None)
        torch.testing.assert_close(counts(alike).running_mean, counts(policy).running_mean)
        assert not alike.model.training


@given(st.integers(2, 40), st.integers(1, 60), st.sampled_from([np.uint8, np.float32, np.int64]), st.integers(0, 9999))
def test_moments_taken_in_parts_are_those_of_numpy(count, at_once, dtype, seed):
    x = (np.random.default_rng(seed).normal(100.0, 20.0, (count, 2, 3))).clip(0, 255).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_VALUES_AT_ONCE", at_once)
        mean, variance = statistics._moments(torch.from_numpy(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.astype(np.float64).var(0, ddof=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flags", [{}, {"obs_scale": 255.0}, {"obs_subtract_mean": 128.0, "obs_scale": 128.0}])
def test_statistics_are_those_that_sample_factory_would_have_counted(tmp_path, flags):
    space = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8), speed=gym.spaces.Box(-9, 9, (2,), np.float32))
    shape = small_shape(space, **BUSY, **flags, encoder_conv_architecture="convnet_impala", encoder_conv_mlp_layers=[16])
    learner = make_learner("FIXPO", shape, train_dir=tmp_path)
    policy, other = learner.candidate, learner.verifier.staged
    generator = torch.Generator().manual_seed(0)
    for count in (5, 70):  # a second batch is put to what the first has left
        images = torch.randint(0, 256, (count, 3, 36, 36), generator=generator, dtype=torch.uint8)
        raw = TensorDict(obs=images, speed=torch.randn(count, 2, generator=generator))
        normalized = count_and_normalize(policy, TensorDict(raw), None)
        other.model.train()
        expected = prepare_and_normalize_obs(other.model, TensorDict(raw))
        for name, tensor in policy.state.clone_tensors().items():
            if "obs_normalizer" in name:
                torch.testing.assert_close(tensor, other.state.clone_tensors()[name], rtol=1e-5, atol=1e-7)
        for key in raw:
            torch.testing.assert_close(normalized[key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_a_known_name", [True, False])
def test_a_normaliser_that_is_not_sample_factorys_own_counts_itself(tmp_path, by_a_known_name):
    class Own(ObservationNormalizer):
        pass

    shape = small_shape(**{**BUSY, "normalize_input": by_a_known_name})
    policy, obs = make_learner("FIXPO", shape, train_dir=tmp_path).candidate, torch.randn(5, 8)
    policy.model.obs_normalizer.__class__ = Own
    seen = []
    policy.model.obs_normalizer.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    count_and_normalize(policy, TensorDict(obs=obs), None)
    assert seen == [True, False], "counted in training mode, then looked at"


def test_without_statistics_there_is_nothing_to_count(tmp_path):
    learner = make_learner("FIXPO", small_shape(**{**BUSY, "normalize_input": False}), train_dir=tmp_path)
    obs = torch.randn(5, 8)
    seen = []
    learner.candidate.model.train = lambda mode=True: seen.append(mode)
    normalized = count_and_normalize(learner.candidate, TensorDict(obs=obs), torch.arange(5))
    assert torch.equal(normalized["obs"], obs)
    assert seen[:1] != [True], "no pass in training mode, which would count"


def shifted(learner, by):
    """A candidate whose statistics have moved: (batch, progress, the new mean, the published one)."""
    batch, progress = learner._update
    batch.bind_to_previous(batch.parameters(learner.gate.published, learner.gate.published.observe(batch.raw_obs), 32))
    learner.candidate.state.copy_(learner.gate.published.state)
    mean = counts(learner.candidate).running_mean
    start = mean.clone()
    mean += by
    batch.obs = learner.candidate.observe(batch.raw_obs)
    progress.host_reads, progress.statistics_scale = 0, 1.0
    return batch, progress, mean.clone(), start


def worst(learner, batch, every=1):
    pi = batch.parameters(learner.candidate, batch.obs, 32)
    return learner.divergence.per_state(pi, batch.previous)[::every].max().item()


def let_in(learner, batch, progress, aim):
    admit(learner.candidate, learner.gate.published, batch, progress, learner.divergence, aim)
    return counts(learner.candidate).running_mean


def test_statistics_that_move_the_policy_little_go_all_the_way_for_one_look(learner):
    batch, progress, end, _ = shifted(learner, 0.5)
    rows, parameters = [], learner.candidate.action_parameters
    learner.candidate.action_parameters = lambda obs, *rest: (rows.append(obs["obs"]), parameters(obs, *rest))[1]
    whole, obs = worst(learner, batch, every=8), batch.obs
    rows.clear()
    assert torch.equal(let_in(learner, batch, progress, whole), end), "what is aimed at is still inside"
    assert (progress.host_reads, progress.statistics_scale) == (1, 1.0)
    assert batch.obs is obs
    assert len(rows) == 1
    assert torch.equal(rows[0], obs["obs"][::8]), "one trajectory of eight"


def test_statistics_that_move_it_far_go_half_the_way_or_a_quarter(learner):
    batch, progress, end, start = shifted(learner, 2.0)
    aim = 0.3 * worst(learner, batch)
    mean = let_in(learner, batch, progress, aim)
    scale = progress.statistics_scale
    assert scale in (0.5, 0.25)
    torch.testing.assert_close(mean, start + scale * (end - start))
    torch.testing.assert_close(batch.obs["obs"], learner.candidate.observe(batch.raw_obs)["obs"])
    assert worst(learner, batch) <= aim
    assert progress.host_reads == 2 + (scale == 0.25)


@pytest.mark.parametrize("by", [2.0, float("nan"), float("inf")])
def test_where_no_part_of_the_way_is_inside_they_stay(learner, by):
    batch, progress, _, start = shifted(learner, by)
    assert torch.equal(let_in(learner, batch, progress, 1e-12), start)
    assert progress.statistics_scale == 0.0
    assert worst(learner, batch) < 1e-6


def test_an_update_lets_them_in_as_far_as_the_primary_phase_aims(tmp_path, monkeypatch):
    """To limit / c_beta, so that something is left for the gradient steps."""
    learner = make_learner("FIXPO", small_shape(**{**BUSY, "c_beta": 4.0}), train_dir=tmp_path)
    learner.train(make_batch(learner, seed=1))
    batch, moved = make_batch(learner, seed=2), []

    def admit_and_look(*args):
        admit(*args)
        moved.append(worst(learner, args[2], every=8) / learner.fixpo.limit)  # where it always looks

    monkeypatch.setattr("sf_fixpo.learning.learner.admit", admit_and_look)
    for scale in (1.3, 1.5, 2.0, 3.0, 5.0, 8.0):
        batch["obs"]["obs"] *= scale
        learner.train(batch)
    assert max(moved) <= 0.25
    assert max(moved) > 0.25 / 4, "they are let in as far as that, or the test says nothing"
