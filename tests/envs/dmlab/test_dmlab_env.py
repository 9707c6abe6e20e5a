"""The DMLab suite: names, flags, engine choice, and the environment that sample-factory sees, on every installed engine."""

from __future__ import annotations

import multiprocessing
import os
import sys
from argparse import ArgumentParser, Namespace

import numpy as np
import pytest
from sample_factory.cfg.arguments import parse_sf_args
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.envs.dmlab import _ENGINES, SUITE, engines, names, needs, resolve_engine
from sf_fixpo.envs.dmlab.env import DmLabEnv, make_env

NAME = "dmlab_30_rooms_collect_good_objects"


def make_cfg(**changes):
    """sample-factory's flags and the suite's, as a training program parses them."""
    parser, _ = parse_sf_args([f"--env={NAME}", "--experiment=x"])
    SUITE.add_args(parser)
    cfg = parser.parse_args([f"--env={NAME}", "--seed=1", "--env_frameskip=4"])
    cfg.dmlab_engine = engines.installed_engines()[0]
    cfg.res_w, cfg.res_h = 48, 36
    for key, value in changes.items():
        assert hasattr(cfg, key)
        setattr(cfg, key, value)
    return cfg


def env_config(env_id):
    return AttrDict(worker_index=0, vector_index=env_id, env_id=env_id)


@pytest.fixture(params=engines.installed_engines())
def make(request):
    """Makes environments on each engine and closes them."""
    made = []

    def make_one(name=NAME, env_id=0, render_mode=None, **changes):
        cfg = make_cfg(dmlab_engine=request.param, **changes)
        made.append(SUITE.make_env(name, cfg, env_config(env_id), render_mode))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


@pytest.fixture
def warned(monkeypatch):
    """What is warned of. sample-factory's log does not pass on to the root logger, where pytest listens."""
    messages = []
    monkeypatch.setattr(engines.log, "warning", lambda text, *args: messages.append(text % args if args else text))
    return messages


def only(monkeypatch, *present):
    """Makes exactly these engines look installed."""
    monkeypatch.setattr(engines, "lack", lambda engine: None if engine in present else "is not installed")
    monkeypatch.setattr(engines.loader, "found", lambda engine: engine in present)


# ------------------------------------------------------------------------------------------------------ names and flags


@pytest.mark.parametrize("name", [NAME, f"{NAME}_train", f"{NAME}_test", NAME.upper().replace("DMLAB", "dmlab")])
def test_names_of_levels_that_can_run_have_no_fault(name):
    assert SUITE.matches(name)
    assert SUITE.faults(make_cfg(env=name)) == []


def test_every_listed_environment_can_be_made(make):
    for name in filter(lambda name: not needs(name), SUITE.env_names()):
        env = make(name)
        env.reset()
        assert env.level_name in names.levels_of(name)


def test_a_wrong_name_is_answered_with_near_ones():
    (fault,) = SUITE.faults(make_cfg(env="dmlab_30_rooms_colect_good"))
    assert "--env=dmlab_30_rooms_colect_good" in fault
    assert NAME in fault
    (fault,) = names.level_faults("dmlab_30_lasertag_one_opponent_small", "", ("rooms_watermaze",), "vizdoom")
    assert "--dmlab_engine=vizdoom has no lasertag_one_opponent_small; it plays" in fault, "an engine that lacks the level"


def test_all_faults_come_at_once():
    faults = SUITE.faults(make_cfg(env="dmlab_30_x", res_w=0, res_h=5000, env_frameskip=0))
    assert [fault.split("=")[0] for fault in faults] == ["--env", "--res_w", "--res_h", "--env_frameskip"]


def test_presets_hold_existing_flags_with_values_of_their_type():
    from sf_fixpo.algorithm.config import add_fixpo_args

    parser, _ = parse_sf_args([f"--env={NAME}", "--experiment=x"])
    SUITE.add_args(parser)
    add_fixpo_args(parser)
    defaults = vars(parser.parse_args([f"--env={NAME}"]))
    for preset in SUITE.presets.values():
        for key, value in preset.items():
            assert key in defaults, key
            assert isinstance(value, type(defaults[key])) or defaults[key] is None or isinstance(defaults[key], (int, float)), key


def test_the_flag_offers_what_the_engines_module_knows():
    assert _ENGINES == engines.CHOICES


# -------------------------------------------------------------------------------------------------------- engine choice


def test_auto_takes_deepmind_lab_where_it_is_and_says_nothing(monkeypatch, warned):
    only(monkeypatch, "deepmind_lab", "vizdoom")
    cfg = Namespace(dmlab_engine="auto")
    assert resolve_engine(cfg) == "deepmind_lab"
    assert cfg.dmlab_engine == "deepmind_lab"
    assert warned == []


def test_auto_falls_back_with_one_warning_and_the_config_says_so(monkeypatch, warned):
    only(monkeypatch, "vizdoom")
    cfg = make_cfg(dmlab_engine="auto")
    assert SUITE.faults(cfg) == []
    assert cfg.dmlab_engine == "vizdoom"
    assert SUITE.faults(cfg) == []
    resolve_engine(cfg)
    assert len(warned) == 1
    assert "not DMLab-30 scores" in warned[0]


def test_a_worker_does_not_repeat_the_warning(monkeypatch, warned):
    only(monkeypatch, "vizdoom")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert resolve_engine(Namespace(dmlab_engine="auto")) == "vizdoom"
    assert warned == []


def test_asking_for_the_stand_in_is_no_reason_to_warn(monkeypatch, warned):
    only(monkeypatch, "deepmind_lab", "vizdoom")
    assert resolve_engine(Namespace(dmlab_engine="vizdoom")) == "vizdoom"
    assert warned == []


@pytest.mark.parametrize(
    ("asked", "advice"), [("deepmind_lab", "from source"), ("vizdoom", "pip install"), ("auto", "pip install")]
)
def test_a_missing_engine_is_a_fault_that_says_how_to_get_it(monkeypatch, asked, advice):
    cfg = make_cfg(dmlab_engine=asked)
    only(monkeypatch)
    (fault,) = SUITE.faults(cfg)
    assert fault.startswith(f"--dmlab_engine={asked}: ")
    assert advice in fault
    with pytest.raises(ImportError, match=advice):
        resolve_engine(cfg)


def test_sample_factorys_tables_are_had_without_deepmind_lab():
    tables = engines.sample_factory_tables()
    assert len(tables.ACTION_SET) == 9
    assert len(tables.EXTENDED_ACTION_SET) == 15
    assert ("deepmind_lab" in sys.modules) == ("deepmind_lab" in engines.installed_engines())


# ------------------------------------------------------------------------------------------------------ the environment


@pytest.mark.parametrize(("pixel_format", "shape"), [("CHW", (3, 36, 48)), ("HWC", (36, 48, 3))])
def test_spaces_and_observations(make, pixel_format, shape):
    env = make(pixel_format=pixel_format)
    assert env.observation_space["obs"].shape == shape
    assert env.observation_space["obs"].dtype == np.uint8
    assert env.action_space.n == 9
    observation, info = env.reset()
    assert info == {}
    assert env.observation_space.contains(observation)
    stepped, reward, terminated, truncated, info = env.step(np.int64(0))
    assert env.observation_space.contains(stepped)
    assert isinstance(reward, float)
    assert (terminated, truncated) == (False, False)
    assert info == {"num_frames": 4}


def test_the_extended_action_set(make):
    assert make(dmlab_extended_action_set=True).action_space.n == 15


def test_both_pixel_formats_show_the_same(make):
    first, second = make(pixel_format="CHW"), make(pixel_format="HWC")
    assert np.array_equal(first.reset()[0]["obs"].transpose(1, 2, 0), second.reset()[0]["obs"])


def test_an_episode_ends_terminated_with_its_last_frame_and_raw_return(make):
    env = make()
    observation, _ = env.reset(seed=3)
    rng = np.random.default_rng(0)
    total, steps, done = 0.0, 0, False
    while not done:
        action = np.array([rng.integers(9)])
        previous = observation
        observation, reward, done, truncated, info = env.step(action)
        assert not truncated
        total += reward
        steps += 1
    assert np.array_equal(observation["obs"], previous["obs"])
    key = "z_00_rooms_collect_good_objects_train"
    assert info["episode_extra_stats"] == {f"{key}_dmlab_raw_score": total, f"{key}_len": 4 * steps}
    assert steps <= 900
    with pytest.raises(RuntimeError):
        env.step(0)
    assert not np.array_equal(env.reset()[0]["obs"], observation["obs"])


def first_frames(env, count=3, **kwargs):
    return [env.reset(**(kwargs if i == 0 else {}))[0]["obs"].tobytes() for i in range(count)]


def test_seeds(make):
    """Equal for equal runs; different for other runs, other environments, other episodes."""
    base = first_frames(make(seed=1, env_id=0))
    assert len(set(base)) == 3
    assert first_frames(make(seed=1, env_id=0)) == base
    assert not set(first_frames(make(seed=2, env_id=0))) & set(base)
    assert not set(first_frames(make(seed=1, env_id=1))) & set(base)


def test_reset_with_a_seed_starts_the_sequence_again(make):
    env = make()
    base = first_frames(env, seed=5)
    assert first_frames(env, seed=5) == base
    assert first_frames(env, seed=6) != base
    assert first_frames(make(seed=2), seed=5) != base


def test_render(make):
    env = make(render_mode="rgb_array")
    observation, _ = env.reset()
    frame = env.render()
    assert frame.shape == (36, 48, 3)
    assert np.array_equal(frame.transpose(2, 0, 1), observation["obs"])
    assert make().render() is None
    with pytest.raises(ValueError, match="render_mode='human'"):
        make(render_mode="human")


def test_optimistic_rewards_shape_the_reward_and_not_the_score(make):
    raw, shaped = make(), make(dmlab_optimistic_rewards=True)
    seen, done = [], False
    raw.reset(seed=1)
    shaped.reset(seed=1)
    rng = np.random.default_rng(0)
    while not done:
        action = int(rng.integers(9))
        _, reward, done, _, raw_info = raw.step(action)
        _, other, _, _, shaped_info = shaped.step(action)
        seen.append((reward, round(other, 3)))
    assert set(seen) <= {(0.0, 0.0), (1.0, 0.987), (-1.0, -0.296)}
    assert len(set(seen)) == 3
    assert shaped_info["episode_extra_stats"] == raw_info["episode_extra_stats"]


@pytest.mark.parametrize(
    ("level", "said", "hint"),
    [
        ("rooms_collect_good_objects_train", "out of cheese", ""),
        ("psychlab_continuous_recognition_test", "out of cheese", r" \[this level shows the images .*--dmlab_dataset=.*\]"),
        ("explore_goal_locations_small", "Failed to compile map.", r" \[DeepMind Lab's map compilers, .*status 134.*\]"),
    ],
)
def test_an_engine_that_cannot_start_an_episode_is_reported_with_what_may_be_behind_it(make, monkeypatch, level, said, hint):
    env = make()

    class Broken:
        def reset(self, seed):
            raise RuntimeError(said)

        def close(self):
            pass

    env.close()
    monkeypatch.setattr(env, "_lab", Broken())
    env.level_name = level
    with pytest.raises(
        RuntimeError, match=rf"^{level}, seed \d+: no episode could be started: {said}{hint} \[to repeat it: .*\]$"
    ):
        env.reset()


def test_an_unknown_level_is_refused_by_the_factory():
    with pytest.raises(ValueError, match="not a level"):
        make_env("dmlab_30_nowhere", make_cfg())


# ------------------------------------------------------------------------------------------------ what a run will take here


def noted(cores=2, **changes):
    flags = {"env": NAME, "dmlab_levels": "", "dmlab_extended_action_set": True, "preset": "paper", "device": "cpu"}
    flags |= {"train_for_env_steps": 100_000_000, "train_for_seconds": 10**10, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        return SUITE.notes(Namespace(**flags))


def test_the_paper_preset_without_a_gpu_says_how_long_it_takes_and_what_laptop_does():
    paper, laptop = noted()
    assert "at least 20 hours here for 100,000,000 frames (2 CPU cores, 1,424 frames/s" in paper
    assert laptop.startswith("--preset=laptop trains a small network on 4,000,000 frames instead: about 9 minutes")
    assert SUITE.presets["laptop"]["train_for_env_steps"] == 4_000_000
    assert SUITE.presets["paper"]["env_frameskip"] * 356 == 1_424
    assert "at least 2 hours here" in noted(cores=20)[0]
    assert "at least 2 hours here" in noted(train_for_seconds=7200)[0]


@pytest.mark.parametrize(
    "changes", [{"preset": "laptop"}, {"device": "gpu"}, {"train_for_env_steps": 1_000_000}, {"train_for_seconds": 60}]
)
def test_there_is_nothing_to_say_about_a_short_run_or_a_gpu(changes):
    assert noted(**changes) == []


# ------------------------------------------------------------------------------------------------------------- processes


def _play(queue, cfg, env_id):
    env = SUITE.make_env(NAME, cfg, env_config(env_id))
    frames = first_frames(env, count=2)
    env.step(0)
    env.close()
    queue.put((env_id, frames))


def test_spawned_workers_play_what_the_main_process_would(monkeypatch):
    # A child takes over -W error from the command line, and torch cannot be imported with it.
    monkeypatch.setattr(sys, "warnoptions", [])
    cfg = make_cfg()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_play, args=(queue, cfg, env_id)) for env_id in range(2)]
    for worker in workers:
        worker.start()
    played = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    for env_id, frames in played.items():
        env = DmLabEnv("rooms_collect_good_objects_train", cfg, env_config(env_id))
        assert first_frames(env, count=2) == frames
        env.close()


def test_the_suite_adds_its_flags_to_any_parser():
    parser = ArgumentParser()
    SUITE.add_args(parser)
    assert parser.parse_args([]).dmlab_engine == "auto"
    with pytest.raises(SystemExit):
        parser.parse_args(["--dmlab_engine=doom"])
