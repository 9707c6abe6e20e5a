"""The WAD that every game of the stand-in engine starts with: actor classes, sprites, textures, palette.

It holds nothing that depends on the episode; the episode's map is a second, small WAD (`levels.py`).
"""

from __future__ import annotations

from functools import lru_cache

from envs.dmlab import sprites
from envs.dmlab.wad import PLAYER_START, Lump, Room, Thing, map_lumps, pack_wad, png, text_map

# Doom draws a vertical unit 1.2 times as long as a horizontal one: its pixels were not square. Heights are divided by it.
PIXEL_STRETCH = 1.2

# What can be picked up. The position in this tuple is the object's counter: the engine counts ammunition in ten slots, and a
# pickup gives one unit of the ammunition of its slot.
OBJECTS = ("hat", "can", "cake", "balloon")
FIRST_EDITOR_NUMBER = 20001

PICKUP_REACH = 47  # units along each axis at which an object is touched, measured centre to centre
PLAYER_RADIUS = 16
EYE_HEIGHT = 50
OBJECT_SIZE = 56  # units a side that a sprite covers

# Thrust of a full move command, as a multiple of Doom's running thrust (see motion.py).
MOVE_SCALE = 3


def editor_number(name: str) -> int:
    """The map number of an object.

    Raises:
        ValueError: no such object.
    """
    return FIRST_EDITOR_NUMBER + OBJECTS.index(name)


def sprite_lump(name: str) -> str:
    """Lump name of an object's only sprite frame, seen alike from all sides."""
    return f"OB{OBJECTS.index(name):02d}A0"


def _object_actor(name: str) -> str:
    index = OBJECTS.index(name)
    scale = OBJECT_SIZE / sprites.SPRITE_SIZE
    # 'Pickup:' and every other state label stand on lines of their own: the engine's parser crashes otherwise.
    return f"""
ACTOR Count{index} : Ammo
{{
  Inventory.Amount 1
  Inventory.MaxAmount 1000
}}
ACTOR Slot{index} : Weapon
{{
  Weapon.AmmoType "Count{index}"
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
ACTOR Object{index} : CustomInventory {editor_number(name)}
{{
  Radius {PICKUP_REACH - PLAYER_RADIUS}
  Height 40
  XScale {scale:.4f}
  YScale {scale / PIXEL_STRETCH:.4f}
  Inventory.PickupMessage ""
  Inventory.PickupSound ""
  States
  {{
  Spawn:
    OB{index:02d} A -1 Bright
    Stop
  Pickup:
    TNT1 A 0 A_GiveInventory("Count{index}", 1)
    Stop
  }}
}}
"""


def decorate() -> str:
    """The `DECORATE` lump: the player and every object."""
    slots = "\n".join(f'  Player.WeaponSlot {(i + 1) % 10}, "Slot{i}"' for i in range(len(OBJECTS)))
    player = f"""
ACTOR LabPlayer : DoomPlayer
{{
  Radius {PLAYER_RADIUS}
  Player.ViewHeight {EYE_HEIGHT / PIXEL_STRETCH:.2f}
  Player.ForwardMove {MOVE_SCALE}, {MOVE_SCALE}
  Player.SideMove {MOVE_SCALE}, {MOVE_SCALE}
  Player.StartItem "Slot0"
{slots}
  +NOPAIN
  +NODAMAGE
}}
"""
    return "".join(_object_actor(name) for name in OBJECTS) + player


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
    lumps += [(sprite_lump(name), png(sprites.sprite(name), origin)) for name in OBJECTS]
    lumps += [("S_END", b"")]
    corners = ((0, 0), (0, 256), (256, 256), (256, 0))
    room = Room(corners, height=160, wall="WALLGREY", floor="FLOORBRN", ceiling="CEILING")
    lumps += map_lumps("MAP01", text_map([room], [Thing(128, 128, PLAYER_START)]))
    return pack_wad(lumps)
