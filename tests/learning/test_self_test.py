"""The self-test's parts alone: which states are compared, how far is far, and what it says. With networks: test_any_network."""

from types import SimpleNamespace

import pytest
import torch
from sample_factory.algo.utils.tensor_dict import TensorDict

from sf_fixpo.learning import self_test
from sf_fixpo.learning.verification import GuaranteeError

N = 8


class Recorded:
    """As much of a batch as is looked at: what actors recorded, and what the policy gives now."""

    def __init__(self, behaviour, found=None, valids=None, versions=None, recurrence=1, recurrent=False):
        self.behaviour = torch.as_tensor(behaviour, dtype=torch.float32)
        self._found = self.behaviour if found is None else torch.as_tensor(found, dtype=torch.float32)
        self.valids = torch.ones(len(self.behaviour), dtype=torch.bool) if valids is None else torch.tensor(valids)
        versions = [3] * len(self.behaviour) if versions is None else versions
        self.samples = {"policy_version": torch.tensor(versions)}
        self.recurrence, self.sequences = recurrence, object() if recurrent else None
        self.raw_obs = TensorDict()

    def __len__(self):
        return len(self.behaviour)

    def parameters(self, policy, obs, size):
        assert (obs, size) == ("observed", 5)
        return self._found


def agree(batch, version=3):
    published = SimpleNamespace(observe=lambda raw: "observed", model=torch.nn.Linear(1, 1))
    return self_test.actors_agree(published, batch, version, 5)


@pytest.mark.parametrize(
    ("size", "recurrence", "stop"),
    [(10, 1, 10), (1000, 1, 256), (1000, 32, 256), (1000, 100, 200), (4000, 300, 300), (200, 300, 200), (256, 1, 256)],
)
def test_a_few_whole_trajectories_are_enough(size, recurrence, stop):
    assert self_test._probe(Recorded(torch.zeros(size, 1), recurrence=recurrence)) == slice(0, stop)


def test_only_valid_samples_of_the_published_version_are_compared():
    batch = Recorded(torch.zeros(4, 1), valids=[True, False, True, True], versions=[3, 3, 2, 3])
    assert self_test._comparable(batch, 3).tolist() == [True, False, False, True]
    batch = Recorded(torch.zeros(6, 1), valids=[True] * 5 + [False], versions=[3] * 6, recurrence=2, recurrent=True)
    assert self_test._comparable(batch, 3).tolist() == [True] * 4 + [False] * 2, "with memory whole trajectories"


def test_far_is_in_units_of_the_tolerance():
    found = torch.tensor([[1.001, 0.0], [10.0, 5.5], [float("nan"), 0.0], [0.0, -2.0]])
    recorded = torch.tensor([[1.0, 0.0], [10.0, 5.0], [0.0, 0.0], [0.0, 1.0]])
    expected = [0.001 / (1e-3 * 2), 0.5 / (1e-3 * 6), 3.0 / (1e-3 * 2)]
    far = self_test._far(found, recorded)
    assert far[[0, 1, 3]].tolist() == pytest.approx(expected, rel=1e-3)
    assert far[2] > 1e30
    assert self_test._far(torch.full((1, 1), 1e-2, device="meta"), torch.zeros(1, 1, device="meta")).shape == (1,)
    assert self_test._TOLERANCE_ACCELERATOR == 2e-2


def test_actors_agree_within_rounding():
    recorded = torch.randn(N, 3)
    assert agree(Recorded(recorded)) is True
    assert agree(Recorded(recorded, recorded + 0.9e-3)) is True
    unit = Recorded([[1.0]], [[1.0 + 0.002]])
    unit._found = unit.behaviour + 1e-3 * (1 + unit.behaviour.abs())
    assert self_test._far(unit._found, unit.behaviour).item() == pytest.approx(1.0, rel=1e-3)


def test_where_there_is_nothing_to_compare_it_says_so():
    wrong = torch.full((2, 1), 9.0)
    assert agree(Recorded(torch.zeros(2, 1), wrong, versions=[1, 2])) is False
    assert agree(Recorded([[float("nan")], [float("inf")]], wrong)) is False, "the update will be undone for it"
    assert agree(Recorded([[float("nan")], [9.0]], wrong)) is True
    assert agree(Recorded([[5.0], [9.0]], wrong, valids=[False, True])) is True


def test_a_difference_is_told_with_its_state_and_both_sides():
    found = torch.zeros(4, 8)
    found[2, 1] = 0.25
    with pytest.raises(GuaranteeError) as error:
        agree(Recorded(torch.zeros(4, 8), found))
    text = str(error.value)
    assert text.startswith("Linear: the learner's forward pass is not the function that actors run.")
    assert "version 3" in text
    assert "state 2 of the batch: actors recorded [0, 0, 0, 0, 0, 0, ...]" in text
    assert "give [0, 0.25, 0, 0, 0, 0, ...], a difference of 0.25." in text


@pytest.mark.parametrize(("width", "text"), [(2, "[1, 1]"), (6, "[1, 1, 1, 1, 1, 1]"), (7, "[1, 1, 1, 1, 1, 1, ...]")])
def test_six_numbers_are_shown(width, text):
    assert self_test._numbers(torch.ones(width)) == text
