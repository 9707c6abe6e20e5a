"""The `tuned` preset on Hopper and Walker2d: which bound, where a minibatch has 64 states? Half a million steps, looking around.

beta holds the largest divergence of a minibatch at eps_kl / c_beta. The largest of 64 states is less than that of the paper's
512, so that with smaller minibatches the same two numbers let the mean go further: 0.025 to 0.06 nats an update.
"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--preset=tuned --device=cpu --experiment_summaries_interval=2 --train_for_env_steps=500_000"
KINDS = {"eps_0.2": "--eps_kl=0.2", "appo": "--algo=APPO", "eps_0.5": "", "eps_0.1": "--eps_kl=0.1"}
VARIANTS = {f"{kind}_{task}": f"--env=mujoco_{task} {flags}" for kind, flags in KINDS.items() for task in ("Hopper", "Walker2d")}
RUN_DESCRIPTION = study("mujoco_tuned_bound", COMMON, VARIANTS, seeds=[100, 101])
