"""Small tasks, claimed: the gym suite's laptop preset of FixPO and of APPO on three classics and one that takes a memory.

The memory task is CartPole without its two velocities, which a recurrent core has to find from the positions of before.
"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--preset=laptop --experiment_summaries_interval=1 --audit_every=20"
TASKS = {
    "CartPole": "--env=gym_CartPole-v1",
    "Acrobot": "--env=gym_Acrobot-v1",
    "Pendulum": "--env=gym_Pendulum-v1 --gamma=0.9",
    "Memory": "--env=gym_CartPole-v1 --env_wrappers=benchmarks.peers.tasks:positions"
    " --use_rnn=True --rnn_type=lstm --rnn_size=32 --recurrence=32",
}
VARIANTS = {f"{algo}_{task}": f"{flags} --algo={algo.upper()}" for task, flags in TASKS.items() for algo in ("fixpo", "appo")}
RUN_DESCRIPTION = study("small_claim", COMMON, VARIANTS, seeds=[10, 11, 12, 13, 14])
