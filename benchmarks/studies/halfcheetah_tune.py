"""HalfCheetah: which of the settings that tuned PPOs have in common make the difference? A million steps, looking around.

Batch 2048 in minibatches of 64 from 64 simulators, ten epochs, as Tianshou; one change at a time, then together.
"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=mujoco_HalfCheetah --preset=paper --train_for_env_steps=1_000_000 --device=cpu --experiment_summaries_interval=2"
COMMON += " --rollout=32 --batch_size=64 --num_batches_per_epoch=32 --fixup_batch_size=2048"
VARIANTS = {
    "small_stddev": "--initial_stddev=0.2",
    "fast": "--learning_rate=1e-3 --batch_size=256 --num_batches_per_epoch=8",
    "discount": "--gamma=0.98 --gae_lambda=0.92",
    "critic": "--value_loss_coeff=1 --max_grad_norm=5",
    "base": "",
    "appo": "--algo=APPO",
}
RUN_DESCRIPTION = study("halfcheetah_tune", COMMON, VARIANTS, seeds=[100, 101])
