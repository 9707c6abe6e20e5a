"""The levels the stand-in engine can play: what stands where, what it is worth, when the episode ends.

A level is a class with the few methods of `scene.Level`; `LEVELS` maps DeepMind Lab's level names to them. Adding a level means
adding a class (and, where it needs a new object, one drawing in `sprites.py` and one name in `resources.OBJECTS`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sf_fixpo.envs.dmlab.stand_in.keys_doors import KeysDoorsPuzzle
from sf_fixpo.envs.dmlab.stand_in.language import SelectDescribedObject, SelectLocatedObject
from sf_fixpo.envs.dmlab.stand_in.language_tasks import AnswerQuantitativeQuestion, ExecuteRandomTask
from sf_fixpo.envs.dmlab.stand_in.lasertag import OneOpponentLarge, OneOpponentSmall, ThreeOpponentsLarge, ThreeOpponentsSmall
from sf_fixpo.envs.dmlab.stand_in.maze_levels import (
    GoalLocations,
    GoalLocationsLarge,
    ObjectLocations,
    ObjectLocationsLarge,
    ObstructedGoals,
    ObstructedGoalsLarge,
)
from sf_fixpo.envs.dmlab.stand_in.motion import FRAMES_PER_SECOND
from sf_fixpo.envs.dmlab.stand_in.natlab import FixedLargeMap, VaryingMapRandomized, VaryingMapRegrowth
from sf_fixpo.envs.dmlab.stand_in.object_rewards import ObjectRewardsFew, ObjectRewardsMany
from sf_fixpo.envs.dmlab.stand_in.panel import PanelLevel
from sf_fixpo.envs.dmlab.stand_in.psychlab_images import ArbitraryVisuomotorMapping, ContinuousRecognition
from sf_fixpo.envs.dmlab.stand_in.psychlab_patterns import SequentialComparison, VisualSearch
from sf_fixpo.envs.dmlab.stand_in.resources import PIXEL_STRETCH
from sf_fixpo.envs.dmlab.stand_in.rooms_levels import (
    ExploitDeferredEffectsTest,
    ExploitDeferredEffectsTrain,
    SelectNonmatchingObject,
)
from sf_fixpo.envs.dmlab.stand_in.scene import Level, Pose, Scene
from sf_fixpo.envs.dmlab.stand_in.skymaze import IrreversiblePathHard, IrreversiblePathVaried
from sf_fixpo.envs.dmlab.stand_in.wad import Room
from sf_fixpo.envs.dmlab.stand_in.watermaze import Watermaze

LEVEL_FOLDER = "contributed/dmlab30/"


@dataclass(frozen=True)
class Decor:
    """Texture names of a room."""

    wall: str
    floor: str


NORMAL = Decor("WALLGREY", "FLOORBRN")
RED_BLUE = Decor("WALLRED", "FLOORBLU")


@dataclass(frozen=True)
class CollectSetting:
    """One of the settings an episode of rooms_collect_good_objects is drawn from."""

    good: str
    bad: str
    decor: Decor


class CollectGoodObjects(Level):
    """rooms_collect_good_objects: ten good objects at +1, ten bad ones at -1, and the end shortly after the tenth pickup."""

    frames = 60 * FRAMES_PER_SECOND
    settings: tuple[CollectSetting, ...]

    _SIZE = (1584.0, 1328.0)
    _GRID = (10, 9)
    _SPACING = 150.0
    _OBJECTS_A_KIND = 10
    _PICKUPS_TO_END = 10
    _FRAMES_AFTER_LAST = 12  # 0.2 s
    _HEIGHT = 192

    def start(self, rng: np.random.Generator) -> Scene:
        """Draws the setting, the cells and the yaw."""
        setting = self.settings[int(rng.integers(len(self.settings)))]
        self._rewards: Mapping[str, float] = {setting.good: 1.0, setting.bad: -1.0}
        self._pickups = 0
        self._end = self.frames
        columns, rows = self._GRID
        count = 2 * self._OBJECTS_A_KIND
        cells = rng.permutation(columns * rows)[: count + 1]
        places = [self._place(int(cell)) for cell in cells]
        names = [setting.good] * self._OBJECTS_A_KIND + [setting.bad] * self._OBJECTS_A_KIND
        width, depth = self._SIZE
        room = Room(
            corners=((0.0, 0.0), (0.0, depth), (width, depth), (width, 0.0)),
            height=round(self._HEIGHT / PIXEL_STRETCH),
            wall=setting.decor.wall,
            floor=setting.decor.floor,
            ceiling="CEILING",
        )
        objects = tuple((name, x, y) for name, (x, y) in zip(names, places[1:], strict=True))
        return Scene((room,), objects, (*places[0], int(rng.integers(360))))

    def _place(self, cell: int) -> tuple[float, float]:
        """Centre of a grid cell; the grid lies in the middle of the arena."""
        columns, rows = self._GRID
        x = (self._SIZE[0] - (columns - 1) * self._SPACING) / 2 + cell % columns * self._SPACING
        y = (self._SIZE[1] - (rows - 1) * self._SPACING) / 2 + cell // columns * self._SPACING
        return x, y

    def picked_up(self, name: str, count: int, frame: int, pose: Pose) -> float:
        """One point for a good object, minus one for a bad one."""
        del pose
        self._pickups += count
        if self._pickups >= self._PICKUPS_TO_END and self._end == self.frames:
            self._end = min(frame + self._FRAMES_AFTER_LAST, self.frames)
        return self._rewards[name] * count

    def last_frame(self) -> int:
        """The clock's, or 0.2 s after the tenth pickup."""
        return self._end

    def watchful(self) -> bool:
        """Whether nine were picked up."""
        return self._pickups == self._PICKUPS_TO_END - 1


class CollectGoodObjectsTrain(CollectGoodObjects):
    """The three settings of training."""

    settings = (
        CollectSetting(good="can", bad="hat", decor=NORMAL),
        CollectSetting(good="balloon", bad="cake", decor=NORMAL),
        CollectSetting(good="balloon", bad="cake", decor=RED_BLUE),
    )


class CollectGoodObjectsTest(CollectGoodObjects):
    """The combination held out: hat and can between the other walls."""

    hold_out = True
    settings = (CollectSetting(good="can", bad="hat", decor=RED_BLUE),)


LEVELS: Mapping[str, type[Level] | type[PanelLevel]] = {
    "rooms_collect_good_objects_train": CollectGoodObjectsTrain,
    "rooms_collect_good_objects_test": CollectGoodObjectsTest,
    "rooms_select_nonmatching_object": SelectNonmatchingObject,
    "rooms_exploit_deferred_effects_train": ExploitDeferredEffectsTrain,
    "rooms_exploit_deferred_effects_test": ExploitDeferredEffectsTest,
    "language_select_described_object": SelectDescribedObject,
    "language_select_located_object": SelectLocatedObject,
    "language_execute_random_task": ExecuteRandomTask,
    "language_answer_quantitative_question": AnswerQuantitativeQuestion,
    "lasertag_one_opponent_small": OneOpponentSmall,
    "lasertag_three_opponents_small": ThreeOpponentsSmall,
    "lasertag_one_opponent_large": OneOpponentLarge,
    "lasertag_three_opponents_large": ThreeOpponentsLarge,
    "natlab_fixed_large_map": FixedLargeMap,
    "natlab_varying_map_regrowth": VaryingMapRegrowth,
    "natlab_varying_map_randomized": VaryingMapRandomized,
    "psychlab_arbitrary_visuomotor_mapping": ArbitraryVisuomotorMapping,
    "psychlab_continuous_recognition": ContinuousRecognition,
    "psychlab_sequential_comparison": SequentialComparison,
    "psychlab_visual_search": VisualSearch,
    "rooms_keys_doors_puzzle": KeysDoorsPuzzle,
    "rooms_watermaze": Watermaze,
    "skymaze_irreversible_path_hard": IrreversiblePathHard,
    "skymaze_irreversible_path_varied": IrreversiblePathVaried,
    "explore_goal_locations_small": GoalLocations,
    "explore_goal_locations_large": GoalLocationsLarge,
    "explore_object_locations_small": ObjectLocations,
    "explore_object_locations_large": ObjectLocationsLarge,
    "explore_obstructed_goals_small": ObstructedGoals,
    "explore_obstructed_goals_large": ObstructedGoalsLarge,
    "explore_object_rewards_few": ObjectRewardsFew,
    "explore_object_rewards_many": ObjectRewardsMany,
}


def find_level(path: str) -> type[Level] | type[PanelLevel] | None:
    """The class of a level given as DeepMind Lab names it, with or without its folder; None where there is none."""
    return LEVELS.get(path.removeprefix(LEVEL_FOLDER))


def episode_rng(level: str, seed: int, mixer: int = 0) -> np.random.Generator:
    """The generator of all choices in one episode: a function of the level and the two seeds only.

    Args:
        level: its name.
        seed: of the episode, at least 0.
        mixer: DeepMind Lab's mixer seed, with which the same seeds are other episodes; 0 for none.
    """
    name = level.removeprefix(LEVEL_FOLDER)
    return np.random.default_rng(np.random.SeedSequence([zlib.crc32(name.encode()), seed, *([mixer] if mixer else [])]))
