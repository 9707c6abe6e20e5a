"""Fixtures of more than one test file."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from labs import SIZE, TRAIN

# The same examples in every run: what fails here fails again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeds():
    """The same random numbers for a test, whatever ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_level():
    """sample-factory's log as it is at import, whatever a program has made of it in an earlier test of the process."""
    yield
    logging.getLogger("rl").setLevel(logging.DEBUG)


@pytest.fixture
def stand_in(tmp_path):
    """Makes stand-in Labs whose files lie in `tmp_path`."""
    from sf_fixpo.envs.dmlab.stand_in.engine import Lab

    labs = []

    def make(level=TRAIN, observations=("RGB_INTERLEAVED", "DEBUG.POS.TRANS", "DEBUG.POS.ROT"), config=SIZE):
        labs.append(Lab(level, list(observations), config=dict(config), temp_folder=str(tmp_path)))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()
