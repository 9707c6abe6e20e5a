"""A sweep of two real trainings of seconds."""

from programs import SERIAL
from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription

_GRID = ParamGrid([("train_for_env_steps", [640, 12800])])

RUN_DESCRIPTION = RunDescription(
    "cartpole", [Experiment("cartpole", f"python -m sf_fixpo.train {' '.join(SERIAL)} --seed=1", _GRID.generate_params())]
)
