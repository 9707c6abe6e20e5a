"""The rules of laser tag: weapons, shields, what a hit does, who and what there is. No engine: lengths in units, times in s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from sf_fixpo.envs.dmlab.stand_in.grids import centre
from sf_fixpo.envs.dmlab.stand_in.mazes import Cell
from sf_fixpo.envs.dmlab.stand_in.wad import Point

START_HEALTH, HEALTH = 125.0, 100.0  # points; above 100 one is lost a second
MOST_ARMOUR, ARMOUR_SHARE = 200.0, 0.66  # what armour takes of a hit, while it lasts
PICKUP_HEALTH, PICKUP_ARMOUR = 50.0, 50.0
LIES = 1.7  # a tagged player, before the next start
LONGEST_WAIT = LIES + 20.0  # for the button that starts again


@dataclass(frozen=True)
class Weapon:
    """What a gadget does.

    Attributes:
        damage: of a hit, points.
        period: between shots, s.
        reach: units.
        ammunition: it comes with; None for no end.
        speed: of its projectile, units/s; 0 where the hit is instant.
        splash: radius in which its projectile hurts, the shooter too.
    """

    damage: float
    period: float
    reach: float
    ammunition: int | None
    speed: float = 0.0
    splash: float = 0.0


WEAPONS: Mapping[str, Weapon] = MappingProxyType(
    {
        "impulse": Weapon(50, 1 / 2.5, 32 + 30, None),  # contact: 32 between the two bodies' sides
        "rapid": Weapon(7, 1 / 10, 10_000, 100),
        "orb": Weapon(100, 1 / 1.25, 10_000, 10, speed=900, splash=120),
        "beam": Weapon(8, 1 / 20, 768, 100),
        "disc": Weapon(100, 1.5, 10_000, 10),
    }
)
GADGETS = ("orb", "beam", "disc")
RETURNS: Mapping[str, float] = MappingProxyType({**dict.fromkeys(GADGETS, 5.0), "health": 35.0, "armour": 25.0})


@dataclass
class Fighter:
    """A player or a bot.

    Attributes:
        x: position east.
        y: position north.
        yaw: degrees counter-clockwise from east.
        health: points; tagged at 0.
        armour: points.
        ammunition: shots left, by weapon.
        hand: the weapon in hand.
        ready: time from which the weapon can be shot again.
        tagged: time at which it was tagged; None while it plays.
    """

    x: float = 0.0
    y: float = 0.0
    yaw: float = 0.0
    health: float = START_HEALTH
    armour: float = 0.0
    ammunition: dict[str, int] = field(default_factory=lambda: {"rapid": 100})
    hand: str = "rapid"
    ready: float = 0.0
    tagged: float | None = None

    def place(self, x: float, y: float, yaw: float) -> None:
        """A fresh start."""
        self.x, self.y, self.yaw = x, y, yaw
        self.health, self.armour = START_HEALTH, 0.0
        self.ammunition, self.hand = {"rapid": 100}, "rapid"
        self.tagged = None

    def fade(self, seconds: float) -> None:
        """Loses what is above 100 points."""
        if self.health > HEALTH:
            self.health = max(HEALTH, self.health - seconds)

    def hurt(self, damage: float, now: float) -> bool:
        """Takes a hit; whether it was tagged by it."""
        if self.tagged is not None:
            return False
        taken = min(self.armour, ARMOUR_SHARE * damage)
        self.armour -= taken
        self.health -= damage - taken
        if self.health > 0:
            return False
        self.tagged = now
        return True

    def shoot(self, now: float) -> Weapon | None:
        """Uses up a shot; None where the weapon is not ready. Without ammunition the next best comes into the hand."""
        if self.tagged is not None or now < self.ready - 1e-9:
            return None
        weapon = WEAPONS[self.hand]
        if weapon.ammunition is not None:
            self.ammunition[self.hand] -= 1
            if self.ammunition[self.hand] <= 0:
                del self.ammunition[self.hand]
                self.hand = next(iter(self.ammunition), "impulse")
        self.ready = now + weapon.period
        return weapon

    def take(self, item: str) -> bool:
        """Picks an item up; whether it was of any use."""
        if item in WEAPONS:
            self.ammunition[item] = WEAPONS[item].ammunition or 0
            self.hand = item
        elif item == "health":
            if self.health >= HEALTH:
                return False
            self.health = min(HEALTH, self.health + PICKUP_HEALTH)
        else:
            if self.armour >= MOST_ARMOUR:
                return False
            self.armour = min(MOST_ARMOUR, self.armour + PICKUP_ARMOUR)
        return True


@dataclass
class Bot(Fighter):
    """An opponent.

    Attributes:
        which: 0 to 2: how fast it reacts, how well it aims.
        way: cells that it goes through next.
        seen: since when it sees each fighter that it sees, by `id`.
    """

    which: int = 0
    way: list[Cell] = field(default_factory=list)
    seen: dict[int, float] = field(default_factory=dict)


@dataclass
class Lying:
    """An item.

    Attributes:
        name: a gadget, `health` or `armour`.
        cell: where.
        back: time from which it is there.
    """

    name: str
    cell: Cell
    back: float = 0.0

    @cached_property
    def place(self) -> Point:
        """The middle of its cell, units."""
        return centre(self.cell)


@dataclass
class Flying:
    """A projectile: where it is, where to, and whose."""

    x: float
    y: float
    angle: float  # radians
    weapon: Weapon
    owner: Fighter


def splash_damage(weapon: Weapon, distance: float) -> float:
    """What a projectile that bursts at a distance does: less and less towards its radius."""
    return weapon.damage * max(0.0, 1 - distance / weapon.splash)
