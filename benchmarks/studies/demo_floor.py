"""The demo's level with a floor of 0.5: does a c_beta that lets beta rise sooner save the fixup steps of the later phase?"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=dmlab_30_rooms_collect_good_objects --preset=laptop --dmlab_engine=vizdoom --train_for_env_steps=2_500_000"
COMMON += " --experiment_summaries_interval=2 --beta_min=0.5"
VARIANTS = {"c_beta_5": "--c_beta=5", "c_beta_3": "--c_beta=3", "behaviour_c_beta_5": "--c_beta=5 --reference=behaviour"}
RUN_DESCRIPTION = study("demo_floor", COMMON, VARIANTS, seeds=[101, 102])
