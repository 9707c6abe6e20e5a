"""Several learners that train one policy do what one with all their samples would do.

The ranks are two processes, which all tests of this file use one after the other; what a test has them do is an `on_rank_...`.
tests/running/test_rank_runs.py has whole runs, and ranks that are killed or hang.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from programs import json_lines
from rank_processes import RankProcesses
from sample_factory.algo.utils.tensor_dict import TensorDict
from updates import tensors, write_config

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, vector_space
from sf_fixpo.learning.meeting import DONE, RanksError
from sf_fixpo.learning.rank_figures import put_together
from sf_fixpo.learning.verification import GuaranteeError
from sf_fixpo.records.update_log import row_fault


@pytest.fixture(scope="module")
def ranks():
    processes = RankProcesses()
    yield processes
    processes.close()


def same(one, two):
    """Whether two networks' tensors are the same bit for bit."""
    return all(torch.equal(one[name], two[name]) for name in one)


# -- half of the samples each ---------------------------------------------------------------------------------------------------


def shares(batch, count, minibatches):
    """The part of a batch that each rank gets: of every minibatch the trajectories that are its own."""

    def part(x, rank):
        if isinstance(x, dict):
            return TensorDict({key: part(value, rank) for key, value in x.items()})
        split = x.reshape(minibatches, count, -1, *x.shape[1:])
        return split[:, rank].reshape(-1, *x.shape[1:]).clone()

    return [part(batch, rank) for rank in range(count)]


def on_rank_train(meeting, shape, train_dir, flags, state, batches):
    learner = make_learner("FIXPO", shape, train_dir=train_dir, meeting=meeting, **flags)
    for policy in (learner.candidate, learner.gate.published):
        policy.model.load_state_dict(state)
    records = []
    for batch in batches:
        learner.train(batch)
        records.append(learner.last_record)
    return records, tensors(learner.gate.published.model)


TASKS = gym.spaces.Dict(obs=gym.spaces.Box(-5, 5, (6,), np.float32), task_id=gym.spaces.Box(0, 2, (1,), np.int32))

# What two ranks wait for each other is most of the time, so that long cases have one epoch, and short ones two.
CASES = {
    "mlp": (20, box_actions(), {"eps_kl": 0.015, "num_epochs": 1}, {}),
    # whether statistics are let in is asked of every eighth trajectory, which are others for two ranks than for one
    "lstm": (20, None, {"use_rnn": True, "rnn_type": "lstm", "normalize_input": False, "num_epochs": 1}, {}),
    "invalid": (3, None, {}, {"invalid_share": 0.3}),
    "returns": (3, box_actions(), {"normalize_returns": True}, {}),
    "popart": (3, box_actions(), {"normalize_returns": True, "value_normalization": "popart", "obs_space": TASKS}, {}),
    "v-trace": (3, None, {"with_vtrace": True, "recurrence": 8}, {}),
    "decay": (3, None, {"lr_schedule": "linear_decay", "train_for_env_steps": 1280}, {}),
    "adaptive": (3, None, {"lr_schedule": "kl_adaptive_epoch"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_the_batch_each_do_what_one_does_with_all_of_it(case, tmp_path, ranks):
    updates, space, flags, batch_args = CASES[case]
    shape = small_shape(
        action_space=space, **{**BUSY, "learning_rate": 3e-3, "eps_kl": 0.003, "batch_size": 64, "rnn_size": 8, **flags}
    )
    one = make_learner("FIXPO", shape, train_dir=tmp_path / "one")
    start, rows, parts = tensors(one.candidate.model), [], []
    for seed in range(updates):
        batch = make_batch(one, seed=seed, **batch_args)
        parts.append(shares(batch, 2, shape.cfg["num_batches_per_epoch"]))
        one.train(batch)
        rows.append(one.last_record)
    half = shape.with_flags(batch_size=shape.cfg["batch_size"] // 2)
    of_each = [([both[rank] for both in parts],) for rank in range(2)]
    (found, mine), (others, other) = ranks(on_rank_train, half, tmp_path / "two", {}, start, of_each=of_each)

    assert same(mine, other)
    for name, expected in tensors(one.gate.published.model).items():
        torch.testing.assert_close(mine[name], expected, rtol=1e-5, atol=1e-5)
    assert sum(row.fixup_steps for row in rows) > 0
    for expected, row, row_of_other in zip(rows, found, others, strict=True):
        for name in ("fixup_steps", "primary_steps", "check_passes", "backtracks", "env_steps", "policy_version", "rolled_back"):
            assert getattr(row, name) == getattr(expected, name), name
        for name in ("kl_max", "kl_mean", "kl_max_primary", "beta", "entropy", "valid_fraction", "lag_mean", "stale_fraction"):
            assert getattr(row, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-5), name
        assert row.beta == row_of_other.beta
        assert max(rank["kl_max"] for rank in row.ranks) == row.kl_max <= row.eps_kl


# -- what one rank has, all heed ------------------------------------------------------------------------------------------------


def own_learner(meeting, train_dir, **flags):
    shape = small_shape(**{**BUSY, **{key: flags.pop(key) for key in list(flags) if key == "obs_space"}})
    return make_learner("FIXPO", shape, train_dir=train_dir, meeting=meeting, **flags)


def own_batch(learner, seed=0):
    return make_batch(learner, seed=10 * seed + learner.meeting.rank.number)


def weights(learner):
    return tensors(learner.gate.published.model)


def on_rank_start_anywhere(meeting, train_dir):
    learner = own_learner(meeting, train_dir, seed=None)
    at_start = weights(learner)
    learner.train(own_batch(learner))
    return at_start, weights(learner)


def test_ranks_start_from_rank_0s_weights_whatever_their_seeds(tmp_path, ranks):
    one, two = ranks(on_rank_start_anywhere, tmp_path)
    assert all(same(mine, other) for mine, other in zip(one, two, strict=True))
    assert not same(*one), "and learn from there"


def on_rank_meet_a_number_that_is_none(meeting, train_dir, guilty):
    learner = own_learner(meeting, train_dir)
    learner.train(own_batch(learner))
    before, rolled_back = weights(learner), []
    batch = own_batch(learner, 1)
    if meeting.rank.number == guilty:
        batch["rewards"][0, 0] = torch.nan
    learner.train(batch)
    rolled_back.append(learner.last_record.rolled_back)
    after = weights(learner)
    learner.train(own_batch(learner, 2))
    rolled_back.append(learner.last_record.rolled_back)
    return rolled_back, before, after, weights(learner)


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_number_that_is_none_on_one_rank_undoes_the_update_on_all(guilty, tmp_path, ranks):
    results = ranks(on_rank_meet_a_number_that_is_none, tmp_path, guilty)
    for rolled_back, before, after, _ in results:
        assert rolled_back == [True, False]
        assert all(torch.equal(before[name], after[name]) for name in before if "returns" not in name)
    assert same(results[0][-1], results[1][-1])


def on_rank_say_the_largest(meeting, train_dir, guilty):
    numbers = torch.tensor([[0.1, 0.2], [0.3, 0.1]][meeting.rank.number])
    if meeting.rank.number == guilty:
        numbers[0] = torch.nan
    return own_learner(meeting, train_dir).ranks.largest(numbers).tolist()


@pytest.mark.parametrize("guilty", [0, 1])
def test_a_maximum_does_not_lose_a_number_that_is_none_on_any_rank(guilty, tmp_path, ranks):
    assert ranks(on_rank_say_the_largest, tmp_path, guilty) == [[torch.inf, pytest.approx(0.2)]] * 2


def on_rank_have_nothing_valid(meeting, train_dir):
    learner = own_learner(meeting, train_dir)
    learner.train(own_batch(learner))
    batch = own_batch(learner, 1)
    if meeting.rank.number == 1:
        batch["policy_id"][:] = -1
        batch["obs"]["obs"][:] = 1e6
    learner.train(batch)
    record, with_one = learner.last_record, weights(learner)
    batch = own_batch(learner, 2)
    batch["policy_id"][:] = -1
    return record, with_one, learner.train(batch), weights(learner)


def test_a_rank_without_a_valid_sample_learns_from_the_others_and_none_at_all_is_no_update(tmp_path, ranks):
    one, two = ranks(on_rank_have_nothing_valid, tmp_path)
    record, with_one, _, _ = one
    assert (record.valid_fraction, record.rolled_back) == (0.5, False)
    assert [rank["valid_fraction"] for rank in record.ranks] == [1.0, 0.0]
    assert same(with_one, two[1])
    mean = next(
        tensor for name, tensor in with_one.items() if name.startswith("obs_normalizer") and name.endswith("running_mean")
    )
    assert 0 < float(mean.abs().max()) < 1e3
    for _, before, stats, after in (one, two):
        assert stats is None
        assert same(before, after)


def on_rank_come_apart(meeting, train_dir):
    learner = own_learner(meeting, train_dir)
    learner.train(own_batch(learner))
    before = weights(learner)
    if meeting.rank.number == 1:
        with torch.no_grad():
            next(iter(learner.candidate.model.parameters())).view(-1)[0] += 1e-7
    with pytest.raises(GuaranteeError) as error:
        learner.train(own_batch(learner, 1))
    return str(error.value), before, weights(learner)


def test_policies_that_have_come_apart_are_not_published(tmp_path, ranks):
    for message, before, after in ranks(on_rank_come_apart, tmp_path):
        assert "no longer the same" in message
        assert same(before, after)


def on_rank_audit(meeting, train_dir):
    learner = own_learner(meeting, train_dir, audit_every=1)
    for seed in range(3):
        learner.train(own_batch(learner, seed))
    if meeting.rank.number == 0:
        write_config(learner)
    return learner.save(), learner.last_record.to_scalars()


def test_rank_0_alone_writes_and_what_it_audits_are_the_states_of_all(tmp_path, ranks):
    (saved, scalars), (other, _) = ranks(on_rank_audit, tmp_path)
    assert (saved, other) == (True, False)
    rows = json_lines(tmp_path / "synthetic" / "updates.jsonl")
    assert [row_fault(row) for row in rows] == [None] * 3, "who reads the log can"
    assert "as ranks, which must be" in str(row_fault({**rows[0], "ranks": [{"kl_max": "high"}]}))
    assert scalars["rank_01/kl_max"] == rows[-1]["ranks"][1]["kl_max"]
    files = sorted((tmp_path / "synthetic" / "audit").glob("*.pt"))
    assert len(files) == 3
    record = torch.load(files[0], weights_only=True)
    assert len(record["valids"]) == len(record["obs"]["obs"]) == 2 * 64


def on_rank_go_on(meeting, train_dir):
    learner = own_learner(meeting, train_dir)
    found = (learner.train_step, learner.env_steps, learner.updates, learner.multiplier.beta.clone(), weights(learner))
    learner.train(own_batch(learner))
    learner.save()
    return found


def test_what_one_saved_another_number_of_ranks_goes_on_from(tmp_path, ranks):
    alone = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    alone.train(make_batch(alone))
    alone.save()
    for train_step, env_steps, updates, beta, found in ranks(on_rank_go_on, tmp_path):
        assert (train_step, env_steps, updates) == (alone.train_step, alone.env_steps, 1)
        assert torch.equal(beta, alone.multiplier.beta)
        assert same(weights(alone), found)
    again = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    assert again.env_steps == alone.env_steps + 2 * 64


def on_rank_leave(meeting, train_dir):
    learner = own_learner(meeting, train_dir)
    learner.train(own_batch(learner))
    before = weights(learner)
    if meeting.rank.number == 1:
        meeting.wish(DONE)
        return learner.leave(), learner.ended, before, weights(learner)
    batch = own_batch(learner, 5)
    stats = learner.train(batch)
    assert learner.train(batch) is None, "without asking anybody"
    return stats, learner.ended, before, weights(learner)


def test_when_one_leaves_the_others_make_no_further_update(tmp_path, ranks):
    for stats, ended, before, after in ranks(on_rank_leave, tmp_path):
        assert (stats, ended) == (None, DONE)
        assert same(before, after)


def on_rank_lose_the_other(meeting, train_dir):
    learner = own_learner(meeting, train_dir)
    if meeting.rank.number == 0:
        meeting.timeout = meeting.patience = 0.5
        with pytest.raises(RanksError, match="rank 1: nothing came"):
            learner.train(own_batch(learner))


def test_a_rank_that_is_gone_is_an_error_for_the_others(tmp_path, ranks):
    ranks(on_rank_lose_the_other, tmp_path)


def on_rank_play_its_own_task(meeting, train_dir):
    space = gym.spaces.Dict(obs=vector_space()["obs"], task_id=gym.spaces.Box(0, 1, (1,), np.int32))
    learner = own_learner(meeting, train_dir, obs_space=space, beta_scope="per_task")
    task = meeting.rank.number
    learner.task_returns = ([5.0, None], [None, 7.0])[task]
    for seed in range(3):
        batch = own_batch(learner, seed)
        batch["obs"]["task_id"][:] = task
        learner.train(batch)
    return learner.last_record, weights(learner)


def test_each_rank_may_play_tasks_of_its_own_and_each_task_has_one_beta_on_all(tmp_path, ranks):
    (one, mine), (two, other) = ranks(on_rank_play_its_own_task, tmp_path)
    assert one.tasks == two.tasks
    assert one.beta == two.beta
    assert len(set(one.beta)) == 2
    for number, figures in enumerate(one.tasks.values()):
        assert figures["sample_share"] == 0.5
        assert figures["kl_max"] == pytest.approx(one.ranks[number]["kl_max"])
        assert figures["return"] == (5.0, 7.0)[number]
    assert same(mine, other)


def on_rank_count_exchanges(meeting, train_dir, kl_stat):
    learner = own_learner(meeting, train_dir, kl_stat=kl_stat, eps_kl=0.01)
    ranks, improvement = learner.ranks, learner.improvement
    reduce, counts, asked = ranks._reduce, {"primary_step": [], "fixup_step": []}, []

    def counted(*args):
        asked.append(1)
        return reduce(*args)

    def watched(name, step):
        def call(*args, **kwargs):
            before = len(asked)
            result = step(*args, **kwargs)
            counts[name].append(len(asked) - before)
            return result

        return call

    ranks._reduce = counted
    for name in counts:
        setattr(improvement, name, watched(name, getattr(improvement, name)))
    learner.train(own_batch(learner))
    return counts, learner.last_record


@pytest.mark.parametrize("kl_stat", ["max", "mean"])
def test_a_step_asks_for_one_exchange_and_one_that_normalises_advantages_for_two(kl_stat, tmp_path, ranks):
    for counts, record in ranks(on_rank_count_exchanges, tmp_path, kl_stat):
        assert counts["primary_step"] == [2] * record.primary_steps
        assert counts["fixup_step"] == [1] * record.fixup_steps
        assert record.primary_steps > 0
        assert record.fixup_steps > 0


# -- the row ------------------------------------------------------------------------------------------------------------------


def test_figures_are_put_together_by_what_they_are_of():
    names = ["kl_max", "kl_max_stale", "kl_mean", "stale_fraction", "entropy"]
    figures = np.array([[0.1, 0.4, 0.01, 0.0, 1.0], [0.3, 0.0, 0.05, 0.5, 4.0], [9.0 * 0, 0.0, np.nan, np.nan, np.nan]])
    betas = np.array([[2.0, 3.0]] * 3)
    # kl_max, kl_mean, share of the samples and explained variance of two tasks
    tasks = np.array([[0.1, 0.05, 0.01, 0.02, 0.5, 0.5, 0.9, 0.6], [0.0, 0.3, 0.0, 0.05, 0.0, 1.0, 0.0, 0.1], [0.0] * 8])
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
    assert of_tasks[4:6] == pytest.approx([30 / 80, 50 / 80])
    assert of_tasks[6:] == pytest.approx([0.9, (0.6 * 30 + 0.1 * 20) / 50])
    assert found.lag_mean == pytest.approx((60 + 3 * 20) / 80)
    assert list(found.returns) == [6.0, None]
    assert [rank["valid_fraction"] for rank in found.ranks] == pytest.approx([60 / 64, 20 / 64, 0.0])
    assert [rank["waited"] for rank in found.ranks] == [0.1, 0.2, 0.3]
    assert [rank["lag_mean"] for rank in found.ranks] == [1.0, 3.0, 0.0]
