"""An engine that does not survive an episode, or is given a broken map: what is said, and the command that repeats it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import psutil
import pytest
from test_dmlab_env import NAME, make_cfg

from sf_fixpo.envs.dmlab import repeat
from sf_fixpo.envs.dmlab.env import make_env
from sf_fixpo.envs.dmlab.stand_in.scene import Scene
from sf_fixpo.envs.dmlab.stand_in.wad import check_map, map_lumps, pack_wad

WHOLE = pack_wad(map_lumps("MAP01", b"things"))
BROKEN = {
    "no WAD: 0 bytes": b"",
    "its directory of 4 lumps": WHOLE[:100],
    "without the lump TEXTMAP": WHOLE.replace(b"TEXTMAP", b"TEXTMAQ"),
    "without the lump BEHAVIOR": WHOLE.replace(b"BEHAVIOR", b"BEHAVIOX"),
    "its lump BEHAVIOR holds no scripts": WHOLE.replace(b"ACS\0", b"ACX\0"),
    "its directory of 2021161080 lumps": b"PWADxxxxxxxxxxxxx",
}


@pytest.fixture
def played(tmp_path):
    """An environment on the stand-in after some steps, whose experiment has a folder."""
    (tmp_path / "run").mkdir()
    env = make_env(NAME, make_cfg(dmlab_engine="vizdoom", train_dir=str(tmp_path), experiment="run"))
    env.reset(seed=3)
    for action in (0, 1, 2, 3, 4):
        env.step(action)
    yield env
    env.close()


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_map_is_refused_in_words(said):
    check_map(WHOLE)
    with pytest.raises(ValueError, match=said):
        check_map(BROKEN[said])


@pytest.mark.parametrize(
    ("wad", "said"), [(BROKEN["without the lump TEXTMAP"], "without the lump TEXTMAP"), (WHOLE, "could not load a map: .*")]
)
def test_an_episode_on_a_broken_map_ends_with_the_level_and_the_seed(played, monkeypatch, wad, said):
    monkeypatch.setattr(Scene, "wad", lambda scene: wad)
    with pytest.raises(
        RuntimeError, match=rf"(?s)^rooms_collect_good_objects_train, seed \d+: no episode .*{said}.*to repeat it"
    ):
        played.reset()


def record_of(message):
    """The file that a fault's message names."""
    [path] = re.findall(r"dmlab\.repeat (\S+)\]", message)
    return path


def kill_engines():
    for process in psutil.Process().children(recursive=True):
        if process.name() == "vizdoom":
            process.kill()
            process.wait()


def test_an_engine_that_dies_in_a_step_is_reported_and_one_command_repeats_the_episode(played, tmp_path, capsys):
    kill_engines()
    where = (
        r"^rooms_collect_good_objects_train, seed (\d+), in the step from frame 20: the ViZDoom engine stopped during an episode"
    )
    with pytest.raises(RuntimeError, match=where) as caught:
        played.step(5)
    path = record_of(str(caught.value))
    assert path.startswith(str(tmp_path / "run"))
    with open(path) as file:
        record = json.load(file)
    assert record["actions"] == [0, 1, 2, 3, 4, 5]
    assert f"seed {record['seed']}," in str(caught.value)
    assert repeat.main([path]) == 0
    assert capsys.readouterr().out == f"rooms_collect_good_objects_train, seed {record['seed']}: no fault in 24 frames\n"


def test_what_repeats_ends_as_the_episode_did(played, monkeypatch, capsys):
    monkeypatch.setattr("sf_fixpo.envs.dmlab.stand_in.levels.CollectGoodObjects.watchful", lambda level: 1 / 0)
    with pytest.raises(RuntimeError, match="from frame 20: ZeroDivisionError: division by zero") as caught:
        played.step(0)
    assert repeat.main([record_of(str(caught.value))]) == 1
    assert "from frame 0: ZeroDivisionError" in capsys.readouterr().err


def test_a_record_that_is_none_is_refused(tmp_path, capsys):
    assert repeat.main([str(tmp_path / "nothing")]) == 2
    (tmp_path / "other.json").write_text("{}")
    assert repeat.main([str(tmp_path / "other.json")]) == 2
    assert "it has no actions, engine, flags, level, seed" in capsys.readouterr().err


def test_without_an_experiment_the_record_lies_in_the_temporary_folder(tmp_path, monkeypatch):
    from sf_fixpo.envs.dmlab.broken import write_episode

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = write_episode(SimpleNamespace(), "rooms_watermaze", "vizdoom", 7, [1])
    assert record_of(said).startswith(str(tmp_path / "broken_rooms_watermaze_7_"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert write_episode(SimpleNamespace(), "rooms_watermaze", "vizdoom", 7, [1]) == "", "the fault itself is said all the same"
