"""Meta-World's fifty manipulation tasks (v3), one at a time, through EnvPool: the paper's second benchmark (section 4.1).

`metaworld_pick-place-v3`, as Meta-World names it. The arm's start and the goal are drawn anew every episode, and the goal is
seen. Beside the return each finished episode reports `success`: whether the task was done at any step.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.names import unknown_name
from sf_fixpo.envs.pool import mujoco
from sf_fixpo.envs.suite import Suite

PREFIX = "metaworld_"
NOT_A_TASK = "not a task of the metaworld suite"

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

# A quarter of the samples an update, and as many steps as two cores make in a quarter of an hour.
LAPTOP = MappingProxyType({**PAPER, "env_agents": 5, "num_batches_per_epoch": 5, "train_for_env_steps": 1_000_000})


def env_names() -> tuple[str, ...]:
    """The fifty tasks."""
    return tuple(TASKS)


def matches(env_name: str) -> bool:
    """Whether a name has this suite's prefix."""
    return env_name.lower().startswith(PREFIX)


def faults(cfg: Any) -> list[str]:
    """Checks the name and the flags that EnvPool depends on; one line a fault: the flag, its value, what is allowed."""
    unknown = [] if cfg.env.lower() in TASKS else [unknown_name(cfg.env, NOT_A_TASK, TASKS)]
    return unknown + mujoco.pool_faults(cfg)


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> Any:
    """Makes one pool of simulators; sample-factory's factory signature.

    Args:
        full_env_name: such as `metaworld_pick-place-v3`.
        cfg: the parsed flags (`seed`, `env_agents`, `envpool_num_threads`, `num_workers`).
        env_config: sample-factory's record with `env_id`; None when only the spaces are wanted.
        render_mode: not used: the pool draws no pictures.

    Returns:
        An `sf_fixpo.envs.pool.simulators.Pool`.

    Raises:
        ValueError: the name is not one of the suite's tasks.
    """
    from sf_fixpo.envs.pool.simulators import make_pool  # the engine is imported only when an environment is made

    if full_env_name.lower() not in TASKS:
        raise ValueError(unknown_name(full_env_name, NOT_A_TASK, TASKS))
    return make_pool(TASKS[full_env_name.lower()], cfg, env_config, partially_observable=False)


SUITE = Suite(
    name="metaworld",
    description="Meta-World's manipulation tasks (v3), one at a time, simulated by EnvPool",
    env_names=env_names,
    matches=matches,
    missing=mujoco.missing,
    add_args=mujoco.add_args,
    make_env=make_env,
    presets=MappingProxyType({"paper": PAPER, "laptop": LAPTOP}),
    faults=faults,
)
