"""Folders of runs as training leaves them, a few rows long, for tests of who reads them."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter

EPS_KL = 0.5
PHASES = {"prepare": 0.002, "reference": 0.001, "primary": 0.02, "check": 0.004, "fixup": 0.003, "publish": 0.0001}


def update_row(i: int, **changes) -> dict:
    row = {
        "policy_id": 0, "policy_version": 40 * i, "env_steps": 1000 * i, "eps_kl": EPS_KL, "kl_max": 0.1 * (i % 5),
        "kl_mean": 0.01, "kl_max_stale": None, "kl_max_primary": 0.15, "beta": 1.0 / i, "primary_steps": 40, "fixup_steps": i % 3,
        "backtracks": 0, "rolled_back": False, "skipped_minibatches": 0, "stale_fraction": 0.1, "lag_mean": 2.5,
        "entropy": 1.0 - 0.01 * i, "explained_variance": 0.5, "health": [], "seconds": PHASES,
    }  # fmt: skip
    return {**row, **changes}


def write_run(folder: Path, rows=None, seed: int = 0, slope: float = 10.0, scalars: bool = True, **config) -> Path:
    """A run of FixPO on CartPole: 12 updates unless `rows` says otherwise, returns that rise by `slope`."""
    folder.mkdir(parents=True)
    settings = {
        "algo": "FIXPO", "env": "gym_CartPole-v1", "seed": seed, "c_beta": 3.0, "eps_kl": EPS_KL, "fixup": "every_epoch",
        "train_for_env_steps": 12_000, "train_dir": str(folder.parent), "experiment": folder.name,
        "command_line": f"--env=gym_CartPole-v1 --seed={seed}", "cli_args": {}, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    rows = [update_row(i) for i in range(1, 13)] if rows is None else rows
    if settings["algo"] == "FIXPO":
        (folder / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if scalars:
        writer = SummaryWriter(str(folder / ".summary" / "0"))
        for i in range(1, 13):
            writer.add_scalar("reward/reward", slope * i + seed, 1000 * i)
            writer.add_scalar("perf/_fps", 500.0 + seed, 1000 * i)
            writer.add_scalar("train/entropy", 1.0, 1000 * i)
        writer.close()
    return folder


def write_evaluations(folder: Path) -> None:
    rows = [
        {
            "env_steps": steps, "policy_id": 0, "policy_version": steps // 25, "engine": "gym", "split": "test", "score": None,
            "levels": {"gym_CartPole-v1": {"mean": steps / 40, "se": 1.5, "n": 10}},
        }
        for steps in (4000, 8000, 12000)
    ]  # fmt: skip
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_sweep(folder: Path) -> Path:
    """Two values of eps_kl, three seeds each; of one the launcher says that it failed."""
    for eps_kl in (0.2, 0.5):
        for seed in range(3):
            run = write_run(folder / "grid" / f"eps{eps_kl}_seed{seed}", seed=seed, slope=20 * eps_kl, eps_kl=eps_kl)
            write_evaluations(run)
    state = folder / ".sweep" / "runs" / "eps0.5_seed2.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"status": "failed", "reason": "no file grows", "exit_code": -9, "attempt": 2}))
    return folder
