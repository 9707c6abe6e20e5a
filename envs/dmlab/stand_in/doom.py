"""One running ViZDoom process: started in a private folder, given one map after another, moved tic by tic.

The only module that imports vizdoom. Everything that goes wrong in the engine leaves here as a RuntimeError.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import vizdoom
from vizdoom import Button, GameVariable, Mode, ScreenFormat, ScreenResolution

from sf_fixpo.envs.dmlab.stand_in.acs import ANY_VARIABLE, MOVE_SCRIPT, MOVE_THREE_SCRIPT
from sf_fixpo.envs.dmlab.stand_in.resources import SLOTS, counts, resource_wad
from sf_fixpo.envs.dmlab.stand_in.wad import check_map
from sf_fixpo.envs.dmlab.workspace import Workspace

# The player takes no input during the first tics of a map.
_FIRST_TIC = 10
_MAP = "map.wad"  # in the folder that the engine runs in: a console command can hold few characters

_BUTTONS = [
    Button.MOVE_FORWARD_BACKWARD_DELTA,
    Button.MOVE_LEFT_RIGHT_DELTA,
    Button.TURN_LEFT_RIGHT_DELTA,
    Button.LOOK_UP_DOWN_DELTA,
    Button.JUMP,
    Button.CROUCH,
]
_COUNTERS = [getattr(GameVariable, f"AMMO{(i + 1) % 10}") for i in range(SLOTS)]
_ITEM_VARIABLES = [getattr(GameVariable, f"USER{i + 1}") for i in range(ANY_VARIABLE)]
_POSE = [GameVariable.POSITION_X, GameVariable.POSITION_Y, GameVariable.POSITION_Z, GameVariable.ANGLE, GameVariable.PITCH]

# The engine renders at fixed sizes only; these have the proportions 4:3 of DeepMind Lab's view.
_SIZES = [(160, 120), (200, 150), (256, 192), (320, 240), (400, 300), (512, 384), (640, 480), (800, 600), (1024, 768)]
LARGEST_SIZE = _SIZES[-1]

# Runs the engine in its folder, because it leaves a `_vizdoom` where it starts. A terminal's Ctrl-C is for the program, which
# closes the engine in its own time; a program that is killed takes the engine with it, where the system has a way to ask for it.
_LAUNCHER = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
trap '' INT TERM USR1
if setpriv --pdeathsig KILL true 2> /dev/null; then
    exec setpriv --pdeathsig KILL -- "{executable}" "$@"
fi
exec "{executable}" "$@"
"""

_ERRORS = tuple(
    getattr(vizdoom, name)
    for name in (
        "ViZDoomErrorException",
        "ViZDoomIsNotRunningException",
        "ViZDoomUnexpectedExitException",
        "SignalException",
        "MessageQueueException",
        "SharedMemoryException",
        "FileDoesNotExistException",
    )
    if hasattr(vizdoom, name)
)


def native_size(width: int, height: int) -> tuple[int, int]:
    """The smallest size the engine can render that has at least the asked number of pixels on both axes."""
    for size in _SIZES:
        if size[0] >= width and size[1] >= height:
            return size
    return LARGEST_SIZE


class Doom:
    """A ViZDoom process and the folder it lives in."""

    def __init__(self, width: int, height: int, folder: str | None = None):
        """Starts the engine.

        Args:
            width: of the frames to give, pixels.
            height: of the frames to give, pixels.
            folder: where its temporary folder goes; None for the system's.

        Raises:
            RuntimeError: the engine does not start.
        """
        self._size = (width, height)
        self._workspace = Workspace(folder)
        self._game = vizdoom.DoomGame()
        try:
            self._configure(native_size(width, height))
            with _python_signal_handlers(), _engine_errors("did not start"):
                self._game.init()
        except BaseException:
            self._workspace.remove()
            raise
        if hasattr(self._game, "get_instance_id"):
            self._workspace.note_instance(self._game.get_instance_id())

    def _configure(self, size: tuple[int, int]) -> None:
        package, path, game = Path(vizdoom.__file__).parent, self._workspace.path, self._game
        launcher = path / "launch"
        launcher.write_text(_LAUNCHER.format(executable=package / "vizdoom"), encoding="utf-8")
        launcher.chmod(0o700)
        (path / "resources.wad").write_bytes(resource_wad())
        game.set_vizdoom_path(str(launcher))
        game.set_doom_game_path(str(package / "freedoom2.wad"))
        game.set_doom_scenario_path(str(path / "resources.wad"))
        game.set_doom_config_path(str(path / "config.ini"))
        game.set_doom_map("MAP01")
        game.set_mode(Mode.PLAYER)
        game.set_episode_start_time(_FIRST_TIC)
        game.set_episode_timeout(0)
        game.set_seed(0)
        game.set_screen_resolution(getattr(ScreenResolution, "RES_{}X{}".format(*size)))
        game.set_screen_format(ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        for part in ("hud", "weapon", "crosshair", "decals", "particles", "effects_sprites", "messages", "screen_flashes"):
            getattr(game, f"set_render_{part}")(False)
        game.set_available_buttons(_BUTTONS)
        game.set_available_game_variables([])
        game.add_game_args("+movebob 0")

    def load(self, wad: bytes, seed: int) -> None:
        """Starts the map `MAP01` of a WAD.

        Args:
            wad: the file's content.
            seed: of the engine's own random numbers, in [0, 2**31).

        Raises:
            RuntimeError: the map is broken, or the engine is gone.
        """
        try:
            check_map(wad)
        except ValueError as error:
            raise RuntimeError(f"the ViZDoom engine was given {error}") from None
        with _engine_errors("could not load a map"):
            target = self._workspace.path / _MAP
            # a new file, as the engine may still have the last one open; by no rename over that one, which waits for the disk
            target.unlink(missing_ok=True)
            target.write_bytes(wad)
            if self._game.get_doom_map() != f"file:{_MAP}":
                self._game.set_doom_map(f"file:{_MAP}")
            self._game.set_seed(seed)
            self._game.new_episode()  # which reads the map; to name it anew would read it twice

    def tic(self, command: Sequence[float], update: bool) -> None:
        """Lets one tic pass.

        Args:
            command: forward, right (move commands), right turn, upward turn (degrees), jump, crouch (0 or 1).
            update: whether what the engine reports (frame, pose, counters) is to be brought up to date.

        Raises:
            RuntimeError: the engine is gone.
        """
        with _engine_errors("stopped during an episode"):
            self._game.set_action(command)
            self._game.advance_action(1, update)

    def move(self, number: int, x: int, y: int, z: int, things: int) -> None:
        """Puts the thing with a number at a place, units, with the next tic; where `things` is 3, the next two as well.

        Raises:
            RuntimeError: the engine is gone.
        """
        script = MOVE_SCRIPT if things == 1 else MOVE_THREE_SCRIPT
        with _engine_errors("stopped during an episode"):
            self._game.send_game_command(f"puke {script} {number} {x} {y} {z}")

    def frame(self) -> np.ndarray:
        """The player's view at the last update, uint8 (height, width, 3) RGB, the caller's own.

        Raises:
            RuntimeError: the engine is gone.
        """
        with _engine_errors("gave no frame"):
            state = self._game.get_state()
        if state is None:
            raise RuntimeError("the ViZDoom engine gave no frame: its episode has ended by itself")
        screen = state.screen_buffer
        if (screen.shape[1], screen.shape[0]) == self._size:
            return screen.copy()
        return cv2.resize(screen, self._size, interpolation=cv2.INTER_AREA)

    def counts(self) -> tuple[int, ...]:
        """How many of each of `resources.OBJECTS` were picked up on this map by the last update."""
        return counts(tuple(int(self._game.get_game_variable(counter)) for counter in _COUNTERS))

    def item_counts(self) -> tuple[int, ...]:
        """The variables in which the map's scripts record items, at the last update; `acs.picked_items` reads them."""
        return tuple(int(self._game.get_game_variable(variable)) for variable in _ITEM_VARIABLES)

    def pose(self) -> tuple[float, float, float, float, float]:
        """x, y, z of the player's feet (units), yaw and pitch (degrees, down is positive), at the last update."""
        with _engine_errors("does not say where the player is"):
            x, y, z, yaw, pitch = (self._game.get_game_variable(variable) for variable in _POSE)
        return x, y, z, yaw, pitch

    def velocity(self) -> tuple[float, float]:
        """Units a tic, east and north, at the last update."""
        get = self._game.get_game_variable
        return get(GameVariable.VELOCITY_X), get(GameVariable.VELOCITY_Y)

    def close(self) -> None:
        """Stops the engine and removes its folder; does nothing a second time."""
        with _python_signal_handlers(), contextlib.suppress(*_ERRORS):
            self._game.close()
        self._workspace.remove()


@contextlib.contextmanager
def _engine_errors(what: str) -> Iterator[None]:
    """Turns the engine's exceptions into a RuntimeError."""
    try:
        yield
    except _ERRORS as error:
        raise RuntimeError(f"the ViZDoom engine {what}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _python_signal_handlers() -> Iterator[None]:
    """Keeps Python's signal handlers, which the engine replaces when it starts and forgets when it stops."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
