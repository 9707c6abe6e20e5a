"""Encoders in bfloat16: primary steps compute by it, and nothing that the guarantee rests on does."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from busy import BUSY
from programs import SERIAL
from updates import run

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape
from sf_fixpo import train
from sf_fixpo.audit import audit
from sf_fixpo.learning.batch import GAE_KEYS, PRIMARY_KEYS
from sf_fixpo.learning.encoder import DmlabEncoder

MIXED = gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)])
LSTM = {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}
PIXELS = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8))
WORDS = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 72, 96), np.uint8), INSTR=gym.spaces.Box(0, 999, (16,), np.int32))


def learner_of(folder, dtype, obs_space=None, **flags):
    shape = small_shape(action_space=MIXED, obs_space=obs_space, **{**BUSY, **flags})
    return make_learner("FIXPO", shape, train_dir=folder, encoder_dtype=dtype, audit_every=1)


@pytest.mark.parametrize("flags", [{}, LSTM, {"actor_critic_share_weights": False}], ids=["mlp", "lstm", "separate"])
def test_the_bound_is_that_of_the_float32_policy_and_the_audit_agrees(flags, tmp_path):
    learner = learner_of(tmp_path, "bfloat16", **flags)
    rows = run(learner, 8)
    assert sum(row["fixup_steps"] for row in rows) > 0, "the fixup phase had work to do"
    assert all(row["kl_max"] <= learner.fixpo.limit for row in rows)
    assert len(audit(Path(learner.folder), quiet=True)) == 8


def primary_gradient(learner, batch):
    minibatch = batch.minibatch(slice(0, 32), PRIMARY_KEYS + GAE_KEYS)
    learner.candidate.model.train()
    loss, parts = learner.improvement.losses(minibatch)
    model = learner.candidate.model
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([x.flatten() for x in gradients if x is not None]), parts


def test_gradients_of_a_primary_step_are_another_rounding_of_the_same(tmp_path):
    exact, rounded = (learner_of(tmp_path / dtype, dtype, learning_rate=1e-3) for dtype in ("float32", "bfloat16"))
    for learner in (exact, rounded):
        learner.train(make_batch(learner, seed=0))
    rounded.candidate.state.copy_(exact.candidate.state)
    rounded.multiplier.load_state_dict(exact.multiplier.state_dict())
    batch = exact._update[0]
    (gradient, parts), (found, _) = primary_gradient(exact, batch), primary_gradient(rounded, batch)
    assert 1e-4 < float((gradient - found).norm() / gradient.norm()) < 0.1
    assert {x.dtype for x in parts.values() if torch.is_tensor(x)} == {torch.float32}


def watch(policy, seen, who):
    """Notes in which precision the encoder's output is, and that of the layers behind it."""
    model = policy.model
    parts = {"encoder": [model.encoder.encoders["obs"]], "rest": [model.critic_linear, *model.action_parameterization.children()]}
    for part, modules in parts.items():
        for module in modules:
            module.register_forward_hook(lambda m, x, y, part=part: seen.add((who, part, y.dtype)))


@pytest.mark.parametrize("obs_space", [None, PIXELS], ids=["vector", "pixels"])
def test_only_encoders_of_primary_steps_compute_in_it(obs_space, tmp_path):
    learner = learner_of(tmp_path, "bfloat16", obs_space=obs_space, normalize_input=False, learning_rate=0.3)
    seen = set()
    watch(learner.verifier.staged, seen, "staged")
    watch(learner.gate.published, seen, "published")
    learner.train(make_batch(learner, seed=0))  # self-test, reference, check, and back
    assert {(part, dtype) for _, part, dtype in seen} == {("encoder", torch.float32), ("rest", torch.float32)}
    assert {who for who, _, _ in seen} == {"staged", "published"}

    steps = {"primary_step": set(), "fixup_step": set()}
    for name, noted in steps.items():
        step = getattr(learner.improvement, name)

        def watched(*args, step=step, noted=noted, **kwargs):
            seen.clear()
            result = step(*args, **kwargs)
            noted |= seen
            return result

        setattr(learner.improvement, name, watched)
    watch(learner.candidate, seen, "candidate")
    for seed in range(1, 4):
        learner.train(make_batch(learner, seed=seed))
    assert ("candidate", "encoder", torch.bfloat16) in steps["primary_step"]
    assert {dtype for _, part, dtype in steps["primary_step"] if part == "rest"} == {torch.float32}
    assert {dtype for _, _, dtype in steps["fixup_step"]} == {torch.float32}


def test_instructions_too_are_read_in_it(tmp_path):
    learner = learner_of(tmp_path, "bfloat16", WORDS, normalize_input=False, batch_size=16, num_batches_per_epoch=1, num_epochs=1)
    assert isinstance(learner.candidate.model.encoder, DmlabEncoder)
    run(learner, 1)
    assert learner.last_record.kl_max <= learner.fixpo.limit
    assert not learner.last_record.rolled_back


def test_by_default_there_is_no_autocast(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("autocast")

    monkeypatch.setattr(torch, "autocast", refused)
    learner = make_learner("FIXPO", small_shape(action_space=MIXED, **BUSY), train_dir=tmp_path)
    learner.train(make_batch(learner, seed=0))
    assert learner.last_record.primary_steps == 4


# -- refused before anything starts -------------------------------------------------------------------------------------------


def refusal(tmp_path, *flags):
    with pytest.raises(train.BadInputError) as refused:
        train.parse_cfg([*SERIAL, f"--train_dir={tmp_path}", "--experiment=x", *flags])
    return str(refused.value).splitlines()


def test_a_precision_that_is_none_and_an_algorithm_that_has_another_primary_phase_are_refused(tmp_path):
    assert refusal(tmp_path, "--encoder_dtype=float16") == ["--encoder_dtype=float16: must be one of float32, bfloat16"]
    for algo in ("TRPO", "APPO"):
        [line] = refusal(tmp_path, f"--algo={algo}", "--encoder_dtype=bfloat16")
        assert line.startswith(f"--encoder_dtype=bfloat16: has no effect with --algo={algo}, leave it out")
    for algo in ("PPO_KL", "KL_PROJECTION"):
        argv = [*SERIAL, f"--train_dir={tmp_path}", "--experiment=y", f"--algo={algo}", "--encoder_dtype=bfloat16"]
        assert train.parse_cfg(argv).encoder_dtype == "bfloat16"


def test_a_gpu_without_it_is_refused(tmp_path, monkeypatch):
    """Of which there is none here to ask."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    [line] = refusal(tmp_path, "--device=gpu", "--encoder_dtype=bfloat16")
    assert line == "--encoder_dtype=bfloat16: this machine's GPU does not compute in it; use float32"
