"""How much the bound and C_beta matter (section 4.1): a grid on HalfCheetah, 75 runs, or a search over both and beta's rate."""

from __future__ import annotations

from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription

SEEDS = list(range(3))

_GRID = ParamGrid([("seed", SEEDS), ("eps_kl", [0.05, 0.1, 0.2, 0.5, 1.0]), ("c_beta", [1, 2, 3, 5, 10])])

RUN_DESCRIPTION = RunDescription(
    "eps_kl_x_c_beta",
    [Experiment("halfcheetah", "python -m sf_fixpo.train --preset=paper --env=mujoco_HalfCheetah", _GRID.generate_params())],
)

# --search=optuna: flag -> (lowest, highest), (lowest, highest, "log") or a list of choices
SEARCH_SPACE = {
    "eps_kl": (0.02, 2.0, "log"),
    "c_beta": (1.0, 10.0),
    "beta_lr": (0.001, 0.1, "log"),
    "fixup": ["every_epoch", "last_epoch"],
}
