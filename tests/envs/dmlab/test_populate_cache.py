"""The program that fills the level cache: real processes and kills, on the small engine made for tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from cache_players import COMPILING_LAB, LEVEL, LEVELS, index_of, lines_in
from programs import started

from sf_fixpo.envs.dmlab.cache import populate_cache
from sf_fixpo.envs.dmlab.cache.level_cache import index_path


def populate_cfg(*flags: str):
    cfg = populate_cache.make_parser().parse_args(list(flags))
    cfg.dmlab_engine = "deepmind_lab"
    return cfg


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--count=0", "--count=0: must be at least 1"),
        ("--frames=0", "--frames=0.0: must be more than 0"),
        ("--frames=nan", "--frames=nan: must be more than 0"),
        ("--workers=0", "--workers=0: must be at least 1"),
        ("--seed=-1", "--seed=-1: must be at least 0"),
        ("--levels=explore_goal_location_small", "did you mean"),
        ("--levels=rooms_watermaze", "rooms_watermaze has no use for the cache"),
    ],
)
def test_bad_flags_of_the_program(tmp_path, flag, message):
    (fault,) = populate_cache.flag_faults(populate_cfg(flag, f"--dmlab_level_cache_path={tmp_path / 'cache'}"))
    assert message in fault.replace("Did", "did")
    assert not (tmp_path / "cache").exists()


def test_how_many_maps_a_level_gets():
    assert len(populate_cache.levels_to_fill(populate_cfg())) == 15
    assert populate_cache.wanted_maps(populate_cfg("--frames=1e10"), "rooms_keys_doors_puzzle") == 112_000
    assert populate_cache.wanted_maps(populate_cfg("--frames=1e5"), f"{LEVEL}_test") == 1
    assert populate_cache.wanted_maps(populate_cfg("--count=5"), LEVEL) == 5


def test_the_stand_in_compiles_nothing_and_the_program_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        populate_cache.main([f"--dmlab_level_cache_path={tmp_path / 'cache'}", "--dmlab_engine=vizdoom"])
    assert caught.value.code == 2
    assert "compiles no maps" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


# ----------------------------------------------------------------------------------------------------- whole programs


def populate(folder: Path, *flags: str, name: str = "run", **environment: str):
    """The program on the engine that compiles; a context manager, see `programs.started`."""
    argv = [
        "-m",
        "sf_fixpo.envs.dmlab.cache.populate_cache",
        f"--dmlab_level_cache_path={folder / 'cache'}",
        f"--levels={','.join(LEVELS)}",
    ]
    return started(folder / name, *argv, *flags, env={"PYTHONPATH": str(COMPILING_LAB), "TMPDIR": str(folder), **environment})


def counts(folder: Path) -> list[int]:
    return [lines_in(index_path(folder / "cache", level)) for level in LEVELS]


def test_the_program_fills_the_cache_through_the_death_of_a_worker_and_goes_on_where_it_was(tmp_path):
    with populate(tmp_path, "--count=10", "--workers=2", "--seed=1", COMPILING_LAB_SECONDS="0.05") as run:
        run.wait_until(lambda: sum(counts(tmp_path)) >= 4)
        children = psutil.Process(run.popen.pid).children()
        workers = [worker for child in children for worker in child.children()]  # of the fork server
        assert len(workers) == 2
        workers[0].kill()
        assert run.wait(60) == 0, run.report()
        run.assert_nothing_left()
        assert "the worker ended with SIGKILL, status 137 at seed" in run.stdout
        assert "20 maps added" in run.stdout
    assert counts(tmp_path) == [10, 10]
    before = [index_of(tmp_path, level) for level in LEVELS]
    with populate(tmp_path, "--count=12", "--seed=1", name="again") as run:
        assert run.wait(60) == 0, run.report()
        assert "4 maps added" in run.stdout
    for level, entries in zip(LEVELS, before, strict=True):
        assert index_of(tmp_path, level)[:10] == entries
    assert counts(tmp_path) == [12, 12]
    assert not list(tmp_path.glob("dmlab_*")), "nothing is left in the temporary folder"


def test_ctrl_c_keeps_what_is_there(tmp_path):
    with populate(tmp_path, "--count=1000", "--workers=2", COMPILING_LAB_SECONDS="0.1") as run:
        run.wait_until(lambda: sum(counts(tmp_path)) >= 4)
        os.killpg(run.popen.pid, signal.SIGINT)  # as a terminal does: to every process
        assert run.wait(30) == 130, run.report()
        run.assert_nothing_left()
        assert "Stopped" in run.stdout
        assert "Traceback" not in run.stderr + run.stdout
        assert f"{sum(counts(tmp_path))} maps added" in run.stdout
    assert not list(tmp_path.glob("dmlab_*"))


def test_levels_that_yield_nothing_are_given_up_and_the_others_filled(tmp_path):
    others = ("skymaze_irreversible_path_hard", "lasertag_one_opponent_small", "explore_object_rewards_few")
    levels = f"--levels={','.join((*LEVELS, *others))}"
    faults = {"COMPILING_LAB_BREAKS": "rooms_keys", "COMPILING_LAB_REFUSES": "skymaze", "COMPILING_LAB_DEAF": "lasertag"}
    faults["COMPILING_LAB_ABORTS"] = "explore_object_rewards"
    with populate(tmp_path, levels, "--count=3", "--workers=2", **faults) as run:
        assert run.wait(90) == 1, run.report()
        out = run.stdout
    assert counts(tmp_path) == [3, 0]
    assert "rooms_keys_doors_puzzle: the worker ended with exit code 1" in out
    assert "rooms_keys_doors_puzzle: 0 of 3 maps" in out
    assert "Level not found" in out
    assert "lasertag_one_opponent_small: the engine did not ask the level cache for a map" in out
    assert "explore_object_rewards_few: the worker ended with SIGABRT, status 134 at seed" in out
    assert "q3map2 and bspc, abort (status 134) where memory or the temporary directory is full" in out
    assert out.count("given up after 3 failures in a row") == 4
