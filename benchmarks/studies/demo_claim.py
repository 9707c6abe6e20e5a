"""The demo's level, claimed: the laptop preset of FixPO and of APPO, five fresh seeds each, 3.5M frames."""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=dmlab_30_rooms_collect_good_objects --preset=laptop --dmlab_engine=vizdoom --train_for_env_steps=3_500_000"
COMMON += " --experiment_summaries_interval=2 --audit_every=50"
VARIANTS = {"fixpo": "--algo=FIXPO", "appo": "--algo=APPO"}
RUN_DESCRIPTION = study("demo_claim", COMMON, VARIANTS, seeds=[10, 11, 12, 13, 14])
