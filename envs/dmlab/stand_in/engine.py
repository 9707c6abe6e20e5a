"""`Lab`: the Python interface of `deepmind_lab.Lab`, played by ViZDoom.

A stand-in, for machines without DeepMind Lab: same names, arguments, errors, observations, actions, episode lengths, objects and
rewards; not the same pixels. See README.md for every known difference. Scores on it are not DMLab-30 scores.
"""

from __future__ import annotations

import atexit
import os
import secrets
import weakref
from typing import Any

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.acs import picked_items
from sf_fixpo.envs.dmlab.stand_in.doom import LARGEST_SIZE, Doom
from sf_fixpo.envs.dmlab.stand_in.levels import LEVELS, episode_rng, find_level
from sf_fixpo.envs.dmlab.stand_in.motion import (
    DEGREES_PER_PIXEL,
    FRAMES_PER_TIC,
    Vector,
    Walker,
    wish_direction,
)
from sf_fixpo.envs.dmlab.stand_in.panel import PanelLevel, PanelView
from sf_fixpo.envs.dmlab.stand_in.resources import EYE_HEIGHT, OBJECTS
from sf_fixpo.envs.dmlab.stand_in.scene import Level, Pose, Scene

_ACTIONS = (
    ("LOOK_LEFT_RIGHT_PIXELS_PER_FRAME", -512, 512),
    ("LOOK_DOWN_UP_PIXELS_PER_FRAME", -512, 512),
    ("STRAFE_LEFT_RIGHT", -1, 1),
    ("MOVE_BACK_FORWARD", -1, 1),
    ("FIRE", 0, 1),
    ("JUMP", 0, 1),
    ("CROUCH", 0, 1),
)
_LOWEST = np.array([low for _, low, _ in _ACTIONS], dtype=np.intc)
_HIGHEST = np.array([high for _, _, high in _ACTIONS], dtype=np.intc)

# Without a report from the engine nobody sees a pickup. In so few tics the player comes no farther than 43 units, so that objects
# 150 apart with a reach of 47 are never touched both between two reports. `Level.watchful` is asked before every tic: a level
# whose objects stand closer says yes while there is still more than one pickup to go before something happens.
_MOST_UNSEEN_TICS = 4

# The engine turns in 65536ths of a circle and cuts off the rest.
_UNITS_PER_DEGREE = 65536 / 360

# Closed at exit, so that the temporary directory stays clean when a caller forgets to.
_open_labs: weakref.WeakSet[Lab] = weakref.WeakSet()


class Lab:
    """A DeepMind Lab environment."""

    def __init__(
        self,
        level: str,
        observations: list[str],
        config: dict[str, str] | None = None,
        renderer: str = "software",
        level_cache: Any = None,
        temp_folder: str | None = None,
    ):
        """Starts the engine; `reset` starts an episode.

        Args:
            level: such as `contributed/dmlab30/rooms_collect_good_objects_train`; the folder may be left off.
            observations: names of the observations to give, from `observation_spec`.
            config: string to string: `width`, `height` (pixels), `allowHoldOutLevels` (`true` for a test level), `mixerSeed`
                (another number, other episodes of the same seeds); others are accepted and unused.
            renderer: `software` or `hardware`; here both are software.
            level_cache: accepted and never asked: there is no map that takes long to build.
            temp_folder: where the engine's temporary folder goes; None for the system's.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an unknown observation or renderer, or a size or mixer seed that is no such number.
            RuntimeError: an unknown level, a test level without leave, or the engine does not start.
        """
        del level_cache
        config = {} if config is None else config
        _check_types(level, observations, config)
        if renderer not in ("software", "hardware"):
            raise ValueError(f"renderer must be 'software' or 'hardware', not {renderer!r}")
        level_class = find_level(level)
        if level_class is None:
            known = ", ".join(sorted(LEVELS))
            raise RuntimeError(f'Failed to init environment - "Level not found: {level}" (the ViZDoom stand-in has: {known})')
        if level_class.hold_out and config.get("allowHoldOutLevels") != "true":
            raise RuntimeError(
                f'Failed to init environment - "{level} is a hold-out level: set config allowHoldOutLevels to true"'
            )
        self._width, self._height = _size(config, "width", 320), _size(config, "height", 240)
        specs = {spec["name"] for spec in self.observation_spec()}
        for name in observations:
            if name not in specs:
                raise ValueError(f"Unknown observation {name!r}.")
        self._mixer = _mixer_seed(config)
        self._level_name = level
        self._observations = tuple(observations)
        self._running = False
        self._frame = 0
        self._closed = False
        self._owner = os.getpid()
        self._open(level_class, temp_folder)
        _open_labs.add(self)

    def __new__(cls, level: str, *args: Any, **kwargs: Any) -> Lab:
        """A `PanelLab` for a level that is played by looking at a panel."""
        del args, kwargs
        if cls is Lab and isinstance(level, str) and issubclass(find_level(level) or Level, PanelLevel):
            return object.__new__(PanelLab)
        return object.__new__(cls)

    def _open(self, level_class: Any, temp_folder: str | None) -> None:
        """Makes the level and starts the engine."""
        self._level: Level = level_class()
        self._scene: Scene | None = None
        self._doom = Doom(self._width, self._height, temp_folder)

    def observation_spec(self) -> list[dict[str, Any]]:
        """Name, shape and dtype of every observation that can be asked for."""
        h, w = self._height, self._width
        return [
            {"name": "RGB_INTERLEAVED", "shape": (h, w, 3), "dtype": np.uint8},
            {"name": "RGB", "shape": (3, h, w), "dtype": np.uint8},
            {"name": "INSTR", "shape": (), "dtype": str},
            {"name": "DEBUG.POS.TRANS", "shape": (3,), "dtype": np.float64},
            {"name": "DEBUG.POS.ROT", "shape": (3,), "dtype": np.float64},
        ]

    def action_spec(self) -> list[dict[str, Any]]:
        """Name and range of the seven numbers of an action."""
        return [{"name": name, "min": low, "max": high} for name, low, high in _ACTIONS]

    def num_steps(self) -> int:
        """Frames since the last reset."""
        return self._frame

    def is_running(self) -> bool:
        """Whether an episode is going on."""
        return self._running

    def events(self) -> list[tuple[str, list[Any]]]:
        """Events of the last step: this engine has none."""
        return []

    def properties(self) -> dict[str, str]:
        """The level's properties: this engine has none."""
        return {}

    def reset(self, episode: int = -1, seed: int | None = None) -> bool:
        """Starts an episode.

        Args:
            episode: its number; accepted and unused, as no level here depends on it.
            seed: a Python int in [0, 2**31) that decides everything in the episode; None draws one.

        Returns:
            True.

        Raises:
            ValueError: a seed of another type or out of range.
            RuntimeError: the Lab is closed, or the engine is gone.
        """
        del episode
        if seed is None:
            seed = secrets.randbelow(2**31)
        # bool is an int to Python, and np.int64 is not one to DeepMind Lab.
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise ValueError(f"seed must be a Python int in [0, 2**31), not {seed!r} of type {type(seed).__name__}")
        self._check_open()
        self._running = False
        self._seed = seed
        self._frame = 0
        self._begin(episode_rng(self._level_name, seed, self._mixer))
        self._running = True
        return True

    def _begin(self, rng: np.random.Generator) -> None:
        """Begins the level's episode."""
        doom = self._engine()
        self._enter(doom, self._level.start(rng))
        self._image = self._view(doom)

    def _view(self, doom: Doom) -> np.ndarray:
        """The frame at the last update, with what the level draws over it."""
        image = doom.frame()
        self._level.paint(image)
        return image

    def _enter(self, doom: Doom, scene: Scene) -> None:
        """Puts the player at the start of a scene, at rest and looking straight ahead."""
        self._scene = scene
        doom.load(scene.wad(), self._seed)
        self._counts, self._item_counts = doom.counts(), doom.item_counts()
        self._walker = Walker()
        self._yaw = doom.pose()[3]
        self._wishes: list[Vector] = []
        self._unseen = 0
        # Degrees asked for and not yet made, right and up: maps know whole degrees, and the next tic makes up for the rest.
        self._turn, self._look = round(scene.start[2]) - scene.start[2], 0.0

    def step(self, action: np.ndarray, num_steps: int = 1) -> float:
        """Repeats an action for a number of frames, or until the episode ends.

        Args:
            action: np.intc (7,), see `action_spec`; values out of range are brought into it.
            num_steps: frames.

        Returns:
            The sum of the rewards.

        Raises:
            ValueError: an action of another dtype or shape, or less than one frame.
            RuntimeError: no episode is going on, or the engine is gone.
        """
        if not isinstance(action, np.ndarray) or action.dtype != np.intc or action.shape != (len(_ACTIONS),):
            raise ValueError(f"action must be an np.intc array of shape ({len(_ACTIONS)},)")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, not {num_steps}")
        self._check_open()
        if not self._running:
            raise RuntimeError("Environment in wrong status for call to step(): no episode is running")
        reward = self._play([int(value) for value in np.clip(action, _LOWEST, _HIGHEST)], num_steps)
        self._running = self._frame < self._level.last_frame()
        return reward

    def _play(self, values: list[int], num_steps: int) -> float:
        """Lets up to so many frames pass; returns their rewards."""
        doom = self._engine()
        self._level.act(values)
        if not self._level.can_jump:
            values[5] = values[6] = 0
        reward, remaining, updated = 0.0, num_steps, False
        while remaining and self._frame < self._level.last_frame():
            remaining -= 1
            self._frame += 1
            self._plan_frame(values)
            if self._frame % FRAMES_PER_TIC == 0:
                # The last tic of the step; with the others the engine's report would be thrown away, and it costs more than
                # the tic. Only the pickup that ends the episode has to be seen in its own tic.
                last = min(remaining, self._level.last_frame() - self._frame) < FRAMES_PER_TIC
                seen = last or self._level.watchful() or self._unseen + 1 >= _MOST_UNSEEN_TICS
                reward += self._tic(doom, values, update=seen)
                updated = updated or last
        if updated:
            self._image = self._view(doom)
        return reward

    def _plan_frame(self, values: list[int]) -> None:
        """Adds one frame of an action to what the next tic has to do."""
        look_right, look_down, strafe, forward = values[:4]
        if self._level.holds():
            strafe = forward = 0
        self._turn += look_right * DEGREES_PER_PIXEL
        self._look -= look_down * DEGREES_PER_PIXEL
        self._wishes.append(wish_direction(forward, strafe, self._yaw - self._turn))

    def _tic(self, doom: Doom, values: list[int], update: bool) -> float:
        """Makes the engine do what is planned; returns the reward that came to light."""
        turn_units, look_units = round(self._turn * _UNITS_PER_DEGREE), round(self._look * _UNITS_PER_DEGREE)
        self._turn -= turn_units / _UNITS_PER_DEGREE
        self._look -= look_units / _UNITS_PER_DEGREE
        self._yaw -= turn_units / _UNITS_PER_DEGREE
        forward, right = self._walker.command(self._wishes, self._yaw)
        self._wishes = []
        for move in self._level.moves(self._frame):
            doom.move(*move)
        doom.tic((forward, right, _degrees(turn_units), _degrees(look_units), values[5], values[6]), update)
        self._unseen = 0 if update else self._unseen + 1
        if not update:
            return 0.0
        self._walker.correct(doom.velocity())
        before, self._counts = self._counts, doom.counts()
        items_before, self._item_counts = self._item_counts, doom.item_counts()
        items = picked_items(items_before, self._item_counts) if self._item_counts != items_before else ()
        x, y, _, yaw, pitch = doom.pose()
        pose = Pose(x, y, yaw, pitch)
        due = self._level.elapsed(self._frame, pose)
        if self._counts == before and not items and due is None:
            return 0.0
        return self._report(doom, pose, before, items) + (due or 0.0)

    def _report(self, doom: Doom, pose: Pose, before: tuple[int, ...], items: tuple[int | None, ...]) -> float:
        """Tells the level what was picked up since the counters stood at `before`, and enters the world that follows."""
        reward = self._level.took(items, self._frame, pose) if items else 0.0
        for name, old, new in zip(OBJECTS, before, self._counts, strict=True):
            if new > old:
                reward += self._level.picked_up(name, new - old, self._frame, pose)
        scene = self._level.next_scene(pose)
        if scene is not None:
            self._enter(doom, scene)
        return reward

    def observations(self) -> dict[str, Any]:
        """The observations asked for, by name.

        Raises:
            RuntimeError: no episode is going on.
        """
        self._check_open()
        if not self._running:
            raise RuntimeError("Environment in wrong status for call to observations(): no episode is running")
        return {name: self._observation(name) for name in self._observations}

    def _observation(self, name: str) -> Any:
        if name == "RGB_INTERLEAVED":
            return self._image.copy()
        if name == "RGB":
            return np.ascontiguousarray(self._image.transpose(2, 0, 1))
        if name == "INSTR":
            return self._level.instruction()
        x, y, z, yaw, pitch = self._pose()
        if name == "DEBUG.POS.TRANS":
            return np.array([x, y, z + EYE_HEIGHT])
        return np.array([pitch, (yaw + 180.0) % 360.0 - 180.0, 0.0])

    def _pose(self) -> tuple[float, float, float, float, float]:
        """x, y, z of the player's feet (units), yaw and pitch (degrees, down is positive)."""
        return self._engine().pose()

    def close(self) -> None:
        """Stops the engine and removes its files; does nothing a second time, or in a forked child."""
        doom, self._doom, self._running, self._closed = getattr(self, "_doom", None), None, False, True
        if doom is not None and os.getpid() == self._owner:
            doom.close()

    def __del__(self) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Lab is closed")

    def _engine(self) -> Doom:
        if self._doom is None:
            raise RuntimeError("this Lab is closed")
        return self._doom


class PanelLab(Lab):
    """A Lab whose player can only look, at a panel; nothing but NumPy plays it."""

    def _open(self, level_class: Any, temp_folder: str | None) -> None:
        del temp_folder
        self._level: Any = level_class()
        self._head = PanelView(self._level, self._width, self._height)
        self._doom = None

    def _begin(self, rng: np.random.Generator) -> None:
        self._head.start(rng)
        self._image = self._head.view()

    def _play(self, values: list[int], num_steps: int) -> float:
        reward = 0.0
        for _ in range(num_steps):
            if self._frame >= self._level.last_frame():
                break
            self._frame += 1
            reward += self._head.frame(values[0], values[1], self._frame)
        self._image = self._head.view()
        return reward

    def _pose(self) -> tuple[float, float, float, float, float]:
        return 0.0, 0.0, 0.0, -self._head.yaw, self._head.pitch


def _check_types(level: Any, observations: Any, config: Any) -> None:
    """Refuses what the C interface of DeepMind Lab refuses.

    Raises:
        TypeError: what is wrong.
    """
    if not isinstance(level, str):
        raise TypeError(f"level must be a str, not {type(level).__name__}")
    if not isinstance(observations, list):
        raise TypeError(f"observations must be a list, not {type(observations).__name__}")
    if not isinstance(config, dict):
        raise TypeError(f"config must be a dict, not {type(config).__name__}")
    for key, value in config.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"config keys and values must be strings, not {key!r}: {value!r}")


def _size(config: dict[str, str], key: str, default: int) -> int:
    """A frame size from the config, pixels.

    Raises:
        ValueError: not a number in the range the engine can do.
    """
    largest = LARGEST_SIZE[0 if key == "width" else 1]
    text = config.get(key, str(default))
    if not text.isdecimal() or not 1 <= int(text) <= largest:
        raise ValueError(f"config {key} must be a number from 1 to {largest}, not {text!r}")
    return int(text)


def _mixer_seed(config: dict[str, str]) -> int:
    """The mixer seed of the config, 0 where there is none; a ValueError where it is no number below 2**31."""
    text = config.get("mixerSeed", "0")
    if not text.isdecimal() or int(text) >= 2**31:
        raise ValueError(f"config mixerSeed must be a number below 2**31, not {text!r}")
    return int(text)


def _degrees(units: int) -> float:
    """Degrees that the engine, which rounds downwards, makes exactly this many 65536ths of a circle."""
    return (units + 0.5) / _UNITS_PER_DEGREE if units else 0.0


@atexit.register
def _close_all() -> None:
    for lab in list(_open_labs):
        lab.close()
