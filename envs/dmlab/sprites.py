"""Everything the stand-in engine shows, drawn in code: object sprites, wall and floor textures, the palette.

Images are uint8 (height, width, channels). Sprites are drawn four times too large and averaged down, so that their edges are
smooth before the engine, which knows no half-transparent pixels, cuts them at half coverage.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SPRITE_SIZE = 64  # pixels a side
TEXTURE_SIZE = 128
_OVERSAMPLING = 4

Box = tuple[float, float, float, float]


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
    draw.polygon([(p[0] * _OVERSAMPLING, p[1] * _OVERSAMPLING) for p in ((26, 52), (38, 52), (32, 42))], fill=(255, 153, 0, 255))
    draw.ellipse(_box(10, 0, 54, 46), fill=(255, 255, 0, 255))
    draw.ellipse(_box(20, 8, 30, 20), fill=(255, 255, 204, 255))


SPRITES: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "hat": draw_hat,
    "can": draw_can,
    "cake": draw_cake,
    "balloon": draw_balloon,
}


def sprite(name: str) -> np.ndarray:
    """The sprite of an object, uint8 (64, 64, 4), alpha 0 or 255.

    Raises:
        KeyError: no such object.
    """
    size = SPRITE_SIZE * _OVERSAMPLING
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    SPRITES[name](ImageDraw.Draw(image))
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
        "CEILING": np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), (153, 204, 255), dtype=np.uint8),
    }


def _box(left: float, top: float, right: float, bottom: float) -> Box:
    """A rectangle in sprite pixels, in the oversampled image's pixels."""
    k = _OVERSAMPLING
    return left * k, top * k, right * k - 1, bottom * k - 1
