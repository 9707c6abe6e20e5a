"""The 36 shapes of rooms_select_nonmatching_object: twelve outlines that differ at a glance, each in three colours.

Coordinates are sprite pixels, (0, 0) at the top left, 64 a side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

Colour = tuple[int, int, int, int]
Outline = tuple[tuple[float, float], ...]

COLOURS: Mapping[str, Colour] = {"red": (255, 0, 0, 255), "green": (0, 204, 0, 255), "blue": (51, 51, 255, 255)}


def _ellipse(left: float, top: float, right: float, bottom: float) -> Outline:
    x, y, a, b = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    angles = (2 * math.pi * i / 48 for i in range(48))
    return tuple((x + a * math.cos(angle), y + b * math.sin(angle)) for angle in angles)


def _star(tips: int, x: float, y: float, outer: float, inner: float) -> Outline:
    angles = ((i, math.pi * i / tips - math.pi / 2) for i in range(2 * tips))
    radii = ((outer if i % 2 == 0 else inner, angle) for i, angle in angles)
    return tuple((x + radius * math.cos(angle), y + radius * math.sin(angle)) for radius, angle in radii)


# Each model is what is filled and what is cut out of it.
MODELS: Mapping[str, tuple[Outline, Outline]] = {
    "ball": (_ellipse(6, 10, 58, 62), ()),
    "block": (((8, 14), (56, 14), (56, 62), (8, 62)), ()),
    "cone": (((32, 4), (60, 62), (4, 62)), ()),
    "ring": (_ellipse(4, 6, 60, 62), _ellipse(20, 22, 44, 46)),
    "cross": (
        ((23, 6), (41, 6), (41, 25), (60, 25), (60, 43), (41, 43), (41, 62), (23, 62), (23, 43), (4, 43), (4, 25), (23, 25)),
        (),
    ),
    "star": (_star(5, 32, 36, 34, 14), ()),
    "moon": (_ellipse(6, 6, 62, 62), _ellipse(26, 2, 74, 58)),
    "pillar": (((24, 2), (40, 2), (40, 62), (24, 62)), ()),
    "slab": (((2, 44), (62, 44), (62, 62), (2, 62)), ()),
    "hourglass": (((6, 4), (58, 4), (36, 33), (58, 62), (6, 62), (28, 33)), ()),
    "diamond": (((32, 2), (52, 32), (32, 62), (12, 32)), ()),
    "arch": (((6, 10), (58, 10), (58, 62), (6, 62)), ((22, 28), (42, 28), (42, 64), (22, 64))),
}

SHAPES = tuple(f"{colour} {model}" for model in MODELS for colour in COLOURS)
