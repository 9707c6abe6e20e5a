"""How the programs of several ranks become one run: the same settings everywhere, a GPU each, folders that do not collide.

    torchrun --nproc_per_node=2 -m sf_fixpo.train --env=... --experiment=...

Each rank is this program with actors and a learner of its own. Rank 0 reads and writes the experiment's folder; the others have
one below it for their logs. `learning.meeting` has what is said during the run, `learning.ranks` the numbers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import cache

import torch
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.typing import Config

from sf_fixpo import __version__
from sf_fixpo.learning.meeting import JOIN_SECONDS, Meeting, Rank, RanksError, this_host

FOLDER = "ranks"  # of the experiment's folder: logs of all ranks but the first
_LINGER_SECONDS = 20.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# What may differ between the ranks of a run: where this process was started from, and how it was called.
_OWN = ("cli_args", "command_line", "train_dir", "git_hash", "git_repo_name", "wandb_unique_id")
_OWN += ("mlflow_run_id",)


class DifferentRanksError(ValueError):
    """The ranks are not of one run."""


def take_gpu(rank: Rank, gpus: int, environment: MutableMapping[str, str]) -> list[str]:
    """Leaves this process the GPU that is its own; faults, one line each.

    Args:
        rank: whose number on this machine is that of its GPU.
        gpus: that this machine lets the process see; 0 for a run on CPUs, to which nothing is done.
        environment: of this process.
    """
    if not gpus:
        return []
    if rank.local_count > gpus:
        what = f"--nproc_per_node={rank.local_count}: this machine has {gpus} GPU(s), and each rank takes one"
        return [f"{what}; start no more ranks, or hide the GPUs from a run on CPUs ({_VISIBLE}='')"]
    visible = [name for name in environment.get(_VISIBLE, "").split(",") if name] or [str(i) for i in range(gpus)]
    environment[_VISIBLE] = visible[rank.local]
    return []


def rank_faults(cfg: Config) -> list[str]:
    """What several ranks cannot do, one line a fault; writes down how many there are, for the suite."""
    found = []
    if not 0 < cfg.rank_timeout < float("inf"):
        found.append(f"--rank_timeout={cfg.rank_timeout}: must be a number > 0, seconds")
    rank = this_rank()
    cfg.ranks = 1 if rank is None else rank.count
    if rank is None:
        return found
    if cfg.algo != "FIXPO":
        found.append(f"--algo={cfg.algo}: trains with one learner; several ranks train with FIXPO")
    for flag, allowed in (("num_policies", 1), ("with_pbt", False)):
        if cfg[flag] != allowed:
            found.append(f"--{flag}={cfg[flag]}: must be {allowed} with several ranks, which train one policy")
    return found


def fingerprint(cfg: Config) -> dict[str, str]:
    """All that must be the same on every rank, by name: the flags, and what runs them."""
    flags = {f"--{key}": repr(value) for key, value in sorted(cfg.items()) if key not in _OWN}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "sample-factory")}
    return {**flags, "sf_fixpo": __version__, **versions, "python": platform.python_version()}


def differences(number: int, own: dict[str, str], first: dict[str, str]) -> list[str]:
    """Where a rank's fingerprint is another than rank 0's, one line each."""
    names = [name for name in own | first if own.get(name) != first.get(name)]
    return [
        f"{name}={own.get(name, 'absent')} on rank {number}, {first.get(name, 'absent')} on rank 0: must be the same on all ranks"
        for name in names
    ]


@contextmanager
def joined(cfg: Config) -> Iterator[tuple[Config, Meeting | None]]:
    """Finds the other ranks before any process is started; what goes wrong on the way is said to them.

    Args:
        cfg: of the run.

    Yields:
        (this rank's configuration, where the ranks meet); unchanged and None for one alone.

    Raises:
        DifferentRanksError: the ranks are not of one run: another configuration or version, all differences in one message.
        RanksError: a rank has not come, or failed meanwhile.
    """
    rank = this_rank()
    if rank is None:
        yield cfg, None
        return
    own = fingerprint(cfg)
    meeting = Meeting(rank, cfg.rank_timeout, cfg.env_start_timeout)
    meeting.open()
    meeting.say("host", this_host())
    meeting.say("settings", json.dumps(own))
    everyone = [json.loads(text) for text in meeting.hear_all("settings", JOIN_SECONDS)]
    if found := [line for number, other in enumerate(everyone) for line in differences(number, other, everyone[0])]:
        meeting.say("refused", "yes")
        _linger(meeting, "refused")
        raise DifferentRanksError("\n".join(found))
    if rank.number:
        name = f"{cfg.experiment}/{FOLDER}/{rank.number}"
        cfg = AttrDict(cfg, experiment=name, restart_behavior="resume", with_wandb=False, with_mlflow=False, eval_every=0)
    try:
        yield cfg, meeting
    except BaseException as exc:
        if not isinstance(exc, RanksError):
            meeting.fail(f"{type(exc).__name__}: {exc}")
        raise
    finally:
        with suppress(RanksError):
            meeting.say("left", "yes")
            _linger(meeting, "left")


def _linger(meeting: Meeting, what: str) -> None:
    """The rank that offers the place stays until the others have left it, or a moment."""
    if meeting.rank.hosts:
        with suppress(RanksError):
            meeting.hear_all(what, _LINGER_SECONDS)


def start_together(meeting: Meeting | None, done: bool) -> None:
    """Rank 0 says whether anything is left to do, once it has put the experiment's folder in order."""
    if meeting is not None and meeting.rank.number == 0:
        meeting.say("start", "done" if done else "go")


def is_done(meeting: Meeting) -> bool:
    """On every other rank: waits for rank 0 to say it.

    Raises:
        RanksError: rank 0 has failed.
    """
    return meeting.hear("start", 0, JOIN_SECONDS + meeting.patience) == "done"


@cache
def this_rank() -> Rank | None:
    """Which rank this program is, as the environment says it, with a GPU of its own where the machine has any.

    Raises:
        ValueError: part of what torchrun sets is missing, or there are more ranks than GPUs.
    """
    rank = Rank.from_environment(os.environ)
    if rank is not None and (found := take_gpu(rank, torch.cuda.device_count(), os.environ)):
        raise ValueError("\n".join(found))
    return rank
