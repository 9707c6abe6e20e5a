"""A search with a known answer: the higher, the better."""

from launching import QUICK
from sample_factory.launcher.run_description import Experiment, RunDescription

_BASE = f"python {QUICK} --updates=20 --pace=0.06 --train_for_env_steps=2000"

RUN_DESCRIPTION = RunDescription("climb", [Experiment("climb", _BASE)])
SEARCH_SPACE = {"height": (0.1, 10.0, "log"), "seed": [1, 2, 3]}
