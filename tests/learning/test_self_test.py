"""The self-test's parts alone: which states are compared, how far is far, and what it says. With networks: test_any_network."""

from types import SimpleNamespace

import pytest
import torch
from sample_factory.algo.utils.tensor_dict import TensorDict
from torch import nn

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


EXACT = 2.0**-10  # a tolerance of which multiples are numbers of float32


@pytest.mark.parametrize(("units", "inside"), [(0.0, True), (0.5, True), (1.0, True), (1.001, False), (1.5, False)])
def test_actors_agree_within_rounding(units, inside, monkeypatch):
    monkeypatch.setattr(self_test, "_TOLERANCE_CPU", EXACT)
    batch = Recorded(torch.zeros(N, 2), torch.tensor([[0.0, 0.0]] * (N - 1) + [[units * EXACT, 0.0]]))
    if inside:
        assert agree(batch) is True
    else:
        with pytest.raises(GuaranteeError, match=f"state {N - 1} of the batch"):
            agree(batch)


def test_where_there_is_nothing_to_compare_it_says_so():
    wrong = torch.full((2, 1), 9.0)
    assert agree(Recorded(torch.zeros(2, 1), wrong, versions=[1, 2])) is False
    assert agree(Recorded([[float("nan")], [float("inf")]], wrong)) is False, "the update will be undone for it"
    assert agree(Recorded([[float("nan")], [9.0]], wrong)) is True
    assert agree(Recorded([[5.0], [9.0]], wrong, valids=[False, True])) is True


def test_a_difference_is_told_with_its_state_and_both_sides():
    recorded, found = torch.full((4, 8), 0.5), torch.full((4, 8), 0.5)
    found[2, 1] = 0.75
    with pytest.raises(GuaranteeError) as error:
        agree(Recorded(recorded, found))
    text = str(error.value)
    assert text.startswith("Linear: the learner's forward pass is not the function that actors run.")
    assert "version 3" in text
    assert "state 2 of the batch: actors recorded [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...]" in text
    assert "give [0.5, 0.75, 0.5, 0.5, 0.5, 0.5, ...], a difference of 0.25." in text


@pytest.mark.parametrize(("width", "text"), [(2, "[1, 1]"), (6, "[1, 1, 1, 1, 1, 1]"), (7, "[1, 1, 1, 1, 1, 1, ...]")])
def test_six_numbers_are_shown(width, text):
    assert self_test._numbers(torch.ones(width)) == text


# -- training mode ------------------------------------------------------------------------------------------------------------


class Moved(nn.Module):
    """Adds something in training mode."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by if self.training else x


class Observed(Recorded):
    """As much of a batch as a forward pass takes."""

    def __init__(self, valids):
        super().__init__(torch.zeros(len(valids), 1), valids=valids)
        self.obs = torch.zeros(len(valids), 1)
        self.samples["rnn_states"] = self.obs

    def packing(self, part):
        return None


def compare_modes(parts, monkeypatch, valids=(True, True)):
    """Compares the modes of a network of these parts, of which only the second was in eval mode before."""
    monkeypatch.setattr(self_test, "_TOLERANCE_CPU", EXACT)
    monkeypatch.setattr(self_test, "action_parameters", lambda model, obs, states, packing: model(obs))
    model = nn.Sequential(*parts, nn.Identity()).train()
    model[1].eval()
    model.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    try:
        candidate = SimpleNamespace(model=model, state=SimpleNamespace(buffers={}))
        self_test.training_is_the_same_function(candidate, Observed(valids))
    finally:
        assert [module.training for module in model] == [i != 1 for i in range(len(model))], "every mode is as it was"


@pytest.mark.parametrize(("units", "same"), [(0.0, True), (1.0, True), (1.25, False), (1.75, False), (-3.0, False)])
def test_training_may_differ_by_rounding_only(units, same, monkeypatch):
    parts = [Moved(units * EXACT), nn.Identity()]
    if same:
        compare_modes(parts, monkeypatch)
    else:
        with pytest.raises(GuaranteeError, match="in training mode is another function than in eval mode"):
            compare_modes(parts, monkeypatch)


def test_only_the_modules_that_make_the_difference_are_named(monkeypatch):
    with pytest.raises(GuaranteeError) as error:
        compare_modes([Moved(1.0), nn.Identity(), Moved(0.0), Moved(2.0)], monkeypatch)
    assert "by which actors act: 0 (Moved), 3 (Moved). Gradients" in str(error.value)
    with pytest.raises(GuaranteeError, match="several modules together"):
        compare_modes([Moved(0.75 * EXACT), nn.Identity(), Moved(0.75 * EXACT)], monkeypatch)


def test_states_that_are_not_valid_are_not_compared(monkeypatch):
    class OnlyTheSecond(Moved):
        def forward(self, x):
            return x + torch.tensor([[0.0], [self.by]]) if self.training else x

    compare_modes([OnlyTheSecond(5.0), nn.Identity()], monkeypatch, valids=(True, False))
    with pytest.raises(GuaranteeError):
        compare_modes([OnlyTheSecond(5.0), nn.Identity()], monkeypatch)
