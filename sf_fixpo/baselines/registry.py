"""Every algorithm by the name that `--algo` takes: FixPO, sample-factory's own learner, and the others as thin learners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sample_factory.algo.learning.learner import Learner

from sf_fixpo.algorithm.config import FixPOConfig
from sf_fixpo.baselines.kl_projection import KLProjection
from sf_fixpo.baselines.ppo_kl import BETA_RANGE, PPOKL
from sf_fixpo.baselines.settings import PPOKLConfig, ProjectionConfig, TRPOConfig, read_settings, unbounded
from sf_fixpo.baselines.trpo import TRPO
from sf_fixpo.learning.checkpointing import CheckpointingLearner
from sf_fixpo.learning.improvement import Improvement
from sf_fixpo.learning.learner import FixPOLearner
from sf_fixpo.records.health import RULES_FOR_ALL, Health


class BaselineLearner(FixPOLearner):
    """FixPO's learner with another way to move the candidate, and no bound that is enforced: the row records what it was.

    The batch, the reference, the staged policy whose divergence is measured, the way back from a number that is none, the gate
    and the checkpoints are FixPO's.
    """

    def init(self):
        """As FixPO's; no rule of health speaks of flags that this algorithm does not heed."""
        data = super().init()
        self.health = Health(None, RULES_FOR_ALL)
        return data

    def _settings(self) -> FixPOConfig:
        return unbounded(FixPOConfig.from_cfg(self.cfg))

    def _parts(self) -> tuple[Any, ...]:
        """What `Improvement` takes."""
        return self.candidate, self.optimizer, self.multiplier, self.mean_multiplier, self.cfg


class TRPOLearner(BaselineLearner):
    """`--algo=TRPO`."""

    def _settings(self) -> FixPOConfig:
        return replace(super()._settings(), cuda_graphs="off", encoder_dtype="float32")  # it has another primary phase

    def _make_improvement(self) -> Improvement:
        return TRPO(*self._parts(), settings=read_settings(TRPOConfig, self.cfg))


class PPOKLLearner(BaselineLearner):
    """`--algo=PPO_KL`; beta is the multiplier, which checkpoints and rows have."""

    def _settings(self) -> FixPOConfig:
        beta = read_settings(PPOKLConfig, self.cfg).ppo_kl_beta_init
        return unbounded(FixPOConfig.from_cfg(self.cfg), beta_init=beta, beta_max=BETA_RANGE[1])

    def _make_improvement(self) -> Improvement:
        return PPOKL(*self._parts(), settings=read_settings(PPOKLConfig, self.cfg))


class KLProjectionLearner(BaselineLearner):
    """`--algo=KL_PROJECTION`."""

    def _make_improvement(self) -> Improvement:
        settings = read_settings(ProjectionConfig, self.cfg)
        return KLProjection(*self._parts(), settings=settings, action_space=self.env_info.action_space)


# APPO is sample-factory's own learner; only its checkpoint files are ours
LEARNERS: dict[str, type[Learner]] = {
    "FIXPO": FixPOLearner,
    "APPO": CheckpointingLearner,
    "TRPO": TRPOLearner,
    "PPO_KL": PPOKLLearner,
    "KL_PROJECTION": KLProjectionLearner,
}
