"""Players of the levels without cells: two rooms and their objects, the water maze, the desert."""

from __future__ import annotations

import math

from benchmarks.levels.players.floors import STILL, Walker, pose, turn_towards

# For objects 120 apart: a clearance that leaves the lines half-way between them.
FIRST_ROOM = (17, 17, 591, 527)
CAREFUL = {"cell": 8, "clearance": 55, "tolerance": 7, "speed": 90}
SHUT = Walker(floors=(FIRST_ROOM,), **CAREFUL)
OPEN = Walker(floors=(FIRST_ROOM, (580, 225, 760, 319), (745, 17, 1319, 527)), **CAREFUL)


def walk_rounds(lab, sign):
    """Goes through the teleporter and to the match (-1) or the other shape (+1), again and again; the reward of every step."""
    rewards = []
    while lab.is_running():
        (x, y, _), (_, yaw, _) = pose(lab)
        scene = lab._scene.objects
        (goal,) = [(ox, oy) for name, ox, oy in scene if name == "teleporter" or (name != lab._level._match) == (sign > 0)]
        action = STILL.copy()
        action[3] = 1
        turn_towards(action, goal, x, y, yaw, skip=4)
        rewards.append(lab.step(action, num_steps=4))
    return rewards


def swim(lab, frames):
    """Straight to the platform, again and again; every step's reward, and the positions."""
    rewards, positions = [], []
    while lab.is_running() and len(rewards) * 4 < frames:
        (x, y, _), (_, yaw, _) = pose(lab)
        action = STILL.copy()
        off = turn_towards(action, lab._level.platform, x, y, yaw, 4)
        action[3] = int(abs(off) < 30)
        rewards.append(lab.step(action, num_steps=4))
        positions.append((x, y))
    return rewards, positions


class Gatherer:
    """Walks to the nearest mushroom that is there, and around what stands in its way."""

    def __init__(self, lab):
        self.lab, self.rewards, self.gone, self.stuck, self.before = lab, [], {}, 0, None
        took, moves = lab._level.took, lab._level.moves

        def listen(items, frame, pose):
            self.gone.update(dict.fromkeys(items))
            return took(items, frame, pose)

        def watch(frame):
            found = moves(frame)
            for number, *_ in found:
                self.gone.pop((number - 1) // 4, None)
            return found

        lab._level.took, lab._level.moves = listen, watch

    def step(self):
        """Plays one step."""
        (x, y, _), (_, yaw, _) = pose(self.lab)
        left = [place for i, place in enumerate(self.lab._level.land.mushrooms) if i not in self.gone]
        action = STILL.copy()
        if left:
            off = turn_towards(action, min(left, key=lambda place: math.dist(place, (x, y))), x, y, yaw, 4)
            action[3] = int(abs(off) < 40)
            if action[3] and self.before is not None and math.dist(self.before, (x, y)) < 4:
                self.stuck = 12
        if self.stuck:
            self.stuck -= 1
            action[2] = 1
        self.before = (x, y)
        self.rewards.append(self.lab.step(action, num_steps=4))
