"""Several learners that train one policy do what one with all their samples would do."""

from __future__ import annotations

import pytest
import torch
from busy import BUSY
from rank_threads import make_meetings, none_failed, on_each
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.tensor_dict import TensorDict
from updates import tensors

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape
from sf_fixpo.learning.networks import make_actor_critic


@pytest.fixture(autouse=True)
def _our_networks():
    """For all threads at once: each would put back what another has put there."""
    factory = global_model_factory()
    before = factory.make_actor_critic_func
    factory.register_actor_critic_factory(make_actor_critic)
    yield
    factory.register_actor_critic_factory(before)


def shares(batch, count, minibatches):
    """The part of a batch that each rank gets: of every minibatch the trajectories that are its own."""

    def part(x, rank):
        if isinstance(x, dict):
            return TensorDict({key: part(value, rank) for key, value in x.items()})
        split = x.reshape(minibatches, count, -1, *x.shape[1:])
        return split[:, rank].reshape(-1, *x.shape[1:]).clone()

    return [part(batch, rank) for rank in range(count)]


def trained(tmp_path, shape, updates, batch_args, **flags):
    """(rows of one learner, of two; the learner, and both of two) after some updates on the same samples."""
    minibatches = shape.cfg["num_batches_per_epoch"]
    one = make_learner("FIXPO", shape, train_dir=tmp_path / "one", **flags)
    half = shape.with_flags(batch_size=shape.cfg["batch_size"] // 2)
    if "fixup_batch_size" in flags:
        flags = {**flags, "fixup_batch_size": flags["fixup_batch_size"] // 2}
    meetings = make_meetings()
    two = none_failed(
        on_each(lambda rank: make_learner("FIXPO", half, train_dir=tmp_path / "two", meeting=meetings[rank], **flags))
    )
    for learner in two:
        learner.candidate.state.copy_(one.candidate.state)
        learner.gate.published.state.copy_(one.candidate.state)
    rows = []
    for seed in range(updates):
        batch = make_batch(one, seed=seed, **batch_args)
        parts = shares(batch, 2, minibatches)
        one.train(batch)
        none_failed(on_each(lambda rank, parts=parts: two[rank].train(parts[rank])))
        rows.append((one.last_record, two[0].last_record))
    return rows, one, two


CASES = {
    "mlp": (box_actions(), {}, {}),
    "invalid": (None, {}, {"invalid_share": 0.3}),
    # whether statistics are let in is asked of every eighth trajectory, which are others for two ranks than for one
    "lstm": (None, {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8, "normalize_input": False}, {}),
    "returns": (box_actions(), {"normalize_returns": True}, {}),
    "v-trace": (None, {"with_vtrace": True, "recurrence": 8}, {}),
    "adaptive": (None, {"lr_schedule": "kl_adaptive_epoch"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_the_batch_each_do_what_one_does_with_all_of_it(case, tmp_path):
    space, flags, batch_args = CASES[case]
    shape = small_shape(
        action_space=space,
        **{**BUSY, "learning_rate": 3e-3, "eps_kl": 0.01 if case == "mlp" else 0.003, "batch_size": 64, **flags},
    )
    rows, one, two = trained(tmp_path, shape, 20 if case == "mlp" else 5, batch_args)
    mine, other = (tensors(learner.gate.published.model) for learner in two)
    for name, expected in tensors(one.gate.published.model).items():
        assert torch.equal(mine[name], other[name]), name
        torch.testing.assert_close(mine[name], expected, rtol=1e-5, atol=1e-5)
    assert sum(row.fixup_steps for row, _ in rows) > 0
    for expected, found in rows:
        for name in ("fixup_steps", "primary_steps", "check_passes", "backtracks", "env_steps", "policy_version", "rolled_back"):
            assert getattr(found, name) == getattr(expected, name), name
        for name in ("kl_max", "kl_mean", "kl_max_primary", "beta", "entropy", "valid_fraction", "lag_mean", "stale_fraction"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-5), name
        assert max(rank["kl_max"] for rank in found.ranks) == found.kl_max <= found.eps_kl
