"""The process that learns: sample-factory's learner worker with our learner in it."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from threading import Thread

from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.learning.learner_worker import LearnerWorker
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.learning.checkpointing import CheckpointingLearner
from sf_fixpo.learning.learner import FixPOLearner
from sf_fixpo.learning.publication import SettledLock, settle_device

# APPO is sample-factory's own learner, for comparison; only its checkpoint files are ours
LEARNERS: dict[str, type[Learner]] = {"FIXPO": FixPOLearner, "APPO": CheckpointingLearner}


class FixPOLearnerWorker(LearnerWorker):
    """Learner worker for `--algo`; sees to it that a learner that fails takes its process down with it."""

    def __init__(self, evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id):
        """Same arguments as sample-factory's."""
        super().__init__(evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id)
        server = self.param_server
        # the policy workers hold this very lock: sample-factory hands them the server
        server._policy_lock = SettledLock(server.policy_lock, partial(settle_device, cfg, policy_id))
        # a population gives each policy settings of its own, which in serial mode would be one object
        own_cfg = AttrDict(deepcopy(dict(cfg)))
        self.learner = LEARNERS[cfg.algo](own_cfg, env_info, buffer_mgr.policy_versions, policy_id, server)

    def on_task_returns(self, returns: dict[int, list[float | None]]) -> None:
        """Takes over what the runner knows of the tasks' returns, by policy, for the update log."""
        if isinstance(self.learner, FixPOLearner):
            self.learner.task_returns = returns[self.learner.policy_id]

    def start_batcher_thread(self) -> None:
        """As sample-factory's, but a daemon: its endless loop would keep the process alive after the learner's error."""
        self.batcher.event_loop.process = self.event_loop.process
        self.batcher_thread = Thread(target=self.batcher.event_loop.exec, daemon=True)
        self.batcher_thread.start()
