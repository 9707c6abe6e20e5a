"""Puts a run together: sample-factory's runners with our learner, watched processes, and an end that says what happened."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any

from rich.console import Console
from sample_factory.algo.runners import runner as sf_runner
from sample_factory.algo.runners.runner import Runner
from sample_factory.algo.runners.runner_parallel import ParallelRunner
from sample_factory.algo.runners.runner_serial import SerialRunner
from sample_factory.algo.utils.env_info import EnvInfo
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.cfg.arguments import preprocess_cfg
from sample_factory.pbt import population_based_training as pbt
from sample_factory.utils.typing import Config
from sample_factory.utils.utils import log
from signal_slot.signal_slot import EventLoopProcess, Timer

from sf_fixpo.baselines.registry import LEARNERS
from sf_fixpo.learning.learner import FixPOLearner
from sf_fixpo.learning.mailbox import MailboxClient
from sf_fixpo.learning.meeting import DONE, INTERRUPTED, Meeting, RanksError
from sf_fixpo.learning.meeting import PREEMPTED as TAKEN_AWAY
from sf_fixpo.learning.tasks import task_count
from sf_fixpo.learning.worker import FixPOLearnerWorker
from sf_fixpo.running.clock import CLOCK, use_awake_clock
from sf_fixpo.running.eval_during_training import EvaluationDuringTraining
from sf_fixpo.running.fit import checkpoint_faults, env_faults
from sf_fixpo.running.folders import FolderInUseError, already_done, saved_states, sole_run
from sf_fixpo.running.heartbeats import Heartbeats
from sf_fixpo.running.joining import DifferentRanksError, is_done, joined, start_together
from sf_fixpo.running.machine import FAIL, check_shared_memory
from sf_fixpo.running.pacing import recent_returns
from sf_fixpo.running.preparing import registered
from sf_fixpo.running.progress import TrainingDisplay, print_summary
from sf_fixpo.running.supervision import (
    PREEMPTION_SIGNALS,
    VERDICT,
    ProcessWatch,
    asked_to_stop,
    deaf_children,
    exit_in_words,
    kill_tree,
    probe_environment,
    start_shared_memory,
)
from sf_fixpo.running.trackers import TrackerError, start_trackers, tracked

PREEMPTED = 3  # beside sample-factory's ExperimentStatus
PBT_HYPERPARAMS = ("eps_kl", "c_beta", "beta_lr")
_INTERRUPT_POLL_SECONDS = 0.2
_RETURNS_SECONDS = 5.0
_RANKS_POLL_SECONDS = 1.0
_LOST_STOP_SECONDS = 8.0  # for a run to save what it has when another rank is gone; its learner may wait for that one
_HEARTBEAT_LOOKS = 8  # in the time after which a silence is too long


class InvalidRunError(ValueError):
    """The run cannot start as it is configured; one line a fault."""


@contextmanager
def _replaced(name: str, function: Callable) -> Iterator[None]:
    """Has sample-factory's runner call `function` for one that its module imported under `name`: it leaves no other way in."""
    original = getattr(sf_runner, name)
    setattr(sf_runner, name, function)
    try:
        yield
    finally:
        setattr(sf_runner, name, original)


class _FixPORunner(Runner):
    """What the serial and the parallel runner have in common."""

    def __init__(self, cfg: Config, env_info: EnvInfo, meeting: Meeting | None = None):
        """Takes the environment's spaces, which have been asked for already, and where it meets other ranks."""
        self._known_env_info = env_info
        self._meeting = meeting
        with _replaced("init_wandb", lambda cfg: None):  # started by `_attempt`, which also ends them
            super().__init__(cfg)
        self._watch: ProcessWatch | None = None
        self.failure: str | None = None
        self.can_restart = False
        self.began = self.start_time  # where this is another attempt, that of the first
        self._heartbeats = Heartbeats(cfg.heartbeat_reporting_interval)
        self._every(cfg.heartbeat_reporting_interval / _HEARTBEAT_LOOKS, self._check_heartbeat)
        self._interrupted = False
        self.preempted = False
        self._everything_stopped = False
        self.connect("child_died", self._on_child_died)
        self.connect("overdue", self._on_overdue)
        self._every(_INTERRUPT_POLL_SECONDS, self._stop_if_interrupted)
        self._num_tasks = task_count(env_info.obs_space)
        if self._num_tasks > 1:
            self._every(_RETURNS_SECONDS, self._send_task_returns)
        if meeting is not None:
            self._every(_RANKS_POLL_SECONDS, self._look_at_ranks)

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        timer = Timer(self.event_loop, seconds)
        timer.timeout.connect(action)
        self.timers.append(timer)

    def init(self) -> int:
        """As sample-factory's, but the environment is not probed a second time, and weights come by our learner's mailbox."""
        with _replaced("obtain_env_info_in_a_separate_process", lambda cfg: self._known_env_info):
            status = super().init()
        if status == ExperimentStatus.SUCCESS and not self.cfg.serial_mode and issubclass(LEARNERS[self.cfg.algo], FixPOLearner):
            for worker in chain.from_iterable(self.sampler.inference_workers.values()):
                server = self.learners[worker.policy_id].param_server
                worker.param_client = MailboxClient(server, self.cfg, self.env_info, worker.timing)
        return status

    def connect_components(self) -> None:
        """As sample-factory's; the learners also hear how well each task goes, for the update log."""
        super().connect_components()
        for learner in self.learners.values():
            self.connect("task_returns", learner.on_task_returns)
            learner.ranks_ended.connect(self._on_ranks_ended)

    def _send_task_returns(self) -> None:
        returns = {i: recent_returns(self.policy_avg_stats, i, self._num_tasks) for i in range(self.cfg.num_policies)}
        self.emit("task_returns", returns)

    def _make_learner(self, event_loop, policy_id, batcher) -> FixPOLearnerWorker:
        algo = LEARNERS[self.cfg.algo]
        return FixPOLearnerWorker(event_loop, self.cfg, self.env_info, self.buffer_mgr, batcher, policy_id, algo, self._meeting)

    def child_processes(self) -> list[EventLoopProcess]:
        """Every process of the run, started or not."""
        return [*getattr(self, "processes", ()), *getattr(self.sampler, "processes", ())]

    def _on_child_died(self, name: str, exit_code: int | None) -> None:
        if self._interrupted:  # the user has ended the run already: what dies on the way out is not why
            self._stop_if_interrupted()
            return
        died = f"process {name} died (exit code {exit_code}); {exit_in_words(exit_code)}"
        self.failure = self.failure or died  # where it was killed for its silence, that is the cause
        if self._meeting is not None:
            self._meeting.fail(self.failure)
        log.error("%s; stopping the run", died)
        learners = {p.name for p in getattr(self, "processes", ())}
        if name in learners or not self.env_steps:
            # nobody is left to save anything, or nothing has been learned yet
            self.status = ExperimentStatus.FAILURE
            self.stopped = True
            self._observers_call(sf_runner.AlgoObserver.on_stop, self)
            # what is killed may hold the lock of a queue, this process's own too: from here on nothing is sent
            self.send_signals_to.clear()
            self.event_loop._terminate()
            kill_tree([p.pid for p in self.child_processes() if p.pid is not None and p.is_alive()])
        else:
            self.can_restart = exit_code != VERDICT
            self._stop_training(failed=True)

    def _look_at_ranks(self) -> None:
        """Ends the run where another rank has failed: its learner may be waiting for one that is gone."""
        if self._meeting is None or self.stopped or self._interrupted:
            return
        try:
            cause = self._meeting.failure()
        except RanksError as exc:
            cause = str(exc)
        if cause:
            self.failure = cause
            log.error("%s; stopping the run", cause)
            if self._watch is not None:
                self._watch.expect_end(within=_LOST_STOP_SECONDS)
            self._stop_training(failed=True)

    def _on_ranks_ended(self, reason: int) -> None:
        """The learners of all ranks make no further update, because one of the ranks is done or was asked to stop."""
        if self.stopped:
            return
        if reason == DONE:
            self._stop_training()
        else:
            self._interrupted, self.preempted = True, reason == TAKEN_AWAY
            self._stop_if_interrupted()

    def _receive_heartbeat(self, component_type: type, component_id: str, p_name: str, qsize: int) -> None:
        self._heartbeats.receive(component_id, p_name)
        super()._receive_heartbeat(component_type, component_id, p_name, qsize)

    def _check_heartbeat(self) -> None:
        """Kills every process with a component that is silent for too long, the main one aside: then it is one that died."""
        silent = self._heartbeats.silent()
        if self.stopped or not silent:
            waiting = [name for heard in self.heartbeat_dict.values() for name, at in heard.items() if at is None]
            if waiting and not self.stopped and CLOCK.time() - self.start_time > 3 * self.heartbeat_report_sec:
                self.failure = f"not started after {3 * self.heartbeat_report_sec} s: {', '.join(waiting)}"
                log.error("%s (3 x --heartbeat_reporting_interval); stopping the run", self.failure)
                self._stop_training(failed=True)
            return
        words = "; ".join(map(str, silent))
        if self.failure is None:
            self.failure = f"no sign of life (--heartbeat_reporting_interval={self.heartbeat_report_sec}) of {words}"
            log.error("%s: killed", self.failure)
        names = {each.process for each in silent}
        kill_tree([p.pid for p in self.child_processes() if p.name in names and p.pid is not None and p.is_alive()])

    def _on_overdue(self) -> None:
        """A process ended without saying so, and nobody will: the run must not wait for it."""
        if not self._everything_stopped:
            self.event_loop.stop()

    def _on_everything_stopped(self) -> None:
        self._everything_stopped = True
        super()._on_everything_stopped()

    def _ask_to_stop(self, signum: int) -> None:
        self._interrupted = True
        self.preempted = signum in PREEMPTION_SIGNALS

    def _stop_if_interrupted(self) -> None:
        """After Ctrl-C or a preemption, between two updates: what is learned is saved and everything ends in its usual order."""
        if self._watch is not None:
            self._watch.alive()
        if self._interrupted and not self.stopped:
            self._stop_training()
            self.status = ExperimentStatus.INTERRUPTED

    def _should_end_training(self) -> bool:
        """As sample-factory's, whose `--train_for_seconds` has no effect: nothing moves its clock."""
        self.total_train_seconds = CLOCK.time() - self.began
        return super()._should_end_training()

    def _after_training_iteration(self, training_iteration_since_resume: int) -> None:
        if self._watch is not None:
            self._watch.has_begun()
        super()._after_training_iteration(training_iteration_since_resume)

    def _stop_training(self, failed: bool = False) -> None:
        if self._meeting is not None:
            self._meeting.wish((TAKEN_AWAY if self.preempted else INTERRUPTED) if self._interrupted else DONE)
        if self._watch is not None:
            self._watch.expect_end(self.preempted)
        super()._stop_training(failed)

    def run(self) -> int:
        """Trains; returns sample-factory's status, or `PREEMPTED`. No process of the run is left when it returns."""
        self._watch = ProcessWatch(
            self.child_processes,
            lambda name, code: self.emit("child_died", name, code),
            lambda: self.emit("overdue"),
            self.cfg.heartbeat_reporting_interval,
        )
        try:
            with asked_to_stop(self._ask_to_stop):
                status = super().run()
        except SystemExit:  # of an environment in this process, which has said why
            status = ExperimentStatus.FAILURE
            for learner in self.learners.values():
                learner.save()
        finally:
            self._watch.close()
        if not self.stopped:  # a second Ctrl-C, or an error of the runner itself: nobody has closed the display
            self._observers_call(sf_runner.AlgoObserver.on_stop, self)
        if status == ExperimentStatus.INTERRUPTED and self.preempted:
            return PREEMPTED
        if status == ExperimentStatus.SUCCESS and (self._watch.killed or not self._everything_stopped):
            return ExperimentStatus.FAILURE
        return status


class FixPOSerialRunner(_FixPORunner, SerialRunner):
    """Everything in one process."""


class FixPOParallelRunner(_FixPORunner, ParallelRunner):
    """A process for each learner, policy worker and rollout worker."""

    def _on_start(self) -> None:
        with deaf_children():
            super()._on_start()


def make_runner(cfg: Config, env_info: EnvInfo, meeting: Meeting | None = None) -> Runner:
    """The runner for `--serial_mode`, with the live display and, where asked for, PBT.

    Raises:
        InvalidRunError: the configuration does not fit the environment or the experiment's checkpoints.
    """
    if not preprocess_cfg(cfg, env_info):
        raise InvalidRunError("the configuration is refused by sample-factory; see above")
    runner_class = FixPOSerialRunner if cfg.serial_mode else FixPOParallelRunner
    runner = runner_class(cfg, env_info, meeting)
    if cfg.with_pbt:
        if cfg.algo == "FIXPO":
            pbt.HYPERPARAMS_TO_TUNE.update(PBT_HYPERPARAMS)
        runner.register_observer(pbt.PopulationBasedTraining(cfg, runner))
    return runner


def run_fixpo(cfg: Config, make_env: Callable, console: Console | None = None) -> int:
    """Trains as `cfg` says, from the newest checkpoint where the experiment has one.

    Args:
        cfg: complete configuration (`sf_fixpo.train.parse_cfg`), already checked by `config.faults`.
        make_env: environment factory in sample-factory's form.
        console: where the progress line and the summary go.

    Returns:
        sample-factory's ExperimentStatus: 0 success, 1 failure, 2 interrupted; or `PREEMPTED`, after SIGTERM or SIGUSR1.

    Raises:
        EnvironmentStartError: the environment could not be started.
        InvalidRunError: faults that need the environment's spaces to be seen.
        CheckpointError: there are checkpoints and none can be read.
        RanksError: of several ranks, another one is gone or has failed.
    """
    console = console or Console()
    try:
        with joined(cfg) as (own, meeting):
            first = meeting is None or meeting.rank.number == 0
            if meeting is not None and not first:
                console.quiet = True
                if is_done(meeting):
                    return ExperimentStatus.SUCCESS
            with sole_run(own):
                states = saved_states(own) if first and own.restart_behavior == "resume" else [None] * own.num_policies
                status = _run(own, make_env, console, states, meeting)
                if meeting is not None and status == ExperimentStatus.FAILURE:
                    meeting.fail("its run has failed")
                return status
    except (FolderInUseError, DifferentRanksError) as exc:
        raise InvalidRunError(str(exc)) from None


def _run(cfg: Config, make_env: Callable, console: Console, states: list[dict[str, Any] | None], meeting: Meeting | None) -> int:
    if cfg.seed is not None:
        random.seed(cfg.seed)  # PBT and the mapping of agents to policies; sample-factory seeds the other generators
    use_awake_clock()
    # where there is no room the system ends whoever writes
    if not cfg.serial_mode and (room := check_shared_memory()).status == FAIL:
        raise InvalidRunError(f"{room.name}: {room.found}; {room.advice}; or use --serial_mode=True")
    with registered(cfg, make_env, 0 if meeting is None else meeting.rank.number) as context:
        env_info = probe_environment(context, cfg, cfg.env_start_timeout)
        found = env_faults(cfg, env_info)
        if found := found or checkpoint_faults(cfg, env_info, states):
            raise InvalidRunError("\n".join(found))
        if done := already_done(cfg, states):
            console.print(done, highlight=False, soft_wrap=True)
            start_together(meeting, done=True)
            return ExperimentStatus.SUCCESS
        start_shared_memory()
        status = _attempts(cfg, env_info, console, meeting)
        if count := context.env_registry[cfg.env].crashes.total():
            console.print(f"{count} episode(s) lost to crashes of environments, which were made anew", highlight=False)
        return status


def _attempts(cfg: Config, env_info: EnvInfo, console: Console, meeting: Meeting | None) -> int:
    """Trains; where a rollout or policy worker was lost, again from what the learner has saved, `--max_restarts` times at most.

    A worker that is killed may take the lock of a queue with it, and the trajectories it was filling: so all processes end in
    good order, and all of them are started anew. Of several ranks all have to start again: that is left to torchrun.
    """
    started, resume = CLOCK.time(), cfg.restart_behavior
    max_restarts = cfg.max_restarts if meeting is None else 0
    for restart in range(max_restarts + 1):
        runner = make_runner(cfg, env_info, meeting)
        start_together(meeting, done=False)
        runner.began = started
        status = _attempt(runner, console)
        if status != ExperimentStatus.FAILURE or not runner.can_restart or restart == max_restarts:
            break
        console.print(
            f"Restart {restart + 1} of --max_restarts={cfg.max_restarts}: {runner.failure}", highlight=False, soft_wrap=True
        )
        cfg.restart_behavior = "resume"
    cfg.restart_behavior = resume
    return status


def _attempt(runner: Any, console: Console) -> int:
    runner.register_observer(TrainingDisplay(console))
    try:
        trackers = start_trackers(runner.cfg)
    except TrackerError as exc:
        raise InvalidRunError(str(exc)) from None
    with tracked(runner.writers, trackers) as successes, closing(EvaluationDuringTraining(runner.cfg, console)) as evaluation:
        if runner.cfg.eval_every:
            runner.register_observer(evaluation)
        status = runner.init()
        if status == ExperimentStatus.SUCCESS:
            status = runner.run()
        print_summary(runner, console)
        if status == ExperimentStatus.SUCCESS and runner.cfg.eval_every:
            evaluation.finish(runner)
        successes.append(status == ExperimentStatus.SUCCESS)
    return status
