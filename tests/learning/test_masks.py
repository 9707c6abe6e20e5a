"""Policies under a mask of actions: the distribution against a NumPy oracle, and the guarantee, with the forbidden at 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import networks
import numpy as np
import pytest
import torch
from busy import BUSY
from hypothesis import given
from hypothesis import strategies as st
from sample_factory.algo.utils.context import global_model_factory
from updates import run

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape
from sf_fixpo.algorithm.trust_region import action_entropy, directed_kl
from sf_fixpo.audit import ViolationError, audit
from sf_fixpo.learning.masks import ACTION_MASK, MASKED, mask_parameters, masked_distribution
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.records import audit_files
from sf_fixpo.records.recomputation import policy_kl

TWO_HEADS = gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Discrete(2)])


def masked_space(actions: int) -> gym.spaces.Dict:
    return gym.spaces.Dict(
        {"obs": gym.spaces.Box(-np.inf, np.inf, (8,), np.float32), ACTION_MASK: gym.spaces.Box(0, 1, (actions,), np.int8)}
    )


# -- one distribution ---------------------------------------------------------------------------------------------------------


@st.composite
def heads_under_masks(draw):
    """Sizes of the heads, and for one state two policies' logits and a mask that allows something of each head."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    numbers = st.floats(-30, 30, width=32)
    logits = [[draw(numbers) for _ in range(sum(sizes))] for _ in range(2)]
    mask = []
    for size in sizes:
        head = [draw(st.booleans()) for _ in range(size)]
        head[draw(st.integers(0, size - 1))] = True
        mask += head
    return sizes, logits, mask


def oracle(sizes, logits, mask):
    """Per head the probabilities of what is allowed alone, as if there were nothing else."""
    found = []
    for head, allowed in zip(*(np.split(np.asarray(x), np.cumsum(sizes)[:-1]) for x in (logits, mask)), strict=True):
        x = head[allowed].astype(np.float64)
        e = np.exp(x - x.max())
        found.append(e / e.sum())
    return found


def oracle_kl(p, q):
    return sum(float((a * (np.log(a) - np.log(b))).sum()) for a, b in zip(p, q, strict=True))


@given(heads_under_masks())
def test_it_is_the_distribution_over_what_is_allowed(case):
    sizes, logits, mask = case
    space = gym.spaces.Tuple([gym.spaces.Discrete(size) for size in sizes]) if len(sizes) > 1 else gym.spaces.Discrete(sizes[0])
    raw, allowed = torch.tensor(logits, requires_grad=True), torch.tensor([mask, mask])
    parameters = mask_parameters(raw, allowed.to(torch.int8))
    distribution = masked_distribution(space, parameters)
    p, q = (oracle(sizes, row, mask) for row in logits)
    heads = getattr(distribution, "distributions", [distribution])
    for i, head in enumerate(heads):
        whole = np.split(np.asarray(mask), np.cumsum(sizes)[:-1])[i]
        assert (head.probs[0].detach().numpy()[~whole] == 0).all(), "not small: 0"
        np.testing.assert_allclose(head.probs[0].detach().numpy()[whole], p[i], rtol=1e-4, atol=1e-7)

    entropy = sum(-float((x * np.log(x)).sum()) for x in p)
    spec = [("categorical", size) for size in sizes]
    for found in (distribution.entropy(), action_entropy(parameters, spec)):
        assert found[0].item() == pytest.approx(entropy, abs=1e-4)
    uniform = [np.full(len(x), 1 / len(x)) for x in p]
    symmetric = 0.5 * (oracle_kl(p, uniform) + oracle_kl(uniform, p))
    assert distribution.symmetric_kl_with_uniform_prior()[0].item() == pytest.approx(symmetric, rel=1e-3, abs=1e-4)
    for direction, expected in (("pi_ref", oracle_kl(p, q)), ("ref_pi", oracle_kl(q, p))):
        kl = directed_kl(parameters[:1], parameters[1:], spec, direction)
        assert kl.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
        (gradient,) = torch.autograd.grad(kl.sum(), raw, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient[~allowed] == 0).all(), "what is forbidden pulls at nothing"
    exact = policy_kl(parameters[:1].detach(), parameters[1:].detach(), spec)
    assert exact.item() == pytest.approx(oracle_kl(p, q), rel=1e-9, abs=1e-9)


def test_only_what_is_allowed_is_drawn_and_its_likelihood_is_that():
    mask = torch.tensor([[1, 0, 1, 0, 1]] * 4000)
    parameters = mask_parameters(torch.tensor([[9.0, 50.0, 8.0, 0.0, 1.0]]).repeat(4000, 1), mask)
    distribution = masked_distribution(TWO_HEADS, parameters)
    actions, log_probs = distribution.sample_actions_log_probs()
    assert set(map(tuple, actions.tolist())) == {(0, 1), (2, 1)}
    expected = 1 / (1 + np.exp(-1.0))
    assert (actions[:, 0] == 0).float().mean() == pytest.approx(expected, abs=0.03)
    first = log_probs[actions[:, 0] == 0][0].exp().item()
    assert first == pytest.approx(expected, rel=1e-5)


def test_a_state_without_a_mask_makes_no_number_that_is_none():
    """As samples of agents that do not act have it: all zeros."""
    parameters = mask_parameters(torch.randn(2, 5), torch.zeros(2, 5))
    distribution = masked_distribution(TWO_HEADS, parameters)
    for found in (distribution.entropy(), distribution.symmetric_kl_with_uniform_prior(), distribution.sample()):
        assert found.isfinite().all()


# -- the learner --------------------------------------------------------------------------------------------------------------

CASES = {
    "shared": ({}, gym.spaces.Discrete(5), 0),
    "separate, two heads": ({"actor_critic_share_weights": False}, TWO_HEADS, 5),
    "shared LSTM, two heads": ({"use_rnn": True, "rnn_type": "lstm"}, TWO_HEADS, 5),
    "separate GRU": ({"use_rnn": True, "rnn_type": "gru", "actor_critic_share_weights": False}, gym.spaces.Discrete(5), 0),
    "symmetric KL": (
        {"exploration_loss": "symmetric_kl", "exploration_loss_coeff": 0.01},
        gym.spaces.Discrete(5),
        0,
    ),
}


def learner_of(folder, algo="FIXPO", space=TWO_HEADS, **flags):
    shape = small_shape(masked_space(5), space, **{**BUSY, **flags})
    plain = {key: value for key, value in shape.cfg.items() if key != "eps_kl"}  # sample-factory's learner knows no such flag
    shape = replace(shape, cfg=plain, fixpo={"eps_kl": BUSY["eps_kl"], "audit_every": 1, "max_fixup_steps": 10})
    return make_learner(algo, shape, train_dir=folder)


@pytest.mark.parametrize("case", CASES)
def test_every_version_is_inside_the_bound_and_gives_the_forbidden_nothing(case, tmp_path):
    flags, space, lag = CASES[case]
    learner = learner_of(tmp_path, space=space, **flags)
    rows = run(learner, 5, lag)
    learner.save()
    assert not any(ACTION_MASK in name for name in learner.gate.published.model.state_dict()), "no weights, no statistics"
    assert len(audit(Path(learner.folder), quiet=True)) == len(rows) == 5
    assert max(row["kl_max"] for row in rows) > 0.05 * BUSY["eps_kl"], "the bound was not kept by standing still"
    assert not any(row["rolled_back"] for row in rows)
    batch, _ = learner._update
    for parameters in (batch.behaviour, learner.verifier.parameters()):
        assert (parameters[batch.raw_obs[ACTION_MASK] == 0] == MASKED).all()
        assert (parameters[batch.raw_obs[ACTION_MASK] != 0] > -1e3).all()


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")  # sample-factory's learner does
@pytest.mark.parametrize("algo", ["TRPO", "PPO_KL", "APPO"])
def test_other_algorithms_heed_it_too(algo, tmp_path, monkeypatch):
    monkeypatch.setattr(global_model_factory(), "make_actor_critic_func", make_actor_critic)  # as the runner does for all
    learner = learner_of(tmp_path, algo, exploration_loss="symmetric_kl", exploration_loss_coeff=0.01)
    for i in range(3):
        learner.train(make_batch(learner, seed=i))
    assert algo == "APPO" or not learner.last_record.rolled_back
    assert all(x.isfinite().all() for x in learner.actor_critic.parameters())
    assert max(x.abs().max() for x in learner.actor_critic.parameters()) < 10


def test_a_users_encoder_does_not_see_it(tmp_path):
    class Everything(networks.UserEncoder):
        def forward(self, obs_dict):
            assert list(obs_dict) == ["obs"]
            return super().forward(obs_dict)

    with networks.registered(Everything):
        learner = learner_of(tmp_path, actor_critic_share_weights=False)
        assert len(run(learner, 2)) == 2
        assert len(audit(Path(learner.folder), quiet=True)) == 2


def test_the_audit_finds_an_actor_that_thought_of_what_is_forbidden(tmp_path):
    learner = learner_of(tmp_path)
    run(learner, 2)
    path = sorted(Path(learner.folder, "audit").glob("*.pt"))[-1]
    contents = torch.load(path, weights_only=True)
    state = int((contents["obs"][ACTION_MASK] == 0).any(dim=1).nonzero()[5])
    forbidden = contents["obs"][ACTION_MASK][state] == 0
    # of an older version, which nobody can recompute; and at a KL of 0 over what is allowed
    contents["policy_version_of"] -= 1
    contents["action_logits"][state, forbidden] = -3.0
    torch.save(contents, path)
    with pytest.raises(ViolationError, match=rf"state {state}: .*give an action that the environment forbids a probability"):
        audit(Path(learner.folder), quiet=True)
    assert audit_files.load(path).action_logits[state].max() > MASKED


def test_health_knows_no_largest_entropy_under_a_mask(tmp_path):
    assert learner_of(tmp_path / "a").health._largest is None
    assert make_learner("FIXPO", small_shape(action_space=TWO_HEADS), train_dir=tmp_path / "b").health._largest > 1
    assert make_learner("FIXPO", small_shape(action_space=box_actions()), train_dir=tmp_path / "c").health._largest is None
