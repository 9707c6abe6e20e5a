"""The process that learns: sample-factory's learner worker with our learner in it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from threading import Thread

from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.learning.learner_worker import LearnerWorker
from sample_factory.algo.utils.env_info import EnvInfo
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.typing import Config
from sample_factory.utils.utils import log
from signal_slot.signal_slot import signal
from torch import Tensor

from sf_fixpo.learning.learner import FixPOLearner
from sf_fixpo.learning.mailbox import MailboxServer
from sf_fixpo.learning.meeting import ON, Meeting, RanksError


def make_learner(
    cfg: Config, env_info: EnvInfo, versions: Tensor, policy_id: int, learner_class: type[Learner] = FixPOLearner
) -> tuple[MailboxServer, Learner]:
    """Our learner with settings of its own, and the server by which policy workers get its weights.

    Args:
        cfg: of the run.
        env_info: of its environment.
        versions: [policies] int tensor in shared memory.
        policy_id: which policy of a population.
        learner_class: of the run's algorithm.
    """
    server = MailboxServer(policy_id, versions, cfg)
    # a population gives each policy settings of its own, which in serial mode would be one object
    return server, learner_class(AttrDict(deepcopy(dict(cfg))), env_info, versions, policy_id, server)


class FixPOLearnerWorker(LearnerWorker):
    """Learner worker for `--algo`; sees to it that a learner that fails takes its process down with it."""

    def __init__(
        self,
        evt_loop,
        cfg,
        env_info,
        buffer_mgr,
        batcher,
        policy_id,
        learner_class: type[Learner] = FixPOLearner,
        meeting: Meeting | None = None,
    ):
        """Same arguments as sample-factory's, the class of the algorithm's learner, and where it meets those of other ranks."""
        super().__init__(evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id)
        self.param_server, self.learner = make_learner(cfg, env_info, buffer_mgr.policy_versions, policy_id, learner_class)
        self._meeting, self._told = meeting, False
        self._saves: dict[str, tuple[float, float]] = {}  # by kind: when the last one ended, and the seconds that it took
        if isinstance(self.learner, FixPOLearner):
            self.learner.meeting = meeting

    @signal
    def ranks_ended(self):
        """Emitted once, when the learners of all ranks have agreed to end, with the reason."""

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """What goes wrong here is said to the other ranks, who would wait; and what went wrong there is said here."""
        try:
            yield
        except RanksError as exc:
            log.error("%s", exc)
            if self._meeting is not None:
                self._meeting.fail(str(exc))
            raise
        except Exception as exc:
            if self._meeting is not None:
                self._meeting.fail(f"{type(exc).__name__}: {exc}")
            raise

    def init(self) -> None:
        """As sample-factory's."""
        with self._failures_told():
            super().init()

    def on_new_training_batch(self, batch_idx: int) -> None:
        """As sample-factory's; says when the ranks have ended."""
        with self._failures_told():
            super().on_new_training_batch(batch_idx)
        self._tell_the_end()

    def _tell_the_end(self) -> None:
        ended = getattr(self.learner, "ended", ON)
        if ended != ON and not self._told:
            self._told = True
            self.ranks_ended.emit(ended)  # type: ignore[attr-defined]  (signal_slot makes it a signal)

    def on_stop(self, *args) -> None:
        """As sample-factory's, once the other ranks know that this one comes to no further update."""
        if self._meeting is not None and isinstance(self.learner, FixPOLearner) and self.learner.ended == ON:
            self.learner.save()  # first: whoever is waited for may be gone
            try:
                self.learner.leave()
            except RanksError as exc:
                log.error("%s", exc)
        super().on_stop(*args)

    def save(self) -> bool:
        """As sample-factory's, where the last checkpoint is not so new that this was asked for while it was written."""
        return self._save("latest", super().save)

    def save_best(self, policy_id: int, metric: str, metric_value: float) -> bool:
        """As sample-factory's; the same holds."""
        return self._save("best", partial(super().save_best, policy_id, metric, metric_value))

    def _save(self, kind: str, save: Callable[[], bool]) -> bool:
        """Spends half of the time on saving at most.

        Saves are asked for at fixed times. Where one takes longer than from one to the next, on a slow file system, those that
        wait would be made one after the other, without an update or a heartbeat between them.
        """
        ended, took = self._saves.get(kind, (-math.inf, 0.0))
        begun = time.monotonic()
        if begun - ended < took:
            return False
        saved = save()
        ended = time.monotonic()
        self._saves[kind] = ended, ended - begun
        self._report_heartbeat()  # not at its own time: that is once the loop gets there, and there may be another save before
        return saved

    def on_task_returns(self, returns: dict[int, list[float | None]]) -> None:
        """Takes over what the runner knows of the tasks' returns, by policy, for the update log."""
        if isinstance(self.learner, FixPOLearner):
            self.learner.task_returns = returns[self.learner.policy_id]

    def start_batcher_thread(self) -> None:
        """As sample-factory's, but a daemon: its endless loop would keep the process alive after the learner's error."""
        self.batcher.event_loop.process = self.event_loop.process
        self.batcher_thread = Thread(target=self.batcher.event_loop.exec, daemon=True)
        self.batcher_thread.start()
