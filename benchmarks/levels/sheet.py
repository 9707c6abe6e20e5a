"""One frame of every level on one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS

from benchmarks.levels import labs
from benchmarks.levels.players.gazes import CROSS, Gazer

_COLUMNS, _WIDTH, _HEIGHT, _TITLE, _GAP = 5, 256, 192, 16, 6
_SEEDS = 12  # starts to choose from


def frame_of(level: str) -> np.ndarray:
    """A frame in which there is something to see, uint8 (192, 256, 3): of some starts the one with most contrast."""
    with labs.lab_of(level, _WIDTH, _HEIGHT, labs.KNOWN) as lab:
        frames = [_view(lab, level, seed) for seed in range(_SEEDS)]
    return max(frames, key=lambda frame: _edges(frame))


def _view(lab: Any, level: str, seed: int) -> np.ndarray:
    lab.reset(seed=seed)
    if level.startswith("psychlab"):
        gazer = Gazer(lab)
        gazer.look(*CROSS)  # which begins the trial
        gazer.look(0.5, 0.45)
    return lab.observations()["RGB_INTERLEAVED"]


def _edges(frame: np.ndarray) -> float:
    """How much differs from its neighbours."""
    grey = frame.astype(float).mean(axis=2)
    return float((np.abs(np.diff(grey, axis=0)) > 8).mean() + (np.abs(np.diff(grey, axis=1)) > 8).mean())


def write_sheet(path: Path) -> None:
    """Draws all thirty, five a row, each under its name."""
    rows = -(-len(DMLAB30_LEVELS) // _COLUMNS)
    cell = (_WIDTH + _GAP, _HEIGHT + _TITLE + _GAP)
    sheet = Image.new("RGB", (_COLUMNS * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, level in enumerate(DMLAB30_LEVELS):
        x, y = _GAP + number % _COLUMNS * cell[0], _GAP + number // _COLUMNS * cell[1]
        pen.text((x, y), level, fill="black", font_size=11)
        sheet.paste(Image.fromarray(frame_of(level)), (x, y + _TITLE))
    sheet.quantize(192).save(path, optimize=True)
