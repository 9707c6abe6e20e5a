"""HalfCheetah: why half of tuned PPO? Batch, learning-rate decay and the floor of beta; a million steps, looking around.

Tianshou's PPO, which has 5650 (1226) there, collects 2048 samples from 64 simulators and steps 320 times on minibatches of 64.
At a million steps its learning rate has only fallen by a third, because it decays over three.
"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--env=mujoco_HalfCheetah --preset=paper --train_for_env_steps=1_000_000 --device=cpu --experiment_summaries_interval=2"
SMALL = "--rollout=32 --batch_size=64 --num_batches_per_epoch=32 --fixup_batch_size=1024"
VARIANTS = {
    "appo_small_constant": f"--algo=APPO {SMALL} --lr_schedule=constant",
    "small_constant": f"{SMALL} --lr_schedule=constant",
    "small_constant_floor_0.3": f"{SMALL} --lr_schedule=constant --beta_min=0.3",
    "small_decay": SMALL,
}
RUN_DESCRIPTION = study("halfcheetah_batch", COMMON, VARIANTS, seeds=[100, 101])
