"""sample-factory's learner with checkpoints that resume; otherwise untouched. Runs with `--algo=APPO` use it as it is."""

from __future__ import annotations

from os.path import join
from pathlib import Path
from typing import Any

from sample_factory.algo.learning.learner import Learner
from sample_factory.utils.utils import ensure_dir_exists

from sf_fixpo.learning import checkpoints


class CheckpointingLearner(Learner):
    """sample-factory's learner with checkpoints that are written whole and never silently ignored; nothing else is changed."""

    def load_from_checkpoint(self, policy_id: int, load_progress: bool = True) -> None:
        """Loads the newest checkpoint of a policy that can be read, where it has any.

        Raises:
            CheckpointError: there are files and none can be read, or the newest does not fit; nothing has been changed then.
        """
        prefix = {"latest": "checkpoint", "best": "best"}[self.cfg.load_checkpoint_kind]
        folder = Path(self.checkpoint_dir(self.cfg, policy_id))
        # another policy's folder belongs to another learner: there nothing is set aside
        own = policy_id == self.policy_id
        if (state := checkpoints.load_newest(folder, f"{prefix}_*.pth", self.device, set_aside=own)) is not None:
            self._refuse_misfits(state, folder)
            self._load_state(state, load_progress)

    def _refuse_misfits(self, state: dict[str, Any], folder: Path) -> None:
        betas = self.multiplier.beta.numel() if hasattr(self, "multiplier") else None
        parameters = list(self.actor_critic.parameters())
        if found := checkpoints.checkpoint_faults(state, self.actor_critic.state_dict(), parameters, betas):
            raise checkpoints.CheckpointError(f"{folder}: its checkpoint does not fit this run: " + "; ".join(found))

    def _get_checkpoint_dict(self) -> dict[str, Any]:
        state = super()._get_checkpoint_dict()
        state["best_performance"] = float(state["best_performance"])  # a NumPy scalar here is what torch >= 2.6 refuses to read
        return state

    def _checkpoint_name(self, prefix: str, suffix: str = "") -> str:
        return f"{prefix}_{self.train_step:09d}_{self.env_steps}{suffix}.pth"

    def _save_impl(self, name_prefix, name_suffix, keep_checkpoints, verbose=True) -> bool:
        if not self.is_initialized:
            return False
        folder = Path(self.checkpoint_dir(self.cfg, self.policy_id))
        path = folder / self._checkpoint_name(name_prefix, name_suffix)
        checkpoints.save_atomically(self._get_checkpoint_dict(), path)
        checkpoints.tidy(folder, name_prefix, path, keep_checkpoints)
        return True

    def save_milestone(self) -> None:
        """Saves a checkpoint that is never removed."""
        folder = ensure_dir_exists(join(self.checkpoint_dir(self.cfg, self.policy_id), "milestones"))
        checkpoints.save_atomically(self._get_checkpoint_dict(), join(folder, self._checkpoint_name("checkpoint")))
