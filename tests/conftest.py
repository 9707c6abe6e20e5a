"""Fixtures of more than one test file."""

from __future__ import annotations

import pytest
from labs import SIZE, TRAIN


@pytest.fixture
def stand_in(tmp_path):
    """Makes stand-in Labs whose files lie in `tmp_path`."""
    from envs.dmlab.vizdoom_engine import Lab

    labs = []

    def make(level=TRAIN, observations=("RGB_INTERLEAVED", "DEBUG.POS.TRANS", "DEBUG.POS.ROT"), config=SIZE):
        labs.append(Lab(level, list(observations), config=dict(config), temp_folder=str(tmp_path)))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()
