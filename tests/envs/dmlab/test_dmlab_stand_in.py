"""The stand-in for DeepMind Lab from inside: its files, its process, its physics, its objects."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import vizdoom
from labs import SIZE, STILL, TEST, TRAIN, random_walk

from sf_fixpo.envs.dmlab.stand_in.resources import MOST_OF_A_KIND, OBJECTS, counter, counts
from sf_fixpo.envs.dmlab.stand_in.scene import Pose, Scene, without_nearest
from sf_fixpo.envs.dmlab.stand_in.shapes import SHAPES
from sf_fixpo.envs.dmlab.stand_in.sprites import caged, sprite, textures
from sf_fixpo.envs.dmlab.workspace import FOLDER_PREFIX, sweep


def folders(path):
    return sorted(p.name for p in Path(path).iterdir() if p.name.startswith(FOLDER_PREFIX))


def test_close_leaves_no_file(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = set(os.listdir("/dev/shm"))
    lab = stand_in()
    lab.reset(seed=1)
    lab.step(STILL)
    assert len(folders(tmp_path)) == 1
    mine = {name for name in set(os.listdir("/dev/shm")) - shared if name.startswith("ViZDoom")}
    instance = (tmp_path / folders(tmp_path)[0] / "instance").read_text()
    assert any(name.endswith(instance) for name in mine)
    lab.close()
    assert list(tmp_path.iterdir()) == []
    assert not any(name.endswith(instance) for name in os.listdir("/dev/shm"))


def test_a_restart_has_the_engine_read_one_map(stand_in, monkeypatch):
    """To name a map is to have it read, and so is an episode: with both every restart took ten milliseconds longer."""
    named, begun = [], []
    name_map, begin = vizdoom.DoomGame.set_doom_map, vizdoom.DoomGame.new_episode
    monkeypatch.setattr(vizdoom.DoomGame, "set_doom_map", lambda game, name: (named.append(name), name_map(game, name)))
    monkeypatch.setattr(vizdoom.DoomGame, "new_episode", lambda game: (begun.append(1), begin(game)))
    lab = stand_in()
    frames = []
    for seed in (1, 2, 1):
        lab.reset(seed=seed)
        frames.append(lab.observations()["RGB_INTERLEAVED"].copy())
    assert len(named) == 2, "as it starts, and the file of all maps"
    assert len(begun) == 3
    assert (frames[0] == frames[2]).all()
    assert (frames[0] != frames[1]).any()


def test_a_lab_that_is_forgotten_closes_itself(stand_in, tmp_path):
    from sf_fixpo.envs.dmlab.stand_in.engine import Lab

    Lab(TRAIN, ["RGB_INTERLEAVED"], config=SIZE, temp_folder=str(tmp_path)).reset(seed=1)
    gc.collect()
    assert folders(tmp_path) == []


def test_what_a_killed_process_leaves_is_swept(stand_in, tmp_path):
    code = f"""
import os
from sf_fixpo.envs.dmlab.stand_in.engine import Lab
lab = Lab("{TRAIN}", ["RGB_INTERLEAVED"], config={SIZE}, temp_folder={str(tmp_path)!r})
lab.reset(seed=1)
os.kill(os.getpid(), 9)
"""
    # No pipes: an engine that outlived its process would hold them open.
    done = subprocess.run([sys.executable, "-c", code], timeout=60, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == -9
    (left,) = folders(tmp_path)
    instance = (tmp_path / left / "instance").read_text()
    living = stand_in()
    living.reset(seed=1)
    sweep(str(tmp_path))
    assert left not in folders(tmp_path)
    assert len(folders(tmp_path)) == 1, "a living engine's folder is not touched"
    assert not any(name.endswith(instance) for name in os.listdir("/dev/shm"))
    living.step(STILL)
    if subprocess.run("setpriv --pdeathsig KILL true", shell=True, capture_output=True, check=False).returncode == 0:
        deadline = time.monotonic() + 10
        while _processes_with(instance) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _processes_with(instance)


def _processes_with(text):
    """Process ids whose command line contains a text."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and text in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_an_engine_that_dies_is_a_runtime_error(stand_in, tmp_path):
    lab = stand_in()
    lab.reset(seed=1)
    instance = (tmp_path / folders(tmp_path)[0] / "instance").read_text()
    (pid,) = _processes_with(instance)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ViZDoom engine"):
        lab.step(STILL, num_steps=100)
    with pytest.raises(RuntimeError, match="ViZDoom engine"):
        lab.reset(seed=2)
    lab.close()
    assert folders(tmp_path) == []


def test_signal_handlers_stay_pythons(stand_in):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    lab = stand_in()
    lab.reset(seed=1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    lab.step(STILL)
    lab.close()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_used_lab_repeats_an_episode_too(stand_in):
    lab = stand_in()
    lab.reset(seed=4)
    frames, rewards = random_walk(lab, seed=1, steps=60)
    lab.reset(seed=9)
    random_walk(lab, seed=2, steps=60)
    lab.reset(seed=4)
    again, rewards_again = random_walk(lab, seed=1, steps=60)
    assert rewards == rewards_again
    assert np.array_equal(frames, again)


def pose(lab):
    observations = lab.observations()
    return observations["DEBUG.POS.TRANS"], observations["DEBUG.POS.ROT"]


def free_start(lab):
    """Starts the first episode with a second's walk to the nearest wall ahead and no object on the way."""
    for seed in range(200):
        lab.reset(seed=seed)
        (x, y, _), (_, yaw, _) = pose(lab)
        ahead = [(x + d * math.cos(math.radians(yaw)), y + d * math.sin(math.radians(yaw))) for d in range(0, 400, 10)]
        inside = all(20 < px < 1564 and 20 < py < 1308 for px, py in ahead)
        if inside and all(max(abs(px - ox), abs(py - oy)) > 60 for px, py in ahead for _, ox, oy in lab._scene.objects):
            return
    raise AssertionError("no seed with a free way")


@pytest.mark.parametrize(("strafe", "forward"), [(0, 1), (0, -1), (1, 0), (1, 1)])
def test_top_speed_is_320_units_a_second_after_about_ten_frames(stand_in, strafe, forward):
    lab = stand_in()
    free_start(lab)
    # Turned so that every kind of walk goes down the free way.
    turn = math.degrees(math.atan2(strafe, forward))
    lab.step(np.array([-round(turn / 0.1056 / 4), 0, 0, 0, 0, 0, 0], np.intc), num_steps=4)
    action = np.array([0, 0, strafe, forward, 0, 0, 0], np.intc)
    speeds = []
    previous = pose(lab)[0]
    for _ in range(15):
        lab.step(action, num_steps=2)
        position = pose(lab)[0]
        speeds.append(float(np.hypot(*(position - previous)[:2])) * 30)
        previous = position
    assert speeds[0] < 120
    assert speeds[5] > 300
    assert speeds[-5:] == pytest.approx([320] * 5, abs=3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pixel_turns_a_tenth_of_a_degree_a_frame(stand_in, sign):
    lab = stand_in()
    lab.reset(seed=1)
    before = pose(lab)[1]
    lab.step(np.array([sign * 7, 0, 0, 0, 0, 0, 0], np.intc), num_steps=240)
    after = pose(lab)[1]
    turned = (before[1] - after[1]) % 360  # positive is right, which is clockwise
    assert turned == pytest.approx(sign * 7 * 240 * 0.1056 % 360, abs=0.01)
    lab.step(np.array([0, sign * 3, 0, 0, 0, 0, 0], np.intc), num_steps=80)
    assert pose(lab)[1][0] == pytest.approx(sign * 3 * 80 * 0.1056, abs=0.01)  # positive is down


def test_positive_looks_down(stand_in):
    """The ceiling leaves the picture, whatever the numbers say."""
    lab = stand_in()
    lab.reset(seed=1)
    ahead = lab.observations()["RGB_INTERLEAVED"]
    lab.step(np.array([0, 60, 0, 0, 0, 0, 0], np.intc), num_steps=8)
    down = lab.observations()["RGB_INTERLEAVED"]
    ceiling = np.array([153, 204, 255])
    assert (ahead[0] == ceiling).all()
    assert not (down[0] == ceiling).all()


def test_the_number_of_frames_a_step_does_not_change_where_one_goes(stand_in):
    ends = []
    for skip in (1, 2, 4, 6):
        lab = stand_in()
        free_start(lab)
        for _ in range(36 // skip):
            lab.step(np.array([3, 0, 0, 1, 0, 0, 0], np.intc), num_steps=skip)
        ends.append(np.concatenate(pose(lab)))
    for end in ends[1:]:
        assert end == pytest.approx(ends[0], abs=0.5)


def test_settings_places_and_yaw_are_spread(stand_in):
    from sf_fixpo.envs.dmlab.stand_in.levels import CollectGoodObjectsTrain, episode_rng

    level = CollectGoodObjectsTrain()
    scenes = [level.start(episode_rng(TRAIN, seed)) for seed in range(600)]
    settings = [(scene.objects[0][0], scene.objects[-1][0], scene.rooms[0].wall) for scene in scenes]
    counts = {setting: settings.count(setting) for setting in set(settings)}
    assert set(counts) == {("can", "hat", "WALLGREY"), ("balloon", "cake", "WALLGREY"), ("balloon", "cake", "WALLRED")}
    assert all(150 < count < 250 for count in counts.values())
    for scene in scenes:
        places = {(x, y) for _, x, y in scene.objects} | {scene.start[:2]}
        assert len(places) == 21
        assert all(0 < x < 1584 and 0 < y < 1328 for x, y in places)
    assert len({place for scene in scenes for place in {(x, y) for _, x, y in scene.objects}}) == 90
    assert np.mean([scene.start[2] for scene in scenes]) == pytest.approx(180, abs=20)


def test_the_test_level_holds_out_hat_and_can_between_red_walls(stand_in):
    lab = stand_in(TEST, config={**SIZE, "allowHoldOutLevels": "true"})
    for seed in range(5):
        lab.reset(seed=seed)
        assert {name for name, _, _ in lab._scene.objects} == {"hat", "can"}
        assert lab._scene.rooms[0].wall == "WALLRED"


@pytest.mark.parametrize("background", [(153, 153, 153), (204, 0, 0), (0, 51, 255), (153, 102, 51)])
def test_objects_differ_in_colour_from_each_other_and_from_the_walls(background):
    colours = [mean_colour(name) for name in ("hat", "can", "cake", "balloon")] + [np.array(background)]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 60


def test_apples_cakes_and_boxes_differ_in_colour_from_each_other_and_from_both_floors():
    colours = [mean_colour(name) for name in ("apple", "cake", "box")]
    colours += [textures()[name].reshape(-1, 3).mean(axis=0) for name in ("FLOORDRK", "FLOORBRT", "WALLGREY")]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 60


def test_the_36_shapes_differ_from_each_other_and_are_told_in_their_cages():
    assert len(SHAPES) == len(set(SHAPES)) == 36
    for names in (SHAPES, [caged(name) for name in SHAPES]):
        sprites = [sprite(name).astype(float) for name in names]
        pixels = [np.where(image[..., 3:] > 0, image[..., :3], 128.0) for image in sprites]
        distances = [np.abs(a - b).mean() for i, a in enumerate(pixels) for b in pixels[:i]]
        assert min(distances) > 8


def mean_colour(name):
    pixels = sprite(name)
    return pixels[pixels[..., 3] > 0][:, :3].mean(axis=0)


def test_every_kind_has_a_counter_of_its_own():
    assert len({counter(name) for name in OBJECTS}) == len(OBJECTS)
    rng = np.random.default_rng(0)
    for _ in range(20):
        counted = rng.integers(0, MOST_OF_A_KIND + 1, len(OBJECTS))
        slots = [0] * 10
        for name, count in zip(OBJECTS, counted, strict=True):
            slot, unit = counter(name)
            slots[slot] += int(count) * unit
        assert max(slots) < 2**31
        assert counts(tuple(slots)) == tuple(counted)


def test_more_of_a_kind_than_can_be_counted_is_refused():
    Scene((), tuple(("apple", float(i), 0.0) for i in range(MOST_OF_A_KIND)), (0, 0, 0))
    with pytest.raises(ValueError, match=f"{MOST_OF_A_KIND + 1} objects called 'apple'"):
        Scene((), tuple(("apple", float(i), 0.0) for i in range(MOST_OF_A_KIND + 1)), (0, 0, 0))


def test_the_nearest_of_a_name_is_taken_away():
    objects = (("apple", 0.0, 0.0), ("box", 60.0, 0.0), ("apple", 100.0, 0.0), ("apple", 130.0, 0.0))
    assert without_nearest(objects, "apple", Pose(70, 0, 0)) == (objects[0], objects[1], objects[3])
    assert without_nearest(objects, "apple", Pose(70, 0, 0), count=2) == (objects[0], objects[1])
    with pytest.raises(ValueError, match="no 'apple' is left"):
        without_nearest(objects, "apple", Pose(0, 0, 0), count=4)
