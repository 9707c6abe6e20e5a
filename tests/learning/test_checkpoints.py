"""Checkpoint files: what a crash, a full disk, a damaged file, a failing system or another process may do to them."""

from __future__ import annotations

import copy
import errno
import logging
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_fixpo.algorithm.multiplier import LagrangeMultiplier
from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.checkpoints import CheckpointError, UnreadableError, load_newest, tidy

ALL = "checkpoint_*.pth"
SAVE_AND_TIDY = """
import sys, torch
from sf_fixpo.learning.checkpoints import save_atomically, tidy
for step in range(1, 10**9):
    state = {"train_step": step, "model": {"w": torch.full((500,), float(step))}}
    path = f"{sys.argv[1]}/checkpoint_{step:09d}_{step * 64}.pth"
    save_atomically(state, path)
    tidy(sys.argv[1], "checkpoint", path, 1)
"""
MEMORY = """
import resource, sys
from pathlib import Path
from sf_fixpo.learning.checkpoints import load
load(sys.argv[1])  # whatever is imported or allocated once
[size] = [int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")]
resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + int(float(sys.argv[2]) * Path(sys.argv[1]).stat().st_size),) * 2)
try:
    load(sys.argv[1])
except MemoryError as exc:
    print("MemoryError", exc)
"""


def no_sleep(seconds):
    raise AssertionError("nothing to wait for")


def small(step=7):
    return {"train_step": step, "model": {"w": torch.arange(4.0) + step}}


def save(folder, step, env_steps=None, name="checkpoint", suffix=""):
    path = folder / f"{name}_{step:09d}_{step * 64 if env_steps is None else env_steps}{suffix}.pth"
    checkpoints.save_atomically(small(step), path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = save(tmp_path, 1)
    before = contents(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # this many bytes are written, then the system refuses
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save_atomically({"model": {"w": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert contents(tmp_path) == before


def test_what_cannot_be_pickled_leaves_the_old_file(tmp_path):
    path = save(tmp_path, 1)
    before = contents(tmp_path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoints.save_atomically({"model": lambda: None}, path)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_opened_is_not_forced_to_the_disk(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "folders are not opened here")

    monkeypatch.setattr(os, "open", refuse)
    assert checkpoints.load(save(tmp_path, 3))["train_step"] == 3


def test_every_truncation_is_unreadable(tmp_path):
    path = save(tmp_path, 7)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 7), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableError):
            checkpoints.load(path)


def test_a_flipped_bit_never_changes_a_number(tmp_path):
    """PyTorch compares no checksums: alone, it would load most of what is flipped in the numbers."""
    path = save(tmp_path, 7)
    whole, expected = path.read_bytes(), small(7)
    refused = 0
    for bit in range(0, 8 * len(whole), 11):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = checkpoints.load(path)
        except UnreadableError:
            refused += 1
            continue
        assert found["train_step"] == 7  # padding, dates
        assert torch.equal(found["model"]["w"], expected["model"]["w"])
    assert refused > 500
    numbers = whole.index(expected["model"]["w"].numpy().tobytes())
    path.write_bytes(whole[:numbers] + b"\x01" + whole[numbers + 1 :])
    assert torch.load(path, weights_only=True)["model"]["w"][0] != 7
    with pytest.raises(UnreadableError, match=r"archive/data/0 in it is damaged"):
        checkpoints.load(path)


def test_a_member_that_became_a_folder_is_unreadable(tmp_path):
    """PyTorch reads nothing for such a member, and returns whatever the memory held."""
    path = save(tmp_path, 7)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = archive.start_dir
    while whole[entry : entry + 4] == b"PK\x01\x02":
        damaged = bytearray(whole)
        damaged[entry + 38] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UnreadableError, match="in it is damaged"):
            checkpoints.load(path)
        entry += 46 + sum(int.from_bytes(whole[entry + at : entry + at + 2], "little") for at in (28, 30, 32))


def foreign(path, kind):
    if kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "no checkpoint")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(small()))
    elif kind in ("empty", "text"):
        path.write_bytes(b"no checkpoint" * (kind == "text"))
    else:
        torch.save({"code": {"model": Path("/")}, "list": [1], "no model": {"w": 1}, "no dict": {"model": 3}}[kind], path)


FOREIGN = ("archive", "pickle", "empty", "text", "code", "list", "no model", "no dict")


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_passed_over(tmp_path, caplog, kind):
    save(tmp_path, 3)
    bad = tmp_path / "checkpoint_000000009_576.pth"
    foreign(bad, kind)
    before = contents(tmp_path)
    with caplog.at_level(logging.WARNING, "rl"):
        assert load_newest(tmp_path, ALL, sleep=no_sleep)["train_step"] == 3
    assert f"{bad} cannot be read" in caplog.text
    assert contents(tmp_path) == before, "who does not own the folder changes nothing in it"
    assert load_newest(tmp_path, ALL, set_aside=True, sleep=no_sleep)["train_step"] == 3
    assert contents(tmp_path) == {name.replace(bad.name, f"unreadable_{bad.name}"): data for name, data in before.items()}


def test_nothing_is_set_aside_where_none_can_be_read(tmp_path):
    for i, kind in enumerate(FOREIGN):
        foreign(tmp_path / f"checkpoint_{i:09d}_{i}.pth", kind)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"none of the 8 checkpoint\(s\) in .* can be read; not starting from scratch"):
        load_newest(tmp_path, ALL, set_aside=True, sleep=no_sleep)
    assert contents(tmp_path) == before


def test_setting_aside_overwrites_nothing_and_minds_no_other_reader(tmp_path, monkeypatch):
    save(tmp_path, 3)
    for text in ("first", "second", "third"):
        torn = tmp_path / "checkpoint_000000009_576.pth"
        torn.write_text(text)
        load_newest(tmp_path, ALL, set_aside=True)
    aside = [tmp_path / f"unreadable_{number}{torn.name}" for number in ("", "2_", "3_")]
    assert [path.read_text() for path in aside] == ["first", "second", "third"]

    torn.write_text("gone when it is to be renamed")
    rename = Path.rename

    def late(path, target):
        path.unlink()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert load_newest(tmp_path, ALL, set_aside=True)["train_step"] == 3


def test_numpy_scalars_of_sample_factory_are_read_and_code_is_not(tmp_path):
    path = tmp_path / "checkpoint_000000001_64.pth"
    torch.save({**small(), "best_performance": np.float64(1.5)}, path)
    assert checkpoints.load(path)["best_performance"] == 1.5
    torch.save({**small(), "best_performance": os.system}, path)
    with pytest.raises(UnreadableError, match="Unsupported global"):
        checkpoints.load(path)


@pytest.mark.parametrize("name", ["run[1]", "run[", "a*b?", "[!x]", "plain"])
def test_folders_of_any_name(tmp_path, name):
    folder = tmp_path / name
    assert load_newest(folder, ALL, sleep=no_sleep) is None, "there is no folder"
    folder.mkdir()
    assert load_newest(folder, ALL, sleep=no_sleep) is None
    save(folder, 4)
    save(folder, 5)
    save(folder, 9, name="best")
    assert load_newest(folder, ALL, sleep=no_sleep)["train_step"] == 5
    assert load_newest(str(folder), "best_*.pth", sleep=no_sleep)["train_step"] == 9


def test_the_newest_by_number(tmp_path):
    for step, env_steps in ((999_999_999, 1), (1_000_000_000, 900), (1_000_000_000, 1000)):
        checkpoints.save_atomically({**small(step), "env_steps": env_steps}, tmp_path / f"checkpoint_{step:09d}_{env_steps}.pth")
    (tmp_path / "checkpoint_temp").write_text("what sample-factory writes to")
    found = load_newest(tmp_path, "checkpoint_*", sleep=no_sleep)
    assert (found["train_step"], found["env_steps"]) == (1_000_000_000, 1000)


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "EMFILE", "EACCES", "memory"])
@pytest.mark.parametrize("what", ["read_bytes", "listdir"])
def test_what_the_system_refuses_is_tried_again_and_then_reported(tmp_path, monkeypatch, caplog, code, what):
    save(tmp_path, 3)
    newest = save(tmp_path, 5)
    before = contents(tmp_path)
    refusals = 0
    owner = Path if what == "read_bytes" else os
    genuine = getattr(owner, what)

    def refuse(path):
        nonlocal refusals
        if refusals and Path(path) in (newest, tmp_path):
            refusals -= 1
            raise MemoryError("no memory") if code == "memory" else OSError(getattr(errno, code), "refused", str(path))
        return genuine(path)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, refuse)
        refusals, waits = 3, []
        assert load_newest(tmp_path, ALL, set_aside=True, sleep=waits.append)["train_step"] == 5
        assert len(waits) == 3
        refusals, waits = 10**9, []
        subject = newest if what == "read_bytes" else tmp_path
        with pytest.raises(CheckpointError) as info:
            load_newest(tmp_path, ALL, set_aside=True, sleep=waits.append)
    assert str(info.value).startswith(f"{subject} cannot be read at present (")
    assert ("no memory" if code == "memory" else "refused") in str(info.value)
    assert 1 < sum(waits) < 10
    assert "trying the one before" not in caplog.text
    assert contents(tmp_path) == before


def test_no_free_file_descriptor_passes(tmp_path):
    save(tmp_path, 3)
    torn = tmp_path / "checkpoint_000000005_320.pth"
    torn.write_text("torn")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)

    def free_some(seconds):
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)

    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.listdir(tmp_path)
        assert load_newest(tmp_path, ALL, sleep=free_some)["train_step"] == 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by address space")
@pytest.mark.parametrize("files", [0.5, 1.6])
def test_memory_that_runs_out_is_not_taken_for_a_fault_of_the_file(tmp_path, files):
    """In our own read, and in torch's allocator, which raises a RuntimeError."""
    path = tmp_path / "checkpoint_000000001_64.pth"
    checkpoints.save_atomically({"model": {"w": torch.zeros(32 * 2**20)}}, path)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", MEMORY, path, str(files)], capture_output=True, text=True, env=one_thread)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("MemoryError")
    assert ("allocate memory" in run.stdout) == (files > 1)


def test_a_file_that_vanishes_before_it_is_opened(tmp_path, monkeypatch):
    """The learner saves a newer one and removes the older, between another process's listing and its reading."""
    save(tmp_path, 1)
    genuine, left = os.listdir, 3

    def listdir(folder):
        nonlocal left
        found = genuine(folder)
        if left:
            left -= 1
            [old] = found
            new = save(tmp_path, 10 - left)
            (tmp_path / old).unlink()
            assert new.exists()
        return found

    monkeypatch.setattr(os, "listdir", listdir)
    waits = []
    assert load_newest(tmp_path, ALL, sleep=waits.append)["train_step"] == 10
    assert len(waits) == 3


def test_an_empty_listing_is_not_believed_at_once(tmp_path, monkeypatch):
    save(tmp_path, 1)
    genuine, answers = os.listdir, [[]]
    monkeypatch.setattr(os, "listdir", lambda folder: answers.pop() if answers else genuine(folder))
    assert load_newest(tmp_path, ALL, sleep=no_sleep)["train_step"] == 1


def test_what_is_listed_and_never_there_is_reported(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoint_000000002_128.pth").symlink_to(tmp_path / "nowhere")
    waits = []
    with pytest.raises(CheckpointError, match=r"checkpoint_000000002_128\.pth is listed and cannot be found"):
        load_newest(tmp_path, ALL, sleep=waits.append)
    assert 1 < sum(waits) < 10


def test_a_reader_beside_a_learner_that_saves_and_removes(tmp_path):
    root = Path(checkpoints.__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", SAVE_AND_TIDY, tmp_path], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        last, distinct = 0, 0
        while last == 0:
            assert writer.poll() is None
            last = (load_newest(tmp_path, ALL) or {"train_step": 0})["train_step"]
        for _ in range(200):
            state = load_newest(tmp_path, ALL)
            assert state is not None
            assert state["train_step"] >= last
            assert torch.equal(state["model"]["w"], torch.full((500,), float(state["train_step"])))
            distinct += state["train_step"] > last
            last = state["train_step"]
        assert writer.poll() is None
        assert distinct > 20
    finally:
        writer.kill()
        writer.wait()


def test_the_newest_are_kept_by_number(tmp_path):
    for step, env_steps in ((5, 900), (5, 1000), (999_999_999, 1100), (1_000_000_000, 1200)):
        tidy(tmp_path, "checkpoint", save(tmp_path, step, env_steps), 3)
    assert names(tmp_path) == [
        "checkpoint_000000005_1000.pth",
        "checkpoint_1000000000_1200.pth",
        "checkpoint_999999999_1100.pth",
    ]
    tidy(tmp_path, "checkpoint", save(tmp_path, 1_000_000_001), 0)
    assert names(tmp_path) == ["checkpoint_1000000001_64000000064.pth"], "the one just written stays"


def test_a_line_that_was_left_is_put_aside(tmp_path):
    """A resume from `best` goes back: what it saves has lower numbers than what is there."""
    left = [save(tmp_path, step) for step in (10, 20, 30, 40)]
    best = save(tmp_path, 20, name="best", suffix="_reward_1.500")
    other = [tmp_path / name for name in ("notes.txt", "checkpoint_mine.pth", "checkpoint_old_000000099_1.pth")]
    for path in other:
        path.write_text("not ours")
    (tmp_path / "milestones").mkdir()
    for step in (22, 24):
        written = save(tmp_path, step)
        tidy(tmp_path, "checkpoint", written, 2)
    kept = ["checkpoint_000000022_1408.pth", "checkpoint_000000024_1536.pth"]
    superseded = [f"superseded_{path.name}" for path in left[2:]]
    assert names(tmp_path) == sorted([*kept, *superseded, best.name, "milestones", *(path.name for path in other)])
    assert checkpoints.load(tmp_path / superseded[1])["train_step"] == 40
    assert load_newest(tmp_path, ALL.replace("*", "0*"), sleep=no_sleep)["train_step"] == 24

    for number in ("", "2_", "3_"):
        assert not (tmp_path / f"superseded_{number}checkpoint_000000050_3200.pth").exists()
        save(tmp_path, 50)
        tidy(tmp_path, "checkpoint", save(tmp_path, 25), 2)
        assert (tmp_path / f"superseded_{number}checkpoint_000000050_3200.pth").exists()


def test_fewer_environment_steps_at_the_same_step_are_another_line(tmp_path):
    save(tmp_path, 20, 1280)
    tidy(tmp_path, "checkpoint", save(tmp_path, 20, 1216), 2)
    assert names(tmp_path) == ["checkpoint_000000020_1216.pth", "superseded_checkpoint_000000020_1280.pth"]


def test_the_best_is_one_file(tmp_path):
    tidy(tmp_path, "best", save(tmp_path, 20, name="best", suffix="_reward_1.500"), 1)
    save(tmp_path, 30)
    tidy(tmp_path, "best", save(tmp_path, 30, name="best", suffix="_reward_-2.000"), 1)
    assert names(tmp_path) == ["best_000000030_1920_reward_-2.000.pth", "checkpoint_000000030_1920.pth"]
    tidy(tmp_path, "best", save(tmp_path, 12, name="best", suffix="_reward_3.000"), 1)
    assert names(tmp_path)[0] == "best_000000012_768_reward_3.000.pth"
    assert names(tmp_path)[2] == "superseded_best_000000030_1920_reward_-2.000.pth"


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "gone"), OSError(errno.EIO, "refused")])
def test_a_refusal_while_tidying_does_not_end_the_run(tmp_path, monkeypatch, caplog, fault):
    for step in (10, 30):
        save(tmp_path, step)
    written = save(tmp_path, 20)

    def refuse(*args, **kwargs):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        patch.setattr(Path, "unlink", refuse)
        tidy(tmp_path, "checkpoint", written, 1)
        patch.setattr(os, "listdir", refuse)
        tidy(tmp_path, "checkpoint", written, 1)
    assert ("refused" in caplog.text) == (fault.errno == errno.EIO)
    tidy(tmp_path, "checkpoint", written, 1)
    assert names(tmp_path) == [written.name, "superseded_checkpoint_000000030_1920.pth"]


@pytest.mark.parametrize("name", ["best_000000001_64.pth", "checkpoint_x_64.pth", "checkpoint_000000001_64.tmp"])
def test_a_written_file_of_another_form_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be checkpoint_<train_step>_<env_steps>"):
        tidy(tmp_path, "checkpoint", tmp_path / name, 1)


def trained(betas=2):
    """A network, and its checkpoint as FixPO's learner makes it; the last parameter never had a gradient."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    network.register_parameter("unused", torch.nn.Parameter(torch.ones(5)))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    state = {
        "train_step": 4,
        "env_steps": 256,
        "best_performance": -1e9,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curr_lr": 0.01,
        "fixpo": {
            "multiplier": LagrangeMultiplier(1.0, 0.01, 1000.0, betas).state_dict(),
            "updates": 2,
            "rollbacks_in_row": 0,
            "lr_schedule_step": 8,
            "rng": checkpoints.rng_state(),
        },
    }
    return network, copy.deepcopy(state)


def faults(network, state, betas: int | None = 2):
    return checkpoints.checkpoint_faults(state, network.state_dict(), list(network.parameters()), betas)


def test_a_good_checkpoint_has_no_faults(tmp_path):
    network, state = trained()
    assert faults(network, state) == []
    checkpoints.save_atomically(state, tmp_path / "checkpoint_000000004_256.pth")
    loaded = load_newest(tmp_path, ALL)
    assert faults(network, loaded) == []
    assert checkpoints.saved_betas(loaded) == 2
    assert faults(network, {**loaded, "curr_lr": 0.0}) == [], "where a linear decay ends"
    loaded["optimizer"]["state"][0]["step"] = 3  # as sample-factory's Lamb counts
    assert faults(network, loaded) == []
    loaded["optimizer"]["state"] = {}
    loaded["model"] = {name: x.half() if x.is_floating_point() else x.int() for name, x in loaded["model"].items()}
    del loaded["fixpo"]  # of APPO
    assert faults(network, loaded) == []
    assert checkpoints.saved_betas(loaded) is None


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("train_step", -1, "train_step: must be a whole number >= 0, is -1"),
        ("train_step", 2.0, "train_step: must be a whole number >= 0, is 2.0"),
        ("env_steps", None, "env_steps: must be a whole number >= 0, is None"),
        ("env_steps", ..., "env_steps: must be a whole number >= 0, is absent"),
        ("curr_lr", float("nan"), "curr_lr: must be a finite number >= 0, is nan"),
        ("curr_lr", -0.5, "curr_lr: must be a finite number >= 0, is -0.5"),
        ("curr_lr", True, "curr_lr: must be a finite number >= 0, is True"),
        ("model", ..., "model: 8 named tensors in this run, absent in the checkpoint"),
        ("model", [1], "model: 8 named tensors in this run, a list in the checkpoint"),
        ("model/0.bias", ..., "model.0.bias: (2,) float in this run, absent in the checkpoint"),
        ("model/more", torch.ones(3), "model.more: absent in this run, (3,) float in the checkpoint"),
        ("model/0.weight", torch.ones(3, 2), "model.0.weight: (2, 3) in this run, (3, 2) in the checkpoint"),
        ("model/0.bias", torch.ones(2).long(), "model.0.bias: (2,) float in this run, (2,) integer in the checkpoint"),
        ("model/0.bias", torch.ones(2).bool(), "model.0.bias: (2,) float in this run, (2,) torch.bool in the checkpoint"),
        ("model/0.bias", "zero", "model.0.bias: (2,) float in this run, 'zero' in the checkpoint"),
        ("model/0.bias", torch.tensor([1, torch.inf]), "model.0.bias: 1 of 2 numbers in the checkpoint are not finite"),
        ("optimizer", ..., "optimizer: must be a dict with 'state' and 'param_groups'"),
        ("optimizer/state", 3, "optimizer: must be a dict with 'state' and 'param_groups'"),
        ("optimizer/param_groups", ..., "optimizer: must be a dict with 'state' and 'param_groups'"),
        ("optimizer/param_groups", ["params"], "optimizer: must be a dict with 'state' and 'param_groups'"),
        ("optimizer/param_groups/0/params", [0, 1], "optimizer.param_groups: 5 parameters in this run, 2 in the checkpoint"),
        ("optimizer/state/0/exp_avg", torch.ones(2), "optimizer.state.0.exp_avg: (2, 3) in this run, (2,) in the checkpoint"),
        ("optimizer/state/1/exp_avg_sq", ..., "optimizer.state.1.exp_avg_sq: (2,) float in this run, absent in the checkpoint"),
        (
            "optimizer/state/1/step",
            torch.tensor(torch.nan),
            "optimizer.state.1.step: 1 of 1 numbers in the checkpoint are not finite",
        ),
        ("optimizer/state/9", {}, "optimizer.state.9: absent in this run, a dict in the checkpoint"),
        ("fixpo", None, "fixpo: must be a dict, is None"),
        ("fixpo/multiplier", ..., "fixpo.multiplier: 4 named tensors in this run, absent in the checkpoint"),
        ("fixpo/multiplier/beta", torch.ones(3), "fixpo.multiplier.beta: (2,) in this run, (3,) in the checkpoint"),
        ("fixpo/multiplier/steps", [0.0], "fixpo.multiplier.steps: (2,) float in this run, a list in the checkpoint"),
        ("fixpo/updates", "2", "fixpo.updates: must be a whole number >= 0, is '2'"),
        ("fixpo/rollbacks_in_row", -1, "fixpo.rollbacks_in_row: must be a whole number >= 0, is -1"),
        ("fixpo/lr_schedule_step", ..., "fixpo.lr_schedule_step: must be a whole number >= 0, is absent"),
        ("fixpo/rng", ..., "fixpo.rng: must be states of random generators (KeyError: 'rng')"),
        ("fixpo/rng/torch", torch.zeros(3).byte(), "fixpo.rng: must be states of random generators (RuntimeError: "),
        ("fixpo/rng/numpy/state/pos", -5, "fixpo.rng: must be states of random generators (ValueError: "),
        ("fixpo/rng/python", (3, (1, 2), None), "fixpo.rng: must be states of random generators (ValueError: "),
    ],
)
def test_a_fault_is_one_line_that_names_the_entry(entry, value, expected):
    network, state = trained()
    *path, last = (int(part) if part.isdigit() else part for part in entry.split("/"))
    inner = state
    for part in path:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    generators = torch.get_rng_state(), random.getstate()
    [line] = faults(network, state)
    assert line == expected or (expected.endswith(": ") and line.startswith(expected))
    assert "\n" not in line
    assert torch.equal(torch.get_rng_state(), generators[0]), "nothing is overwritten by looking"
    assert random.getstate() == generators[1]
    if entry.startswith("fixpo"):
        assert faults(network, state, betas=None) == [], "a run of APPO has no use for it"


def test_many_faults_are_counted():
    network, state = trained()
    state["model"] = {f"other.{i}": torch.ones(1) for i in range(4)}
    lines = faults(network, state)
    assert len(lines) == 6
    assert all(line.startswith("model.") for line in lines[:5])
    assert lines[5] == "model: 7 more"
    assert faults(network, [1]) == ["the checkpoint: must be a dict, is a list"]
    assert len(checkpoints.architecture_faults(network.state_dict(), state["model"])) == 12


def test_generators_go_on_where_they_were():
    state = checkpoints.rng_state()
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)]  # saved where there was a GPU
    checkpoints.set_rng_state(state)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn
