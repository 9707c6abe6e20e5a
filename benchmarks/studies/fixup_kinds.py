"""The cheapest fixup: what its steps follow, what momentum they start with, and whether there are steps at all.

The paper's preset on HalfCheetah with c_beta 1, where the primary phase ends outside in most updates, and with 3, as in the
paper. `line` takes no step: an update that is outside goes straight back along its line until it is inside.
"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = (
    "--env=mujoco_HalfCheetah --preset=paper --device=cpu --train_for_env_steps=200_000 --experiment_summaries_interval=2"
    " --audit_every=20"
)
KINDS = {
    "steps": "",
    "momentum": "--fixup_optimizer=shared",
    "outside": "--fixup_loss=outside",
    "line": "--max_fixup_steps=0",
    "five_then_line": "--max_fixup_steps=5",
}
VARIANTS = {f"{kind}_c{c}": f"--c_beta={c} {flags}" for c in (1, 3) for kind, flags in KINDS.items()}
RUN_DESCRIPTION = study("fixup_kinds", COMMON, VARIANTS, seeds=[10, 11, 12])
