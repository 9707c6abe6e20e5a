"""A real population: two policies, PBT that replaces and mutates, each with its own beta and its own rows."""

from __future__ import annotations

import json

import pytest
from programs import train

from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows


@pytest.mark.slow
def test_two_policies_under_pbt(tmp_path):
    flags = ("--env=gym_CartPole-v1", "--serial_mode=False", "--async_rl=True", "--num_workers=2", "--seed=0", "--stats_avg=20")
    flags += ("--num_policies=2", "--with_pbt=True", "--pbt_start_mutation=4000", "--pbt_period_env_steps=4000")
    # replace whenever there is a better one, and mutate every setting every time
    flags += ("--pbt_replace_reward_gap=0", "--pbt_replace_reward_gap_absolute=0", "--pbt_mutation_rate=1")
    run = train(tmp_path, "pbt", *flags, "--train_for_env_steps=30000", timeout=200)
    assert run.popen.returncode == 0, run.report()
    folder = tmp_path / "pbt"
    mutated = json.loads((folder / "policy_01_cfg.json").read_text())
    assert mutated["eps_kl"] != 0.5
    assert mutated["beta_lr"] != 0.01
    for policy_id in (0, 1):
        rows = latest_rows(folder / UPDATE_LOG, policy_id)
        assert len(rows) > 20
        assert all(row["kl_max"] <= row["eps_kl"] for row in rows)
    assert len({row["eps_kl"] for row in latest_rows(folder / UPDATE_LOG, 1)}) > 1
    assert "Asking learner" in (folder / "sf_log.txt").read_text()  # a policy took over the other one's weights
