"""The demo's level with a floor: what keeps the policy from becoming deterministic in the second half? Three million frames."""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=dmlab_30_rooms_collect_good_objects --preset=laptop --dmlab_engine=vizdoom --train_for_env_steps=3_000_000"
COMMON += " --experiment_summaries_interval=2 --c_beta=3"
VARIANTS = {
    "floor_0.5_entropy_0.01": "--beta_min=0.5 --exploration_loss_coeff=0.01",
    "floor_1": "--beta_min=1",
    "floor_0.7_entropy_0.006": "--beta_min=0.7 --exploration_loss_coeff=0.006",
}
RUN_DESCRIPTION = study("demo_entropy", COMMON, VARIANTS, seeds=[101, 102])
