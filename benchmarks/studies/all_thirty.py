"""All thirty levels in one policy for an hour, played by the stand-in: returns against random, fixup share, worst KL by level."""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=dmlab_30 --preset=laptop --dmlab_engine=vizdoom --train_for_env_steps=40_000_000 --train_for_seconds=3600"
COMMON += " --dmlab_optimistic_rewards=True --experiment_summaries_interval=10"
VARIANTS = {"per_task": "--beta_scope=per_task --audit_every=50"}
RUN_DESCRIPTION = study("all_thirty", COMMON, VARIANTS, seeds=[10])
