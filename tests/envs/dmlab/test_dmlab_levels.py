"""DMLab-30 as a whole: names of all levels and sets, task ids, instructions, test variants, what levels need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cache_players import COMPILING_LAB
from sample_factory.utils.attr_dict import AttrDict
from sf_examples.dmlab.dmlab30 import DMLAB30_LEVELS, HUMAN_SCORES
from sf_examples.dmlab.dmlab_utils import string_to_hash_bucket
from test_dmlab_env import make_cfg

from sf_fixpo import train
from sf_fixpo.envs.dmlab import SUITE, engines, names
from sf_fixpo.envs.dmlab import env as dmlab_env
from sf_fixpo.envs.dmlab.env import choose_task, word_buckets
from sf_fixpo.envs.dmlab.stand_in.scene import Pose
from sf_fixpo.envs.dmlab.stand_in.watermaze import Watermaze
from sf_fixpo.envs.dmlab.workspace import FOLDER_PREFIX

REPO = Path(__file__).parents[3]

THREE = ("rooms_collect_good_objects_train", "rooms_exploit_deferred_effects_train", "rooms_select_nonmatching_object")
STAND_IN = "rooms_collect_good_objects,rooms_select_nonmatching_object,explore_goal_locations_small"


def make_env(*args) -> Any:
    return dmlab_env.make_env(*args)


def config_of(env_id, worker=0):
    return AttrDict(worker_index=worker, vector_index=env_id, env_id=env_id)


class RecordingLab:
    """Has DeepMind Lab's interface, and keeps what it was asked for: here it stands for the build that nobody has."""

    made: list

    def __init__(self, level, observations, config, renderer="software", level_cache=None, temp_folder=None):
        assert isinstance(observations, list)
        assert all(isinstance(value, str) for value in config.values())
        self.level, self.asked, self.config = level, observations, config
        self.size = int(config["height"]), int(config["width"])
        self.made.append(self)

    def reset(self, episode=-1, seed=None):
        assert type(seed) is int
        assert seed < 2**31
        self.steps = 0

    def observations(self):
        frame = np.zeros((*self.size, 3), np.uint8)
        instruction = "" if self.steps == 0 else " ".join(["pick", "the", "red", "hat"] * self.steps)
        return {name: {"RGB_INTERLEAVED": frame, "INSTR": instruction}[name] for name in self.asked}

    def step(self, action, num_steps=1):
        assert action.dtype == np.intc
        assert action.shape == (7,)
        self.steps += 1
        return 0.0

    def is_running(self):
        return self.steps < 10

    def close(self):
        pass


@pytest.fixture
def lab(monkeypatch):
    """A module `deepmind_lab` whose Labs are recorded."""
    module = ModuleType("deepmind_lab")
    made: list = []
    module.Lab = type("Lab", (RecordingLab,), {"made": made})  # type: ignore[attr-defined]
    engines.sample_factory_tables()  # which remembers whichever module it was imported beside
    monkeypatch.setitem(sys.modules, "deepmind_lab", module)
    return made


# -- names --------------------------------------------------------------------------------------------------------------------


def test_all_thirty_levels_and_their_test_variants_have_names():
    assert len(DMLAB30_LEVELS) == 30
    for level in DMLAB30_LEVELS:
        short = names.env_name(level)
        assert names.levels_of(short) == names.levels_of(f"dmlab_30_{level}") == names.levels_of(short.upper()) == (level,)
        (test,) = names.levels_of(f"{short}_test")
        assert names.is_hold_out(test)
        assert not names.is_hold_out(level)
        assert names.level_path(test) in (f"contributed/dmlab30/{test}", f"contributed/dmlab30/{level}")
        assert names.score_name(level) == names.score_name(test)
        assert names.score_name(level) in HUMAN_SCORES


def test_level_sets():
    assert names.levels_of("dmlab_30") == DMLAB30_LEVELS
    assert names.levels_of("dmlab_30_rooms") == THREE
    subset = "rooms_watermaze, language_execute_random_task,rooms_collect_good_objects_test"
    expected = ("rooms_watermaze", "language_execute_random_task", "rooms_collect_good_objects_test")
    assert names.levels_of("dmlab_30", subset) == expected
    assert names.levels_of("dmlab_30_rooms_watermaze", subset) == ("rooms_watermaze",)
    for family, count in {
        "language": 4,
        "lasertag": 4,
        "natlab": 3,
        "skymaze": 2,
        "psychlab": 4,
        "explore": 8,
        "rooms_all": 5,
    }.items():
        members = names.levels_of(f"dmlab_30_{family}")
        assert len(members) == count
        assert all(level.startswith(family.removesuffix("_all")) for level in members)
    assert SUITE.matches("dmlab_30")
    assert not SUITE.matches("dmlab_300")


def test_tasks_and_evaluation_environments():
    cfg = make_cfg(env="dmlab_30_rooms")
    assert SUITE.tasks(cfg) == THREE
    assert SUITE.evaluation_envs(cfg) == (
        "dmlab_30_rooms_collect_good_objects_test",
        "dmlab_30_rooms_exploit_deferred_effects_test",
        "dmlab_30_rooms_select_nonmatching_object_test",
    )
    assert SUITE.tasks(make_cfg()) == THREE[:1]


@pytest.mark.parametrize("env", ["dmlab_30_rooms", "dmlab_30_explore_goal_locations_small_test"])
def test_what_the_stand_in_has_is_no_fault(env):
    assert SUITE.faults(make_cfg(env=env)) == []
    assert SUITE.faults(make_cfg(env="dmlab_30", dmlab_levels=STAND_IN)) == []


def test_a_report_of_what_no_scene_of_a_level_has_is_no_reward_but_an_error():
    level, here = Watermaze(), Pose(0.0, 0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"Watermaze has no objects, and 2 'apple' came up by frame 8"):
        level.picked_up("apple", 2, 8, here)
    with pytest.raises(RuntimeError, match=r"Watermaze has no items, and \(3, None\) came up by frame 8"):
        level.took((3, None), 8, here)


def test_faults_of_levels():
    def fault(**changes):
        (found,) = SUITE.faults(make_cfg(**changes))
        return found

    assert "--dmlab_levels=rooms_watermase: rooms_watermase is not a level of DMLab-30; did you mean rooms_watermaze" in fault(
        env="dmlab_30", dmlab_levels="rooms_watermase"
    )
    assert "a level is named twice" in fault(
        env="dmlab_30", dmlab_levels="rooms_collect_good_objects,rooms_collect_good_objects_train"
    )
    assert "goes with --env=dmlab_30, not with one level" in fault(dmlab_levels=STAND_IN)
    assert not SUITE.faults(make_cfg(env="dmlab_30")), "the stand-in plays all thirty"
    playable = tuple(level for level in engines.playable_levels("vizdoom") if level != "rooms_watermaze")
    (text,) = names.level_faults("dmlab_30", "", playable, "vizdoom")
    assert "--env=dmlab_30: --dmlab_engine=vizdoom has no rooms_watermaze" in text, "an engine that lacks one"
    assert "--dmlab_levels=rooms_collect_good_objects," in text
    cfg = make_cfg(env="dmlab_30_rooms", dmlab_one_task_per_worker=True, num_workers=4)
    (text,) = SUITE.share_faults(cfg)
    assert text.startswith("--num_workers=4: must be a multiple of the 3 levels")


@pytest.mark.parametrize("preset", SUITE.presets)
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 7, 16, 60])
@pytest.mark.parametrize("env", ["dmlab_30", "dmlab_30_rooms", "dmlab_30_natlab"])
def test_every_level_gets_as_many_environments_as_every_other(preset, workers, env):
    cfg = train.parse_cfg([f"--env={env}", f"--preset={preset}", f"--num_workers={workers}", "--dmlab_engine=vizdoom"])
    levels, total = len(SUITE.tasks(cfg)), workers * cfg.num_envs_per_worker
    played = Counter(choose_task(levels, cfg, config_of(i, i // cfg.num_envs_per_worker)) for i in range(total))
    assert sorted(played) == list(range(levels))
    assert len(set(played.values())) == 1
    assert cfg.num_envs_per_worker % cfg.worker_num_splits == 0
    assert cfg.num_envs_per_worker >= SUITE.presets[preset]["num_envs_per_worker"]


def test_unequal_shares_are_refused_with_the_nearest_equal_ones():
    argv = ["--env=dmlab_30", "--preset=laptop", "--dmlab_engine=vizdoom"]
    said = r"--num_envs_per_worker=16: 32 environments .* no multiple of 30 levels.* use 30"
    with pytest.raises(train.BadInputError, match=said) as caught:
        train.parse_cfg([*argv, "--num_envs_per_worker=16"])
    assert "\n" not in str(caught.value), "nothing else is wrong"


@pytest.mark.parametrize("preset", SUITE.presets)
def test_levels_bring_what_they_need_with_either_preset(preset):
    def parsed(env, *flags):
        return train.parse_cfg([f"--env={env}", f"--preset={preset}", "--dmlab_engine=vizdoom", *flags])

    for env in ("dmlab_30", "dmlab_30_language", "dmlab_30_language_select_described_object", "dmlab_30_rooms_all"):
        assert parsed(env).dmlab_with_instructions == (preset == "paper" or env != "dmlab_30_rooms_all")
    for env in ("dmlab_30", "dmlab_30_psychlab", "dmlab_30_psychlab_visual_search"):
        assert parsed(env).dmlab_extended_action_set
    with pytest.raises(train.BadInputError, match="--dmlab_with_instructions=False: language_select_described_object, "):
        parsed("dmlab_30", "--dmlab_with_instructions=False")
    cfg = parsed("dmlab_30_psychlab", "--dmlab_extended_action_set=False")  # IMPALA's nine, for who asks for them
    assert not cfg.dmlab_extended_action_set
    assert "psychlab_visual_search needs" in SUITE.notes(cfg)[0]


def test_levels_that_need_images_or_words_say_so_before_training(lab, tmp_path):
    real = {"dmlab_engine": "deepmind_lab", "dmlab_dataset": str(tmp_path / "absent")}
    real["dmlab_level_cache_path"] = str(tmp_path / "cache")
    (fault,) = SUITE.faults(make_cfg(env="dmlab_30", **real))
    assert fault.startswith(
        f"--dmlab_dataset={tmp_path / 'absent'}: no such folder; psychlab_arbitrary_visuomotor_mapping, psychlab_"
    )
    assert "Brady" in fault
    (fault,) = SUITE.faults(make_cfg(env="dmlab_30_psychlab_continuous_recognition_test", **real))
    assert "psychlab_continuous_recognition_test" in fault
    images = {**real, "dmlab_dataset": str(tmp_path)}
    (fault,) = SUITE.faults(make_cfg(env="dmlab_30", **images))
    assert "no 0001.png in it, of 0001.png to 2400.png" in fault, "the engine itself would not say so"
    (tmp_path / "0001.png").touch()
    assert "no 2400.png in it" in SUITE.faults(make_cfg(env="dmlab_30", **images))[0]
    (tmp_path / "2400.png").touch()
    assert SUITE.faults(make_cfg(env="dmlab_30", **images)) == []
    assert SUITE.faults(make_cfg(env="dmlab_30", **{**real, "dmlab_dataset": "dummy"})) == [], "the engine's plain colours"
    assert SUITE.faults(make_cfg(env="dmlab_30_psychlab_visual_search", **real)) == []
    (fault,) = SUITE.faults(
        make_cfg(env="dmlab_30_language_execute_random_task", dmlab_engine="deepmind_lab", dmlab_with_instructions=False)
    )
    assert fault.startswith("--dmlab_with_instructions=False: language_execute_random_task cannot be solved without")


def test_both_names_of_the_dataset_flag():
    from argparse import ArgumentParser

    parser = ArgumentParser()
    SUITE.add_args(parser)
    assert (
        parser.parse_args(["--dmlab_dataset=a"]).dmlab_dataset == parser.parse_args(["--dmlab30_dataset=a"]).dmlab_dataset == "a"
    )


# -- environments -------------------------------------------------------------------------------------------------------------


def test_every_level_is_asked_for_as_deepmind_lab_knows_it(lab):
    cfg = make_cfg(env="dmlab_30", dmlab_engine="deepmind_lab", dmlab_use_level_cache=False)
    for i, level in enumerate(DMLAB30_LEVELS):
        env = make_env("dmlab_30", cfg, config_of(30 + i))
        assert (env.task_id, env.level_name) == (i, level)
        assert lab[-1].level == f"contributed/dmlab30/{level}"
        assert "allowHoldOutLevels" not in lab[-1].config
        assert env.observation_space["task_id"].high.tolist() == [29]
        assert env.reset()[0]["task_id"].tolist() == [i]


def test_test_variants_are_started_as_in_deepminds_evaluation(lab):
    cfg = make_cfg(dmlab_engine="deepmind_lab", dmlab_use_level_cache=False)
    for env_name, level in (
        ("dmlab_30_rooms_collect_good_objects_test", "rooms_collect_good_objects_test"),
        ("dmlab_30_rooms_watermaze_test", "rooms_watermaze"),
    ):
        make_env(env_name, cfg, config_of(0))
        assert lab[-1].level == f"contributed/dmlab30/{level}"
        assert lab[-1].config["allowHoldOutLevels"] == "true"
        assert int(lab[-1].config["mixerSeed"]) == 0x600D5EED


def test_environments_take_turns_on_the_rendering_gpus(lab):
    cfg = make_cfg(dmlab_engine="deepmind_lab", dmlab_use_level_cache=False, dmlab_gpus=[2, 5])
    make_env(cfg.env, cfg, config_of(0))
    assert "gpuDeviceIndex" not in lab[-1].config
    cfg.dmlab_renderer = "hardware"
    for i in range(3):
        make_env(cfg.env, cfg, config_of(i))
    assert [made.config["gpuDeviceIndex"] for made in lab[-3:]] == ["2", "5", "2"]


def test_instructions_are_what_sample_factory_makes_of_them(lab):
    cfg = make_cfg(dmlab_engine="deepmind_lab", dmlab_use_level_cache=False)
    env = make_env("dmlab_30_language_execute_random_task", cfg, config_of(0))
    assert lab[-1].asked == ["RGB_INTERLEAVED", "INSTR"]
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)
    assert observation["INSTR"].tolist() == [0] * 16
    observation, *_ = env.step(0)
    expected = [string_to_hash_bucket(word, 1000) for word in ("pick", "the", "red", "hat")]
    assert observation["INSTR"].tolist() == expected + [0] * 12
    for _ in range(4):
        observation, *_ = env.step(0)
    assert observation["INSTR"].tolist() == expected * 4, "words after the sixteenth are left out"
    assert all(0 < bucket < 1000 for bucket in expected)


def test_without_instructions_the_engine_is_not_asked_for_them(lab):
    cfg = make_cfg(dmlab_engine="deepmind_lab", dmlab_with_instructions=False, dmlab_use_level_cache=False)
    env = make_env("dmlab_30_rooms_watermaze", cfg, config_of(0))
    assert lab[-1].asked == ["RGB_INTERLEAVED"]
    assert set(env.observation_space.spaces) == set(env.reset()[0]) == {"obs"}


def test_word_buckets_of_nothing():
    assert word_buckets("") == word_buckets("   ") == (0,) * 16


def test_environments_are_shared_out_evenly_or_by_worker():
    cfg = make_cfg(dmlab_one_task_per_worker=False)
    assert [choose_task(3, cfg, config_of(i)) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    cfg = make_cfg(dmlab_one_task_per_worker=True)
    assert [choose_task(3, cfg, config_of(i, worker=i // 4)) for i in range(16)] == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 4
    assert choose_task(3, cfg, None) == 0


def test_a_run_on_several_levels_of_the_stand_in():
    cfg = make_cfg(env="dmlab_30", dmlab_levels=STAND_IN, dmlab_engine="vizdoom")
    for i in range(3):
        env = make_env("dmlab_30", cfg, config_of(i))
        observation, _ = env.reset()
        assert env.observation_space.contains(observation)
        assert observation["task_id"].tolist() == [i]
        done = False
        while not done:
            _, _, done, _, info = env.step(0)
        assert any(key.startswith(f"z_{i:02d}_{names.levels_of('dmlab_30', STAND_IN)[i]}") for key in info["episode_extra_stats"])
        env.close()


_ENDS = {"closed": "env.close()", "forgotten": "", "killed": "os.kill(os.getpid(), 9)", "ended by the engine": "env.reset()"}
_STATUS = {"closed": 0, "forgotten": 0, "killed": -9, "ended by the engine": 1}


def play_in_a_process(folder, end):
    """Plays on a DeepMind Lab with `folder` as temporary directory; returns the exit status, what lay there, what is left."""
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_dmlab_env import make_cfg
from sf_fixpo.envs.dmlab.env import make_env
name = "dmlab_30_explore_goal_locations_small"
cfg = make_cfg(env=name, dmlab_engine="deepmind_lab", dmlab_level_cache_path={str(folder / "cache")!r}, train_dir={str(folder)!r})
env = make_env(name, cfg)
env.reset()
found = [path.parent.name for path in Path({str(folder)!r}).glob("*/dmlab_temp_folder_*")]
open({str(folder / "found")!r}, "w").write(" ".join(found))
os.environ["COMPILING_LAB_BREAKS"] = "explore"
{_ENDS[end]}
"""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": f"{COMPILING_LAB}{os.pathsep}{REPO}"}
    status = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode
    return status, (folder / "found").read_text().split(), sorted(path.name for path in folder.glob(f"{FOLDER_PREFIX}*"))


@pytest.mark.parametrize("end", _ENDS)
def test_what_deepmind_lab_leaves_when_a_process_dies_is_removed_by_the_next(tmp_path, end):
    status, found, left = play_in_a_process(tmp_path, end)
    assert status == _STATUS[end]
    assert len(found) == 1, "the engine's own folder lies in ours"
    assert left == (found if end in ("killed", "ended by the engine") else [])
    if left:
        assert play_in_a_process(tmp_path, "closed")[::2] == (0, [])
