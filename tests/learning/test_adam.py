"""The step by the kernel alone is torch's own step, bit for bit: weights, moments, counts, and the norm before clipping."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import clip_grad_norm_, get_total_norm

from sf_fixpo.learning import adam

ROOT = Path(__file__).parents[2]


def make(seed, **settings):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (5,), (), (2, 5)]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = torch.optim.Adam(parameters, **{"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-5} | settings)
    adam.use_fused_adam(optimizer)
    return parameters, optimizer


def set_gradients(parameters, seed, left_out=()):
    generator = torch.Generator().manual_seed(seed)
    for i, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad = None if i in left_out else gradient


def by_torch(optimizer, parameters, rate, max_norm, skip=None):
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = clip_grad_norm_(parameters, max_norm) if max_norm > 0 else get_total_norm(gradients)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.found_inf = None if skip is None else skip.float()
    optimizer.step()
    return norm


def assert_equal_state(one, other):
    for (parameter, state), (expected, expected_state) in zip(one.state.items(), other.state.items(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=0)
        for key, value in expected_state.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0)


settings = st.fixed_dictionaries({"weight_decay": st.sampled_from([0.0, 0.1]), "maximize": st.booleans()})


@given(
    settings,
    st.sampled_from([0.0, 0.5, 100.0]),
    st.lists(st.tuples(st.sets(st.integers(0, 3)), st.sampled_from([None, False, True])), max_size=6),
)
def test_steps_are_torchs_own_bit_for_bit(settings, max_norm, steps):
    (parameters, optimizer), (expected, reference) = make(0, **settings), make(0, **settings)
    for number, (left_out, skipped) in enumerate(steps):
        skip = None if skipped is None else torch.tensor(skipped)
        for tensors in (parameters, expected):
            set_gradients(tensors, number, left_out)
        norm = adam.clipped_step(optimizer, parameters, 1e-2 / (number + 1), max_norm, skip)
        torch.testing.assert_close(norm, by_torch(reference, expected, 1e-2 / (number + 1), max_norm, skip), rtol=0, atol=0)
        assert_equal_state(optimizer, reference)


def test_a_step_that_is_none_leaves_everything_even_where_a_gradient_is_no_number():
    parameters, optimizer = make(1)
    set_gradients(parameters, 0)
    adam.clipped_step(optimizer, parameters, 1e-2, 0.5)
    before = [parameter.clone() for parameter in parameters], [state["step"].clone() for state in optimizer.state.values()]
    set_gradients(parameters, 1)
    parameters[0].grad = torch.full_like(parameters[0], torch.nan)
    adam.clipped_step(optimizer, parameters, 1e-2, 0.5, torch.tensor(True))
    assert all(torch.equal(parameter, own) for parameter, own in zip(parameters, before[0], strict=True))
    assert all(torch.equal(state["step"], own) for state, own in zip(optimizer.state.values(), before[1], strict=True))


def test_the_kernel_is_what_steps(monkeypatch):
    parameters, optimizer = make(2)
    monkeypatch.setattr(optimizer, "step", lambda: pytest.fail("torch's own step"))
    for number in range(2):
        set_gradients(parameters, number)
        adam.clipped_step(optimizer, parameters, 1e-2, 0.5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.Adam(parameters, amsgrad=True, fused=True),
        lambda parameters: torch.optim.Adam(parameters),
        lambda parameters: torch.optim.AdamW(parameters, fused=True),
        lambda parameters: torch.optim.SGD(parameters),
    ],
)
def test_another_optimizer_steps_itself(optimizer):
    (parameters, _), (expected, _) = make(3), make(3)
    own, reference = optimizer(parameters), optimizer(expected)
    for number in range(3):
        for tensors in (parameters, expected):
            set_gradients(tensors, number)
        adam.clipped_step(own, parameters, 1e-2, 0.5)
        by_torch(reference, expected, 1e-2, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(parameters, expected, strict=True))


def test_gradients_of_two_kinds_are_clipped_together():
    (parameters, _), (expected, _) = make(4), make(4)
    for tensors in (parameters, expected):
        tensors[0] = torch.nn.Parameter(tensors[0].detach().double())
        set_gradients(tensors, 0)
    own, reference = torch.optim.Adam(parameters, fused=True), torch.optim.Adam(expected, fused=True)
    for _ in range(2):
        norm = adam.clipped_step(own, parameters, 1e-2, 0.5)
        torch.testing.assert_close(norm, by_torch(reference, expected, 1e-2, 0.5), rtol=0, atol=0)
    assert_equal_state(own, reference)


TRAIN_AND_RESUME = """
import sys
from benchmarks.synthetic import make_batch, make_learner, small_shape
for updates in (1, 2):
    learner = make_learner("FIXPO", small_shape(), train_dir=sys.argv[1])
    assert learner.updates == updates - 1
    learner.train(make_batch(learner, seed=updates))
    learner.save()
assert "torch._dynamo" not in sys.modules
"""


def test_a_process_that_trains_does_not_load_torchs_compiler(tmp_path):
    done = subprocess.run([sys.executable, "-c", TRAIN_AND_RESUME, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
