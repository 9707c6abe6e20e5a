"""What the four language levels share, and the two that ask for one object: select_described and select_located_object.

Every round has a map, objects and a text of its own; what is touched ends it (right ones of an "Every" task apart), and the next
is drawn at once.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.grids import Grid, Patch, centre
from sf_fixpo.envs.dmlab.stand_in.language_maps import AREA, DESCRIBED, FOUR_ROOMS, SIX_ROOMS, TWO_ROOMS, TextMap
from sf_fixpo.envs.dmlab.stand_in.looks import COLOURS, PATTERNS, SHAPE_NAMES, SIX_COLOURS
from sf_fixpo.envs.dmlab.stand_in.maze_levels import FLOORS, WALLS
from sf_fixpo.envs.dmlab.stand_in.mazes import Cell
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.scene import Item, Level, Look, Pose, Scene

GOAL_REWARD = 10.0
_HEIGHT = 100


@dataclass(frozen=True)
class Named:
    """An object of one colour, as instructions speak of it."""

    shape: str
    colour: str

    def look(self) -> Look:
        """What it looks like."""
        return Look(self.shape, COLOURS[self.colour])


@dataclass(frozen=True)
class Round:
    """What is to be done until the next start.

    Attributes:
        scene: the world.
        text: the instruction.
        goals: numbers of the items that pay.
        each: reward of a goal; the last one of several pays `GOAL_REWARD` more.
        wrong: reward of any other item.
    """

    scene: Scene
    text: str
    goals: frozenset[int]
    each: float
    wrong: float


def wrong_reward(worth: float, others: int) -> float:
    """What a wrong object costs, so that taking any object pays nothing on the whole: half up, as DeepMind Lab rounds."""
    return -float(np.floor(worth / others + 0.5))


class Rounds(Level):
    """One round after another until the time is up."""

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the first round."""
        self.rng = rng
        return self._next()

    def _next(self) -> Scene:
        self.round = self._draw()
        self._left = set(self.round.goals)
        self._over = False
        return self.round.scene

    @abstractmethod
    def _draw(self) -> Round:
        """A new round."""

    def took(self, items: tuple[int | None, ...], frame: int, pose: Pose) -> float:
        """Right or wrong; a wrong one and the last right one end the round."""
        del frame, pose
        reward = 0.0
        for number in items:
            if self._over:
                break  # touched in the same moment: the round had ended
            if number in self._left:
                self._left.remove(number)
                reward += self.round.each + (GOAL_REWARD if not self._left else 0.0)
                self._over = not self._left
            else:
                reward += self.round.wrong
                self._over = True
        return reward

    def next_scene(self, pose: Pose) -> Scene | None:
        """The next round, once this one is over."""
        del pose
        return self._next() if self._over else None

    def instruction(self) -> str:
        """That of the round."""
        return self.round.text

    def last_frame(self) -> int:
        """The clock's, always."""
        return self.frames

    def pick(self, choices: tuple[str, ...] | list[str], *without: str) -> str:
        """One of some words, drawn, but none of others."""
        left = [choice for choice in choices if choice not in without]
        return left[int(self.rng.integers(len(left)))]

    def shuffled(self, things: list) -> list:
        """The same in a random order."""
        return [things[int(i)] for i in self.rng.permutation(len(things))]


def build(text: TextMap, wall: str, floor: str, floors: dict[int, str] | None = None) -> Grid:
    """A map as cells.

    Args:
        text: the map.
        wall: texture of all walls.
        floor: texture of what has no other.
        floors: textures by room.
    """
    marks = "".join(sorted({mark for row in text.rows for mark in row} - {"*"}))
    floors = floors or {}
    cells = {}
    for cell in text.cells(marks):
        room = text.room(cell)
        cells[cell] = Patch(floor if room is None else floors.get(room, floor), wall)
    return Grid(cells, _HEIGHT)


class SelectDescribedObject(Rounds):
    """language_select_described_object: two objects, and the name of one."""

    frames = 60 * FRAMES_PER_SECOND
    SHAPES = ("cake", "car", "cassette", "hat", "tv")
    _GRID = build(DESCRIBED, WALLS[0], FLOORS[0])

    def _draw(self) -> Round:
        goal = self.pick(self.SHAPES)
        shapes = (goal, self.pick(self.SHAPES, goal))
        places = self.shuffled(DESCRIBED.cells("O"))
        items = tuple(Item(self._any_look(shape), *centre(cell)) for shape, cell in zip(shapes, places, strict=False))
        x, y = centre(DESCRIBED.cells("P")[0])
        start = (x, y, int(self.rng.integers(-10, 11)))
        return Round(Scene((), (), start, items=items, grid=self._GRID), goal, frozenset({0}), 0.0, -GOAL_REWARD)

    def _any_look(self, shape: str) -> Look:
        """A shape in any colours and pattern, solid among them."""
        first, second = COLOURS[self.pick(tuple(COLOURS))], COLOURS[self.pick(tuple(COLOURS))]
        pattern = int(self.rng.integers(len(PATTERNS) + 1))
        return Look(shape, first) if pattern == len(PATTERNS) else Look(shape, first, second, PATTERNS[pattern])


ROOM_MAPS = ((AREA, TWO_ROOMS), (FOUR_ROOMS,), (SIX_ROOMS,))  # with two, four, six rooms


def colour_floor(colour: str) -> str:
    """The texture of a floor in a colour of the instructions."""
    return f"LANG{colour.upper()[:3]}"


class SelectLocatedObject(Rounds):
    """language_select_located_object: the object of one colour in the room of another."""

    frames = 120 * FRAMES_PER_SECOND
    _MAPS = (AREA, TWO_ROOMS, FOUR_ROOMS, SIX_ROOMS)

    def _draw(self) -> Round:
        text = self._MAPS[int(self.rng.integers(len(self._MAPS)))]
        floors = dict(enumerate(self.shuffled(list(SIX_COLOURS))[: text.rooms]))
        goal_room = int(self.rng.integers(text.rooms))
        goal = self.pick(SIX_COLOURS)
        other = self.pick(SIX_COLOURS, goal)
        places: dict[int | None, list[Cell]] = {}
        for cell in self.shuffled(text.cells("O")):
            places.setdefault(text.room(cell), []).append(cell)
        second_room = self.shuffled([room for room in range(text.rooms) if room != goal_room])[0]
        chosen = [(goal, places[goal_room].pop()), (other, places[goal_room].pop()), (goal, places[second_room].pop())]
        left = self.shuffled([cell for cells in places.values() for cell in cells])
        chosen.append((other, left.pop()))
        chosen += [(self.pick(SIX_COLOURS), cell) for cell in left]
        items = tuple(Item(Named(self.pick(SHAPE_NAMES), colour).look(), *centre(cell)) for colour, cell in chosen)
        x, y = centre(self.shuffled(text.cells("P"))[0])
        grid = build(text, self.pick(WALLS), "FLOORGRY", {room: colour_floor(colour) for room, colour in floors.items()})
        scene = Scene((), (), (x, y, int(self.rng.integers(360))), items=items, grid=grid)
        instruction = f"Pick the {goal} object in the {floors[goal_room]} room"
        return Round(scene, instruction, frozenset({0}), 0.0, wrong_reward(GOAL_REWARD, len(items) - 1))
