"""The launcher's loop: hands runs to a backend until all have ended, whatever happens to their jobs, and says how it went."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable

from sf_fixpo.launcher.backend import Backend
from sf_fixpo.launcher.claims import holder
from sf_fixpo.launcher.job import settle
from sf_fixpo.launcher.progress import tail_lines
from sf_fixpo.launcher.sweep import FAILED, FINISHED, PRUNED, QUEUED, STOPPED, Run, RunState, Sweep

ALL_FINISHED, NOT_ALL_FINISHED = 0, 1
# A job that ends without a word (its host went away, somebody cancelled it) is submitted again this often beyond --max_retries.
_VANISHED_JOBS = 3
_LOG_LINES = 5


def make_ready(sweep: Sweep, runs: Iterable[Run]) -> list[Run]:
    """Queues what failed or was stopped before, for a new launch.

    Returns:
        The runs that have not finished; some may be held by another launcher.
    """
    unfinished = []
    for run in runs:
        state = sweep.state(run)
        if state.status == FINISHED:
            continue
        unfinished.append(run)
        if sweep.stop_reason(run) is not None and holder(sweep, run) is None:
            sweep.forget_stop(run)
        if state.status in (FAILED, STOPPED):
            settle(sweep, run, QUEUED, "")
    return unfinished


class Driver:
    """Keeps a backend supplied until all runs have ended.

    What another launcher holds is waited for, and taken over when that one dies.

    Attributes:
        waiting: runs that have not ended, by name.
        submissions: how many jobs each run has had from this launcher since it was last preempted.
    """

    def __init__(self, backend: Backend, runs: Iterable[Run] = ()):
        """Submits nothing."""
        self.backend = backend
        self.waiting: dict[str, Run] = {}
        self.submissions: Counter[str] = Counter()
        self._total = 0
        self.add(runs)

    def add(self, runs: Iterable[Run]) -> None:
        """More runs that are to end."""
        for run in runs:
            self.waiting[run.name] = run
            self._total += 1

    def step(self) -> list[tuple[Run, RunState]]:
        """Submits what has no job.

        Returns:
            The runs that have ended since the last call.

        Raises:
            BackendError: the backend's engine refused.
        """
        live = set(self.backend.live())
        ended, ready = [], []
        for run in [run for run in self.waiting.values() if run.name not in live]:
            state = self._look(run)
            if state is None:
                continue
            if state.has_ended:
                del self.waiting[run.name]
                ended.append((run, state))
                say(f"[{self._total - len(self.waiting)}/{self._total}] {describe(self.backend.sweep, run, state)}")
            else:
                ready.append(run)
        if ready:
            self.backend.submit(ready)
            self.submissions.update(run.name for run in ready)
        return ended

    def _look(self, run: Run) -> RunState | None:
        """The state of a run without a job; None where another launcher's job holds it."""
        sweep = self.backend.sweep
        if sweep.state(run).has_ended:
            return sweep.state(run)
        if holder(sweep, run) is not None:
            return None
        state = sweep.state(run)  # again: it may have ended between the two looks
        if state.has_ended:
            return state
        jobs = self.submissions[run.name]
        if (reason := sweep.stop_reason(run)) is not None:
            settle(sweep, run, STOPPED, reason)
        elif state.status == QUEUED and state.attempt > 0:
            self.submissions[run.name] = 0  # preempted: not its job's fault
        elif jobs > self.backend.options.max_retries + _VANISHED_JOBS:
            settle(sweep, run, FAILED, f"its job vanished {jobs} times without an exit status")
        return sweep.state(run)


def drive(backend: Backend, runs: Iterable[Run]) -> None:
    """Runs everything to its end, or only submits it where the backend is not attached.

    Raises:
        BackendError: the backend's engine refused.
    """
    driver = Driver(backend, runs)
    while True:
        driver.step()
        if not backend.attached:
            say(f"{len(driver.waiting)} runs submitted; python -m sf_fixpo.launcher.status {backend.sweep.folder} --watch")
            return
        if not driver.waiting:
            return
        backend.wait(backend.poll_seconds)


def say(text: str) -> None:
    """One line for the user, at once."""
    print(text, flush=True)


def describe(sweep: Sweep, run: Run, state: RunState) -> str:
    """How a run ended, in a line; with the end of its log where it failed."""
    parts = [f"{run.name}: {state.status}"]
    if state.started is not None and state.ended is not None:
        parts.append(f"{state.ended - state.started:.1f} s")
    if state.mean_return is not None:
        parts.append(f"return {state.mean_return:.4g}")
    if state.reason:
        parts.append(state.reason)
    if state.status != FAILED:
        return ", ".join(parts)
    lines = "".join(f"\n    {line}" for line in tail_lines(sweep.log_path(run), _LOG_LINES))
    return f"{', '.join(parts)}; the end of {sweep.log_path(run)}:{lines}"


def conclude(sweep: Sweep, runs: Iterable[Run], started: float) -> int:
    """Prints how many ended how.

    Returns:
        The launcher's exit status.
    """
    ended = [sweep.state(run) for run in runs]
    counts = Counter(PRUNED if state.reason == PRUNED else state.status for state in ended)
    text = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    say(f"{sweep.folder.name}: {text or 'nothing to do'} ({time.monotonic() - started:.0f} s)")
    if set(counts) <= {FINISHED, PRUNED}:
        return ALL_FINISHED
    print(f"go on with: python -m sf_fixpo.launcher.resume {sweep.folder}", file=sys.stderr)
    return NOT_ALL_FINISHED
