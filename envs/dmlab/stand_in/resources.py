"""The WAD that every game of the stand-in engine starts with: actor classes, sprites, textures, palette.

It holds nothing that depends on the episode; the episode's map is a second, small WAD (`levels.py`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sf_fixpo.envs.dmlab.stand_in import looks, sprites
from sf_fixpo.envs.dmlab.stand_in.wad import PLAYER_START, Lump, Room, Thing, map_lumps, pack_wad, png, text_map

# Doom draws a vertical unit 1.2 times as long as a horizontal one: its pixels were not square. Heights are divided by it.
PIXEL_STRETCH = 1.2

# What can be picked up. The position in this tuple decides the object's map number and its counter.
OBJECTS = ("hat", "can", "cake", "balloon", "apple", "box", "teleporter", "goal", *sprites.SHAPES)
FIRST_EDITOR_NUMBER = 20001

# What only stands there: the shapes again, in cages.
SCENERY = tuple(sprites.caged(name) for name in sprites.SHAPES)
FIRST_SCENERY_NUMBER = 21001

# The engine counts ammunition, in ten slots. Every slot holds the counters of several objects as the digits of one number.
SLOTS = 10
COUNTER_BASE = 64
MOST_OF_A_KIND = COUNTER_BASE - 1
if len(OBJECTS) > 5 * SLOTS:
    raise RuntimeError(f"{len(OBJECTS)} kinds of objects: a 32-bit slot has five digits, so that 50 is the most")

PICKUP_REACH = 47  # units along each axis at which an object is touched, measured centre to centre
PLAYER_RADIUS = 16
EYE_HEIGHT = 50
SCENERY_RADIUS = 24  # units
OBJECT_SIZE = 56  # units a side that a sprite covers

# What items and props can look like: the whole shapes and the two parts of each with each pattern, which a map fills with
# colours, and sprites that have colours of their own. A sprite of the engine has up to 29 frames, here one for each part.
WHOLE = 0
FIRST_PARTS = 1
SECOND_PARTS = FIRST_PARTS + len(looks.PATTERNS)
FRAMES_A_SHAPE = SECOND_PARTS + len(looks.PATTERNS)
PLAIN_SIGHTS = tuple(sprites.PROPS)
FIRST_SIGHT_NUMBER = 22001
ITEM, PROP, OBSTACLE = range(3)  # what can be picked up, what only shows, what stands in the way

# Doom's players climb 24 units, DeepMind Lab's 18.
STEP_HEIGHT = 18

# Thrust of a full move command, as a multiple of Doom's running thrust (see motion.py).
MOVE_SCALE = 3


def editor_number(name: str) -> int:
    """The map number of an object.

    Raises:
        ValueError: no such object.
    """
    return FIRST_EDITOR_NUMBER + OBJECTS.index(name)


def scenery_number(name: str) -> int:
    """The map number of a piece of scenery.

    Raises:
        ValueError: no such thing.
    """
    return FIRST_SCENERY_NUMBER + SCENERY.index(name)


def sprite_lump(name: str) -> str:
    """Lump name of the only sprite frame of an object or a piece of scenery, seen alike from all sides."""
    return f"OB{OBJECTS.index(name):02d}A0" if name in OBJECTS else f"SC{SCENERY.index(name):02d}A0"


def sight_number(sight: str, kind: int, frame: int = WHOLE) -> int:
    """The map number of an item, a prop or an obstacle that looks like a sight.

    Args:
        sight: a shape of `looks.SHAPE_NAMES`, or one of `PLAIN_SIGHTS`.
        kind: `ITEM`, `PROP` or `OBSTACLE`; shapes cannot be obstacles.
        frame: which part of a shape.

    Raises:
        ValueError: no such thing.
    """
    if sight in PLAIN_SIGHTS:
        return FIRST_SIGHT_NUMBER + 3 * PLAIN_SIGHTS.index(sight) + kind
    if kind == OBSTACLE:
        raise ValueError(f"{sight!r} cannot stand in the way")
    place = looks.SHAPE_NAMES.index(sight) * FRAMES_A_SHAPE + frame
    return FIRST_SIGHT_NUMBER + 3 * len(PLAIN_SIGHTS) + 2 * place + kind


def counter(name: str) -> tuple[int, int]:
    """Where an object is counted: its slot, and what one of it adds there."""
    index = OBJECTS.index(name)
    return index % SLOTS, COUNTER_BASE ** (index // SLOTS)


@lru_cache(maxsize=64)  # asked at every report of the engine, and few of them are news
def counts(slots: tuple[int, ...]) -> tuple[int, ...]:
    """How many of each of `OBJECTS` were picked up, read from the ten slots."""
    return tuple(slots[slot] // unit % COUNTER_BASE for slot, unit in map(counter, OBJECTS))


def _slot_actors(slot: int) -> str:
    """A kind of ammunition, and the weapon without which the engine does not report it."""
    return f"""
ACTOR Count{slot} : Ammo
{{
  Inventory.Amount 1
  Inventory.MaxAmount {COUNTER_BASE**5}
}}
ACTOR Slot{slot} : Weapon
{{
  Weapon.AmmoType "Count{slot}"
  States
  {{
  Ready:
    TNT1 A 1 A_WeaponReady
    Loop
  Deselect:
    TNT1 A 1 A_Lower
    Loop
  Select:
    TNT1 A 1 A_Raise
    Loop
  Fire:
    TNT1 A 1
    Goto Ready
  }}
}}
"""


def _looks() -> str:
    """The properties that give a sprite its size."""
    scale = OBJECT_SIZE / sprites.SPRITE_SIZE
    return f"XScale {scale:.4f}\n  YScale {scale / PIXEL_STRETCH:.4f}"


def _object_actor(name: str) -> str:
    index = OBJECTS.index(name)
    slot, unit = counter(name)
    # 'Pickup:' and every other state label stand on lines of their own: the engine's parser crashes otherwise.
    return f"""
ACTOR Object{index} : CustomInventory {editor_number(name)}
{{
  Radius {PICKUP_REACH - PLAYER_RADIUS}
  Height 40
  {_looks()}
  Inventory.PickupMessage ""
  Inventory.PickupSound ""
  States
  {{
  Spawn:
    {sprite_lump(name)[:4]} A -1 Bright
    Stop
  Pickup:
    TNT1 A 0 A_GiveInventory("Count{slot}", {unit})
    Stop
  }}
}}
"""


def _scenery_actor(name: str) -> str:
    index = SCENERY.index(name)
    return f"""
ACTOR Scenery{index} {scenery_number(name)}
{{
  Radius {SCENERY_RADIUS}
  Height 64
  {_looks()}
  +SOLID
  States
  {{
  Spawn:
    {sprite_lump(name)[:4]} A -1 Bright
    Stop
  }}
}}
"""


_KINDS = f"""
ACTOR Touched : Inventory
{{
  Inventory.MaxAmount 1000000000
}}
ACTOR Item : CustomInventory
{{
  Radius {PICKUP_REACH - PLAYER_RADIUS}
  Height 40
  {_looks()}
  Inventory.PickupMessage ""
  Inventory.PickupSound ""
  States
  {{
  Pickup:
    TNT1 A 0 A_GiveInventory("Touched", 1)
    Stop
  }}
}}
ACTOR Prop
{{
  Radius 1
  Height 1
  {_looks()}
  +NOBLOCKMAP
  +NOGRAVITY
}}
ACTOR Obstacle
{{
  Radius {SCENERY_RADIUS}
  Height 64
  {_looks()}
  +SOLID
}}
"""


def _sight_actor(parent: str, number: int, frame: str) -> str:
    """An actor that is its parent with a picture."""
    return (
        f"ACTOR {parent}{number} : {parent} {number}\n{{\n  States\n  {{\n  Spawn:\n    {frame} -1 Bright\n    Stop\n  }}\n}}\n"
    )


def _sight_actors() -> list[str]:
    """The actors of all sights: items, props, and obstacles."""
    actors = [_KINDS]
    for i, name in enumerate(PLAIN_SIGHTS):
        for kind, parent in enumerate(("Item", "Prop", "Obstacle")):
            actors.append(_sight_actor(parent, sight_number(name, kind), f"PS{i:02d} A"))
    for i, shape in enumerate(looks.SHAPE_NAMES):
        for frame in range(FRAMES_A_SHAPE):
            for kind, parent in enumerate(("Item", "Prop")):
                number = sight_number(shape, kind, frame)
                actors.append(_sight_actor(parent, number, f"LK{i:02d} {chr(ord('A') + frame)}"))
    return actors


def _sight_lumps(origin: tuple[int, int]) -> list[Lump]:
    """The sprites of all sights; shapes are white, for the engine to fill."""
    lumps = [(f"PS{i:02d}A0", png(sprites.sprite(name), origin)) for i, name in enumerate(PLAIN_SIGHTS)]
    for i, shape in enumerate(looks.SHAPE_NAMES):
        for frame, where in enumerate(looks.look_frames(shape)):
            white = np.where(where[..., None], np.uint8(255), np.uint8(0)).repeat(4, axis=2)
            lumps.append((f"LK{i:02d}{chr(ord('A') + frame)}0", png(white, origin)))
    return lumps


def decorate() -> str:
    """The `DECORATE` lump: the player, every object and every piece of scenery."""
    slots = "\n".join(f'  Player.WeaponSlot {(i + 1) % SLOTS}, "Slot{i}"' for i in range(SLOTS))
    player = f"""
ACTOR LabPlayer : DoomPlayer
{{
  Radius {PLAYER_RADIUS}
  Player.ViewHeight {EYE_HEIGHT / PIXEL_STRETCH:.2f}
  Player.ForwardMove {MOVE_SCALE}, {MOVE_SCALE}
  Player.SideMove {MOVE_SCALE}, {MOVE_SCALE}
  MaxStepHeight {STEP_HEIGHT / PIXEL_STRETCH:.2f}
  Player.StartItem "Slot0"
{slots}
  +NOPAIN
  +NODAMAGE
}}
"""
    parts = [
        *map(_slot_actors, range(SLOTS)),
        *map(_object_actor, OBJECTS),
        *map(_scenery_actor, SCENERY),
        *_sight_actors(),
        player,
    ]
    return "".join(parts)


@lru_cache(maxsize=1)
def resource_wad() -> bytes:
    """The whole WAD. Its own map is a bare room that is shown to nobody: the engine needs one to start in."""
    lumps: list[Lump] = [
        ("DECORATE", decorate().encode("ascii")),
        ("MAPINFO", b'gameinfo { playerclasses = "LabPlayer" }\n'),
        ("PLAYPAL", sprites.palette_lump()),
        ("COLORMAP", sprites.colormap_lump()),
        ("TX_START", b""),
    ]
    lumps += [(name, png(pixels)) for name, pixels in sprites.textures().items()]
    lumps += [("TX_END", b""), ("S_START", b"")]
    origin = (sprites.SPRITE_SIZE // 2, sprites.SPRITE_SIZE)
    lumps += [(sprite_lump(name), png(sprites.sprite(name), origin)) for name in (*OBJECTS, *SCENERY)]
    lumps += _sight_lumps(origin)
    lumps += [("S_END", b"")]
    corners = ((0, 0), (0, 256), (256, 256), (256, 0))
    room = Room(corners, height=160, wall="WALLGREY", floor="FLOORBRN", ceiling="CEILING")
    lumps += map_lumps("MAP01", text_map([room], [Thing(128, 128, PLAYER_START)]))
    return pack_wad(lumps)
