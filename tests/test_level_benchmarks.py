"""The measurements of the thirty levels: they play what they say, go on where they were, and every level has a player."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from PIL import Image

from benchmarks.levels import growth, labs, scores, sheet, speed
from benchmarks.levels.__main__ import main
from benchmarks.levels.players.episodes import player_of
from sf_fixpo.envs.dmlab.stand_in.levels import LEVELS

SHORT = "rooms_select_nonmatching_object"
LIGHT = "psychlab_visual_search"  # needs no engine


def test_every_level_is_measured_and_has_a_player():
    assert set(labs.all_levels()) == set(LEVELS)
    assert len(labs.all_levels()) == 32
    assert all(callable(player_of(level)) for level in labs.all_levels())


def test_the_player_beats_the_random_agent_and_comes_near_the_most():
    walker, random = (scores.play_block(SHORT, agent, 0, 1) for agent in ("walker", "random"))
    assert walker.returns == [67.0]
    assert walker.returns[0] > 60 > random.returns[0]
    assert 67 <= walker.most[0] < 90
    assert not random.most
    assert scores.play_block(SHORT, "walker", 0, 1) == walker, "the same seeds are the same episodes"


@pytest.mark.slow
@pytest.mark.parametrize("level", labs.all_levels())
def test_every_player_gets_at_least_half_of_the_most(level):
    played = scores.play_block(level, "walker", 0, 3)
    if not played.most:  # opponents that shoot back: no rule says what is possible
        assert level.startswith("lasertag")
        return
    assert statistics.fmean(played.returns) >= statistics.fmean(played.most) / 2


def test_a_table_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    path = tmp_path / "levels.csv"
    monkeypatch.setattr(scores, "BLOCK", 2)
    wanted = list(scores.missing_blocks(path, [SHORT, LIGHT], scores.AGENTS, 3))
    assert wanted == [(level, agent, first) for first in (0, 2) for level in (SHORT, LIGHT) for agent in scores.AGENTS]
    played = []

    def play(level, agent, first):
        played.append((level, agent, first))
        return scores.Played([1.0, 2.0], [4.0, 4.0] if agent == "walker" else [])

    monkeypatch.setattr(scores, "play_block", play)
    argv = ["scores", f"--levels={SHORT}", f"--out={path}"]
    assert main([*argv, "--episodes=2"]) == 0
    assert main([*argv, "--episodes=4", "--agents=walker"]) == 0
    assert played == [(SHORT, "random", 0), (SHORT, "walker", 0), (SHORT, "walker", 2)]
    out = capsys.readouterr().out
    assert f"| {SHORT} | 1.50 (0.50, 2) | 0.312 | 1.50 (0.29, 4) | 4.0 | 38 % | 65.9 |" in out
    assert main([*argv, "--minutes=0", "--episodes=100"]) == 0
    assert len(played) == 3, "no time is left"


def test_speed_memory_and_growth_are_measured():
    found = speed.speed_of(LIGHT, 0.3)
    assert found.steps > 100
    assert 0 < found.start < 5
    assert 0 < found.restart < 5
    assert LIGHT in speed.table([found])
    assert speed.Speed(LIGHT, 1499, 1, 0.31, 0.011).misses() == ["steps", "start", "restart"]
    assert not speed.Speed(LIGHT, 1501, 1, 0.29, 0.009).misses()
    grown = growth.growth_of(LIGHT, 30)
    assert (grown.episodes, grown.files) == (30, 0)
    assert abs(grown.late - grown.early) < 5
    assert grown.late > 50


def test_a_frame_of_a_level_shows_something():
    assert sheet.frame_of(LIGHT).std() > 10


@pytest.mark.slow
def test_the_sheet_has_thirty_frames(tmp_path):
    sheet.write_sheet(tmp_path / "levels.png")
    picture = np.asarray(Image.open(tmp_path / "levels.png").convert("RGB"))
    assert picture.shape == (6 * 214 + 6, 5 * 262 + 6, 3)


def test_an_unknown_level_or_agent_is_refused(capsys):
    assert main(["--levels=rooms_watermase"]) == 2
    assert main(["scores", "--agents=human"]) == 2
    assert "no such level or agent" in capsys.readouterr().err
