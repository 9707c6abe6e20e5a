"""Watching a policy of several tasks: the value that is shown is that of the task that is played."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from saved_policies import save_policy

from sf_fixpo import enjoy


def test_the_value_of_a_run_on_several_tasks_is_that_of_the_level_that_is_played(tmp_path):
    """The levels one by one do not say which task they are: their place among the run's does."""
    run = save_policy(tmp_path / "rooms", "dmlab_30_rooms", "--value_normalization=popart", "--normalize_returns=True")
    checkpoint = next((run / "checkpoint_p0").glob("*.pth"))
    weights = torch.load(checkpoint, weights_only=True)["model"]
    scale, shift = ((weights["returns_normalizer.running_var"] + 1e-5).sqrt(), weights["returns_normalizer.running_mean"])
    assert enjoy.choose_config(run, None).task_number == 0
    last = enjoy.choose_config(run, "dmlab_30_rooms_select_nonmatching_object")
    other = enjoy.choose_config(run, "dmlab_30_rooms_watermaze")
    assert (last.task_number, other.task_number) == (2, None)
    slots = enjoy.make_slots(last, seed=0)
    try:
        obs, values = slots.reset(), []
        assert "task_id" not in obs
        for cfg in (last, other):
            agent = enjoy.load_agent(cfg, checkpoint, slots, deterministic=True)
            seen = []
            agent._network.critic_linear.register_forward_hook(lambda *args, seen=seen: seen.append(args[-1].flatten()))
            agent.act(obs, np.zeros(1, int))
            values.append((agent.value * cfg.reward_scale, float(seen[0][2] * scale[2] + shift[2])))
    finally:
        slots.env.close()
    assert values[0][0] == pytest.approx(values[0][1], rel=1e-5)
    assert np.isnan(values[1][0]), "a level that is none of the run's"
