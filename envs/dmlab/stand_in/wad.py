"""Writers for the three file formats the stand-in engine reads: WAD containers, UDMF maps and PNG images with sprite offsets.

All functions are pure: they take Python values and return bytes, so that equal scenes give equal files, bit for bit.
Lengths are map units (one unit of DeepMind Lab is one unit here), angles are degrees, counter-clockwise from east.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.acs import EXECUTE, behavior_lump

Lump = tuple[str, bytes]
Point = tuple[float, float]

PLAYER_START = 1  # editor number that every Doom engine gives the first player's start
_EVERY_GAME = "skill1=true;skill2=true;skill3=true;skill4=true;skill5=true;single=true;"


@dataclass(frozen=True)
class Thing:
    """An object or a player start on the map.

    Attributes:
        x: position east, units.
        y: position north, units.
        editor_number: which actor class stands there.
        angle: facing, whole degrees.
        height: above the floor, engine units.
        number: by which scripts find it; 0 for none.
        call: arguments of the script that runs when it is picked up.
        colour: 0xRRGGBB that fills its outline instead of the sprite's own colours.
        scale: times the size that its class has.
    """

    x: float
    y: float
    editor_number: int
    angle: int = 0
    height: float = 0.0
    number: int = 0
    call: tuple[int, int, int] | None = None
    colour: int | None = None
    scale: float = 1.0

    def text(self) -> str:
        """The thing as UDMF has it."""
        parts = [f"x={float(self.x)};y={float(self.y)};type={self.editor_number};angle={self.angle};"]
        if self.height:
            parts.append(f"height={float(self.height)};")
        if self.number:
            parts.append(f"id={self.number};")
        if self.call:
            parts.append(f"special={EXECUTE};" + "".join(f"arg{i}={value};" for i, value in enumerate(self.call)))
        if self.colour is not None:
            parts.append(f'renderstyle="stencil";fillcolor={self.colour};')
        if self.scale != 1.0:
            parts.append(f"scalex={self.scale};scaley={self.scale};")
        return f"thing{{{''.join(parts)}{_EVERY_GAME}}}"


@dataclass(frozen=True)
class Room:
    """One closed room, which blocks of wall may stand in, with the same wall texture on every side.

    Attributes:
        corners: (x, y) of its corners, clockwise, so that the walls' front sides look inwards.
        height: floor to ceiling, engine units.
        wall: texture name of the walls.
        floor: texture name of the floor.
        ceiling: texture name of the ceiling.
        blocks: corners of each block in it, counter-clockwise, so that its sides look outwards. Blocks touch neither each other
            nor the room's walls.
        other_walls: texture names of single walls, by the number of the corner they begin at.
    """

    corners: Sequence[Point]
    height: int
    wall: str
    floor: str
    ceiling: str
    blocks: Sequence[Sequence[Point]] = ()
    other_walls: Mapping[int, str] = field(default_factory=dict)


def pack_wad(lumps: Iterable[Lump]) -> bytes:
    """A PWAD file with the given lumps in order.

    Args:
        lumps: (name, content) pairs; names are ASCII and at most 8 characters.

    Raises:
        ValueError: a name that does not fit.
    """
    body, directory, count = bytearray(), bytearray(), 0
    for name, content in lumps:
        encoded = name.encode("ascii")
        if len(encoded) > 8:
            raise ValueError(f"lump name {name!r} is longer than 8 characters")
        directory += struct.pack("<ii8s", 12 + len(body), len(content), encoded)
        body += content
        count += 1
    return struct.pack("<4sii", b"PWAD", count, 12 + len(body)) + bytes(body) + bytes(directory)


def text_map(rooms: Sequence[Room], things: Iterable[Thing]) -> bytes:
    """The UDMF `TEXTMAP` lump of separate rooms and the things in them."""
    parts = ['namespace="zdoom";']
    first = 0
    for sector, room in enumerate(rooms):
        for loop in (room.corners, *room.blocks):
            count = len(loop)
            parts += [f"vertex{{x={float(x)};y={float(y)};}}" for x, y in loop]
            for i in range(count):
                parts.append(f"linedef{{v1={first + i};v2={first + (i + 1) % count};sidefront={first + i};blocking=true;}}")
                wall = room.other_walls.get(i, room.wall) if loop is room.corners else room.wall
                parts.append(f'sidedef{{sector={sector};texturemiddle="{wall}";}}')
            first += count
        parts.append(
            f"sector{{heightfloor=0;heightceiling={room.height};lightlevel=255;"
            f'texturefloor="{room.floor}";textureceiling="{room.ceiling}";}}'
        )
    parts += [thing.text() for thing in things]
    return "\n".join(parts).encode("ascii")


_MAP = ("MAP01", "TEXTMAP", "BEHAVIOR", "ENDMAP")


def check_map(wad: bytes) -> None:
    """Refuses what the engine would wait for, or play without telling pickups: it says nothing of a lump that is missing.

    Args:
        wad: a file's content.

    Raises:
        ValueError: it is no WAD with the map `MAP01`; the message says what is wrong.
    """
    if len(wad) < 12 or wad[:4] != b"PWAD":
        raise ValueError(f"no WAD: {len(wad)} bytes that begin with {wad[:4]!r}")
    count, start = struct.unpack("<ii", wad[4:12])
    if count < 0 or start < 12 or start + 16 * count > len(wad):
        raise ValueError(f"a broken WAD: its directory of {count} lumps at {start} lies outside its {len(wad)} bytes")
    found = {}
    for i in range(count):
        offset, size, name = struct.unpack_from("<ii8s", wad, start + 16 * i)
        name = name.rstrip(b"\0").decode("ascii", "replace")
        if offset < 0 or size < 0 or offset + size > len(wad):
            raise ValueError(f"a broken WAD: its lump {name} lies outside its {len(wad)} bytes")
        found[name] = wad[offset : offset + size]
    if missing := [name for name in _MAP if name not in found]:
        raise ValueError(f"a WAD without the lump {', '.join(missing)}: it has {', '.join(found) or 'none'}")
    if found["BEHAVIOR"][:4] != b"ACS\0":
        raise ValueError("a broken WAD: its lump BEHAVIOR holds no scripts")


def map_lumps(name: str, textmap: bytes) -> list[Lump]:
    """The lumps that make a UDMF map; the engine builds the BSP nodes itself when it loads it."""
    return [(name, b""), ("TEXTMAP", textmap), ("BEHAVIOR", behavior_lump()), ("ENDMAP", b"")]


def png(pixels: np.ndarray, offset: tuple[int, int] | None = None) -> bytes:
    """Encodes an image as a PNG the engine can read.

    Written by hand because image libraries drop the `grAb` chunk, which says where a sprite's origin is.

    Args:
        pixels: uint8 (height, width, 3) RGB or (height, width, 4) RGBA.
        offset: (x, y) in pixels of the sprite's origin from the top left corner; None for a texture.

    Raises:
        ValueError: any other dtype or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(f"expected uint8 (height, width, 3 or 4), got {pixels.dtype} {pixels.shape}")
    height, width, channels = pixels.shape
    colour_type = 2 if channels == 3 else 6
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1)
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))]
    if offset is not None:
        chunks.append(_chunk(b"grAb", struct.pack(">ii", *offset)))
    chunks += [_chunk(b"IDAT", zlib.compress(rows.tobytes())), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
