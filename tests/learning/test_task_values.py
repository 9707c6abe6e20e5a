"""A learner with values of several tasks: what actors record, what is published, what it is for, what is refused."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import ActorCriticSharedWeights
from test_values import LSTM, TASKS, make, task_space
from updates import run

from benchmarks.synthetic import box_actions, fill_policy_outputs, make_batch, take_snapshot
from sf_fixpo.algorithm.config import faults
from sf_fixpo.audit import audit
from sf_fixpo.learning.masks import ACTION_MASK
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.learning.policy import forward
from sf_fixpo.learning.tasks import TASK_ID
from sf_fixpo.learning.values import in_returns, of_task, scope_of, value_each_task
from sf_fixpo.running.fit import checkpoint_faults, env_faults
from sf_fixpo.running.folders import saved_states

# -- actors and learner -------------------------------------------------------------------------------------------------------

NETWORKS = {
    "shared": {},
    "separate": {"actor_critic_share_weights": False},
    "lstm": LSTM,
    "separate lstm": {**LSTM, "actor_critic_share_weights": False},
    "masked": {"space": task_space(**{ACTION_MASK: gym.spaces.Box(0, 1, (4,), np.int8)})},
}


@pytest.mark.parametrize("scope", ["per_task", "popart"])
@pytest.mark.parametrize("case", NETWORKS)
def test_what_actors_record_is_the_learners_value_of_their_task_in_units_of_returns(case, scope, tmp_path):
    flags = {"normalize_input": False, "recurrence": -1, **NETWORKS[case]}
    if "space" in flags:
        flags["action_space"] = gym.spaces.Discrete(4)
    learner = make(tmp_path, scope, **flags)
    for seed in range(2):
        learner.train(with_masks(learner, seed))
    batch, model = with_masks(learner, 5), learner.gate.published.model
    obs, states = batch["obs"][:, 3], batch["rnn_states"][:, 3]
    with torch.no_grad():
        seen = prepare_and_normalize_obs(model, TensorDict(obs))
        values = model(seen, states)["values"]
        alone = model(seen, states, values_only=True)["values"]
        outputs = forward(model, seen, states, None)["values"]
    ids = obs[TASK_ID].reshape(-1).long()
    assert values.shape == alone.shape == ids.shape
    assert len(set(ids.tolist())) > 1
    assert torch.equal(values, alone)
    moments = model.returns_normalizer
    own = of_task(outputs, ids if scope == "popart" else None)
    torch.testing.assert_close(own * moments.deviation.float()[ids] + moments.running_mean.float()[ids], values)
    torch.testing.assert_close(batch["values"][:, 3], values, rtol=1e-4, atol=1e-5)
    # nobody knows the task: of all
    of_all = moments.recorded(outputs, {"obs": obs["obs"]})
    assert of_all.shape == (len(ids), TASKS)
    torch.testing.assert_close(of_task(of_all, ids), values)


def with_masks(learner, seed):
    """A batch whose masks, where it has any, allow something."""
    batch = make_batch(learner, seed=seed)
    if ACTION_MASK in batch["obs"]:
        batch["obs"][ACTION_MASK][..., 0] = 1
        fill_policy_outputs(learner, batch, seed)
    return batch


def test_a_value_means_what_it_meant_when_it_was_recorded(tmp_path):
    """However far the statistics have moved since: advantages and targets are made of the returns that actors expected."""
    learner = make(tmp_path)
    old = take_snapshot(learner)
    for seed in range(3):
        batch = make_batch(learner, seed=seed)
        batch["rewards"].mul_(50)
        learner.train(batch)
    batch = make_batch(learner, seed=9, snapshots=[old])
    said = batch["values"][:, :-1].flatten().clone()
    learner.train(batch)
    model, samples = learner.gate.published.model, learner._update[0].samples
    moments, ids = model.returns_normalizer, learner._update[0].task_ids
    assert (moments.deviation > 5).all(), "1 when they were recorded"
    heard = samples["values"] * moments.deviation.float()[ids] + moments.running_mean.float()[ids]
    torch.testing.assert_close(heard, said, rtol=1e-4, atol=1e-3)
    assert in_returns(model, said) is said
    gain = samples["returns"] - samples["values"]
    torch.testing.assert_close(gain, samples["advantages"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scope", ["per_task", "popart"])
@pytest.mark.parametrize("flags", [{}, {**LSTM, "actor_critic_share_weights": False}], ids=["mlp", "separate lstm"])
def test_what_is_published_is_inside_the_bound_and_the_audit_reads_it(flags, scope, tmp_path):
    learner = make(tmp_path, scope, audit_every=1, **flags)
    rows = run(learner, 6, invalid_share=0.1)
    assert all(row["kl_max"] <= row["eps_kl"] for row in rows)
    assert sum(row["fixup_steps"] for row in rows) > 0
    assert len(audit(Path(learner.folder), quiet=True)) == 6


@pytest.mark.parametrize("algo", ["TRPO", "PPO_KL", "KL_PROJECTION"])
def test_the_other_algorithms_take_it_too(algo, tmp_path):
    learner = make(tmp_path, algo=algo, action_space=box_actions())
    run(learner, 2)
    assert all(x.isfinite().all() for x in learner.gate.published.state.clone_tensors().values())
    assert (learner.gate.published.model.returns_normalizer.count > 0).all()
    assert not learner.last_record.rolled_back


# -- what it is for -----------------------------------------------------------------------------------------------------------

SCALES = torch.tensor([1.0, 1000.0])


def two_scales(learner, seed, sign):
    """Rewards that follow the observation: up to 1.5 of one task, up to 1500 and by `sign` of the other."""
    batch = make_batch(learner, seed=seed, done_rate=0.3)
    ids = torch.arange(len(batch["rewards"])) % 2
    batch["obs"][TASK_ID].copy_(ids.int().view(-1, 1, 1).expand_as(batch["obs"][TASK_ID]))
    batch["obs"]["obs"].copy_(torch.randn(batch["obs"]["obs"].shape, generator=torch.Generator().manual_seed(seed)))
    fill_policy_outputs(learner, batch, seed)
    seen, signs = batch["obs"]["obs"][:, :-1], torch.where(ids == 0, 1.0, sign).unsqueeze(1)
    batch["rewards"].copy_(SCALES[ids].unsqueeze(1) * torch.tanh(signs * seen[..., 0] + 0.5 * seen[..., 1]))
    return batch


def explained(scope, folder, sign, seed=0):
    """[2] mean explained variance of each task in the last four of sixteen updates; docs/multitask.md has it of five seeds."""
    flags = {"batch_size": 256, "num_epochs": 3, "learning_rate": 1e-2, "gamma": 0.3, "eps_kl": 5.0, "normalize_input": False}
    learner = make(folder, scope, space=task_space(2), seed=seed, **flags)
    found = []
    for update in range(16):
        learner.train(two_scales(learner, 100 * seed + update, sign))
        found.append([task["explained_variance"] for task in learner.last_record.tasks.values()])
    return np.mean(found[-4:], axis=0)


def test_a_critic_of_tasks_whose_rewards_are_a_thousand_times_each_others_knows_both(tmp_path):
    """With one normaliser for both the values of the small task are the noise of the large one."""
    found = {scope: explained(scope, tmp_path / scope, 1.0) for scope in ("shared", "per_task", "popart")}
    assert found["shared"][0] < -5
    assert found["shared"][1] > 0.6
    assert (found["per_task"] > 0.8).all()
    assert (found["popart"] > 0.8).all()


def test_a_critic_that_is_told_the_task_knows_both_where_nothing_else_tells_them_apart(tmp_path):
    """What is good in one task is bad in the other, and the observation does not say which it is."""
    assert (explained("popart", tmp_path / "popart", -1.0) > 0.8).all()
    assert (explained("per_task", tmp_path / "per_task", -1.0) < 0.5).all()


# -- checkpoints and refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["per_task", "popart"])
def test_weights_of_another_normalisation_are_refused_by_name(scope, tmp_path, monkeypatch):
    monkeypatch.setattr(global_model_factory(), "make_actor_critic_func", make_actor_critic)  # as the runner does for all
    learner = make(tmp_path / "new", scope)
    learner.train(make_batch(learner, seed=0))
    learner.save()
    assert checkpoint_faults(learner.cfg, learner.env_info, saved_states(learner.cfg)) == []
    assert scope_of(learner.gate.published.model.state_dict()) == scope
    old = make(tmp_path / "old", "shared")
    old.save()
    assert scope_of(old.gate.published.model.state_dict()) == "shared"
    learner.cfg.train_dir = old.cfg.train_dir
    [fault] = checkpoint_faults(learner.cfg, learner.env_info, saved_states(learner.cfg))
    assert fault == f"--value_normalization={scope}: --experiment=synthetic was made with shared; use that, or start anew"
    learner.cfg.train_dir, learner.cfg.init_from = (
        str(tmp_path / "none"),
        old.folder,
    )
    [fault] = checkpoint_faults(learner.cfg, learner.env_info, [None])
    assert fault.startswith(f"--value_normalization={scope}: --init_from={learner.cfg.init_from} was made with shared")


def test_what_does_not_go_together_is_refused_before_the_start():
    two = {"task_names": ["a", "b"], "normalize_returns": True}
    assert faults({**two, "value_normalization": "popart"}) == []
    assert faults({"env": "x", "normalize_returns": True, "value_normalization": "per_task"}) == [
        "--value_normalization=per_task: x is one task; use shared"
    ]
    assert faults({**two, "normalize_returns": False, "value_normalization": "popart"}) == [
        "--value_normalization=popart: must be shared with --normalize_returns=False"
    ]
    [fault] = faults({**two, "with_vtrace": True, "value_normalization": "popart"})
    assert fault.startswith("--normalize_returns=True: must be False with --with_vtrace=True")


def test_what_the_environment_or_the_network_does_not_fit_is_refused(tmp_path, monkeypatch):
    learner = make(tmp_path, batch_size=64, num_batches_per_epoch=1, num_workers=1, num_envs_per_worker=8)
    monkeypatch.setattr(global_model_factory(), "make_actor_critic_func", make_actor_critic)
    assert env_faults(learner.cfg, learner.env_info) == []
    learner.cfg.task_names = ["a", "b"]
    [fault] = env_faults(learner.cfg, learner.env_info)
    assert fault.startswith(
        "--value_normalization=popart: 2 tasks are named, the observation task_id of --env=synthetic tells 3 apart"
    )
    learner.cfg.task_names = ["a", "b", "c"]

    def mine(cfg, obs_space, action_space):
        return ActorCriticSharedWeights(global_model_factory(), obs_space, action_space, cfg)

    monkeypatch.setattr(global_model_factory(), "make_actor_critic_func", mine)
    [fault] = env_faults(learner.cfg, learner.env_info)
    assert fault.startswith("--value_normalization=popart: must be shared with an actor-critic of your own, mine")
    learner.cfg.value_normalization = "shared"
    assert env_faults(learner.cfg, learner.env_info) == []


def test_a_network_is_given_values_of_tasks_and_its_policy_stays(tmp_path):
    """Its own weights are drawn as ever; the value head comes after them."""
    networks = []
    for scope in ("shared", "per_task", "popart"):
        learner = make(tmp_path / scope, scope)
        networks.append(learner.candidate.model)
    plain, one, each = (network.state_dict() for network in networks)
    of_values = ("returns_normalizer.", "critic_linear.")
    for name, x in plain.items():
        if not name.startswith(of_values):
            assert torch.equal(x, one[name]), name
            assert torch.equal(x, each[name]), name
    assert torch.equal(plain["critic_linear.weight"], one["critic_linear.weight"])
    assert each["critic_linear.weight"].shape == (TASKS, 16)
    assert torch.equal(each["critic_linear.bias"], torch.zeros(TASKS)), "as sample-factory begins"
    other = make(tmp_path / "other", "shared").candidate.model
    value_each_task(other, 2, preserving=True)
    assert other.critic_linear.out_features == 2
