"""FixPO from a user's own script: sample-factory's functions under their own names, with our learner behind them.

    from sf_fixpo import parse_full_cfg, parse_sf_args, register_env, run_rl

In a script that was written for sample-factory the import of `run_rl` alone is enough to train with FixPO's defaults; that of
`parse_sf_args` too gives the flags.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import sample_factory.cfg.arguments as sf_arguments
from rich.console import Console
from sample_factory.algo.utils.context import global_env_registry
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.learning.checkpoints import CheckpointError
from sf_fixpo.learning.meeting import RanksError
from sf_fixpo.running.joining import this_rank
from sf_fixpo.running.runner import PREEMPTED, InvalidRunError, run_fixpo
from sf_fixpo.running.scripts import Registered, only_registers, present_script
from sf_fixpo.running.settings import BadInputError, add_run_args, parse_sf_args, resumed, run_faults
from sf_fixpo.running.supervision import EnvironmentStartError, Preempted, end_when_preempted, set_console_log_level

__all__ = ["completed", "exit_status", "parse_full_cfg", "parse_sf_args", "run_rl"]

EXIT_STATUS = {ExperimentStatus.SUCCESS: 0, ExperimentStatus.FAILURE: 1, ExperimentStatus.INTERRUPTED: 130, PREEMPTED: 75}
BAD_INPUT = 2


def exit_status(program: str, action: Callable[[], int]) -> int:
    """What `action` returns, or the exit status of what it raises, which is said on the terminal.

    Args:
        program: who says it.
        action: returns an exit status: 0 trained; 1 the run failed; 2 bad input, before any process was started; 75 SIGTERM or
            SIGUSR1 (a cluster takes the machine away): what was learned is saved; 130 Ctrl-C.
    """
    try:
        return action()
    except (BadInputError, InvalidRunError, CheckpointError) as exc:
        for line in str(exc).splitlines():
            print(f"{program}: {line}", file=sys.stderr)
        return BAD_INPUT
    except (EnvironmentStartError, RanksError) as exc:
        print(f"{program}: {exc}", file=sys.stderr)
        return EXIT_STATUS[ExperimentStatus.FAILURE]
    except KeyboardInterrupt:
        return EXIT_STATUS[ExperimentStatus.INTERRUPTED]
    except Preempted:
        return EXIT_STATUS[PREEMPTED]


def take_part() -> bool:
    """As one rank of a run that several programs make together, where the environment says so (`running.joining`).

    Returns:
        Whether this is the one that speaks for all.

    Raises:
        BadInputError: the environment says it in part, or there are more ranks than GPUs.
    """
    try:
        rank = this_rank()
    except ValueError as exc:
        raise BadInputError(str(exc)) from None
    return rank is None or rank.number == 0


parse_full_cfg = sf_arguments.parse_full_cfg


def completed(cfg: Any) -> AttrDict:
    """A script's configuration with FixPO's defaults where it says nothing, and what a resumed experiment was started with.

    Args:
        cfg: of sample-factory's parser, or of ours.

    Raises:
        BadInputError: what cannot be run, all faults in one message.
    """
    given = dict(cfg) if isinstance(cfg, dict) else vars(cfg)
    cli_args = given.get("cli_args", {})
    parser = argparse.ArgumentParser(add_help=False)
    add_run_args(parser)
    own = vars(parser.parse_args([]))
    # sample-factory's own default of these two is no wish of the user's
    chosen = {key: own[key] for key in ("algo", "device") if key not in cli_args and "eps_kl" not in given}
    cfg = resumed(Namespace(**{**own, **given, **chosen}))
    cfg.task_names, cfg.script = [cfg.env], present_script()
    if cfg.env not in global_env_registry():
        raise BadInputError(f"--env={cfg.env}: the script registers no such environment (register_env)")
    if found := run_faults(cfg):
        raise BadInputError("\n".join(found))
    return cfg


def run_rl(cfg: Any) -> int:
    """Trains with FixPO what a script has registered with sample-factory: environments, encoders, cores, actor-critics.

    Args:
        cfg: as `parse_full_cfg` returns it, sample-factory's or ours. `--algo=APPO` trains with sample-factory's learner.

    Returns:
        The exit status (see `exit_status`), as a script hands it to `sys.exit`.
    """
    if only_registers():
        raise Registered

    def train() -> int:
        take_part()
        complete = completed(cfg)
        set_console_log_level(complete.log_level)
        return EXIT_STATUS[run_fixpo(complete, global_env_registry()[complete.env], Console())]

    set_console_log_level("warning")
    end_when_preempted()
    return exit_status("run_rl", train)
