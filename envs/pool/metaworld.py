"""Meta-World's fifty manipulation tasks (v3) through EnvPool: the paper's second benchmark (section 4.1).

`metaworld_pick-place-v3`, as Meta-World names it. The arm's start and the goal are drawn anew every episode, and the goal is
seen. Beside the return each finished episode reports `success`: whether the task was done at any step. `metaworld_mt10` and
`metaworld_mt50` are several tasks for one policy, `metaworld_mt10:reach-v3` one of these as that policy sees it.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.names import unknown_name
from sf_fixpo.envs.pool import mujoco
from sf_fixpo.envs.pool.suites import engine_task, pool_faults, pool_suite

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

_MT10 = ("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown", "peg-insert-side")
_MT10 += ("window-open", "window-close")
# Tasks of one run, in the order of their ids.
SETS = MappingProxyType({f"{PREFIX}mt{len(s)}": tuple(f"{name}-v3" for name in s) for s in (_MT10, _NAMES)})
_OPTIONS = MappingProxyType({"partially_observable": False})  # the goal is seen


def set_of(env_name: str) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """The tasks of a name such as `metaworld_mt10` and the ids of those that are played (`metaworld_mt10:reach-v3`: one).

    Returns:
        None where the name is no set's, or a set has no such task.
    """
    name, _, one = env_name.lower().partition(":")
    tasks = SETS.get(name)
    if tasks is None or (one and one not in tasks):
        return None
    return tasks, (tasks.index(one),) if one else tuple(range(len(tasks)))


_ONE_TASK = pool_suite(
    "metaworld",
    "Meta-World's manipulation tasks (v3), one at a time, or ten or fifty for one policy, simulated by EnvPool",
    TASKS,
    MappingProxyType({"paper": PAPER, "laptop": LAPTOP}),
    options=_OPTIONS,
)


def faults(cfg: Any) -> list[str]:
    """What is wrong with the flags or the name, one line a fault."""
    if (found := set_of(cfg.env)) is None:
        if engine_task(TASKS, cfg.env):
            return _ONE_TASK.faults(cfg)
        return [unknown_name(cfg.env, "not a task of the metaworld suite", (*TASKS, *SETS)), *pool_faults(cfg)]
    played = len(found[1])
    if cfg.env_agents % played or cfg.env_agents < 1:
        return [f"--env_agents={cfg.env_agents}: must be a multiple of the {played} tasks of {cfg.env}", *pool_faults(cfg)]
    return pool_faults(cfg)


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> Any:
    """Makes one pool, or a set's; sample-factory's factory signature.

    Raises:
        ValueError: the name is neither a task's nor a set's.
    """
    if (found := set_of(full_env_name)) is None:
        return _ONE_TASK.make_env(full_env_name, cfg, env_config, render_mode)
    from sf_fixpo.envs.pool.multitask import TaskPools
    from sf_fixpo.envs.pool.simulators import make_pool

    names, ids = found
    own = Namespace(**{**vars_of(cfg), "env_agents": cfg.env_agents // len(ids)})
    # a seed of its own for each task's simulators, or all would draw the same goals
    number = env_config.env_id if env_config is not None else 0
    configs = [Namespace(env_id=number * len(names) + task) if env_config is not None else None for task in ids]
    pools = [
        make_pool(TASKS[f"{PREFIX}{names[task]}"], own, config, **_OPTIONS) for task, config in zip(ids, configs, strict=True)
    ]
    return TaskPools(pools, [names[task] for task in ids], ids, len(names))


def vars_of(cfg: Any) -> dict[str, Any]:
    """Flags by name, of sample-factory's cfg or of argparse's."""
    return dict(cfg) if isinstance(cfg, dict) else dict(vars(cfg))


def tasks(cfg: Any) -> tuple[str, ...]:
    """The run's tasks, in the order of their ids."""
    found = set_of(cfg.env)
    return (cfg.env,) if found is None else tuple(found[0][task] for task in found[1])


def evaluation_envs(cfg: Any, split: str = "test") -> tuple[str, ...]:
    """The tasks one by one, as the policy of their set sees them."""
    del split
    found = set_of(cfg.env)
    if found is None or len(found[1]) == 1:
        return (cfg.env,)
    return tuple(f"{cfg.env.lower()}:{name}" for name in found[0])


SUITE = replace(
    _ONE_TASK,
    env_names=lambda: (*TASKS, *SETS),
    make_env=make_env,
    faults=faults,
    tasks=tasks,
    evaluation_envs=evaluation_envs,
)
