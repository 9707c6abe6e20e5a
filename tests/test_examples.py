"""The examples do what they say: FixPO in one file is the same algorithm as the learner, number for number."""

import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from busy import BUSY

from benchmarks.synthetic import make_batch, make_learner, small_shape

ROOT = Path(__file__).resolve().parents[1]
MINIMAL = ROOT / "examples" / "fixpo_minimal.py"
NAMES = {"critic_linear": "value", "action_parameterization.distribution_linear": "policy"}


@pytest.fixture
def minimal(monkeypatch):
    monkeypatch.syspath_prepend(str(MINIMAL.parent))
    import fixpo_minimal

    return fixpo_minimal


def in_its_words(state):
    """sample-factory's names of weights -> the example's."""
    renamed = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("encoder.encoders.obs.mlp_head"):
            layer = "encoder." + layer.rpartition(".")[2]
        renamed[f"{NAMES.get(layer, layer)}.{kind}"] = tensor.clone()
    return renamed


def test_one_file_and_the_learner_do_the_same(minimal, tmp_path):
    """Weights to float32 rounding, beta, and fixup steps exactly, over 20 updates of the same minibatches."""
    flags = {**BUSY, "normalize_input": False, "max_grad_norm": 0.5, "exploration_loss_coeff": 0.0, "learning_rate": 1e-2}
    flags |= {"num_epochs": 3, "nonlinearity": "tanh", "encoder_mlp_layers": [16, 16], "ppo_clip_value": 0.5}
    shape = small_shape(action_space=gym.spaces.Discrete(4), **flags)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, beta_lr=0.05)
    cfg = learner.cfg
    settings = minimal.Config(
        eps_kl=cfg.eps_kl,
        c_beta=cfg.c_beta,
        beta_init=cfg.beta_init,
        beta_lr=cfg.beta_lr,
        learning_rate=cfg.learning_rate,
        adam_eps=cfg.adam_eps,
        max_grad_norm=cfg.max_grad_norm,
        value_loss_coeff=cfg.value_loss_coeff,
        value_clip=cfg.ppo_clip_value,
        gamma=cfg.gamma,
        gae_lambda=cfg.gae_lambda,
        minibatch=cfg.batch_size,
        epochs=cfg.num_epochs,
    )
    net = minimal.ActorCritic(8, 4, (16, 16))
    net.load_state_dict(in_its_words(learner.param_server.actor_critic.state_dict()))
    one_file = minimal.FixPO(net, settings)
    fixup_steps = 0
    for seed in range(20):
        batch = make_batch(learner, seed=seed)
        obs, dones = batch["obs"]["obs"], batch["dones"].float()
        values = batch["values"].clone()
        with torch.no_grad():
            values[:, -1] = one_file.published(obs[:, -1])[1]
        rewards = batch["rewards"].clone()
        if cfg.value_bootstrap:
            rewards += cfg.gamma * values[:, :-1] * batch["time_outs"] * dones
        advantages, returns = minimal.gae(rewards, dones, values, cfg.gamma, cfg.gae_lambda)
        prepared = {
            "obs": obs[:, :-1],
            "logits": batch["action_logits"],
            "actions": batch["actions"].squeeze(-1).long() if batch["actions"].dim() == 3 else batch["actions"].long(),
            "log_probs": batch["log_prob_actions"],
            "values": values[:, :-1],
            "advantages": advantages,
            "returns": returns,
        }
        report = one_file.improve({name: tensor.flatten(0, 1).clone() for name, tensor in prepared.items()})
        learner.train(batch)
        record = learner.last_record
        assert report.fixup_steps == record.fixup_steps, f"update {seed}"
        assert report.kl_max == pytest.approx(record.kl_max, rel=1e-3, abs=1e-6)
        assert one_file.beta.item() == pytest.approx(record.beta, rel=1e-4)
        for name, tensor in in_its_words(learner.param_server.actor_critic.state_dict()).items():
            torch.testing.assert_close(one_file.published.state_dict()[name], tensor, rtol=1e-4, atol=2e-5, msg=f"{seed} {name}")
        fixup_steps += report.fixup_steps
    assert fixup_steps > 10, "the fixup phase had its part in it"


def test_it_needs_nothing_of_this_project_and_can_be_held_in_the_head():
    text = MINIMAL.read_text()
    imported = re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE)
    assert not {"sample_factory", "sf_fixpo", "benchmarks"} & set(imported)
    assert len(text.splitlines()) <= 300


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_cartpole_in_two_minutes(seed):
    done = subprocess.run([sys.executable, MINIMAL, f"--seed={seed}"], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout.splitlines()[-1].removeprefix("evaluation return ")) >= 475
