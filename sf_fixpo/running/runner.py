"""Puts a run together: sample-factory's runners with our learner, watched processes, and an end that says what happened."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import gymnasium
from rich.console import Console
from sample_factory.algo.runners import runner as sf_runner
from sample_factory.algo.runners.runner import Runner
from sample_factory.algo.runners.runner_parallel import ParallelRunner
from sample_factory.algo.runners.runner_serial import SerialRunner
from sample_factory.algo.utils.context import set_global_context, sf_global_context
from sample_factory.algo.utils.env_info import EnvInfo
from sample_factory.algo.utils.make_env import is_multiagent_env
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.cfg.arguments import preprocess_cfg
from sample_factory.envs.env_utils import register_env
from sample_factory.model.actor_critic import default_make_actor_critic_func
from sample_factory.pbt import population_based_training as pbt
from sample_factory.utils.typing import Config
from sample_factory.utils.utils import log
from signal_slot.signal_slot import EventLoopProcess, Timer

from sf_fixpo.algorithm.config import task_names
from sf_fixpo.baselines.registry import LEARNERS
from sf_fixpo.envs.action_mask import guarded, mask_fault
from sf_fixpo.envs.seeding import env_seeds
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.learning.tasks import task_count
from sf_fixpo.learning.worker import FixPOLearnerWorker
from sf_fixpo.running.clock import CLOCK, use_awake_clock
from sf_fixpo.running.crashes import CrashCounts, RemadeWhenItCrashes
from sf_fixpo.running.eval_during_training import EvaluationDuringTraining
from sf_fixpo.running.fit import checkpoint_faults, env_faults
from sf_fixpo.running.folders import FolderInUseError, already_done, saved_states, sole_run
from sf_fixpo.running.heartbeats import Heartbeats
from sf_fixpo.running.machine import FAIL, check_shared_memory
from sf_fixpo.running.pacing import PacedEnv, Pacer, make_pacer, recent_returns
from sf_fixpo.running.progress import TrainingDisplay, finish_wandb, print_summary, start_wandb
from sf_fixpo.running.supervision import (
    PREEMPTION_SIGNALS,
    VERDICT,
    ErrorsInWords,
    ProcessWatch,
    RunContext,
    asked_to_stop,
    deaf_children,
    exit_in_words,
    kill_tree,
    probe_environment,
    start_shared_memory,
)

PREEMPTED = 3  # beside sample-factory's ExperimentStatus
PBT_HYPERPARAMS = ("eps_kl", "c_beta", "beta_lr")
_INTERRUPT_POLL_SECONDS = 0.2
_RETURNS_SECONDS = 5.0
_HEARTBEAT_LOOKS = 8  # in the time after which a silence is too long
_ACTION_SALT = 1 << 20  # apart from the salts of the environments' own seeds


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

    def __init__(self, cfg: Config, env_info: EnvInfo):
        """Takes the environment's spaces, which have been asked for already."""
        self._known_env_info = env_info
        with _replaced("init_wandb", start_wandb):
            super().__init__(cfg)
        self._watch: ProcessWatch | None = None
        self.failure: str | None = None
        self.can_restart = False
        self.began = self.start_time  # where this is another attempt, that of the first
        self._heartbeats = Heartbeats(cfg.heartbeat_reporting_interval)
        heartbeat_timer = Timer(self.event_loop, cfg.heartbeat_reporting_interval / _HEARTBEAT_LOOKS)
        heartbeat_timer.timeout.connect(self._check_heartbeat)
        self.timers.append(heartbeat_timer)
        self._interrupted = False
        self.preempted = False
        self._everything_stopped = False
        self.connect("child_died", self._on_child_died)
        self.connect("overdue", self._on_overdue)
        interrupt_timer = Timer(self.event_loop, _INTERRUPT_POLL_SECONDS)
        interrupt_timer.timeout.connect(self._stop_if_interrupted)
        self.timers.append(interrupt_timer)
        self._num_tasks = task_count(env_info.obs_space)
        if self._num_tasks > 1:
            returns_timer = Timer(self.event_loop, _RETURNS_SECONDS)
            returns_timer.timeout.connect(self._send_task_returns)
            self.timers.append(returns_timer)

    def init(self) -> int:
        """As sample-factory's, but the environment is not probed a second time."""
        with _replaced("obtain_env_info_in_a_separate_process", lambda cfg: self._known_env_info):
            return super().init()

    def connect_components(self) -> None:
        """As sample-factory's; the learners also hear how well each task goes, for the update log."""
        super().connect_components()
        for learner in self.learners.values():
            self.connect("task_returns", learner.on_task_returns)

    def _send_task_returns(self) -> None:
        returns = {i: recent_returns(self.policy_avg_stats, i, self._num_tasks) for i in range(self.cfg.num_policies)}
        self.emit("task_returns", returns)

    def _make_learner(self, event_loop, policy_id, batcher) -> FixPOLearnerWorker:
        algo = LEARNERS[self.cfg.algo]
        return FixPOLearnerWorker(event_loop, self.cfg, self.env_info, self.buffer_mgr, batcher, policy_id, algo)

    def child_processes(self) -> list[EventLoopProcess]:
        """Every process of the run, started or not."""
        return [*getattr(self, "processes", ()), *getattr(self.sampler, "processes", ())]

    def _on_child_died(self, name: str, exit_code: int | None) -> None:
        if self._interrupted:  # the user has ended the run already: what dies on the way out is not why
            self._stop_if_interrupted()
            return
        died = f"process {name} died (exit code {exit_code}); {exit_in_words(exit_code)}"
        self.failure = self.failure or died  # where it was killed for its silence, that is the cause
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


@dataclass(frozen=True)
class SeededFactory:
    """An environment factory whose environments also draw the same random actions in every run of a seed.

    Before the first rollout sample-factory takes random steps, so that a worker's environments are not in step with each other;
    it draws them from the action space, whose generator nobody else seeds. In a run on several tasks `pacer` counts their steps.
    """

    make_env: Callable
    pacer: Pacer | None = None
    crashes: CrashCounts | None = None

    def __call__(self, full_env_name: str, cfg: Config, env_config=None, render_mode: str | None = None):
        """As the factory itself."""

        def make() -> gymnasium.Env:
            return self.make_env(full_env_name, cfg, env_config, render_mode)

        env = make()
        if self.crashes is not None and env_config is not None and not is_multiagent_env(env):
            made = [env]  # the first time it is there already
            env = RemadeWhenItCrashes(
                lambda: made.pop() if made else make(), full_env_name, env_config.env_id, self.crashes, cfg.max_env_crashes
            )
        if not mask_fault(env.observation_space, env.action_space):  # else `env_faults` refuses it
            env = guarded(env, full_env_name)
        env.action_space.seed(env_seeds(cfg, env_config, salt=_ACTION_SALT)[0])
        env = ErrorsInWords(env)
        if self.pacer is not None and env_config is not None:
            env = PacedEnv(env, self.pacer, env_config.env_id, cfg.num_envs_per_worker)
        return env


def registered_context(cfg: Config, make_env: Callable) -> RunContext:
    """The registry with this run's environment and our actor-critic; it becomes the global one.

    What a user has registered before stays, an actor-critic of the user's own too.
    """
    before, context = sf_global_context(), RunContext()
    context.env_registry = {name: factory for name, factory in before.env_registry.items() if name != cfg.env}
    context.model_factory = copy(before.model_factory)
    set_global_context(context)
    crashes = CrashCounts(cfg.num_workers * cfg.num_envs_per_worker)
    register_env(cfg.env, SeededFactory(make_env, make_pacer(cfg, len(task_names(cfg))), crashes))
    if context.model_factory.make_actor_critic_func is default_make_actor_critic_func:
        context.model_factory.register_actor_critic_factory(make_actor_critic)
    return context


def make_runner(cfg: Config, env_info: EnvInfo) -> Runner:
    """The runner for `--serial_mode`, with the live display and, where asked for, PBT.

    Raises:
        InvalidRunError: the configuration does not fit the environment or the experiment's checkpoints.
    """
    if not preprocess_cfg(cfg, env_info):
        raise InvalidRunError("the configuration is refused by sample-factory; see above")
    runner_class = FixPOSerialRunner if cfg.serial_mode else FixPOParallelRunner
    runner = runner_class(cfg, env_info)
    if cfg.with_pbt:
        if cfg.algo == "FIXPO":
            pbt.HYPERPARAMS_TO_TUNE.update(PBT_HYPERPARAMS)
        runner.register_observer(pbt.PopulationBasedTraining(cfg, runner))
    return runner


@contextmanager
def _global_context(cfg: Config, make_env: Callable) -> Iterator[RunContext]:
    before = sf_global_context()
    try:
        yield registered_context(cfg, make_env)
    finally:
        set_global_context(before)


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
    """
    console = console or Console()
    try:
        with sole_run(cfg):
            states = saved_states(cfg) if cfg.restart_behavior == "resume" else [None] * cfg.num_policies
            return _run(cfg, make_env, console, states)
    except FolderInUseError as exc:
        raise InvalidRunError(str(exc)) from None


def _run(cfg: Config, make_env: Callable, console: Console, states: list[dict[str, Any] | None]) -> int:
    if cfg.seed is not None:
        random.seed(cfg.seed)  # PBT and the mapping of agents to policies; sample-factory seeds the other generators
    use_awake_clock()
    # where there is no room the system ends whoever writes
    if not cfg.serial_mode and (room := check_shared_memory()).status == FAIL:
        raise InvalidRunError(f"{room.name}: {room.found}; {room.advice}; or use --serial_mode=True")
    with _global_context(cfg, make_env) as context:
        env_info = probe_environment(context, cfg, cfg.env_start_timeout)
        found = env_faults(cfg, env_info)
        if found := found or checkpoint_faults(cfg, env_info, states):
            raise InvalidRunError("\n".join(found))
        if done := already_done(cfg, states):
            console.print(done, highlight=False, soft_wrap=True)
            return ExperimentStatus.SUCCESS
        start_shared_memory()
        status = _attempts(cfg, env_info, console)
        if count := context.env_registry[cfg.env].crashes.total():
            console.print(f"{count} episode(s) lost to crashes of environments, which were made anew", highlight=False)
        finish_wandb(cfg)
        return status


def _attempts(cfg: Config, env_info: EnvInfo, console: Console) -> int:
    """Trains; where a rollout or policy worker was lost, again from what the learner has saved, `--max_restarts` times at most.

    A worker that is killed may take the lock of a queue with it, and the trajectories it was filling: so all processes end in
    good order, and all of them are started anew.
    """
    started, resume = CLOCK.time(), cfg.restart_behavior
    for restart in range(cfg.max_restarts + 1):
        runner = make_runner(cfg, env_info)
        runner.began = started
        status = _attempt(runner, console)
        if status != ExperimentStatus.FAILURE or not runner.can_restart or restart == cfg.max_restarts:
            break
        console.print(
            f"Restart {restart + 1} of --max_restarts={cfg.max_restarts}: {runner.failure}", highlight=False, soft_wrap=True
        )
        cfg.restart_behavior = "resume"
    cfg.restart_behavior = resume
    return status


def _attempt(runner: Any, console: Console) -> int:
    runner.register_observer(TrainingDisplay(console))
    with closing(EvaluationDuringTraining(runner.cfg, console)) as evaluation:
        if runner.cfg.eval_every:
            runner.register_observer(evaluation)
        status = runner.init()
        if status == ExperimentStatus.SUCCESS:
            status = runner.run()
        print_summary(runner, console)
        if status == ExperimentStatus.SUCCESS and runner.cfg.eval_every:
            evaluation.finish(runner)
    return status
