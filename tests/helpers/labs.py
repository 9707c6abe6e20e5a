"""What the tests of the DMLab engines share: the level, the usual size, an agent that walks at random."""

from __future__ import annotations

import numpy as np

TRAIN = "contributed/dmlab30/rooms_collect_good_objects_train"
TEST = "contributed/dmlab30/rooms_collect_good_objects_test"
NONMATCHING = "contributed/dmlab30/rooms_select_nonmatching_object"
EXPLOIT_TRAIN = "contributed/dmlab30/rooms_exploit_deferred_effects_train"
EXPLOIT_TEST = "contributed/dmlab30/rooms_exploit_deferred_effects_test"
SIZE = {"width": "96", "height": "72"}
FRAMES = 3600
SKIP = 4

STILL = np.zeros(7, np.intc)


def random_walk(lab, seed, steps):
    """Frames and rewards of a random agent."""
    rng = np.random.default_rng(seed)
    frames, rewards = [lab.observations()["RGB_INTERLEAVED"]], []
    for _ in range(steps):
        action = np.array([rng.integers(-40, 41), 0, rng.integers(-1, 2), rng.integers(-1, 2), 0, 0, 0], np.intc)
        rewards.append(lab.step(action, num_steps=SKIP))
        if not lab.is_running():
            break
        frames.append(lab.observations()["RGB_INTERLEAVED"])
    return np.array(frames), rewards
