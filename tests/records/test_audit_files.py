"""Audit files: names, and everything that is wrong with one is said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from audited import COUNT, make_update

from sf_fixpo.records import audit_files
from sf_fixpo.records.audit_files import AuditRecord, UnreadableError, file_name, list_files, load, parse


@pytest.fixture
def contents(tmp_path):
    return make_update(tmp_path)[0]


def test_what_is_written_is_read(contents, tmp_path):
    contents["obs"]["more"] = torch.randint(0, 256, (COUNT, 3, 4, 4), dtype=torch.uint8)
    contents["task_id"] = torch.arange(COUNT) % 3
    torch.save(contents, tmp_path / "10.pt")
    record = load(tmp_path / "10.pt")
    for field in fields(AuditRecord):
        read, written = getattr(record, field.name), contents[field.name]
        if isinstance(written, torch.Tensor):
            assert read.dtype == written.dtype
            assert torch.equal(read, written)
        elif isinstance(written, dict):
            assert {name: (x.dtype, x.shape) for name, x in read.items()} == {k: (x.dtype, x.shape) for k, x in written.items()}
            assert list(read) == list(written)
        elif field.name == "action_spec":
            assert read == (("categorical", 4),)
        else:
            assert read == written


def test_a_run_on_one_task_has_no_task_ids(contents):
    assert parse(contents, "x").task_id is None


@pytest.mark.parametrize("key", [field.name for field in fields(AuditRecord) if field.name != "task_id"])
def test_a_missing_key_is_named(contents, key):
    del contents[key]
    with pytest.raises(UnreadableError, match=f"x: not an audit file, without {key}$"):
        parse(contents, "x")


WRONG = {
    "obs": [{}, torch.zeros(COUNT, 8), {"obs": [1.0]}, {1: torch.zeros(COUNT)}, {"obs": torch.tensor(1.0)}],
    "rnn_states": [None, torch.zeros(COUNT), torch.zeros(COUNT, 2, dtype=torch.int64)],
    "dones": [torch.zeros(COUNT), torch.zeros(COUNT, 1, dtype=torch.bool)],
    "valids": [torch.ones(COUNT), [True] * COUNT],
    "action_logits": [torch.zeros(COUNT), torch.zeros(COUNT, 4, dtype=torch.int64)],
    "policy_version_of": [torch.zeros(COUNT), torch.zeros(COUNT, dtype=torch.bool), 9],
    "task_id": [torch.zeros(COUNT), torch.zeros(COUNT, dtype=torch.int32), 0],
    "previous_state_dict": [{}, None, {"weight": 1.0}],
    "state_dict": [{}, [torch.zeros(1)], {1: torch.zeros(1)}],
    "policy_version": [10.0, "10", True, torch.tensor(10)],
    "previous_policy_version": [None, 9.5],
    "eps_kl": [0.0, -1.0, float("nan"), float("inf"), "0.5", None, True],
    "kl_direction": ["forward", None, 1],
    "kl_stat": ["median", ["max"]],
    "reference": ["auto", ""],
    "action_spec": [[], [["categorical"]], [["categorical", 0]], [["categorical", 4.0]], [["poisson", 4]], [[["x"], 4]], "none"],
    "fixup": ["on", False],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=str)
def test_a_value_that_cannot_be_is_refused_by_its_key(contents, key, value):
    contents[key] = value
    with pytest.raises(UnreadableError, match=f"^x: {key} is not "):
        parse(contents, "x")


def test_every_key_has_been_tried_wrong():
    assert WRONG.keys() == {field.name for field in fields(AuditRecord)}


def test_all_faults_are_in_one_message(contents):
    contents.update(kl_stat="median", eps_kl=-1, fixup="on")
    with pytest.raises(UnreadableError, match=r"eps_kl is not.*; kl_stat is not one of max, mean; fixup is not one of"):
        parse(contents, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(dones=c["dones"][:-1]), "different lengths.*dones 63"),
        (lambda c: c["obs"].update(more=torch.zeros(COUNT + 1)), r"different lengths.*obs\[more\] 65"),
        (lambda c: c.update(task_id=torch.zeros(3, dtype=torch.int64)), "different lengths.*task_id 3"),
        (lambda c: c["obs"].update(task_id=torch.zeros(COUNT, 1)), "obs has task_id"),
        (lambda c: c.update(action_spec=[["gaussian", 4]]), "describes 8 action parameters, action_logits has 4"),
        (lambda c: c.update(previous_policy_version=10), "policy_version 10 is not after 10"),
        (lambda c: c["state_dict"].popitem(), "different networks: "),
        (lambda c: c["state_dict"].update(extra=torch.zeros(1)), "different networks: extra"),
        (
            lambda c: c["state_dict"].update({"critic_linear.bias": torch.zeros(1, dtype=torch.float64)}),
            "different networks: critic_linear.bias",
        ),
    ],
    ids=["shorter", "longer obs", "task ids", "task id seen", "spec", "version", "less", "more", "type"],
)
def test_parts_that_do_not_fit_together_are_refused(contents, change, message):
    change(contents)
    with pytest.raises(UnreadableError, match=message):
        parse(contents, "x")


# Other files


def test_an_older_file_is_refused_with_what_to_do(contents):
    without = {key: x for key, x in contents.items() if key != "format"}
    for older in (without, {**without, "normalized_obs": {}}, {**contents, "normalized_obs": {}}, {**contents, "format": 1}):
        with pytest.raises(UnreadableError, match=r"x: written by an older version.*format 2 is needed.*train again.*0\.1\.0"):
            parse(older, "x")


def test_a_newer_file_is_refused(contents):
    contents["format"] = 3
    with pytest.raises(UnreadableError, match=r"x: written by a newer version.*format 3, this one reads format 2"):
        parse(contents, "x")


@pytest.mark.parametrize("foreign", [[], torch.zeros(3), {"weights": torch.zeros(3)}, {"format": "2"}], ids=str)
def test_what_is_no_audit_file_is_refused(foreign):
    with pytest.raises(UnreadableError, match="x: not an audit file"):
        parse(foreign, "x")


def test_a_torn_file_and_one_that_would_run_code_are_refused(tmp_path, contents):
    torch.save(contents, path := tmp_path / "10.pt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableError, match=r"10\.pt: cannot be read"):
        load(path)
    torch.save({**contents, "fixup": subprocess.Popen}, path)
    with pytest.raises(UnreadableError, match=r"10\.pt: cannot be read"):
        load(path)


def test_files_are_listed_in_the_order_of_their_versions_for_each_policy(tmp_path):
    names = [
        file_name(0, 10, 1),
        file_name(0, 9, 2),
        file_name(1, 100, 2),
        file_name(1, 20, 2),
        "notes.pt",
        ".9.pt.1.tmp",
        "7.pth",
    ]
    assert names[:4] == ["10.pt", "p0_9.pt", "p1_100.pt", "p1_20.pt"]
    for name in names:
        (tmp_path / name).touch()
    assert list_files(tmp_path) == [
        (p, v, tmp_path / n) for p, v, n in ((0, 9, "p0_9.pt"), (0, 10, "10.pt"), (1, 20, "p1_20.pt"), (1, 100, "p1_100.pt"))
    ]


def test_a_folder_without_files_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UnreadableError, match="--audit_every"):
            list_files(folder)


def test_reading_needs_no_sample_factory():
    code = f"import sys, {audit_files.__name__}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"sample_factory", "gymnasium"} & set(loaded)
    assert {name for name in loaded if name.startswith("sf_fixpo.")} <= {
        "sf_fixpo.records",
        "sf_fixpo.records.archives",
        audit_files.__name__,
    }
