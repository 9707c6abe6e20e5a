"""The fixup phase that decides on the device, on real networks: bit for bit the one that asks the host at every step."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from networks import BatchNormed, Dropping, registered

from benchmarks.host_reads import DOOR, HostReads
from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, take_snapshot

MIXED = gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)])
LSTM = {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}
GRU = {"use_rnn": True, "rnn_type": "gru", "rnn_size": 8}
CASES = {
    "discrete": (None, {}, {}),
    "tuple": (MIXED, {}, {}),
    "lstm": (None, LSTM, {}),
    "gru": (box_actions(), GRU, {}),
    "separate": (box_actions(), {"actor_critic_share_weights": False}, {}),
    "invalid": (MIXED, {}, {"invalid_share": 0.3}),
    "small minibatches": (MIXED, {"fixup_batch_size": 16}, {}),
    "few steps": (box_actions(), {"max_fixup_steps": 1}, {}),
    "plateaus": (box_actions(), {"fixup_plateau_steps": 1}, {}),
    "beta": (None, {"fixup_loss": "beta_kl", "fixup_optimizer": "shared"}, {}),
    "outside": (MIXED, {"fixup_loss": "outside"}, {"invalid_share": 0.3}),
    "mean": (None, {"kl_stat": "mean"}, {}),
    "behaviour": (None, {"reference": "behaviour"}, {"lag": 2}),
}
FIXPO = ("fixup_batch_size", "max_fixup_steps", "fixup_plateau_steps", "fixup_loss", "fixup_optimizer", "kl_stat", "reference")
# what costs time is not the same; all else is
COSTS = ("check_passes", "host_reads", "seconds")


def state_of(learner):
    """Weights, Adam's state, beta's state: all that an update leaves behind."""
    published = learner.gate.published.model.state_dict().values()
    return [
        *published,
        *learner.candidate.model.state_dict().values(),
        *moments_of(learner),
        *learner.multiplier.state_dict().values(),
    ]


def moments_of(learner):
    return [tensor for state in learner.optimizer.state.values() for tensor in state.values()]


def trained(folder, case, chunk, updates=3):
    space, flags, batch_args = CASES[case]
    ours = {key: flags[key] for key in FIXPO if key in flags}
    shape = small_shape(action_space=space, **BUSY, **{key: value for key, value in flags.items() if key not in ours})
    learner = make_learner("FIXPO", shape, train_dir=folder, fixup_chunk=chunk, **ours)
    lag = batch_args.get("lag", 0)
    snapshots, rows = [], []
    for seed in range(updates):
        snapshots = [*snapshots, take_snapshot(learner)][-(lag + 1) :] if lag else []
        learner.train(make_batch(learner, seed=seed, snapshots=snapshots, invalid_share=batch_args.get("invalid_share", 0.0)))
        rows.append({key: value for key, value in learner.last_record.to_row().items() if key not in COSTS})
    return learner, rows


@pytest.mark.parametrize("case", CASES)
def test_weights_moments_beta_and_rows_are_bit_for_bit_the_same(case, tmp_path):
    expected, rows = trained(tmp_path / "host", case, 0)
    assert sum(row["fixup_steps"] for row in rows) > 0
    # the comparison would say less than it seems to if they never were
    assert any(row["lr_halvings"] for row in rows) or case != "plateaus"
    assert any(row["backtracks"] for row in rows) or case != "few steps"
    learner, found = trained(tmp_path / "device", case, 7)
    assert found == rows
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state_of(learner), state_of(expected), strict=True))
    assert all(isinstance(group["lr"], float) for group in learner.optimizer.param_groups)


@pytest.mark.parametrize("chunk", [1, 60])
def test_a_chunk_reads_once_and_nothing_is_read_in_hiding(chunk, tmp_path):
    flags = {**BUSY, "normalize_input": False, "num_epochs": 1}
    learner = make_learner("FIXPO", small_shape(action_space=box_actions(), **flags), train_dir=tmp_path, fixup_chunk=chunk)
    learner.train(make_batch(learner, seed=0))
    learner.last_summary_time = np.inf
    for seed in range(1, 4):
        batch = make_batch(learner, seed=seed)
        with HostReads() as reads:
            learner.train(batch)
        record = learner.last_record
        assert reads.hidden == {}
        # the opening, the check, the row; one more for every chunk
        chunks = record.host_reads - 3
        assert reads.places[DOOR] == record.host_reads
        assert record.check_passes == 1 + chunks
        assert -(-record.fixup_steps // chunk) <= chunks <= record.fixup_steps
        if chunk == 60:
            assert chunks == (record.fixup_steps > 0)
        assert record.kl_max <= learner.fixpo.limit


def test_a_step_that_is_left_out_is_none_bit_for_bit(tmp_path):
    """Also where its gradient is no number, and also the very first."""
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    learner.train(make_batch(learner, seed=0))
    improvement, (_, progress) = learner.improvement, learner._update
    parameters = list(learner.candidate.model.parameters())
    for first in (False, True):
        if first:
            learner.optimizer.state.clear()
        for factor in (1.0, torch.nan):
            before = [tensor.detach().clone() for tensor in (*parameters, *moments_of(learner))]
            loss = factor * sum(parameter.square().sum() for parameter in parameters)
            improvement._descend(progress, loss, torch.tensor(0.1, dtype=torch.float64), skip=torch.tensor(True))
            # the very first call makes the moments, at zero
            after = [*parameters, *moments_of(learner)]
            before += [torch.zeros_like(tensor) for tensor in after[len(before) :]]
            assert all(torch.equal(x, y) for x, y in zip(after, before, strict=True))
            assert not progress.bad, "what is no step is no bad step"
    improvement._descend(progress, torch.nan * parameters[0].sum(), 0.1, skip=torch.tensor(False))
    assert progress.bad


@pytest.mark.parametrize("encoder", [Dropping, BatchNormed])
def test_where_training_is_another_function_the_host_decides(encoder, tmp_path):
    with registered(encoder):
        learner = make_learner("FIXPO", small_shape(**{**BUSY, "normalize_input": False}), train_dir=tmp_path, fixup_chunk=4)
        learner.train(make_batch(learner, seed=0))
    assert learner.improvement.chunk_on(torch.device("cpu")) == 0
    assert learner.last_record.kl_max <= learner.fixpo.limit


def test_who_decides(tmp_path):
    by_default = make_learner("FIXPO", small_shape(), train_dir=tmp_path / "a")
    by_default.train(make_batch(by_default))
    assert by_default.improvement.chunk_on(torch.device("cpu")) == 0
    assert by_default.improvement.chunk_on(torch.device("cuda")) == 8
    lamb = make_learner("FIXPO", small_shape(optimizer="lamb"), train_dir=tmp_path / "b", fixup_chunk=4)
    lamb.train(make_batch(lamb))
    assert lamb.improvement.chunk_on(torch.device("cpu")) == 0
