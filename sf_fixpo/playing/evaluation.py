"""Plays episodes of one or several environments with a policy, in worker processes that share all of them.

The episodes of an environment are split into jobs beforehand, each with seeds of its own, and a worker that is done with one
takes the next: which worker plays a job makes no difference to it. How many environments exist at once is bounded by the workers,
however many are to be played.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.playing.evaluation_worker import MAX_STEPS, Job, play_in_process

ENVS_PER_WORKER = 8
# Training must not notice an evaluation, and its shaping of rewards is no part of the score.
_TRAINING_ONLY = {"dmlab_optimistic_rewards": False, "dmlab_remember_seeds": False}
_EVALUATION_SALT = 0x6576616C  # the episodes of an evaluation are none of those that a run of the same seed trains on


class WorkerError(RuntimeError):
    """A worker failed or died; the message holds its error."""


@dataclass(frozen=True)
class EvalResult:
    """Returns of the episodes played.

    Attributes:
        returns: one per episode, undiscounted and unshaped, grouped by the environment that played them.
        lengths: steps of each episode, in the same order.
        mean: of the returns.
        se: standard error of the mean; NaN for one episode.
        engine: what simulated them, where the environment says so, else the suite's name.
        cut: how many of the episodes were left at the limit, and did not end by themselves.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    mean: float
    se: float
    engine: str
    cut: int = 0


def share_out(total: int, parts: int) -> list[int]:
    """Splits `total` into `parts` whole numbers that differ by at most one."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def make_result(returns: list[float], lengths: list[int], engine: str, cut: int = 0) -> EvalResult:
    """Mean and standard error (with n - 1) of the returns of at least one episode."""
    se = statistics.stdev(returns) / math.sqrt(len(returns)) if len(returns) > 1 else math.nan
    return EvalResult(tuple(returns), tuple(lengths), statistics.fmean(returns), se, engine, cut)


def jobs_per_env(envs: int, episodes: int, workers: int, envs_per_worker: int = ENVS_PER_WORKER) -> int:
    """How many jobs the episodes of one environment are split into.

    One environment keeps all workers busy. Of many, a job is no smaller than what a worker plays at once: a simulator that is
    started for few episodes costs more than it gives.
    """
    return min(episodes, workers, max(math.ceil(workers / envs), math.ceil(episodes / envs_per_worker)))


def evaluate(
    cfg: Any,
    checkpoint_path: str | os.PathLike | None,
    episodes: int = 50,
    workers: int = 2,
    seed: int = 0,
    deterministic: bool = False,
    on_episode: Callable[[float], None] | None = None,
) -> EvalResult:
    """Plays `episodes` episodes of `cfg.env` on the CPU; see `evaluate_all`, with `on_episode` called with each return."""

    def report(env: int, episode_return: float) -> None:
        if on_episode:
            on_episode(episode_return)

    return evaluate_all([cfg], checkpoint_path, episodes, workers, seed, deterministic, report)[0]


def evaluate_all(
    cfgs: Sequence[Any],
    checkpoint_path: str | os.PathLike | None,
    episodes: int = 50,
    workers: int = 2,
    seed: int = 0,
    deterministic: bool = False,
    on_episode: Callable[[int, float], None] | None = None,
    envs_per_worker: int = ENVS_PER_WORKER,
    max_steps: int = MAX_STEPS,
) -> list[EvalResult]:
    """Plays `episodes` episodes of the environment of each configuration, on the CPU.

    Args:
        cfgs: the run's configuration, once for each environment, with that as `env`; they are not changed.
        checkpoint_path: the policy's weights; None for an agent that chooses uniformly at random.
        episodes: of each environment, at least 1.
        workers: processes, which all environments share; no more than there are jobs are started.
        seed: of environments and actions. The same seed, environments and number of workers repeat the result where the engines
            can.
        deterministic: take the likeliest action (a Gaussian's mean) in place of a sample.
        on_episode: called with the position in `cfgs` and the return of each episode as it comes in.
        envs_per_worker: environments that a worker plays at once, at most.
        max_steps: after which an episode is left, and counted as it is.

    Returns:
        One result for each of `cfgs`.

    Raises:
        WorkerError: a worker failed or died. One is enough to end the evaluation.
        ValueError: `episodes`, `workers`, `envs_per_worker` or `max_steps` is below 1.
    """
    if min(episodes, workers, envs_per_worker, max_steps) < 1:
        raise ValueError(f"{episodes=}, {workers=}, {envs_per_worker=}, {max_steps=}: all must be at least 1")
    if not cfgs:
        return []
    parts = jobs_per_env(len(cfgs), episodes, workers, envs_per_worker)
    workers = min(workers, parts * len(cfgs))
    checkpoint = None if checkpoint_path is None else str(checkpoint_path)
    jobs = []
    for number, cfg in enumerate(cfgs):
        prepared = _evaluation_cfg(cfg, seed, workers)
        for index, share in enumerate(share_out(episodes, parts)):
            jobs.append(Job(prepared, checkpoint, number, index, share, seed, deterministic, envs_per_worker, max_steps))
    played, engines = _play_all(jobs, workers, on_episode or (lambda env, episode_return: None))
    results = []
    for number in range(len(cfgs)):
        own = [played[key] for key in sorted(played) if key[0] == number]
        returns, lengths, cut = zip(*own, strict=True)
        results.append(make_result(list(returns), list(lengths), ", ".join(sorted(engines[number])), sum(cut)))
    return results


def _evaluation_cfg(cfg: Any, seed: int, workers: int) -> AttrDict:
    cfg = AttrDict(cfg)
    env_seed = int(np.random.SeedSequence([seed, _EVALUATION_SALT]).generate_state(1)[0])
    cfg.update(seed=env_seed, device="cpu", num_workers=workers, serial_mode=True)
    cfg.update({flag: value for flag, value in _TRAINING_ONLY.items() if flag in cfg})
    return cfg


@dataclass(frozen=True)
class _Worker:
    """A process that plays one job after the other, and this end of the pipe to it."""

    number: int
    pipe: Connection
    process: BaseProcess

    def give(self, job: Job) -> None:
        """Sends a job.

        Raises:
            WorkerError: the worker has died.
        """
        try:
            self.pipe.send(job)
        except OSError:
            raise self._death(job) from None

    def dismiss(self) -> None:
        """Says that there are no more jobs."""
        with suppress(OSError):
            self.pipe.send(None)

    def receive(self, job: Job) -> tuple:
        """The next message about a job.

        Raises:
            WorkerError: the worker has died.
        """
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            raise self._death(job) from None

    def _death(self, job: Job) -> WorkerError:
        """Ended without a word, as DeepMind Lab does where a map is missing."""
        self.process.join()
        code = self.process.exitcode or 0
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerError(f"{job.cfg.env}: evaluation worker {self.number} died ({cause}) before its episodes were done")


@contextmanager
def _started_workers(count: int) -> Iterator[list[_Worker]]:
    """Worker processes; none is left when the block ends, and after an error nobody waits for their episodes."""
    context = get_context("spawn")
    workers: list[_Worker] = []
    finished = False
    try:
        for number in range(count):
            here, there = context.Pipe()
            process = context.Process(target=play_in_process, args=(there,), daemon=True, name=f"evaluation_{number}")
            process.start()
            there.close()  # so that only the worker holds it, and its death ends the pipe
            workers.append(_Worker(number, here, process))
        yield workers
        finished = True
    finally:
        for worker in workers:
            if not finished:
                worker.process.terminate()
            worker.process.join()
            worker.pipe.close()


Episodes = dict[tuple[int, int, int, int], tuple[float, int, bool]]


def _play_all(jobs: Sequence[Job], count: int, on_episode: Callable[[int, float], None]) -> tuple[Episodes, dict[int, set[str]]]:
    """Has `count` workers, no more than there are jobs, play them.

    Returns:
        `(return, length, cut)` by environment, job, slot and episode; and the engines of each environment.
    """
    todo = deque(jobs)
    played: Episodes = {}
    engines: dict[int, set[str]] = {job.env: set() for job in jobs}
    busy: dict[Connection, tuple[_Worker, Job]] = {}
    with _started_workers(count) as workers:
        for worker in workers:
            _next_job(worker, todo, busy)
        while busy:
            for pipe in wait(list(busy)):
                worker, job = busy[pipe]  # type: ignore[index]  # what it waits for is what it was given
                kind, *content = worker.receive(job)
                if kind == "episode":
                    slot, episode, episode_return, length, cut = content
                    played[job.env, job.index, slot, episode] = (episode_return, length, cut)
                    on_episode(job.env, episode_return)
                elif kind == "engine":
                    engines[job.env].add(content[0])
                elif kind == "error":
                    raise WorkerError(f"{job.cfg.env}: evaluation worker {worker.number} failed:\n{content[0]}")
                else:
                    _next_job(worker, todo, busy)
    return played, engines


def _next_job(worker: _Worker, todo: deque[Job], busy: dict[Connection, tuple[_Worker, Job]]) -> None:
    if todo:
        job = todo.popleft()
        busy[worker.pipe] = (worker, job)
        worker.give(job)
    else:
        busy.pop(worker.pipe, None)
        worker.dismiss()
