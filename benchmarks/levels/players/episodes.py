"""For each level a scripted player that plays an episode, and the most that an episode can pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.levels.players.cells import Knowledge, Ledger, hunt
from benchmarks.levels.players.floors import Walker, places, pose
from benchmarks.levels.players.gazes import Gazer
from benchmarks.levels.players.keys import KeysPlayer
from benchmarks.levels.players.open_places import OPEN, SHUT, Gatherer, swim, walk_rounds
from benchmarks.levels.players.sights import downhill_to_the_goal, goals_of, good_ones, maze_goal
from benchmarks.levels.players.tagging import hunt_bots
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND, TOP_SPEED

ALL_FRAMES = 1 << 20
Play = Callable[[Any], list[float]]  # a running Lab -> the reward of every step

_ARENA = Walker(floors=((20, 20, 1564, 1308),))
_TOUCH = 100  # units along each axis: an object so near to the player is the one that paid


def _collect(lab: Any) -> list[float]:
    return _all_of(_ARENA, lab, places(lab, "can", "balloon"), places(lab, "hat", "cake"))


def _all_of(walker: Walker, lab: Any, wanted: list, unwanted: list) -> list[float]:
    """What is wanted around what is not, and then, where there is no way around, through it."""
    rewards = walker.collect(lab, wanted, unwanted, skip=2)
    if lab.is_running():
        x, y, _ = pose(lab)[0]
        rewards += walker.collect(lab, sorted(wanted, key=lambda place: math.dist(place, (x, y))), [], skip=2)
    return rewards


def _exploit(lab: Any) -> list[float]:
    rewards = []
    if places(lab, "box") and lab._level._two_rooms:
        rewards = SHUT.collect(lab, places(lab, "box"), places(lab, "apple"), skip=2, most=1)
        if not rewards or not rewards[-1]:  # apples all around it
            rewards += SHUT.collect(lab, places(lab, "box"), [], skip=2, most=2)
    if cakes := places(lab, "cake"):
        return rewards + _all_of(OPEN, lab, cakes, places(lab, "apple"))
    return rewards + _all_of(SHUT, lab, places(lab, "apple"), places(lab, "box"))


def _keys(lab: Any) -> list[float]:
    return hunt(lab, KeysPlayer(lab).look, frames=ALL_FRAMES, skip=2, slow=180)


def _apples(lab: Any) -> list[float]:
    """Nearest first; an apple that has paid is gone until all come back."""
    taken: set = set()
    seen = lab._scene

    def look(lab: Any) -> Knowledge:
        nonlocal seen
        if seen is not lab._scene:
            seen = lab._scene
            taken.clear()
        left = [(x, y) for _, x, y in seen.objects if (x, y) not in taken]
        return Knowledge(lab._level._maze.open_cells, left)

    picked = lab._level.picked_up

    def listen(name: str, count: int, frame: int, where: Any) -> float:
        left = [(x, y) for _, x, y in lab._scene.objects if (x, y) not in taken]
        left.sort(key=lambda place: max(abs(place[0] - where.x), abs(place[1] - where.y)))
        taken.update(left[:count])
        return picked(name, count, frame, where)

    lab._level.picked_up = listen
    try:
        return hunt(lab, look, frames=ALL_FRAMES)
    finally:
        del lab._level.picked_up


def _with_ledger(look: Callable[[Any, Ledger], Knowledge]) -> Play:
    def play(lab: Any) -> list[float]:
        ledger = Ledger(lab)
        try:
            return hunt(lab, lambda lab: look(lab, ledger), frames=ALL_FRAMES)
        finally:
            del lab._level.took

    return play


def _goals(lab: Any) -> list[float]:
    return hunt(lab, maze_goal, frames=ALL_FRAMES)


def _downhill(lab: Any) -> list[float]:
    return hunt(lab, downhill_to_the_goal, frames=ALL_FRAMES, slow=160)


def _gather(lab: Any) -> list[float]:
    gatherer = Gatherer(lab)
    try:
        while lab.is_running():
            gatherer.step()
        return gatherer.rewards
    finally:
        del lab._level.took, lab._level.moves


def _gaze(lab: Any) -> list[float]:
    gazer = Gazer(lab)
    gazer.play(lab._level.trials)
    return gazer.rewards


_LANGUAGE, _TAG = _with_ledger(goals_of), lambda lab: hunt_bots(lab, ALL_FRAMES)
_BY_FAMILY: Mapping[str, Play] = {  # by the beginning of a level's name, the longest that fits
    "rooms_collect_good_objects": _collect,
    "rooms_exploit_deferred_effects": _exploit,
    "rooms_select_nonmatching_object": lambda lab: walk_rounds(lab, 1),
    "rooms_watermaze": lambda lab: swim(lab, ALL_FRAMES)[0],
    "rooms_keys_doors_puzzle": _keys,
    "language": _LANGUAGE,
    "lasertag": _TAG,
    "natlab": _gather,
    "skymaze": _downhill,
    "psychlab": _gaze,
    "explore_object_locations": _apples,
    "explore_object_rewards": _with_ledger(good_ones),
    "explore": _goals,
}


def player_of(level: str) -> Play:
    """The scripted player of a level."""
    return _BY_FAMILY[max((begin for begin in _BY_FAMILY if level.startswith(begin)), key=len)]


def fixed_most(lab: Any, level: str) -> float | None:
    """The most that the episode which has just begun can pay; None where only time sets a limit.

    Args:
        lab: at the start of an episode.
        level: its name.
    """
    if level.startswith("rooms_collect"):
        return 10.0
    if level == "rooms_exploit_deferred_effects_test":
        return 87.0
    if level.startswith("rooms_exploit"):
        return 100.0 if places(lab, "cake") else 10.0
    if level.startswith("rooms_keys"):
        things = [thing for things in lab._level.puzzle.rooms.values() for thing in things]
        keys = len(things) - things.count("goal")
        return 50.0 + keys + min(keys, len(lab._level.puzzle.doors))
    if level.startswith("skymaze"):
        return 100.0
    if level.startswith("psychlab"):
        return float(lab._level.trials)
    if level in ("natlab_fixed_large_map", "natlab_varying_map_randomized"):
        return float(len(lab._level.land.mushrooms))
    return None


def ceiling(lab: Any, level: str) -> float:
    """What limits an episode beside time: mushrooms grow back after a minute on average, so that each can be had three times."""
    return 3.0 * len(lab._level.land.mushrooms) if level == "natlab_varying_map_regrowth" else math.inf


class Meter:
    """How far the player of a Lab has walked: what the same ways would pay at top speed throughout is the most there is."""

    def __init__(self, lab: Any):
        """Listens to every step of a Lab, until `close`."""
        self._lab, self._step, self.distance = lab, lab.step, 0.0
        self._before = pose(lab)[0]
        lab.step = self.step

    def step(self, action: Any, num_steps: int = 1) -> float:
        """As the Lab's."""
        reward = self._step(action, num_steps=num_steps)
        if self._lab.is_running():
            here = pose(self._lab)[0]
            walked = math.dist(here[:2], self._before[:2])
            # farther than anybody walks: a new start
            self.distance += walked if walked <= 2 * TOP_SPEED * num_steps / FRAMES_PER_SECOND else 0.0
            self._before = here
        return reward

    def close(self) -> None:
        """Listens no more."""
        del self._lab.step

    def most(self, paid: float) -> float:
        """What an episode pays whose player goes the same ways at top speed.

        Args:
            paid: what it got.
        """
        seconds = self._lab.num_steps() / FRAMES_PER_SECOND
        return paid * seconds * TOP_SPEED / self.distance if self.distance else paid
