"""Figure 8 of the paper: FixPO and APPO on three DMLab-30 levels, four seeds: 24 runs of 100 M frames.

On DeepMind Lab where it is installed, else on the stand-in, whose scores are not DMLab-30 scores.
"""

from __future__ import annotations

from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription

SEEDS = list(range(4))
LEVELS = [
    "dmlab_30_rooms_collect_good_objects_train",
    "dmlab_30_rooms_select_nonmatching_object",
    "dmlab_30_rooms_exploit_deferred_effects_train",
]

_GRID = ParamGrid([("seed", SEEDS), ("env", LEVELS), ("algo", ["FIXPO", "APPO"])])

RUN_DESCRIPTION = RunDescription(
    "dmlab_levels_x_seeds",
    [Experiment("dmlab", "python -m sf_fixpo.train --preset=paper", _GRID.generate_params())],
)
