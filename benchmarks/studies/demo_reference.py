"""The demo's level: what is the divergence measured from? Two million frames, looking around."""

from __future__ import annotations

from benchmarks.studies import study
from benchmarks.studies.demo_mean import COMMON

VARIANTS = {
    "behaviour_floor_0.5": "--reference=behaviour --beta_min=0.5",
    "behaviour_mean_0.01": "--reference=behaviour --kl_mean_target=0.01",
}
RUN_DESCRIPTION = study("demo_reference", COMMON, VARIANTS, seeds=[100])
