"""The level cache under fire: processes that are killed while they use it, and environments that claim their seeds."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from cache_players import (
    COMPILING_LAB,
    LEVELS,
    die_everywhere,
    index_of,
    lines_in,
    play,
    used_in,
)
from programs import started

from sf_fixpo.envs.dmlab.cache.level_cache import (
    index_path,
)


@pytest.fixture(scope="module")
def fork_server():
    """Starts processes at once: its own process has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sf_fixpo.envs.dmlab.cache.level_cache"]
    )  # an installed module: the server does not get pytest's path
    first = context.Process(target=int)
    first.start()
    first.join(60)
    assert first.exitcode == 0
    return context


def run_players(context, folder: Path, experiment: str, episodes: int) -> None:
    players = [context.Process(target=play, args=(folder, experiment, episodes)) for _ in range(4)]
    for player in players:
        player.start()
    for player in players:
        player.join(60)
        assert player.exitcode == 0


def noted(folder: Path, experiment: str) -> list[tuple[str, int]]:
    """Claims that came back to a process."""
    lines = (line.split() for line in (folder / f"claims.{experiment}").read_text().splitlines())
    return [(level, int(seed)) for level, seed in lines]


def assert_cache_is_whole(folder: Path, experiments: tuple[str, ...] = ("a",)) -> int:
    """Every entry readable, none twice, no seed used twice; returns the number of entries."""
    count = 0
    for level in LEVELS:
        entries = index_of(folder, level)
        seeds, keys = [seed for seed, _ in entries], [key for _, key in entries]
        assert len(set(seeds)) == len(seeds)
        assert len(set(keys)) == len(keys)
        for key in keys:
            assert zipfile.ZipFile(folder / "cache" / key).testzip() is None
        for experiment in experiments:
            used = used_in(folder, experiment, level)
            assert len(set(used)) == len(used)
        count += len(entries)
    for path in (folder / "cache").iterdir():
        assert path.is_dir() or zipfile.is_zipfile(path), "a map of which only a part is there"
    for experiment in experiments:
        claims = noted(folder, experiment)
        assert max(Counter(claims).values()) == 1, "a seed was handed out twice"
        assert all(seed in set(used_in(folder, experiment, level)) for level, seed in claims)
    return count


def test_four_processes_200_maps_one_killed_at_random_moments_and_a_resume(fork_server, tmp_path):
    rng = random.Random(5)
    players = {}
    kills = 0
    deadline = time.monotonic() + 60
    try:
        while kills < 12 or sum(lines_in(index_path(tmp_path / "cache", level)) for level in LEVELS) < 200:
            assert time.monotonic() < deadline
            for number in range(4):
                if number not in players:
                    players[number] = fork_server.Process(target=play, args=(tmp_path, "a", 10**6))
                    players[number].start()
            time.sleep(rng.uniform(0.05, 0.2))
            victim = players.pop(rng.randrange(4))
            assert victim.is_alive()
            victim.kill()
            victim.join()
            assert victim.exitcode == -signal.SIGKILL
            kills += 1
        (tmp_path / "stop").touch()
        for player in players.values():
            player.join(30)
            assert player.exitcode == 0
    finally:
        for player in players.values():
            player.kill()
            player.join()
    assert assert_cache_is_whole(tmp_path) >= 200

    (tmp_path / "stop").unlink()
    before = len(noted(tmp_path, "a"))
    run_players(fork_server, tmp_path, "a", episodes=20)
    assert len(noted(tmp_path, "a")) == before + 80
    assert_cache_is_whole(tmp_path)

    maps = {level: {seed for seed, _ in index_of(tmp_path, level)} for level in LEVELS}
    run_players(fork_server, tmp_path, "b", episodes=20)
    assert all(seed in maps[level] for level, seed in noted(tmp_path, "b")), "a new experiment plays maps that are there"
    assert_cache_is_whole(tmp_path, ("a", "b"))


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_line_of_the_caches_code_does_no_harm(fork_server, tmp_path, stride):
    player = fork_server.Process(target=die_everywhere, args=(tmp_path, stride))
    player.start()
    player.join(250)
    assert player.exitcode == 0
    deaths = [folder for folder in tmp_path.iterdir() if (folder / "died").exists()]
    assert len(deaths) > 300 / stride
    if stride == 1:
        functions = {(folder / "died").read_text() for folder in deaths}
        assert {"_store", "_note", "append", "claim", "_cut_torn_line"} <= functions
    for folder in deaths:
        assert assert_cache_is_whole(folder) >= 2, "the episodes after the kill"


PLAY = """
import json, sys
from argparse import ArgumentParser
from sf_fixpo.envs.dmlab import SUITE
parser = ArgumentParser()
SUITE.add_args(parser)
cfg = parser.parse_args(sys.argv[1:])
cfg.env, cfg.seed, cfg.env_frameskip, cfg.pixel_format = "dmlab_30_explore_goal_locations_small", 1, 4, "CHW"
cfg.train_dir, cfg.experiment = "train", "a"
assert SUITE.faults(cfg) == [], SUITE.faults(cfg)
env = SUITE.make_env(cfg.env, cfg)
assert env.unwrapped.engine == "deepmind_lab"
for _ in range(4):
    env.reset()
env.close()
"""


def test_environments_claim_their_seeds(tmp_path):
    (tmp_path / "play.py").write_text(PLAY.replace('"train"', json.dumps(str(tmp_path / "train"))))
    for runs in (1, 2):
        argv = [str(tmp_path / "play.py"), f"--dmlab_level_cache_path={tmp_path / 'cache'}"]
        path = os.pathsep.join([str(COMPILING_LAB), str(Path(__file__).parents[3])])
        with started(tmp_path / f"run{runs}", *argv, env={"PYTHONPATH": path}) as run:
            assert run.wait(60) == 0, run.report()
        used = used_in(tmp_path)
        assert len(used) == len(set(used)) == 4 * runs
        assert [seed for seed, _ in index_of(tmp_path)] == used
