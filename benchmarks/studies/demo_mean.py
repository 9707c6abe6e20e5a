"""What mean KL does the demo's level take? Two million frames, looking around."""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=dmlab_30_rooms_collect_good_objects --preset=laptop --dmlab_engine=vizdoom --train_for_env_steps=2_000_000"
COMMON += " --experiment_summaries_interval=2"
VARIANTS = {
    "mean_0.01": "--kl_mean_target=0.01",
    "mean_0.005": "--kl_mean_target=0.005",
    "mean_0.02": "--kl_mean_target=0.02",
    "floor_0.5": "--beta_min=0.5",
}
RUN_DESCRIPTION = study("demo_mean", COMMON, VARIANTS, seeds=[100])
