"""What the suites that EnvPool simulates share: their flags, what is checked, and how a table of names becomes a suite."""

from __future__ import annotations

import importlib.util
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sf_fixpo.envs.names import unknown_name
from sf_fixpo.envs.suite import Suite


def missing() -> str | None:
    """None where EnvPool is installed, else the command that installs it."""
    if importlib.util.find_spec("envpool") is not None:
        return None
    return "pip install 'envpool>=1.2.5'   (Python 3.11 or later)"


def add_args(parser: ArgumentParser) -> None:
    """Adds the flags of a pool."""
    parser.add_argument("--env_agents", default=64, type=int, help="Simulators in one EnvPool, stepped together")
    parser.add_argument(
        "--envpool_num_threads",
        default=0,
        type=int,
        help="Threads that step one EnvPool; 0 shares the machine's logical cores among the --num_workers workers",
    )


def pool_faults(cfg: Any) -> list[str]:
    """What is wrong with the flags that a pool depends on; one line a fault: the flag, its value, what is allowed."""
    found = []
    if cfg.env_agents < 1:
        found.append(f"--env_agents={cfg.env_agents}: must be at least 1")
    if cfg.envpool_num_threads < 0:
        found.append(f"--envpool_num_threads={cfg.envpool_num_threads}: must be 0 (share the cores) or more")
    if not cfg.batched_sampling:
        found.append("--batched_sampling=False: must be True, a pool of simulators is stepped as one batch")
    if cfg.num_envs_per_worker != cfg.worker_num_splits:
        found.append(
            f"--num_envs_per_worker={cfg.num_envs_per_worker}: must equal --worker_num_splits={cfg.worker_num_splits}, "
            "one pool for each; more simulators are --env_agents"
        )
    return found


def engine_task(tasks: Mapping[str, str], env_name: str) -> str | None:
    """EnvPool's name of a task, or None for one that is not in the table. Upper and lower case are the same."""
    return {name.lower(): task for name, task in tasks.items()}.get(env_name.lower())


def _unknown(suite: str, tasks: Mapping[str, str], env_name: str) -> str:
    return unknown_name(env_name, f"not a task of the {suite} suite", tasks)


def make_env(
    suite: str,
    tasks: Mapping[str, str],
    options: Mapping[str, Any],
    full_env_name: str,
    cfg: Any,
    env_config: Any = None,
    render_mode: str | None = None,
) -> Any:
    """Makes one pool of simulators; with its first three arguments given, sample-factory's factory signature.

    Args:
        suite: its name.
        tasks: EnvPool's names by ours.
        options: of EnvPool, for every task.
        full_env_name: such as `mujoco_HalfCheetah`.
        cfg: the parsed flags (`seed`, `env_agents`, `envpool_num_threads`, `num_workers`).
        env_config: sample-factory's record with `env_id`; None when only the spaces are wanted.
        render_mode: not used: the pool draws no pictures (its `render` says so).

    Returns:
        An `sf_fixpo.envs.pool.simulators.Pool`.

    Raises:
        ValueError: the name is not one of the suite's tasks.
    """
    from sf_fixpo.envs.pool.simulators import make_pool  # the engine is imported only when an environment is made

    task = engine_task(tasks, full_env_name)
    if task is None:
        raise ValueError(_unknown(suite, tasks, full_env_name))
    return make_pool(task, cfg, env_config, **options)


def pool_suite(
    name: str,
    description: str,
    tasks: Mapping[str, str],
    presets: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any] | None = None,
    own_faults: Callable[[Any], list[str]] = lambda cfg: [],
) -> Suite:
    """A suite out of a table of names.

    Args:
        name: of the suite; its environments' names begin with it and an underscore.
        description: as `Suite` has it.
        tasks: EnvPool's names by ours.
        presets: as `Suite` has them.
        options: of EnvPool, for every task.
        own_faults: what else is wrong with the flags, beside a pool's own.
    """

    def faults(cfg: Any) -> list[str]:
        unknown = [] if engine_task(tasks, cfg.env) else [_unknown(name, tasks, cfg.env)]
        return unknown + own_faults(cfg) + pool_faults(cfg)

    return Suite(
        name=name,
        description=description,
        env_names=lambda: tuple(tasks),
        matches=lambda env_name: env_name.lower().startswith(f"{name}_"),
        missing=missing,
        add_args=add_args,
        make_env=partial(make_env, name, dict(tasks), dict(options or {})),
        presets=presets,
        faults=faults,
    )
