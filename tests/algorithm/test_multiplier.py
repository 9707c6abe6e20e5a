"""The multiplier against torch's own Adam on L_beta, and what masks and clamps must leave alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sf_fixpo.algorithm.losses import multiplier_loss
from sf_fixpo.algorithm.multiplier import LagrangeMultiplier, MeanMultiplier

PRESENT = torch.tensor([True])


@given(st.lists(st.floats(0, 3), min_size=1, max_size=30), st.floats(1e-4, 0.5))
@settings(max_examples=50)
def test_steps_are_torch_adam_on_the_loss(kls, lr):
    multiplier = LagrangeMultiplier(1.0, lr, beta_max=100.0)
    beta = torch.nn.Parameter(torch.ones(1))
    adam = torch.optim.Adam([beta], lr=lr)
    for kl in kls:
        stat = torch.tensor([kl])
        multiplier.step(stat, PRESENT, eps_kl=0.5, c_beta=3.0)
        adam.zero_grad()
        multiplier_loss(beta, stat, 0.5, 3.0).sum().backward()
        adam.step()
        with torch.no_grad():
            beta.clamp_(0.0, 100.0)
    torch.testing.assert_close(multiplier.beta, beta.detach(), atol=1e-5, rtol=1e-5)


def test_rises_outside_and_falls_inside():
    multiplier = LagrangeMultiplier(1.0, 0.1, beta_max=10.0)
    multiplier.step(torch.tensor([0.2]), PRESENT, eps_kl=0.5, c_beta=3.0)
    assert multiplier.beta.item() > 1.0
    multiplier = LagrangeMultiplier(1.0, 0.1, beta_max=10.0)
    multiplier.step(torch.tensor([0.1]), PRESENT, eps_kl=0.5, c_beta=3.0)
    assert multiplier.beta.item() < 1.0


def test_clamped_to_zero_and_beta_max():
    multiplier = LagrangeMultiplier(0.05, 0.1, beta_max=0.1)
    multiplier.step(torch.tensor([0.0]), PRESENT, 0.5, 3.0)
    assert multiplier.beta.item() == 0.0
    for _ in range(20):
        multiplier.step(torch.tensor([9.0]), PRESENT, 0.5, 3.0)
    assert multiplier.beta.item() == pytest.approx(0.1)


def test_a_gradient_as_small_as_adams_epsilon_takes_half_a_step():
    multiplier = LagrangeMultiplier(1.0, 0.1, beta_max=10.0)
    multiplier.step(torch.tensor([0.0]), PRESENT, eps_kl=LagrangeMultiplier.EPS, c_beta=3.0)
    assert multiplier.beta.item() == pytest.approx(0.95, rel=1e-5)


def test_learning_rate_zero_keeps_beta_constant():
    multiplier = LagrangeMultiplier(10.0, 0.0, beta_max=100.0)
    multiplier.step(torch.tensor([5.0]), PRESENT, 0.5, 3.0)
    assert multiplier.beta.item() == 10.0


def test_a_task_without_a_sample_keeps_its_beta_and_moments():
    multiplier = LagrangeMultiplier(1.0, 0.1, beta_max=10.0, num_tasks=3)
    multiplier.step(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([True] * 3), 0.5, 3.0)
    before = multiplier.state_dict()
    multiplier.step(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([True, False, True]), 0.5, 3.0)
    after = multiplier.state_dict()
    for key, value in after.items():
        assert value[1] == before[key][1], key
        assert value[0] != before[key][0], key
    # a task that was away behaves as one that was never asked
    alone = LagrangeMultiplier(1.0, 0.1, beta_max=10.0)
    for kl in (1.0, 0.3):
        alone.step(torch.tensor([kl]), PRESENT, 0.5, 3.0)
    multiplier.step(torch.tensor([0.0, 0.3, 0.0]), torch.tensor([False, True, False]), 0.5, 3.0)
    assert multiplier.beta[1] == alone.beta[0]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_statistic_that_is_not_finite_leaves_no_trace(poison):
    multiplier = LagrangeMultiplier(1.0, 0.1, beta_max=10.0)
    multiplier.step(torch.tensor([1.0]), PRESENT, 0.5, 3.0)
    before = multiplier.state_dict()
    multiplier.step(torch.tensor([poison]), PRESENT, 0.5, 3.0)
    assert all(torch.equal(value, before[key]) for key, value in multiplier.state_dict().items())


def test_state_round_trip_continues_bit_for_bit():
    one, other = (LagrangeMultiplier(1.0, 0.1, beta_max=10.0, num_tasks=2) for _ in range(2))
    present = torch.tensor([True, True])
    for i in range(6):
        one.step(torch.tensor([0.1 * i, 1.0]), present, 0.5, 3.0)
        if i == 2:
            other.load_state_dict(one.state_dict())
        elif i > 2:
            other.step(torch.tensor([0.1 * i, 1.0]), present, 0.5, 3.0)
    assert torch.equal(one.beta, other.beta)


def test_state_of_another_number_of_tasks_is_refused():
    with pytest.raises(ValueError, match="2 task"):
        LagrangeMultiplier(1.0, 0.1, 10.0).load_state_dict(LagrangeMultiplier(1.0, 0.1, 10.0, num_tasks=2).state_dict())


def test_a_constant_beta_has_no_step_at_all():
    multiplier = LagrangeMultiplier(2.0, 0.0, 1000.0)
    before = multiplier.state_dict()
    multiplier.step(torch.tensor([0.7]), torch.tensor([True]), 0.1, 3.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in multiplier.state_dict().items())


def test_all_of_it_moves_to_a_device():
    moved = LagrangeMultiplier(2.0, 0.1, 1000.0).to("meta")
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}


def test_the_lower_clamp_is_beta_min():
    multiplier = LagrangeMultiplier(1.0, 0.4, beta_max=10.0, beta_min=0.5)
    for _ in range(5):
        multiplier.step(torch.tensor([0.0]), PRESENT, 0.5, 3.0)
    assert multiplier.beta.item() == 0.5
    multiplier.step(torch.tensor([9.0]), PRESENT, 0.5, 3.0)
    assert multiplier.beta.item() > 0.5, "it rises from there at once"


# -- the multiplier of the mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl_mean", "factor"),
    [
        (0.01, 1.0),
        (0.01 * math.exp(0.5), math.exp(0.15)),
        (0.01 * math.exp(-0.5), math.exp(-0.15)),
        (1.0, math.exp(0.3)),
        (1e-9, math.exp(-0.3)),
        (0.0, math.exp(-0.3)),
    ],
)
def test_a_step_of_the_mean_multiplier_by_hand(kl_mean, factor):
    multiplier = MeanMultiplier(0.01, beta_init=2.0, beta_max=10.0)
    multiplier.step(torch.tensor([kl_mean]), PRESENT)
    assert multiplier.beta.item() == pytest.approx(2.0 * factor, rel=1e-5)


@given(power=st.floats(0.5, 2.5), scale=st.floats(1e-3, 1e3), start=st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_the_mean_settles_at_its_target_whatever_the_scale(power, scale, start):
    # the divergence falls with a power of beta: twice the penalty, a half to a fifth of the way
    multiplier = MeanMultiplier(0.01, start, beta_max=1e6)
    for _ in range(120):
        kl = torch.tensor([0.01 * (scale / multiplier.beta.item()) ** power])
        multiplier.step(kl, PRESENT)
    assert kl.item() == pytest.approx(0.01, rel=0.02)
    assert multiplier.beta.item() == pytest.approx(scale, rel=0.05)


def test_the_mean_multiplier_never_switches_off_and_comes_back_within_25_updates():
    multiplier = MeanMultiplier(0.01, 1.0, beta_max=2.0)
    for _ in range(1000):
        multiplier.step(torch.tensor([0.0]), PRESENT)
    assert multiplier.beta.item() == pytest.approx(MeanMultiplier.BETA_MIN)
    for _ in range(25):
        multiplier.step(torch.tensor([1.0]), PRESENT)
    assert multiplier.beta.item() > 1.0
    for _ in range(10):
        multiplier.step(torch.tensor([1.0]), PRESENT)
    assert multiplier.beta.item() == 2.0, "beta_max"


def test_without_a_target_there_is_no_such_penalty():
    multiplier = MeanMultiplier(0.0, 1.0, beta_max=10.0)
    multiplier.step(torch.tensor([5.0]), PRESENT)
    assert multiplier.beta.item() == 0.0
    multiplier.load_state_dict(MeanMultiplier(0.01, 3.0, 10.0).state_dict())
    assert multiplier.beta.item() == 0.0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_an_absent_task_or_a_mean_that_is_none_is_left_alone(poison):
    multiplier = MeanMultiplier(0.01, 1.0, 10.0, num_tasks=3)
    multiplier.step(torch.tensor([1.0, 1.0, poison]), torch.tensor([True, False, True]))
    assert multiplier.beta.tolist() == [pytest.approx(math.exp(0.3)), 1.0, 1.0]


def test_state_of_the_mean_multiplier():
    one, other = MeanMultiplier(0.01, 1.0, 10.0), MeanMultiplier(0.02, 1.0, 10.0)
    one.step(torch.tensor([1.0]), PRESENT)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.beta, one.beta)
    assert other.to("meta").beta.device.type == "meta"
    low = MeanMultiplier(0.01, 0.2, 10.0)
    another = MeanMultiplier(0.02, 1.0, 10.0)
    another.load_state_dict(low.state_dict())
    assert another.beta.item() == pytest.approx(0.2)
    fresh = MeanMultiplier(0.01, 1.0, 10.0)
    fresh.load_state_dict(MeanMultiplier(0.0, 1.0, 10.0).state_dict())
    assert fresh.beta.item() == 1.0, "of a run that had none: it starts where a new one would"
    with pytest.raises(ValueError, match="2 task"):
        one.load_state_dict(MeanMultiplier(0.01, 1.0, 10.0, num_tasks=2).state_dict())
