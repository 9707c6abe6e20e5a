"""The rules on rows made by hand: each bad run is named, and by no other name; a good one is left in peace."""

import math
from dataclasses import replace

import pytest
from small_hub import row

from sf_fixpo.records.health import RULES, WINDOW, Health, describe
from sf_fixpo.records.update_log import UpdateRecord

GOOD = UpdateRecord(**{**row(1), "kl_max": 0.1, "kl_mean": 0.01, "fixup_steps": 0, "entropy": 1.5, "explained_variance": 0.5})
LARGEST = math.log(9)
BAD = {
    "collapse": {"entropy": 0.06, "kl_max": 0.4, "kl_mean": 0.0005},
    "penalty_off": {"beta_zero_fraction": 0.9, "kl_mean": 0.05, "entropy": 1.0},
    "fixup_heavy": {"fixup_steps": 1},
    "going_back": {"backtracks": 1},
    "critic_lost": {"explained_variance": -0.5},
    "mostly_stale": {"stale_fraction": 0.6},
}


def follow(rows, largest=LARGEST):
    health = Health(largest)
    return [health.update(row) for row in rows]


def test_every_rule_has_its_run():
    assert set(BAD) == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_run_is_named_once_a_window_is_full_and_said_once(name):
    bad = replace(GOOD, **BAD[name])
    said = follow([GOOD] * WINDOW + [bad] * 2 * WINDOW)
    assert said[WINDOW - 1] == ([], [])
    assert said[-1] == ([name], [])
    (advice,) = [line for _, lines in said for line in lines]
    assert advice.startswith(f"{name}: ")
    assert "--" in advice, "it names a flag"
    assert "{" not in advice, "every figure is filled in"


def test_a_good_run_is_left_in_peace():
    assert follow([GOOD] * 5 * WINDOW) == [([], [])] * 5 * WINDOW


def test_what_comes_back_is_said_again():
    bad = replace(GOOD, fixup_steps=4)
    said = follow([*[bad] * WINDOW, *[GOOD] * WINDOW, *[bad] * WINDOW])
    assert sum(len(lines) for _, lines in said) == 2


@pytest.mark.parametrize(
    ("change", "largest"),
    [
        ({"entropy": -3.0, "kl_max": 0.4, "kl_mean": 0.0005}, None),  # a Gaussian that is narrow is no collapse
        ({"entropy": 0.06, "kl_max": 0.01, "kl_mean": 0.0005}, LARGEST),  # nor is a task that is solved
        ({"beta_zero_fraction": 1.0, "kl_mean": 0.001}, LARGEST),  # a constraint that is not needed
        ({"entropy": None, "explained_variance": None}, LARGEST),  # rows of an older version
    ],
)
def test_what_is_no_fault(change, largest):
    assert follow([replace(GOOD, **change)] * 2 * WINDOW, largest)[-1] == ([], [])


def test_a_log_is_described():
    rows = [row(version, health=["collapse"] if version > 3 else []) for version in range(1, 6)]
    assert describe(rows) == ["collapse: at 2 of 5 updates, first at 256 steps"]
    assert describe([{"policy_version": 1}]) == []
