"""The paper's MuJoCo figures: figure 3 (six tasks), figures 1 and 5 (the ablations of section 4.2): 300 runs of 10 M steps.

Figure 4 is read off the runs of figure 3; figure 8 is `sf_fixpo.launcher.sweeps.dmlab_levels_x_seeds`.
"""

from __future__ import annotations

from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription

SEEDS = list(range(10))
TASKS = [
    *("mujoco_HalfCheetah", "mujoco_Hopper", "mujoco_Walker2d"),
    *("mujoco_Swimmer", "mujoco_InvertedDoublePendulum", "mujoco_Reacher"),
]
ABLATION_TASKS = TASKS[:3]
# Section 4.2; the runs without a change are those of figure 3.
ABLATIONS = {
    "no_fixup_phase": "--fixup=off",
    "limit_mean_kl": "--kl_stat=mean",
    "c_beta_1": "--c_beta=1",
    "fixup_in_last_epoch": "--fixup=last_epoch",
    "constant_beta_10": "--beta_lr=0 --beta_init=10",
}
FIGURE_1_C_BETA = [2, 5, 10]  # 1 and 3 are among the other runs

_TRAIN = "python -m sf_fixpo.train --preset=paper"


def _grid(tasks: list[str]) -> ParamGrid:
    return ParamGrid([("seed", SEEDS), ("env", tasks)])


_FIGURE_3 = [
    Experiment(f"figure_3_{algo.lower()}", f"{_TRAIN} --algo={algo}", _grid(TASKS).generate_params())
    for algo in ("FIXPO", "APPO")
]
_FIGURE_5 = [
    Experiment(f"figure_5_{name}", f"{_TRAIN} {flags}", _grid(ABLATION_TASKS).generate_params())
    for name, flags in ABLATIONS.items()
]
_FIGURE_1 = Experiment(
    "figure_1",
    f"{_TRAIN} --env=mujoco_Walker2d",
    ParamGrid([("seed", SEEDS), ("c_beta", FIGURE_1_C_BETA)]).generate_params(),
)

RUN_DESCRIPTION = RunDescription("paper_figures", [*_FIGURE_3, *_FIGURE_5, _FIGURE_1])
