"""sample-factory's learner with checkpoints that resume; otherwise untouched. Runs with `--algo=APPO` use it as it is."""

from __future__ import annotations

from os.path import join
from pathlib import Path
from typing import Any

from sample_factory.algo.learning.learner import Learner
from sample_factory.utils.utils import ensure_dir_exists

from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.ranks import ALONE, Alone

SETTINGS = "settings"  # key of what a checkpoint was made with; not in those of older versions
# What a checkpoint's numbers were counted from: where a resumed run asks for something else, they do not apply.
_SETTINGS = ("learning_rate", "lr_schedule", "beta_init", "seed")


def read_weights(source: str, policy_id: int) -> dict[str, Any]:
    """The checkpoint that `--init_from` names.

    Args:
        source: the file itself, or an experiment's folder, whose newest is taken: that of the same policy, or else the first's.
        policy_id: of the policy that it is for.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = Path(source)
    if path.is_file():
        try:
            state = checkpoints.load(path)
        except (checkpoints.UnreadableError, OSError) as exc:
            raise checkpoints.CheckpointError(f"--init_from={source}: must be a checkpoint that can be read: {exc}") from exc
        if isinstance(state, dict) and isinstance(state.get("model"), dict):
            return state
        raise checkpoints.CheckpointError(f"--init_from={source}: must be a checkpoint, a dict with a dict 'model'")
    for owner in dict.fromkeys((policy_id, 0)):
        if (state := checkpoints.load_newest(path / f"checkpoint_p{owner}", "checkpoint_*.pth")) is not None:
            return state
    raise checkpoints.CheckpointError(f"--init_from={source}: must be a checkpoint, or an experiment's folder that holds one")


class CheckpointingLearner(Learner):
    """sample-factory's learner with checkpoints that are written whole and never silently ignored; nothing else is changed.

    Attributes:
        ranks: the learners that train this policy; the first alone reads and writes files.
    """

    ranks: Alone = ALONE

    def load_from_checkpoint(self, policy_id: int, load_progress: bool = True) -> None:
        """Loads the newest checkpoint of a policy that can be read, where it has any.

        Raises:
            CheckpointError: there are files and none can be read, or the newest does not fit; nothing has been changed then.
        """
        prefix = {"latest": "checkpoint", "best": "best"}[self.cfg.load_checkpoint_kind]
        folder = Path(self.checkpoint_dir(self.cfg, policy_id))
        # another policy's folder belongs to another learner: there nothing is set aside
        own = policy_id == self.policy_id
        state = self.ranks.from_first(lambda: checkpoints.load_newest(folder, f"{prefix}_*.pth", self.device, set_aside=own))
        if state is not None:
            self._refuse_misfits(state, folder)
            self._load_state(state, load_progress)
        elif own and (source := self.cfg.get("init_from")):
            self.actor_critic.load_state_dict(self.ranks.from_first(lambda: read_weights(source, policy_id))["model"])

    def _load_state(self, checkpoint_dict: dict[str, Any], load_progress: bool = True) -> None:
        """As sample-factory's; what this run asks of the optimizer holds, and not what the checkpoint was made with."""
        super()._load_state(checkpoint_dict, load_progress)
        for group in self.optimizer.param_groups:
            group.update(betas=(self.cfg.adam_beta1, self.cfg.adam_beta2), eps=self.cfg.adam_eps)
        # a schedule has moved the rate from where it began: it goes on from there unless another beginning is asked for
        changed = self._changed(checkpoint_dict)
        if load_progress and (self.cfg.lr_schedule == "constant" or changed & {"learning_rate", "lr_schedule"}):
            self.curr_lr = self.cfg.learning_rate
            self._apply_lr(self.curr_lr)

    def _changed(self, checkpoint_dict: dict[str, Any]) -> set[str]:
        """Which of the settings are others than those that a checkpoint was made with."""
        saved = checkpoint_dict.get(SETTINGS, {})
        return {name for name, value in saved.items() if self.cfg.get(name) != value}

    def _refuse_misfits(self, state: dict[str, Any], folder: Path) -> None:
        betas = self.multiplier.beta.numel() if hasattr(self, "multiplier") else None
        parameters = list(self.actor_critic.parameters())
        if found := checkpoints.checkpoint_faults(state, self.actor_critic.state_dict(), parameters, betas):
            raise checkpoints.CheckpointError(f"{folder}: its checkpoint does not fit this run: " + "; ".join(found))

    def _get_checkpoint_dict(self) -> dict[str, Any]:
        state = super()._get_checkpoint_dict()
        state["best_performance"] = float(state["best_performance"])  # a NumPy scalar here is what torch >= 2.6 refuses to read
        state[SETTINGS] = {name: self.cfg[name] for name in _SETTINGS if name in self.cfg}
        return state

    def _checkpoint_name(self, prefix: str, suffix: str = "") -> str:
        return f"{prefix}_{self.train_step:09d}_{self.env_steps}{suffix}.pth"

    def _save_impl(self, name_prefix, name_suffix, keep_checkpoints, verbose=True) -> bool:
        if not self.is_initialized or self.ranks.number:
            return False
        folder = Path(self.checkpoint_dir(self.cfg, self.policy_id))
        path = folder / self._checkpoint_name(name_prefix, name_suffix)
        checkpoints.save_atomically(self._get_checkpoint_dict(), path)
        checkpoints.tidy(folder, name_prefix, path, keep_checkpoints)
        return True

    def save_milestone(self) -> None:
        """Saves a checkpoint that is never removed."""
        if self.ranks.number:
            return
        folder = ensure_dir_exists(join(self.checkpoint_dir(self.cfg, self.policy_id), "milestones"))
        checkpoints.save_atomically(self._get_checkpoint_dict(), join(folder, self._checkpoint_name("checkpoint")))
