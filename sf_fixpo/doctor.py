"""Is this machine fit for training? Versions, GPU, cores, shared memory, disk, every engine: a line each, with what to do.

    python -m sf_fixpo.doctor [--env=NAME] [--train_dir=train_dir] [--json]

With `--env` that environment alone is started and drawn; without it one of each suite. An engine that is not installed is a
warning, and a failure where `--env` asks for it.

Exit status: 0 nothing fails; 1 something does; 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from rich.console import Console
from rich.text import Text

from sf_fixpo import cli
from sf_fixpo.envs import SUITES, Suite, UnknownEnvError, find_suite
from sf_fixpo.playing.trial import TrialError, attempt, draw_pictures, play_steps
from sf_fixpo.running.machine import FAIL, OK, WARN, Check, machine_checks
from sf_fixpo.running.settings import BadInputError
from sf_fixpo.running.supervision import set_console_log_level

_PROGRAM = "fixpo-doctor"
_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
# What stands for a suite; of one that is not here its first name does.
_EXAMPLES = {"dmlab": "dmlab_30_rooms_collect_good_objects", "gym": "gym_CartPole-v1", "mujoco": "mujoco_HalfCheetah"}


def make_cfg(env: str) -> Any:
    """The configuration of a run that nobody starts.

    Raises:
        BadInputError: unknown environment, or one that lacks something.
    """
    from sf_fixpo import train

    return train.parse_cfg([f"--env={env}", "--device=cpu", f"--train_dir={tempfile.gettempdir()}", "--experiment=.fixpo_doctor"])


def choose_envs(env: str | None) -> dict[str, Suite]:
    """The environments to try, with their suites: the one asked for, or one of each suite.

    Raises:
        UnknownEnvError: no suite claims it.
        BadInputError: its suite can run here, and does not know it.
    """
    if env is None:
        return {_EXAMPLES.get(suite.name, suite.env_names()[0]): suite for suite in SUITES}
    suite = find_suite(env)
    if suite.missing() is None:
        make_cfg(env)
    return {env: suite}


def engine_check(env: str, suite: Suite, asked: bool, timeout: float) -> Check:
    """Whether an environment starts.

    Args:
        env: its name.
        suite: its suite.
        asked: whether it must.
        timeout: seconds.
    """
    name = f"engine {env}"
    if needed := suite.missing():
        return Check(name, FAIL if asked else WARN, "cannot run here yet", needed)
    try:
        return Check(name, OK, attempt(play_steps, make_cfg(env), timeout))
    except BadInputError as exc:
        return Check(name, WARN, "is refused", " ".join(str(exc).split()))
    except TrialError as exc:
        return Check(
            name, FAIL, f"does not start: {exc}", f"fixpo-train --env={env} --serial_mode=True shows the engine's own error"
        )


def rendering_check(env: str, timeout: float) -> Check:
    """Whether pictures of an environment can be drawn and made a film."""
    try:
        return Check("rendering", OK, attempt(draw_pictures, make_cfg(env), timeout))
    except TrialError as exc:
        return Check("rendering", WARN, f"{env}: {exc}", "training does without; fixpo-enjoy needs it")


def engine_checks(envs: Mapping[str, Suite], asked: bool, timeout: float) -> Iterator[Check]:
    """One check for each environment; then one for the pictures of one that starts."""
    well = []
    for name, suite in envs.items():
        check = engine_check(name, suite, asked, timeout)
        well += [name] if check.status == OK else []
        yield check
        if suite.name == "dmlab" and check.status == OK:
            yield _real_lab()
    if drawn := next((name for name in (_EXAMPLES["gym"], *well) if name in well), None):
        yield rendering_check(drawn, timeout)


def _real_lab() -> Check:
    """Whether DMLab's levels are played by DeepMind Lab itself: results on the stand-in are not DMLab-30 results."""
    from sf_fixpo.envs.dmlab.engines import DEEPMIND_LAB, INSTALL, lack

    if reason := lack(DEEPMIND_LAB):
        return Check("DeepMind Lab", WARN, f"it {reason}: the ViZDoom stand-in plays its levels", INSTALL[DEEPMIND_LAB])
    return Check("DeepMind Lab", OK, "installed")


def show(console: Console, check: Check) -> None:
    """One line, and below it what to do."""
    line = Text.assemble((f"{check.status:<5}", _STYLES[check.status]), f"{check.name}: {check.found}")
    console.print(line, soft_wrap=True)
    if check.advice:
        console.print(Text(f"     -> {check.advice}", style="dim"), soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--env", help="the environment that has to run here; default: one of each suite")
    parser.add_argument("--train_dir", default="train_dir", help="folder of the runs, whose disk is tried; default: train_dir")
    parser.add_argument("--env_start_timeout", default=60.0, type=float, help="seconds an environment may take to start")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    args = cli.parse(parser, argv)
    if not args.env_start_timeout > 0:
        parser.error(f"--env_start_timeout={args.env_start_timeout}: must be a number > 0, seconds")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    set_console_log_level("error")
    console, checks = Console(), []
    try:
        envs = choose_envs(args.env)
        for check in chain(machine_checks(args.train_dir), engine_checks(envs, args.env is not None, args.env_start_timeout)):
            checks.append(check)
            if not args.json:
                show(console, check)
    except (UnknownEnvError, BadInputError) as exc:
        for line in str(exc).splitlines():
            print(f"{_PROGRAM}: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    worst = next((status for status in (FAIL, WARN) if any(check.status == status for check in checks)), OK)
    counts = {status: sum(check.status == status for check in checks) for status in (OK, WARN, FAIL)}
    if args.json:
        print(json.dumps({"status": worst, "checks": [check.to_row() for check in checks]}, indent=1))
    else:
        console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    return int(worst == FAIL)


if __name__ == "__main__":
    sys.exit(main())
