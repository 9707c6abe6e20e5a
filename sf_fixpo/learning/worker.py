"""The process that learns: sample-factory's learner worker with our learner in it."""

from __future__ import annotations

from threading import Thread

from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.learning.learner_worker import LearnerWorker

from sf_fixpo.learning.checkpointing import CheckpointingLearner
from sf_fixpo.learning.learner import FixPOLearner

# APPO is sample-factory's own learner, for comparison; only its checkpoint files are ours
LEARNERS: dict[str, type[Learner]] = {"FIXPO": FixPOLearner, "APPO": CheckpointingLearner}


class FixPOLearnerWorker(LearnerWorker):
    """Learner worker for `--algo`; sees to it that a learner that fails takes its process down with it."""

    def __init__(self, evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id):
        """Same arguments as sample-factory's."""
        super().__init__(evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id)
        learner_class = LEARNERS[cfg.algo]
        self.learner = learner_class(cfg, env_info, buffer_mgr.policy_versions, policy_id, self.param_server)

    def on_task_returns(self, returns: dict[int, list[float | None]]) -> None:
        """Takes over what the runner knows of the tasks' returns, by policy, for the update log."""
        if isinstance(self.learner, FixPOLearner):
            self.learner.task_returns = returns[self.learner.policy_id]

    def start_batcher_thread(self) -> None:
        """As sample-factory's, but a daemon: its endless loop would keep the process alive after the learner's error."""
        self.batcher.event_loop.process = self.event_loop.process
        self.batcher_thread = Thread(target=self.batcher.event_loop.exec, daemon=True)
        self.batcher_thread.start()
