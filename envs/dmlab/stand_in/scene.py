"""What a level is to the stand-in engine: the worlds it hands out, what it is told, what it is asked.

Levels import from here; `levels.py` lists them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.resources import MOST_OF_A_KIND, editor_number, scenery_number
from sf_fixpo.envs.dmlab.stand_in.wad import PLAYER_START, Room, Thing, map_lumps, pack_wad, text_map

# (name, x, y) of an object on the map.
Placed = tuple[str, float, float]


@dataclass(frozen=True)
class Pose:
    """Where the player stands.

    Attributes:
        x: position east, units.
        y: position north, units.
        yaw: facing, degrees counter-clockwise from east.
    """

    x: float
    y: float
    yaw: float


@dataclass(frozen=True)
class Scene:
    """The world at the start of an episode, or from some moment of it on.

    Attributes:
        rooms: the walls.
        objects: (name, x, y) of everything that can be picked up.
        start: (x, y, yaw in degrees) of the player.
        scenery: (name, x, y) of what stands in the way and cannot be picked up.

    Raises:
        ValueError: more objects of one kind than can be counted.
    """

    rooms: tuple[Room, ...]
    objects: tuple[Placed, ...]
    start: tuple[float, float, float]
    scenery: tuple[Placed, ...] = ()

    def __post_init__(self) -> None:
        for name, count in Counter(name for name, _, _ in self.objects).items():
            if count > MOST_OF_A_KIND:
                raise ValueError(f"{count} objects called {name!r} in a scene: at most {MOST_OF_A_KIND} can be counted")

    def wad(self) -> bytes:
        """The scene as a WAD with the map `MAP01`; the map format knows whole degrees only."""
        x, y, yaw = self.start
        things = [Thing(x, y, PLAYER_START, round(yaw) % 360)]
        things += [Thing(ox, oy, editor_number(name)) for name, ox, oy in self.objects]
        things += [Thing(sx, sy, scenery_number(name)) for name, sx, sy in self.scenery]
        return pack_wad(map_lumps("MAP01", text_map(self.rooms, things)))


class Level(ABC):
    """One episode after another of one level.

    Attributes:
        frames: most frames an episode can last.
        hold_out: whether it is a test level, which DeepMind Lab starts only where the config allows it.
    """

    frames: int
    hold_out = False

    @abstractmethod
    def start(self, rng: np.random.Generator) -> Scene:
        """Begins an episode; every choice in it comes from `rng`, which may be kept for later scenes."""

    @abstractmethod
    def picked_up(self, name: str, count: int, frame: int, pose: Pose) -> float:
        """The reward for picking up objects.

        Args:
            name: what they are.
            count: how many were picked up since the last report: one, where `watchful` asked for every tic and no two of a kind
                can be touched at once.
            frame: up to which.
            pose: of the player in that frame; `without_nearest` makes of it which object it was.
        """

    @abstractmethod
    def last_frame(self) -> int:
        """The frame with which the episode ends, as far as is known by now."""

    def next_scene(self, pose: Pose) -> Scene | None:
        """The world that replaces the present one at once, in the same episode; None where it stays.

        Asked after all pickups of a tic have gone through `picked_up`. The player stands still at the new scene's start.

        Args:
            pose: of the player in the old world.
        """
        del pose

    def watchful(self) -> bool:
        """Whether a pickup has to be seen in its own tic: it may end the episode, change the world, or be told from another."""
        return False


def without_nearest(objects: Iterable[Placed], name: str, pose: Pose, count: int = 1) -> tuple[Placed, ...]:
    """What is left on the map after a pickup.

    Args:
        objects: what was there.
        name: what was picked up.
        pose: of the player. The nearest is the nearest along the farther axis, as the engine's objects are touched by squares.
        count: how many were picked up.

    Raises:
        ValueError: there were fewer.
    """
    left = list(objects)
    for _ in range(count):
        near = [placed for placed in left if placed[0] == name]
        if not near:
            raise ValueError(f"no {name!r} is left to pick up")
        left.remove(min(near, key=lambda placed: max(abs(placed[1] - pose.x), abs(placed[2] - pose.y))))
    return tuple(left)
