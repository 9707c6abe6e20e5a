"""One run, wherever it runs: claimed, started, watched, its end judged: `python -m sf_fixpo.launcher.job SWEEP_FOLDER RUN_NAME`.

Exit status: 0 finished, or nothing to do; 75 run me again (preempted); 3 stopped; 4 another job holds the run; 2 bad input;
otherwise the training's own status (128 + signal where it was killed): the run has failed for good.
"""

from __future__ import annotations

import argparse
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace

from sf_fixpo import cli
from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.claims import Claim, claim, end_orphans, run_mark
from sf_fixpo.launcher.progress import UPDATE_LOG, Activity, read_progress
from sf_fixpo.launcher.secret_values import SecretsFileError
from sf_fixpo.launcher.starting import Starter, kill_training, start_training, starter_here
from sf_fixpo.launcher.sweep import FAILED, FINISHED, QUEUED, RUNNING, STOPPED, Run, RunState, Sweep, SweepError

BAD_INPUT = 2
STOPPED_STATUS = 3
HELD = 4
PREEMPTED = 75  # EX_TEMPFAIL: also what a training exits with that saved a checkpoint because it was told to end
CANNOT_START = 127

_CHECK_SECONDS = 0.5
_PROGRESS_SECONDS = 5.0
_EXITED = object()
# How a training ends that was told to: a cluster tells it and its job at once, and it may be the quicker one.
_TOLD_TO_END = (PREEMPTED, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGINT)
_LATE_SIGNAL_SECONDS = 0.5


@dataclass(frozen=True)
class Ending:
    """How one attempt ended.

    Attributes:
        exit_code: of the training, negative for a signal.
        signalled: whether this job passed a signal on, so that it was meant to end.
        stop_reason: why the run is to stop for good; None where it is not.
        hung: whether it was killed because it did nothing any more.
        moved_on: whether it made environment steps.
        error: why it could not be started; "" where it was.
        lost_claim: whether another job has taken this one's place.
    """

    exit_code: int
    signalled: bool = False
    stop_reason: str | None = None
    hung: bool = False
    moved_on: bool = False
    error: str = ""
    lost_claim: bool = False


@dataclass(frozen=True)
class Verdict:
    """What follows from the end of an attempt.

    Attributes:
        status: of the run.
        reason: in words.
        is_failure: whether the attempt counts as failed.
        again: whether this job runs the run again.
    """

    status: str
    reason: str = ""
    is_failure: bool = False
    again: bool = False


def judge(ending: Ending, failures: int, max_retries: int) -> Verdict:
    """The rules of README.md, 'What a run's end means'.

    Args:
        ending: of the latest attempt.
        failures: attempts that failed before it.
        max_retries: how many failed attempts are answered with another one.
    """
    if ending.exit_code == 0:
        return Verdict(FINISHED)
    if ending.stop_reason is not None:
        return Verdict(STOPPED, ending.stop_reason)
    # one that asks to run again, with nobody having told it to end and nothing done, would do so for ever
    if ending.signalled or (ending.exit_code == PREEMPTED and ending.moved_on):
        return Verdict(QUEUED, "preempted")
    if ending.error:
        return Verdict(FAILED, ending.error, is_failure=True)
    if ending.exit_code == BAD_INPUT:
        return Verdict(FAILED, "bad input (exit code 2), not run again", is_failure=True)
    what = _in_words(ending)
    if failures < max_retries:
        return Verdict(QUEUED, f"{what}; retry {failures + 1} of {max_retries}", is_failure=True, again=True)
    return Verdict(FAILED, what, is_failure=True)


def _in_words(ending: Ending) -> str:
    if ending.hung:
        return "hung: no update and no output within --run_timeout"
    if ending.exit_code < 0:
        return f"killed by {signal.Signals(-ending.exit_code).name}"
    if ending.exit_code == PREEMPTED:
        return "asked to be run again (exit code 75) without a signal and without a step"
    return f"exit code {ending.exit_code}"


class Job:
    """Runs one run until it has ended, is preempted or stopped. `interrupt` and `kill` may come from anywhere."""

    def __init__(
        self,
        sweep: Sweep,
        run: Run,
        options: JobOptions,
        env: Mapping[str, str] | None = None,
        starter: Starter | None = None,
    ):
        """Starts nothing.

        Args:
            sweep: the sweep.
            run: one of its runs.
            options: how often it is run again, and when it counts as hung.
            env: variables on top of this process's environment, under the run's own.
            starter: of the run's ranks; None: all are here.
        """
        self._starter = starter or starter_here(options.ranks)
        self._sweep = sweep
        self._run = run
        self._options = options
        self._env = dict(env or {})
        # a SimpleQueue, because its `put` may be called in a signal handler
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._signum: int | None = None
        self._stop_reason: str | None = None
        self._kill_at = float("inf")

    def interrupt(self, signum: int, stop_reason: str | None = None) -> None:
        """Passes a signal on to the training, which saves and exits.

        Args:
            signum: SIGTERM, SIGUSR1 or SIGINT.
            stop_reason: why the run is to stay stopped; None: it is to be run again.
        """
        self._events.put((signum, stop_reason))

    def kill(self) -> None:
        """Ends the training without waiting for it to save."""
        self._events.put((signal.SIGKILL, "killed"))

    def execute(self) -> int:
        """Claims and runs the run.

        Returns:
            The job's exit status, see the module's docstring.
        """
        mine = claim(self._sweep, self._run)
        if mine is None:
            return HELD
        is_mine = True
        try:
            state = self._sweep.state(self._run)
            if state.has_ended:
                return status_of(state)
            if (reason := self._sweep.stop_reason(self._run)) is not None:
                self._sweep.write_state(self._run, replace(state, status=STOPPED, reason=reason))
                return STOPPED_STATUS
            if mine.follows_dead:
                end_orphans(run_mark(self._sweep, self._run), self._options.stop_timeout)
            while True:
                ending, state = self._attempt(mine, state)
                if ending.lost_claim:
                    is_mine = False
                    return HELD
                verdict = judge(ending, state.failures, self._options.max_retries)
                state = replace(state, status=verdict.status, reason=verdict.reason, failures=state.failures + verdict.is_failure)
                self._sweep.write_state(self._run, state)
                if not verdict.again:
                    return status_of(state)
        finally:
            if is_mine:
                mine.release()

    def _attempt(self, mine: Claim, state: RunState) -> tuple[Ending, RunState]:
        """One start of the training and its end; the state lacks only the verdict."""
        log_path = self._sweep.log_path(self._run)
        state = replace(
            state,
            status=RUNNING,
            reason="",
            attempt=state.attempt + 1,
            exit_code=None,
            host=socket.gethostname(),
            pid=None,
            started=time.time(),
            ended=None,
            log=str(log_path),
        )
        try:
            process = self._start(state.attempt)
        except (OSError, SecretsFileError) as exc:
            state = replace(state, exit_code=CANNOT_START, ended=time.time())
            return Ending(CANNOT_START, error=f"cannot be started: {exc}"), state
        state = replace(state, pid=process.pid)
        self._sweep.write_state(self._run, state)
        threading.Thread(target=lambda: (process.wait(), self._events.put(_EXITED)), daemon=True).start()
        try:
            hung, lost_claim = self._watch(process, mine, state)
        finally:
            # whatever happens here, nothing of the training may outlive its job
            self._kill(process)
        exit_code = process.wait()
        if exit_code in _TOLD_TO_END and self._signum is None:
            with suppress(queue.Empty):
                self._signum, self._stop_reason = self._events.get(timeout=_LATE_SIGNAL_SECONDS)
        before, state = state.steps, self._with_progress(state)
        state = replace(state, exit_code=exit_code, ended=time.time())
        ending = Ending(
            exit_code,
            signalled=self._signum is not None and not hung,
            stop_reason=self._stop_reason,
            hung=hung,
            moved_on=state.steps > before,
            lost_claim=lost_claim,
        )
        return ending, state

    def _start(self, attempt: int) -> subprocess.Popen:
        log_path, secrets_file = self._sweep.log_path(self._run), self._options.secrets_file
        mark = run_mark(self._sweep, self._run)
        return start_training(self._sweep, self._run, self._starter(attempt), mark, log_path, self._env, secrets_file)

    def _kill(self, process: subprocess.Popen) -> None:
        kill_training(process, run_mark(self._sweep, self._run) if self._options.ranks > 1 else None)

    def _watch(self, process: subprocess.Popen, mine: Claim, state: RunState) -> tuple[bool, bool]:
        """Until the training has ended: signals, the stop file, hanging, heartbeat, progress.

        Returns:
            Whether it hung, and whether the claim was lost.
        """
        activity = Activity(self._sweep.run_folder(self._run) / UPDATE_LOG, self._sweep.log_path(self._run))
        next_progress = time.monotonic() + _PROGRESS_SECONDS
        hung = lost_claim = False
        while True:
            try:
                event = self._events.get(timeout=_CHECK_SECONDS)
            except queue.Empty:
                event = None
            if event is _EXITED:
                return hung, lost_claim
            if event is not None:
                self._pass_on(process, *event)
                continue
            lost_claim = lost_claim or mine.is_lost()
            hung = hung or (self._signum is None and 0 < self._options.run_timeout < activity.idle_seconds())
            if lost_claim or hung or time.monotonic() > self._kill_at:
                self._kill(process)
            elif self._signum is None and (reason := self._sweep.stop_reason(self._run)) is not None:
                self._pass_on(process, signal.SIGTERM, reason)
            elif time.monotonic() > next_progress:
                next_progress = time.monotonic() + _PROGRESS_SECONDS
                state = self._show_progress(state)

    def _pass_on(self, process: subprocess.Popen, signum: int, stop_reason: str | None) -> None:
        self._signum = signum
        self._stop_reason = self._stop_reason or stop_reason
        if signum == signal.SIGKILL:
            self._kill(process)
            return
        process.send_signal(signum)
        self._kill_at = min(self._kill_at, time.monotonic() + self._options.stop_timeout)

    def _with_progress(self, state: RunState) -> RunState:
        found = read_progress(self._sweep.run_folder(self._run), self._sweep.log_path(self._run))
        if found.steps == 0 and found.mean_return is None:
            return state
        return replace(state, steps=found.steps or state.steps, mean_return=found.mean_return)

    def _show_progress(self, state: RunState) -> RunState:
        found = self._with_progress(state)
        if found != state:
            try:
                self._sweep.write_state(self._run, found)
            except OSError:  # a full disk or a file server that is away: the training may get over it
                return state
        return found


def status_of(state: RunState) -> int:
    """What a job exits with that leaves its run in a state."""
    if state.status == FAILED:
        code = state.exit_code or 1
        code = 128 - code if code < 0 else code
        # the job's own words are not to be said by a training
        return 1 if code in (STOPPED_STATUS, HELD, PREEMPTED) else code
    return {FINISHED: 0, STOPPED: STOPPED_STATUS, QUEUED: PREEMPTED}[state.status]


def settle(sweep: Sweep, run: Run, status: str, reason: str, stop_timeout: float = 0.0) -> bool:
    """Gives a run that nobody holds a status: stops or fails one that has not ended, queues one that has failed or was stopped.

    Args:
        sweep: the sweep.
        run: one of its runs.
        status: `queued`, `failed` or `stopped`.
        reason: in words.
        stop_timeout: seconds that what a dead job left running gets to save.

    Returns:
        False where a job holds the run: nothing was done.
    """
    mine = claim(sweep, run)
    if mine is None:
        return False
    try:
        if mine.follows_dead:
            end_orphans(run_mark(sweep, run), stop_timeout)
        state = sweep.state(run)
        if status == QUEUED and state.status in (FAILED, STOPPED):
            sweep.write_state(run, replace(state, status=QUEUED, reason=reason, failures=0))
        elif status in (FAILED, STOPPED) and not state.has_ended:
            ended = time.time() if state.status == RUNNING else state.ended
            sweep.write_state(run, replace(state, status=status, reason=reason, ended=ended))
    finally:
        mine.release()
    return True


def run_job(sweep: Sweep, run: Run, options: JobOptions, starter: Starter | None = None) -> int:
    """Runs one run in this process's main thread: SIGTERM and SIGUSR1 preempt it, SIGINT stops it. The arguments are `Job`'s.

    Returns:
        The job's exit status, see the module's docstring.
    """
    job = Job(sweep, run, options, starter=starter)
    handlers = {
        signal.SIGTERM: lambda *_: job.interrupt(signal.SIGTERM),
        signal.SIGUSR1: lambda *_: job.interrupt(signal.SIGUSR1),
        signal.SIGINT: lambda *_: job.interrupt(signal.SIGINT, "Ctrl-C"),
    }
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        return job.execute()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    try:
        return run_job(*read_arguments(argv))
    except SweepError as exc:
        print(f"sf_fixpo.launcher.job: {exc}", file=sys.stderr)
        return BAD_INPUT


def read_arguments(argv: Sequence[str] | None = None) -> tuple[Sweep, Run, JobOptions]:
    """What a job is to run.

    Raises:
        SweepError: there is no such sweep, or no such run of it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sf_fixpo.launcher.job", description="Runs one run of a sweep.", allow_abbrev=False
    )
    parser.add_argument("sweep", help="folder of the sweep")
    parser.add_argument("run", help="name of the run")
    for option in fields(JobOptions):
        parser.add_argument(f"--{option.name}", default=option.default, type=type(option.default), help="see launcher.run --help")
    args = vars(cli.parse(parser, argv))
    sweep, name = Sweep.load(args.pop("sweep")), args.pop("run")
    if name not in sweep.runs:
        raise SweepError(f"{name}: no run of {sweep.folder}")
    return sweep, sweep.runs[name], JobOptions(**args)


if __name__ == "__main__":
    sys.exit(main())
