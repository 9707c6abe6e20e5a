"""Training scripts of users: which script a run was started by, and how what it registers is found again to play the result.

A script registers an environment, or parts of a network, with sample-factory, and calls `run_rl` or the program `sf_fixpo.train`.
A run remembers it, and whoever plays or audits the run lets the script register again, up to that call.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import sample_factory.cfg.arguments as sf_arguments
import sample_factory.train as sf_train
from sample_factory.algo.utils.context import global_env_registry, global_model_factory
from sample_factory.model.model_factory import ModelFactory

from sf_fixpo.envs import Suite, adopt_suite
from sf_fixpo.running.finding import ScriptError, find_script
from sf_fixpo.running.settings import parse_sf_args


class Registered(BaseException):
    """Ends a script where it would train; no error, and nothing that a script's own `except Exception` would catch."""


_asked_to_register = False
_adopted: list[dict[str, Any]] = []  # scripts that have registered in this process


def only_registers() -> bool:
    """Whether the script that calls is run for what it registers alone."""
    return _asked_to_register


def present_script() -> dict[str, Any]:
    """How the running program was started: `module` or `path`, and `argv`; empty where nobody could start it again."""
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return {"module": spec.name, "argv": sys.argv[1:]}
    return {"path": os.path.abspath(path), "argv": sys.argv[1:]} if path else {}


def registering_script() -> dict[str, Any]:
    """As `present_script`; empty too where it has registered no part of a network, so that nobody needs it to play the run."""
    return present_script() if vars(global_model_factory()) != vars(ModelFactory()) else {}


def run_script(script: dict[str, Any]) -> None:
    """Runs a script as `__main__`, as the interpreter would.

    Args:
        script: `module`, a module's name, or `path`, a file's; and `argv`.

    Raises:
        ScriptError: there is no such script.
        SystemExit: the script's own.
    """
    find_script(script)
    if "module" in script:
        sys.argv = [script["module"], *script["argv"]]
        runpy.run_module(script["module"], run_name="__main__", alter_sys=True)
        return
    sys.path.insert(0, os.path.dirname(os.path.abspath(script["path"])))
    sys.argv = [script["path"], *script["argv"]]
    runpy.run_path(script["path"], run_name="__main__")


@contextmanager
def _registering() -> Iterator[None]:
    """A script that runs inside comes as far as its call of `run_rl`, whoever's it calls."""
    global _asked_to_register
    argv, main, _asked_to_register = sys.argv, sys.modules["__main__"], True
    before = sf_train.run_rl, sf_arguments.parse_sf_args
    sf_train.run_rl, sf_arguments.parse_sf_args = _end, parse_sf_args
    try:
        yield
    finally:
        sys.argv, _asked_to_register = argv, False
        sys.modules["__main__"] = main
        sf_train.run_rl, sf_arguments.parse_sf_args = before


def _end(cfg: Any) -> int:
    raise Registered


def adopt(cfg: Any) -> None:
    """Makes the environment and the network of a run that a script has started known in this process; others are known.

    Args:
        cfg: the run's configuration.

    Raises:
        ScriptError: the script cannot be run any more, or does not register the environment.
    """
    script = cfg.get("script")
    if not script:
        return
    if not _has_registered(cfg.env, script):
        with _registering():
            try:
                run_script(script)
            except Registered:
                _adopted.append(script)
            except SystemExit as exc:
                raise ScriptError(
                    f"{_called(script)} ended (status {exc.code}) before it came to train; it must call run_rl"
                ) from exc
    if script.get("suite"):  # the environment is one of ours, and only the network may be the script's
        return
    if cfg.env not in global_env_registry():
        raise ScriptError(f"{_called(script)} does not register the environment {cfg.env}")
    adopt_suite(script_suite(cfg.env))


def _has_registered(env_name: str, script: dict[str, Any]) -> bool:
    """Whether what a script registers is known in this process: it is the running program, or was run before."""
    if script.get("suite"):
        own = {key: value for key, value in script.items() if key != "suite"}
        return script in _adopted or own == present_script()
    return env_name in global_env_registry()


def _called(script: dict[str, Any]) -> str:
    return script.get("module") or script["path"]


def script_suite(env_name: str) -> Suite:
    """The one environment that a script has registered, as a suite."""
    return Suite(
        name="script",
        description="registered by a training script",
        env_names=lambda: (env_name,),
        matches=lambda name: name == env_name,
        missing=lambda: None,
        add_args=lambda parser: None,
        make_env=global_env_registry()[env_name],
        presets=MappingProxyType({}),
    )
