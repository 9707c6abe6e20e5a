"""Meta-World's fifty manipulation tasks (v3), one at a time, through EnvPool: the paper's second benchmark (section 4.1).

`metaworld_pick-place-v3`, as Meta-World names it. The arm's start and the goal are drawn anew every episode, and the goal is
seen. Beside the return each finished episode reports `success`: whether the task was done at any step.
"""

from __future__ import annotations

from types import MappingProxyType

from sf_fixpo.envs.pool import mujoco
from sf_fixpo.envs.pool.suites import pool_suite

PREFIX = "metaworld_"

# fmt: off
_NAMES = (
    "assembly", "basketball", "bin-picking", "box-close", "button-press", "button-press-topdown", "button-press-topdown-wall",
    "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn", "disassemble", "door-close", "door-lock",
    "door-open", "door-unlock", "drawer-close", "drawer-open", "faucet-close", "faucet-open", "hammer", "hand-insert",
    "handle-press", "handle-press-side", "handle-pull", "handle-pull-side", "lever-pull", "peg-insert-side", "peg-unplug-side",
    "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide", "plate-slide-back", "plate-slide-back-side",
    "plate-slide-side", "push", "push-back", "push-wall", "reach", "reach-wall", "shelf-place", "soccer", "stick-pull",
    "stick-push", "sweep", "sweep-into", "window-close", "window-open",
)
# fmt: on


def _engine_name(name: str) -> str:
    return f"MetaWorld/{''.join(word.capitalize() for word in name.split('-'))}-v3"


# EnvPool's names, by ours.
TASKS = MappingProxyType({f"{PREFIX}{name}-v3": _engine_name(name) for name in _NAMES})

PAPER = MappingProxyType(
    {
        **mujoco.PAPER,
        # 20 simulators x an episode of 500 steps: 10,000 samples an update, in 20 minibatches.
        "env_agents": 20,
        "rollout": 500,
        "batch_size": 500,
        "num_batches_per_epoch": 20,
        "fixup_batch_size": 5000,
        "value_loss_coeff": 0.25,
        "encoder_mlp_layers": [128, 128],
        "train_for_env_steps": 20_000_000,
    }
)

# A quarter of the samples an update, for two cores; no task was trained for long with it.
LAPTOP = MappingProxyType({**PAPER, "env_agents": 5, "num_batches_per_epoch": 5, "train_for_env_steps": 1_000_000})

SUITE = pool_suite(
    "metaworld",
    "Meta-World's manipulation tasks (v3), one at a time, simulated by EnvPool",
    TASKS,
    MappingProxyType({"paper": PAPER, "laptop": LAPTOP}),
    options={"partially_observable": False},  # the goal is seen
)
