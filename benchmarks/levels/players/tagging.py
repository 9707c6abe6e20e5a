"""Turns to opponents and shoots."""

from __future__ import annotations

import math

from benchmarks.levels.players.cells import cell_of, centre
from benchmarks.levels.players.floors import STILL, pose, turn_towards


def hunt_bots(lab, frames, fire=True):
    """Turns to the nearest opponent in sight and shoots, else walks to the nearest; the rewards."""
    rewards, level = [], lab._level
    while lab.is_running() and lab.num_steps() < frames:
        (x, y, _), (_, yaw, _) = pose(lab)
        action = STILL.copy()
        action[4] = int(fire)
        bots = [bot for bot in level.bots if bot.tagged is None]
        if bots:
            bot = min(bots, key=lambda bot: math.dist((bot.x, bot.y), (x, y)))
            if level.sees((x, y), (bot.x, bot.y)):
                off = turn_towards(action, (bot.x, bot.y), x, y, yaw, 4)
                action[4], action[2] = int(abs(off) < 90), int(len(rewards) // 8 % 2) * 2 - 1
            elif way := level.way(cell_of(x, y), cell_of(bot.x, bot.y)):
                point = centre(way[1]) if len(way) > 1 and math.dist(centre(way[0]), (x, y)) < 30 else centre(way[0])
                action[3] = int(abs(turn_towards(action, point, x, y, yaw, 4)) < 30)
                action[4] = int(level.holds())
        rewards.append(lab.step(action, num_steps=4))
    return rewards
