"""The Gymnasium environment around a Lab, real or stand-in: it uses nothing but what both have."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from sf_examples.dmlab.dmlab30 import DMLAB_INSTRUCTIONS, DMLAB_MAX_INSTRUCTION_LEN, DMLAB_VOCABULARY_SIZE
from sf_examples.dmlab.dmlab_utils import string_to_hash_bucket
from sf_examples.dmlab.wrappers.reward_shaping import RAW_SCORE_SUMMARY_KEY_SUFFIX, DmlabRewardShapingWrapper

from sf_fixpo.envs.dmlab import engines
from sf_fixpo.envs.dmlab.broken import write_episode
from sf_fixpo.envs.dmlab.cache.level_cache import LevelCache, make_level_cache
from sf_fixpo.envs.dmlab.loader import COMPILER_FAILED
from sf_fixpo.envs.dmlab.names import is_hold_out, level_path, levels_of, needs_dataset
from sf_fixpo.envs.dmlab.workspace import Workspace
from sf_fixpo.envs.seeding import env_seeds

PIXELS = "RGB_INTERLEAVED"
TASK_ID = "task_id"

# Chooses among the variations of a level (themes, maps) those that are kept for evaluation; IMPALA's evaluation has this number.
_EVALUATION_MIXER_SEED = 0x600D5EED


class DmLabEnv(gymnasium.Env):
    """One level of DMLab-30.

    Observations: `obs`, uint8, (3, height, width) or, with `--pixel_format=HWC`, (height, width, 3); `INSTR`, int32 (16,), the
    words of the instruction as sample-factory's hash buckets, 0 after the last, with `--dmlab_with_instructions`; `task_id`,
    int32 (1,), in runs on several levels. Actions: an index into sample-factory's action set. An episode that ends is
    `terminated`, never `truncated`: DeepMind Lab does not say whether the last goal or the clock ended it, and in these levels
    the clock is part of the task. The observation of the last step is the frame before it, because DeepMind Lab gives none after
    the end.

    Attributes:
        level_name: such as `rooms_collect_good_objects_train`.
        task_id: number of the level in a run on several; 0 in a run on one.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        level: str,
        cfg: Any,
        env_config: Any = None,
        render_mode: str | None = None,
        task_id: int = 0,
        num_tasks: int = 1,
    ):
        """Starts the engine.

        Args:
            level: name of a DMLab-30 level.
            cfg: the parsed flags; `dmlab_engine` may still be `auto`.
            env_config: sample-factory's record with `env_id`; None when only the spaces are wanted.
            render_mode: `rgb_array` or None.
            task_id: number of the level among those of the run.
            num_tasks: how many levels the run has.

        Raises:
            ImportError: the engine is not installed.
            RuntimeError: the engine cannot start the level.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: must be None or 'rgb_array'")
        engine = engines.resolve_engine(cfg)
        module = engines.engine_module(engine)
        tables = engines.sample_factory_tables()
        actions = tables.EXTENDED_ACTION_SET if cfg.dmlab_extended_action_set else tables.ACTION_SET
        self.level_name = level
        self.task_id = task_id
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(len(actions))
        self._channels_first = cfg.pixel_format == "CHW"
        shape = (3, cfg.res_h, cfg.res_w) if self._channels_first else (cfg.res_h, cfg.res_w, 3)
        observed: dict[str, gymnasium.Space] = {"obs": gymnasium.spaces.Box(0, 255, shape, np.uint8)}
        if cfg.dmlab_with_instructions:
            shape = (DMLAB_MAX_INSTRUCTION_LEN,)
            observed[DMLAB_INSTRUCTIONS] = gymnasium.spaces.Box(0, DMLAB_VOCABULARY_SIZE, shape, np.int32)
        if num_tasks > 1:
            observed[TASK_ID] = gymnasium.spaces.Box(0, num_tasks - 1, (1,), np.int32)
        self.observation_space = gymnasium.spaces.Dict(observed)
        self._observed = frozenset(observed)
        self._engine_observations = [PIXELS, DMLAB_INSTRUCTIONS] if cfg.dmlab_with_instructions else [PIXELS]
        self._instruction = ""
        self._actions = np.array(actions, dtype=np.intc)
        self._frameskip = int(cfg.env_frameskip)
        self._cfg, self._env_config = cfg, env_config
        self._seeds: np.random.Generator | None = None
        self._frame = np.zeros((cfg.res_h, cfg.res_w, 3), np.uint8)
        self._return = 0.0
        self._frames = 0
        self._episode_seed = 0
        self._played: list[int] = []  # actions of the episode
        self._cache: LevelCache | None = None
        self.engine = engine  # results name it
        self._remove_files: Callable[[], Any] = lambda: None
        temp_folder = None
        if engine == engines.DEEPMIND_LAB:
            self._cache = make_level_cache(cfg, level)
            # Killed, or ended by the engine itself, a process leaves the engine's files behind: the next one finds them here.
            workspace = Workspace()
            temp_folder = str(workspace.path)
            self._remove_files = weakref.finalize(self, workspace.remove)
        self._lab = module.Lab(
            level_path(level),
            self._engine_observations,
            config=lab_config(level, cfg, env_config),
            renderer=cfg.dmlab_renderer,
            level_cache=self._cache,
            temp_folder=temp_folder,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: mixed with `--seed` and the environment's number: sample-factory passes only that number, the same in every
                run. None goes on in the sequence of episodes that these began.
            options: unused.

        Returns:
            The observation, and an empty info.

        Raises:
            RuntimeError: the engine cannot start an episode; the message names the level and what may be missing.
        """
        del options
        if seed is not None or self._seeds is None:
            self._seeds = np.random.default_rng(env_seeds(self._cfg, self._env_config, salt=seed or 0)[0])
        # DeepMind Lab takes nothing but a Python int below 2**31.
        episode_seed = int(self._seeds.integers(2**31)) if self._cache is None else self._cache.claim_seed(self._seeds)
        return self.begin(episode_seed), {}

    def begin(self, episode_seed: int) -> dict[str, np.ndarray]:
        """Starts the episode of a seed, as `repeat` does; returns the observation.

        Args:
            episode_seed: in [0, 2**31).

        Raises:
            RuntimeError: as `reset`.
        """
        self._return, self._frames, self._episode_seed = 0.0, 0, episode_seed
        self._played.clear()
        try:
            self._lab.reset(seed=episode_seed)
            self._observe()
        except Exception as error:
            hint = start_hint(self.level_name, str(error), self._cfg)
            said = f"{self.level_name}, seed {episode_seed}: no episode could be started: {_words(error)}"
            raise RuntimeError(" ".join(filter(None, [said, hint, self._how_to_repeat()]))) from error
        return self._observation()

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Repeats an action for `--env_frameskip` frames.

        Args:
            action: index into the action set.

        Returns:
            Observation, summed reward, whether the episode ended, False, and the info: `num_frames`, and at the end
            `episode_extra_stats` with the undiscounted, unshaped return and the length in frames.

        Raises:
            RuntimeError: no episode is going on, or the engine is gone; the message says where, and how to repeat it.
        """
        self._played.append(int(np.asarray(action).item()))
        try:
            reward = float(self._lab.step(self._actions[self._played[-1]], num_steps=self._frameskip))
            terminated = not self._lab.is_running()
            if not terminated:
                self._observe()
        except Exception as error:
            where = f"{self.level_name}, seed {self._episode_seed}, in the step from frame {self._frames}"
            raise RuntimeError(" ".join(filter(None, [f"{where}: {_words(error)}", self._how_to_repeat()]))) from error
        self._return += reward
        self._frames += self._frameskip
        info: dict[str, Any] = {"num_frames": self._frameskip}
        if terminated:
            # sample-factory's own key for this, sorted to the end of the summaries; its aggregation parses it.
            key = f"z_{self.task_id:02d}_{self.level_name}"
            stats = {f"{key}_{RAW_SCORE_SUMMARY_KEY_SUFFIX}": self._return, f"{key}_len": self._frames}
            info["episode_extra_stats"] = stats
        return self._observation(), reward, terminated, False, info

    def render(self) -> np.ndarray | None:
        """The last frame, uint8 (height, width, 3) RGB, with render mode `rgb_array`; else None."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Stops the engine and removes its files."""
        self._lab.close()
        self._remove_files()

    def _how_to_repeat(self) -> str:
        """Writes down the episode so far; the command that plays it again."""
        return write_episode(self._cfg, self.level_name, self.engine, self._episode_seed, self._played)

    def _observe(self) -> None:
        """Takes what the engine shows now, which it does not show again after the end."""
        observations = self._lab.observations()
        self._frame = observations[PIXELS]
        self._instruction = observations.get(DMLAB_INSTRUCTIONS, "")

    def _observation(self) -> dict[str, np.ndarray]:
        frame = np.ascontiguousarray(self._frame.transpose(2, 0, 1)) if self._channels_first else self._frame
        observation = {"obs": frame}
        if DMLAB_INSTRUCTIONS in self._observed:
            observation[DMLAB_INSTRUCTIONS] = np.array(word_buckets(self._instruction), np.int32)
        if TASK_ID in self._observed:
            observation[TASK_ID] = np.array([self.task_id], np.int32)
        return observation


def _words(error: Exception) -> str:
    """What an engine said, or what went wrong in a level of the stand-in."""
    return str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"


def start_hint(level: str, said: str, cfg: Any) -> str:
    """What may be behind an episode that could not be started; empty where nothing is known.

    Args:
        level: its name.
        said: by the engine.
        cfg: the parsed flags.
    """
    hints = []
    if needs_dataset(level):
        hints.append(f"[this level shows the images of Brady et al. 2008, --dmlab_dataset={cfg.dmlab_dataset}]")
    if "compile map" in said:
        hints.append(f"[{COMPILER_FAILED}]")
    return " ".join(hints)


@lru_cache(maxsize=4096)
def word_buckets(instruction: str) -> tuple[int, ...]:
    """An instruction as the network reads it: a number in [1, 999] for each of its first 16 words, then zeros."""
    buckets = [string_to_hash_bucket(word, DMLAB_VOCABULARY_SIZE) for word in instruction.split()[:DMLAB_MAX_INSTRUCTION_LEN]]
    return (*buckets, *[0] * (DMLAB_MAX_INSTRUCTION_LEN - len(buckets)))


def lab_config(level: str, cfg: Any, env_config: Any = None) -> dict[str, str]:
    """The engine's settings: strings, as DeepMind Lab wants them."""
    config = {
        "width": str(cfg.res_w),
        "height": str(cfg.res_h),
        "datasetPath": os.path.expanduser(cfg.dmlab_dataset),
    }
    if cfg.dmlab_renderer == "hardware":
        number = 0 if env_config is None else env_config.vector_index
        config["gpuDeviceIndex"] = str(cfg.dmlab_gpus[number % len(cfg.dmlab_gpus)])
    if is_hold_out(level):
        config.update(allowHoldOutLevels="true", mixerSeed=str(_EVALUATION_MIXER_SEED))
    return config


def choose_task(num_tasks: int, cfg: Any, env_config: Any) -> int:
    """Which of a run's levels an environment plays: all in turn, or with `--dmlab_one_task_per_worker` one for each worker."""
    if env_config is None:
        return 0
    number = env_config.worker_index if cfg.dmlab_one_task_per_worker else env_config.env_id
    return number % num_tasks


def make_env(full_env_name: str, cfg: Any, env_config: Any = None, render_mode: str | None = None) -> gymnasium.Env:
    """Makes one environment; sample-factory's factory signature.

    Args:
        full_env_name: a level, or a set of levels, of which the environment plays one.
        cfg: the parsed flags.
        env_config: sample-factory's record with `env_id`, or None.
        render_mode: `rgb_array` or None.

    Returns:
        A `DmLabEnv`, with `--dmlab_optimistic_rewards` inside sample-factory's reward wrapper.

    Raises:
        ValueError: no such level.
        ImportError: the engine is not installed.
        RuntimeError: the engine cannot start the level.
    """
    levels = levels_of(full_env_name, cfg.dmlab_levels)
    if not levels:
        raise ValueError(f"--env={full_env_name}: not a level of DMLab-30")
    task = choose_task(len(levels), cfg, env_config)
    env: gymnasium.Env = DmLabEnv(levels[task], cfg, env_config, render_mode, task, len(levels))
    return DmlabRewardShapingWrapper(env) if cfg.dmlab_optimistic_rewards else env
