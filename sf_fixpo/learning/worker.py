"""The process that learns: sample-factory's learner worker with our learner in it."""

from __future__ import annotations

from copy import deepcopy
from threading import Thread

from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.learning.learner_worker import LearnerWorker
from sample_factory.algo.utils.env_info import EnvInfo
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.typing import Config
from torch import Tensor

from sf_fixpo.learning.learner import FixPOLearner
from sf_fixpo.learning.mailbox import MailboxServer


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

    def __init__(self, evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id, learner_class: type[Learner] = FixPOLearner):
        """Same arguments as sample-factory's, and the class of the algorithm's learner."""
        super().__init__(evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id)
        self.param_server, self.learner = make_learner(cfg, env_info, buffer_mgr.policy_versions, policy_id, learner_class)

    def on_task_returns(self, returns: dict[int, list[float | None]]) -> None:
        """Takes over what the runner knows of the tasks' returns, by policy, for the update log."""
        if isinstance(self.learner, FixPOLearner):
            self.learner.task_returns = returns[self.learner.policy_id]

    def start_batcher_thread(self) -> None:
        """As sample-factory's, but a daemon: its endless loop would keep the process alive after the learner's error."""
        self.batcher.event_loop.process = self.event_loop.process
        self.batcher_thread = Thread(target=self.batcher.event_loop.exec, daemon=True)
        self.batcher_thread.start()
