"""A scripted walker that knows where everything stands: every point of a level can be had, and the end comes on its frame."""

from __future__ import annotations

import numpy as np
import pytest
from labs import FRAMES

from benchmarks.levels.players.floors import Walker, places

WALKER = Walker(floors=((20, 20, 1564, 1308),))
GOOD, BAD = ("can", "balloon"), ("hat", "cake")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_walker_that_knows_the_places_gets_every_point(stand_in, sign):
    lab = stand_in()
    totals = []
    for seed in range(4):
        lab.reset(seed=seed)
        wanted, unwanted = (GOOD, BAD) if sign > 0 else (BAD, GOOD)
        rewards = WALKER.collect(lab, places(lab, *wanted), places(lab, *unwanted), skip=2)
        totals.append(sum(rewards))
        # Step by step two frames, so the frame of the tenth pickup is known: the episode ends 12 frames later, not on time.
        tenth = next(i for i, total in enumerate(np.cumsum(np.abs(rewards))) if total == 10) + 1
        assert lab.num_steps() - 2 * tenth == 12
        assert lab.num_steps() < FRAMES
    assert totals == [sign * 10] * 4


def test_the_end_is_on_the_exact_frame_at_any_skip(stand_in):
    """The same walk, replayed with longer steps, ends with the same frame and the same return."""
    lab = stand_in()
    lab.reset(seed=0)
    recorded = []
    step = lab.step

    def record(action, num_steps=1):
        recorded.append(action)
        return step(action, num_steps)

    lab.step = record
    total = sum(WALKER.collect(lab, places(lab, *GOOD), places(lab, *BAD), skip=2))
    frames = lab.num_steps()
    # Pairs of frames that ask for the same are joined into steps of up to 10 frames.
    lab.step = step
    lab.reset(seed=0)
    replayed, i = 0.0, 0
    while lab.is_running():
        j = i + 1
        while j < len(recorded) and j - i < 5 and np.array_equal(recorded[j], recorded[i]):
            j += 1
        replayed += lab.step(recorded[i], num_steps=2 * (j - i))
        i = j
    assert replayed == total
    assert lab.num_steps() == frames
