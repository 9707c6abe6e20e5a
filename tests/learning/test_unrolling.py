"""The loop over steps against packed sequences, values and gradients, and against the equations written in NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from busy import BUSY
from hypothesis import given
from hypothesis import strategies as st
from sample_factory.model.core import ModelCoreRNN
from torch import nn

from benchmarks.synthetic import make_batch, make_learner, small_shape
from sf_fixpo.learning import policy
from sf_fixpo.learning.sequences import Sequences
from sf_fixpo.learning.unrolling import can_unroll, run_core, unroll

UNITS = 6


def make_core(kind, features, layers=1):
    return ModelCoreRNN(SimpleNamespace(rnn_type=kind, rnn_size=UNITS, rnn_num_layers=layers), features)


def size_of(kind, layers):
    return UNITS * layers * (2 if kind == "lstm" else 1)


def all_ways(core, ends, x, states, steps):
    """Outputs and gradients by packed sequences, by the loop, and by whichever way is the faster one."""
    packing = Sequences(ends, steps, "cpu").part(slice(0, len(ends)))
    found = []
    for way in ("packed", "loop", "padded"):
        inputs = x.clone().requires_grad_()
        if way == "loop":
            outputs = unroll(core.core, inputs, states, packing.keep)
        elif way == "padded":
            outputs = run_core(core.core, inputs, states, packing)
        else:
            sequences, first = packing.pack(inputs, states)
            outputs = packing.unpack(core(sequences, first)[0])
        weights = torch.linspace(-1.0, 1.0, outputs.numel(), dtype=x.dtype).view_as(outputs)
        gradients = torch.autograd.grad((outputs * weights).sum(), [inputs, *core.parameters()])
        found.append([outputs.detach(), *gradients])
    return found


@given(
    st.sampled_from(["lstm", "gru"]),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(0, 9999),
)
def test_the_loop_is_the_packed_call_within_rounding(kind, layers, trajectories, steps, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    ends = np.random.default_rng(seed).random(trajectories * steps) < rate
    core = make_core(kind, 5, layers)
    x = torch.randn(len(ends), 5, generator=generator)
    states = torch.randn(len(ends), size_of(kind, layers), generator=generator)
    for packed, loop, padded in zip(*all_ways(core, ends, x, states, steps), strict=True):
        torch.testing.assert_close(loop, packed, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(padded, packed, rtol=1e-5, atol=2e-6)
    for packed, loop, padded in zip(*all_ways(core.double(), ends, x.double(), states.double(), steps), strict=True):
        torch.testing.assert_close(loop, packed, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(padded, packed, rtol=1e-13, atol=1e-14)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_loop_is_the_equations_step_by_step(kind):
    rng, trajectories, steps = np.random.default_rng(0), 4, 7
    core = make_core(kind, 5).double()
    w_in, w_state, b_in, b_state = (p.detach().numpy() for p in core.core.parameters())
    ends = rng.random((trajectories, steps)) < 0.3
    x, states = rng.standard_normal((trajectories, steps, 5)), rng.standard_normal((trajectories, steps, size_of(kind, 1)))
    expected = np.empty((trajectories, steps, UNITS))
    for e in range(trajectories):
        h, c = states[e, 0, :UNITS], states[e, 0, UNITS:]
        for t in range(steps):
            a, b = w_in @ x[e, t] + b_in, w_state @ h + b_state
            if kind == "lstm":
                i, f, g, o = np.split(a + b, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3), np.split(b, 3)
                z, n = sigmoid(a_z + b_z), np.tanh(a_n + sigmoid(a_r + b_r) * b_n)
                h = (1 - z) * n + z * h
            expected[e, t] = h
            if ends[e, t]:
                h, c = np.zeros_like(h), np.zeros_like(c)
    flat = [torch.from_numpy(array.reshape(trajectories * steps, -1)) for array in (x, states)]
    found = unroll(core.core, *flat, torch.from_numpy(~ends))
    np.testing.assert_allclose(found.detach().numpy(), expected.reshape(-1, UNITS), rtol=1e-12, atol=1e-14)


def test_what_is_no_number_ends_with_its_episode():
    core, x, states = make_core("gru", 3), torch.randn(8, 3), torch.randn(8, UNITS)
    x[1], states[1:4], states[5:] = torch.nan, torch.nan, torch.nan
    keep = torch.tensor([[True, False, True, True], [True, True, True, True]])
    found = unroll(core.core, x, states, keep).isfinite().all(1)
    assert found.tolist() == [True, False, True, True, True, True, True, True]


def test_what_is_no_number_ends_with_its_episode_side_by_side_too():
    core, x, states = make_core("lstm", 3), torch.randn(8, 3), torch.randn(8, 2 * UNITS)
    x[1], states[1:4], states[5:] = torch.nan, torch.nan, torch.nan
    packing = Sequences(np.array([0, 1, 0, 0, 0, 0, 0, 0], dtype=bool), 4, "cpu").part(slice(0, 8))
    found = run_core(core.core, x, states, packing).isfinite().all(1)
    assert found.tolist() == [True, False, True, True, True, True, True, True]


def test_an_lstm_on_a_cpu_is_one_call_whose_gradient_has_a_gradient():
    """As TRPO's curvature takes it."""
    core = make_core("lstm", 3).double()
    packing = Sequences(np.array([0, 1, 0, 0, 0, 0, 1, 0], dtype=bool), 4, "cpu").part(slice(0, 8))
    states = torch.randn(8, 2 * UNITS, dtype=torch.float64)
    single = make_core("lstm", 3)
    assert "Mkldnn" in single.core(torch.randn(4, 2, 3))[0].grad_fn.name(), "or it is no faster"
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda inputs: run_core(core.core, inputs, states, packing), x)


@pytest.mark.parametrize(("units", "rate", "loops"), [(8, 0.3, False), (256, 0.0, False), (256, 0.3, True)])
def test_many_short_episodes_of_a_large_core_run_as_a_loop(units, rate, loops):
    """Which would cost more filled up to one length than the calls of the loop."""
    core = ModelCoreRNN(SimpleNamespace(rnn_type="lstm", rnn_size=units, rnn_num_layers=1), units)
    ends = np.random.default_rng(0).random(16 * 32) < rate
    packing = Sequences(ends, 32, "cpu").part(slice(0, len(ends)))
    outputs = run_core(core.core, torch.randn(len(ends), units), torch.zeros(len(ends), 2 * units), packing)
    assert (outputs.grad_fn.name() == "UnsafeViewBackward0") is loops
    assert (outputs.grad_fn.name() == "IndexSelectBackward0") is not loops


class OwnLSTM(nn.LSTM):
    """May do anything."""


def hooked():
    layer = nn.GRU(3, 4)
    layer.register_forward_hook(lambda *args: None)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        OwnLSTM(3, 4),
        nn.LSTM(3, 4, proj_size=2),
        nn.LSTM(3, 4, bidirectional=True),
        nn.GRU(3, 4, bias=False),
        nn.GRU(3, 4, 2, dropout=0.5),
        nn.GRU(3, 4, batch_first=True),
        nn.RNN(3, 4),
        nn.Linear(3, 4),
        hooked(),
    ],
    ids=str,
)
def test_what_is_not_known_is_packed(layer):
    assert not can_unroll(layer)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_check_and_step_run_it_alike_and_a_core_of_ones_own_is_packed(kind, share, tmp_path, monkeypatch):
    flags = {**BUSY, "use_rnn": True, "rnn_type": kind, "rnn_size": 8, "actor_critic_share_weights": share}
    learner = make_learner("FIXPO", small_shape(**flags), train_dir=tmp_path)
    runs = []
    monkeypatch.setattr(policy, "run_core", lambda *args: (runs.append(torch.is_grad_enabled()), run_core(*args))[1])
    learner.train(make_batch(learner, seed=0, done_rate=0.2))
    batch, _ = learner._update
    assert {True, False} == set(runs)
    assert all("layout" not in vars(packing) for packing in batch.sequences._parts.values()), "nothing was packed"
    arguments = batch.obs, batch.samples["rnn_states"], batch.packing(slice(0, len(batch)))
    known = policy.forward(learner.candidate.model, *arguments)
    monkeypatch.setattr(policy, "can_unroll", lambda layer: False)
    packed = policy.forward(learner.candidate.model, *arguments)
    for key in ("action_logits", "values"):
        torch.testing.assert_close(known[key], packed[key], rtol=1e-5, atol=1e-6)
