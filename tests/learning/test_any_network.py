"""The guarantee for networks that users bring: a matrix of them trained, audited by code that shares nothing, and resumed.

And the self-test: networks that are one function to the actors and another to the learner are refused by name.
"""

import itertools
from pathlib import Path

import gymnasium as gym
import networks
import numpy as np
import pytest
import torch
from busy import BUSY
from updates import run

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape
from sf_fixpo.audit import audit
from sf_fixpo.learning.verification import GuaranteeError

IMAGES = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 16, 16), np.uint8))
CONV = {"encoder_conv_architecture": "convnet_impala", "encoder_conv_mlp_layers": [16], "obs_scale": 255.0}
LARGER = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8))
AXES = {
    "weights": {"shared": {}, "separate": {"actor_critic_share_weights": False}},
    "core": {
        "none": {},
        "lstm": {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8},
        "gru": {"use_rnn": True, "rnn_type": "gru", "rnn_size": 8},
        "registered": {},
    },
    "encoder": {
        "mlp": (None, None, {}),
        "conv": (None, LARGER, CONV),
        "view": (networks.Viewing, None, {}),
        "view of images": (networks.ViewingConv, IMAGES, {"obs_scale": 255.0}),
        "dropout": (networks.Dropping, None, {}),
        "batch norm": (networks.BatchNormed, None, {}),
        "tied": (networks.Tied, None, {}),
        "no float": (networks.Counting, None, {}),
    },
    "actions": {
        "discrete": (gym.spaces.Discrete(5), {}),
        "tuple": (gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)]), {}),
        "learned deviation": (box_actions(3), {"adaptive_stddev": True}),
        "fixed deviation": (box_actions(3), {"adaptive_stddev": False}),
    },
    "lag": {"none": 0, "five": 5},
    "reference": {"previous": {"reference": "previous"}, "behaviour": {"reference": "behaviour"}},
    "statistics": {"with": {"normalize_input": True}, "without": {"normalize_input": False}},
}


def pairwise(axes):
    """Few cases in which every two values of different axes meet; greedy, always the same."""
    names = list(axes)
    todo = {((a, x), (b, y)) for (a, b) in itertools.combinations(names, 2) for x in axes[a] for y in axes[b]}
    cases = []
    while todo:
        case: dict = {}
        (a, x), (b, y) = min(todo)
        case[a], case[b] = x, y
        for name in names:
            if name not in case:
                case[name] = max(
                    axes[name],
                    key=lambda value, name=name: sum(
                        (((n, v), (name, value)) in todo) or (((name, value), (n, v)) in todo) for n, v in case.items()
                    ),
                )
        todo -= {((a, case[a]), (b, case[b])) for a, b in itertools.combinations(names, 2)}
        cases.append(tuple(case[name] for name in names))
    return cases


def test_the_matrix_has_every_pair():
    cases = pairwise(AXES)
    for (i, a), (j, b) in itertools.combinations(enumerate(AXES), 2):
        assert {(case[i], case[j]) for case in cases} == set(itertools.product(AXES[a], AXES[b]))


@pytest.mark.parametrize("case", pairwise(AXES), ids=" ".join)
def test_every_version_of_any_network_is_inside_the_bound_and_a_resumed_one_too(case, tmp_path):
    weights, core, encoder, actions, lag, reference, statistics = (
        axis[value] for axis, value in zip(AXES.values(), case, strict=True)
    )
    (make_encoder, obs_space, encoder_flags), (action_space, action_flags) = encoder, actions
    flags = {**BUSY, **weights, **core, **encoder_flags, **action_flags, **statistics, "eps_kl": 0.02}
    shape = small_shape(obs_space or small_shape().obs_space, action_space=action_space, **flags)
    settings = {"train_dir": tmp_path, "audit_every": 1, "max_fixup_steps": 10, **reference}
    with networks.registered(make_encoder, networks.ResidualCore if case[1] == "registered" else None):
        learner = make_learner("FIXPO", shape, **settings)
        run(learner, 5, lag)
        learner.save()
        published = {name: tensor.clone() for name, tensor in learner.gate.published.model.state_dict().items()}

        other = make_learner("FIXPO", shape, **settings)
        assert other.gate.version == learner.gate.version
        for policy in (other.gate.published, other.candidate, other.verifier.staged):
            assert all(torch.equal(tensor, published[name]) for name, tensor in policy.model.state_dict().items())
        rows = run(other, 3, lag, first_seed=5)
        findings = audit(Path(other.folder), quiet=True)  # raises at the first violation
    assert len(findings) == len(rows) == 8
    assert max(row["kl_max"] for row in rows) > 0.05 * 0.02, "the bound was not kept by standing still"


@pytest.mark.parametrize("lag", [5, 35])
@pytest.mark.parametrize("reference", ["previous", "behaviour"])
@pytest.mark.parametrize("core", ["none", "lstm"])
def test_old_data(lag, reference, core, tmp_path):
    flags = {**BUSY, **AXES["core"][core], "num_epochs": 1, "eps_kl": 0.02}
    learner = make_learner("FIXPO", small_shape(**flags), train_dir=tmp_path, audit_every=1, reference=reference)
    rows = run(learner, lag + 8, lag)
    findings = audit(Path(learner.folder), quiet=True)
    assert len(findings) == len(rows)
    stale = [row for row in rows if row["stale_fraction"] > 0]
    assert bool(stale) == (reference == "behaviour")
    assert all(row["kl_max_stale"] <= row["eps_kl"] for row in stale)


def test_where_every_state_is_stale_all_of_them_are_held_to_the_previous_policy(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, audit_every=1, reference="behaviour")
    run(learner, 2)
    batch = make_batch(learner, seed=2)
    batch["policy_version"] -= 1
    # an actor far away, and a gradient that is as steep as importance weights make it
    batch["action_logits"] += 8.0 * torch.randn_like(batch["action_logits"])
    learner.train(batch)
    record = learner.last_record
    assert record.stale_fraction == 1.0
    assert record.kl_max == 0.0
    assert 0.0 < record.kl_max_stale <= record.eps_kl
    finding = audit(Path(learner.folder), quiet=True)[-1]
    assert finding.checked == finding.stale == 64
    assert finding.kl_max_stale == pytest.approx(record.kl_max_stale, rel=1e-3)


# -- the self-test ------------------------------------------------------------------------------------------------------------


def train_once(learner, batch=None):
    return learner.train(make_batch(learner, seed=0) if batch is None else batch)


def test_a_network_that_branches_on_training_is_refused_by_name(tmp_path):
    with networks.registered(networks.Branching):
        learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
        with pytest.raises(GuaranteeError, match=r"training mode is another function.*encoder \(Branching\)"):
            train_once(learner)


def test_noise_in_eval_mode_is_refused(tmp_path):
    with networks.registered(networks.Noisy):
        learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
        with pytest.raises(GuaranteeError, match=r"not the function that actors run.*noise"):
            train_once(learner)


def test_a_core_that_treats_sequences_otherwise_is_refused(tmp_path):
    with networks.registered(core=networks.SequenceCore):
        learner = make_learner("FIXPO", small_shape(use_rnn=True, rnn_size=8, **BUSY), train_dir=tmp_path)
        with pytest.raises(GuaranteeError, match="single steps"):
            train_once(learner)


def test_a_forward_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sf_fixpo.learning.networks.ActorCriticSharedWeights", networks.OwnForward)
    learner = make_learner("FIXPO", small_shape(**{**BUSY, "normalize_input": False}), train_dir=tmp_path)
    batch = make_batch(learner, seed=0)
    # as a policy worker does
    obs = {"obs": batch["obs"]["obs"][:, :-1].flatten(0, 1)}
    acted = learner.gate.published.model(obs, batch["rnn_states"][:, :-1].flatten(0, 1))
    batch["action_logits"].copy_(acted["action_logits"].view_as(batch["action_logits"]))
    with pytest.raises(GuaranteeError, match=r"OwnForward.*forward_head"):
        train_once(learner, batch)


def test_the_self_test_leaves_nothing_behind(tmp_path):
    """Batch statistics, the counter of calls, random numbers and modes are as they were."""
    from sf_fixpo.learning.self_test import parameters_of_the_policy, training_is_the_same_function

    for encoder in (networks.BatchNormed, networks.Counting):
        with networks.registered(encoder):
            shape = small_shape(**{**BUSY, "learning_rate": 1e-3, "normalize_input": False})
            learner = make_learner("FIXPO", shape, train_dir=tmp_path / encoder.__name__)
            train_once(learner)
            batch, _ = learner._update
            before = {key: buffer.clone() for key, buffer in learner.candidate.state.buffers.items()}
            modes = [module.training for module in learner.candidate.model.modules()]
            drawn = torch.get_rng_state()
            training_is_the_same_function(learner.candidate, batch)
            parameters_of_the_policy(learner.candidate, batch)
            assert all(torch.equal(buffer, before[key]) for key, buffer in learner.candidate.state.buffers.items())
            assert [module.training for module in learner.candidate.model.modules()] == modes
            assert torch.equal(torch.get_rng_state(), drawn)


def test_it_is_made_once_and_again_after_a_resume(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("sf_fixpo.learning.learner.training_is_the_same_function", lambda *args: calls.append(args))
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    run(learner, 3)
    assert len(calls) == 1
    learner.save()
    run(make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path), 2)
    assert len(calls) == 2


def test_the_parameters_of_the_policy_are_all_but_the_critics(tmp_path):
    for share, critic in ((True, ("critic_linear",)), (False, ("critic_linear", "critic_encoder", "critic_decoder"))):
        shape = small_shape(actor_critic_share_weights=share, normalize_returns=True, **BUSY)
        learner = make_learner("FIXPO", shape, train_dir=tmp_path / str(share))
        train_once(learner)
        assert learner._critics
        assert all(name.startswith((*critic, "returns_normalizer")) for name in learner._critics)
        names = dict(learner.actor_critic.named_parameters())
        assert {n for n in names if n.startswith(critic)} | {n for n in learner._critics if n not in names} == set(
            learner._critics
        )
