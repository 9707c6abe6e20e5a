"""Which lines of an update make the host wait: none but those that are written down here, for every shape of an update."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from torch import nn

from benchmarks.host_reads import DOOR, HostReads
from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, take_snapshot

MIXED = gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)])
TASKS = gym.spaces.Dict(obs=gym.spaces.Box(-5, 5, (6,), np.float32), task_id=gym.spaces.Box(0, 1, (1,), np.int32))
LSTM = {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}
GRU = {"use_rnn": True, "rnn_type": "gru", "rnn_size": 8}
QUIET = {**BUSY, "learning_rate": 1e-6}


# -- the guard ----------------------------------------------------------------------------------------------------------------


class ReadingBackward(torch.autograd.Function):
    """Asks for a number on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] * gradients[0].sum().item()


def with_gradient():
    parameter = nn.Parameter(X.clone())
    parameter.grad = X.clone()
    return parameter


X = torch.arange(6.0)
READS = {
    "item": lambda: X.sum().item(),
    "if": lambda: 1 if X.sum() > 3 else 2,
    "max": lambda: max(X),
    "float": lambda: float(X[0]),
    "range": lambda: range(torch.tensor(3).add(1)),
    "slice": lambda: X[: torch.ones((), dtype=torch.int64)],
    "tolist": lambda: X.tolist(),
    "numpy": lambda: X.numpy(),
    "cpu": lambda: X.cpu(),
    "to": lambda: X.to("cpu"),
    "to by name": lambda: X.to(device="cpu"),
    "mask": lambda: X[X > 2],
    "mask written": lambda: X.clone().index_put_((X > 2,), torch.zeros(3)),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 2),
    "masked_select": lambda: X.masked_select(X > 2),
    "equal": lambda: torch.equal(X, X),
    "allclose": lambda: torch.allclose(X, X),
    "unique": lambda: torch.unique(X),
    "send": lambda: torch.tensor(1.0),
    "text": lambda: f"{X.sum():.3f}",
    "clip": lambda: nn.utils.clip_grad_norm_([with_gradient()], 1.0, error_if_nonfinite=True),
    "distribution": lambda: torch.distributions.Normal(X, X + 1.0, validate_args=True),
    "backward": lambda: ReadingBackward.apply(X.clone().requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize("case", READS)
def test_a_read_is_seen(case):
    with HostReads() as reads:
        READS[case]()
    assert reads.count >= 1


def test_a_read_is_counted_once_and_by_the_place_that_asks():
    with HostReads() as reads:
        X.sum().item()
        X.tolist()
    assert reads.places == {"elsewhere": 2}
    X.tolist()
    assert reads.count == 2, "outside nothing is counted"


def test_what_is_told_to_be_none_is_not_counted():
    with HostReads(ignored=lambda tensor: tensor is X) as reads:
        X.tolist()
        (X + 1).tolist()
    assert reads.count == 1


def test_a_step_that_reads_nothing_is_found_so():
    """Convolution, recurrent layer, losses, clipping, and a fused Adam step that can be left out on the device."""
    conv, core = nn.Conv2d(3, 4, 3), nn.LSTM(4, 8)
    parameters = [*conv.parameters(), *core.parameters()]
    adam = torch.optim.Adam(parameters, fused=True)
    adam.grad_scale = None
    for group in adam.param_groups:
        group["lr"] = torch.full((), 1e-3)
    images, mask = torch.randn(5, 3, 8, 8), torch.rand(5, 8) > 0.5
    with HostReads() as reads:
        out, _ = core(conv(images).mean((2, 3)).unsqueeze(0))
        torch.where(mask, out, 0.0).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.found_inf = (norm > 1e9).float()
        adam.step()
    assert reads.places == {}


# -- whole updates ------------------------------------------------------------------------------------------------------------

# the opening, and the row; besides, one check for each of two epochs, and the probe of the statistics
UPDATES = {
    "mlp": (box_actions(), QUIET, {}, 5),
    "shuffled": (MIXED, {**QUIET, "shuffle_minibatches": True}, {}, 5),
    "no statistics": (None, {**QUIET, "normalize_input": False}, {}, 4),
    "returns": (None, {**QUIET, "normalize_returns": True}, {}, 5),
    "popart": (None, {**QUIET, "normalize_returns": True, "value_normalization": "popart", "obs_space": TASKS}, {}, 5),
    "separate": (box_actions(), {**QUIET, "actor_critic_share_weights": False, "normalize_input": False}, {}, 4),
    "lstm": (None, {**QUIET, **LSTM}, {}, 5),
    "gru": (box_actions(), {**QUIET, **GRU, "normalize_input": False}, {}, 4),
    "lagging": (None, {**QUIET, "reference": "behaviour"}, {"lag": 2}, 5),
    "invalid": (None, QUIET, {"invalid_share": 0.3}, 5),
    "invalid lstm": (MIXED, {**QUIET, **LSTM, "shuffle_minibatches": True}, {"invalid_share": 0.05}, 5),
    "v-trace": (None, {**QUIET, "with_vtrace": True, "recurrence": 8}, {}, 5),
    "entropy": (None, {**QUIET, "exploration_loss_coeff": 0.01}, {"invalid_share": 0.3}, 5),
    "symmetric": (None, {**QUIET, "exploration_loss_coeff": 0.01, "exploration_loss": "symmetric_kl"}, {"invalid_share": 0.3}, 5),
    "one step": (None, {**QUIET, "normalize_input": False, "num_epochs": 1, "num_batches_per_epoch": 1}, {}, 3),
    # the schedule looks at every step's divergence
    "adaptive": (None, {**QUIET, "normalize_input": False, "lr_schedule": "kl_adaptive_epoch"}, {}, 6),
}


def reads_of_an_update(tmp_path, space, flags, lag=0, **batch_args):
    """(reads, record) of the fifth update: the first ones test themselves and find out about the statistics."""
    reference = {key: flags[key] for key in ("reference",) if key in flags}
    shape = small_shape(action_space=space, **{key: value for key, value in flags.items() if key not in reference})
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, **reference)
    learner.last_summary_time = np.inf  # the scalars for TensorBoard come every few seconds and read once
    snapshots = []
    for _ in range(4):
        snapshots = [*snapshots, take_snapshot(learner)][-(lag + 1) :] if lag else []
        learner.train(make_batch(learner, seed=0, snapshots=snapshots, **batch_args))
    batch = make_batch(learner, seed=0, snapshots=snapshots, **batch_args)
    with HostReads() as reads:
        learner.train(batch)
    return reads, learner.last_record


@pytest.mark.parametrize("case", UPDATES)
def test_the_usual_update_reads_through_one_door_and_says_how_often(case, tmp_path):
    space, flags, batch_args, expected = UPDATES[case]
    reads, record = reads_of_an_update(tmp_path, space, flags, **batch_args)
    assert (record.fixup_steps, record.statistics_scale) == (0, 1.0), "the usual update"
    assert reads.hidden == {}
    assert record.host_reads == reads.places[DOOR] == expected


@pytest.mark.parametrize("flags", [{"max_fixup_steps": 50}, {"max_fixup_steps": 2}])
def test_an_update_with_fixup_steps_or_a_way_back_counts_its_reads_too(flags, tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, **flags)
    learner.last_summary_time = -np.inf
    learner.train(make_batch(learner, seed=0))
    seen = []
    for seed in range(1, 4):
        batch = make_batch(learner, seed=seed)
        with HostReads() as reads:
            learner.train(batch)
        assert reads.hidden == {}
        assert learner.last_record.host_reads == reads.places[DOOR]
        seen.append((learner.last_record.fixup_steps, learner.last_record.backtracks))
    assert any(steps for steps, _ in seen)
    assert any(back for _, back in seen) == (flags["max_fixup_steps"] == 2)
