"""Flags of the algorithms beside FixPO: checked before any process starts, refused where nothing heeds them."""

from __future__ import annotations

from dataclasses import fields

import pytest
from programs import SERIAL

from sf_fixpo import train
from sf_fixpo.baselines.registry import LEARNERS
from sf_fixpo.baselines.settings import SETTINGS


def refusal(tmp_path, *flags):
    with pytest.raises(train.BadInputError) as refused:
        train.parse_cfg([*SERIAL, f"--train_dir={tmp_path}", "--experiment=x", *flags])
    return str(refused.value).splitlines()


def test_an_unknown_algorithm_is_refused_with_the_list(tmp_path):
    [line] = refusal(tmp_path, "--algo=TRPPO")
    assert line == f"--algo=TRPPO: must be one of {', '.join(LEARNERS)}"
    assert set(LEARNERS) == {"FIXPO", "APPO", *SETTINGS}


BAD = [
    ("TRPO", "trpo_max_kl", "0.0", "a number > 0"),
    ("TRPO", "trpo_max_kl", "nan", "a number > 0"),
    ("TRPO", "trpo_cg_iters", "0", "an integer >= 1"),
    ("TRPO", "trpo_damping", "-0.1", "a number >= 0"),
    ("TRPO", "trpo_backtrack_iters", "0", "an integer >= 1"),
    ("TRPO", "trpo_backtrack_coeff", "1.0", "a number > 0 and < 1"),
    ("PPO_KL", "ppo_kl_target", "0.0", "a number > 0"),
    ("PPO_KL", "ppo_kl_beta_init", "-1.0", "a number > 0"),
    ("KL_PROJECTION", "proj_mean_bound", "0.0", "a number > 0"),
    ("KL_PROJECTION", "proj_cov_bound", "inf", "a number > 0"),
    ("KL_PROJECTION", "proj_trust_region_coeff", "-8.0", "a number >= 0"),
]


@pytest.mark.parametrize(("algo", "name", "value", "allowed"), BAD)
def test_a_bad_value_names_the_flag_the_value_and_what_is_allowed(tmp_path, algo, name, value, allowed):
    assert refusal(tmp_path, f"--algo={algo}", f"--{name}={value}") == [f"--{name}={value}: must be {allowed}"]


def test_every_flag_is_checked():
    assert {name for _, name, _, _ in BAD} == {f.name for settings in SETTINGS.values() for f in fields(settings)}


def test_all_faults_at_once(tmp_path):
    lines = refusal(tmp_path, "--algo=TRPO", "--trpo_max_kl=0", "--trpo_damping=-1", "--fixup=off", "--c_beta=2")
    assert len(lines) == 4


@pytest.mark.parametrize("algo", ["FIXPO", "APPO", *SETTINGS])
def test_the_settings_of_another_algorithm_are_refused(tmp_path, algo):
    for other, settings in SETTINGS.items():
        if other != algo:
            for f in fields(settings):
                [line] = refusal(tmp_path, f"--algo={algo}", f"--{f.name}={f.default}")
                assert line == (
                    f"--{f.name}={f.default}: has no effect with --algo={algo}, leave it out: a setting of --algo={other}"
                )


@pytest.mark.parametrize("algo", SETTINGS)
@pytest.mark.parametrize("flag", ["c_beta=3", "beta_lr=0", "fixup=off", "max_fixup_steps=5", "kl_stat=max", "ppo_clip_ratio=0.2"])
def test_what_is_fixpos_or_appos_alone_is_refused(tmp_path, algo, flag):
    [line] = refusal(tmp_path, f"--algo={algo}", f"--{flag}")
    assert line.startswith(f"--{flag.partition('=')[0]}=")
    assert f"has no effect with --algo={algo}, leave it out: a setting of --algo=" in line


@pytest.mark.parametrize("algo", SETTINGS)
def test_what_a_row_is_measured_by_is_heeded(tmp_path, algo):
    argv = [*SERIAL, f"--train_dir={tmp_path}", "--experiment=x", f"--algo={algo}"]
    cfg = train.parse_cfg([*argv, "--eps_kl=0.3", "--kl_direction=ref_pi", "--audit_every=3", "--reference=previous"])
    assert (cfg.algo, cfg.eps_kl, cfg.audit_every) == (algo, 0.3, 3)


def test_trpo_takes_no_vtrace_and_no_rate_by_the_kl(tmp_path):
    [line] = refusal(
        tmp_path, "--algo=TRPO", "--with_vtrace=True", "--normalize_returns=False", "--recurrence=-1", "--use_rnn=True"
    )
    assert line.startswith("--with_vtrace=True: must be False with --algo=TRPO")
    [line] = refusal(tmp_path, "--algo=TRPO", "--lr_schedule=kl_adaptive_epoch")
    assert line.startswith("--lr_schedule=kl_adaptive_epoch: must be constant or linear_decay with --algo=TRPO")
