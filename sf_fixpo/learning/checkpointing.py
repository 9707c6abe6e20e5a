"""sample-factory's learner with checkpoints that resume; otherwise untouched. Runs with `--algo=APPO` use it as it is."""

from __future__ import annotations

import os
from os.path import join
from typing import Any

from sample_factory.algo.learning.learner import Learner
from sample_factory.utils.utils import ensure_dir_exists

from sf_fixpo.learning import checkpoints


class CheckpointingLearner(Learner):
    """sample-factory's learner with checkpoints that are written whole and never silently ignored; nothing else is changed."""

    @staticmethod
    def load_checkpoint(checkpoints_, device):
        """The newest readable checkpoint (`checkpoints.load_newest`)."""
        return checkpoints.load_newest(checkpoints_, device)

    def _get_checkpoint_dict(self) -> dict[str, Any]:
        state = super()._get_checkpoint_dict()
        state["best_performance"] = float(state["best_performance"])  # a NumPy scalar here is what torch >= 2.6 refuses to read
        return state

    def _checkpoint_name(self, prefix: str, suffix: str = "") -> str:
        return f"{prefix}_{self.train_step:09d}_{self.env_steps}{suffix}.pth"

    def _save_impl(self, name_prefix, name_suffix, keep_checkpoints, verbose=True) -> bool:
        if not self.is_initialized:
            return False
        folder = self.checkpoint_dir(self.cfg, self.policy_id)
        checkpoints.save_atomically(self._get_checkpoint_dict(), join(folder, self._checkpoint_name(name_prefix, name_suffix)))
        for path in self.get_checkpoints(folder, f"{name_prefix}_*")[:-keep_checkpoints]:
            os.remove(path)
        return True

    def save_milestone(self) -> None:
        """Saves a checkpoint that is never removed."""
        folder = ensure_dir_exists(join(self.checkpoint_dir(self.cfg, self.policy_id), "milestones"))
        checkpoints.save_atomically(self._get_checkpoint_dict(), join(folder, self._checkpoint_name("checkpoint")))
