"""Starts a level of DeepMind Lab and plays a few steps: exit status 1 where that does not work. Run while the image is built."""

from __future__ import annotations

import sys

import numpy as np

from sf_fixpo.envs.dmlab.loader import load

LEVEL = "contributed/dmlab30/rooms_collect_good_objects_train"
WIDTH, HEIGHT = 96, 72
STEPS, SKIP = 8, 4
FORWARD_LOOKING_RIGHT = np.array([20, 0, 0, 1, 0, 0, 0], dtype=np.intc)


def check_frame(frame: np.ndarray) -> list[str]:
    """What is wrong with an observation, one line each."""
    found = []
    if frame.shape != (HEIGHT, WIDTH, 3) or frame.dtype != np.uint8:
        found.append(f"the frame is {frame.dtype} {frame.shape}, not uint8 {(HEIGHT, WIDTH, 3)}")
    if np.unique(frame).size < 16:
        found.append(f"the frame has {np.unique(frame).size} different values: nothing was drawn")
    return found


def main() -> int:
    """Plays; returns the exit status."""
    lab = load("deepmind_lab").Lab(
        LEVEL, ["RGB_INTERLEAVED"], config={"width": str(WIDTH), "height": str(HEIGHT)}, renderer="software"
    )
    lab.reset(seed=1)
    first = lab.observations()["RGB_INTERLEAVED"].copy()
    faults = check_frame(first)
    rewards = [float(lab.step(FORWARD_LOOKING_RIGHT, num_steps=SKIP)) for _ in range(STEPS)]
    last = lab.observations()["RGB_INTERLEAVED"]
    faults += check_frame(last)
    if np.array_equal(first, last):
        faults.append(f"the frame is the same after {STEPS} steps: the agent does not move")
    if lab.num_steps() != STEPS * SKIP:
        faults.append(f"{lab.num_steps()} frames were played, not {STEPS * SKIP}")
    lab.close()
    for fault in faults:
        print(f"dmlab_smoke: {LEVEL}: {fault}", file=sys.stderr)
    if not faults:
        print(f"dmlab_smoke: {LEVEL}: {STEPS} steps played, rewards {rewards}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
