"""Does an engine start, and does it draw? Tried in a process of its own, which may crash or hang as engines do."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.envs import find_suite
from sf_fixpo.playing.evaluation_worker import RandomAgent, Slots, set_log_level
from sf_fixpo.playing.video import VideoFile
from sf_fixpo.running.supervision import end_with_parent, kill_tree

_SECONDS = 0.5  # of random steps
_FILM_STEPS = 10


class TrialError(RuntimeError):
    """It does not work; the message says what happened, in one line."""


def play_steps(cfg: Any) -> str:
    """Makes the environment of a configuration and takes random steps; says which engine it is and how fast."""
    slots = Slots(_make(cfg, None), cfg.env)
    agent = RandomAgent(slots.action_space, 0)
    every = np.arange(slots.count)
    try:
        obs = slots.reset()
        steps, start = 0, time.perf_counter()
        while not steps or time.perf_counter() - start < _SECONDS:
            obs, _, _ = slots.step(agent.act(obs, every))
            steps += slots.count
        speed = steps / (time.perf_counter() - start)
    finally:
        slots.env.close()
    engine = getattr(slots.env.unwrapped, "engine", None) or find_suite(cfg.env).name
    return f"starts (engine {engine}), {speed:,.0f} random steps/s in one process"


def draw_pictures(cfg: Any) -> str:
    """Makes an MP4 of a few steps; says how large its pictures are. An environment that draws none is no fault."""
    slots = Slots(_make(cfg, "rgb_array"), cfg.env)
    try:
        agent, obs = RandomAgent(slots.action_space, 0), slots.reset()
        if not slots.draws or _shown(slots) is None:
            return f"{cfg.env} draws no pictures; fixpo-evaluate plays it without"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trial.mp4")
            with VideoFile(path, 30) as film:
                for _ in range(_FILM_STEPS):
                    picture = slots.env.render()
                    film.show(picture)
                    obs, _, _ = slots.step(agent.act(obs, np.zeros(1, int)))
            size = f"{picture.shape[1]} x {picture.shape[0]} pixels"
            return f"{size}, H.264 film of {_FILM_STEPS} steps: {path.stat().st_size:,} bytes"
    finally:
        slots.env.close()


def _shown(slots: Slots) -> Any:
    """A picture; None of an environment that was asked for some and has none."""
    with contextlib.suppress(NotImplementedError):
        return slots.env.render()
    return None


def _make(cfg: Any, render_mode: str | None) -> Any:
    cfg = AttrDict(cfg)
    # nothing of a run's is used up, and one simulator is enough
    quiet = {"dmlab_remember_seeds": False, "env_agents": 1}
    cfg.update({flag: value for flag, value in quiet.items() if flag in cfg})
    return find_suite(cfg.env).make_env(cfg.env, cfg, AttrDict(worker_index=0, vector_index=0, env_id=0), render_mode)


def _answer(pipe: Connection, trial: Callable[[Any], str], cfg: Any) -> None:
    """Runs in the process."""
    end_with_parent()
    set_log_level(logging.ERROR)
    try:
        pipe.send((True, trial(cfg)))
    except BaseException as exc:  # noqa: BLE001 - an engine may raise anything, SystemExit too; all of it is the answer
        text = " ".join(str(exc).split())
        pipe.send((False, f"{type(exc).__name__}: {text}" if text else type(exc).__name__))


def attempt(trial: Callable[[Any], str], cfg: Any, timeout: float) -> str:
    """What a trial says, from a process that is gone afterwards.

    Args:
        trial: a function of a module, such as `play_steps`.
        cfg: the configuration that it is tried with.
        timeout: seconds, for the start of Python too.

    Raises:
        TrialError: it raised, died, or did not end.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_answer, args=(there, trial, cfg), name="trial")
    process.start()
    there.close()
    try:
        if not wait([here, process.sentinel], timeout):
            raise TrialError(f"no answer within {timeout:.0f} s")
        try:
            well, text = here.recv()
        except EOFError:
            process.join(5)
            raise TrialError(f"ended its process, exit code {process.exitcode}") from None
        if not well:
            raise TrialError(text)
        return text
    finally:
        kill_tree([process.pid] if process.is_alive() else [])
        process.join(5)
        here.close()
