"""A run that was stopped goes on as if it had not been: killed processes, learners rebuilt in mid-training, a seed twice."""

from __future__ import annotations

import json
import os
import random
import signal

import gymnasium as gym
import numpy as np
import pytest
import torch
from programs import LONG, SERIAL, checkpoints_of, json_lines, rows_of, started, train, train_command

from benchmarks.synthetic import box_actions, fill_policy_outputs, make_batch, make_cfg, make_learner, small_shape, vector_space
from sf_fixpo.records.update_log import latest_rows

IMAGE = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 40, 40), np.uint8))
CASES = {
    "gaussian": small_shape(
        action_space=box_actions(3),
        num_batches_per_epoch=4,
        num_epochs=3,
        shuffle_minibatches=True,
        lr_schedule="linear_decay",
        train_for_env_steps=20_000,
        normalize_input=True,
        normalize_returns=True,
        actor_critic_share_weights=False,
        adaptive_stddev=False,
        learning_rate=0.01,
        kl_mean_target=0.001,
    ),
    "lstm": small_shape(
        use_rnn=True, rnn_type="lstm", num_batches_per_epoch=2, num_epochs=2, normalize_input=True, learning_rate=0.01
    ),
    "tasks": small_shape(
        obs_space=gym.spaces.Dict(obs=vector_space()["obs"], task_id=gym.spaces.Box(0, 1, (1,), np.int32)),
        num_batches_per_epoch=2,
        num_epochs=2,
        normalize_returns=True,
        value_normalization="popart",
        beta_scope="per_task",
        learning_rate=0.01,
    ),
    "images": small_shape(
        obs_space=IMAGE,
        encoder_conv_architecture="convnet_atari",
        encoder_conv_mlp_layers=[16],
        obs_scale=255.0,
        batch_size=16,
        num_epochs=2,
        learning_rate=0.003,
    ),
}
FIXPO = {"eps_kl": 0.02, "beta_lr": 0.1, "trace_updates": "0-99"}


def assert_same(one, other, where: str = "state") -> None:
    """Equality to the last bit of nested plain values and tensors."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def full_state(learner) -> dict:
    """Everything a checkpoint holds (random states, schedule and counters included), and what actors see."""
    return {
        "checkpoint": learner._get_checkpoint_dict(),
        "published": dict(learner.gate.published.model.state_dict()),
        "version": (learner.gate.version, int(learner.policy_versions_tensor[0])),
        "lr": [group["lr"] for group in learner.optimizer.param_groups],
    }


@pytest.mark.parametrize("case", CASES)
def test_a_learner_rebuilt_from_its_checkpoint_ends_bit_for_bit_where_the_other_does(tmp_path, case):
    one = make_learner("FIXPO", CASES[case], train_dir=tmp_path, **FIXPO)
    batch = make_batch(one, invalid_share=0.1)
    recorded, fixup_steps = [], 0
    for update in range(6):
        fill_policy_outputs(one, batch, seed=update)
        if update == 3:
            one.save()
        if update >= 3:
            recorded.append(clone(batch))
        one.train(batch)
        fixup_steps += one.last_record.fixup_steps
    assert fixup_steps > 0, "the fixup phase must have had its part in Adam's and beta's state"
    expected = full_state(one)
    assert expected["checkpoint"]["fixpo"]["updates"] == 6

    # a new process: other random numbers, nothing in memory
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    other = make_learner("FIXPO", CASES[case], train_dir=tmp_path, **FIXPO)
    assert other.updates == 3
    assert all(group["fused"] for group in other.optimizer.param_groups)
    images = [p for p in other.actor_critic.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in images)
    assert bool(images) == (case == "images")
    for batch in recorded:
        other.train(batch)
    assert_same(expected, full_state(other))


def clone(batch):
    """A copy of a nested dict of tensors."""
    return type(batch)({key: clone(value) if isinstance(value, dict) else value.clone() for key, value in batch.items()})


def learner_of(experiment):
    """A learner made from an experiment's folder, as the run itself makes it."""
    saved = json.loads((experiment / "config.json").read_text())
    shape = small_shape(vector_space(4), gym.spaces.Discrete(2))
    known = make_cfg("FIXPO", shape, train_dir=experiment.parent)
    kept = (known.keys() & saved.keys()) - {"algo", "device", "train_dir", "cli_args"}
    return make_learner("FIXPO", shape, train_dir=experiment.parent, **{key: saved[key] for key in kept})


def kill_in_mid_run(folder, command):
    """Runs until some updates have been made after a checkpoint; kills everything."""
    experiment = folder / "run"
    with started(folder / "first", *command) as run:
        run.wait_until(lambda: any(not path.stem.endswith("_0") for path in checkpoints_of(experiment)))
        before = len(rows_of(experiment))
        run.wait_until(lambda: len(rows_of(experiment)) > before + 3)
        os.killpg(run.popen.pid, signal.SIGKILL)
        assert run.wait(10) == -signal.SIGKILL
        run.assert_nothing_left()


def test_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    experiment = tmp_path / "run"
    command = train_command(tmp_path, "run", *SERIAL, LONG, "--save_every_sec=1", "--learning_rate=0.02", "--eps_kl=0.05")
    kill_in_mid_run(tmp_path, command)
    rows_before = rows_of(experiment)
    with (experiment / "updates.jsonl").open("a") as log:
        log.write('{"policy_id": 0, "policy_ver')  # a crash in the middle of a line
    last = torch.load(checkpoints_of(experiment)[-1], weights_only=True)

    learner = learner_of(experiment)
    assert (learner.train_step, learner.env_steps) == (last["train_step"], last["env_steps"])
    assert learner.gate.version == last["train_step"]
    assert_same(learner.multiplier.state_dict(), last["fixpo"]["multiplier"])
    [saved_row] = [row for row in map(json.loads, rows_before) if row["policy_version"] == last["train_step"]]
    assert learner.multiplier.beta.item() == saved_row["beta"] != 1.0
    assert_same(learner.optimizer.state_dict()["state"], last["optimizer"]["state"])
    assert any(moments["exp_avg_sq"].any() for moments in last["optimizer"]["state"].values())

    with started(tmp_path / "second", *command) as run:
        run.wait_until(lambda: len(rows_of(experiment)) > len(rows_before) + 3)
        os.killpg(run.popen.pid, signal.SIGINT)
        assert run.wait(60) == 130, run.report()
        run.assert_nothing_left()
    rows = rows_of(experiment)
    assert rows[: len(rows_before)] == rows_before, "the log is appended to"
    first = json.loads(rows[len(rows_before)])
    assert first["env_steps"] == last["env_steps"] + 64
    assert first["policy_version"] == last["train_step"] + first["primary_steps"]
    final = torch.load(checkpoints_of(experiment)[-1], weights_only=True)
    lived_on = latest_rows(experiment / "updates.jsonl")
    assert [row["env_steps"] for row in lived_on] == list(range(64, final["env_steps"] + 1, 64))
    assert len(lived_on) == final["fixpo"]["updates"], "one line for each update that lived on"


def test_the_same_seed_gives_the_same_run(tmp_path):
    flags = (*SERIAL, "--train_for_env_steps=640", "--seed=5", "--learning_rate=0.02", "--eps_kl=0.05")
    assert [train(tmp_path, name, *flags).popen.returncode for name in ("one", "other")] == [0, 0]
    # no types are allowed beside torch's own: anybody may read a checkpoint
    one, other = (torch.load(checkpoints_of(tmp_path / name)[-1], weights_only=True) for name in ("one", "other"))
    assert one["fixpo"]["updates"] >= 10
    assert_same(one, other)
    one, other = (json_lines(tmp_path / name / "updates.jsonl") for name in ("one", "other"))
    assert sum(row["fixup_steps"] for row in one) > 0
    for row in (*one, *other):
        # sample-factory's scalars, due by the clock, are one read more
        del row["seconds"], row["host_reads"]
    assert one == other


@pytest.mark.slow
def test_appo_saves_and_resumes(tmp_path):
    flags = (*SERIAL, "--algo=APPO")
    saved = []
    # at the second rate nothing moves any more: what was learned is still there, unless the run has started from scratch
    for changed in (("--train_for_env_steps=256",), ("--train_for_env_steps=448", "--learning_rate=1e-9")):
        run = train(tmp_path, "run", *flags, *changed)
        assert run.popen.returncode == 0, run.report()
        saved.append(torch.load(checkpoints_of(tmp_path / "run")[-1], weights_only=True))
        assert f"{saved[-1]['env_steps']} " in run.stdout, "the closing table counts the whole experiment"
    first, second = saved
    assert 256 < first["env_steps"] <= 448 < second["env_steps"] <= 448 + 128
    weights = [name for name in first["model"] if "normalizer" not in name]
    assert all(torch.allclose(first["model"][name], second["model"][name], atol=1e-6) for name in weights)
