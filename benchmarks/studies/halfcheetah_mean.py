"""What mean KL does HalfCheetah take? Settings and budget of the paper's batch, half a million steps, looking around."""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=mujoco_HalfCheetah --preset=paper --train_for_env_steps=500_000 --device=cpu --experiment_summaries_interval=2"
VARIANTS = {
    "learned": "",
    "mean_0.005": "--kl_mean_target=0.005",
    "mean_0.01": "--kl_mean_target=0.01",
    "mean_0.02": "--kl_mean_target=0.02",
    "mean_0.04": "--kl_mean_target=0.04",
}
RUN_DESCRIPTION = study("halfcheetah_mean", COMMON, VARIANTS, seeds=[100, 101])
