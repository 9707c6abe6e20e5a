"""Human-normalised scores of DMLab-30 levels, as IMPALA defines them (Espeholt et al. 2018, section 5.3.1).

Of each level the mean of the episodes' raw returns is normalised, then capped at 100; the score of several levels is the mean of
those. The reference scores are sample-factory's tables, which name a level by the file that its test variant plays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS, HUMAN_SCORES, RANDOM_SCORES

from sf_fixpo.envs.dmlab.engines import DEEPMIND_LAB, VIZDOOM
from sf_fixpo.envs.dmlab.names import dmlab30_level, is_hold_out, score_name, test_level

CAP = 100.0
DMLAB30_SCORE = "DMLab-30 score"
STAND_IN_SCORE = "stand-in score"


class NoScoreError(ValueError):
    """These returns have no normalised score; the message says why."""


@dataclass(frozen=True)
class Scores:
    """Normalised scores of some levels, in percent: 0 is a random agent, 100 a human.

    Attributes:
        name: what `mean_capped` may be called.
        normalised: by level, as the means were given.
        capped: the same, none above 100.
        mean_normalised: mean over the levels, without the cap.
        mean_capped: mean over the levels; a level counts 100 at most.
        stand_in: whether the stand-in played, so that 0 and 100 are a random agent and a human elsewhere.
    """

    name: str
    normalised: dict[str, float]
    capped: dict[str, float]
    mean_normalised: float
    mean_capped: float
    stand_in: bool = False


def normalised_score(level: str, mean: float) -> float:
    """`100 (mean - random) / (human - random)`.

    Args:
        level: of DMLab-30; a training level is compared with the scores of its test variant, as sample-factory does.
        mean: over episodes, of their raw returns.

    Raises:
        NoScoreError: the level is none of DMLab-30.
    """
    known = dmlab30_level(level)
    if known is None:
        raise NoScoreError(f"{level} is not a level of DMLab-30: nobody has measured what a human scores there")
    random, human = RANDOM_SCORES[score_name(known)], HUMAN_SCORES[score_name(known)]
    return 100.0 * (mean - random) / (human - random)


def score_title(levels: set[str]) -> str:
    """What the mean capped score of these levels may be called.

    Only that of all thirty on their test variants is the DMLab-30 score, which papers report.
    """
    if levels == set(map(test_level, DMLAB30_LEVELS)):
        return DMLAB30_SCORE
    return f"mean capped human-normalised score over {_counted(levels)}"


def _counted(levels: set[str]) -> str:
    trained_on = "" if all(map(is_hold_out, levels)) else ", training variants among them"
    return f"{len(levels)} level{'s' * (len(levels) > 1)}{trained_on}"


def human_normalised(means: Mapping[str, float], engine: str) -> Scores:
    """The scores of what was evaluated; of the stand-in by the same formula, and never under the same name.

    Args:
        means: mean raw return over episodes, by level.
        engine: what simulated the episodes.

    Raises:
        NoScoreError: several engines played, a level is none of DMLab-30, or there is none at all.
    """
    if engine not in (DEEPMIND_LAB, VIZDOOM):
        raise NoScoreError(f"no normalised score: the engines are {engine}, whose episodes are not of one kind")
    if not means:
        raise NoScoreError("no normalised score: no level was evaluated")
    normalised = {level: normalised_score(level, mean) for level, mean in means.items()}
    capped = {level: min(CAP, score) for level, score in normalised.items()}
    levels = {known for level in means if (known := dmlab30_level(level)) is not None}
    count, stand_in = len(means), engine == VIZDOOM
    title = f"{STAND_IN_SCORE} over {_counted(levels)}, no score of DMLab-30" if stand_in else score_title(levels)
    return Scores(title, normalised, capped, sum(normalised.values()) / count, sum(capped.values()) / count, stand_in)
