"""What differs between runs, and what is drawn for several: against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sf_fixpo.records import comparison, run_folders
from sf_fixpo.records.run_logs import LogError


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 29, 30, 31, 40, 100, 10_000])
def test_the_quantile_is_scipys(degrees):
    assert comparison.t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-5)


def test_no_quantile_without_a_degree_of_freedom():
    with pytest.raises(ValueError, match="at least 1"):
        comparison.t_quantile(0)


def test_the_interval_is_scipys():
    values = [3.0, 5.0, 4.0, 8.0]
    mean, half = comparison.interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-4)
    assert math.isnan(comparison.interval([2.0])[1])
    assert math.isnan(comparison.interval([])[0])


CONFIGS = [
    {"seed": 0, "eps_kl": 0.2, "env": "x", "experiment": "a", "cli_args": {"seed": 0}},
    {"seed": 1, "eps_kl": 0.2, "env": "x", "experiment": "b", "cli_args": {"seed": 1}},
    {"seed": 0, "eps_kl": 0.5, "env": "x", "experiment": "c", "cli_args": {}, "newer": None},
]


def test_runs_are_grouped_by_all_that_differs_but_the_seed():
    assert comparison.differing(CONFIGS) == ["seed", "eps_kl", "newer"]
    assert comparison.group_names(CONFIGS) == ["eps_kl=0.2, newer=(none)"] * 2 + ["eps_kl=0.5, newer=null"]
    assert comparison.group_names(CONFIGS[:2]) == ["all runs"] * 2


def test_a_mean_goes_as_far_as_all_runs_with_its_interval():
    x = np.arange(0.0, 11.0)
    band = comparison.combine([(x, 2 * x), (x[:6], 4 * x[:6])])
    assert (band.x[0], band.x[-1]) == (0, 5)
    np.testing.assert_allclose(band.y, 3 * band.x)
    np.testing.assert_allclose(band.half, 12.7062 * np.sqrt(2) * band.x / np.sqrt(2), rtol=1e-5)


def test_of_the_worst_nothing_is_averaged_away():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 1e6, 5000))
    y = rng.uniform(0, 0.5, 5000)
    y[[1234, 4000]] = 0.99, np.nan
    [alone] = [comparison.combine([(x, y)], worst=True)]
    assert len(alone.x) == 300
    assert np.nanmax(alone.y) == 0.99
    assert np.isnan(alone.y).sum() == 1, "a number that is none is not hidden"
    both = comparison.combine([(x[:3000], np.nan_to_num(y[:3000])), (x, np.minimum(y, 0.5))], worst=True)
    assert both.half is None
    assert np.nanmax(both.y) == 0.99
    assert np.isnan(both.y).sum() == 1
    assert both.x[-1] == x[-1], "as far as the longest run"


def test_runs_without_common_steps_have_no_mean():
    x = np.arange(3.0)
    assert comparison.combine([(x, x), (x + 10, x)]) is None
    assert comparison.combine([(np.empty(0), np.empty(0))]) is None


def test_runs_are_found_in_what_holds_them(tmp_path):
    for name in ("sweep/a/seed0", "sweep/a/seed1", "sweep/b/seed0", "sweep/.trash/seed0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    found = run_folders.find_runs([tmp_path / "sweep", tmp_path / "sweep" / "a" / "seed0"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["sweep/a/seed0", "sweep/a/seed1", "sweep/b/seed0"]
    assert run_folders.unique_names(found) == ["a/seed0", "seed1", "b/seed0"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError) as refusal:
        run_folders.find_runs([tmp_path / "absent", tmp_path / "empty", tmp_path / "sweep"])
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2
    assert "absent: no such folder" in lines[0]
    assert "empty: holds no run" in lines[1]
