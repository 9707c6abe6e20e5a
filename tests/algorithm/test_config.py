"""Settings: defaults, every check, and that flags, dataclass and help are one thing."""

import argparse
from dataclasses import FrozenInstanceError, asdict, fields
from types import SimpleNamespace

import pytest

from sf_fixpo.algorithm.config import FixPOConfig, add_fixpo_args, faults, fixup_minibatch, parse_versions


def cfg(**values):
    return {**{f.name: f.default for f in fields(FixPOConfig)}, **values}


def test_defaults_are_the_papers():
    config = FixPOConfig()
    assert (config.eps_kl, config.c_beta, config.beta_init, config.beta_lr) == (0.5, 3.0, 1.0, 0.01)
    assert (config.kl_stat, config.kl_direction, config.fixup, config.fixup_loss) == ("max", "pi_ref", "every_epoch", "kl")


def test_every_default():
    """A change here is a change of every run that does not say otherwise: say so in CHANGELOG.md."""
    assert asdict(FixPOConfig()) == {
        "eps_kl": 0.5, "c_beta": 3.0, "beta_init": 1.0, "beta_lr": 0.01, "beta_min": 0.0, "beta_max": 1000.0,
        "beta_scope": "shared", "kl_stat": "max", "kl_mean_target": 0.0, "kl_direction": "pi_ref", "reference": "auto",
        "fixup": "every_epoch", "fixup_loss": "kl", "fixup_optimizer": "fresh", "fixup_batch_size": 0, "max_fixup_steps": 50,
        "fixup_plateau_steps": 10, "fixup_chunk": -1,
        "value_normalization": "shared", "encoder_dtype": "float32", "cuda_graphs": "auto", "max_rollbacks": 10,
        "audit_every": 0, "trace_updates": "",
    }  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        FixPOConfig().eps_kl = 1.0


def test_what_a_configuration_lacks_is_one_synchronous_step_without_memory():
    assert faults({}) == []
    assert FixPOConfig.from_cfg({}) == FixPOConfig(reference="previous")
    assert FixPOConfig.from_cfg({"async_rl": True}).reference == "behaviour", "one epoch of one minibatch"
    assert fixup_minibatch({}) == fixup_minibatch({"fixup_batch_size": 4096}) == 1024
    assert faults({"worker_num_splits": 2}) == ["--worker_num_splits=2: must divide --num_envs_per_worker=1"]
    assert faults({"recurrence": 64}) == ["--recurrence=64: must divide --rollout=32"]
    (fault,) = faults({"fixup_batch_size": 96})
    assert "a multiple of the recurrence, 1, and divide the batch, 1024 samples" in fault
    assert faults({"beta_scope": "per_task"}) == ["--beta_scope=per_task: task is one task; use shared"]


# The last value that is allowed, where one is.
EDGES = [
    *[{"c_beta": 1.0}, {"beta_init": 0.0}, {"beta_init": 1000.0}, {"beta_lr": 0.0}, {"beta_min": 1.0}, {"beta_max": 1.0}],
    *[{"beta_min": 2.0, "beta_init": 2.0, "beta_max": 2.0}, {"kl_mean_target": 0.499}, {"kl_stat": "mean"}],
    *[
        {"max_fixup_steps": 0},
        {"fixup_plateau_steps": 1},
        {"fixup_chunk": 0},
        {"fixup_chunk": -1},
        {"max_rollbacks": 1},
        {"trace_updates": "0-1"},
        {"audit_every": 0},
    ],
    *[{"num_epochs": 1}, {"num_batches_per_epoch": 1}, {"seed": 0}, {"seed": None}, {"gamma": 1.0}, {"gamma": 1e-6}],
    *[{"rollout": 1, "batch_size": 1}, {"rollout": 8, "batch_size": 8}, {"rollout": 8, "recurrence": 8}, {"recurrence": 1}],
    *[{"use_rnn": True}, {"use_rnn": True, "recurrence": 2}, {"use_rnn": True, "rollout": 2, "recurrence": -1}],
    *[{"with_vtrace": True}, {"with_vtrace": True, "recurrence": 32}, {"with_vtrace": True, "rollout": 2}],
    *[{"fixup_batch_size": 512}, {"fixup_batch_size": 2048, "num_batches_per_epoch": 4}, {"fixup_batch_size": 10**6}],
    *[{"worker_num_splits": 1}, {"worker_num_splits": 2, "num_envs_per_worker": 2}, {"learning_rate": 1e-9}],
    *[{"beta_scope": "per_task", "task_names": ["a", "b"]}, {"max_policy_lag": 1}, {"normalize_returns": True}],
    {"value_normalization": "per_task", "normalize_returns": True, "task_names": ["a", "b"]},
]


@pytest.mark.parametrize("flags", EDGES, ids=str)
def test_the_last_allowed_value_is_allowed(flags):
    assert faults(flags) == []
    assert faults(SimpleNamespace(**flags)) == []


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"kl_stat": "mean", "kl_mean_target": 0.1}, "--kl_mean_target=0.1: must be 0 with --kl_stat=mean, where beta itself"),
        ({"kl_stat": "mean", "fixup_loss": "outside"}, "--fixup_loss=outside: must be kl or beta_kl with --kl_stat=mean"),
        ({"eps_kl": 0.2, "kl_mean_target": 0.2}, "--kl_mean_target=0.2: must be below --eps_kl=0.2"),
        ({"beta_min": 3.0, "beta_max": 2.0}, "--beta_min=3.0: must not be above --beta_max=2.0"),
        ({"beta_min": 1.5}, "--beta_min=1.5: must not be above --beta_init=1.0"),
        ({"beta_max": 0.5}, "--beta_init=1.0: must not be above --beta_max=0.5"),
        ({"beta_scope": "per_task", "env": "x", "task_names": ["a"]}, "--beta_scope=per_task: a is one task; use shared"),
        (
            {"value_normalization": "popart", "normalize_returns": True, "task_names": ["a"]},
            "--value_normalization=popart: a is one task; use shared",
        ),
        (
            {"value_normalization": "popart", "task_names": ["a", "b"]},
            "--value_normalization=popart: must be shared with --normalize_returns=False",
        ),
        ({"with_vtrace": True, "recurrence": 8}, "--recurrence=8: must equal --rollout with --with_vtrace=True"),
        ({"with_vtrace": True, "rollout": 1}, "--rollout=1: must be at least 2 with --with_vtrace=True"),
        ({"use_rnn": True, "recurrence": 1}, "--recurrence=1: must be at least 2 with --use_rnn=True (-1: as --rollout=32)"),
        ({"recurrence": 0}, "--recurrence=0: must divide --rollout=32"),
        ({"worker_num_splits": 0}, "--worker_num_splits=0: must divide --num_envs_per_worker=1"),
        (
            {"use_rnn": True, "fixup_batch_size": 48},
            "--fixup_batch_size=48: must be a multiple of the recurrence, 32, and divide",
        ),
        (
            {"fixup_batch_size": 768, "num_batches_per_epoch": 2},
            "--fixup_batch_size=768: must be a multiple of the recurrence, 1",
        ),
        ({"learning_rate": 0.0}, "--learning_rate=0.0: must be a number > 0"),
    ],
    ids=str,
)
def test_contradictions_are_told_by_name(flags, fault):
    found = faults(flags)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_flags_are_the_fields():
    parser = argparse.ArgumentParser()
    add_fixpo_args(parser)
    parsed = parser.parse_args(["--eps_kl=0.1", "--max_fixup_steps=7", "--fixup=off"])
    assert {f.name for f in fields(FixPOConfig)} == set(vars(parsed))
    assert FixPOConfig.from_cfg(vars(parsed)) == FixPOConfig(
        eps_kl=0.1, max_fixup_steps=7, fixup="off", reference="previous", beta_scope="shared"
    )
    assert "mean is an ablation {max,mean}" in " ".join(parser.format_help().split())


BAD = [
    ("eps_kl", 0.0),
    ("eps_kl", -1.0),
    ("eps_kl", float("nan")),
    ("eps_kl", float("inf")),
    ("c_beta", 0.5),
    ("beta_init", -1.0),
    ("beta_lr", -0.1),
    ("beta_max", 0.0),
    ("beta_min", -0.1),
    ("beta_min", 1.5),
    ("beta_min", 2000.0),
    ("kl_mean_target", -0.1),
    ("kl_mean_target", float("nan")),
    ("kl_mean_target", 0.5),
    ("beta_scope", "each"),
    ("value_normalization", "each"),
    ("kl_stat", "median"),
    ("kl_direction", "both"),
    ("reference", "old"),
    ("fixup", "sometimes"),
    ("fixup_loss", "ppo"),
    ("fixup_optimizer", "sgd"),
    ("fixup_batch_size", -1),
    ("fixup_batch_size", 96),
    ("max_fixup_steps", -1),
    ("fixup_plateau_steps", 0),
    ("fixup_chunk", -2),
    ("encoder_dtype", "float16"),
    ("cuda_graphs", "yes"),
    ("max_rollbacks", 0),
    ("audit_every", -1),
    ("trace_updates", "3-"),
    ("trace_updates", "many"),
    ("batch_size", 0),
    ("batch_size", 100),
    ("num_epochs", 0),
    ("rollout", -1),
    ("recurrence", 7),
    ("learning_rate", 0.0),
    ("max_policy_lag", 0),
    ("worker_num_splits", 3),
    ("beta_init", 2000.0),
    ("gamma", 1.5),
    ("gamma", 0.0),
    ("seed", -1),
    ("num_policies", 0),
    ("save_every_sec", 0),
    ("train_for_env_steps", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_each_bad_value_is_one_line_with_flag_and_value(name, value):
    found = faults(cfg(**{"rollout": 32, "batch_size": 128, "num_envs_per_worker": 4, name: value}))
    assert len(found) == 1
    assert found[0].startswith(f"--{name}={value}:")
    assert "must" in found[0]


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"--eps_kl=-1.*\n--c_beta=0.*\n--fixup=x"):
        FixPOConfig.from_cfg(cfg(eps_kl=-1.0, c_beta=0.0, fixup="x"))


@pytest.mark.parametrize("flags", [{"use_rnn": True, "recurrence": 1}, {"with_vtrace": True, "recurrence": 8}])
def test_recurrence_that_the_learner_cannot_use(flags):
    found = faults(cfg(rollout=32, batch_size=128, **flags))
    assert len(found) == 1
    assert found[0].startswith("--recurrence=")


def test_vtrace_cannot_normalise_returns():
    assert "normalize_returns" in faults(cfg(with_vtrace=True, normalize_returns=True))[0]


@pytest.mark.parametrize(
    ("run", "reference"),
    [
        ({"async_rl": True, "num_epochs": 1, "num_batches_per_epoch": 1}, "behaviour"),
        ({"async_rl": True, "num_epochs": 2, "num_batches_per_epoch": 1}, "previous"),
        ({"async_rl": True, "num_epochs": 1, "num_batches_per_epoch": 4}, "previous"),
        ({"async_rl": True, "num_epochs": 2, "num_batches_per_epoch": 2}, "previous"),
        ({"async_rl": False, "num_epochs": 1, "num_batches_per_epoch": 1}, "previous"),
    ],
)
def test_reference_by_default(run, reference):
    assert FixPOConfig.from_cfg(cfg(**run)).reference == reference
    assert FixPOConfig.from_cfg(cfg(reference="previous", **run)).reference == "previous"


def test_limit_keeps_a_margin_for_rounding():
    assert FixPOConfig(eps_kl=2.0).limit == pytest.approx(2.0 * 0.999, rel=1e-12)


def test_versions():
    assert parse_versions("") == frozenset()
    assert parse_versions("3,10-12,4") == {3, 4, 10, 11, 12}
    assert faults({"trace_updates": "-1"})
    assert faults({"trace_updates": "1,x"})


def test_fixup_minibatch_is_never_larger_than_the_batch():
    assert fixup_minibatch(cfg(batch_size=64, num_batches_per_epoch=2)) == 64
    assert fixup_minibatch(cfg(batch_size=64, num_batches_per_epoch=2, fixup_batch_size=1024)) == 128
