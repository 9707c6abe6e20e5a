"""An experiment's folder, as the programs that play it find their way in it."""

from __future__ import annotations

import json
from pathlib import Path

from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.envs import UnknownEnvError, find_suite
from sf_fixpo.records.foreign import PLACES, foreign_faults, is_from_outside
from sf_fixpo.running.scripts import ScriptError, adopt
from sf_fixpo.running.settings import all_flags, setting_faults

SPLITS = ("test", "train")
CHECKPOINTS = {"best": "best_*.pth", "latest": "checkpoint_*.pth"}


class BadInputError(ValueError):
    """What was asked for does not exist; one line each."""


def find_checkpoint(directory: Path, which: str | None, policy_id: int = 0) -> Path:
    """The checkpoint file that is meant.

    Args:
        directory: the experiment's folder.
        which: `best`, `latest`, a path, or None for the best one, or the latest where none was saved as best.
        policy_id: which policy of a population.

    Raises:
        BadInputError: there is no such file.
    """
    folder = directory / f"checkpoint_p{policy_id}"
    wanted = ("best", "latest") if which is None else (which,)
    for kind in wanted:
        if kind not in CHECKPOINTS:
            if Path(kind).is_file():
                return Path(kind)
            raise BadInputError(f"--checkpoint={kind}: no such file; best, latest, or the path of one")
        files = sorted(folder.glob(CHECKPOINTS[kind]))
        if files:
            return files[-1]
    raise BadInputError(
        f"{folder}: no {' or '.join(wanted)} checkpoint; look at --checkpoint and --policy_id, or wait for the first one"
    )


def load_config(directory: Path, env: str | None = None) -> AttrDict:
    """The run's configuration, checked against what can be played here.

    Args:
        directory: the experiment's folder.
        env: another environment than the one trained on.

    Raises:
        BadInputError: it cannot be read, or its environment cannot be made on this machine.
    """
    return _playable(_read_config(directory), env)


def load_configs(directory: Path, split: str = "test", env: str | None = None) -> list[AttrDict]:
    """The run's configuration for each environment that it is evaluated on.

    Args:
        directory: the experiment's folder.
        split: `test` or `train`: which variants of the levels, where there are two.
        env: another environment than the one trained on; where it is one level, that level and no other variant.

    Raises:
        BadInputError: the configuration cannot be read, or an environment cannot be made on this machine.
    """
    cfg = _read_config(directory)
    run = _playable(cfg, env)
    suite = find_suite(run.env)
    tasks = suite.tasks(run)
    if env and len(tasks) == 1:
        return [run]
    names = suite.evaluation_envs(run, split)
    if run.env in names and len(names) == 1:
        return [run]
    run.env = cfg.env
    return [_playable(run, name) for name in dict.fromkeys(names)]


def task_number(directory: Path, env: str) -> int | None:
    """Which of a run's tasks an environment is; None where it is none of them."""
    try:
        run = _playable(_read_config(directory), None)
    except BadInputError:  # what it was trained on cannot be made here
        return None
    names = [find_suite(run.env).evaluation_envs(run, split) for split in SPLITS]
    return next((tasks.index(env) for tasks in names if env in tasks), None)


def _read_config(directory: Path) -> AttrDict:
    path = directory / "config.json"
    try:
        cfg = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as exc:
        raise BadInputError(f"{path}: cannot be read, is this an experiment folder? {exc}") from exc
    if not isinstance(cfg, dict) or not isinstance(cfg.get("env"), str):
        raise BadInputError(f"{path}: names no environment, is this an experiment folder?")
    if not isinstance(cfg.get("script") or {}, dict):
        raise BadInputError(f"{path}: script={str(cfg['script'])[:40]!r}: must be what a run itself has written there")
    if found := foreign_faults(directory, cfg):
        raise BadInputError("\n".join(found))
    if is_from_outside(directory):  # whose places are not this machine's
        cfg.update(train_dir=str(directory.parent), experiment=directory.name)
        cfg = {key: value for key, value in cfg.items() if key not in PLACES}
    return AttrDict(cfg)


def _playable(cfg: AttrDict, env: str | None) -> AttrDict:
    """A copy of a run's configuration with `env` for its environment, completed and checked."""
    cfg = AttrDict(cfg)
    try:
        adopt(cfg)
    except ScriptError as exc:
        raise BadInputError(str(exc)) from exc
    trained_on, cfg.env = cfg.env, env or cfg.env
    try:
        suite = find_suite(cfg.env)
        if suite is not find_suite(trained_on):  # for a random agent: the run's settings say nothing about this suite
            cfg.update(suite.presets.get("paper", {}))
    except UnknownEnvError as exc:
        raise BadInputError(str(exc)) from None
    flags = all_flags(cfg.env, suite.add_args)
    if found := setting_faults(cfg, flags):
        raise BadInputError("\n".join(f"config.json: {line}" for line in found))
    for flag in flags:  # those younger than the run, or of another suite
        cfg.setdefault(flag.dest, flag.default)
    if cfg.env != trained_on and "dmlab_levels" in cfg:
        cfg.dmlab_levels = ""  # it chose from the levels of the other
    if needed := suite.missing():
        raise BadInputError(f"--env={cfg.env}: {needed}")
    if found := suite.faults(cfg):
        raise BadInputError("\n".join(found))
    return cfg
