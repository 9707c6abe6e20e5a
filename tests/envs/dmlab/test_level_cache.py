"""The level cache: real files, locks, processes and kills; only the engine that asks it is a small one made for tests."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cache_players import (
    LEVEL,
    cache_cfg,
    fill,
    index_of,
    make_map,
    used_in,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sf_examples.dmlab.dmlab_level_cache import DmlabLevelCache

from sf_fixpo.envs.dmlab.cache.level_cache import (
    LevelCache,
    SeedClaims,
    cache_faults,
    index_path,
    make_level_cache,
    parse_index,
    sweep,
)
from sf_fixpo.envs.dmlab.cache.shared_lines import SharedLines
from sf_fixpo.envs.dmlab.names import level_path


def claims_of(folder: Path, experiment: str = "a") -> SeedClaims:
    """As a new process has them."""
    return SeedClaims(folder / "cache", LEVEL, folder / "train" / experiment)


@pytest.fixture
def warned():
    """What sample-factory's log is warned of."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logging.getLogger("rl").addHandler(handler)
    yield records
    logging.getLogger("rl").removeHandler(handler)


# -------------------------------------------------------------------------------------------------------- files of lines

ENTRIES = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.text("abcdef0123456789", min_size=1, max_size=32)), max_size=20)


def written(entries) -> bytes:
    return b"".join(b"%d %s\n" % (seed, key.encode()) for seed, key in entries)


@pytest.fixture(scope="module")
def lines_file(tmp_path_factory):
    return tmp_path_factory.mktemp("lines") / "lines"


@settings(max_examples=50)  # each waits for the disk
@given(entries=ENTRIES, data=st.data())
def test_a_torn_line_is_not_read_and_cut_off_before_the_next_one(lines_file, entries, data):
    content = written(entries)
    kept = data.draw(st.integers(0, len(content)))
    lines_file.write_bytes(content[:kept])
    whole = content[:kept].count(b"\n")
    assert [entry[:2] for entry in parse_index(SharedLines(lines_file).read_new())] == entries[:whole]
    with SharedLines(lines_file).locked() as lines:
        lines.append(b"7 after")
    assert lines_file.read_bytes() == written([*entries[:whole], (7, "after")])


@given(entries=ENTRIES, data=st.data())
def test_a_reader_gets_every_line_once_however_the_file_grows(lines_file, entries, data):
    lines_file.unlink(missing_ok=True)
    reader, content, got = SharedLines(lines_file), written(entries), []
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with lines_file.open("ab") as file:
            file.write(content[begin:end])
        got += reader.read_new()
    assert [entry[:2] for entry in parse_index(got)] == entries
    assert reader.read_new() == []


@given(st.binary(max_size=200))
def test_no_junk_in_an_index_is_an_error(lines_file, junk):
    lines_file.write_bytes(junk + b"\n12 good\n")
    assert parse_index(SharedLines(lines_file).read_new())[-1][:2] == (12, "good")


def test_a_long_torn_line_is_cut_off_whole(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"1 a\n" + b"x" * 10_000)
    with SharedLines(path).locked() as lines:
        assert lines.read_all() == b"1 a\n"
    path.write_bytes(b"x" * 10_000)
    with SharedLines(path).locked() as lines:
        assert lines.read_all() == b""


def test_a_file_that_was_replaced_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"1 a\n2 b\n")
    reader = SharedLines(path)
    assert len(reader.read_new()) == 2
    path.unlink()
    assert reader.read_new() == []
    path.write_bytes(b"3 c\n")
    assert reader.read_new() == [b"3 c"]


# --------------------------------------------------------------------------------------------------------------- claims


def test_seeds_with_a_map_come_first_each_once_and_then_random_ones(tmp_path):
    fill(tmp_path, 11, 12, 13)
    cache = make_level_cache(cache_cfg(tmp_path), LEVEL)
    seeds = [cache.claim_seed(np.random.default_rng(i)) for i in range(6)]
    assert sorted(seeds[:3]) == [11, 12, 13]
    assert seeds[3:] == [int(np.random.default_rng(i).integers(2**31)) for i in range(3, 6)]
    assert used_in(tmp_path) == seeds, "on the disk, in this order"


def test_without_maps_the_seeds_are_the_environments_own_sequence(tmp_path):
    cache = make_level_cache(cache_cfg(tmp_path), LEVEL)
    rng = np.random.default_rng(3)
    assert [cache.claim_seed(rng) for _ in range(5)] == np.random.default_rng(3).integers(2**31, size=5).tolist()


def test_a_resumed_experiment_goes_on_in_its_sequence_where_it_was(tmp_path):
    sequence = np.random.default_rng(3).integers(2**31, size=10).tolist()
    rng = np.random.default_rng(3)
    first = claims_of(tmp_path)
    assert [first.claim(rng)[0] for _ in range(6)] == sequence[:6]
    rng, resumed = np.random.default_rng(3), claims_of(tmp_path)
    assert [resumed.claim(rng)[0] for _ in range(4)] == sequence[6:]


def test_another_experiment_plays_the_same_maps(tmp_path):
    fill(tmp_path, 11, 12)
    for experiment in ("a", "b"):
        cache = make_level_cache(cache_cfg(tmp_path, experiment), LEVEL)
        seeds = [cache.claim_seed(np.random.default_rng(i)) for i in range(2)]
        assert sorted(seeds) == [11, 12]
        assert all(cache.fetch(f"k{seed}", str(tmp_path / "wanted.pk3")) for seed in seeds)


def test_what_others_add_is_seen(tmp_path):
    one, other = claims_of(tmp_path), claims_of(tmp_path)
    rng = np.random.default_rng(0)
    first, has_map = one.claim(rng)
    assert not has_map
    assert other.claim(np.random.default_rng(0))[0] != first
    fill(tmp_path, 5)
    assert other.claim(rng) == (5, True)
    assert one.claim(rng)[0] != 5


def test_a_line_whose_map_is_gone_is_not_handed_out(tmp_path):
    fill(tmp_path, 11, 12)
    (tmp_path / "cache" / "k11").unlink()
    claims = claims_of(tmp_path)
    got = [claims.claim(np.random.default_rng(i)) for i in range(2)]
    assert got[0] == (12, True)
    assert got[1][1] is False


def test_an_evaluation_leaves_the_seeds_of_the_training_alone(tmp_path):
    fill(tmp_path, 11, 12)
    cache = make_level_cache(cache_cfg(tmp_path, dmlab_remember_seeds=False), LEVEL)
    rng = np.random.default_rng(3)
    assert [cache.claim_seed(rng) for _ in range(5)] == np.random.default_rng(3).integers(2**31, size=5).tolist()
    assert cache.fetch("k11", str(tmp_path / "wanted.pk3"))
    cache.write("new", str(make_map(tmp_path / "made.pk3")))
    assert cache.fetch("new", str(tmp_path / "wanted.pk3"))
    assert not (tmp_path / "train").exists()


def test_threads_get_different_seeds(tmp_path):
    cfg, got = cache_cfg(tmp_path), []

    def claim():
        cache = make_level_cache(cfg, LEVEL)
        rng = np.random.default_rng(0)
        got.extend(cache.claim_seed(rng) for _ in range(50))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 200
    assert sorted(used_in(tmp_path)) == sorted(got)


def test_a_seed_that_cannot_be_recorded_is_not_handed_out(tmp_path):
    cache = make_level_cache(cache_cfg(tmp_path), LEVEL)
    (tmp_path / "train").write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match=r"train/a/dmlab_used_lvl_seeds_p00.*cannot be recorded.*Not a directory"):
        cache.claim_seed(np.random.default_rng(0))


def test_levels_that_compile_nothing_have_no_cache_and_test_variants_have_their_own(tmp_path):
    cfg = cache_cfg(tmp_path)
    assert make_level_cache(cfg, "rooms_collect_good_objects_train") is None
    assert make_level_cache(cache_cfg(tmp_path, dmlab_use_level_cache=False), LEVEL) is None
    fill(tmp_path, 11)
    test = make_level_cache(cfg, f"{LEVEL}_test")
    assert test.claim_seed(np.random.default_rng(0)) != 11
    assert index_path(tmp_path, f"{LEVEL}_test") != index_path(tmp_path, LEVEL)


# ----------------------------------------------------------------------------------------------------------------- maps


def test_a_map_comes_back_as_it_was_stored(tmp_path):
    cache = LevelCache(tmp_path / "cache", LEVEL)
    cache.start(7)
    wanted = tmp_path / "wanted.pk3"
    assert not cache.fetch("key", str(wanted))
    made = make_map(tmp_path / "made.pk3")
    cache.write("key", str(made))
    assert cache.fetch("key", str(wanted))
    assert wanted.read_bytes() == made.read_bytes()
    assert cache.asked == 2


def test_a_second_writer_does_no_harm(tmp_path):
    fill(tmp_path, 1)
    before = (tmp_path / "cache" / "k1").read_bytes()
    cache = LevelCache(tmp_path / "cache", LEVEL)
    for seed, key in [(1, "k1"), (1, "other"), (2, "k1")]:
        cache.start(seed)
        cache.write(key, str(make_map(tmp_path / "made.pk3", "another map")))
    assert index_of(tmp_path) == [(1, "k1")], "no seed twice, no map twice"
    assert (tmp_path / "cache" / "k1").read_bytes() == before
    assert cache.fetch("other", str(tmp_path / "wanted.pk3")), "a level may compile several maps for a seed"


def test_a_map_whose_writer_died_before_its_line_gets_it_when_it_is_next_used(tmp_path):
    make_map(tmp_path / "cache" / "k5")
    cache = LevelCache(tmp_path / "cache", LEVEL)
    cache.start(5)
    assert cache.fetch("k5", str(tmp_path / "wanted.pk3"))
    assert index_of(tmp_path) == [(5, "k5")]


def test_a_map_serves_though_its_line_cannot_be_written(tmp_path):
    make_map(tmp_path / "cache" / "k5")
    (tmp_path / "cache" / "_contributed").write_text("a file where the folder should be")
    cache = LevelCache(tmp_path / "cache", LEVEL)
    cache.start(5)
    assert cache.fetch("k5", str(tmp_path / "wanted.pk3"))


def test_a_torn_map_of_sample_factory_is_compiled_again(tmp_path):
    fill(tmp_path, 1)
    path = tmp_path / "cache" / "k1"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    cache = LevelCache(tmp_path / "cache", LEVEL)
    cache.start(1)
    assert not cache.fetch("k1", str(tmp_path / "wanted.pk3"))
    assert not (tmp_path / "wanted.pk3").exists()
    cache.write("k1", str(make_map(tmp_path / "made.pk3", "1")))
    assert zipfile.ZipFile(path).read("maps/map.bsp") == b"1"
    assert index_of(tmp_path) == [(1, "k1")]


@pytest.mark.parametrize("key", ["", "../up", ".hidden", "two words", "a/b", "_contributed"])
def test_a_key_that_is_no_file_name_is_refused(tmp_path, key, warned):
    cache = LevelCache(tmp_path / f"cache_{key.encode().hex()}", LEVEL)
    assert not cache.fetch(key, str(tmp_path / "wanted.pk3"))
    cache.write(key, str(make_map(tmp_path / "made.pk3")))
    assert f"{key!r} cannot be the name of a file" in warned[0]
    assert not list(tmp_path.glob("cache*"))


def test_a_cache_that_cannot_be_written_is_reported_once_and_the_episode_goes_on(tmp_path, warned):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = LevelCache(tmp_path / "cache", LEVEL)
    for _ in range(2):
        assert not cache.fetch("key", str(tmp_path / "wanted.pk3"))
        cache.write("key", str(make_map(tmp_path / "made.pk3")))
    assert len([text for text in warned if "could not be stored" in text]) == 1


def test_unfinished_maps_of_the_dead_are_removed_and_of_the_living_kept(tmp_path):
    folder = tmp_path / "cache" / ".unfinished"
    folder.mkdir(parents=True)
    old = time.time() - 1000
    for name in ("dead", "alive", "new"):
        (folder / name).write_bytes(b"half a map")
        if name != "new":
            os.utime(folder / name, (old, old))
    with (folder / "alive").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep(tmp_path / "cache") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["alive", "new"]
    LevelCache(tmp_path / "cache", LEVEL)
    assert [path.name for path in folder.iterdir()] == ["new"]


# ------------------------------------------------------------------------------------------------------- sample-factory


def sample_factory_cache(folder: Path) -> DmlabLevelCache:
    context = multiprocessing.get_context("spawn")
    return DmlabLevelCache(str(folder / "cache"), str(folder / "train" / "a"), [level_path(LEVEL)], 0, context)


def test_sample_factory_reads_ours(tmp_path):
    fill(tmp_path, 11, 12, 13)
    used = claims_of(tmp_path).claim(np.random.default_rng(0))[0]
    theirs = sample_factory_cache(tmp_path)
    assert sorted(theirs.all_seeds[level_path(LEVEL)]) == [11, 12, 13]
    assert theirs.used_seeds == {level_path(LEVEL): {used}}
    assert sorted(theirs.available_seeds[level_path(LEVEL)]) == sorted({11, 12, 13} - {used})


def test_we_read_sample_factorys(tmp_path):
    theirs = sample_factory_cache(tmp_path)
    for seed in (11, 12, 12, 13):  # it keeps a map once and writes the line again
        theirs.add_new_level(level_path(LEVEL), seed, f"k{seed}", str(make_map(tmp_path / "made.pk3")))
    theirs.record_used_seed(level_path(LEVEL), 13)
    cache = make_level_cache(cache_cfg(tmp_path), LEVEL)
    seeds = [cache.claim_seed(np.random.default_rng(i)) for i in range(3)]
    assert sorted(seeds[:2]) == [11, 12]
    assert cache.fetch("k11", str(tmp_path / "wanted.pk3"))
    assert sorted(sample_factory_cache(tmp_path).used_seeds[level_path(LEVEL)]) == sorted([13, *seeds])


# ---------------------------------------------------------------------------------------------------------------- flags


def test_a_cache_folder_that_cannot_be_had_is_a_fault(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        (fault,) = cache_faults(cache_cfg(tmp_path, dmlab_level_cache_path=str(path)))
        assert f"--dmlab_level_cache_path={path}: " in fault
        assert "--dmlab_use_level_cache=False" in fault
    unused = {"dmlab_level_cache_path": str(tmp_path / "file")}
    assert cache_faults(cache_cfg(tmp_path, dmlab_use_level_cache=False, **unused)) == []
    assert cache_faults(cache_cfg(tmp_path, env="dmlab_30_rooms_collect_good_objects", **unused)) == []


def test_a_cache_folder_that_is_fine_is_made_and_left_empty(tmp_path):
    assert cache_faults(cache_cfg(tmp_path, env=f"dmlab_30_{LEVEL}")) == []
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [f"{LEVEL}.dm_lvl_seeds"]
    fill(tmp_path, 1)
    assert cache_faults(cache_cfg(tmp_path)) == []
    assert index_of(tmp_path) == [(1, "k1")]
