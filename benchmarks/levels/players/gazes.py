"""Looks where the answer of a psychlab level is."""

from __future__ import annotations

from benchmarks.levels.players.floors import STILL
from sf_fixpo.envs.dmlab.stand_in.panel import look_at

CROSS = (0.5, 0.5)


def middle(box):
    """The middle of a box on the panel."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


class Gazer:
    """Looks where it should, in one step of four frames each."""

    def __init__(self, lab):
        self.lab, self.rewards = lab, []

    def look(self, x, y):
        """Turns to a point of the panel in one step."""
        yaw, pitch = look_at(x, y)
        rotation = self.lab.observations()["DEBUG.POS.ROT"]
        action = STILL.copy()
        action[0], action[1] = round((yaw + rotation[1]) / 0.1056 / 4), round((pitch - rotation[0]) / 0.1056 / 4)
        self.rewards.append(self.lab.step(action, num_steps=4))

    def play(self, trials):
        """Answers until so many trials were right or the episode ends."""
        level = self.lab._level
        while self.lab.is_running() and sum(self.rewards) < trials:
            if level.fixating or level.pressed is not None:
                self.look(*CROSS)
            elif level.buttons:
                self.look(*middle(next(button.box for button in level.buttons if button.right)))
            elif level.phase == "study" and not level.filled:
                self.look(*middle(level.frame_box))
            else:
                self.look(0.5, 0.8)
