"""Everything the stand-in engine shows, drawn in code: object sprites, wall and floor textures, the palette.

Images are uint8 (height, width, channels). Sprites are drawn four times too large and averaged down, so that their edges are
smooth before the engine, which knows no half-transparent pixels, cuts them at half coverage.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from sf_fixpo.envs.dmlab.stand_in.looks import COLOURS as WORDS
from sf_fixpo.envs.dmlab.stand_in.looks import SIX_COLOURS
from sf_fixpo.envs.dmlab.stand_in.shapes import COLOURS, MODELS, SHAPES

SPRITE_SIZE = 64  # pixels a side
TEXTURE_SIZE = 128
_OVERSAMPLING = 4

_CAGED = "caged "

Box = tuple[float, float, float, float]


def caged(shape: str) -> str:
    """The name of a shape that stands in a cage."""
    return _CAGED + shape


def palette() -> np.ndarray:
    """The engine's 256 colours, uint8 (256, 3): a 6 x 6 x 6 cube and 40 greys.

    The engine's software renderer knows 256 colours only. Doom's own are mostly browns; an even cube keeps pink, yellow and
    blue apart.
    """
    steps = np.arange(0, 256, 51, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    greys = np.repeat(np.linspace(3, 252, 40).round().astype(np.uint8)[:, None], 3, axis=1)
    return np.concatenate([cube, greys])


def palette_lump() -> bytes:
    """`PLAYPAL`: fourteen copies, because the engine picks one of them when the player is hurt or picks something up."""
    return palette().tobytes() * 14


def colormap_lump() -> bytes:
    """`COLORMAP`: 34 light levels that change nothing, so that colours do not fade with distance."""
    return bytes(range(256)) * 34


def draw_hat(draw: ImageDraw.ImageDraw) -> None:
    """A dark violet top hat with a white band."""
    draw.ellipse(_box(2, 48, 62, 63), fill=(51, 0, 102, 255))
    draw.rectangle(_box(15, 14, 49, 55), fill=(102, 0, 153, 255))
    draw.ellipse(_box(15, 8, 49, 20), fill=(153, 51, 204, 255))
    draw.rectangle(_box(15, 40, 49, 48), fill=(255, 255, 255, 255))


def draw_can(draw: ImageDraw.ImageDraw) -> None:
    """A bright green can with a white label and a grey lid."""
    draw.rectangle(_box(14, 8, 50, 58), fill=(0, 204, 0, 255))
    draw.ellipse(_box(14, 52, 50, 63), fill=(0, 153, 0, 255))
    draw.rectangle(_box(14, 26, 50, 42), fill=(255, 255, 204, 255))
    draw.ellipse(_box(14, 2, 50, 14), fill=(204, 204, 204, 255))
    draw.ellipse(_box(26, 5, 38, 11), fill=(102, 102, 102, 255))


def draw_cake(draw: ImageDraw.ImageDraw) -> None:
    """A wide pink cake with cream on top and three candles."""
    draw.rectangle(_box(2, 36, 62, 58), fill=(255, 51, 153, 255))
    draw.ellipse(_box(2, 52, 62, 63), fill=(204, 0, 102, 255))
    draw.ellipse(_box(2, 24, 62, 44), fill=(255, 204, 255, 255))
    for x in (16, 30, 44):
        draw.rectangle(_box(x, 12, x + 4, 32), fill=(255, 255, 255, 255))
        draw.ellipse(_box(x - 1, 3, x + 5, 13), fill=(255, 153, 0, 255))


def draw_balloon(draw: ImageDraw.ImageDraw) -> None:
    """A yellow balloon on a string."""
    draw.rectangle(_box(31, 44, 33, 63), fill=(255, 255, 255, 255))
    draw.polygon(_points((26, 52), (38, 52), (32, 42)), fill=(255, 153, 0, 255))
    draw.ellipse(_box(10, 0, 54, 46), fill=(255, 255, 0, 255))
    draw.ellipse(_box(20, 8, 30, 20), fill=(255, 255, 204, 255))


def draw_apple(draw: ImageDraw.ImageDraw) -> None:
    """A red apple with a leaf."""
    draw.ellipse(_box(6, 18, 40, 62), fill=(204, 0, 0, 255))
    draw.ellipse(_box(24, 18, 58, 62), fill=(255, 0, 0, 255))
    draw.rectangle(_box(30, 6, 34, 24), fill=(102, 51, 0, 255))
    draw.ellipse(_box(34, 4, 54, 16), fill=(0, 204, 0, 255))


def draw_box(draw: ImageDraw.ImageDraw) -> None:
    """A cyan cube, seen from above one of its edges."""
    draw.polygon(_points((32, 10), (60, 22), (32, 34), (4, 22)), fill=(204, 255, 255, 255))
    draw.polygon(_points((4, 22), (32, 34), (32, 63), (4, 51)), fill=(0, 204, 204, 255))
    draw.polygon(_points((32, 34), (60, 22), (60, 51), (32, 63)), fill=(0, 153, 153, 255))


def draw_teleporter(draw: ImageDraw.ImageDraw) -> None:
    """A flat pad with a column of white light on it."""
    draw.rectangle(_box(20, 4, 44, 56), fill=(255, 255, 255, 255))
    draw.rectangle(_box(28, 4, 36, 56), fill=(153, 255, 255, 255))
    draw.ellipse(_box(2, 48, 62, 63), fill=(102, 102, 102, 255))
    draw.ellipse(_box(10, 51, 54, 60), fill=(255, 255, 255, 255))


def draw_goal(draw: ImageDraw.ImageDraw) -> None:
    """A golden ring on a foot."""
    draw.ellipse(_box(6, 0, 58, 52), fill=(255, 204, 0, 255))
    draw.ellipse(_box(18, 12, 46, 40), fill=(0, 0, 0, 0))
    draw.rectangle(_box(28, 48, 36, 60), fill=(255, 204, 0, 255))
    draw.ellipse(_box(14, 56, 50, 63), fill=(204, 153, 0, 255))


def draw_shape(draw: ImageDraw.ImageDraw, name: str) -> None:
    """One of the 36 shapes.

    Raises:
        KeyError: no such shape.
    """
    colour, model = name.split(" ")
    filled, cut_out = MODELS[model]
    draw.polygon(_points(*filled), fill=COLOURS[colour])
    if cut_out:
        draw.polygon(_points(*cut_out), fill=(0, 0, 0, 0))


def draw_cage(draw: ImageDraw.ImageDraw) -> None:
    """Black bars in front of what is drawn already; narrow enough to tell what is behind them."""
    for x in (0, 20, 41, 61):
        draw.rectangle(_box(x, 0, x + 3, 64), fill=(0, 0, 0, 255))
    for y in (0, 61):
        draw.rectangle(_box(0, y, 64, y + 3), fill=(0, 0, 0, 255))


SPRITES: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "hat": draw_hat,
    "can": draw_can,
    "cake": draw_cake,
    "balloon": draw_balloon,
    "apple": draw_apple,
    "box": draw_box,
    "teleporter": draw_teleporter,
    "goal": draw_goal,
}


def draw_mushroom(draw: ImageDraw.ImageDraw) -> None:
    """A red cap with white spots on a pale stem."""
    draw.rectangle(_box(24, 34, 40, 63), fill=(255, 255, 204, 255))
    draw.pieslice(_box(4, 8, 60, 64), 180, 360, fill=(204, 0, 51, 255))
    for x, y in ((14, 24), (29, 13), (43, 24)):
        draw.ellipse(_box(x, y, x + 8, y + 8), fill=(255, 255, 255, 255))


def draw_cactus(draw: ImageDraw.ImageDraw) -> None:
    """A tall green stem with two arms."""
    for box in ((25, 0, 39, 63), (6, 28, 30, 38), (6, 12, 16, 34), (34, 22, 58, 32), (48, 6, 58, 28)):
        draw.rounded_rectangle(_box(*box), 5 * _OVERSAMPLING, fill=(0, 102, 51, 255))


def draw_rock(draw: ImageDraw.ImageDraw) -> None:
    """A grey boulder."""
    draw.polygon(_points((2, 63), (6, 40), (22, 26), (44, 28), (60, 46), (62, 63)), fill=(102, 102, 102, 255))
    draw.polygon(_points((22, 26), (44, 28), (36, 44), (18, 42)), fill=(153, 153, 153, 255))


def draw_bush(draw: ImageDraw.ImageDraw) -> None:
    """A low round bush."""
    for box in ((2, 40, 30, 63), (16, 30, 48, 63), (36, 38, 62, 63)):
        draw.ellipse(_box(*box), fill=(102, 153, 0, 255))


def draw_bot_head(draw: ImageDraw.ImageDraw) -> None:
    """The head of an opponent, white: maps give it a colour."""
    draw.ellipse(_box(21, 0, 43, 20), fill=(255, 255, 255, 255))


def draw_bot_body(draw: ImageDraw.ImageDraw) -> None:
    """Its body and arms."""
    draw.rectangle(_box(18, 20, 46, 42), fill=(255, 255, 255, 255))
    draw.rectangle(_box(8, 21, 18, 28), fill=(255, 255, 255, 255))
    draw.rectangle(_box(46, 21, 60, 28), fill=(255, 255, 255, 255))


def draw_bot_legs(draw: ImageDraw.ImageDraw) -> None:
    """Its legs."""
    draw.rectangle(_box(18, 42, 29, 64), fill=(255, 255, 255, 255))
    draw.rectangle(_box(35, 42, 46, 64), fill=(255, 255, 255, 255))


# What items and props look like besides the shapes.
PROPS: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "bot_head": draw_bot_head,
    "bot_body": draw_bot_body,
    "bot_legs": draw_bot_legs,
    "goal": draw_goal,
    "mushroom": draw_mushroom,
    "cactus": draw_cactus,
    "rock": draw_rock,
    "bush": draw_bush,
}


def sprite(name: str) -> np.ndarray:
    """The sprite of an object, a shape or a caged shape, uint8 (64, 64, 4), alpha 0 or 255.

    Raises:
        KeyError: no such object.
    """
    size = SPRITE_SIZE * _OVERSAMPLING
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    shape = name.removeprefix(_CAGED)
    if shape in SHAPES:
        draw_shape(draw, shape)
    else:
        (SPRITES.get(name) or PROPS[name])(draw)
    if shape != name:
        draw_cage(draw)
    pixels = np.array(image.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BOX))
    pixels[..., 3] = np.where(pixels[..., 3] >= 128, 255, 0)
    return pixels


def tiles(base: tuple[int, int, int], line: tuple[int, int, int], width: int, height: int, shift: int = 0) -> np.ndarray:
    """A texture of tiles with joints between them, uint8 (128, 128, 3).

    Args:
        base: colour of the tiles; every other one is a little darker, to give the eye motion and distance.
        line: colour of the joints, two pixels wide.
        width: tile width in pixels; divides 128.
        height: tile height in pixels; divides 128.
        shift: how far every other row is moved, in pixels: half a tile for bricks.
    """
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE]
    row = y // height
    x = (x + shift * (row % 2)) % TEXTURE_SIZE
    shade = np.where((row + x // width) % 2 == 0, 1.0, 0.8)
    pixels = np.array(base)[None, None, :] * shade[..., None]
    joint = (y % height < 2) | (x % width < 2)
    pixels[joint] = line
    return pixels.round().astype(np.uint8)


def textures() -> dict[str, np.ndarray]:
    """Wall, floor and ceiling textures by lump name, each uint8 (128, 128, 3).

    Coarse patterns only: finer ones turn into noise a few steps away at 48 x 36 pixels.
    """
    return {
        "WALLGREY": tiles((153, 153, 153), (102, 102, 102), 64, 32, shift=32),
        "FLOORBRN": tiles((153, 102, 51), (102, 51, 0), 64, 64),
        "WALLRED": tiles((204, 0, 0), (153, 0, 0), 64, 32, shift=32),
        "FLOORBLU": tiles((0, 51, 255), (0, 0, 153), 64, 64),
        "WALLGRN": tiles((102, 153, 102), (51, 102, 51), 32, 64, shift=16),
        "WALLBLU": tiles((51, 102, 204), (0, 51, 153), 64, 32, shift=32),
        "WALLPINK": tiles((204, 102, 153), (153, 51, 102), 64, 32, shift=32),
        "WALLVIO": tiles((102, 51, 153), (51, 0, 102), 64, 32, shift=32),
        "WALLTEAL": tiles((0, 153, 153), (0, 102, 102), 64, 32, shift=32),
        "FLOORGRN": tiles((51, 102, 51), (0, 51, 0), 64, 64),
        "FLOORGRY": tiles((102, 102, 102), (51, 51, 51), 64, 64),
        "FLOORDRK": tiles((30, 30, 30), (0, 0, 0), 64, 64),
        "FLOORBRT": tiles((255, 255, 204), (204, 204, 153), 64, 64),
        "DOOR": tiles((153, 102, 0), (51, 0, 0), 32, 128),
        "ABYSS": tiles((102, 153, 204), (51, 102, 153), 64, 64),
        "SKYROSE": tiles((204, 102, 102), (153, 51, 51), 64, 64),
        "SKYGOLD": tiles((204, 153, 0), (153, 102, 0), 64, 64),
        "SKYLIME": tiles((102, 204, 51), (51, 153, 0), 64, 64),
        "SKYMINT": tiles((51, 204, 153), (0, 153, 102), 64, 64),
        "SKYPLUM": tiles((153, 51, 204), (102, 0, 153), 64, 64),
        "SKYSAND": tiles((204, 204, 153), (153, 153, 102), 64, 64),
        **{f"LANG{name.upper()[:3]}": tiles(WORDS[name], _darker(WORDS[name]), 64, 64) for name in SIX_COLOURS},
        "SKYNIGHT": tiles((0, 0, 102), (0, 0, 102), 128, 128),
        "SKYDAY": tiles((153, 204, 255), (153, 204, 255), 128, 128),
        "SKYDAWN": tiles((255, 153, 102), (255, 153, 102), 128, 128),
        "LANDNIGH": tiles((102, 102, 102), (51, 51, 51), 64, 64),
        "LANDDAY": tiles((255, 204, 102), (204, 153, 51), 64, 64),
        "LANDDAWN": tiles((204, 153, 102), (153, 102, 51), 64, 64),
        "FLOORORA": tiles((255, 153, 51), (204, 102, 0), 64, 64),
        "WALLPOOL": tiles((51, 102, 153), (0, 51, 102), 64, 64),
        "WATER": tiles((102, 204, 204), (51, 153, 204), 128, 128),
        **{f"PICTURE{i}": _picture(i) for i in range(8)},
        **{f"FENCE{name.upper()[:3]}": fence(colour) for name, colour in FENCE_COLOURS.items()},
        "CEILING": np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), (153, 204, 255), dtype=np.uint8),
    }


def _darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return colour[0] * 3 // 5, colour[1] * 3 // 5, colour[2] * 3 // 5


# The pictures on the walls of the pool: each a colour and a sign of its own.
_PICTURE_COLOURS = (
    (255, 51, 51),
    (255, 204, 0),
    (0, 204, 51),
    (204, 0, 204),
    (255, 255, 255),
    (255, 102, 0),
    (0, 0, 0),
    (153, 255, 153),
)

FENCE_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 204, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}


def _picture(number: int) -> np.ndarray:
    """A wall with a picture, uint8 (128, 128, 3)."""
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE]
    u, v = x - 63.5, y - 63.5
    signs = (
        np.hypot(u, v) < 40,
        np.maximum(np.abs(u), np.abs(v)) < 36,
        np.abs(u) + np.abs(v) < 48,
        np.minimum(np.abs(u), np.abs(v)) < 12,
        np.abs(v) < 20,
        np.abs(u) < 20,
        np.abs(np.hypot(u, v) - 32) < 12,
        (u + v) // 24 % 2 == 0,
    )
    pixels = np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), (51, 102, 153), dtype=np.uint8)
    frame = np.maximum(np.abs(u), np.abs(v)) < 56
    pixels[frame] = (204, 204, 204)
    pixels[frame & signs[number]] = _PICTURE_COLOURS[number]
    return pixels


def fence(colour: tuple[int, int, int]) -> np.ndarray:
    """Bars that one can look through, uint8 (128, 128, 4)."""
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE]
    bars = (x % 16 < 5) | (y % 40 < 5)
    return np.where(bars[..., None], np.array([*colour, 255]), 0).astype(np.uint8)


def _points(*corners: tuple[float, float]) -> list[tuple[float, float]]:
    """Corners in sprite pixels, in the oversampled image's pixels."""
    return [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in corners]


def _box(left: float, top: float, right: float, bottom: float) -> Box:
    """A rectangle in sprite pixels, in the oversampled image's pixels."""
    k = _OVERSAMPLING
    return left * k, top * k, right * k - 1, bottom * k - 1
