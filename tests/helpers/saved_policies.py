"""Folders with an untrained policy in them, as training leaves them: for programs that take a policy elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from small_runs import update_row

from sf_fixpo import train
from sf_fixpo.envs import find_suite
from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.networks import make_network
from sf_fixpo.playing.evaluation_worker import Slots


def save_policy(folder: Path, env: str, *flags: str, make=make_network) -> Path:
    """A run of FixPO whose policy has random weights, and a normaliser that has seen something."""
    argv = [f"--env={env}", "--preset=laptop", "--device=cpu", f"--train_dir={folder.parent}", f"--experiment={folder.name}"]
    cfg = train.parse_cfg([*argv, *flags])
    slots = Slots(find_suite(env).make_env(env, cfg, None, None))
    torch.manual_seed(1)
    network = make(cfg, slots.observation_space, slots.action_space)
    slots.env.close()
    state = network.state_dict()
    for name, x in state.items():
        if "running_mean" in name:
            x.copy_(0.1 * torch.randn_like(x))
        if "running_var" in name:
            x.copy_(0.5 + torch.rand_like(x))
    (folder / "checkpoint_p0").mkdir(parents=True)
    saved = {"model": state, "train_step": 80, "env_steps": 2000}
    checkpoints.save_atomically(saved, folder / "checkpoint_p0" / "checkpoint_000000080_2000.pth")
    (folder / "config.json").write_text(json.dumps(cfg))
    rows = [update_row(1, kl_max=0.2), update_row(2, kl_max=0.45), update_row(3, kl_max=0.5)]
    (folder / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
