"""The forty shapes and nine patterns that objects of DMLab-30 are told by, as flat outlines of our own.

A shape is drawn as a mask; the engine fills it with any colour when it shows it. A pattern cuts a mask in two, one for each of
its colours. Coordinates are sprite pixels, (0, 0) at the top left, 64 a side.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

from sf_fixpo.envs.dmlab.stand_in.outlines40 import OUTLINES

SIZE = 64
_OVERSAMPLING = 4

Rgb = tuple[int, int, int]

SHAPE_NAMES = tuple(OUTLINES)
PATTERNS = ("chequered", "crosses", "diagonal_stripe", "discs", "hex", "pinstripe", "spots", "swirls")

# Hue (degrees), saturation and lightness (percent), as the language levels name them.
_HSL: Mapping[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "gray": (0, 0, 50),
    "white": (0, 0, 100),
    "red": (0, 100, 50),
    "orange": (30, 100, 50),
    "brown": (30, 51, 40),
    "yellow": (60, 100, 50),
    "green": (120, 100, 50),
    "cyan": (180, 100, 50),
    "blue": (240, 100, 50),
    "purple": (270, 100, 50),
    "magenta": (300, 100, 50),
    "pink": (330, 100, 50),
}
SIX_COLOURS = ("red", "green", "blue", "cyan", "magenta", "yellow")


def _rgb(hue: float, saturation: float, lightness: float) -> Rgb:
    """Red, green and blue, 0 to 255, of degrees and percent."""
    r, g, b = colorsys.hls_to_rgb(hue / 360, lightness / 100, saturation / 100)
    return round(255 * r), round(255 * g), round(255 * b)


COLOURS: Mapping[str, Rgb] = MappingProxyType({name: _rgb(*hsl) for name, hsl in _HSL.items()})


@lru_cache(maxsize=64)
def mask(shape: str) -> np.ndarray:
    """Where a shape is, bool (64, 64).

    Raises:
        KeyError: no such shape.
    """
    size = SIZE * _OVERSAMPLING
    image = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(image)
    for piece in OUTLINES[shape]:
        kind, numbers = str(piece[0]), piece[1:]
        scaled = [float(number) * _OVERSAMPLING for number in numbers]
        fill = 0 if kind.startswith("-") else 255
        if kind.endswith("oval"):
            draw.ellipse(scaled, fill=fill)
        elif kind.endswith("box"):
            draw.rectangle(scaled, fill=fill)
        else:
            draw.polygon(list(zip(scaled[::2], scaled[1::2], strict=True)), fill=fill)
    return np.array(image.resize((SIZE, SIZE), Image.Resampling.BOX)) >= 128


@lru_cache(maxsize=16)
def pattern(name: str) -> np.ndarray:
    """Where a pattern has its second colour, bool (64, 64); coarse, so that it can be told a few steps away.

    Raises:
        KeyError: no such pattern.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    u, v = x % 16 - 7.5, y % 16 - 7.5
    shifted = (x + 8 * (y // 16 % 2)) % 16 - 7.5
    centre = np.hypot(x - 31.5, y - 31.5)
    return {
        "chequered": (x // 16 + y // 16) % 2 == 0,
        "crosses": ((np.abs(u) < 2.5) | (np.abs(v) < 2.5)) & (np.abs(u) < 6.5) & (np.abs(v) < 6.5),
        "diagonal_stripe": (x + y) // 10 % 2 == 0,
        "discs": np.hypot(x % 32 - 15.5, y % 32 - 15.5) < 11,
        "hex": np.abs(shifted) + np.abs(v) * 0.6 < 6,
        "pinstripe": x % 8 < 3,
        "spots": np.hypot(shifted, v) < 4,
        "swirls": (centre / 8 + np.arctan2(y - 31.5, x - 31.5) / np.pi).astype(int) % 2 == 0,
    }[name]


def look_frames(shape: str) -> list[np.ndarray]:
    """The masks of a shape that the engine needs: whole, then with each pattern the first colour's part, then the second's.

    Returns:
        1 + 2 x 8 arrays, bool (64, 64).
    """
    whole = mask(shape)
    return [whole, *(whole & ~pattern(name) for name in PATTERNS), *(whole & pattern(name) for name in PATTERNS)]
