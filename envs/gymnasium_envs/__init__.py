"""Any environment registered with Gymnasium, as `gym_<id>`: `gym_CartPole-v1`, `gym_Pendulum-v1`, your own.

`gym_<module>:<id>` imports the module that registers it first; `gym_<module>:<function>` calls a function instead of
`gymnasium.make`, which may also return one of Gymnasium's vector environments, or one of PettingZoo's parallel API.
`pettingzoo_<family>.<name>` is short for such a function of PettingZoo's own.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.gymnasium_envs import engines
from sf_fixpo.envs.names import did_you_mean
from sf_fixpo.envs.suite import Suite

PREFIX = "gym_"
PETTINGZOO_PREFIX = "pettingzoo_"

# Those that need nothing but PettingZoo and pygame; any other works where what it needs is installed.
PETTINGZOO_COMMON = ("mpe.simple_spread_v3", "butterfly.cooperative_pong_v5", "butterfly.knights_archers_zombies_v10")

COMMON = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")

LAPTOP = MappingProxyType(
    {
        # Sampling: 8 environments x 128 steps = 1024 samples an update, collected and learned in turn, in one process.
        "serial_mode": True,
        "async_rl": False,
        "batched_sampling": False,
        "num_workers": 1,
        "num_envs_per_worker": 8,
        "worker_num_splits": 1,
        "rollout": 128,
        "recurrence": -1,  # 1, or with --use_rnn=True the rollout
        "train_for_env_steps": 150_000,
        "device": "cpu",
        # One update: 10 epochs of 4 minibatches.
        "batch_size": 256,
        "num_batches_per_epoch": 4,
        "num_epochs": 10,
        "shuffle_minibatches": True,
        "learning_rate": 1e-3,
        "lr_schedule": "linear_decay",
        "max_grad_norm": 0.5,
        # FixPO, as the authors set it for small networks.
        "eps_kl": 0.5,
        "c_beta": 3.0,
        "beta_lr": 0.01,
        "beta_init": 1.0,
        "fixup_batch_size": 1024,
        # The rest of the loss; the clip ratio is APPO's.
        "ppo_clip_ratio": 0.2,
        "ppo_clip_value": 1e6,
        "kl_loss_coeff": 0.0,
        "value_loss_coeff": 0.5,
        "exploration_loss_coeff": 0.0,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "with_vtrace": False,
        "value_bootstrap": True,
        "normalize_input": True,
        "normalize_returns": True,
        "actor_critic_share_weights": False,
        "encoder_mlp_layers": [64, 64],
        "nonlinearity": "tanh",
        "use_rnn": False,
        "policy_initialization": "orthogonal",
        "adaptive_stddev": False,
        "initial_stddev": math.exp(-0.5),
    }
)

# The authors ran no environments of this kind: `paper` is their MuJoCo learning rate and run length on the same settings.
PAPER = MappingProxyType({**LAPTOP, "learning_rate": 3e-4, "train_for_env_steps": 1_000_000})


def env_names() -> tuple[str, ...]:
    """The classic-control tasks, which need nothing but Gymnasium; any other registered id works too."""
    return tuple(f"{PREFIX}{env_id}" for env_id in COMMON)


def matches(env_name: str) -> bool:
    """Whether a name has this suite's prefix."""
    return env_name.startswith(PREFIX)


def missing() -> str | None:
    """None where Gymnasium is installed, else the command that installs it."""
    return None if importlib.util.find_spec("gymnasium") is not None else "pip install 'gymnasium>=0.29,<1.0'"


def add_args(parser: ArgumentParser) -> None:
    """Adds `--env_kwargs` and `--env_wrappers`."""
    parser.add_argument(
        "--env_kwargs", default="{}", metavar="JSON", help='Arguments of the environment, such as \'{"map_name": "8x8"}\''
    )
    parser.add_argument(
        "--env_wrappers",
        default="",
        metavar="MODULE:FUNCTION",
        help="What is called with the environment and returns it wrapped; several, comma-separated, innermost first",
    )


def _find_modules_here() -> None:
    """The present folder, where `python -m` looks for modules and a console program does not."""
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)


def _env_kwargs(text: str) -> dict[str, Any]:
    """The arguments of `--env_kwargs`.

    Raises:
        ValueError: not a JSON object.
    """
    try:
        kwargs = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"--env_kwargs={text}: must be a JSON object ({exc})") from None
    if not isinstance(kwargs, dict):
        raise ValueError(f'--env_kwargs={text}: must be a JSON object, such as {{"map_name": "8x8"}}')
    return kwargs


def _wrappers(text: str) -> list[Callable[[Any], Any]]:
    """The functions of `--env_wrappers`.

    Raises:
        ValueError: one of them does not exist.
    """
    found = []
    for name in filter(None, text.split(",")):
        module, _, function = name.partition(":")
        try:
            found.append(getattr(importlib.import_module(module), function))
        except (ImportError, AttributeError, ValueError) as exc:
            raise ValueError(f"--env_wrappers={name}: must be MODULE:FUNCTION ({exc})") from None
    return found


def _id_of(env_name: str) -> str:
    """What follows the prefix, as `_make` takes it."""
    if env_name.startswith(PETTINGZOO_PREFIX):
        return f"pettingzoo.{env_name.removeprefix(PETTINGZOO_PREFIX)}:parallel_env"
    return env_name.removeprefix(PREFIX)


def _checked(made: Any, who: str) -> Any:
    """What a user's function has made, which must be an environment.

    Raises:
        TypeError: it is none.
    """
    import gymnasium

    if not isinstance(made, gymnasium.Env | gymnasium.vector.VectorEnv) and not hasattr(made, "possible_agents"):
        raise TypeError(f"{who} returned {made!r}: must be an environment of Gymnasium, or of PettingZoo's parallel API")
    return made


def _make(env_id: str, kwargs: dict[str, Any]) -> Any:
    """By a function of a module, by Gymnasium's registry, or by its registry of vector environments."""
    import gymnasium

    module_name, _, name = env_id.rpartition(":")
    if module_name:
        module = importlib.import_module(module_name)
        function = getattr(module, name, None)
        if callable(function) and name not in gymnasium.registry:
            return _checked(function(**kwargs), name)
    spec = gymnasium.registry.get(name)
    if spec is not None and spec.entry_point is None and getattr(spec, "vector_entry_point", None) is not None:
        return gymnasium.make_vec(name, vectorization_mode="custom", **kwargs)
    return gymnasium.make(env_id, disable_env_checker=True, **kwargs)


def _made(env_name: str, cfg: Any, render_mode: str | None = None) -> Any:
    """The environment itself, wrapped as the flags say."""
    _find_modules_here()
    # Not every environment takes a render mode, even None.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    kwargs = {**rendering, **_env_kwargs(getattr(cfg, "env_kwargs", "{}"))}
    env = _make(_id_of(env_name), kwargs)
    for wrapper in _wrappers(getattr(cfg, "env_wrappers", "")):
        env = _checked(wrapper(env), f"--env_wrappers: {getattr(wrapper, '__name__', wrapper)}")
    return env


def faults(cfg: Any) -> list[str]:
    """Makes the environment once, to refuse an unknown id, a missing engine or unsuitable spaces before training starts.

    Args:
        cfg: the parsed flags (`env`, `env_kwargs`, `env_wrappers`).

    Returns:
        One line a fault: the flag, its value, what is allowed.
    """
    import gymnasium

    from sf_fixpo.envs.gymnasium_envs.actions import UnsuitableSpaceError
    from sf_fixpo.envs.gymnasium_envs.adapter import space_faults
    from sf_fixpo.envs.gymnasium_envs.several import agents_of, is_several

    try:
        _env_kwargs(getattr(cfg, "env_kwargs", "{}"))
        _find_modules_here()
        _wrappers(getattr(cfg, "env_wrappers", ""))
    except ValueError as error:
        return [str(error)]
    try:
        env = _made(cfg.env, cfg)
    except gymnasium.error.DependencyNotInstalled as error:
        return [f"--env={cfg.env}: its engine is not installed: {error}"]
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        if (hint := engines.ale_hint(cfg.env.removeprefix(PREFIX), engines.installed("ale-py"))) is not None:
            return [f"--env={cfg.env}: {hint}"]
        known = [f"{PREFIX}{name}" for name in gymnasium.registry]
        hint = "" if ":" in cfg.env else did_you_mean(cfg.env, known)
        hint = hint or "name the module that registers it, in the present folder or on PYTHONPATH, as in gym_my_module:MyEnv-v0;"
        return [f"--env={cfg.env}: {str(error).rstrip('. ')}; {hint} --list_envs shows the common ones."]
    except Exception as error:  # noqa: BLE001 - a user's own code: whatever it raises is why there is no environment
        if (hint := engines.mujoco_hint(str(error), engines.installed("mujoco"))) is not None:
            return [f"--env={cfg.env}: {hint}"]
        arguments = getattr(cfg, "env_kwargs", "{}")
        return [
            f"--env={cfg.env}, --env_kwargs={arguments}: cannot be made: {type(error).__name__}: {error}; look at what it takes"
        ]
    try:
        parts = agents_of(env) if is_several(env) else env
        found = space_faults(parts.observation_space, parts.action_space)
        if parts is not env and getattr(cfg, "batched_sampling", False):
            return [f"--batched_sampling=True, --env={cfg.env}: an environment of several agents needs --batched_sampling=False"]
    except UnsuitableSpaceError as error:
        found = [str(error)]
    finally:
        env.close()
    return [f"--env={cfg.env}: {fault}" for fault in found]


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> Any:
    """Makes one environment; sample-factory's factory signature.

    Args:
        full_env_name: `gym_` and an id that Gymnasium knows.
        cfg: the parsed flags (`seed`, `env_kwargs`, `env_wrappers`).
        env_config: sample-factory's record with `env_id`; None when only the spaces are wanted.
        render_mode: Gymnasium's, or None.

    Returns:
        An `sf_fixpo.envs.gymnasium_envs.adapter.GymAdapter`, or of several agents a `several.SeveralAdapter`.

    Raises:
        gymnasium.error.Error: Gymnasium cannot make it (see `faults`).
    """
    from sf_fixpo.envs.gymnasium_envs.adapter import GymAdapter
    from sf_fixpo.envs.gymnasium_envs.several import SeveralAdapter, is_several

    env = _made(full_env_name, cfg, render_mode)
    return SeveralAdapter(env, cfg, env_config) if is_several(env) else GymAdapter(env, cfg, env_config)


SUITE = Suite(
    name="gym",
    description="any id registered with Gymnasium, or module:id, such as",
    env_names=env_names,
    matches=matches,
    missing=missing,
    add_args=add_args,
    make_env=make_env,
    presets=MappingProxyType({"paper": PAPER, "laptop": LAPTOP}),
    faults=faults,
)


def _pettingzoo_missing() -> str | None:
    return None if importlib.util.find_spec("pettingzoo") is not None else "pip install 'sf_fixpo[pettingzoo]'"


PETTINGZOO = replace(
    SUITE,
    name="pettingzoo",
    description="PettingZoo's parallel API, family.name, such as",
    env_names=lambda: tuple(f"{PETTINGZOO_PREFIX}{name}" for name in PETTINGZOO_COMMON),
    matches=lambda env_name: env_name.startswith(PETTINGZOO_PREFIX),
    missing=_pettingzoo_missing,
)
