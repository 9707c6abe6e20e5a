"""Where pictures go: an MP4 file that browsers play, or a window. Pictures are uint8 [height, width, 3], RGB."""

from __future__ import annotations

import os
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np


class WindowClosed(Exception):  # noqa: N818 - not an error: the user has seen enough
    """The user closed the window, or pressed Escape or q."""


class ScreenError(RuntimeError):
    """A file cannot be written, or a window cannot be opened; the message says which and what to do."""


class Screen(Protocol):
    """Something that takes one picture after the other, all of one size; as a context it ends what it shows."""

    def show(self, picture: np.ndarray) -> None:
        """Takes the next picture."""
        ...

    def __enter__(self) -> Screen: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class VideoFile:
    """An MP4 file (H.264, yuv420p, its index in front): written beside its name, and renamed when the context ends well.

    The same pictures give the same file, byte for byte, on the same machine.
    Where the context ends with an exception, Ctrl-C too, nothing is left, and an older file of that name stays.
    """

    def __init__(self, path: Path, fps: float):
        """Opens the file beside its name.

        Args:
            path: of the finished file; missing folders are made.
            fps: pictures a second.

        Raises:
            ScreenError: the file cannot be written there.
        """
        import av

        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._rate = Fraction(fps).limit_denominator(1000)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._temporary), "w", format="mp4", options={"movflags": "faststart"})
        except OSError as exc:
            raise ScreenError(f"--record: {path} cannot be written: {exc}") from exc
        self._stream: av.VideoStream | None = None

    def show(self, picture: np.ndarray) -> None:
        """Adds a picture; an odd width or height, which yuv420p has no room for, gets one more black column or row."""
        import av

        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))
        if self._stream is None:
            # quality 18 of 51: no difference is seen, and a minute of small pictures stays below some megabytes. x264's
            # macroblock tree reads memory that was never written: with it, the same pictures give one file or another.
            options = {"crf": "18", "preset": "veryfast", "mbtree": "0"}
            self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None and self._stream is not None:
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


class Window:
    """A window that shows pictures at a given pace."""

    def __init__(self, title: str, fps: float):
        """Prepares the window, which opens with the first picture.

        Args:
            title: of the window.
            fps: pictures a second; a slower environment is waited for.
        """
        self._title = title
        self._seconds = 1.0 / fps
        self._due = time.monotonic()

    def show(self, picture: np.ndarray) -> None:
        """Shows a picture when its time has come.

        Raises:
            WindowClosed: the user wants to see no more.
            ScreenError: no window can be opened.
        """
        import pygame

        size = (picture.shape[1], picture.shape[0])
        surface = pygame.display.get_surface() if pygame.display.get_init() else None
        try:
            if surface is None or surface.get_size() != size:  # an environment that draws with pygame may have ended it
                pygame.display.init()
                surface = pygame.display.set_mode(size)
                pygame.display.set_caption(self._title)
        except pygame.error as exc:
            raise ScreenError(f"no window can be opened ({exc}); --record writes a video instead") from exc
        pygame.surfarray.blit_array(surface, picture.swapaxes(0, 1))
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due, time.monotonic() - self._seconds) + self._seconds
        pygame.display.flip()
        for event in pygame.event.get():
            wants_key = event.type == pygame.KEYDOWN and event.key in (pygame.K_ESCAPE, pygame.K_q)
            if event.type == pygame.QUIT or wants_key:
                raise WindowClosed

    def __enter__(self) -> Window:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import pygame

        pygame.display.quit()


def has_display() -> bool:
    """Whether windows can be expected to open here."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
