"""FixPO (Zentner et al. 2023) as a learner for sample-factory: a trust region that holds on every policy update.

What a user's script needs is here, and imported when it is first asked for: `run_rl`, `parse_sf_args` and `parse_full_cfg` as in
sample-factory, `register_env` and `global_model_factory` to register environments and networks, `FixPOConfig`, and what plays a
trained policy: `load_config`, `find_checkpoint`, `evaluate_policy`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sample_factory.algo.utils.context import global_model_factory
    from sample_factory.envs.env_utils import register_env

    from sf_fixpo.algorithm.config import FixPOConfig
    from sf_fixpo.api import parse_full_cfg, parse_sf_args, run_rl
    from sf_fixpo.playing.evaluation import evaluate as evaluate_policy
    from sf_fixpo.playing.experiment import find_checkpoint, load_config

__version__ = "0.2.0"

_PUBLIC = {
    "run_rl": ("sf_fixpo.api", "run_rl"),
    "parse_sf_args": ("sf_fixpo.api", "parse_sf_args"),
    "parse_full_cfg": ("sf_fixpo.api", "parse_full_cfg"),
    "register_env": ("sample_factory.envs.env_utils", "register_env"),
    "global_model_factory": ("sample_factory.algo.utils.context", "global_model_factory"),
    "FixPOConfig": ("sf_fixpo.algorithm.config", "FixPOConfig"),
    "load_config": ("sf_fixpo.playing.experiment", "load_config"),
    "find_checkpoint": ("sf_fixpo.playing.experiment", "find_checkpoint"),
    "evaluate_policy": ("sf_fixpo.playing.evaluation", "evaluate"),
}

__all__ = [
    "FixPOConfig",
    "__version__",
    "evaluate_policy",
    "find_checkpoint",
    "global_model_factory",
    "load_config",
    "parse_full_cfg",
    "parse_sf_args",
    "register_env",
    "run_rl",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for; to import the package itself costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sf_fixpo' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
