"""Which charts a report has, and the lines in each: one for every group of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sf_fixpo.records.charts import Bars, Chart, Series
from sf_fixpo.records.comparison import combine
from sf_fixpo.records.report_data import Group, RunData, kls_over_bound, phase_seconds, share_curve

Curve = tuple[np.ndarray, np.ndarray]
_MEAN = "Mean of a group's runs; the band is the 95 % interval of that mean by Student's t."
_WINDOW = 20


def _column(name: str) -> Callable[[RunData], Curve]:
    def curve(run: RunData) -> Curve:
        y = run.experiment.column(name, absent=np.nan)
        keep = np.isfinite(y)
        return run.steps[keep], y[keep]

    return curve


def _returns(run: RunData) -> Curve:
    return run.experiment.return_steps, run.experiment.returns


def _kl(run: RunData) -> Curve:
    return run.steps, kls_over_bound(run.rows)


def _beta(run: RunData) -> Curve:
    beta = run.experiment.column("beta") if run.rows else np.empty(0)
    return run.steps, beta if beta.ndim == 1 else beta.mean(axis=1)


def _fixup(run: RunData) -> Curve:
    return run.steps, 100 * share_curve(run.rows, _WINDOW)


def _stale(run: RunData) -> Curve:
    steps, share = _column("stale_fraction")(run)
    return steps, 100 * share


def _explained(run: RunData) -> Curve:
    steps, share = _column("explained_variance")(run)
    return steps, np.maximum(share, -1.0)


def _fps(run: RunData) -> Curve:
    return run.fps[:, 0], run.fps[:, 1]


def _entropy(run: RunData) -> Curve:
    return run.experiment.entropy_steps, run.experiment.entropies


def lines_of(groups: Sequence[Group], curve: Callable[[RunData], Curve], worst: bool = False) -> list[Series]:
    """A line for every group; runs that have no steps in common have a line each."""
    found = []
    for color, group in enumerate(groups):
        curves = [curve(run) for run in group.runs]
        bands = [combine(curves, worst)]
        if bands == [None]:
            bands = [combine([one], worst) for one in curves]
        found += [Series(group.label, band, color) for band in bands if band is not None]
    return found


def evaluation_charts(groups: Sequence[Group]) -> list[Chart]:
    """One for each level that was evaluated during training."""
    levels = dict.fromkeys(level for group in groups for run in group.runs for row in run.evaluations for level in row["levels"])

    def of_level(level: str) -> Callable[[RunData], Curve]:
        def curve(run: RunData) -> Curve:
            rows = [row for row in run.evaluations if level in row["levels"]]
            points = np.asarray([(row["env_steps"], row["levels"][level]["mean"]) for row in rows], dtype=float).reshape(-1, 2)
            return points[:, 0], points[:, 1]

        return curve

    note = f"Episodes of checkpoints, apart from the training. {_MEAN}"
    return [Chart(f"Evaluation: {level}", note, "return", lines_of(groups, of_level(level))) for level in levels]


def task_charts(groups: Sequence[Group]) -> list[Chart]:
    """Of a single run on several tasks: return, KL and beta of each."""
    if len(groups) != 1 or len(groups[0].runs) != 1:
        return []
    rows = [row for row in groups[0].runs[0].rows if row.get("tasks")]
    tasks = dict.fromkeys(task for row in rows for task in row["tasks"])

    def series(key: str) -> list[Series]:
        found = []
        for color, task in enumerate(tasks):
            pairs = [(row["env_steps"], row["tasks"].get(task, {}).get(key)) for row in rows]
            points = np.asarray([pair for pair in pairs if pair[1] is not None], dtype=float).reshape(-1, 2)
            band = combine([(points[:, 0], points[:, 1])])
            found += [Series(task, band, color)] if band is not None else []
        return found

    titles = (("Return by task", "return", "return"), ("Largest KL by task", "kl_max", "nats"), ("beta by task", "beta", ""))
    return [Chart(title, "One run on several tasks.", unit, series(key)) for title, key, unit in titles] if tasks else []


def charts_of(groups: Sequence[Group]) -> list[Chart]:
    """All charts of lines, in the order of the page."""
    shares = f"Of the latest {_WINDOW} updates. {_MEAN}"
    kl_note = "Largest KL of a published policy at any state of its batch, over eps_kl; of several runs the worst."
    return [
        Chart("Episode return", f"While training, mean of the latest episodes. {_MEAN}", "return", lines_of(groups, _returns)),
        *evaluation_charts(groups),
        Chart("The guarantee", kl_note, "KL / eps_kl", lines_of(groups, _kl, worst=True), ((1.0, "the bound"),), True),
        Chart("Mean KL of an update", _MEAN, "nats", lines_of(groups, _column("kl_mean")), log=True),
        Chart("beta", f"The multiplier of the penalty; of several tasks their mean. {_MEAN}", "", lines_of(groups, _beta)),
        Chart("Fixup phase", f"Fixup steps per hundred primary steps. {shares}", "%", lines_of(groups, _fixup), (), True),
        Chart("Entropy of the policy", _MEAN, "nats", lines_of(groups, _entropy)),
        Chart("Explained variance of the critic", f"Drawn at -1 where it is less. {_MEAN}", "", lines_of(groups, _explained)),
        Chart("Lag", f"Mean age of the samples. {_MEAN}", "policy versions", lines_of(groups, _column("lag_mean")), (), True),
        Chart("Stale states", f"Bound to the previous policy. {_MEAN}", "% of the states", lines_of(groups, _stale), (), True),
        Chart("Speed", f"Environment frames a second. {_MEAN}", "frames/s", lines_of(groups, _fps), (), True),
        *task_charts(groups),
    ]


def phase_bars(groups: Sequence[Group]) -> Bars:
    """What the time of an update is spent on."""
    rows = [(group.label, phase_seconds([row for run in group.runs for row in run.rows])) for group in groups]
    return Bars(
        "Time of an update by phase",
        "Mean of all updates of a group, on the learner's device.",
        "ms",
        [(name, {phase: 1000 * value for phase, value in seconds.items()}) for name, seconds in rows],
    )
