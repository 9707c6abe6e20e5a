"""The four lasertag levels: a free for all in a maze of the episode's own.

Opponents, shots and items are played here, between the engine's reports; the engine moves the player and shows the rest where it
is put. Opponents roam along the maze, collect what lies there, and shoot at whom they have seen for their reaction time.
"""

from __future__ import annotations

import colorsys
import math
from collections import deque
from dataclasses import replace

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.grids import CELL_SIZE, Grid, Patch, centre
from sf_fixpo.envs.dmlab.stand_in.looks import COLOURS, Rgb
from sf_fixpo.envs.dmlab.stand_in.maze_levels import FLOORS, WALLS, MazeKind
from sf_fixpo.envs.dmlab.stand_in.mazes import Cell, random_maze
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.resources import PROP
from sf_fixpo.envs.dmlab.stand_in.scene import Level, Look, Move, Pose, Scene
from sf_fixpo.envs.dmlab.stand_in.tag_rules import (
    GADGETS,
    LIES,
    LONGEST_WAIT,
    RETURNS,
    START_HEALTH,
    Bot,
    Fighter,
    Flying,
    Lying,
    Weapon,
    splash_damage,
)
from sf_fixpo.envs.dmlab.stand_in.wad import Point, Thing

_SMALL, _LARGE = MazeKind((11, 11), (2, 3), (3, 5), 240), MazeKind((21, 21), (4, 4), (5, 7), 240)
_EXTRA_CONNECTIONS = 0.05
_STARTS_A_ROOM = 3
_HEIGHT = 100
_STEP_FRAMES = 2  # of the simulation
_BOT_SPEED, _TURN_RATE = 280.0, 240.0  # units/s, degrees/s
_BODY = 20.0  # units from a body's middle to its side, for a ray
_EYE, _TALL = 50.0, 60.0
_SPREAD = 1.0  # degrees of the player's rays, standard deviation
_AIMED, _VIEW = 8.0, 90.0  # degrees: shoots within, sees within, to either side
_ITEM_REACH = 40.0
_REACTION = (1.0, 1.25, 1.75)  # s, of the first, second and third opponent
_ACCURACY = (
    {"rapid": 0.7, "orb": 0.9, "beam": 0.7, "disc": 1.0, "impulse": 1.0},
    {"rapid": 0.9, "orb": 0.9, "beam": 0.9, "disc": 0.9, "impulse": 1.0},
    {"rapid": 0.5, "orb": 0.75, "beam": 0.75, "disc": 0.75, "impulse": 1.0},
)
_SHED: Cell = (-6, 1)  # outside, where things are that are not to be seen
_PARTS = ("bot_head", "bot_body", "bot_legs")
_ORBS = 6  # at once
_LOOKS = {
    "orb": Look("ball", COLOURS["magenta"], scale=0.6),
    "beam": Look("fork", COLOURS["cyan"], scale=0.8),
    "disc": Look("cassette", COLOURS["yellow"], scale=0.6),
    "health": Look("cherries", COLOURS["red"], scale=0.6),
    "armour": Look("suitcase", COLOURS["green"], scale=0.6),
}
_BOT_NUMBER, _ITEM_NUMBER, _ORB_NUMBER = 1, 20, 40  # by which the map's script knows the first of each
_ORBS_AWAY = [Move(_ORB_NUMBER + i, round(centre(_SHED)[0]), round(centre(_SHED)[1]), 30) for i in range(_ORBS)]


class LaserTag(Level):
    """One point for each tag of an opponent, one lost for tagging oneself, none for being tagged."""

    frames = 240 * FRAMES_PER_SECOND
    kind = _SMALL
    opponents = 1

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the maze, its textures, what lies in it, and who starts where."""
        self._rng = rng
        maze = random_maze(rng, self.kind.size, self.kind.rooms, self.kind.sides, _EXTRA_CONNECTIONS)
        self.cells = maze.open_cells
        patches = dict.fromkeys(sorted(self.cells), Patch(FLOORS[0], WALLS[1]))
        self.starts: list[Cell] = []
        for room in maze.rooms:
            patches |= dict.fromkeys(room, Patch(self._one(FLOORS), self._one(WALLS)))
            self.starts += [room[int(i)] for i in rng.permutation(len(room))[:_STARTS_A_ROOM]]
        self._grid = Grid(patches | {_SHED: Patch("FLOORDRK", "WALLGREY")}, _HEIGHT)
        free = [cell for cell in sorted(self.cells) if cell not in self.starts]
        gadgets, items = (1, 2) if self.kind is _SMALL else (2, 4)
        names = [self._one(GADGETS) for _ in range(gadgets)] + [self._one(("health", "armour")) for _ in range(items)]
        self.lying = [Lying(name, free[int(i)]) for name, i in zip(names, rng.permutation(len(free)), strict=False)]
        hue = int(rng.integers(360))
        self._colours = [_hue(hue + 120 * i) for i in range(len(_PARTS))]
        self.flying: list[Flying] = []
        self.player = Fighter()
        self.bots = [Bot(which=i) for i in range(self.opponents)]
        for bot in self.bots:
            self._restart(bot)
        self._frame, self._fire, self._again = 0, False, False
        return self._scene()

    def _one(self, choices: tuple[str, ...]) -> str:
        return choices[int(self._rng.integers(len(choices)))]

    def _restart(self, fighter: Fighter) -> None:
        """Puts a fighter at a start that nobody stands on."""
        taken = {
            cell_at(other.x, other.y) for other in (self.player, *self.bots) if other is not fighter and other.tagged is None
        }
        starts = [cell for cell in self.starts if cell not in taken]
        x, y = centre(starts[int(self._rng.integers(len(starts)))])
        fighter.place(x, y, float(self._rng.integers(360)))
        if isinstance(fighter, Bot):
            fighter.way, fighter.seen = [], {}

    def _scene(self) -> Scene:
        """The player at a fresh start, everything else as it is."""
        self._restart(self.player)
        things: list[Thing] = []
        placed = self._placed()
        shown = {move.number + i: (move.x, move.y) for move in placed for i in range(move.things)}
        for i in range(self.opponents):
            for part, (sight, colour) in enumerate(zip(_PARTS, self._colours, strict=True)):
                things += _numbered(Look(sight, colour), _BOT_NUMBER + len(_PARTS) * i + part, shown)
        for i, item in enumerate(self.lying):
            things += _numbered(_LOOKS[item.name], _ITEM_NUMBER + i, shown)
        for i in range(_ORBS):
            things += _numbered(Look("ball", COLOURS["orange"], scale=0.3), _ORB_NUMBER + i, shown)
        self._before = set(placed)
        return Scene((), (), (self.player.x, self.player.y, self.player.yaw), grid=self._grid, things=tuple(things))

    def _placed(self) -> list[Move]:
        """Where everything belongs that is shown, whole units."""
        shed = centre(_SHED)
        found: list[Move] = []

        def put(number: int, place: Point, z: int, things: int = 1) -> None:
            found.append(Move(number, round(place[0]), round(place[1]), z, things))

        for i, bot in enumerate(self.bots):
            put(_BOT_NUMBER + len(_PARTS) * i, (bot.x, bot.y) if bot.tagged is None else shed, 0, len(_PARTS))
        now = self._frame / FRAMES_PER_SECOND
        for i, item in enumerate(self.lying):
            put(_ITEM_NUMBER + i, item.place if item.back <= now else shed, 0)
        for i, orb in enumerate(self.flying):
            put(_ORB_NUMBER + i, (orb.x, orb.y), 30)
        return found + _ORBS_AWAY[len(self.flying) :]

    def moves(self, frame: int) -> list[Move]:
        """What has moved since it was last asked."""
        del frame
        placed = set(self._placed())
        changed = sorted(placed - self._before)
        self._before = placed
        return changed

    def act(self, values: list[int]) -> None:
        """Remembers whether the player shoots."""
        self._fire = bool(values[4])

    def holds(self) -> bool:
        """While the player lies tagged."""
        return self.player.tagged is not None

    def elapsed(self, frame: int, pose: Pose) -> float | None:
        """Plays on to a frame."""
        if self.player.tagged is None:
            self.player.x, self.player.y, self.player.yaw = pose.x, pose.y, pose.yaw
        reward = 0.0
        while self._frame + _STEP_FRAMES <= frame:
            self._frame += _STEP_FRAMES
            reward += self._step(self._frame / FRAMES_PER_SECOND, _STEP_FRAMES / FRAMES_PER_SECOND, pose.pitch)
        return reward if reward or self._again else None

    def next_scene(self, pose: Pose) -> Scene | None:
        """The same arena with the player at another start, after a tag."""
        del pose
        if not self._again:
            return None
        self._again = False
        return self._scene()

    def last_frame(self) -> int:
        """The clock's, always."""
        return self.frames

    def paint(self, image: np.ndarray) -> None:
        """A crosshair, and the shield points left as a bar at the bottom."""
        height, width = image.shape[:2]
        image[height // 2, width // 2] = 255
        bar = round(width * max(0.0, self.player.health) / START_HEALTH)
        image[-max(1, height // 36) :, :bar] = (0, 255, 0) if self.player.health > 50 else (255, 0, 0)

    # ---- the simulation

    def _step(self, now: float, dt: float, pitch: float) -> float:
        """One step of everybody; the player's reward."""
        reward = 0.0
        fighters = [self.player, *self.bots]
        for fighter in fighters:
            fighter.fade(dt)
        if self.player.tagged is not None:
            waited = now - self.player.tagged
            self._again = self._again or (waited >= LIES and self._fire) or waited >= LONGEST_WAIT
        elif self._fire and (weapon := self.player.shoot(now)) is not None:
            aim = self.player.yaw + float(self._rng.normal(0, _SPREAD))
            reward += self._shot(self.player, weapon, aim, pitch, now)
        for bot in self.bots:
            reward += self._play_bot(bot, now, dt)
        reward += self._fly(now, dt)
        for fighter in fighters:
            self._collect(fighter, now)
        return reward

    def _tagged(self, by: Fighter, whom: Fighter) -> float:
        """What a tag is worth to the player."""
        if by is not self.player:
            return 0.0
        return -1.0 if whom is self.player else 1.0

    def _shot(self, by: Fighter, weapon: Weapon, aim: float, pitch: float, now: float) -> float:
        """A shot along an angle, degrees."""
        angle = math.radians(aim)
        if weapon.speed:
            if len(self.flying) < _ORBS:
                self.flying.append(Flying(by.x, by.y, angle, weapon, by))
            return 0.0
        best: tuple[float, Fighter] | None = None
        for other in (self.player, *self.bots):
            if other is by or other.tagged is not None:
                continue
            dx, dy = other.x - by.x, other.y - by.y
            along, across = dx * math.cos(angle) + dy * math.sin(angle), dx * math.sin(angle) - dy * math.cos(angle)
            high = _EYE - along * math.tan(math.radians(pitch))
            if 0 < along <= weapon.reach and abs(across) < _BODY and 0 < high < _TALL and (best is None or along < best[0]):
                best = along, other
        if best is None or not self.sees((by.x, by.y), (best[1].x, best[1].y)):
            return 0.0
        return self._tagged(by, best[1]) if best[1].hurt(weapon.damage, now) else 0.0

    def _fly(self, now: float, dt: float) -> float:
        """Moves the projectiles, bursts those that met something."""
        reward, left = 0.0, []
        for orb in self.flying:
            burst = False
            for _ in range(3):
                orb.x += math.cos(orb.angle) * orb.weapon.speed * dt / 3
                orb.y += math.sin(orb.angle) * orb.weapon.speed * dt / 3
                near = any(
                    other is not orb.owner and other.tagged is None and math.dist((orb.x, orb.y), (other.x, other.y)) < _BODY + 8
                    for other in (self.player, *self.bots)
                )
                if near or cell_at(orb.x, orb.y) not in self.cells:
                    burst = True
                    break
            if not burst:
                left.append(orb)
                continue
            for other in (self.player, *self.bots):
                distance = max(0.0, math.dist((orb.x, orb.y), (other.x, other.y)) - _BODY)
                if distance < orb.weapon.splash and other.hurt(splash_damage(orb.weapon, distance), now):
                    reward += self._tagged(orb.owner, other)
        self.flying = left
        return reward

    def _collect(self, fighter: Fighter, now: float) -> None:
        """Picks up what a fighter walks over."""
        if fighter.tagged is not None:
            return
        for item in self.lying:
            x, y = item.place
            if item.back <= now and max(abs(fighter.x - x), abs(fighter.y - y)) < _ITEM_REACH and fighter.take(item.name):
                item.back = now + RETURNS[item.name]

    def _play_bot(self, bot: Bot, now: float, dt: float) -> float:
        """One step of an opponent: starts again, walks, turns, shoots."""
        if bot.tagged is not None:
            if now - bot.tagged >= LIES:
                self._restart(bot)
            return 0.0
        self._walk(bot, dt)
        target = self._target(bot, now)
        wish = math.degrees(math.atan2(target.y - bot.y, target.x - bot.x)) if target else self._heading(bot)
        off = (wish - bot.yaw + 180) % 360 - 180
        bot.yaw += max(-_TURN_RATE * dt, min(_TURN_RATE * dt, off))
        if target is None or abs(off) > _AIMED or now - bot.seen[id(target)] < _REACTION[bot.which]:
            return 0.0
        accuracy = _ACCURACY[bot.which][bot.hand]
        weapon = bot.shoot(now)
        if weapon is None:
            return 0.0
        missed = self._rng.random() >= accuracy
        aim = wish + (float(self._rng.choice((-1, 1))) * 20 if missed else 0.0)
        return self._shot(bot, weapon, aim, 0.0, now)

    def _walk(self, bot: Bot, dt: float) -> None:
        """Along the way to a place that it has chosen: an item, or anywhere."""
        if not bot.way:
            items = [item.cell for item in self.lying]
            goals = items if self._rng.random() < 0.5 else sorted(self.cells)
            bot.way = self.way(cell_at(bot.x, bot.y), goals[int(self._rng.integers(len(goals)))])
        left = _BOT_SPEED * dt
        while bot.way and left > 0:
            x, y = centre(bot.way[0])
            distance = math.dist((x, y), (bot.x, bot.y))
            if distance <= left:
                bot.x, bot.y = x, y
                bot.way.pop(0)
            else:
                bot.x += (x - bot.x) * left / distance
                bot.y += (y - bot.y) * left / distance
            left -= distance

    def _heading(self, bot: Bot) -> float:
        """Where it walks, degrees."""
        if not bot.way:
            return bot.yaw
        x, y = centre(bot.way[0])
        return math.degrees(math.atan2(y - bot.y, x - bot.x))

    def _target(self, bot: Bot, now: float) -> Fighter | None:
        """The nearest of those that it sees; remembers since when it sees each."""
        seen = {}
        best: tuple[float, Fighter] | None = None
        for other in (self.player, *self.bots):
            if other is bot or other.tagged is not None:
                continue
            angle = math.degrees(math.atan2(other.y - bot.y, other.x - bot.x))
            known = id(other) in bot.seen
            if (known or abs((angle - bot.yaw + 180) % 360 - 180) <= _VIEW) and self.sees((bot.x, bot.y), (other.x, other.y)):
                seen[id(other)] = bot.seen.get(id(other), now)
                distance = math.dist((bot.x, bot.y), (other.x, other.y))
                if best is None or distance < best[0]:
                    best = distance, other
        bot.seen = seen
        return None if best is None else best[1]

    def sees(self, one: Point, other: Point) -> bool:
        """Whether no wall is between two points: every cell that the line goes through is open (Amanatides and Woo 1987)."""
        (x, y), end, cells = cell_at(*one), cell_at(*other), self.cells
        dx, dy = other[0] - one[0], other[1] - one[1]
        step_x, step_y = (1 if dx > 0 else -1), (1 if dy > 0 else -1)
        # parts of the line to the next border east or west, north or south, and between two such borders
        next_x = ((x + (dx > 0)) * CELL_SIZE - one[0]) / dx if dx else math.inf
        next_y = ((y + (dy > 0)) * CELL_SIZE - one[1]) / dy if dy else math.inf
        each_x, each_y = (CELL_SIZE / abs(dx) if dx else math.inf), (CELL_SIZE / abs(dy) if dy else math.inf)
        for _ in range(abs(end[0] - x) + abs(end[1] - y)):
            if (x, y) not in cells:
                return False
            if next_x < next_y:
                x, next_x = x + step_x, next_x + each_x
            else:
                y, next_y = y + step_y, next_y + each_y
        return (x, y) in cells and end in cells

    def way(self, here: Cell, goal: Cell) -> list[Cell]:
        """The shortest way through the maze, without its first cell."""
        parents: dict[Cell, Cell] = {goal: goal}
        queue = deque([goal])
        while queue and here not in parents:
            x, y = queue.popleft()
            for near in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if near in self.cells and near not in parents:
                    parents[near] = (x, y)
                    queue.append(near)
        found = []
        while here in parents and here != goal:
            here = parents[here]
            found.append(here)
        return found


def cell_at(x: float, y: float) -> Cell:
    """The cell of a point."""
    return int(x // CELL_SIZE), int(y // CELL_SIZE)


def _hue(degrees: int) -> Rgb:
    """A strong colour."""
    r, g, b = colorsys.hls_to_rgb(degrees % 360 / 360, 0.5, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def _numbered(look: Look, number: int, places: dict[int, tuple[int, int]]) -> list[Thing]:
    """What shows a look at its place, with the number that the map's script knows."""
    return [replace(thing, number=number) for thing in look.things(*places[number], PROP)]


class OneOpponentSmall(LaserTag):
    """lasertag_one_opponent_small."""


class ThreeOpponentsSmall(LaserTag):
    """lasertag_three_opponents_small."""

    opponents = 3


class OneOpponentLarge(LaserTag):
    """lasertag_one_opponent_large."""

    kind = _LARGE


class ThreeOpponentsLarge(LaserTag):
    """lasertag_three_opponents_large."""

    kind = _LARGE
    opponents = 3
