"""Is a run well? A few rules over the latest rows of the update log, each with a name and with what to change.

The learner asks after every update, writes the names into the row and says on the terminal what is new; `sf_fixpo.plot` says it
of a run that has ended. docs/tuning.md goes from the same names to flags.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sf_fixpo.records.update_log import UpdateRecord

WINDOW = 20  # updates that a rule looks at


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong.

    Attributes:
        name: as it stands in the update log.
        holds: whether it does, by the latest window.
        advice: what is said then; names figures of the window as `{w.entropy}`.
    """

    name: str
    holds: Callable[[Window], bool]
    advice: str


@dataclass(frozen=True)
class Window:
    """Means over the latest rows.

    Attributes:
        entropy: nats; None where rows have none.
        entropy_share: of the uniform policy's; None for Gaussian actions.
        entropy_lost: nats since the run's most random window; None where rows have none.
        beta_zero: share of the gradient steps after which beta was 0.
        kl_mean: nats.
        kl_ratio: of the means of kl_max and kl_mean.
        kl_max_rel: mean of kl_max over eps_kl.
        fixup: fixup steps over primary steps.
        gone_back: share of updates that went back or were undone.
        explained: explained variance of the critic; None where rows have none.
        stale: share of stale states.
    """

    entropy: float | None
    entropy_share: float | None
    entropy_lost: float | None
    beta_zero: float
    kl_mean: float
    kl_ratio: float
    kl_max_rel: float
    fixup: float
    gone_back: float
    explained: float | None
    stale: float


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def summarise(rows: Iterable[UpdateRecord], largest_entropy: float | None, highest_entropy: float | None) -> Window:
    """Means over some rows.

    Args:
        rows: one at least.
        largest_entropy: of the uniform policy, nats; None for Gaussian actions.
        highest_entropy: mean entropy of the run's most random window so far; None where none is known.
    """
    rows = list(rows)
    entropy = _mean(row.entropy for row in rows)
    kl_mean, kl_max = statistics.fmean(row.kl_mean for row in rows), statistics.fmean(row.kl_max for row in rows)
    return Window(
        entropy=entropy,
        entropy_share=entropy / largest_entropy if entropy is not None and largest_entropy else None,
        entropy_lost=highest_entropy - entropy if entropy is not None and highest_entropy is not None else None,
        beta_zero=statistics.fmean(row.beta_zero_fraction for row in rows),
        kl_mean=kl_mean,
        kl_ratio=kl_max / max(kl_mean, 1e-12),
        kl_max_rel=statistics.fmean(row.kl_max / row.eps_kl for row in rows),
        fixup=sum(row.fixup_steps for row in rows) / max(1, sum(row.primary_steps for row in rows)),
        gone_back=statistics.fmean(float(row.backtracks or row.rolled_back) for row in rows),
        explained=_mean(row.explained_variance for row in rows),
        stale=statistics.fmean(row.stale_fraction for row in rows),
    )


RULES = (
    Rule(
        "collapse",
        lambda w: w.entropy_share is not None and w.entropy_share < 0.15 and w.kl_ratio > 100,
        "the policy is almost deterministic (entropy {w.entropy:.2f} nats, {w.entropy_share:.0%} of a uniform one) while single "
        "states move {w.kl_ratio:.0f} times as far as the mean: these now set the pace for all. Go back to an earlier checkpoint "
        "with --beta_min=1 or a larger --exploration_loss_coeff",
    ),
    Rule(
        "penalty_off",
        lambda w: w.beta_zero > 0.8 and w.kl_mean > 0.02 and (w.entropy_lost is None or w.entropy_lost > 0.3),
        "beta was 0 after {w.beta_zero:.0%} of the steps and an update moves the policy by a mean KL of {w.kl_mean:.3f}: nothing "
        "but the bound holds it back. Set --beta_min=0.5 to 1, or a smaller --eps_kl",
    ),
    Rule(
        "fixup_heavy",
        lambda w: w.fixup > 0.2,
        "{w.fixup:.0%} as many fixup steps as primary ones. Raise --c_beta or --beta_lr, or set --beta_min",
    ),
    Rule(
        "going_back",
        lambda w: w.gone_back > 0.25,
        "{w.gone_back:.0%} of the updates went back along their line. Lower --learning_rate or --num_epochs, or raise --c_beta",
    ),
    Rule(
        "critic_lost",
        lambda w: w.explained is not None and w.explained < -0.2,
        "the critic explains less than a constant would (explained variance {w.explained:.2f}). Look at the scale of the rewards "
        "(--normalize_returns, --reward_scale), at --value_loss_coeff and --gamma",
    ),
    Rule(
        "mostly_stale",
        lambda w: w.stale > 0.5,
        "{w.stale:.0%} of the states are stale: the policy that collected them is further away than the bound. Fewer workers, a "
        "lower --max_policy_lag, or --reference=previous",
    ),
)

# Those that speak of no flag of FixPO's.
RULES_FOR_ALL = tuple(rule for rule in RULES if rule.name == "critic_lost")


class Health:
    """Follows a run, update by update."""

    def __init__(self, largest_entropy: float | None, rules: Sequence[Rule] = RULES):
        """Starts with an empty window.

        Args:
            largest_entropy: of the uniform policy, nats; None for Gaussian actions.
            rules: that are asked.
        """
        self._rules = rules
        self._largest = largest_entropy
        self._highest: float | None = None
        self._rows: deque[UpdateRecord] = deque(maxlen=WINDOW)
        self._said: set[str] = set()

    def update(self, row: UpdateRecord) -> tuple[list[str], list[str]]:
        """Takes in an update.

        Returns:
            The names of the rules that hold, and the advice of those that did not hold at the update before. None of either
            before a window is full.
        """
        self._rows.append(row)
        if len(self._rows) < WINDOW:
            return [], []
        entropy = _mean(r.entropy for r in self._rows)
        if entropy is not None:
            self._highest = entropy if self._highest is None else max(entropy, self._highest)
        window = summarise(self._rows, self._largest, self._highest)
        found = [rule for rule in self._rules if rule.holds(window)]
        new = [f"{rule.name}: {rule.advice.format(w=window)}" for rule in found if rule.name not in self._said]
        self._said = {rule.name for rule in found}
        return [rule.name for rule in found], new


def describe(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each rule that the rows of an update log name: when it first held, and at how many updates."""
    rows = list(rows)
    lines = []
    for rule in RULES:
        held = [row for row in rows if rule.name in row.get("health", ())]
        if held:
            lines.append(f"{rule.name}: at {len(held)} of {len(rows)} updates, first at {held[0]['env_steps']:,} steps")
    return lines
