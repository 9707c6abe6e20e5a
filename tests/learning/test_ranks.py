"""Several learners that train one policy do what one with all their samples would do."""

from __future__ import annotations

import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from programs import json_lines
from rank_threads import make_meetings, none_failed, on_each
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.tensor_dict import TensorDict
from updates import tensors, write_config

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, vector_space
from sf_fixpo.learning.meeting import DONE, RanksError
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.learning.rank_figures import put_together
from sf_fixpo.learning.verification import GuaranteeError
from sf_fixpo.records.update_log import row_fault

# ranks as threads of one process: torch.jit's parser and gloo's waits do not always take that (CPython 3.11)
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _our_networks():
    """For all threads at once: each would put back what another has put there, and torch compiles no two networks at a time."""
    factory, lock = global_model_factory(), threading.Lock()
    before = factory.make_actor_critic_func

    def make(*args):
        with lock:
            return make_actor_critic(*args)

    factory.register_actor_critic_factory(make)
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
    "decay": (None, {"lr_schedule": "linear_decay", "train_for_env_steps": 1280}, {}),
    "adaptive": (None, {"lr_schedule": "kl_adaptive_epoch"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_the_batch_each_do_what_one_does_with_all_of_it(case, tmp_path):
    space, flags, batch_args = CASES[case]
    shape = small_shape(
        action_space=space,
        **{**BUSY, "learning_rate": 3e-3, "eps_kl": 0.02 if case == "mlp" else 0.003, "batch_size": 64, **flags},
    )
    rows, one, two = trained(tmp_path, shape, 20 if case == "mlp" else 3, batch_args)
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


# -- what one rank has, all heed ------------------------------------------------------------------------------------------------


def two_learners(tmp_path, **flags):
    """Two ranks of one policy, and how to train both: `train(batches)` gives what each rank's `train` returned or raised."""
    shape = small_shape(**{**BUSY, **{key: flags.pop(key) for key in list(flags) if key in ("num_epochs", "obs_space")}})
    meetings = make_meetings()
    learners = none_failed(
        on_each(lambda rank: make_learner("FIXPO", shape, train_dir=tmp_path, meeting=meetings[rank], **flags))
    )

    def train(batches):
        return on_each(lambda rank: learners[rank].train(batches[rank]))

    return learners, train


def batches_of(learners, seed=0):
    return [make_batch(learner, seed=10 * seed + rank) for rank, learner in enumerate(learners)]


def same_weights(learners):
    one, two = (tensors(learner.gate.published.model) for learner in learners)
    return all(torch.equal(one[name], two[name]) for name in one)


def test_ranks_start_from_rank_0s_weights_whatever_their_seeds(tmp_path):
    learners, train = two_learners(tmp_path, seed=None)
    assert same_weights(learners)
    none_failed(train(batches_of(learners)))
    assert same_weights(learners)


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_number_that_is_none_on_one_rank_undoes_the_update_on_all(guilty, tmp_path):
    learners, train = two_learners(tmp_path)
    none_failed(train(batches_of(learners)))
    before = tensors(learners[0].gate.published.model)
    batches = batches_of(learners, 1)
    batches[guilty]["rewards"][0, 0] = torch.nan
    none_failed(train(batches))
    assert [learner.last_record.rolled_back for learner in learners] == [True, True]
    for learner in learners:
        after = tensors(learner.gate.published.model)
        assert all(torch.equal(before[name], after[name]) for name in before if "returns" not in name)
    none_failed(train(batches_of(learners, 2)))
    assert [learner.last_record.rolled_back for learner in learners] == [False, False]


def test_a_maximum_does_not_lose_a_number_that_is_none_on_any_rank(tmp_path):
    learners, _ = two_learners(tmp_path)
    for guilty in range(2):
        numbers = [torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.1])]
        numbers[guilty][0] = torch.nan
        found = none_failed(on_each(lambda rank, numbers=numbers: learners[rank].ranks.largest(numbers[rank])))
        assert [x.tolist() for x in found] == [[torch.inf, pytest.approx(0.2)]] * 2


def test_a_rank_without_a_valid_sample_learns_from_the_others_and_none_at_all_is_no_update(tmp_path):
    learners, train = two_learners(tmp_path)
    none_failed(train(batches_of(learners)))
    batches = batches_of(learners, 1)
    batches[1]["policy_id"][:] = -1
    batches[1]["obs"]["obs"][:] = 1e6
    none_failed(train(batches))
    record = learners[0].last_record
    assert (record.valid_fraction, record.rolled_back) == (0.5, False)
    assert [rank["valid_fraction"] for rank in record.ranks] == [1.0, 0.0]
    assert same_weights(learners)
    assert (
        float(learners[0].gate.published.model.obs_normalizer.running_mean_std.running_mean_std["obs"].running_mean.max()) < 1e3
    )

    before, batches = tensors(learners[0].gate.published.model), batches_of(learners, 2)
    for batch in batches:
        batch["policy_id"][:] = -1
    assert none_failed(train(batches)) == [None, None]
    after = tensors(learners[0].gate.published.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_policies_that_have_come_apart_are_not_published(tmp_path):
    learners, train = two_learners(tmp_path)
    none_failed(train(batches_of(learners)))
    before = tensors(learners[1].gate.published.model)
    with torch.no_grad():
        next(iter(learners[1].candidate.model.parameters())).view(-1)[0] += 1e-7
    for result in train(batches_of(learners, 1)):
        assert isinstance(result, GuaranteeError)
        assert "no longer the same" in str(result)
    after = tensors(learners[1].gate.published.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rank_0_alone_writes_and_what_it_audits_are_the_states_of_all(tmp_path):
    learners, train = two_learners(tmp_path, audit_every=1)
    for seed in range(3):
        none_failed(train(batches_of(learners, seed)))
    write_config(learners[0])
    assert none_failed(on_each(lambda rank: learners[rank].save())) == [True, False]
    rows = json_lines(tmp_path / "synthetic" / "updates.jsonl")
    assert [row_fault(row) for row in rows] == [None] * 3, "who reads the log can"
    assert "as ranks, which must be" in str(row_fault({**rows[0], "ranks": [{"kl_max": "high"}]}))
    scalars = learners[0].last_record.to_scalars()
    assert scalars["rank_01/kl_max"] == rows[-1]["ranks"][1]["kl_max"]
    files = sorted((tmp_path / "synthetic" / "audit").glob("*.pt"))
    assert len(files) == 3
    record = torch.load(files[0], weights_only=True)
    assert len(record["valids"]) == len(record["obs"]["obs"]) == 2 * 64


def test_what_one_saved_another_number_of_ranks_goes_on_from(tmp_path):
    alone = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    alone.train(make_batch(alone))
    alone.save()
    learners, train = two_learners(tmp_path)
    for learner in learners:
        assert (learner.train_step, learner.env_steps, learner.updates) == (alone.train_step, alone.env_steps, 1)
        assert torch.equal(learner.multiplier.beta, alone.multiplier.beta)
        weights, expected = tensors(learner.gate.published.model), tensors(alone.gate.published.model)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    none_failed(train(batches_of(learners)))
    learners[0].save()
    again = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    assert again.env_steps == alone.env_steps + 2 * 64


def test_when_one_leaves_the_others_make_no_further_update(tmp_path):
    learners, train = two_learners(tmp_path)
    none_failed(train(batches_of(learners)))
    learners[1].meeting.wish(DONE)
    batch = make_batch(learners[0], seed=5)
    before = tensors(learners[0].gate.published.model)
    assert none_failed(on_each(lambda rank: learners[0].train(batch) if rank == 0 else learners[1].leave())) == [None, None]
    assert [learner.ended for learner in learners] == [DONE, DONE]
    assert learners[0].train(batch) is None, "without asking anybody"
    after = tensors(learners[0].gate.published.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_rank_that_is_gone_is_an_error_for_the_others(tmp_path):
    learners, _ = two_learners(tmp_path)
    learners[0].meeting.timeout = learners[0].meeting.patience = 0.5
    with pytest.raises(RanksError, match="rank 1: nothing came"):
        learners[0].train(make_batch(learners[0]))


def test_each_rank_may_play_tasks_of_its_own_and_each_task_has_one_beta_on_all(tmp_path):
    space = gym.spaces.Dict(obs=vector_space()["obs"], task_id=gym.spaces.Box(0, 1, (1,), np.int32))
    learners, train = two_learners(tmp_path, obs_space=space, beta_scope="per_task")
    for learner, returns in zip(learners, ([5.0, None], [None, 7.0]), strict=True):
        learner.task_returns = returns
    for seed in range(3):
        batches = batches_of(learners, seed)
        for task, batch in enumerate(batches):
            batch["obs"]["task_id"][:] = task
        none_failed(train(batches))
    one, two = (learner.last_record for learner in learners)
    assert one.tasks == two.tasks
    assert one.beta == two.beta
    assert len(set(one.beta)) == 2
    for number, figures in enumerate(one.tasks.values()):
        assert figures["sample_share"] == 0.5
        assert figures["kl_max"] == pytest.approx(one.ranks[number]["kl_max"])
        assert figures["return"] == (5.0, 7.0)[number]
    assert same_weights(learners)


# -- the row ------------------------------------------------------------------------------------------------------------------


def test_figures_are_put_together_by_what_they_are_of():
    names = ["kl_max", "kl_max_stale", "kl_mean", "stale_fraction", "entropy"]
    figures = np.array([[0.1, 0.4, 0.01, 0.0, 1.0], [0.3, 0.0, 0.05, 0.5, 4.0], [9.0 * 0, 0.0, np.nan, np.nan, np.nan]])
    betas = np.array([[2.0, 3.0]] * 3)
    tasks = np.array([[0.1, 0.05, 0.01, 0.02, 0.5, 0.5], [0.0, 0.3, 0.0, 0.05, 0.0, 1.0], [0.0] * 6])
    #                size, valid, shown, bound, stale, lag, waited
    own = np.array([[64, 60, 60, 60, 0, 1.0, 0.1], [64, 20, 20, 10, 10, 3.0, 0.2], [64, 0, 0, 0, 0, np.nan, 0.3]])
    returns = np.array([[5.0, np.nan], [7.0, np.nan], [np.nan, np.nan]])
    found = put_together(np.hstack([figures, betas, tasks, own, returns]), names, 2)
    kl_max, kl_max_stale, kl_mean, stale, entropy, beta, other, *of_tasks = found.numbers
    assert (kl_max, kl_max_stale, beta, other) == (0.3, 0.4, 2.0, 3.0)
    assert kl_mean == pytest.approx((0.01 * 60 + 0.05 * 10) / 70)
    assert stale == pytest.approx(10 / 80)
    assert entropy == pytest.approx((60 + 4 * 20) / 80)
    assert of_tasks[:2] == [0.1, 0.3]
    assert of_tasks[2:4] == pytest.approx([0.01, (0.02 * 30 + 0.05 * 20) / 50])
    assert of_tasks[4:] == pytest.approx([30 / 80, 50 / 80])
    assert found.lag_mean == pytest.approx((60 + 3 * 20) / 80)
    assert list(found.returns) == [6.0, None]
    assert [rank["valid_fraction"] for rank in found.ranks] == pytest.approx([60 / 64, 20 / 64, 0.0])
    assert [rank["waited"] for rank in found.ranks] == [0.1, 0.2, 0.3]
    assert [rank["lag_mean"] for rank in found.ranks] == [1.0, 3.0, 0.0]
