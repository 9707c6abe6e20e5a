"""Checkpoint files: what a crash, a full disk, a damaged file, a failing system or another process may do to them."""

from __future__ import annotations

import copy
import errno
import io
import os
import pickle
import random
import re
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
ROOT = Path(checkpoints.__file__).parents[2]
REFUSALS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SAVE_AND_TIDY = """
import sys, torch
from sf_fixpo.learning.checkpoints import save_atomically, tidy
for step in range(1, 10**9):
    state = {"train_step": step, "model": {"w": torch.full((500,), float(step))}}
    path = f"{sys.argv[1]}/checkpoint_{step:09d}_{step * 64}.pth"
    save_atomically(state, path)
    tidy(sys.argv[1], "checkpoint", path, 1)
"""
MEMORY = r"""
import re, resource, sys
from sf_fixpo.learning.checkpoints import load
load(sys.argv[1])  # imports and allocates what stays
size = int(re.search(r"VmSize:\s*(\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + 200 * 2**20,) * 2)
try:
    load(sys.argv[1])
except MemoryError as exc:
    print(exc)
"""


@pytest.fixture(autouse=True)
def _audible(monkeypatch):
    """Other tests may have imported sample-factory, whose logger keeps its messages to itself."""
    monkeypatch.setattr(checkpoints.log, "propagate", True)


def no_sleep(seconds):
    raise AssertionError("nothing to wait for")


def small(step=7):
    # a NumPy scalar, as sample-factory saves it
    return {"train_step": step, "best_performance": np.float64(1.5), "model": {"w": torch.arange(4.0) + step}}


def save(folder, step, env_steps=None, name="checkpoint", suffix=""):
    path = folder / f"{name}_{step:09d}_{step * 64 if env_steps is None else env_steps}{suffix}.pth"
    checkpoints.save_atomically(small(step), path)
    return path


def refusing(fault):
    def refuse(*args, **kwargs):
        raise fault

    return refuse


def names(folder):
    return sorted(os.listdir(folder))


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


def test_a_folder_that_cannot_be_opened_is_not_forced_to_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", refusing(PermissionError(errno.EACCES, "folders are not opened here")))
    assert checkpoints.load(save(tmp_path, 3))["train_step"] == 3


def test_a_cut_or_a_flipped_bit_never_changes_a_number(tmp_path):
    """PyTorch compares no checksums; for a member whose attributes say that it is a folder it returns what the memory held."""
    path = save(tmp_path, 7)
    whole, refused = path.read_bytes(), 0
    for length in {*range(0, len(whole), 7), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableError):
            checkpoints.load(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        attributes = [byte * 8 + 4 for byte in range(archive.start_dir, len(whole))]  # and whatever else has this bit
    for bit in (*range(0, 8 * len(whole), 11), *attributes):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = checkpoints.load(path)
        except UnreadableError:
            refused += 1
            continue
        assert (found["train_step"], found["best_performance"]) == (7, 1.5)  # padding, dates
        assert torch.equal(found["model"]["w"], small(7)["model"]["w"])
    assert refused > 800


def saved(state, write=torch.save):
    buffer = io.BytesIO()
    write(state, buffer)
    return buffer.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"no checkpoint",
    "archive": saved("no checkpoint", lambda text, file: zipfile.ZipFile(file, "w").writestr("notes.txt", text)),
    "pickle": saved(small(), pickle.dump),
    "code": saved({"model": os.system}),
    "no dict": saved([1]),
    "no model": saved({"w": torch.ones(1)}),
    "no dict as model": saved({"model": 3}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_passed_over(tmp_path, caplog, kind):
    save(tmp_path, 3)
    bad = tmp_path / "checkpoint_000000009_576.pth"
    bad.write_bytes(FOREIGN[kind])
    before = contents(tmp_path)
    assert load_newest(tmp_path, ALL, sleep=no_sleep)["train_step"] == 3
    assert f"{bad} cannot be read" in caplog.text
    assert contents(tmp_path) == before, "who does not own the folder changes nothing in it"
    assert load_newest(tmp_path, ALL, set_aside=True, sleep=no_sleep)["train_step"] == 3
    assert contents(tmp_path) == {name.replace(bad.name, f"unreadable_{bad.name}"): data for name, data in before.items()}


def test_nothing_is_set_aside_where_none_can_be_read(tmp_path):
    for i, content in enumerate(FOREIGN.values()):
        (tmp_path / f"checkpoint_{i:09d}_{i}.pth").write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"none of the 8 checkpoint\(s\) in .* can be read; not starting from scratch"):
        load_newest(tmp_path, ALL, set_aside=True, sleep=no_sleep)
    assert contents(tmp_path) == before


def test_setting_aside_overwrites_nothing_and_minds_no_other_reader(tmp_path, monkeypatch):
    save(tmp_path, 3)
    torn = tmp_path / "checkpoint_000000009_576.pth"
    for number in ("", "2_", "3_"):
        torn.write_text(f"torn {number}")
        assert load_newest(tmp_path, ALL, set_aside=True)
        assert (tmp_path / f"unreadable_{number}{torn.name}").read_text() == f"torn {number}"
    torn.write_text("of another reader")
    monkeypatch.setattr(Path, "rename", refusing(FileNotFoundError(errno.ENOENT, "gone")))
    assert load_newest(tmp_path, ALL, set_aside=True)["train_step"] == 3


@pytest.mark.parametrize("name", ["run[1]", "run[", "a*b?", "[!x]", "plain"])
def test_folders_of_any_name(tmp_path, name):
    folder = tmp_path / name
    assert load_newest(folder, ALL, sleep=no_sleep) is None, "there is no folder"
    for step, kind in ((4, "checkpoint"), (5, "checkpoint"), (9, "best")):
        folder.mkdir(exist_ok=True)
        save(folder, step, name=kind)
        assert load_newest(folder, f"{kind}_*.pth", sleep=no_sleep)["train_step"] == step
    assert load_newest(str(folder), "other_*.pth", sleep=no_sleep) is None


@pytest.mark.parametrize("fault", [*(OSError(code, "refused") for code in REFUSALS), MemoryError("refused")])
@pytest.mark.parametrize("what", ["read_bytes", "listdir"])
def test_what_the_system_refuses_is_tried_again_and_then_reported(tmp_path, monkeypatch, caplog, fault, what):
    save(tmp_path, 3)
    newest = save(tmp_path, 5)
    before = contents(tmp_path)
    owner = Path if what == "read_bytes" else os
    genuine, refusals = getattr(owner, what), []

    def refuse(path):
        if refusals and Path(path) in (newest, tmp_path):
            raise refusals.pop()
        return genuine(path)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, refuse)
        refusals[:], waits = [fault] * 3, []
        assert load_newest(tmp_path, ALL, set_aside=True, sleep=waits.append)["train_step"] == 5
        assert len(waits) == 3
        refusals[:], waits = [fault] * 99, []
        with pytest.raises(CheckpointError) as info:
            load_newest(tmp_path, ALL, set_aside=True, sleep=waits.append)
    subject = newest if what == "read_bytes" else tmp_path
    assert re.match(rf"{subject} cannot be read at present \(.*refused\)", str(info.value))
    assert 1 < sum(waits) < 10
    assert "trying the one before" not in caplog.text
    assert contents(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by address space")
def test_torchs_own_kind_of_memory_error_is_one(tmp_path):
    path = tmp_path / "checkpoint_000000001_64.pth"
    checkpoints.save_atomically({"model": {"w": torch.zeros(32 * 2**20)}}, path)
    run = subprocess.run([sys.executable, "-c", MEMORY, path], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert "allocate memory" in run.stdout, run.stderr


def test_a_file_that_vanishes_before_it_is_opened(tmp_path, monkeypatch):
    """The learner saves a newer one and removes the older, between another process's listing and its reading."""
    save(tmp_path, 1)
    genuine, left = os.listdir, [2, 3, 4]

    def listdir(folder):
        found = genuine(folder)
        if left:
            save(tmp_path, left.pop(0))
            (tmp_path / found[0]).unlink()
        return found

    monkeypatch.setattr(os, "listdir", listdir)
    waits = []
    assert load_newest(tmp_path, ALL, sleep=waits.append)["train_step"] == 4
    assert len(waits) == 3
    (tmp_path / "checkpoint_000000005_320.pth").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"checkpoint_000000005_320\.pth is listed and cannot be found"):
        load_newest(tmp_path, ALL, sleep=waits.append)
    assert 1 < sum(waits) < 10


def test_an_empty_listing_is_not_believed_at_once(tmp_path, monkeypatch):
    answers = [[save(tmp_path, 1).name], []]
    monkeypatch.setattr(os, "listdir", lambda folder: answers.pop())
    assert load_newest(tmp_path, ALL, sleep=no_sleep)["train_step"] == 1


def test_a_reader_beside_a_learner_that_saves_and_removes(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", SAVE_AND_TIDY, tmp_path], cwd=ROOT, env=ONE_THREAD)
    try:
        while (state := load_newest(tmp_path, ALL)) is None:
            assert writer.poll() is None
        steps = [state["train_step"]]
        while len(steps) < 200 or len(set(steps)) < 20:
            state = load_newest(tmp_path, ALL)
            assert torch.equal(state["model"]["w"], torch.full((500,), float(state["train_step"])))
            steps.append(state["train_step"])
        assert steps == sorted(steps)
    finally:
        writer.kill()
        writer.wait()


def test_the_newest_are_kept_by_number(tmp_path):
    for step, env_steps in ((5, 900), (5, 1000), (999_999_999, 1100), (1_000_000_000, 1200)):
        tidy(tmp_path, "checkpoint", save(tmp_path, step, env_steps), 3)
    assert [name[10:-4] for name in names(tmp_path)] == ["_000000005_1000", "_1000000000_1200", "_999999999_1100"]
    assert load_newest(tmp_path, ALL, sleep=no_sleep)["train_step"] == 1_000_000_000
    tidy(tmp_path, "checkpoint", save(tmp_path, 1_000_000_001), 0)
    assert names(tmp_path) == ["checkpoint_1000000001_64000000064.pth"], "the one just written stays"
    for step, suffix in ((20, "_reward_1.500"), (30, "_reward_-2.000"), (12, "_reward_3.000")):
        tidy(tmp_path, "best", save(tmp_path, step, name="best", suffix=suffix), 1)
    assert names(tmp_path)[0] == "best_000000012_768_reward_3.000.pth"
    assert names(tmp_path)[2:] == ["superseded_best_000000030_1920_reward_-2.000.pth"]


def test_a_line_that_was_left_is_put_aside(tmp_path):
    """A resume from `best` goes back: what it saves has lower numbers than what is there."""
    left = [save(tmp_path, step) for step in (10, 20, 30, 40)]
    other = [tmp_path / name for name in ("best_000000030_1.pth", "checkpoint_mine.pth", "checkpoint_old_000000099_1.pth")]
    for path in other:
        path.write_text("to be left alone")
    for step in (22, 24):
        tidy(tmp_path, "checkpoint", save(tmp_path, step), 2)
    kept = ["checkpoint_000000022_1408.pth", "checkpoint_000000024_1536.pth", *(path.name for path in other)]
    superseded = [f"superseded_{path.name}" for path in left[2:]]
    assert names(tmp_path) == sorted([*kept, *superseded])
    assert checkpoints.load(tmp_path / superseded[1])["train_step"] == 40
    assert load_newest(tmp_path, ALL, sleep=no_sleep)["train_step"] == 24

    for _ in range(3):  # names clash; fewer steps of the environment at the same train_step are another line, too
        save(tmp_path, 25, 9999)
        tidy(tmp_path, "checkpoint", save(tmp_path, 25), 2)
    assert {f"superseded_{number}checkpoint_000000025_9999.pth" for number in ("", "2_", "3_")} < set(names(tmp_path))


@pytest.mark.parametrize("fault", [FileNotFoundError(errno.ENOENT, "gone"), OSError(errno.EIO, "refused")])
def test_a_refusal_while_tidying_does_not_end_the_run(tmp_path, monkeypatch, caplog, fault):
    _, _, written = save(tmp_path, 10), save(tmp_path, 30), save(tmp_path, 20)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refusing(fault))
        patch.setattr(Path, "unlink", refusing(fault))
        tidy(tmp_path, "checkpoint", written, 1)
        patch.setattr(os, "listdir", refusing(fault))
        tidy(tmp_path, "checkpoint", written, 1)
    assert ("refused" in caplog.text) == (fault.errno == errno.EIO)
    with pytest.raises(ValueError, match="must be best_<train_step>_<env_steps>"):
        tidy(tmp_path, "best", written, 1)
    tidy(tmp_path, "checkpoint", written, 1)
    assert names(tmp_path) == [written.name, "superseded_checkpoint_000000030_1920.pth"]


def trained():
    """A network, and its checkpoint as FixPO's learner makes it; the last parameter never had a gradient."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    network[1].register_parameter("unused", torch.nn.Parameter(torch.ones(5)))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    fixpo = {"multiplier": LagrangeMultiplier(1.0, 0.01, 1000.0, num_tasks=2).state_dict(), "rng": checkpoints.rng_state()}
    fixpo |= {"updates": 2, "rollbacks_in_row": 0, "lr_schedule_step": 8}
    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "fixpo": fixpo}
    state |= {"train_step": 4, "env_steps": 256, "curr_lr": 0.01}
    return network, copy.deepcopy(state)


def faults(network, state, betas=2):
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
    assert faults(network, {**loaded, "fixpo": "anything"}, betas=None) == [], "a run of APPO has no use for it"
    del loaded["fixpo"]  # of APPO
    assert faults(network, loaded) == []
    assert checkpoints.saved_betas(loaded) is None


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("train_step", -1, "{}: must be a whole number >= 0, is -1"),
        ("env_steps", ..., "{}: must be a whole number >= 0, is absent"),
        ("curr_lr", float("nan"), "{}: must be a finite number >= 0, is nan"),
        ("model", [1], "{}: 8 named tensors in this run, a list in the checkpoint"),
        ("model/0.bias", ..., "{}: (2,) float in this run, absent in the checkpoint"),
        ("model/more", torch.ones(3), "{}: absent in this run, (3,) float in the checkpoint"),
        ("model/0.weight", torch.ones(3, 2), "{}: (2, 3) in this run, (3, 2) in the checkpoint"),
        ("model/0.bias", torch.ones(2).long(), "{}: (2,) float in this run, (2,) integer in the checkpoint"),
        ("model/0.bias", torch.tensor([1, torch.inf]), "{}: 1 of 2 numbers in the checkpoint are not finite"),
        ("optimizer/state", 3, "optimizer: must be a dict with 'state' and 'param_groups'"),
        ("optimizer/param_groups/0/params", [0, 1], "optimizer.param_groups: 5 parameters in this run, 2 in the checkpoint"),
        ("optimizer/state/0/exp_avg", torch.ones(2), "{}: (2, 3) in this run, (2,) in the checkpoint"),
        ("optimizer/state/1/exp_avg_sq", ..., "{}: (2,) float in this run, absent in the checkpoint"),
        ("optimizer/state/1/step", torch.tensor(torch.nan), "{}: 1 of 1 numbers in the checkpoint are not finite"),
        ("optimizer/state/9", {}, "{}: absent in this run, a dict in the checkpoint"),
        ("fixpo", None, "{}: must be a dict, is None"),
        ("fixpo/multiplier/beta", torch.ones(3), "{}: (2,) in this run, (3,) in the checkpoint"),
        ("fixpo/updates", "2", "{}: must be a whole number >= 0, is '2'"),
        ("fixpo/rng/torch", torch.zeros(3).byte(), "fixpo.rng: must be states of random generators ("),
        ("fixpo/rng/numpy/state/key", torch.zeros(3), "fixpo.rng: must be states of random generators ("),
        ("fixpo/rng/python", (3, (1, 2), None), "fixpo.rng: must be states of random generators ("),
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
    torch.rand(1), np.random.rand(1), random.random()  # the generators are no longer where the checkpoint has them
    torch_generator, generator = torch.get_rng_state(), random.getstate()
    [line] = faults(network, state)
    assert line.startswith(expected.format(entry.replace("/", ".")))
    assert "\n" not in line
    assert torch.equal(torch.get_rng_state(), torch_generator), "nothing is overwritten by looking"
    assert random.getstate() == generator


def test_many_faults_are_counted():
    network, state = trained()
    state["model"] = {f"other.{i}": torch.ones(1) for i in range(4)}
    *shown, more = faults(network, state)
    assert (len(shown), more) == (5, "model: 7 more")
    assert faults(network, [1]) == ["the checkpoint: must be a dict, is a list"]
    assert len(checkpoints.architecture_faults(network.state_dict(), state["model"])) == 12


def test_generators_go_on_where_they_were():
    state = checkpoints.rng_state()
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)]  # saved where there was a GPU
    checkpoints.set_rng_state(state)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn
