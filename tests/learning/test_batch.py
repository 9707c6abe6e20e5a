"""The samples of an update alone: which of them make a minibatch, what binds them, and what an invalid one is left with."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sample_factory.algo.utils.tensor_dict import TensorDict

from sf_fixpo.learning.batch import FIXUP_KEYS, GAE_KEYS, PRIMARY_KEYS, Batch, Progress, fill_invalid
from sf_fixpo.learning.sequences import Sequences

N, T, A = 24, 4, 3


def batch_of(width=5, recurrent=False, lag=(0.0, 0.0, 0.0), **changes):
    numbers = torch.arange(float(N))
    samples = {key: numbers.clone() for key in ("actions", "log_prob_actions", "values", "advantages", "returns")}
    samples |= {"valids": torch.ones(N, dtype=torch.bool), "rnn_states": numbers.unsqueeze(1) + 0.5}
    obs = TensorDict(obs=numbers.unsqueeze(1).expand(N, width))
    fields = {
        "samples": TensorDict(samples),
        "raw_obs": obs,
        "obs": obs,
        "valids": samples["valids"],
        "sequences": Sequences(np.zeros(N, bool), T, "cpu") if recurrent else None,
        "behaviour": torch.zeros(N, A),
        "task_ids": None,
        "beta_ids": None,
        "value_ids": None,
        "recurrence": T,
        "lag": lag,
    }
    return Batch(**{**fields, **changes})


# -- invalid samples ----------------------------------------------------------------------------------------------------------


def test_numbers_of_invalid_samples_are_gone_and_those_of_valid_ones_are_left():
    nan = float("nan")
    valids = torch.tensor([[True, False, True], [True, True, False]])
    rewards = torch.tensor([[1.0, nan, 3.0], [4.0, 5.0, nan]])
    longer = torch.tensor([[1.0, nan, 3.0, 4.0], [5.0, 6.0, nan, nan]]).unsqueeze(2).expand(2, 4, 2)
    actions = torch.tensor([[1, 2, 3], [4, 5, 6]])
    batch = TensorDict(rewards=rewards, actions=actions, rnn_states=longer, obs=TensorDict(obs=longer, n=actions))
    filled = fill_invalid(batch, valids)
    assert filled["rewards"].tolist() == [[1, 0, 3], [4, 5, 0]]
    for states in (filled["rnn_states"], filled["obs"]["obs"]):
        assert states[..., 0].tolist() == [[1, 0, 3, 4], [5, 6, 0, 0]], "the state behind the last step goes with that"
    assert filled["actions"] is actions
    assert filled["obs"]["n"] is actions
    assert rewards.isnan().sum() == 2, "of the batch itself nothing is changed"


# -- which samples ------------------------------------------------------------------------------------------------------------


def test_minibatches_in_order_and_shuffled():
    batch = batch_of()
    assert batch.parts(8, shuffled=False) == [slice(0, 8), slice(8, 16), slice(16, 24)]
    assert batch.parts(N, shuffled=True) == [slice(0, N)], "one that is all of them needs no shuffling"
    np.random.seed(3)
    parts = batch.parts(8, shuffled=True)
    assert sorted(np.concatenate(parts).tolist()) == list(range(N // T))
    assert [len(part) for part in parts] == [2, 2, 2]
    np.random.seed(3)
    expected = np.random.permutation(np.arange(0, N, T))
    assert np.concatenate(parts).tolist() == (expected // T).tolist(), "sample-factory's order, by its random numbers"


def test_indices_are_those_of_whole_trajectories():
    batch = batch_of()
    assert batch.indices(slice(4, 8)) == slice(4, 8)
    assert batch.indices(np.array([2, 0])).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]


@pytest.mark.parametrize("part", [slice(4, 12), np.array([1, 2])])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_minibatch_holds_what_was_asked_for_of_its_samples(part, recurrent):
    ids = torch.arange(N) % 2
    batch = batch_of(recurrent=recurrent, task_ids=ids, beta_ids=ids, value_ids=1 - ids)
    minibatch = batch.minibatch(part, PRIMARY_KEYS + GAE_KEYS)
    assert set(minibatch) == {*PRIMARY_KEYS, *GAE_KEYS, "obs", "bound", "beta_ids", "value_ids", "packing"}
    for key in ("actions", "advantages", "returns"):
        assert minibatch[key].tolist() == [*range(4, 12)]
    assert minibatch.obs["obs"][:, 0].tolist() == [*range(4, 12)]
    assert minibatch.beta_ids.tolist() == [0, 1] * 4
    assert minibatch.value_ids.tolist() == [1, 0] * 4
    assert minibatch.bound.shape == (8, A)
    assert (minibatch.packing is not None) == recurrent
    if recurrent:
        assert sorted(minibatch.packing.layout.starts.tolist()) == [0, 4], "two trajectories of four steps"
    assert batch_of().minibatch(part, FIXUP_KEYS).beta_ids is None


def test_samples_put_in_order_give_the_same_minibatches():
    ids = torch.arange(N) % 2
    batch = batch_of(task_ids=ids, beta_ids=ids, value_ids=1 - ids, behaviour=torch.arange(float(N)).unsqueeze(1).expand(N, A))
    parts = batch.parts(8, shuffled=True)
    order, slices = batch.in_order(parts)
    assert slices == [slice(0, 8), slice(8, 16), slice(16, 24)]
    keys = PRIMARY_KEYS + GAE_KEYS
    for part, where in zip(parts, slices, strict=True):
        wanted, found = batch.minibatch(part, keys), order.minibatch(where, keys)
        for key in (*keys, "bound", "beta_ids", "value_ids"):
            assert torch.equal(wanted[key], found[key])
        assert torch.equal(wanted.obs["obs"], found.obs["obs"])
    assert batch.valids is not order.valids, "the batch itself is as it was"


def test_sequences_large_samples_and_what_is_in_order_already_are_left_where_they_are():
    shuffled = [np.array([1, 0]), np.array([3, 2])]
    for batch, parts in (
        (batch_of(recurrent=True), shuffled),
        (batch_of(width=1 << 20), shuffled),
        (batch_of(), shuffled[:1]),
        (batch_of(), [slice(0, 8), slice(8, 16)]),
        (batch_of(), [*shuffled, slice(16, 24)]),  # of which nothing may be lost
    ):
        same, unchanged = batch.in_order(parts)
        assert same is batch
        assert unchanged is parts


def test_a_minibatch_has_no_mask_where_all_samples_are_known_to_be_valid():
    assert batch_of(all_valid=True).minibatch(slice(0, 8), PRIMARY_KEYS).valids is None
    assert batch_of().minibatch(slice(0, 8), PRIMARY_KEYS).valids.all()


def test_packings_are_those_of_the_part():
    assert batch_of().packing(slice(0, 8)) is None
    batch = batch_of(recurrent=True)
    assert batch.packing(slice(0, 8)) is batch.packing(slice(0, 8)), "made once"
    assert len(batch.packing(slice(0, 12)).layout.starts) == 3


def test_neighbouring_slices_are_evaluated_together_up_to_a_size(monkeypatch):
    parts = [slice(i, i + 4) for i in range(0, N, 4)]
    batch = batch_of(width=1000)
    assert batch.joined(parts) == [parts], "4M values"
    monkeypatch.setattr("sf_fixpo.learning.batch._JOINT_VALUES", 8 * 1000)
    assert batch.joined(parts) == [parts[0:2], parts[2:4], parts[4:6]], "the size itself is allowed"
    monkeypatch.setattr("sf_fixpo.learning.batch._JOINT_VALUES", 8 * 1000 - 1)
    assert batch.joined(parts) == [[part] for part in parts]
    monkeypatch.undo()
    assert batch.joined([parts[0], parts[2], parts[3]]) == [[parts[0]], parts[2:4]], "neighbours only"
    assert batch.joined([]) == []
    # 2**22 values of a small observation are a million states; of images some hundred
    images = batch_of(width=1 << 20)
    assert [len(run) for run in images.joined([slice(i, i + 2) for i in range(0, 8, 2)])] == [2, 2]


def test_parameters_of_a_policy_at_every_state_some_at_a_time():
    batch, sizes = batch_of(recurrent=True), []

    def parameters(obs, states, packing):
        sizes.append((len(obs["obs"]), len(packing.layout.starts)))
        return torch.cat([obs["obs"][:, :1], states], dim=1)

    found = batch.parameters(SimpleNamespace(action_parameters=parameters), batch.obs, 16)
    assert sizes == [(16, 4), (8, 2)]
    assert found.tolist() == [[i, i + 0.5] for i in range(N)]


# -- what binds a state -------------------------------------------------------------------------------------------------------


def test_what_each_state_is_bound_to():
    batch = batch_of()
    assert len(batch) == N
    assert batch.bound is batch.previous is batch.behaviour
    assert not batch.stale.any()
    previous = torch.ones(N, A)
    batch.bind_to_previous(previous)
    assert batch.bound is batch.previous is previous
    assert not batch.stale.any()
    batch = batch_of()
    batch.valids[1] = False
    stale = torch.zeros(N, dtype=torch.bool)
    stale[:3] = True
    batch.bind_to_previous(previous, stale)
    assert batch.previous is previous
    assert batch.stale.nonzero().squeeze(1).tolist() == [0, 2], "an invalid sample is never stale"
    assert batch.bound[:, 0].tolist() == [1, 0, 1] + [0] * (N - 3)


@pytest.mark.parametrize(
    ("lag", "lagged"), [((0.0, 0.0, 0.0), False), ((0.5, 0.0, 1.0), True), ((1.0, 1.0, 1.0), True), ((0.0, -1.0, 0.0), True)]
)
def test_a_batch_lags_where_any_valid_sample_does(lag, lagged):
    assert batch_of(lag=lag).lagged == lagged


def progress_of(**changes):
    zero = torch.zeros(())
    fields = {"timer": None, "learning_rate": 0.1, "valid_fraction": 1.0, "bad": zero.bool(), "kl_max_primary": zero}
    return Progress(**{**fields, "beta_zeros": zero, **changes})


def test_what_an_update_starts_from():
    progress = progress_of()
    counts = ("epoch", "primary_steps", "fixup_steps", "check_passes", "host_reads", "lr_halvings", "skipped_minibatches")
    assert [getattr(progress, name) for name in counts] == [0] * len(counts)
    assert (progress.statistics_scale, progress.backtrack_scale, progress.rolled_back) == (1.0, 1.0, False)
    assert (progress.trace, progress.last_losses) == (None, {})


def test_steps_are_traced_and_those_at_beta_0_are_counted():
    progress = progress_of(trace=[])
    progress.epoch = 2
    for beta in ([0.0, 0.0], [0.0, 1.0], [1.0, 3.0]):
        progress.note_step("fixup", torch.tensor([0.1, 0.4]), torch.tensor(beta))
    assert progress.beta_zeros.item() == 1.5
    ((epoch, phase, statistic, beta), *_) = progress.trace[2:]
    assert (epoch, phase, statistic.item(), beta.item()) == (2, "fixup", pytest.approx(0.4), 2.0)
    untraced = progress_of()
    untraced.note_step("primary", torch.tensor([0.1]), torch.tensor([0.0]))
    assert untraced.trace is None
