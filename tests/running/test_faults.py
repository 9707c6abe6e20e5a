"""A few rows of docs/faults.md (`make test-faults`): what is broken is noticed, said, and costs no more than a save interval."""

from __future__ import annotations

import pytest

from benchmarks.faults.plan import QUICK, all_faults
from benchmarks.faults.trial import attempt

CHOSEN = {fault.name: fault for fault in all_faults() if fault.name in QUICK}


def test_the_chosen_rows_are_in_the_table():
    assert CHOSEN.keys() == set(QUICK)


@pytest.mark.slow  # a whole run each, broken and resumed
@pytest.mark.parametrize("name", QUICK)
def test_a_fault_ends_as_the_table_says(name, tmp_path):
    outcome = attempt(CHOSEN[name], tmp_path)
    assert not outcome.wrong, outcome
