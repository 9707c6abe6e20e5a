"""What a level is to the stand-in engine: the worlds it hands out, what it is told, what it is asked.

Levels import from here; `levels.py` lists them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.acs import MOST_ITEMS, pickup_call
from sf_fixpo.envs.dmlab.stand_in.grids import Grid, grid_map
from sf_fixpo.envs.dmlab.stand_in.looks import PATTERNS, Rgb
from sf_fixpo.envs.dmlab.stand_in.resources import (
    FIRST_PARTS,
    ITEM,
    MOST_OF_A_KIND,
    OBSTACLE,
    PIXEL_STRETCH,
    PROP,
    SECOND_PARTS,
    WHOLE,
    editor_number,
    scenery_number,
    sight_number,
)
from sf_fixpo.envs.dmlab.stand_in.wad import PLAYER_START, Room, Thing, map_lumps, pack_wad, text_map


class Move(NamedTuple):
    """A thing that a map's script puts somewhere, or three that stand in one place.

    Attributes:
        number: of the thing; of three the first.
        x: whole units, as y and z.
        things: 1 or 3.
    """

    number: int
    x: int
    y: int
    z: int
    things: int = 1


# (name, x, y) of an object on the map.
Placed = tuple[str, float, float]


@dataclass(frozen=True)
class Pose:
    """Where the player stands.

    Attributes:
        x: position east, units.
        y: position north, units.
        yaw: facing, degrees counter-clockwise from east.
        pitch: degrees downwards.
    """

    x: float
    y: float
    yaw: float
    pitch: float = 0.0


@dataclass(frozen=True)
class Look:
    """What a thing looks like.

    Attributes:
        sight: a shape of `looks.SHAPE_NAMES`, which needs a colour, or one of `resources.PLAIN_SIGHTS`, which has colours.
        colour: of a shape.
        second: of a shape's pattern; None for a shape of one colour.
        pattern: one of `looks.PATTERNS`, where there is a second colour.
        scale: 1 is 56 units a side.
    """

    sight: str
    colour: Rgb | None = None
    second: Rgb | None = None
    pattern: str = ""
    scale: float = 1.0

    def things(self, x: float, y: float, kind: int, number: int | None = None, height: float = 0.0) -> list[Thing]:
        """The map's things that show it: two for a pattern, which share a place and no pixel.

        Args:
            x: position east, units.
            y: position north, units.
            kind: `ITEM`, `PROP` or `OBSTACLE`.
            number: of an item, told when it is picked up.
            height: above the floor, units.

        Raises:
            ValueError: no such sight or pattern.
        """
        parts = [(WHOLE, self.colour)]
        if self.second is not None:
            place = PATTERNS.index(self.pattern)
            parts = [(FIRST_PARTS + place, self.colour), (SECOND_PARTS + place, self.second)]
        return [
            Thing(
                x,
                y,
                sight_number(self.sight, kind, frame),
                height=height / PIXEL_STRETCH,
                call=pickup_call(number) if kind == ITEM and i == 0 else None,
                colour=None if colour is None else colour[0] << 16 | colour[1] << 8 | colour[2],
                scale=self.scale,
            )
            for i, (frame, colour) in enumerate(parts)
        ]


@dataclass(frozen=True)
class Item:
    """One thing that can be picked up and is told from all others, by its place in `Scene.items`.

    Attributes:
        look: what it looks like.
        x: position east, units.
        y: position north, units.
    """

    look: Look
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """The world at the start of an episode, or from some moment of it on.

    Attributes:
        rooms: the walls.
        objects: (name, x, y) of everything that can be picked up.
        start: (x, y, yaw in degrees) of the player.
        scenery: (name, x, y) of what stands in the way and cannot be picked up.
        items: what can be picked up and is told apart.
        props: looks, x, y and height above the floor of what is only seen.
        obstacles: looks, x and y of what stands in the way.
        grid: a map of cells in place of `rooms`.
        things: more things, as the map has them.

    Raises:
        ValueError: more objects of one kind than can be counted, or more items than can be told apart.
    """

    rooms: tuple[Room, ...]
    objects: tuple[Placed, ...]
    start: tuple[float, float, float]
    scenery: tuple[Placed, ...] = ()
    items: tuple[Item, ...] = ()
    props: tuple[tuple[Look, float, float, float], ...] = ()
    obstacles: tuple[tuple[Look, float, float], ...] = ()
    grid: Grid | None = None
    things: tuple[Thing, ...] = ()

    def __post_init__(self) -> None:
        if len(self.items) > MOST_ITEMS:
            raise ValueError(f"{len(self.items)} items in a scene: at most {MOST_ITEMS} can be told apart")
        for name, count in Counter(name for name, _, _ in self.objects).items():
            if count > MOST_OF_A_KIND:
                raise ValueError(f"{count} objects called {name!r} in a scene: at most {MOST_OF_A_KIND} can be counted")

    def wad(self) -> bytes:
        """The scene as a WAD with the map `MAP01`; the map format knows whole degrees only."""
        x, y, yaw = self.start
        things = [Thing(x, y, PLAYER_START, round(yaw) % 360)]
        things += [Thing(ox, oy, editor_number(name)) for name, ox, oy in self.objects]
        things += [Thing(sx, sy, scenery_number(name)) for name, sx, sy in self.scenery]
        for number, item in enumerate(self.items):
            things += item.look.things(item.x, item.y, ITEM, number)
        for look, px, py, height in self.props:
            things += look.things(px, py, PROP, height=height)
        for look, ox, oy in self.obstacles:
            things += look.things(ox, oy, OBSTACLE)
        things += self.things
        return pack_wad(map_lumps("MAP01", text_map(self.rooms, things) if self.grid is None else grid_map(self.grid, things)))


class Level(ABC):
    """One episode after another of one level.

    Attributes:
        frames: most frames an episode can last.
        hold_out: whether it is a test level, which DeepMind Lab starts only where the config allows it.
        can_jump: whether the actions to jump and to crouch do anything.
    """

    frames: int
    hold_out = False
    can_jump = True

    @abstractmethod
    def start(self, rng: np.random.Generator) -> Scene:
        """Begins an episode; every choice in it comes from `rng`, which may be kept for later scenes."""

    def picked_up(self, name: str, count: int, frame: int, pose: Pose) -> float:
        """The reward for picking up objects; a level whose scenes have any overrides this.

        Args:
            name: what they are.
            count: how many were picked up since the last report: one, where `watchful` asked for every tic and no two of a kind
                can be touched at once.
            frame: up to which.
            pose: of the player in that frame; `without_nearest` makes of it which object it was.

        Raises:
            RuntimeError: here, where the engine reports what no scene of this level has.
        """
        raise RuntimeError(f"{type(self).__name__} has no objects, and {count} {name!r} came up by frame {frame}, {pose}")

    def took(self, items: tuple[int | None, ...], frame: int, pose: Pose) -> float:
        """The reward for picking up items; a level whose scenes have any overrides this.

        Args:
            items: their places in `Scene.items`; None for each thing that was recorded without a number.
            frame: up to which.
            pose: of the player in that frame.

        Raises:
            RuntimeError: as `picked_up`.
        """
        raise RuntimeError(f"{type(self).__name__} has no items, and {items} came up by frame {frame}, {pose}")

    def elapsed(self, frame: int, pose: Pose) -> float | None:
        """Asked after every report of the engine: what the clock, or where the player is, brings about.

        Args:
            frame: up to which.
            pose: of the player in that frame.

        Returns:
            A reward, after which `next_scene` is asked; None where nothing is due.
        """
        del frame, pose

    def act(self, values: list[int]) -> None:
        """Told the action of a step before it is played."""
        del values

    def moves(self, frame: int) -> list[Move]:
        """What is to be put elsewhere before the tic that ends with a frame."""
        del frame
        return []

    def instruction(self) -> str:
        """The text of `INSTR` at present."""
        return ""

    def holds(self) -> bool:
        """Whether the player cannot walk at present."""
        return False

    def paint(self, image: np.ndarray) -> None:
        """Draws what lies over the view, in place.

        Args:
            image: uint8 (height, width, 3), what the engine shows.
        """
        del image

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
