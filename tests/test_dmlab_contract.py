"""One contract for every engine that plays DMLab-30 levels: DeepMind Lab where it is installed, and its stand-in.

The first part knows nothing but the interface both have. The second looks into the stand-in: its files, its process, its physics,
and a scripted walker that collects every point there is.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from envs.dmlab import engines
from envs.dmlab.workspace import FOLDER_PREFIX, sweep

TRAIN = "contributed/dmlab30/rooms_collect_good_objects_train"
TEST = "contributed/dmlab30/rooms_collect_good_objects_test"
SIZE = {"width": "96", "height": "72"}
FRAMES = 3600
SKIP = 4

STILL = np.zeros(7, np.intc)
FORWARD = np.array([0, 0, 0, 1, 0, 0, 0], np.intc)


@pytest.fixture(params=engines.installed_engines(), scope="module")
def engine(request):
    return engines.engine_module(request.param)


@pytest.fixture
def make_lab(engine, tmp_path):
    """Makes Labs that are closed when the test ends."""
    labs = []

    def make(level=TRAIN, observations=("RGB_INTERLEAVED",), config=SIZE, **kwargs):
        labs.append(engine.Lab(level, list(observations), config=dict(config), **kwargs))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


@pytest.fixture
def stand_in(tmp_path):
    """Makes stand-in Labs whose files lie in `tmp_path`."""
    if not engines.installed(engines.VIZDOOM):
        pytest.skip("the stand-in is not installed")
    from envs.dmlab.vizdoom_engine import Lab

    labs = []

    def make(level=TRAIN, observations=("RGB_INTERLEAVED", "DEBUG.POS.TRANS", "DEBUG.POS.ROT"), config=SIZE):
        labs.append(Lab(level, list(observations), config=dict(config), temp_folder=str(tmp_path)))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


def random_walk(lab, seed, steps):
    """Frames and rewards of a random agent."""
    rng = np.random.default_rng(seed)
    frames, rewards = [lab.observations()["RGB_INTERLEAVED"]], []
    for _ in range(steps):
        action = np.array([rng.integers(-40, 41), 0, rng.integers(-1, 2), rng.integers(-1, 2), 0, 0, 0], np.intc)
        rewards.append(lab.step(action, num_steps=SKIP))
        if not lab.is_running():
            break
        frames.append(lab.observations()["RGB_INTERLEAVED"])
    return np.array(frames), rewards


# ------------------------------------------------------------------------------------------------- what both engines do


def test_specs(make_lab):
    lab = make_lab(observations=["RGB_INTERLEAVED", "INSTR"])
    assert lab.action_spec() == [
        {"name": "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME", "min": -512, "max": 512},
        {"name": "LOOK_DOWN_UP_PIXELS_PER_FRAME", "min": -512, "max": 512},
        {"name": "STRAFE_LEFT_RIGHT", "min": -1, "max": 1},
        {"name": "MOVE_BACK_FORWARD", "min": -1, "max": 1},
        {"name": "FIRE", "min": 0, "max": 1},
        {"name": "JUMP", "min": 0, "max": 1},
        {"name": "CROUCH", "min": 0, "max": 1},
    ]
    specs = {spec["name"]: spec for spec in lab.observation_spec()}
    assert specs["RGB_INTERLEAVED"]["dtype"] is np.uint8
    assert tuple(specs["RGB_INTERLEAVED"]["shape"]) == (72, 96, 3)
    assert specs["INSTR"]["dtype"] is str
    assert lab.fps() == 60
    assert not lab.is_running()


@pytest.mark.parametrize(("width", "height"), [(96, 72), (48, 36), (160, 120), (320, 240)])
def test_observations_have_exactly_the_size_asked_for(make_lab, width, height):
    lab = make_lab(observations=["RGB_INTERLEAVED", "INSTR"], config={"width": str(width), "height": str(height)})
    lab.reset(seed=1)
    observations = lab.observations()
    assert set(observations) == {"RGB_INTERLEAVED", "INSTR"}
    frame = observations["RGB_INTERLEAVED"]
    assert frame.dtype == np.uint8
    assert frame.shape == (height, width, 3)
    assert frame.std() > 5
    assert observations["INSTR"] == ""
    assert isinstance(observations["INSTR"], str)


def test_frames_belong_to_the_caller(make_lab):
    lab = make_lab()
    lab.reset(seed=1)
    frame = lab.observations()["RGB_INTERLEAVED"]
    before = frame.copy()
    for _ in range(5):
        lab.step(FORWARD, num_steps=SKIP)
        lab.observations()
    assert np.array_equal(frame, before)


def test_same_seed_on_a_fresh_lab_is_the_same_episode(make_lab):
    first, second = make_lab(), make_lab()
    first.reset(seed=12)
    second.reset(seed=12)
    frames, rewards = random_walk(first, seed=3, steps=150)
    again, rewards_again = random_walk(second, seed=3, steps=150)
    assert rewards == rewards_again
    assert np.array_equal(frames, again)


def test_other_seeds_are_other_episodes(make_lab):
    lab = make_lab()
    starts = []
    for seed in range(4):
        lab.reset(seed=seed)
        starts.append(lab.observations()["RGB_INTERLEAVED"])
    assert len({frame.tobytes() for frame in starts}) == 4


def test_reset_without_a_seed_draws_one(make_lab):
    lab = make_lab()
    starts = set()
    for _ in range(3):
        lab.reset()
        starts.add(lab.observations()["RGB_INTERLEAVED"].tobytes())
    assert len(starts) == 3


@pytest.mark.parametrize("seed", [np.int64(3), 2**31, "3", 1.5])
def test_a_seed_that_is_no_small_python_int_is_refused(make_lab, seed):
    lab = make_lab()
    with pytest.raises((ValueError, TypeError)):
        lab.reset(seed=seed)
    lab.reset(seed=2**31 - 1)


def test_an_episode_without_pickups_lasts_900_steps_at_skip_4(make_lab):
    lab = make_lab()
    lab.reset(seed=5)
    steps = total = 0
    while lab.is_running():
        total += lab.step(STILL, num_steps=SKIP)
        steps += 1
    assert steps == FRAMES // SKIP
    assert lab.num_steps() == FRAMES
    assert total == 0


def test_frames_are_counted_for_any_number_of_steps(make_lab):
    lab = make_lab()
    lab.reset(seed=5)
    for expected, count in ((1, 1), (2, 1), (5, 3), (12, 7), (112, 100)):
        lab.step(STILL, num_steps=count)
        assert lab.num_steps() == expected
    lab.step(STILL, num_steps=FRAMES)
    assert not lab.is_running()


def test_random_returns_are_within_the_levels_range(make_lab):
    lab = make_lab()
    for seed in range(3):
        lab.reset(seed=seed)
        _, rewards = random_walk(lab, seed=seed, steps=FRAMES // SKIP)
        assert set(rewards) <= {-1.0, 0.0, 1.0}
        assert -10 <= sum(rewards) <= 10
        assert not lab.is_running()


def test_the_end_of_an_episode_is_the_end(make_lab):
    lab = make_lab()
    lab.reset(seed=1)
    lab.step(STILL, num_steps=FRAMES)
    with pytest.raises(RuntimeError):
        lab.observations()
    with pytest.raises(RuntimeError):
        lab.step(STILL)
    lab.reset(seed=2)
    assert lab.is_running()
    assert lab.num_steps() == 0
    lab.observations()


def test_nothing_goes_before_the_first_reset(make_lab):
    lab = make_lab()
    with pytest.raises(RuntimeError):
        lab.observations()
    with pytest.raises(RuntimeError):
        lab.step(STILL)


@pytest.mark.parametrize("action", [np.zeros(7), np.zeros(7, np.int64), np.zeros(6, np.intc), np.zeros((1, 7), np.intc)])
def test_an_action_of_another_type_or_shape_is_refused(make_lab, action):
    lab = make_lab()
    lab.reset(seed=1)
    with pytest.raises(ValueError):  # noqa: PT011 (the texts differ)
        lab.step(action)


def test_an_action_out_of_range_is_not_refused(make_lab):
    lab = make_lab()
    lab.reset(seed=1)
    lab.step(np.array([9999, -9999, 5, -5, 3, 0, 0], np.intc), num_steps=SKIP)


def test_an_unknown_level_is_refused(engine):
    with pytest.raises(RuntimeError, match="Level not found"):
        engine.Lab("contributed/dmlab30/no_such_level", ["RGB_INTERLEAVED"], config=SIZE).reset(seed=1)


def test_an_unknown_observation_is_refused(engine):
    with pytest.raises(ValueError, match="NO_SUCH"):
        engine.Lab(TRAIN, ["NO_SUCH"], config=SIZE)


def test_config_values_must_be_strings_and_observations_a_list(engine):
    with pytest.raises((TypeError, ValueError)):
        engine.Lab(TRAIN, ["RGB_INTERLEAVED"], config={"width": 96, "height": 72})
    with pytest.raises((TypeError, ValueError)):
        engine.Lab(TRAIN, ("RGB_INTERLEAVED",), config=SIZE)


def test_a_test_level_needs_leave(engine, make_lab):
    with pytest.raises(RuntimeError):
        engine.Lab(TEST, ["RGB_INTERLEAVED"], config=SIZE).reset(seed=1)
    lab = make_lab(TEST, config={**SIZE, "allowHoldOutLevels": "true"})
    lab.reset(seed=1)
    assert lab.observations()["RGB_INTERLEAVED"].shape == (72, 96, 3)


def test_a_level_cache_is_accepted(make_lab):
    class Cache:
        def fetch(self, key, pk3_path):
            return False

        def write(self, key, pk3_path):
            pass

    lab = make_lab(level_cache=Cache())
    lab.reset(seed=1)


def test_several_labs_in_one_process_do_not_meet(make_lab):
    alone = make_lab()
    alone.reset(seed=7)
    frames, _ = random_walk(alone, seed=1, steps=30)
    labs = [make_lab() for _ in range(3)]
    for number, lab in enumerate(labs):
        lab.reset(seed=7 + number)
    for lab in labs[1:]:
        random_walk(lab, seed=9, steps=10)
    again, _ = random_walk(labs[0], seed=1, steps=30)
    assert np.array_equal(frames, again)


def test_closing_twice_is_fine_and_a_closed_lab_is_closed(make_lab):
    lab = make_lab()
    lab.reset(seed=1)
    lab.close()
    lab.close()


def test_a_process_that_exits_inside_the_engine_ends(engine):
    code = f"""
import sys
from {engine.__name__} import Lab
lab = Lab("{TRAIN}", ["RGB_INTERLEAVED"], config={SIZE})
lab.reset(seed=1)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr


# --------------------------------------------------------------------------------------------------- the stand-in alone


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


def test_a_lab_that_is_forgotten_closes_itself(stand_in, tmp_path):
    from envs.dmlab.vizdoom_engine import Lab

    Lab(TRAIN, ["RGB_INTERLEAVED"], config=SIZE, temp_folder=str(tmp_path)).reset(seed=1)
    gc.collect()
    assert folders(tmp_path) == []


def test_what_a_killed_process_leaves_is_swept(stand_in, tmp_path):
    code = f"""
import os
from envs.dmlab.vizdoom_engine import Lab
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
        for _ in range(3):
            lab.step(STILL, num_steps=SKIP)
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
    from envs.dmlab.levels import CollectGoodObjectsTrain, episode_rng

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


@pytest.mark.parametrize("background", [(204, 204, 153), (204, 0, 0), (0, 51, 255), (153, 153, 102)])
def test_objects_differ_in_colour_from_each_other_and_from_the_walls(background):
    from envs.dmlab.resources import OBJECTS
    from envs.dmlab.sprites import sprite

    def mean_colour(name):
        pixels = sprite(name)
        return pixels[pixels[..., 3] > 0][:, :3].mean(axis=0)

    colours = [mean_colour(name) for name in OBJECTS] + [np.array(background)]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 60


# The walker knows where everything stands. It plans on a grid, keeps clear of what it must not touch, and walks slowly enough
# to stop in time: the player slides on for a sixth of its speed.
CELL = 16
CLEARANCE = 60
WALKING_SPEED = 140


def plan(start, goal, avoid):
    """Way points from one place to another around squares, or [] where there is none."""
    columns, rows = 1584 // CELL, 1328 // CELL

    def cell(x, y):
        return min(int(x // CELL), columns - 1), min(int(y // CELL), rows - 1)

    def is_free(place):
        x, y = place[0] * CELL + CELL / 2, place[1] * CELL + CELL / 2
        inside = 20 < x < 1564 and 20 < y < 1308
        return inside and all(max(abs(x - ax), abs(y - ay)) > CLEARANCE for ax, ay in avoid)

    first, last = cell(*start), cell(*goal)
    parents, queue = {first: None}, deque([first])
    while queue:
        place = queue.popleft()
        if place == last:
            way = []
            while place is not None:
                way.append((place[0] * CELL + CELL / 2, place[1] * CELL + CELL / 2))
                place = parents[place]
            return way[::-1]
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            near = place[0] + dx, place[1] + dy
            if near not in parents and (near == last or is_free(near)):
                parents[near] = place
                queue.append(near)
    return []


def collect(lab, wanted, unwanted, skip):
    """Walks from one wanted object to the nearest next until the episode ends; returns the reward of every step."""
    rewards, left, way = [], list(wanted), []
    previous = pose(lab)[0]
    while lab.is_running():
        (x, y, _), (_, yaw, _) = pose(lab)
        speed = math.hypot(x - previous[0], y - previous[1]) * 60 / skip
        previous = (x, y)
        if not way and left:
            left.sort(key=lambda place: math.hypot(place[0] - x, place[1] - y))
            way = next(filter(None, (plan((x, y), place, unwanted) for place in left)), [])
        while way and math.hypot(way[0][0] - x, way[0][1] - y) < 24:
            way.pop(0)
        action = STILL.copy()
        if way:
            bearing = math.degrees(math.atan2(way[0][1] - y, way[0][0] - x))
            off = (yaw - bearing + 180) % 360 - 180
            action[0] = max(-512, min(512, round(off / 0.1056 / skip)))
            action[3] = int(abs(off) < 20 and speed < WALKING_SPEED)
        rewards.append(lab.step(action, num_steps=skip))
        if rewards[-1]:
            left = [place for place in left if max(abs(place[0] - x), abs(place[1] - y)) > 75]
            way = []
    return rewards


def objects_of(lab, good):
    names = ("can", "balloon") if good else ("hat", "cake")
    return [(x, y) for name, x, y in lab._scene.objects if name in names]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_walker_that_knows_the_places_gets_every_point(stand_in, sign):
    lab = stand_in()
    totals = []
    for seed in range(4):
        lab.reset(seed=seed)
        rewards = collect(lab, objects_of(lab, sign > 0), objects_of(lab, sign < 0), skip=2)
        totals.append(sum(rewards))
        # Step by step two frames, so the frame of the tenth pickup is known: the episode ends 12 frames later, not on time.
        tenth = next(i for i, total in enumerate(np.cumsum(np.abs(rewards))) if total == 10) + 1
        assert lab.num_steps() - 2 * tenth == 12
        assert lab.num_steps() < FRAMES
    assert totals == [sign * 10] * 4


def test_the_end_is_on_the_exact_frame_at_any_skip(stand_in):
    """The same walk, replayed with longer steps, ends with the same frame and the same return."""
    lab = stand_in()
    lab.reset(seed=0)
    recorded = []
    step = lab.step

    def record(action, num_steps=1):
        recorded.append(action)
        return step(action, num_steps)

    lab.step = record
    total = sum(collect(lab, objects_of(lab, True), objects_of(lab, False), skip=2))
    frames = lab.num_steps()
    # Pairs of frames that ask for the same are joined into steps of up to 10 frames.
    lab.step = step
    lab.reset(seed=0)
    replayed, i = 0.0, 0
    while lab.is_running():
        j = i + 1
        while j < len(recorded) and j - i < 5 and np.array_equal(recorded[j], recorded[i]):
            j += 1
        replayed += lab.step(recorded[i], num_steps=2 * (j - i))
        i = j
    assert replayed == total
    assert lab.num_steps() == frames
