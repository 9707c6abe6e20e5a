"""Watching a policy: real environments, real MP4 files, which are read back and looked at."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
from tuple_env import make_tuple_env

from benchmarks.synthetic import make_cfg, small_shape
from sf_fixpo import enjoy
from sf_fixpo.envs import find_suite
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.playing import overlay, video
from sf_fixpo.playing.evaluation_worker import PolicyAgent, Slots
from sf_fixpo.playing.experiment import BadInputError, load_config
from sf_fixpo.playing.overlay import Categories, Gaussian, Moment, Overlay

LEVEL = "dmlab_30_rooms_collect_good_objects_train"
CHECKPOINT = "checkpoint_000000001_64"
ORANGE = np.array([255, 168, 38])


def make_run(folder: Path, env: str, factory=None, **flags) -> Path:
    """A folder as training leaves it, with an untrained policy."""
    torch.manual_seed(0)
    suite = find_suite(env)
    cfg = make_cfg("APPO", small_shape(**flags), train_dir=folder, env=env)
    parser = argparse.ArgumentParser()
    suite.add_args(parser)
    for flag, default in vars(parser.parse_args([])).items():
        cfg.setdefault(flag, default)
    slots = Slots((factory or suite.make_env)(env, cfg, None, None))
    network = make_actor_critic(cfg, slots.observation_space, slots.action_space)
    slots.env.close()
    (folder / "checkpoint_p0").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(cfg))
    torch.save({"model": network.state_dict()}, folder / "checkpoint_p0" / f"{CHECKPOINT}.pth")
    return folder


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # also for windows: real ones, of a driver that needs no display


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    return make_run(folder, "gym_CartPole-v1", use_rnn=True, normalize_input=True, normalize_returns=True)


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """All frames [T, H, W, 3], and frames a second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate is not None
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), float(stream.average_rate)


def orange_share(picture: np.ndarray, row: int) -> float:
    """How much of a row's bar, in a panel at the right edge, has the color of the chosen action."""
    left, top, right, bottom = Overlay.bar_box(row)
    offset = picture.shape[1] - overlay.PANEL_WIDTH
    bar = picture[top:bottom, offset + left : offset + right].astype(int)
    return float((np.abs(bar - ORANGE).max(axis=2) < 60).mean())


def moments_of(run: Path, deterministic: bool, seed: int, checkpoint: Path | None = None) -> list[Moment]:
    cfg = load_config(run)
    slots = enjoy.make_slots(cfg, seed)
    agent = enjoy.load_agent(cfg, checkpoint or run / "checkpoint_p0" / f"{CHECKPOINT}.pth", slots, deterministic)
    moments = list(enjoy.play_episode(slots, agent, cfg.env, seed))
    slots.env.close()
    return moments


# -- recording ----------------------------------------------------------------------------------------------------------------


def test_an_episode_becomes_a_video_that_browsers_play(cartpole, capsys):
    assert enjoy.main([str(cartpole), "--seed=3"]) == 0
    path = cartpole / "videos" / f"gym_CartPole-v1_{CHECKPOINT}_seed3.mp4"
    frames, fps = read_video(path)
    moments = moments_of(cartpole, deterministic=False, seed=3)
    out = capsys.readouterr().out
    assert f"return {len(moments)}.000, {len(moments)} steps, {path}" in out
    assert frames.shape == (len(moments), 400, 600 + overlay.PANEL_WIDTH, 3)
    assert fps == 50  # CartPole's own
    assert all((a[:, :600] != b[:, :600]).any() for a, b in itertools.pairwise(frames))
    raw = path.read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")  # plays while it loads
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for frame, moment in zip(frames, moments, strict=True):
        chosen = moment.heads[0].chosen
        assert orange_share(frame, chosen) > 0.2 + orange_share(frame, 1 - chosen)


def test_the_same_seed_repeats_and_another_does_not(cartpole, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        argv = [str(cartpole), f"--seed={seed}", f"--record={tmp_path / name}.mp4", "--deterministic", "--max_steps=8"]
        assert enjoy.main(argv) == 0
    a, b, c = (read_video(tmp_path / f"{name}.mp4")[0] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert len(a) == 8
    assert (a[0] != c[0]).any()


_WRITE = """
import sys
import numpy as np
from pathlib import Path
from sf_fixpo.playing.video import VideoFile
with VideoFile(Path(sys.argv[1]), 50) as file:
    for i in range(8):
        picture = np.full((400, 920, 3), 255, np.uint8)
        picture[:, 600:] = 22
        picture[150:250, 200 + 5 * i : 220 + 5 * i] = 120
        file.show(picture)
"""


def test_the_same_pictures_give_the_same_file_whatever_the_memory_held_before(tmp_path):
    for fill in ("1", "85"):  # the C library fills what is allocated with this byte
        argv = [sys.executable, "-c", _WRITE, str(tmp_path / fill)]
        subprocess.run(argv, check=True, timeout=60, env={**os.environ, "MALLOC_PERTURB_": fill})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "85").read_bytes()


def test_several_episodes_are_several_files_each_of_its_own_seed(cartpole, tmp_path, capsys):
    base = [str(cartpole), "--max_steps=4", "--no_overlay", "--scale=2", "--fps=12.5"]
    assert enjoy.main([*base, "--episodes=2", "--seed=7", f"--record={tmp_path / 'x.mp4'}"]) == 0
    assert "not its end" in capsys.readouterr().out
    assert enjoy.main([*base, "--seed=8", f"--record={tmp_path / 'folder'}"]) == 0
    assert sorted(file.name for file in tmp_path.glob("*.mp4")) == ["x_seed7.mp4", "x_seed8.mp4"]
    frames, fps = read_video(tmp_path / "x_seed8.mp4")
    assert frames.shape == (4, 800, 1200, 3)
    assert fps == 12.5
    alone, _ = read_video(tmp_path / "folder" / f"gym_CartPole-v1_{CHECKPOINT}_seed8.mp4")
    np.testing.assert_array_equal(frames, alone)


def test_a_level_of_dmlab_is_recorded_in_its_own_time_with_named_actions(tmp_path, capsys):
    run = make_run(
        tmp_path / "lab",
        LEVEL,
        encoder_conv_architecture="convnet_simple",
        env_frameskip=4,
    )
    assert enjoy.main([str(run), f"--env={LEVEL}", "--max_steps=20"]) == 0
    frames, fps = read_video(run / "videos" / f"{LEVEL}_{CHECKPOINT}_seed0.mp4")
    assert frames.shape == (20, 360, 480 + overlay.PANEL_WIDTH, 3)
    assert fps == 15
    assert (frames[0, :, :480] != frames[-1, :, :480]).mean() > 0.1
    assert "20 steps" in capsys.readouterr().out
    cfg = load_config(run, LEVEL)
    slots = enjoy.make_slots(cfg, 0)
    names = enjoy.action_names(cfg, slots.env)
    slots.env.close()
    assert names is not None
    assert len(names) == slots.action_space.n
    assert (names[0], names[4]) == ("forward", "look left")


def test_ctrl_c_keeps_the_finished_episodes(cartpole, tmp_path):
    argv = [sys.executable, "-m", "sf_fixpo.enjoy", str(cartpole), "--episodes=100000", f"--record={tmp_path}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.mp4"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    files = sorted(tmp_path.iterdir())
    assert len(files) >= 2
    assert all(file.suffix == ".mp4" and len(read_video(file)[0]) > 0 for file in files)


def test_a_broken_off_video_leaves_the_older_one(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"older")
    with contextlib.suppress(KeyboardInterrupt), video.VideoFile(path, 10) as file:
        file.show(np.zeros((31, 33, 3), np.uint8))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"older"
    with video.VideoFile(path, 10) as file:
        file.show(np.full((31, 33, 3), 200, np.uint8))
    frames, _ = read_video(path)
    assert frames.shape == (1, 32, 34, 3)  # yuv420p wants even sides
    assert frames[0, :31, :33].mean() == pytest.approx(200, abs=3)
    assert list(tmp_path.iterdir()) == [path]


# -- windows ------------------------------------------------------------------------------------------------------------------


def test_with_a_display_a_window_shows_the_episode_in_real_time(cartpole, monkeypatch, capsys):
    monkeypatch.setenv("DISPLAY", ":0")
    start = time.monotonic()
    assert enjoy.main([str(cartpole), "--max_steps=9", "--fps=20"]) == 0
    assert time.monotonic() - start > 8 / 20
    assert ".mp4" not in capsys.readouterr().out


def test_a_window_shows_the_picture_and_can_be_closed():
    import pygame

    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    with video.Window("title", 100) as window:
        window.show(picture)
        shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        np.testing.assert_array_equal(shown, picture)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
        with pytest.raises(video.WindowClosed):
            window.show(picture)
    assert not pygame.display.get_init()


def test_a_window_that_cannot_be_opened_is_bad_input(cartpole, monkeypatch, capsys):
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "no_such_driver")
    assert enjoy.main([str(cartpole), "--max_steps=2"]) == 2
    assert "--record" in capsys.readouterr().err


# -- the policy ---------------------------------------------------------------------------------------------------------------


def test_to_watch_changes_no_action(cartpole):
    moments = moments_of(cartpole, deterministic=False, seed=1)
    cfg = load_config(cartpole)
    slots = enjoy.make_slots(cfg, 1)
    agent = PolicyAgent(cfg, str(cartpole / "checkpoint_p0" / f"{CHECKPOINT}.pth"), slots, 1, deterministic=False)
    torch.manual_seed(1)
    obs, done, actions = slots.reset(), False, []
    while not done:
        row = agent.act(obs, np.zeros(1, int))
        obs, _, dones = slots.step(row)
        actions.append(int(row[0, 0]))
        done = bool(dones[0])
    assert [moment.heads[0].chosen for moment in moments] == actions
    assert len(set(actions)) == 2
    assert [moment.episode_return for moment in moments] == list(range(1, len(actions) + 1))
    assert [moment.done for moment in moments] == [False] * (len(actions) - 1) + [True]


def test_the_likeliest_action_is_taken_if_asked(cartpole):
    for moment in moments_of(cartpole, deterministic=True, seed=1):
        probabilities = moment.heads[0].probabilities
        assert moment.heads[0].chosen == probabilities.argmax()
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_the_value_is_in_the_unit_of_the_rewards(cartpole, tmp_path):
    state = torch.load(cartpole / "checkpoint_p0" / f"{CHECKPOINT}.pth", weights_only=True)
    state["model"]["returns_normalizer.running_mean"].fill_(5.0)
    state["model"]["returns_normalizer.running_var"].fill_(4.0)
    torch.save(state, tmp_path / "other.pth")
    plain = [moment.value for moment in moments_of(cartpole, True, 2)]
    scaled = [moment.value for moment in moments_of(cartpole, True, 2, tmp_path / "other.pth")]
    assert len(set(plain)) > 1
    assert scaled == pytest.approx([2 * value + 5 for value in plain], abs=1e-3)


def test_a_tuple_of_actions_has_a_head_for_each_part(tmp_path):
    run = make_run(tmp_path / "tuple", "gym_CartPole-v1", factory=make_tuple_env)
    cfg = load_config(run)
    slots = Slots(make_tuple_env(cfg.env, cfg, None, "rgb_array"))
    agent = enjoy.load_agent(cfg, run / "checkpoint_p0" / f"{CHECKPOINT}.pth", slots, deterministic=True)
    moment = next(enjoy.play_episode(slots, agent, cfg.env, 0))
    slots.env.close()
    push, idle = moment.heads
    assert isinstance(push, Categories)
    assert isinstance(idle, Gaussian)
    assert push.chosen == push.probabilities.argmax()
    np.testing.assert_array_equal(idle.chosen, idle.means)
    assert (idle.stds > 0).all()
    picture = Overlay("tuple", slots.action_space).draw(moment)
    assert orange_share(picture, push.chosen) > 0.3
    assert 0 < orange_share(picture, 2) < 0.1  # the mark of a continuous action


# -- the overlay --------------------------------------------------------------------------------------------------------------


def moment_with(*heads, value=0.0) -> Moment:
    return Moment(np.zeros((50, 60, 3), np.uint8), heads, value, 0.0, 0.0, 1, False)


def test_the_chosen_bar_is_as_long_as_its_probability():
    panel = Overlay("x", gym.spaces.Discrete(3))
    probabilities = np.array([0.1, 0.6, 0.3])
    likely = panel.draw(moment_with(Categories(probabilities, 1)))
    unlikely = panel.draw(moment_with(Categories(probabilities, 0)))
    assert orange_share(likely, 1) == pytest.approx(0.6, abs=0.15)  # bar and frame
    assert orange_share(unlikely, 0) == pytest.approx(0.1, abs=0.25)
    assert orange_share(likely, 0) == orange_share(likely, 2) == orange_share(unlikely, 1) == 0


def test_the_value_history_moves_with_the_value():
    steady, falling = Overlay("x", gym.spaces.Discrete(2)), Overlay("x", gym.spaces.Discrete(2))
    head = Categories(np.array([0.5, 0.5]), 0)
    for step in range(20):
        one = steady.draw(moment_with(head, value=1.0))
        other = falling.draw(moment_with(head, value=20.0 - step if step < 19 else 1.0))
    assert (one[54:96] != other[54:96]).any()


def test_the_likeliest_of_many_categories_are_drawn_and_the_chosen_one():
    panel = Overlay("x", gym.spaces.Discrete(200))
    probabilities = np.linspace(1, 0, 200)
    picture = panel.draw(moment_with(Categories(probabilities / probabilities.sum(), 150)))
    assert picture.shape[0] == panel.panel_height < 500
    assert orange_share(picture, overlay.MAX_CATEGORIES - 1) > 0
    many = Overlay("x", gym.spaces.Box(-np.inf, np.inf, (100,), np.float32))
    values = np.full(100, np.nan, np.float32)  # a broken policy is shown, too
    assert many.draw(moment_with(Gaussian(values, values, values), value=np.nan)).shape[0] == many.panel_height < 800


def test_names_of_dmlab_actions():
    forward, fire, still = (0, 0, 0, 1, 0, 0, 0), (0, 0, 0, 0, 1, 0, 0), (0,) * 7
    one_amount = [(-20, 0, 0, 0, 0, 0, 0), (20, 0, 0, 1, 0, 0, 0), (0, -10, 0, 0, 0, 0, 0)]
    assert overlay.dmlab_action_labels([forward, fire, still, *one_amount]) == (
        "forward",
        "fire",
        "nothing",
        "look left",
        "forward + look right",
        "look up",
    )
    two_amounts = [(-10, 0, 0, 1, 0, 0, 0), (60, 0, 0, 0, 0, 0, 0), (0, 10, -1, -1, 0, 1, 1)]
    assert overlay.dmlab_action_labels(two_amounts) == (
        "forward + small look left",
        "large look right",
        "backward + strafe left + look down + jump + crouch",
    )


def test_pixels_become_squares():
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = overlay.upscale(frame, 3)
    assert large.shape == (6, 6, 3)
    np.testing.assert_array_equal(large[3:, :3], np.broadcast_to(frame[1, 0], (3, 3, 3)))


# -- which environment --------------------------------------------------------------------------------------------------------


def test_a_run_on_several_levels_shows_the_first_test_level(cartpole, tmp_path):
    settings = json.loads((cartpole / "config.json").read_text())
    settings |= {"env": "dmlab_30", "dmlab_levels": "explore_object_locations_small,rooms_collect_good_objects"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert enjoy.choose_config(tmp_path, None).env == "dmlab_30_explore_object_locations_small_test"
    assert enjoy.choose_config(tmp_path, LEVEL).env == LEVEL
    with pytest.raises(BadInputError, match="2 environments, one can be shown: dmlab_30_explore_"):
        enjoy.choose_config(tmp_path, "dmlab_30")


# -- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", ["--episodes=0", "--seed=-1", "--scale=0", "--max_steps=0", "--fps=0", "--fps=nan", "--record=x.avi"]
)
def test_bad_flags_are_refused(cartpole, capsys, flag):
    with pytest.raises(SystemExit) as error:
        enjoy.main([str(cartpole), flag])
    assert error.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--env=no_such", "no_such"),
        ("--env=mujoco_HalfCheetah", "draws no pictures"),
        ("--env=gym_Pendulum-v1", "does not fit --env=gym_Pendulum-v1"),
        ("--checkpoint=best", "no best checkpoint"),
        ("--checkpoint=no/file.pth", "no/file.pth"),
        ("--policy_id=3", "checkpoint_p3"),
    ],
)
def test_bad_input_is_one_message_and_status_2(cartpole, capsys, tmp_path, flag, said):
    assert enjoy.main([str(cartpole), flag, f"--record={tmp_path / 'x.mp4'}"]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_used_are_named(cartpole, capsys, tmp_path):
    torn = tmp_path / "torn.pth"
    torn.write_bytes(b"torn")
    assert enjoy.main([str(cartpole), f"--checkpoint={torn}"]) == 2
    assert "torn.pth" in capsys.readouterr().err
    assert enjoy.main([str(cartpole), f"--record={torn / 'x.mp4'}"]) == 2
    assert "--record" in capsys.readouterr().err
    assert enjoy.main([str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
