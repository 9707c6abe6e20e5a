"""As `demo_mean`, after its first run: 0.01 is already more than the level takes, so lower, and beside a floor of 0.5."""

from __future__ import annotations

from benchmarks.studies import study
from benchmarks.studies.demo_mean import COMMON

VARIANTS = {"mean_0.003": "--kl_mean_target=0.003", "floor_0.5": "--beta_min=0.5", "mean_0.005": "--kl_mean_target=0.005"}
RUN_DESCRIPTION = study("demo_mean_low", COMMON, VARIANTS, seeds=[100])
