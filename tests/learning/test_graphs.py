"""Replayed gradient steps: the ones that are made one by one, bit for bit, on the CPU.

There a replay is a call; `recording` makes one of it that knows nothing but memory, as a graph does. What a GPU makes of a
recording is seen there alone (`benchmarks.gpu_checks`).
"""

from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from networks import Dropping, registered
from programs import SERIAL
from recording import record
from test_fixup_chunks import state_of

from benchmarks.host_reads import DOOR, HostReads
from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, take_snapshot
from sf_fixpo import train
from sf_fixpo.algorithm.config import FixPOConfig
from sf_fixpo.learning.graphs import capture, known_to_replay
from sf_fixpo.learning.sequences import Packing

MIXED = gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)])
PIXELS = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8))
TASKS = gym.spaces.Dict(obs=gym.spaces.Box(-5, 5, (6,), np.float32), task_id=gym.spaces.Box(0, 1, (1,), np.int32))
LSTM = {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}
GRU = {"use_rnn": True, "rnn_type": "gru", "rnn_size": 8}
CASES = {
    "discrete": (None, {}, {}),
    "tuple, shuffled": (MIXED, {"shuffle_minibatches": True}, {}),
    "lstm": (MIXED, {**LSTM, "shuffle_minibatches": True}, {}),
    "gru": (box_actions(), GRU, {}),
    "separate": (box_actions(), {"actor_critic_share_weights": False, "max_grad_norm": 0.0}, {}),
    "returns": (None, {"normalize_returns": True, "lr_schedule": "linear_decay"}, {}),
    "popart": (None, {"normalize_returns": True, "value_normalization": "popart", "obs_space": TASKS, **LSTM}, {}),
    "adaptive": (None, {"lr_schedule": "kl_adaptive_epoch"}, {}),
    "invalid": (MIXED, {}, {"invalid_share": 0.3}),
    "behaviour": (None, {"reference": "behaviour"}, {"lag": 2}),
    "v-trace": (None, {"with_vtrace": True, "recurrence": 8}, {}),
    "entropy": (None, {"exploration_loss_coeff": 0.01}, {"invalid_share": 0.1}),
    "mean": (None, {"kl_mean_target": 0.01}, {}),
    "bfloat16": (MIXED, {"encoder_dtype": "bfloat16"}, {}),
    "chunks": (None, {"fixup_chunk": 3}, {}),
    "chunks, plateaus": (box_actions(), {"fixup_chunk": 7, "fixup_plateau_steps": 1}, {}),
    "chunks, few steps": (MIXED, {"fixup_chunk": 7, "max_fixup_steps": 1}, {"invalid_share": 0.3}),
    "chunks, lstm": (None, {**LSTM, "fixup_chunk": 4, "fixup_batch_size": 16, "fixup_loss": "beta_kl"}, {}),
}
OURS = {f.name for f in fields(FixPOConfig)} - set(BUSY)


def learner_of(folder, space=None, algo="FIXPO", obs_space=None, **flags):
    ours = {key: flags.pop(key) for key in OURS & set(flags)}
    return make_learner(algo, small_shape(action_space=space, obs_space=obs_space, **{**BUSY, **flags}), train_dir=folder, **ours)


class Calls:
    """Recordings, by default as on a CPU, where they are the step itself; counts their replays."""

    def __init__(self, capture):
        self._capture = capture
        self.replays = self.visits = 0

    def __call__(self, step, device):
        replay = self._capture(step, device)

        def counted():
            results = replay()
            self.replays += 1
            self.visits += "loss" not in results
            return results

        return counted


def replaying(learner, capture=capture):
    """Has a learner's steps replayed; returns the counter."""
    calls = Calls(capture)
    configure = learner.improvement.configure

    def first(*args):
        configure(*args)
        if learner.improvement._graphs is None:
            learner.improvement.use_graphs(calls)

    learner.improvement.configure = first
    return calls


def trained(learner, updates=3, lag=0, **batch_args):
    snapshots, rows = [], []
    for seed in range(updates):
        snapshots = [*snapshots, take_snapshot(learner)][-(lag + 1) :] if lag else []
        learner.train(make_batch(learner, seed=seed, snapshots=snapshots, **batch_args))
        rows.append({key: x for key, x in learner.last_record.to_row().items() if key not in ("seconds", "host_reads")})
    return rows


def assert_same_state(a, b):
    assert all(torch.equal(x, y) for x, y in zip(state_of(a), state_of(b), strict=True))


# the others with `make test-slow`
BY_DEFAULT = {"tuple, shuffled", "lstm", "separate", "popart", "invalid", "mean", "chunks, few steps"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in BY_DEFAULT else pytest.mark.slow) for c in CASES])
def test_weights_moments_beta_and_rows_are_bit_for_bit_the_same(case, tmp_path, monkeypatch):
    space, flags, batch_args = CASES[case]
    monkeypatch.setattr(Packing, "padded", None)  # which only a CPU has: where steps are recorded, cores are loops in any case
    if case == "bfloat16":  # in which TorchScript's first runs of a process round otherwise than all later ones
        trained(learner_of(tmp_path / "first", space, **flags), 1)
    one_by_one = learner_of(tmp_path / "a", space, **flags)
    rows = trained(one_by_one, **batch_args)
    replayed = learner_of(tmp_path / "b", space, **flags)  # which draws the same numbers from here on
    calls = replaying(replayed, record)
    assert trained(replayed, **batch_args) == rows
    assert_same_state(one_by_one, replayed)
    replays, visits = replayed.improvement._graphs.primary, replayed.improvement._graphs.visits
    assert replays.given_up is visits.given_up is None
    # the first update makes the moments; after that every step is a replay, and one more each time it is recorded
    steps = sum(row["primary_steps"] for row in rows[1:])
    assert calls.replays - calls.visits == steps + replays.captures
    assert replays.captures <= 2
    assert (calls.visits > visits.captures > 0) == ("chunks" in case)
    assert all(isinstance(group["lr"], float) and not group["capturable"] for group in replayed.optimizer.param_groups)


@pytest.mark.parametrize("obs_space", [pytest.param(PIXELS, marks=pytest.mark.slow), TASKS], ids=["pixels", "tasks"])
def test_images_and_tasks_too(obs_space, tmp_path):
    flags = {"obs_space": obs_space, "normalize_input": False, "num_epochs": 1, "num_batches_per_epoch": 1}
    one_by_one, replayed = (learner_of(tmp_path / name, **flags) for name in "ab")
    calls = replaying(replayed)
    assert trained(replayed, 3) == trained(one_by_one, 3)
    assert_same_state(one_by_one, replayed)
    assert calls.replays == 2 + 1


def test_the_scalars_of_the_last_step_are_its_own(tmp_path):
    found = []
    for name in "ab":
        learner = learner_of(tmp_path / name, MIXED)
        if name == "b":
            replaying(learner)
        trained(learner, 2)
        learner.last_summary_time = -np.inf
        stats = learner.train(make_batch(learner, seed=2))["train"]
        found.append({key: x for key, x in stats.items() if isinstance(x, float)})
    assert found[0] == found[1]
    assert {"entropy", "kl_divergence", "grad_norm", "policy_loss"} <= set(found[0])


@pytest.mark.parametrize("algo", ["PPO_KL", "KL_PROJECTION"])
def test_the_other_algorithms_with_this_primary_phase(algo, tmp_path):
    one_by_one, replayed = (learner_of(tmp_path / name, box_actions(), algo, learning_rate=1e-3) for name in "ab")
    calls = replaying(replayed)
    assert trained(replayed, 3) == trained(one_by_one, 3)
    assert_same_state(one_by_one, replayed)
    assert calls.replays == 2 * 4 + 1


# -- what a recording does not hold for --------------------------------------------------------------------------------------


def test_recorded_anew_after_a_load_a_new_hyperparameter_and_lost_moments_and_only_then(tmp_path):
    learner, twin = (learner_of(tmp_path / name, num_policies=2) for name in "ab")
    replaying(learner)
    seeds = iter(range(100))

    def update():
        seed = next(seeds)
        for each in (learner, twin):
            each.train(make_batch(each, seed=seed))
        assert_same_state(learner, twin)
        return learner.improvement._graphs.primary.captures

    assert [update() for _ in range(4)] == [0, 1, 1, 1]
    for each in (learner, twin):
        each.save()
        each.set_policy_to_load(0)
    assert [update() for _ in range(2)] == [1, 2], "a checkpoint brings other moments; the batch of before it is too old"
    for each in (learner, twin):
        each.set_new_cfg({"adam_beta1": 0.5, "c_beta": 1.5, "max_grad_norm": 0.1})
    assert [update() for _ in range(2)] == [3, 3], "numbers that are no tensors are part of a recording"
    for each in (learner, twin):
        each.optimizer.state.clear()
    assert [update() for _ in range(3)] == [3, 4, 4], "as after an update that was undone"


def test_a_number_that_is_none_undoes_the_update(tmp_path):
    learner = learner_of(tmp_path)
    replaying(learner)
    trained(learner, 3)
    before = [tensor.clone() for tensor in learner.gate.published.model.state_dict().values()]
    batch = make_batch(learner, seed=7)
    batch["rewards"][0, 0] = torch.nan
    learner.train(batch)
    assert learner.last_record.rolled_back
    assert all(torch.equal(x, y) for x, y in zip(learner.gate.published.model.state_dict().values(), before, strict=True))
    learner.train(make_batch(learner, seed=8))
    assert not learner.last_record.rolled_back


# -- where there is none -----------------------------------------------------------------------------------------------------


def idle(step, device):
    """A recording that does nothing when it is replayed."""
    results = step()
    return lambda: results


def refused(step, device):
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (idle, "RuntimeError: replayed, it moves the weights otherwise: "),
        (refused, "RuntimeError: operation not permitted when stream is capturing"),
    ],
)
def test_a_recording_that_fails_or_does_something_else_is_said_once_and_not_used(broken, said, tmp_path, caplog):
    one_by_one, learner = (learner_of(tmp_path / name) for name in "ab")
    rows = trained(one_by_one, 3)
    learner.train(make_batch(learner, seed=0))
    learner.improvement.use_graphs(broken)
    caplog.clear()
    for seed in (1, 2):
        learner.train(make_batch(learner, seed=seed))
    assert learner.last_record.to_row()["kl_max"] == rows[-1]["kl_max"]
    assert_same_state(one_by_one, learner)
    lines = [record.message for record in caplog.records if "CUDA graphs" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith(
        f"ActorCriticSharedWeights: its gradient steps cannot be CUDA graphs, they are made one by one: {said}"
    )
    assert "more of it" not in lines[0]


def test_packed_sequences_are_not_recorded(tmp_path, caplog):
    learner = learner_of(tmp_path, **LSTM)
    learner.candidate.model.core.core.register_forward_hook(lambda *args: None)  # which may do anything
    assert not known_to_replay(learner.candidate.model)
    calls = replaying(learner)
    trained(learner, 1)
    assert learner.improvement._graphs.primary is None, "auto tries known networks only"

    learner = learner_of(tmp_path / "on", cuda_graphs="on", **LSTM)
    learner.candidate.model.core.core.register_forward_hook(lambda *args: None)
    calls = replaying(learner)
    trained(learner, 2)
    assert calls.replays == 0
    [line] = [record.message for record in caplog.records if "cannot be CUDA graphs" in record.message]
    assert "takes the lengths of episodes" in line


def test_which_networks_are_known(tmp_path):
    for flags in ({}, LSTM, {"actor_critic_share_weights": False, **GRU}):
        assert known_to_replay(learner_of(tmp_path / str(len(flags)), **flags).candidate.model)
    with registered(Dropping):
        learner = learner_of(tmp_path / "own", normalize_input=False)
    assert not known_to_replay(learner.candidate.model)


def test_another_optimizer_and_several_learners_are_told(tmp_path):
    lamb = learner_of(tmp_path / "a", optimizer="lamb")
    replaying(lamb)
    trained(lamb, 1)
    assert "Lamb" in lamb.improvement._graphs._none(True)
    learner = learner_of(tmp_path / "b")
    trained(learner, 1)
    assert learner.improvement._graphs is None, "on a CPU there are none"


def test_a_replayed_update_hides_no_read(tmp_path):
    learner = learner_of(tmp_path, normalize_input=False, learning_rate=1e-6)
    replaying(learner)
    learner.last_summary_time = np.inf
    counts = []
    for seed in range(3):
        batch = make_batch(learner, seed=seed)
        with HostReads() as reads:
            learner.train(batch)
        if seed:  # the first one tests itself
            assert reads.hidden == {}
            assert learner.last_record.host_reads == reads.places[DOOR]
            counts.append(reads.count)
    assert counts == [5, 4], "a recording is compared with the step, which is one more read"


@pytest.mark.parametrize("algo", ["TRPO", "APPO"])
def test_an_algorithm_with_another_primary_phase_refuses_them(algo, tmp_path):
    argv = [*SERIAL, f"--train_dir={tmp_path}", "--experiment=x", f"--algo={algo}"]
    with pytest.raises(train.BadInputError, match=f"--cuda_graphs=off: has no effect with --algo={algo}, leave it out"):
        train.parse_cfg([*argv, "--cuda_graphs=off"])


def test_on_a_cpu_they_are_refused_where_they_are_asked_for(tmp_path):
    argv = [*SERIAL, f"--train_dir={tmp_path}", "--experiment=x", "--device=cpu"]
    with pytest.raises(train.BadInputError) as said:
        train.parse_cfg([*argv, "--cuda_graphs=on"])
    assert str(said.value) == "--cuda_graphs=on: --device=cpu has none; use auto, or --device=gpu"
    assert train.parse_cfg(argv).cuda_graphs == "auto"
