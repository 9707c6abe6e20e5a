"""The fixup phase in chunks against the one that asks at every step: the same steps in the same order, to the same end."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sf_fixpo.algorithm.predication import Reading, Slots, chunked_fixup_phase
from sf_fixpo.algorithm.trust_region import fixup_phase

LIMIT = 0.25
NO = torch.tensor(False)


class Problem:
    """Weights, and minibatches each of which pulls them its own way; float32 throughout, as a network's."""

    def __init__(self, count, seed, rate, poisoned):
        rng = np.random.default_rng(seed)
        self.centres = torch.from_numpy(rng.standard_normal((count, 3))).float() * 0.4
        self.weights = torch.from_numpy(rng.standard_normal(3)).float() * 2
        self.rate, self.taken = rate, []
        self.poisoned = poisoned  # the step after which a statistic is no number

    def statistic(self, i):
        value = (self.weights - self.centres[i]).square().sum()
        return value * torch.nan if len(self.taken) == self.poisoned else value

    def step(self, i, scale):
        self.taken.append((i, scale))
        self.weights = self.weights - self.rate * scale * (self.weights - self.centres[i])


def by_host(problem, count, max_steps, plateau_steps, calls):
    scale = [1.0]

    def halve():
        scale[0] /= 2

    return fixup_phase(
        range(count),
        lambda chosen: [float(problem.statistic(i)) for i in chosen],
        lambda i: problem.step(i, scale[0]),
        limit=LIMIT,
        max_steps=max_steps,
        plateau_steps=plateau_steps,
        on_violation=lambda: calls.append(len(problem.taken)),
        on_plateau=halve,
    )


def by_device(problem, count, max_steps, plateau_steps, calls, chunk):
    slots = Slots(LIMIT, max_steps, plateau_steps)

    def read():
        steps, halvings = slots.counters().int().tolist()
        return Reading([float(problem.statistic(i)) for i in range(count)], steps, halvings)

    def visit(i, outside):
        if not slots.skip(problem.statistic(i), NO, outside):
            problem.step(i, float(slots.scale))

    violation = lambda: calls.append(len(problem.taken))  # noqa: E731
    return chunked_fixup_phase(range(count), read, visit, limit=LIMIT, chunk=chunk, max_steps=max_steps, on_violation=violation)


@given(
    count=st.integers(1, 7),
    seed=st.integers(0, 9999),
    rate=st.sampled_from([0.05, 0.3, 0.9, 2.1]),
    max_steps=st.sampled_from([0, 1, 5, 40]),
    plateau_steps=st.integers(1, 6),
    chunk=st.integers(1, 17),
    poisoned=st.sampled_from([-1, -1, 0, 1, 4]),
)
def test_the_steps_are_those_of_the_phase_that_asks_at_every_one(count, seed, rate, max_steps, plateau_steps, chunk, poisoned):
    one, other = (Problem(count, seed, rate, poisoned) for _ in range(2))
    calls = [], []
    expected = by_host(one, count, max_steps, plateau_steps, calls[0])
    found = by_device(other, count, max_steps, plateau_steps, calls[1], chunk)
    assert other.taken == one.taken
    assert torch.equal(other.weights, one.weights)
    same = ("satisfied", "finite", "steps", "lr_halvings")
    assert [getattr(found, name) for name in same] == [getattr(expected, name) for name in same]
    assert calls[0] == calls[1]
    assert found.checks <= 1 + max(1, found.steps), "every chunk makes a step"


def test_one_read_where_nothing_is_outside_and_one_more_for_each_chunk():
    def phase(weights, chunk):
        problem = Problem(4, 0, 0.2, -1)
        problem.centres *= 0.2  # so that all of them can be inside
        problem.weights = problem.centres.mean(0) + weights
        return by_device(problem, 4, 50, 10, [], chunk)

    inside = phase(0.0, 8)
    assert (inside.satisfied, inside.steps, inside.checks) == (True, 0, 1)
    far = {chunk: phase(3.0, chunk) for chunk in (1, 4, 100)}
    assert len({result.steps for result in far.values()}) == 1
    assert far[100].checks == 2
    assert far[1].checks > far[4].checks > 2


def test_a_number_that_is_none_makes_no_step_and_ends_the_phase():
    for value, bad in ((math.nan, False), (math.inf, False), (0.3, True)):
        slots = Slots(LIMIT, 50, 10)
        assert bool(slots.skip(torch.tensor(value), torch.tensor(bad)))
        assert bool(slots.skip(torch.tensor(9.0), NO)), "nor any after it"
        assert slots.counters().tolist() == [0.0, 0.0]
    slots = Slots(LIMIT, 50, 10)
    assert bool(slots.skip(torch.tensor(LIMIT), NO)), "the limit itself is inside"
    assert not bool(slots.skip(torch.tensor(LIMIT), NO, outside=True))
    assert not bool(slots.skip(torch.tensor(0.26), NO))
    assert slots.steps == 2
