"""The processes that compile maps for `populate_cache`: DeepMind Lab may end the one it runs in."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from sf_fixpo.envs.dmlab import engines, names
from sf_fixpo.envs.dmlab.cache.level_cache import LevelCache, cache_folder
from sf_fixpo.envs.dmlab.loader import COMPILER_FAILED, ending

_CAUSES = {
    1: "DeepMind Lab ends the process so where the file of a map is missing",
    -signal.SIGABRT: COMPILER_FAILED,
    128 + signal.SIGABRT: COMPILER_FAILED,
    -signal.SIGKILL: "most often the system's, which ran out of memory",
}


class Compiler:
    """An engine that plays one level, for nothing but the maps that it compiles.

    Attributes:
        level: its name.
    """

    def __init__(self, cfg: Any, level: str, temp_folder: str):
        """Starts the engine.

        Args:
            cfg: the parsed flags, with the engine resolved.
            level: name of a DMLab-30 level.
            temp_folder: where the engine keeps its files.

        Raises:
            RuntimeError: the engine cannot start the level.
        """
        from sf_fixpo.envs.dmlab.env import PIXELS, lab_config

        self.level = level
        self._cache = LevelCache(cache_folder(cfg), level)
        self._lab = engines.engine_module(cfg.dmlab_engine).Lab(
            names.level_path(level),
            [PIXELS],
            config=lab_config(level, cfg),
            renderer=cfg.dmlab_renderer,
            level_cache=self._cache,
            temp_folder=temp_folder,
        )

    def compile(self, seed: int) -> str | None:
        """Starts an episode.

        Args:
            seed: its seed.

        Returns:
            None, or why no map can have come of it.

        Raises:
            RuntimeError: the engine cannot start the episode.
        """
        asked = self._cache.asked
        self._cache.start(seed)
        self._lab.reset(seed=seed)
        return "the engine did not ask the level cache for a map" if self._cache.asked == asked else None

    def close(self) -> None:
        """Stops the engine."""
        self._lab.close()


def work_on(connection: Connection, cfg: Any, temp_folder: str) -> None:
    """What a worker does: takes a level and a seed, answers None or what went wrong; until the other end is closed.

    Args:
        connection: to the program.
        cfg: the parsed flags.
        temp_folder: where engines keep their files.
    """
    compiler: Compiler | None = None
    with contextlib.suppress(EOFError, OSError):  # the other end is closed
        while True:
            level, seed = connection.recv()
            try:
                if compiler is None or compiler.level != level:
                    if compiler is not None:
                        compiler.close()
                    compiler = None
                    compiler = Compiler(cfg, level, temp_folder)
                failure = compiler.compile(seed)
            except (RuntimeError, ValueError, OSError) as error:
                failure = f"seed {seed}: {error}"
                compiler = None  # an engine that has failed is not used again
            connection.send(failure)
    if compiler is not None:
        compiler.close()


class Worker:
    """A process that compiles one map after the other.

    Attributes:
        level: that it has been given last.
        seed: that it is at; None while it is idle.
        is_dead: whether it has been found to be.
    """

    def __init__(self, cfg: Any, temp_folder: str):
        """Starts it; arguments as for `work_on`."""
        # The server imports what all workers need, once; the engine is imported by each worker.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "sf_fixpo.envs.dmlab.env"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work_on, args=(theirs, cfg, temp_folder))
        with _deaf_children():
            self._process.start()
        theirs.close()
        self.level = ""
        self.seed: int | None = None
        self.is_dead = False

    @property
    def signals(self) -> tuple[Any, ...]:
        """What `multiprocessing.connection.wait` has to watch: there is a result, or the process has ended."""
        return self._connection, self._process.sentinel

    def is_ready(self) -> bool:
        """Whether there is a result, the death of the process included."""
        return bool(wait(self.signals, timeout=0))

    def give(self, level: str, seed: int) -> None:
        """Sends the next seed."""
        self.level, self.seed = level, seed
        with contextlib.suppress(OSError):  # it is dead: `take_result` says how
            self._connection.send((level, seed))

    def take_result(self) -> tuple[int, str | None]:
        """The seed, and what came of it: None or a failure.

        Raises:
            RuntimeError: it has been given none.
        """
        if self.seed is None:
            raise RuntimeError("an idle worker has no result")
        seed, self.seed = self.seed, None
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll():
                return seed, self._connection.recv()
        self._process.join()
        self.is_dead = True
        code = self._process.exitcode or 0
        why = _CAUSES.get(code, "")
        return seed, f"the worker ended with {ending(code)} at seed {seed}{why and f' ({why})'}"

    def dismiss(self) -> None:
        """Lets it end after the map that it is at."""
        self._connection.close()

    def end(self, deadline: float) -> None:
        """Waits until then (seconds of the monotonic clock), and ends it by force."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile, and theirs, get no Ctrl-C, which would end a compiler in the middle of a map."""
    resource_tracker.ensure_running()  # which unblocks Ctrl-C when it is started itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
