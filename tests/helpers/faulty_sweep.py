"""A sweep with everything that can happen to a run, described as users do: eight runs."""

import os

from launching import QUICK
from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription

# the seeds only make two runs of one kind
_SLOW = f"python {QUICK} --pace=0.2"

RUN_DESCRIPTION = RunDescription(
    "faulty",
    [
        Experiment("fine", _SLOW, ParamGrid([("seed", [0, 1])]).generate_params()),
        Experiment("raises_once", f"{_SLOW} --fault=raise"),
        Experiment("raises", f"{_SLOW} --fault=raise --times=9"),
        Experiment("killed_once", f"{_SLOW} --fault=kill"),
        Experiment("killed", f"{_SLOW} --fault=kill --times=9"),
        Experiment("hangs_once", f"{_SLOW} --fault=hang"),
        Experiment("bad_input", f"{_SLOW} --fault=bad_input", env_vars={"HOME": os.environ.get("HOME", "/")}),
    ],
)
