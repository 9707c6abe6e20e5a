"""What every environment suite provides, and nothing else: one frozen record of plain functions."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# sample-factory leaves these to the environments.
ENV_FLAGS = ("env_framestack", "pixel_format")


class EnvError(ValueError):
    """An environment gave what it may not; the message says which one, what, and when. The user's to mend, so no traceback."""


@dataclass(frozen=True)
class Suite:
    """One family of environments behind one prefix.

    Attributes:
        name: folder name under `envs/`, and the pip extra that installs what it needs.
        description: one line for `--list_envs`.
        env_names: the names known by heart: listed, and searched for near names. A suite with an open-ended set (`gym_<id>`)
            gives its common ones.
        listing: the suite's lines in `--list_envs`, where its names alone do not say enough; None: the names.
        notes: what is said on the terminal before a training starts, one line each: what it will take here.
        matches: whether a name belongs to this suite (it may still be unknown to it: see `faults`).
        missing: None where the suite can run on this machine, else what to install, as a command.
        add_args: adds the suite's own flags.
        presets: flag defaults by preset name. `paper` holds the authors' settings, `laptop` what learns on two CPU cores.
        defaults: flag defaults that follow from other flags, of the preset and the command line, and go before the preset's.
        faults: checks the suite's flags and the environment's name; one line a fault (flag, value, what is allowed).
        share_faults: checks how a training shares its environments out among its tasks, which is no matter of an evaluation.
        tasks: names of the tasks that a run's environments are split among, in the order of their task ids; one for most. The
            environments of a run with several give the number of theirs as the observation `task_id`, (1,) int32, which the
            learner takes out again before the policy, and report the undiscounted, unshaped return of an episode in
            `episode_extra_stats` under a key `z_<task id, two digits>_..._raw_score`.
        evaluation_envs: names of the environments on which a run is evaluated, one for each task; a second argument, `test` (the
            default) or `train`, says which variant of a task where there are two.
        env_flags: which of sample-factory's flags about observations (`ENV_FLAGS`) it heeds; others are refused.
        make_env: environment factory in sample-factory's form, `(full_env_name, cfg, env_config, render_mode)`; a module-level
            function, because it is sent to spawned processes.
    """

    name: str
    description: str
    env_names: Callable[[], tuple[str, ...]]
    matches: Callable[[str], bool]
    missing: Callable[[], str | None]
    add_args: Callable[[ArgumentParser], None]
    make_env: Callable[..., Any]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    env_flags: tuple[str, ...] = ()
    listing: Callable[[], list[str]] | None = None
    notes: Callable[[Any], list[str]] = lambda cfg: []
    defaults: Callable[[Any], Mapping[str, Any]] = lambda cfg: {}
    faults: Callable[[Any], list[str]] = lambda cfg: []
    share_faults: Callable[[Any], list[str]] = lambda cfg: []
    tasks: Callable[[Any], tuple[str, ...]] = lambda cfg: (cfg.env,)
    evaluation_envs: Callable[..., tuple[str, ...]] = lambda cfg, split="test": (cfg.env,)
