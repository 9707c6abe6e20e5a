"""Search over flags with Optuna: `sf_fixpo.launcher.run --run=MODULE --search=optuna --trials=N`, MODULE with a `SEARCH_SPACE`.

A trial is a run of a sweep like any other: it may crash, be preempted and go on. Optuna's SQLite file lies in the sweep's folder;
only the one launcher that searches opens it, so that it may lie on NFS.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import Trial, TrialState

from sf_fixpo.launcher import claims
from sf_fixpo.launcher.backend import Backend
from sf_fixpo.launcher.driver import Driver, make_ready, say
from sf_fixpo.launcher.files import read_json, write_json
from sf_fixpo.launcher.progress import read_progress
from sf_fixpo.launcher.sweep import (
    FINISHED,
    NO_RUNS,
    PRUNED,
    SEARCH_OPTIONS,
    STOPPED,
    Run,
    RunState,
    Sweep,
    SweepError,
    run_faults,
)

# Not the name of any run: it marks who searches.
_SEARCHER = Run("~search", (), "")
_LOOK_SECONDS = 1.0
# Of a trial's steps, between two values that are compared with those of other trials at the same place.
_REPORT_SHARE = 0.05


def distribution(values: Any) -> BaseDistribution:
    """Optuna's form of one entry of a `SEARCH_SPACE`.

    Args:
        values: (low, high), (low, high, "log") or a list of choices; two integers stand for the integers between them.

    Raises:
        ValueError: it is none of these.
        TypeError: it is none of these.
    """
    if isinstance(values, list):
        return CategoricalDistribution(values)
    low, high, *rest = values
    if rest not in ([], ["log"]):
        raise ValueError(f"{rest[0]!r} is not 'log'")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=bool(rest))
    return FloatDistribution(low, high, log=bool(rest))


def read_space(space: Any) -> dict[str, BaseDistribution]:
    """Reads a module's `SEARCH_SPACE`.

    Raises:
        SweepError: everything wrong with it, one line a flag.
    """
    if not isinstance(space, Mapping) or not space:
        raise SweepError("SEARCH_SPACE: must be a dict, flag -> (low, high), (low, high, 'log') or a list of choices")
    made, found = {}, []
    for flag, values in space.items():
        try:
            made[str(flag)] = distribution(values)
        except (ValueError, TypeError) as exc:
            found.append(f"SEARCH_SPACE[{flag!r}]={values!r}: must be (low, high), (low, high, 'log') or a list: {exc}")
    if found:
        raise SweepError("\n".join(found))
    return made


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for, and how; kept in the sweep's folder, so that `launcher.resume` goes on with it.

    Attributes:
        base: the command of every trial, before its own flags.
        space: flag -> Optuna's distribution.
        trials: how many in all, those of earlier launches included.
        parallel: how many at a time.
        seed: of the sampler.
        report_steps: environment steps between two reports of a trial's return.
    """

    base: str
    space: Mapping[str, BaseDistribution]
    trials: int
    parallel: int
    seed: int
    report_steps: int

    @classmethod
    def of(cls, module: Any, args: argparse.Namespace) -> SearchOptions:
        """From a sweep's module and checked flags.

        Raises:
            SweepError: everything wrong with them.
        """
        if not module.RUN_DESCRIPTION.experiments:
            raise SweepError(NO_RUNS)
        base = module.RUN_DESCRIPTION.experiments[0].cmd
        flags = [argument for argument in shlex.split(base) if argument.startswith("--train_for_env_steps=")]
        report_steps = args.report_steps
        if not report_steps and flags:
            report_steps = max(1, int(_REPORT_SHARE * float(flags[-1].partition("=")[2])))
        found = run_faults([Run("base", tuple(shlex.split(base)), "")])
        if not report_steps:
            found.append("--report_steps=0: give it, or --train_for_env_steps in the sweep's command")
        try:
            space = read_space(getattr(module, "SEARCH_SPACE", None))
        except SweepError as exc:
            found += str(exc).splitlines()
        if found:
            raise SweepError("\n".join(found))
        return cls(base, space, args.trials, args.search_parallel, args.search_seed, report_steps)

    def save(self, sweep: Sweep) -> None:
        """Keeps them; more trials than last time are welcome, another command or space is another search.

        Raises:
            SweepError: the folder holds another search.
        """
        space = {flag: distribution_to_json(values) for flag, values in self.space.items()}
        found = read_json(sweep.state_folder / SEARCH_OPTIONS)
        if found is not None and (found["base"], found["space"]) != (self.base, space):
            raise SweepError(f"{sweep.folder}: holds another search (another command or SEARCH_SPACE); give another --train_dir")
        write_json(sweep.state_folder / SEARCH_OPTIONS, {**vars(self), "space": space})

    @classmethod
    def load(cls, sweep: Sweep) -> SearchOptions | None:
        """Those of the sweep's last launch; None where it is no search."""
        found = read_json(sweep.state_folder / SEARCH_OPTIONS)
        if found is None:
            return None
        return cls(**{**found, "space": {flag: json_to_distribution(text) for flag, text in found["space"].items()}})


class Search:
    """Asks Optuna for trials, runs them, and tells it what came out; the return is to be as high as possible."""

    def __init__(self, backend: Backend, options: SearchOptions):
        """Opens the study, or makes it."""
        self.backend = backend
        self.sweep = backend.sweep
        self.options = options
        self._driver = Driver(backend)
        self._trials: dict[str, Trial] = {}
        self._next_report: dict[str, int] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep.state_folder.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{self.sweep.state_folder}/optuna.db"
        self.study = optuna.create_study(
            storage=storage,
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            # one that goes on must not begin with the same random trials again
            sampler=optuna.samplers.TPESampler(seed=options.seed + _trials_so_far(storage)),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2 * options.report_steps),
        )
        self._halted = False

    def search(self) -> None:
        """Until all trials have ended.

        Raises:
            SweepError: another launcher searches in this folder.
            BackendError: the backend's engine refused.
        """
        mine = claims.claim(self.sweep, _SEARCHER)
        if mine is None:
            raise SweepError(f"{self.sweep.folder}: another launcher searches here: {claims.holder(self.sweep, _SEARCHER)}")
        try:
            self._take_up()
            while self._fill() or self._driver.waiting:
                for run, state in self._driver.step():
                    self._tell(run, state)
                self._report()
                if mine.is_lost():
                    raise SweepError(f"{self.sweep.folder}: another launcher has taken over the search")
                if self._driver.waiting:
                    self.backend.wait(_LOOK_SECONDS)
        finally:
            mine.release()

    def _take_up(self) -> None:
        """The trials that an earlier launch left in the middle, or that ended when nobody looked."""
        for frozen in self.study.get_trials(states=(TrialState.RUNNING,)):
            run = self._run(frozen.number, frozen.params)
            self._trials[run.name] = Trial(self.study, frozen._trial_id)
            if run.name not in self.sweep.runs:  # killed between asking for it and writing it down
                self._write_down(run)
            if self.sweep.stop_reason(run) != PRUNED:
                make_ready(self.sweep, [run])
            self._driver.add([run])

    def _fill(self) -> bool:
        """Asks for as many trials as may run now.

        Returns:
            Whether more are to come.
        """
        while not self._halted and len(self._driver.waiting) < self.options.parallel and self._missing():
            trial = self.study.ask(dict(self.options.space))
            run = self._run(trial.number, trial.params)
            self._write_down(run)
            self._trials[run.name] = trial
            self._driver.add([run])
            say(f"{run.name}: {_flags(trial.params)}")
        return not self._halted and self._missing() > 0

    def _missing(self) -> int:
        return self.options.trials - len(self.study.get_trials(deepcopy=False))

    def _run(self, number: int, params: Mapping[str, Any]) -> Run:
        name = _name(number)
        flags = shlex.split(_flags(params))
        where = [f"--experiment={name}", f"--train_dir={self.sweep.folder}"]
        return Run(name, (*shlex.split(self.options.base), *flags, *where), name)

    def _write_down(self, run: Run) -> None:
        self.sweep.runs[run.name] = run
        self.sweep.save_manifest()

    def _report(self) -> None:
        """Tells Optuna the returns so far; a trial behind the median of the others at its place is stopped."""
        for name, run in self._driver.waiting.items():
            found = read_progress(self.sweep.run_folder(run), self.sweep.log_path(run))
            place = found.steps // self.options.report_steps * self.options.report_steps
            if found.mean_return is None or place < self._next_report.get(name, self.options.report_steps):
                continue
            self._next_report[name] = place + self.options.report_steps
            self._trials[name].report(found.mean_return, place)
            if self._trials[name].should_prune():
                self.sweep.ask_to_stop(run, PRUNED)

    def _tell(self, run: Run, state: RunState) -> None:
        trial = self._trials.pop(run.name)
        if state.status == STOPPED and state.reason == PRUNED:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif state.status == FINISHED and state.mean_return is not None and math.isfinite(state.mean_return):
            self.study.tell(trial, state.mean_return)
        elif state.status == STOPPED:
            # by a user: neither is it followed by another trial, nor is it over
            self._halted = True
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def print_best(self) -> None:
        """The best trial so far and its flags."""
        if self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            best = self.study.best_trial
            say(f"best: {_name(best.number)}, return {best.value:.4g}: {_flags(best.params)}")


def _trials_so_far(storage: str) -> int:
    return sum(summary.n_trials for summary in optuna.get_all_study_summaries(storage))


def _flags(params: Mapping[str, Any]) -> str:
    return " ".join(shlex.quote(f"--{flag}={value}") for flag, value in params.items())


def _name(number: int) -> str:
    return f"trial_{number:04d}"
