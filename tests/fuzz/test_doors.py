"""Everything else that comes in: flags, a sweep's folder, the level cache, the Hub's answers."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import tomllib
from fuzzing import damaged_bytes, damaged_json, digest, fuzz, guarded, json_values, refuses, texts
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_hub import BEST, Hub

from sf_fixpo import train
from sf_fixpo.envs.dmlab.cache import level_cache
from sf_fixpo.envs.dmlab.cache.level_cache import LevelCache, SeedClaims
from sf_fixpo.launcher import status
from sf_fixpo.launcher.progress import read_progress
from sf_fixpo.launcher.sweep import FINISHED, Run, RunState, Sweep, SweepError
from sf_fixpo.playing import downloads
from sf_fixpo.playing.experiment import BadInputError

ROOT = Path(__file__).resolve().parents[2]


# -- flags -----------------------------------------------------------------------------------------------------------------------

FLAGS = sorted(train._make_parser(["--env=gym_CartPole-v1"])[0]._option_string_actions)
# What the machine heeds at once, and is no matter of the text.
FLAGS = [flag for flag in FLAGS if flag not in ("-h", "--help", "--version", "--list_envs", "--env_wrappers", "--train_dir")]
ENVS = ["gym_CartPole-v1", "mujoco_Hopper", "metaworld_mt10", "atari_pong", "dmlab_30_rooms", "nothing", "gym_", "pettingzoo_x.y"]


@st.composite
def command_lines(draw: Any) -> list[str]:
    """An environment, a few flags of which some are wrong, and words that are none."""
    words = [f"--env={draw(st.sampled_from(ENVS))}"]
    for _ in range(draw(st.integers(0, 4))):
        flag, value = draw(st.sampled_from(FLAGS)), draw(texts)
        words += draw(st.sampled_from([[f"{flag}={value}"], [flag, value], [flag], [value], [f"{flag}x={value}"]]))
    return words


@pytest.fixture(scope="module")
def engines_known(tmp_path_factory):
    """What a suite asks about its engine it asks once, in a process of its own."""
    for env in ENVS:
        refuses(
            lambda env=env: train.parse_cfg([f"--env={env}", f"--train_dir={tmp_path_factory.getbasetemp()}"]),
            train.BadInputError,
        )


@fuzz(0.05, few=40)
@given(words=command_lines())
def test_flags_of_a_training(tmp_path_factory, engines_known, words):
    folder = tmp_path_factory.getbasetemp() / "flags"
    folder.mkdir(exist_ok=True)
    with guarded("flags of fixpo-train", folder):
        refuses(lambda: train.parse_cfg([*words, f"--train_dir={folder}"]), train.BadInputError)
    assert not list(folder.iterdir()), "a command line alone makes nothing"


PROGRAMS = ("evaluate", "enjoy", "export", "hub", "plot", "report", "watch", "audit")


@fuzz(0.10, few=60)
@given(
    program=st.sampled_from(PROGRAMS), words=st.lists(st.one_of(texts, st.just("--policy_id=0"), st.just("--seed=1")), max_size=4)
)
def test_flags_of_what_plays_and_shows(tmp_path_factory, program, words):
    """Whatever is named is not there: each ends with 2 or says that it cannot, and makes nothing."""
    folder = tmp_path_factory.getbasetemp() / "words"
    folder.mkdir(exist_ok=True)
    words = [word for word in words if not word.startswith(("/etc", "~", "-h", "--h", "--v"))]
    module = importlib.import_module(f"sf_fixpo.{program}")
    with guarded(f"flags of fixpo-{program}", folder):
        try:
            ended = module.main([str(folder / "nothing"), *words])
        except SystemExit as exc:
            ended = exc.code
    assert ended in (1, 2)
    assert not list(folder.iterdir())


# -- a sweep's folder ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    """Two runs: one has ended, one is claimed by a process that is gone."""
    runs = [
        Run(name, ("python", "-m", "sf_fixpo.train", "--env=gym_CartPole-v1"), f"e/{name}", {"A": "1"}) for name in ("a", "b")
    ]
    made = Sweep.create(tmp_path_factory.mktemp("sweeps") / "sweep", runs, "mine")
    made.write_state(runs[0], RunState(FINISHED, attempt=1, exit_code=0, host="here", started=1.0, ended=2.0, steps=64))
    made.write_state(runs[1], RunState("running", attempt=1, pid=1, started=time.time()))
    made.record_job(runs[1], "local", "1")
    made.ask_to_stop(runs[1], "enough")
    made.save_launch("local", {"max_retries": 2})
    claims = made.claims_folder() / "b"
    claims.mkdir(parents=True)
    claim = {"host": "here", "scope": "here", "pid": 1, "pid_start": 1.0, "token": "x", "released": False}
    (claims / "000001.json").write_text(json.dumps(claim))
    return made


def look_at(folder: Path) -> None:
    """What status, stop and resume read before they do anything."""
    found = Sweep.load(folder)
    console = Console(file=io.StringIO(), width=80)
    console.print(status.make_table(found, [status.look(found, run) for run in found.runs.values()], time.time()))
    for run in found.runs.values():
        found.stop_reason(run)
        found.job_of(run, "local")
        read_progress(found.run_folder(run), found.log_path(run))
        assert found.log_path(run).resolve().is_relative_to(folder.resolve())
    found.last_launch()


FILES = ["manifest.json", "runs/a.json", "runs/b.json", "jobs/b.json", "stop/b.json", "launch.json", "claims/b/000001.json"]


@fuzz(0.10, few=40)
@given(data=st.data())
def test_damaged_sweeps(sweep, data):
    path = sweep.state_folder / data.draw(st.sampled_from(FILES))
    original = path.read_bytes()
    kind = data.draw(st.sampled_from(["json", "bytes", "any"]))
    if kind == "bytes":
        damaged = data.draw(damaged_bytes(original))
    else:
        damaged = json.dumps(data.draw(damaged_json(json.loads(original)) if kind == "json" else json_values)).encode()
    try:
        path.write_bytes(damaged)
        before = digest(sweep.folder)
        with guarded("a sweep's folder", sweep.folder):
            refuses(lambda: look_at(sweep.folder), SweepError)
        assert digest(sweep.folder) == before
    finally:
        path.write_bytes(original)


@fuzz(0.05)
@given(
    data=damaged_bytes(b'{"env_steps": 64, "return": 1.5, "tasks": {"a": {"return": 2.0}}}\n'),
    log=damaged_bytes(b"64/1,000 steps, return 3.5\n"),
)
def test_damaged_progress(tmp_path_factory, data, log):
    folder = tmp_path_factory.getbasetemp() / "progress"
    folder.mkdir(exist_ok=True)
    (folder / "updates.jsonl").write_bytes(data)
    (folder / "sweep.log").write_bytes(log)
    with guarded("progress of a sweep's run", folder):
        assert read_progress(folder, folder / "sweep.log").steps >= 0


# -- the level cache -------------------------------------------------------------------------------------------------------------

LEVEL = "explore_goal_locations_small"
INDEX = b"".join(b"%d map_%d\n" % (seed, seed) for seed in range(4))


@fuzz(0.10, few=25)
@given(
    index=damaged_bytes(INDEX),
    used=damaged_bytes(b"1\n2\n3\n"),
    key=st.one_of(texts, st.just("map_1")),
    data=damaged_bytes(b"PK\x03\x04 map"),
)
def test_a_damaged_level_cache(tmp_path_factory, index, used, key, data):
    folder = tmp_path_factory.getbasetemp() / "cache"
    experiment = folder / "experiment"
    for path, content in (
        (level_cache.index_path(folder, LEVEL), index),
        (level_cache.used_seeds_path(experiment, LEVEL), used),
        (folder / "map_1", data),
        (folder / "new.pk3", data),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    outside = digest(folder.parent / "flags") if (folder.parent / "flags").is_dir() else {}
    with guarded("the level cache", folder):
        found = LevelCache(folder, LEVEL, SeedClaims(folder, LEVEL, experiment))
        seeds = {found.claim_seed(np.random.default_rng(1)) for _ in range(2)}
        found.fetch(key, str(folder / "fetched.pk3"))
        found.write(key, str(folder / "new.pk3"))
    assert len(seeds) == 2, "no seed is played twice"
    assert all(0 <= seed < level_cache.SEEDS for seed in seeds)
    assert outside == (digest(folder.parent / "flags") if outside else {})


# -- the Hub ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """A Hub whose answers are the test's, and an empty working directory."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("hub"))
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    patch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    patch.setattr(
        huggingface_hub.file_download,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    for name in ("HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_XET_CACHE"):
        patch.setattr(huggingface_hub.constants, name, f"{Path.cwd()}/{name}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    patch.undo()


NAMES = [
    "config.json",
    f"checkpoint_p0/{BEST}",
    "../x.pth",
    "checkpoint_p0/best_..%2fx.pth",
    "checkpoint_p0/best_1_2_/../../y.pth",
    "updates.jsonl",
]
siblings = damaged_json([{"rfilename": "config.json", "size": 2}, {"rfilename": f"checkpoint_p0/{BEST}", "size": 4}])


@fuzz(0.008, few=12)
@given(listed=siblings, names=st.lists(st.one_of(st.sampled_from(NAMES), texts), max_size=4), content=st.binary(max_size=20))
def test_what_the_hub_answers(remote, listed, names, content):
    remote.siblings = listed if isinstance(listed, list) and listed else None
    remote.files = {**dict.fromkeys(names, content), "config.json": b"{}", f"checkpoint_p0/{BEST}": content}
    folder = Path.cwd()
    with guarded("answers of the Hub", folder):
        refuses(lambda: downloads.local_folder(Path("hub:me/run")), BadInputError, downloads.DownloadError)
    found = {path.name for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert found <= {"config.json", BEST, "updates.jsonl"}


@fuzz(0.04)
@given(
    names=st.lists(st.one_of(st.sampled_from(NAMES), texts), max_size=6),
    which=st.sampled_from([None, "best", "latest", "x", "../x"]),
)
def test_names_of_a_repository(tmp_path_factory, names, which):
    with guarded("names of a repository", tmp_path_factory.getbasetemp()):
        found = refuses(lambda: downloads.wanted_checkpoint(names, which, 0, "hub:me/run"), BadInputError)
    assert found is None or (found.startswith("checkpoint_p0/") and "/" not in found.removeprefix("checkpoint_p0/"))


def test_every_program_is_looked_at():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    left_out = {"train", "run", "doctor"}  # its own test; a user's script; it tries the machine
    from fuzzing import COUNTS

    COUNTS["programs"] += 1
    assert {name.removeprefix("fixpo-") for name in scripts} == {*PROGRAMS, *left_out}
    assert isinstance(train._make_parser(["--env=gym_CartPole-v1"])[0], argparse.ArgumentParser)
