"""The guarantee in real runs: every mode, every kind of action, with and without memory; each published version audited.

Two of the eighteen run by default, as far as sixty updates; all of them to two hundred with `make test-slow`.
"""

from __future__ import annotations

import pytest
from programs import started

from sf_fixpo.audit import audit
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows

UPDATES, QUICK = 200, 60
# learns fast enough that the fixup phase has work to do
COMMON = (
    "--rollout=16", "--batch_size=32", "--num_batches_per_epoch=2", "--num_epochs=2", "--fixup_batch_size=0", "--device=cpu",
    "--encoder_mlp_layers", "16", "--learning_rate=0.01", "--eps_kl=0.1", "--audit_every=1", "--seed=0",
)  # fmt: skip
MODES = {
    "serial": ("--serial_mode=True", "--async_rl=False", "--num_workers=1", "--num_envs_per_worker=4"),
    "sync": ("--serial_mode=False", "--async_rl=False", "--num_workers=2", "--num_envs_per_worker=2"),
    "async": ("--serial_mode=False", "--async_rl=True", "--num_workers=2", "--num_envs_per_worker=2"),
}
ACTIONS = {
    "categorical": ("-m", "sf_fixpo.train", "--env=gym_CartPole-v1"),
    "gaussian": ("-m", "sf_fixpo.train", "--env=gym_Pendulum-v1"),
    "tuple": ("tests/helpers/tuple_env.py", "--env=gym_CartPole-v1"),
}
CORES = {"mlp": ("--use_rnn=False",), "lstm": ("--use_rnn=True", "--rnn_type=lstm", "--rnn_size=8", "--recurrence=-1")}
BY_DEFAULT = [("serial", "gaussian", "mlp", QUICK), ("async", "tuple", "lstm", QUICK)]
ALL = [(mode, action, core, UPDATES) for mode in MODES for action in ACTIONS for core in CORES]


@pytest.mark.parametrize(
    ("mode", "action", "core", "updates"),
    [
        pytest.param(*case, marks=() if case in BY_DEFAULT else pytest.mark.slow, id="-".join(map(str, case)))
        for case in (*BY_DEFAULT, *ALL)
    ],
)
def test_every_published_version_is_inside_the_bound(mode, action, core, updates, tmp_path):
    program = (*ACTIONS[action], f"--train_dir={tmp_path}", "--experiment=run", f"--train_for_env_steps={updates * 64}")
    with started(tmp_path / "output", *program, *COMMON, *MODES[mode], *CORES[core]) as run:
        assert run.wait(240) == 0, run.report()
        run.assert_nothing_left()
    rows = latest_rows(tmp_path / "run" / UPDATE_LOG)
    findings = audit(tmp_path / "run", quiet=True)  # raises at the first version over the bound, no tolerance
    assert len(findings) == len(rows) >= updates
    assert sum(row["fixup_steps"] for row in rows) > 0
    assert max(row["lag_mean"] for row in rows) > 0 if mode == "async" else True
