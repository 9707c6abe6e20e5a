"""The `tuned` preset on three MuJoCo tasks, claimed: FixPO and APPO, a million steps, five fresh seeds each.

Published, ten seeds each: Tianshou's PPO at a million steps 5650 (HalfCheetah), 2483 (Hopper), 3410 (Walker2d).
"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--preset=tuned --device=cpu --experiment_summaries_interval=2 --audit_every=100"
VARIANTS = {
    f"{algo}_{task}": f"--env=mujoco_{task} --algo={algo.upper()}"
    for task in ("HalfCheetah", "Hopper", "Walker2d")
    for algo in ("fixpo", "appo")
}
RUN_DESCRIPTION = study("mujoco_tuned_claim", COMMON, VARIANTS, seeds=[10, 11, 12, 13, 14])
