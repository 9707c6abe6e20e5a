"""The examples do what they say: FixPO in one file is the same algorithm as the learner, number for number."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from statistics import fmean

import gymnasium as gym
import pytest
import torch
from busy import BUSY
from programs import PARALLEL, SERIAL, rows_of, started

from benchmarks.synthetic import make_batch, make_learner, small_shape

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MINIMAL = EXAMPLES / "fixpo_minimal.py"

# sample-factory's layers of a shared MLP -> the example's
LAYERS = {
    "encoder.encoders.obs.mlp_head": "policy.0",
    "action_parameterization.distribution_linear": "policy.1",
    "critic_linear": "value",
}
WIDTH = 16
PLAIN = {
    **dict.fromkeys(("normalize_input", "normalize_returns", "shuffle_minibatches", "value_bootstrap", "use_rnn"), False),
    "exploration_loss_coeff": 0.0,
    "batch_size": 16,
    "num_batches_per_epoch": 4,
    "max_grad_norm": 0.5,
    "adam_eps": 1e-8,
}
# what has to happen in an update, by the name of the record's field, and settings under which it does
CASES = {
    "fixup_steps": {"num_epochs": 3, "learning_rate": 2e-2, "beta_init": 0.1},
    "lr_halvings": {"learning_rate": 3e-2, "fixup_plateau_steps": 1},
    "backtracks": {"learning_rate": 3e-2, "beta_init": 0.0, "max_fixup_steps": 1},
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


@pytest.mark.parametrize("happens", CASES)
def test_one_file_and_the_learner_do_the_same(happens, minimal, tmp_path):
    """Weights and beta to float32 rounding, and fixup steps exactly, over 20 updates of the same minibatches."""
    settings = {**BUSY, **PLAIN, "beta_lr": 0.05, **CASES[happens]}
    shape = small_shape(action_space=gym.spaces.Discrete(4), encoder_mlp_layers=[WIDTH, WIDTH])
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, **settings)
    one_file = minimal_learner(minimal, learner)
    happened = 0
    for seed in range(20):
        batch = make_batch(learner, seed=seed)
        kl_max, fixup_steps = one_file.improve(prepared(minimal, one_file, batch))
        learner.train(batch)
        record = learner.last_record
        happened += getattr(record, happens)
        assert fixup_steps == record.fixup_steps, f"update {seed}"
        assert kl_max == pytest.approx(record.kl_max, abs=1e-5)
        # torch's Adam counts its steps in float64, the learner's multiplier in float32
        assert one_file.beta.item() == pytest.approx(record.beta, abs=5e-5)
        published = renamed(learner.param_server.actor_critic.state_dict())
        torch.testing.assert_close(dict(one_file.published.state_dict()), published, rtol=0, atol=1e-5)
    assert happened > 1


def test_a_policy_that_has_left_the_trust_region_is_not_published(minimal, monkeypatch):
    """The final check does not rely on the phases before it: an error, and the weights that act stay as they were."""
    one_file = minimal.FixPO(minimal.ActorCritic(3, 2, 8), minimal.Config(minibatch=16, learning_rate=1.0, beta_init=0.0))
    obs, actions = torch.randn(64, 3), torch.randint(2, (64,))
    with torch.no_grad():
        policy, values = one_file.published(obs)
    log_probs = policy.log_prob(actions)
    advantages = torch.randn(64)
    batch = {"obs": obs, "logits": policy.logits, "actions": actions, "log_probs": log_probs, "values": values}
    batch |= {"advantages": advantages, "returns": values + advantages}
    before = {name: tensor.clone() for name, tensor in one_file.published.state_dict().items()}
    monkeypatch.setattr(one_file, "fixup_phase", lambda minibatches: (0, True))
    with pytest.raises(RuntimeError, match="after the fixup phase"):
        one_file.improve(batch)
    torch.testing.assert_close(dict(one_file.published.state_dict()), before, rtol=0, atol=0)
    batch["advantages"][0] = torch.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        one_file.improve(batch)
    torch.testing.assert_close(dict(one_file.published.state_dict()), before, rtol=0, atol=0)


def test_it_needs_nothing_of_this_project_and_can_be_held_in_the_head():
    text = MINIMAL.read_text()
    nodes = list(ast.walk(ast.parse(text)))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not {"sample_factory", "sf_fixpo", "benchmarks", None} & {module and module.split(".")[0] for module in modules}
    assert len(text.splitlines()) <= 240


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_cartpole_in_two_minutes(seed, tmp_path):
    with started(tmp_path, MINIMAL, f"--seed={seed}") as run:
        assert run.wait(120) == 0, run.report()
    assert float(run.stdout.splitlines()[-1].removeprefix("evaluation return ")) >= 475


# -- FixPO in a loop of another kind


def test_fixpo_in_a_cleanrl_loop_keeps_the_bound_and_is_short(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fixpo_in_cleanrl

    assert len((EXAMPLES / "fixpo_in_cleanrl.py").read_text().splitlines()) < 60
    # a learning rate that leaves the trust region in every update, and is brought back
    largest = [kl_max for kl_max, _ in fixpo_in_cleanrl.train(updates=4, learning_rate=1e-2)]
    assert all(0 < kl_max <= fixpo_in_cleanrl.EPS_KL for kl_max in largest)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fixpo_in_a_cleanrl_loop_learns_cartpole(seed, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fixpo_in_cleanrl

    log = list(fixpo_in_cleanrl.train(seed=seed))
    assert max(kl_max for kl_max, _ in log) <= fixpo_in_cleanrl.EPS_KL
    assert log[0][1] < 60
    assert 1 / fmean(1 / length for _, length in log[-20:]) > 300


# -- environments and networks of a user's own


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        pytest.param("custom_env", SERIAL[1:], id="custom_env"),
        pytest.param("custom_network", PARALLEL, id="custom_network", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_users_own_module_trains_and_its_audit_holds(name, flags, tmp_path):
    flags = [*flags, f"--train_dir={tmp_path}", "--experiment=own", "--train_for_env_steps=192", "--audit_every=1"]
    with started(tmp_path / "out", EXAMPLES / f"{name}.py", *flags) as run:
        assert run.wait(120) == 0, run.report()
        run.assert_nothing_left()
    assert len(rows_of(tmp_path / "own")) >= 3
    path = {"PYTHONPATH": f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    judge = ("-m", "sf_fixpo.evaluate", tmp_path / "own", "--episodes=2", "--workers=1")
    # the module is imported by name, for the environment; the script that has registered a network is remembered
    remembered = json.loads((tmp_path / "own" / "config.json").read_text())["script"]
    assert remembered.get("path", "").endswith("custom_network.py") == (name == "custom_network"), (
        "who registers no network is not needed"
    )
    for number, argv in enumerate([("-m", "sf_fixpo.audit", tmp_path / "own"), judge]):
        with started(tmp_path / str(number), *argv, env=path if name == "custom_env" else None) as run:
            assert run.wait(60) == 0, run.report()


@pytest.mark.slow
def test_a_network_whose_script_is_gone_is_missed_by_name(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text((EXAMPLES / "custom_network.py").read_text())
    flags = [*PARALLEL, f"--train_dir={tmp_path}", "--experiment=own", "--train_for_env_steps=192", "--audit_every=1"]
    with started(tmp_path / "out", script, *flags) as run:
        assert run.wait(120) == 0, run.report()
    script.unlink()
    for program in ("audit", "evaluate"):
        with started(tmp_path / program, "-m", f"sf_fixpo.{program}", tmp_path / "own") as run:
            assert run.wait(60) == 2, "it was the user's network that was trained"
        assert f"{script}: no such file" in run.stderr
