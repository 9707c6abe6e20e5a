"""Values in runs on several tasks: moments of each against NumPy, outputs that new statistics leave alone, Adam's moments."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.tensor_dict import TensorDict
from torch import nn

from benchmarks.synthetic import make_batch, make_learner, small_shape
from sf_fixpo.learning.tasks import TASK_ID
from sf_fixpo.learning.values import (
    HORIZON,
    TaskReturns,
    adam_follows,
    of_task,
    preserve_outputs,
)

TASKS = 3
OBS = gym.spaces.Box(-5, 5, (4,), np.float32)
LSTM = {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}


def task_space(tasks=TASKS, **more):
    return gym.spaces.Dict({"obs": OBS, TASK_ID: gym.spaces.Box(0, tasks - 1, (1,), np.int32), **more})


def make(folder=None, scope="popart", algo="FIXPO", space=None, action_space=None, **flags):
    shape = small_shape(space or task_space(), action_space, **{**BUSY, "normalize_returns": True, **flags})
    return make_learner(algo, shape, train_dir=folder, value_normalization=scope)


# -- moments ------------------------------------------------------------------------------------------------------------------


def oracle(batches, tasks):
    """(mean, variance, count) [T]: E[x] and E[x^2] moved by steps of n / (samples so far + n), as the papers write them."""
    first, second, count = np.zeros(tasks), np.ones(tasks), np.zeros(tasks)
    for returns, valids, ids in batches:
        for task in range(tasks):
            own = returns[valids & (ids == task)].astype(np.float64)
            if len(own):
                step = len(own) / (count[task] + len(own))
                first[task] += step * (own.mean() - first[task])
                second[task] += step * ((own**2).mean() - second[task])
                count[task] = min(HORIZON, count[task] + len(own))
    return first, second - first**2, count


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 40), st.sampled_from([1, 700]), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=50)
def test_moments_of_each_task_are_numpys(tasks, updates, count, times, seed):
    rng = np.random.default_rng(seed)
    scale, shift = 10.0 ** rng.uniform(-1, 3, tasks), rng.normal(0, 10, tasks)
    batches = []
    for _ in range(updates):
        ids = rng.integers(0, tasks, count * times)
        returns = (scale[ids] * rng.standard_normal(len(ids)) + shift[ids]).astype(np.float32)
        batches.append((returns, rng.random(len(ids)) < 0.8, ids))
    moments = TaskReturns(tasks)
    for batch in batches:
        moments.count_in(*map(torch.from_numpy, batch))
    mean, variance, counts = oracle(batches, tasks)
    np.testing.assert_allclose(moments.running_mean.numpy(), mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.running_var.numpy(), variance, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(moments.count.numpy(), counts)
    np.testing.assert_allclose(moments.deviation.numpy() ** 2, variance + 1e-5, rtol=1e-6, atol=1e-6)


def test_until_the_horizon_all_samples_count_alike_and_what_follows_is_forgotten():
    moments, rng = TaskReturns(1), np.random.default_rng(0)
    parts = [rng.normal(3, 2, n).astype(np.float32) for n in (7, 5000, HORIZON - 5007)]
    everything = np.concatenate(parts).astype(np.float64)

    def count(x):
        moments.count_in(torch.from_numpy(x), torch.ones(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.int64))

    for part in parts:
        count(part)
    assert moments.running_mean.item() == pytest.approx(everything.mean(), rel=1e-9)
    assert moments.running_var.item() == pytest.approx(everything.var(), rel=1e-9)
    for _ in range(5):
        count(np.full(HORIZON, 100, np.float32))
    assert moments.running_mean.item() == pytest.approx(100, rel=0.04)
    assert moments.count.item() == HORIZON


def test_a_task_without_a_sample_or_with_one_that_is_no_number_keeps_its_moments():
    moments = TaskReturns(3)
    returns, ids = torch.tensor([1.0, 3.0, 5.0, torch.nan, torch.inf]), torch.tensor([0, 0, 1, 1, 2])
    moments.count_in(returns, torch.tensor([True, True, True, True, False]), ids)
    assert moments.running_mean.tolist() == [2.0, 0.0, 0.0]
    assert moments.running_var.tolist() == [1.0, 1.0, 1.0]
    assert moments.count.tolist() == [2.0, 0.0, 0.0]


def test_units():
    moments = TaskReturns(2)
    moments.running_mean.copy_(torch.tensor([1.0, 100.0]))
    moments.running_var.copy_(torch.tensor([4.0, 1e4]))
    ids = torch.tensor([1, 0, 1])
    outputs = torch.tensor([[9.0, 0.5], [-1.0, 9.0], [9.0, 2.0]])
    values = of_task(moments.in_returns(outputs), ids)
    torch.testing.assert_close(values, torch.tensor([150.0, -1.0, 300.0]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.normalized(values, ids), of_task(outputs, ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.in_returns(torch.ones(1, 1)), torch.tensor([[3.0, 200.0]]), rtol=1e-5, atol=1e-4)
    assert of_task(torch.ones(3, 1), None).shape == (3,)
    assert of_task(torch.arange(2.0), torch.tensor([1])).tolist() == [1.0], "one sample, whose outputs came squeezed"


# -- outputs that stay --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=100)
def test_new_statistics_leave_values_in_units_of_returns_as_they_were(tasks, features, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    layer, moments = nn.Linear(features, tasks), TaskReturns(tasks)
    with torch.no_grad():
        layer.weight.copy_(draw(tasks, features))
        layer.bias.copy_(draw(tasks))
    x = draw(20, features)
    moments.count_in(draw(tasks), torch.ones(tasks, dtype=torch.bool), torch.arange(tasks))
    for _ in range(3):
        before, old = moments.in_returns(layer(x)), moments.units
        scale = 10.0 ** (3 * torch.rand(tasks, generator=generator))
        ids = torch.randint(tasks, (50,), generator=generator)
        moments.count_in(scale[ids] * (draw(50) + draw(tasks)[ids]), torch.ones(50, dtype=torch.bool), ids)
        preserve_outputs(layer, old, moments.units)
        # of each task in its own units, of which it was or is the larger
        unit = torch.maximum(old.deviation, moments.deviation) + moments.running_mean.abs()
        assert ((moments.in_returns(layer(x)) - before).abs() / unit).max() <= 1e-5


def test_of_a_task_that_has_never_been_seen_the_weights_are_kept_instead():
    """Else rewards that are rare would blow them up before they have learned anything."""
    layer, moments = nn.Linear(3, 2), TaskReturns(2)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    old = moments.units
    moments.count_in(torch.tensor([0.01, 0.02]), torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))
    preserve_outputs(layer, old, moments.units)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)
    old = moments.units
    moments.count_in(torch.tensor([5.0, 7.0]), torch.ones(2, dtype=torch.bool), torch.tensor([0, 1]))
    preserve_outputs(layer, old, moments.units)
    assert torch.equal(layer.weight[1], weight[1])
    assert (layer.weight[0].abs() < 0.01 * weight[0].abs()).all()


@pytest.mark.parametrize("flags", [{}, {"actor_critic_share_weights": False}, LSTM], ids=["shared", "separate", "lstm"])
@pytest.mark.parametrize("scope", ["per_task", "popart"])
def test_a_batch_moves_statistics_and_value_head_and_nothing_that_acts(scope, flags, tmp_path):
    learner = make(tmp_path, scope, **{**flags, "normalize_input": False})
    learner.train(make_batch(learner, seed=0))
    batch = make_batch(learner, seed=1)
    batch["rewards"].mul_(100)
    policy, moments = learner.candidate, learner.candidate.model.returns_normalizer
    obs, states = batch["obs"][:, 0], batch["rnn_states"][:, 0]

    def played():
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = policy.model.eval()(prepare_and_normalize_obs(policy.model, TensorDict(obs)), states)
        return {key: x.clone() for key, x in outputs.items()}

    before, tensors, deviation = played(), learner.gate.published.state.clone_tensors(), moments.deviation
    learner._prepare_batch(batch)
    moved = {name for name, x in policy.state.clone_tensors().items() if not torch.equal(x, tensors[name])}
    statistics = {f"returns_normalizer.{name}" for name in ("running_mean", "running_var", "count")}
    head = {"critic_linear.weight", "critic_linear.bias"}
    assert moved == (statistics | head if scope == "popart" else statistics)
    assert (moments.deviation > 2 * deviation).all()
    after = played()
    values = before.pop("values"), after.pop("values")
    assert all(torch.equal(x, after[key]) for key, x in before.items())
    if scope == "popart":
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-4)
    else:
        assert not torch.allclose(*values, rtol=1e-2), "one output cannot be carried along for several tasks"


def test_adams_moments_are_those_of_gradients_in_the_new_units():
    """Errors of task t are divided by sigma_t: had they been so from the beginning, Adam would hold what it holds now."""
    gradients = torch.Generator().manual_seed(0)
    targets, x = torch.randn(8, 2, generator=gradients) * torch.tensor([1.0, 50.0]), torch.randn(8, 3, generator=gradients)
    new = torch.tensor([0.25, 4e4], dtype=torch.float64)
    found = []
    for from_the_start in (False, True):
        model = nn.Module()
        model.critic_linear, model.returns_normalizer = nn.Linear(3, 2), TaskReturns(2)
        nn.init.zeros_(model.critic_linear.weight)
        nn.init.zeros_(model.critic_linear.bias)
        adam = torch.optim.Adam(model.critic_linear.parameters(), lr=0.0)
        if from_the_start:
            model.returns_normalizer.running_var.copy_(new)
        for _ in range(3):
            adam.zero_grad()
            error = (model.critic_linear(x) - targets) / model.returns_normalizer.deviation.float()
            error.square().mean().backward()
            for parameter in model.critic_linear.parameters():  # d error / d output is 1 in normalised units
                scale = model.returns_normalizer.deviation.float()
                parameter.grad.mul_(scale.view(-1, *[1] * (parameter.dim() - 1)))
            adam.step()
        with adam_follows(model, adam):
            model.returns_normalizer.running_var.copy_(new)
        found.append([s[key] for s in adam.state.values() for key in ("exp_avg", "exp_avg_sq")])
    for moved, expected in zip(*found, strict=True):
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=0.0)


def test_an_update_that_is_undone_leaves_adam_in_the_units_that_are_taken_up_again(tmp_path):
    learner = make(tmp_path)
    for seed in range(3):
        learner.train(make_batch(learner, seed=seed))
    head = learner.candidate.model.critic_linear
    before = [learner.optimizer.state[p][key].clone() for p in head.parameters() for key in ("exp_avg", "exp_avg_sq")]
    batch = make_batch(learner, seed=3)
    batch["rewards"].mul_(100)
    learner._train = lambda *args: None  # the batch gives no update
    learner.train(batch)
    assert learner.candidate.state.equals(learner.gate.published.state)
    after = [learner.optimizer.state[p][key] for p in head.parameters() for key in ("exp_avg", "exp_avg_sq")]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-12)
