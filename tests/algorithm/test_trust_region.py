"""Divergences against NumPy, and the fixup phase and line search on functions of a few numbers."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sf_fixpo.algorithm import trust_region as tr


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def oracle_categorical(p_logits, q_logits):
    p, q = np.exp(p_logits) / np.exp(p_logits).sum(), np.exp(q_logits) / np.exp(q_logits).sum()
    return sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))


def oracle_gaussian(p, q):
    d, total = len(p) // 2, 0.0
    for i in range(d):
        sp, sq = (min(max(math.exp(x[d + i]), 1e-4), 1e4) for x in (p, q))
        total += math.log(sq / sp) + (sp**2 + (p[i] - q[i]) ** 2) / (2 * sq**2) - 0.5
    return total


CASES = {
    "categorical": ([("categorical", 5)], [oracle_categorical], [5]),
    "gaussian": ([("gaussian", 3)], [oracle_gaussian], [6]),
    "discrete tuple": ([("categorical", 3), ("categorical", 4)], [oracle_categorical] * 2, [3, 4]),
    "mixed tuple": ([("categorical", 3), ("gaussian", 2)], [oracle_categorical, oracle_gaussian], [3, 4]),
}


@pytest.mark.parametrize("name", CASES)
def test_divergence_against_numpy(name):
    spec, oracles, sizes = CASES[name]
    p, q = draw(0, 7, sum(sizes)), draw(1, 7, sum(sizes))
    kl = tr.action_kl(p, q, spec)
    for row in range(7):
        expected, start = 0.0, 0
        for oracle, size in zip(oracles, sizes, strict=True):
            expected += oracle(p[row, start : start + size].numpy(), q[row, start : start + size].numpy())
            start += size
        assert kl[row].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_divergence_is_sample_factorys(name):
    import gymnasium as gym
    from sample_factory.algo.utils.action_distributions import get_action_distribution

    from sf_fixpo.learning.networks import action_spec

    spaces = {
        "categorical": gym.spaces.Discrete(5),
        "gaussian": gym.spaces.Box(-1, 1, (3,)),
        "discrete tuple": gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Discrete(4)]),
        "mixed tuple": gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))]),
    }
    spec, _, sizes = CASES[name]
    p, q = draw(0, 7, sum(sizes)), draw(1, 7, sum(sizes))
    theirs = get_action_distribution(spaces[name], p).kl_divergence(get_action_distribution(spaces[name], q))
    torch.testing.assert_close(tr.action_kl(p, q, spec), theirs)
    assert action_spec(spaces[name]) == spec


def test_direction():
    p, q = draw(0, 4, 5), draw(1, 4, 5)
    spec = [("categorical", 5)]
    assert torch.equal(tr.directed_kl(p, q, spec, "pi_ref"), tr.action_kl(p, q, spec))
    assert torch.equal(tr.directed_kl(p, q, spec, "ref_pi"), tr.action_kl(q, p, spec))
    assert not torch.allclose(tr.action_kl(p, q, spec), tr.action_kl(q, p, spec))


def test_gradient_of_categorical_divergence():
    p, q = draw(0, 1, 4).requires_grad_(), draw(1, 1, 4)
    kl = tr.action_kl(p, q, [("categorical", 4)])
    kl.sum().backward()
    probabilities = p.detach().softmax(-1)
    log_ratio = p.detach().log_softmax(-1) - q.log_softmax(-1)
    torch.testing.assert_close(p.grad, probabilities * (log_ratio - kl.detach()))


def test_entropy_by_hand_and_against_torch():
    uniform, certain = torch.zeros(2, 4), torch.tensor([[50.0, 0.0, 0.0, 0.0]]).expand(2, 4)
    gaussian = torch.tensor([[3.0, -1.0, 4.0, 0.5, -2.0, 0.7], [0.0, 0.0, 0.0, 20.0, -20.0, 0.0]])
    spec = [("categorical", 4), ("gaussian", 3)]
    by_torch = torch.distributions.Normal(gaussian[:, :3], gaussian[:, 3:].exp().clamp(1e-4, 1e4)).entropy().sum(1)
    assert tr.action_entropy(torch.cat([uniform, gaussian], 1), spec).tolist() == pytest.approx((math.log(4) + by_torch).tolist())
    assert tr.action_entropy(torch.cat([certain, gaussian], 1), spec).tolist() == pytest.approx(by_torch.tolist())
    assert tr.largest_entropy([("categorical", 4), ("categorical", 3)]) == pytest.approx(math.log(12))
    assert tr.largest_entropy(spec) is None


@pytest.mark.parametrize("name", CASES)
def test_the_parameters_are_the_last_dimension_whatever_the_first_are(name):
    spec, _, sizes = CASES[name]
    p, q = draw(1, 6, sum(sizes)), draw(2, 6, sum(sizes))
    shaped = [x.reshape(2, 3, -1) for x in (p, q)]
    torch.testing.assert_close(tr.action_kl(*shaped, spec), tr.action_kl(p, q, spec).reshape(2, 3))
    torch.testing.assert_close(tr.action_entropy(shaped[0], spec), tr.action_entropy(p, spec).reshape(2, 3))


def test_spec_that_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match="do not match"):
        tr.action_kl(draw(0, 2, 4), draw(1, 2, 4), [("gaussian", 3)])


KL = torch.tensor([0.1, 5.0, 0.3, 0.2])
MASK = torch.tensor([True, False, True, True])


def test_statistics_leave_masked_states_out():
    assert tr.kl_statistic(KL, MASK, "max")[0].item() == pytest.approx(0.3)
    assert tr.kl_statistic(KL, MASK, "mean")[0].item() == pytest.approx(0.2)


def test_statistics_per_task():
    tasks = torch.tensor([0, 0, 2, 0])
    value, present = tr.kl_statistic(KL, MASK, "max", tasks, 3)
    assert value.tolist() == pytest.approx([0.2, 0.0, 0.3])
    assert present.tolist() == [True, False, True]


@pytest.mark.parametrize("stat", ["max", "mean"])
@pytest.mark.parametrize("ids", [None, torch.tensor([0, 2, 2, 0])])
def test_no_mask_is_a_mask_of_all(stat, ids):
    tasks = 1 if ids is None else 3
    divergence = tr.Divergence((("categorical", 2),), "pi_ref", stat, tasks)
    apart = tr.Divergence((("categorical", 2),), "pi_ref", stat, tasks, lambda parts, stat: parts)
    for kl in (torch.tensor([0.1, 0.4, 0.2, 0.3]), torch.tensor([0.1, math.nan, 0.2, 0.3])):
        masked = divergence.statistic(kl, torch.ones(4, dtype=torch.bool), ids)
        for bare in (divergence.statistic(kl, None, ids), apart.statistic(kl, None, ids)):
            torch.testing.assert_close(bare, masked, equal_nan=True)


@pytest.mark.parametrize("stat", ["max", "mean"])
def test_a_state_that_is_not_a_number_breaks_every_comparison(stat):
    kl = torch.tensor([0.1, float("nan"), 0.2])
    assert not tr.kl_statistic(kl, torch.ones(3, dtype=torch.bool), stat)[0] <= 1e9
    assert tr.kl_statistic(kl, torch.tensor([True, False, True]), stat)[0] <= 0.2


# -- fixup phase: a "policy" of numbers, one a minibatch, that every step pulls towards zero ----------------------------------


class Numbers:
    def __init__(self, values, pull=0.5, spill=0.0):
        self.values, self.pull, self.spill, self.taken = list(values), pull, spill, []

    def kl(self, ids):
        return [self.values[i] for i in ids]

    def step(self, i):
        self.taken.append(i)
        self.values = [v * (self.pull if j == i else 1 - self.spill * (1 - self.pull)) for j, v in enumerate(self.values)]


def sequential_steps(values, limit, pull, spill):
    """Algorithm 1 as it is written: one minibatch after the other, passes until one meets no violation."""
    numbers = Numbers(values, pull, spill)
    violated = True
    while violated:
        violated = False
        for i in range(len(values)):
            if not numbers.values[i] <= limit:
                numbers.step(i)
                violated = True
    return numbers


# A step on one minibatch moves the others apart where spill < 0; below -1/8, nine of them never come to an end.
@given(st.lists(st.floats(0, 8), min_size=1, max_size=9), st.floats(0.1, 0.9), st.floats(-0.1, 1))
@settings(max_examples=200)
def test_steps_are_those_of_the_sequential_algorithm(values, pull, spill):
    expected = sequential_steps(values, 1.0, pull, spill)
    numbers = Numbers(values, pull, spill)
    result = tr.fixup_phase(range(len(values)), numbers.kl, numbers.step, limit=1.0)
    assert numbers.taken == expected.taken
    assert result.satisfied
    assert result.steps == len(numbers.taken)
    assert all(v <= 1.0 for v in numbers.values)


def test_a_pass_without_violation_reads_once():
    numbers = Numbers([0.1] * 8)
    result = tr.fixup_phase(range(8), numbers.kl, numbers.step, limit=1.0)
    assert (result.satisfied, result.steps, result.checks) == (True, 0, 1)


def test_what_has_been_seen_inside_is_not_evaluated_again():
    numbers, windows = Numbers([0.1, 4.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], pull=0.1), []

    def kl(parts):
        windows.append(list(parts))
        return numbers.kl(parts)

    tr.fixup_phase(range(8), kl, numbers.step, limit=1.0)
    assert windows == [[*range(8)], [2], [3, 4], [5, 6, 7, 0], [1]], "one ahead after a step, then twice as many each time"


def plateaus(values, plateau_steps):
    """Steps before which the learning rate was halved, where one minibatch has these divergences, one after the other."""
    values, taken, halved = list(values), [], []
    tr.fixup_phase(
        [0],
        lambda parts: [values[len(taken)]],
        taken.append,
        limit=1.0,
        plateau_steps=plateau_steps,
        on_plateau=lambda: halved.append(len(taken)),
    )
    return halved


@pytest.mark.parametrize(
    ("values", "halved"),
    [
        ([100.0] * 9, [3, 6]),  # every three steps
        ([100.0, 99.0, 99.0, 99.0, 99.0], [3]),  # one percent is not enough
        ([100.0, 98.9, 97.9, 96.9, 95.9, 94.9, 93.9], []),  # a little more is
        ([100.0, 98.0, 99.0, 99.0, 99.0, 99.0], [4]),  # the lowest counts, not the last
        ([100.0] * 3 + [150.0] * 3 + [149.0] * 3, [3, 6]),  # after a plateau the count begins anew, from where it is
    ],
)
def test_a_plateau_is_steps_without_one_percent(values, halved):
    assert plateaus([*values, 0.5], 3) == halved


def test_settings_of_the_phase_have_names():
    with pytest.raises(TypeError, match="positional"):
        tr.fixup_phase([0], lambda parts: [0.0], lambda part: None, 1.0)
    assert (tr.FixupResult(steps=3).steps, tr.FixupResult(), tr.FixupResult().finite) == (3, tr.FixupResult(), True)
    with pytest.raises(FrozenInstanceError):
        tr.Divergence([("categorical", 2)], "pi_ref", "max").stat = "mean"


def test_the_mean_of_a_task_with_one_sample_is_that_sample():
    ids, mask = torch.tensor([0, 0, 1]), torch.tensor([True, True, True])
    mean, present = tr.kl_statistic(torch.tensor([1.0, 2.0, 5.0]), mask, "mean", ids, 3)
    assert mean.tolist() == [1.5, 5.0, 0.0]
    assert present.tolist() == [True, True, False]


def test_limit_is_inclusive():
    numbers = Numbers([1.0])
    assert tr.fixup_phase([0], numbers.kl, numbers.step, limit=1.0).steps == 0


def test_gives_up_after_max_steps():
    numbers = Numbers([4.0, 0.5], pull=1.0)
    result = tr.fixup_phase(range(2), numbers.kl, numbers.step, limit=1.0, max_steps=7)
    assert not result.satisfied
    assert result.finite
    assert result.steps == 7


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_number_that_is_none_ends_it_without_a_step(poison):
    numbers = Numbers([0.2, poison])
    result = tr.fixup_phase(range(2), numbers.kl, numbers.step, limit=1.0)
    assert not result.finite
    assert not result.satisfied
    assert result.steps == 0


def test_learning_rate_is_halved_on_a_plateau():
    numbers, calls = Numbers([4.0], pull=1.0), []

    def on_plateau():
        calls.append(len(numbers.taken))
        numbers.pull = 0.7  # a smaller step is what helps here

    result = tr.fixup_phase([0], numbers.kl, numbers.step, limit=1.0, plateau_steps=5, on_plateau=on_plateau)
    assert result.satisfied
    assert result.lr_halvings == len(calls) == 1
    assert calls == [5]


def test_what_is_done_at_the_first_violation_is_done_once_and_before_any_step():
    numbers, calls = Numbers([4.0, 0.5]), []
    result = tr.fixup_phase([0, 1], numbers.kl, numbers.step, limit=1.0, on_violation=lambda: calls.append(list(numbers.taken)))
    assert result.satisfied
    assert numbers.taken == [0, 0]
    assert calls == [[]]


def test_nothing_is_done_where_no_step_may_be_taken():
    numbers, calls = Numbers([4.0]), []
    result = tr.fixup_phase([0], numbers.kl, numbers.step, limit=1.0, max_steps=0, on_violation=lambda: calls.append(1))
    assert (result.satisfied, result.finite, result.steps, calls) == (False, True, 0, [])


# -- line search --------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0.1, 0.95))
@settings(max_examples=100)
def test_backtrack_ends_at_the_first_halving_that_satisfies(boundary, first):
    at = [1.0]

    def move_to(alpha):
        at[0] = alpha

    alpha = tr.backtrack(move_to, lambda: at[0] <= boundary, first, max_halvings=10)
    if boundary >= first * 2.0**-10:
        assert at[0] == alpha <= boundary
        assert alpha == first or 2 * alpha > boundary
    else:
        assert alpha == 0.0
        assert at[0] > 0.0, "theta' itself is for the caller to go to"


def test_by_default_the_way_back_is_halved_ten_times_from_the_middle():
    at = []
    assert tr.backtrack(at.append, lambda: False) == 0.0
    assert at == [0.5 / 2**i for i in range(11)]


@given(st.floats(0.01, 10), st.floats(0.01, 1))
def test_the_first_scale_is_right_where_the_divergence_grows_as_the_square(curvature, limit):
    statistic = limit * (1.0 + curvature)
    alpha = tr.first_scale(statistic, limit)
    assert 0 < alpha < 1
    assert statistic * alpha**2 == pytest.approx(0.95**2 * limit)
