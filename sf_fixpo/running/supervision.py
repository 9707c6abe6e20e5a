"""Processes that end when they should: children that outlive nobody, environments that fail loudly, a run that never hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

import gymnasium
import psutil
import torch
from sample_factory.algo.utils.context import SampleFactoryContext, set_global_context
from sample_factory.algo.utils.env_info import EnvInfo, extract_env_info
from sample_factory.algo.utils.make_env import make_env_func_batched
from sample_factory.utils.utils import log, stream_handler
from signal_slot.signal_slot import EventLoopProcess

from sf_fixpo.envs import EnvError
from sf_fixpo.running.clock import CLOCK, TICK_SECONDS, use_awake_clock

_LOG_LEVEL = "SF_FIXPO_LOG_LEVEL"  # read by child processes, which start with sample-factory's default, DEBUG
VERDICT = 78  # exit status of a process whose environment gave what it may not: to start it again would not help
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SHARED_MEMORY_KEEPER = "torch_shm_manager"[:15]  # so much the system keeps of a name
_STOP_SECONDS = 40.0
_PREEMPTED_STOP_SECONDS = 20.0  # with the last resort below, less than the 30 s that a cluster gives at the least
_LAST_SIGNALS_SECONDS = 5.0  # for what the processes sent before they ended to be received
_LAST_RESORT_SECONDS = 8.0  # for the run to end once it has been told that nobody is left


class EnvironmentStartError(RuntimeError):
    """The environment could not be started; the message holds its own error."""


class ErrorsInWords(gymnasium.Wrapper):
    """An environment whose `EnvError` ends its process with what is wrong, and not with where in our code that was noticed."""

    def reset(self, **kwargs):
        """As the environment's."""
        with _said():
            return self.env.reset(**kwargs)

    def step(self, action):
        """As the environment's."""
        try:  # for each step a context manager would cost more than the rest of this
            return self.env.step(action)
        except EnvError:
            with _said():
                raise


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except EnvError as exc:
        print(f"fixpo-train: {exc}", file=sys.stderr, flush=True)
        raise SystemExit(VERDICT) from None


def set_console_log_level(level: str) -> None:
    """Level of what is printed, here and in every child process; the log file gets everything."""
    os.environ[_LOG_LEVEL] = level.upper()
    _quiet(level.upper())


def _quiet(level: str) -> None:
    stream_handler.setLevel(level)
    # sample-factory's wrappers read attributes in a way that Gymnasium comments on once per environment
    gymnasium.logger.set_level(gymnasium.logger.ERROR)


@contextmanager
def errors_only() -> Iterator[None]:
    """Prints nothing below an error meanwhile: for calls into sample-factory that warn of what is in order."""
    level = stream_handler.level
    stream_handler.setLevel("ERROR")
    try:
        yield
    finally:
        stream_handler.setLevel(level)


def end_with_parent(parent: int | None = None) -> None:
    """Ends this process soon after its parent has died, however that died.

    Args:
        parent: process id that the parent is known to have, where it may have died before this is called.
    """
    parent = parent or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            CLOCK.tick()
            time.sleep(TICK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end_with_parent").start()


class RunContext(SampleFactoryContext):
    """sample-factory's registry of environments and models, which it sends to every process that it starts.

    To unpickle it is the one thing that all of them do first, so that is where they are set up.
    """

    def __setstate__(self, state: dict) -> None:
        """Runs in a child process."""
        self.__dict__.update(state)
        _quiet(os.environ.get(_LOG_LEVEL, "DEBUG"))
        use_awake_clock()
        end_with_parent()


class Preempted(BaseException):
    """SIGTERM or SIGUSR1 came before there was anything to save; no error, and it ends the program as KeyboardInterrupt does."""


def end_when_preempted() -> None:
    """From now on SIGTERM and SIGUSR1 raise `Preempted` in the main thread, until `asked_to_stop` takes them over."""

    def on_signal(signum, frame) -> None:
        raise Preempted

    if _is_main_thread():
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, on_signal)


@contextmanager
def asked_to_stop(ask: Callable[[int], None]) -> Iterator[None]:
    """Signals that end a run call `ask` with their number instead of breaking into whatever runs.

    These are the first Ctrl-C (the second one breaks in, as usual), and SIGTERM and SIGUSR1, by which clusters announce that they
    take the machine away. An update that is cut in the middle leaves weights that nobody has checked, and that must not be saved.
    """
    if not _is_main_thread():
        yield  # only a program's main thread may say what a signal does
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, *PREEMPTION_SIGNALS)}

    def on_signal(signum, frame) -> None:
        if signum == signal.SIGINT:
            signal.signal(signum, usual[signum])
        ask(signum)

    for number, handler in usual.items():
        if number != signal.SIGINT or callable(handler):  # a Ctrl-C that is ignored stays so
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started meanwhile never get a signal that ends a run, not even before they could ask to ignore it.

    A terminal and a cluster send them to all processes alike; they are told to stop by this one, which gets its own when the
    block ends.
    """
    on_preemption = signal.signal(signal.SIGUSR1, signal.SIG_IGN) if _is_main_thread() else None
    resource_tracker.ensure_running()  # it blocks the others itself, and unblocks them when it is started
    if on_preemption is not None:
        signal.signal(signal.SIGUSR1, on_preemption)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *PREEMPTION_SIGNALS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_shared_memory() -> None:
    """Starts the process by which torch shares tensors, so that it does not get a signal that ends a run.

    It has a session of its own, but Slurm signals every process of a job; without it torch ends the program with SIGABRT.
    """
    torch.multiprocessing.set_sharing_strategy("file_system")  # as sample-factory will
    with deaf_children():
        torch.empty(1).share_memory_()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _probe(context: SampleFactoryContext, connection, cfg) -> None:
    set_global_context(context)
    try:
        env = make_env_func_batched(cfg, env_config=None)
        info = extract_env_info(env, cfg)
        env.close()
    except BaseException as exc:  # noqa: BLE001 - an engine may raise anything, SystemExit too; all of it is the answer
        connection.send((None, f"{type(exc).__name__}: {exc}\n{traceback.format_exc()}"))
        raise SystemExit(1) from None
    connection.send((info, None))


def _last_words(receiver: Connection) -> tuple[EnvInfo | None, str | None] | None:
    """What the probe has sent; None where its process ended without a word.

    A process that is just ending may have answered, and its descendants may keep the pipe open: hence the second of patience.
    """
    try:
        return receiver.recv() if receiver.poll(1.0) else None
    except EOFError:
        return None


def probe_environment(context: SampleFactoryContext, cfg, timeout: float) -> EnvInfo:
    """Spaces of the environment, from one made in a process of its own.

    sample-factory waits for ever where that process fails; here its death and a time-out are answers too.

    Args:
        context: holds the environment's factory.
        cfg: of the run.
        timeout: seconds.

    Raises:
        EnvironmentStartError: with the environment's own error.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_probe, args=(context, sender, cfg), name="env_probe")
    try:
        with deaf_children():
            process.start()  # a Ctrl-C that comes meanwhile is raised at the end of this block
        sender.close()
        if not wait([receiver, process.sentinel], timeout):
            raise EnvironmentStartError(f"environment {cfg.env} did not start within {timeout:.0f} s (--env_start_timeout)")
        answer = _last_words(receiver)
        if answer is None:
            process.join(timeout=5)
            raise EnvironmentStartError(f"environment {cfg.env} ended its process at the start, exit code {process.exitcode}")
        info, error = answer
        if error is not None:
            raise EnvironmentStartError(f"environment {cfg.env} could not be started: {error}")
        return info
    finally:
        if process.pid is not None:
            kill_tree([process.pid] if process.is_alive() else [])
            process.join(timeout=5)


def kill_tree(pids: Sequence[int | None]) -> None:
    """Kills processes and all their descendants; those already gone are fine.

    torch's keepers of shared memory are left alone: each ends with the process it serves, and takes away what that has left.
    """
    victims: list[psutil.Process] = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            victims += [*process.children(recursive=True), process]
        except psutil.NoSuchProcess:
            continue
    for process in victims:
        try:
            if process.name() != _SHARED_MEMORY_KEEPER:
                process.kill()
        except psutil.NoSuchProcess:
            continue


class ProcessWatch:
    """Thread that looks after a run's processes.

    The first one to die unasked is reported at once, a stop that takes too long ends in `kill`, and where the event loop of this
    very process does not come round any more - an environment that hangs in a serial run - the program ends and says where.
    """

    def __init__(
        self,
        processes: Callable[[], Sequence[EventLoopProcess]],
        on_death: Callable[[str, int | None], None],
        on_overdue: Callable[[], None],
        limit: float,
    ):
        """Starts watching.

        Args:
            processes: the run's processes, started or not.
            on_death: called once, on a thread of its own, with name and exit code of the first process that died unasked.
            on_overdue: called once, on a thread of its own, when nothing more can be expected: all processes have ended and
                the run is still waiting, or the time for stopping is over and the rest has been killed.
            limit: seconds for which the event loop of this process may be silent; three times as many until `has_begun`.
        """
        self._processes = processes
        self._on_death = on_death
        self._on_overdue = on_overdue
        self._stopping_since: float | None = None
        self._patience = _STOP_SECONDS
        self._limit, self._begun, self._alive_at = limit, False, CLOCK.time()
        self._done = threading.Event()
        self.killed = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="process_watch")
        self._thread.start()

    def expect_end(self, preempted: bool = False, within: float | None = None) -> None:
        """From now on processes are expected to end, all within a time, which is shorter where the machine is taken away."""
        if self._stopping_since is None:
            self._patience = within or (_PREEMPTED_STOP_SECONDS if preempted else _STOP_SECONDS)
            self._stopping_since = time.monotonic()

    def alive(self) -> None:
        """Says that the event loop has come round."""
        self._alive_at = CLOCK.time()

    def has_begun(self) -> None:
        """Says that everything has been set up."""
        self._begun = True

    def close(self) -> None:
        """Ends the watch; every process that still runs is killed."""
        self._done.set()
        self._thread.join(timeout=5)
        kill_tree([p.pid for p in self._processes() if p.pid is not None and p.is_alive()])

    def _watch(self) -> None:
        all_dead_since: float | None = None
        while not self._done.wait(TICK_SECONDS):
            CLOCK.tick()
            self._end_where_nothing_moves()
            started = [p for p in self._processes() if p.pid is not None]
            dead = [p for p in started if not p.is_alive()]
            now = time.monotonic()
            if self._stopping_since is None:
                if dead:
                    self.expect_end()
                    _in_background(self._on_death, dead[0].name, dead[0].exitcode)
                continue
            if len(dead) < len(started):
                all_dead_since = None
            elif started and all_dead_since is None:
                all_dead_since = now
            if now - self._stopping_since > self._patience and len(dead) < len(started):
                log.error("Some processes did not stop within %.0f s: killed", self._patience)
                self.killed = True
                kill_tree([p.pid for p in started if p.is_alive()])
            elif all_dead_since is None or now - all_dead_since < _LAST_SIGNALS_SECONDS:
                continue
            _in_background(self._on_overdue)
            break
        if not self._done.wait(_LAST_RESORT_SECONDS):
            # a process that was killed while it held the lock of a queue leaves it locked, and whoever uses that queue waits
            log.error("The run does not end although its processes have: ended by force")
            kill_tree([p.pid for p in self._processes() if p.pid is not None and p.is_alive()])
            os._exit(1)

    def _end_where_nothing_moves(self) -> None:
        silent = CLOCK.time() - self._alive_at
        if self._stopping_since is not None or silent <= self._limit * (1 if self._begun else 3):
            return
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        log.error(
            "The run has not moved for %.0f s (--heartbeat_reporting_interval=%.0f): ended by force; it goes on from the last "
            "checkpoint. It was here:\n%s",
            *(silent, self._limit, "".join(traceback.format_stack(frame))),
        )
        kill_tree([p.pid for p in self._processes() if p.pid is not None and p.is_alive()])
        os._exit(1)


def exit_in_words(code: int | None) -> str:
    """What the exit code of a process says about its end."""
    if code is None or code >= 0:
        return "its own error is above"
    if code == -signal.SIGKILL:
        return "killed by SIGKILL: by somebody, or by the system for want of memory"
    try:
        return f"killed by {signal.Signals(-code).name}: an engine or a library crashed"
    except ValueError:
        return f"killed by signal {-code}"


def _in_background(function: Callable[..., None], *args) -> None:
    """Calls a function that sends a signal, and so may wait for ever for the lock of a queue."""
    threading.Thread(target=function, args=args, daemon=True).start()
