"""Five levels in one run, rewards as they are: one beta or one each, and values by one scale, by each task's, by PopArt.

What is worth 1 in some of these levels is worth 10 in others, and a good episode anything from 10 to 270. A variant's name says
what it has of each task. The returns of each level are in the update log's `tasks`, beside the critic's explained variance.
By its processor time a run takes about 25 minutes of two idle cores.
"""

from __future__ import annotations

from benchmarks.multitask import LEVELS
from benchmarks.studies import study

COMMON = f"--env=dmlab_30 --dmlab_levels={','.join(LEVELS)} --preset=laptop --dmlab_engine=vizdoom"
COMMON += " --num_envs_per_worker=20 --worker_num_splits=2"  # each level twice in half a worker
COMMON += " --train_for_env_steps=3_000_000 --experiment_summaries_interval=5"
BETAS = {"": "", "_beta": " --beta_scope=per_task"}
VALUES = {"": "shared", "_value": "per_task", "_popart": "popart"}
VARIANTS = {
    f"fixpo{beta}{value}": f"--value_normalization={scope} --audit_every=50{flag}"
    for beta, flag in BETAS.items()
    for value, scope in VALUES.items()
}
RUN_DESCRIPTION = study("several_tasks", COMMON, {**VARIANTS, "appo": "--algo=APPO"}, seeds=[10, 11, 12, 13, 14])
