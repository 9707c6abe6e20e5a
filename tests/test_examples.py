"""The examples do what they say: FixPO in one file is the same algorithm as the learner, number for number."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from busy import BUSY
from programs import started

from benchmarks.synthetic import make_batch, make_learner, small_shape

MINIMAL = Path(__file__).resolve().parents[1] / "examples" / "fixpo_minimal.py"

# sample-factory's layers of a shared MLP -> the example's
LAYERS = {
    "encoder.encoders.obs.mlp_head": "policy.0",
    "action_parameterization.distribution_linear": "policy.1",
    "critic_linear": "value",
}
WIDTH = 16
NETWORK = {"use_rnn": False, "nonlinearity": "tanh", "encoder_mlp_layers": [WIDTH, WIDTH], "actor_critic_share_weights": True}
PLAIN = {
    **{name: False for name in ("normalize_input", "normalize_returns", "shuffle_minibatches", "value_bootstrap")},
    "exploration_loss_coeff": 0.0,
    "max_grad_norm": 0.5,
    "adam_eps": 1e-8,
}
# where the fixup phase finds an end; where it halves its learning rate, gives up and goes back
CASES = {
    "fixup": {"num_epochs": 3, "learning_rate": 2e-2, "beta_init": 0.1},
    "way_back": {"learning_rate": 3e-2, "beta_init": 0.1, "max_fixup_steps": 2, "fixup_plateau_steps": 1},
}


@pytest.fixture
def minimal(monkeypatch):
    monkeypatch.syspath_prepend(str(MINIMAL.parent))
    import fixpo_minimal

    return fixpo_minimal


def renamed(state):
    """The learner's published weights under the example's names; every one has to be known there."""
    pattern = re.compile("|".join(map(re.escape, LAYERS)))
    return {pattern.sub(lambda match: LAYERS[match[0]], name): tensor.clone() for name, tensor in state.items()}


def minimal_learner(minimal, learner):
    cfg = learner.cfg
    same = ("eps_kl", "c_beta", "beta_init", "beta_lr", "beta_max", "max_fixup_steps", "fixup_plateau_steps", "learning_rate")
    same += ("max_grad_norm", "value_loss_coeff", "gamma", "gae_lambda")
    other = {"value_clip": cfg.ppo_clip_value, "minibatch": cfg.batch_size, "epochs": cfg.num_epochs}
    net = minimal.ActorCritic(8, 4, WIDTH)
    net.load_state_dict(renamed(learner.param_server.actor_critic.state_dict()))
    return minimal.FixPO(net, minimal.Config(**{name: cfg[name] for name in same}, **other))


@torch.no_grad()
def prepared(minimal, one_file, batch):
    """[N, ...] tensors of sample-factory's raw batch [E, T, ...], with the example's own values and advantages."""
    obs, cfg = batch["obs"]["obs"], one_file.cfg
    last_value = one_file.published(obs[:, -1])[1]
    values = torch.cat([batch["values"][:, :-1], last_value.unsqueeze(1)], 1)
    advantages, returns = minimal.gae(batch["rewards"], batch["dones"].float(), values, cfg.gamma, cfg.gae_lambda)
    tensors = {
        "obs": obs[:, :-1],
        "logits": batch["action_logits"],
        "actions": batch["actions"].reshape(returns.shape),
        "log_probs": batch["log_prob_actions"],
        "values": values[:, :-1],
        "advantages": advantages,
        "returns": returns,
    }
    return {name: tensor.flatten(0, 1).clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("case", CASES)
def test_one_file_and_the_learner_do_the_same(case, minimal, tmp_path):
    """Weights and beta to float32 rounding, and fixup steps exactly, over 20 updates of the same minibatches."""
    flags = {**BUSY, **NETWORK, **PLAIN, **CASES[case]}
    fixpo = {name: flags.pop(name) for name in ("eps_kl", "beta_init", "max_fixup_steps", "fixup_plateau_steps") if name in flags}
    shape = small_shape(action_space=gym.spaces.Discrete(4), **flags)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, beta_lr=0.05, **fixpo)
    one_file = minimal_learner(minimal, learner)
    records = []
    for seed in range(20):
        batch = make_batch(learner, seed=seed)
        kl_max, fixup_steps = one_file.improve(prepared(minimal, one_file, batch))
        learner.train(batch)
        records.append(record := learner.last_record)
        assert fixup_steps == record.fixup_steps, f"update {seed}"
        assert kl_max == pytest.approx(record.kl_max, rel=1e-3, abs=1e-6)
        assert one_file.beta.item() == pytest.approx(record.beta, rel=1e-5)
        expected = renamed(learner.param_server.actor_critic.state_dict())
        difference = max((one_file.published.state_dict()[k] - expected[k]).abs().max() for k in expected)
        print(seed, fixup_steps, record.backtracks, record.lr_halvings, float(difference), kl_max-record.kl_max, one_file.beta.item()-record.beta)
        torch.testing.assert_close(dict(one_file.published.state_dict()), expected, rtol=0, atol=1e-5)
    assert sum(record.fixup_steps for record in records) > 10
    if case == "way_back":
        assert sum(record.backtracks for record in records) > 1
        assert sum(record.lr_halvings for record in records) > 1
