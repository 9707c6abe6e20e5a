"""The other machines of a run that a job on one machine holds: each starts its own ranks whenever that job starts an attempt.

How far the run is they read in its state, which only that job writes; so no one has to ask another to start, or to end.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping

from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.claims import run_mark
from sf_fixpo.launcher.job import PREEMPTED, status_of
from sf_fixpo.launcher.starting import Starter, kill_training, start_training
from sf_fixpo.launcher.sweep import RUNNING, Run, Sweep

_LOOK_SECONDS = 1.0


class Follower:
    """One of these machines."""

    def __init__(self, sweep: Sweep, run: Run, options: JobOptions, starter: Starter, node: int):
        """Starts nothing.

        Args:
            sweep: the sweep.
            run: one of its runs, which a job on node 0 holds.
            options: of that job.
            starter: of this machine's ranks.
            node: number of this machine, from 1.
        """
        self._sweep, self._run, self._options, self._starter = sweep, run, options, starter
        log_path = sweep.log_path(run)
        self._log_path = log_path.with_name(f"{log_path.stem}_node_{node}{log_path.suffix}")
        self._mark = f"{run_mark(sweep, run)} on node {node}"
        self._told_to_end = False

    def follow(self, env: Mapping[str, str] | None = None) -> int:
        """Until the run has ended, or this machine is told to end, in this process's main thread.

        Args:
            env: variables on top of this process's environment, under the run's own.

        Returns:
            An exit status, as of `launcher.job`.
        """
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        try:
            followed = 0
            while True:
                state = self._sweep.state(self._run)
                if state.has_ended:
                    return status_of(state)
                if self._told_to_end:
                    return PREEMPTED
                if state.status == RUNNING and state.attempt > followed:
                    followed = state.attempt
                    self._attempt(followed, env or {})
                time.sleep(_LOOK_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, *_: object) -> None:
        self._told_to_end = True

    def _attempt(self, number: int, env: Mapping[str, str]) -> None:
        """Runs this machine's ranks until they have ended, or are to end because the attempt has."""
        options = self._options
        starter = self._starter(number)
        process = start_training(self._sweep, self._run, starter, self._mark, self._log_path, env, options.secrets_file)
        kill_at = float("inf")
        try:
            while time.monotonic() < kill_at:
                try:
                    process.wait(_LOOK_SECONDS)
                    return
                except subprocess.TimeoutExpired:
                    state = self._sweep.state(self._run)
                is_on = (state.status, state.attempt) == (RUNNING, number) and not self._told_to_end
                if not is_on and kill_at == float("inf"):
                    process.terminate()
                    kill_at = time.monotonic() + options.stop_timeout
        finally:
            kill_training(process, self._mark)
            process.wait()
