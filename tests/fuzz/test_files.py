"""Files of a run, damaged or made to do harm: each is read or refused with its reason; nothing of it is run, nothing is lost."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import damaged_bytes, damaged_json, digest, fuzz, guarded, json_values, refuses, texts
from hypothesis import given
from hypothesis import strategies as st
from saved_policies import save_policy
from small_runs import update_row

from sf_fixpo import enjoy, plot, watch
from sf_fixpo.learning import checkpoints
from sf_fixpo.playing import experiment
from sf_fixpo.playing.experiment import BadInputError
from sf_fixpo.records import audit_files
from sf_fixpo.records.follow import NOBODY, RunFollower
from sf_fixpo.records.live import plain_line
from sf_fixpo.records.report_data import group_runs, read_run
from sf_fixpo.records.report_page import make_page
from sf_fixpo.records.run_logs import LogError
from sf_fixpo.running import settings
from sf_fixpo.running.settings import resumed

ENV = "gym_CartPole-v1"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with an untrained policy."""
    return save_policy(tmp_path_factory.mktemp("runs") / "run", ENV, "--encoder_mlp_layers", "8")


# -- checkpoints -----------------------------------------------------------------------------------------------------------------

MODEL = {"w": torch.arange(4.0), "n": torch.tensor(3)}
PARAMETERS = [torch.zeros(4)]


def saved_checkpoint() -> bytes:
    buffer = BytesIO()
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    beta = dict.fromkeys(("beta", "exp_avg", "exp_avg_sq", "steps"), torch.ones(1))
    state = {"model": MODEL, "train_step": 3, "env_steps": 64, "curr_lr": 1e-3, "best_performance": 1.0,
             "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
             "fixpo": {"multiplier": beta}, "rng": checkpoints.rng_state()}  # fmt: skip
    torch.save(state, buffer)
    return buffer.getvalue()


CHECKPOINT = saved_checkpoint()


def read_checkpoint(path: Path) -> None:
    state = refuses(lambda: checkpoints.load(path), checkpoints.UnreadableError, MemoryError)
    faults = checkpoints.checkpoint_faults(state, MODEL, PARAMETERS, 1)
    assert all(isinstance(fault, str) and fault for fault in faults)
    refuses(lambda: audit_files.load(path), audit_files.UnreadableError)


@fuzz(0.12)
@given(data=damaged_bytes(CHECKPOINT))
def test_damaged_checkpoints(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "checkpoint_000000003_64.pth"
    path.write_bytes(data)
    with guarded("damaged checkpoints", folder):
        read_checkpoint(path)
    assert path.read_bytes() == data


GLOBALS = ["builtins eval", "builtins exec", "posix system", "os system", "subprocess Popen", "hostile_module f",
           "builtins getattr", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "collections OrderedDict",
           "numpy.core.multiarray scalar", "numpy dtype", "numpy.core.multiarray _reconstruct",
           "torch._utils _rebuild_sparse_tensor", "builtins bytearray"]  # fmt: skip
OPCODES = [b"(", b")", b"]", b"}", b"t", b"l", b"d", b"R", b"b", b"o", b"\x81", b"s", b"u", b"e", b"a", b"0", b"2", b"N", b"Q",
           b"q\x00", b"h\x00", b"K\x07", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x85", b"\x86", b"\x87",
           b"\x8a\x08" + b"\xff" * 8, b"X\x04\x00\x00\x00true", b"X\x05\x00\x00\x00model"]  # fmt: skip
pickles = st.lists(
    st.one_of(st.sampled_from(OPCODES), st.sampled_from(GLOBALS).map(lambda g: f"c{g.replace(' ', chr(10))}\n".encode())),
    max_size=25,
).map(lambda ops: b"\x80\x02" + b"".join(ops) + b".")


def with_pickle(archive: bytes, data: bytes) -> bytes:
    """The archive with another pickle in it, whole in itself."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            new.writestr(member.filename, data if member.filename.endswith("data.pkl") else old.read(member))
    return out.getvalue()


@fuzz(0.12)
@given(data=st.one_of(pickles, damaged_bytes(zipfile.ZipFile(BytesIO(CHECKPOINT)).read("archive/data.pkl"))))
def test_checkpoints_with_another_pickle(tmp_path_factory, data):
    """Checksums are right: what keeps code from running is the reader alone."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "checkpoint_000000003_64.pth"
    path.write_bytes(with_pickle(CHECKPOINT, data))
    with guarded("checkpoints with another pickle", folder):
        read_checkpoint(path)


def test_a_pickle_that_starts_a_program_would_be_noticed(tmp_path):
    with pytest.raises(AssertionError, match=r"os\.system"), guarded("the guard itself", tmp_path):
        pickle.loads(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.")
    with pytest.raises(AssertionError, match="to write"), guarded("the guard itself", tmp_path):
        (tmp_path.parent / "elsewhere").write_text("x")


TENSORS = [torch.zeros(4), torch.tensor(float("nan")), torch.ones(1, 2), torch.zeros(0)]
KEYS = ["model", "optimizer", "fixpo", "state", "param_groups", "w", "multiplier", "beta"]
values = st.recursive(
    st.one_of(json_values, st.sampled_from(TENSORS)), lambda inner: st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=6
)


@fuzz(0.05)
@given(state=values)
def test_checkpoints_that_hold_something_else(tmp_path_factory, state):
    with guarded("states of checkpoints", tmp_path_factory.getbasetemp()):
        faults = checkpoints.checkpoint_faults(state, MODEL, PARAMETERS, 1)
        checkpoints.saved_betas(state)
    assert faults, "and none is taken for one"


# -- config.json -----------------------------------------------------------------------------------------------------------------


@fuzz(0.03)
@given(data=st.data())
def test_damaged_configurations(run, data):
    """Of a run from outside: played, gone on with, or refused; a module that it names is not imported."""
    original = (run / "config.json").read_text()
    (run / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
    settings_of_run = json.loads(original)
    chosen = {key: settings_of_run[key] for key in data.draw(st.lists(st.sampled_from(sorted(settings_of_run)), max_size=3))}
    chosen.update(env=ENV, script={}, env_wrappers="", env_kwargs="{}")
    changed = data.draw(damaged_json(chosen))
    text = json.dumps({**settings_of_run, **changed} if isinstance(changed, dict) else changed)
    try:
        (run / "config.json").write_text(text)
        before = digest(run)
        with guarded("config.json", run):
            refuses(lambda: experiment.load_config(run), BadInputError)
            refuses(lambda: enjoy.choose_config(run, None), BadInputError)
            given_flags = {"train_dir": str(run.parent), "experiment": run.name, "restart_behavior": "resume", "cli_args": {}}
            refuses(lambda: resumed(argparse.Namespace(**given_flags, command_line="", env=ENV)), settings.BadInputError)
        assert digest(run) == before
    finally:
        (run / "config.json").write_text(original)


@fuzz(0.03)
@given(
    data=damaged_bytes(
        b'{"env": "gym_CartPole-v1", "algo": "FIXPO", "script": {}, "cli_args": {}, "x": [[[[1.5e3]]]], "y": "\\u00e9"}'
    )
)
def test_configurations_that_are_no_json(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "no_json"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data)
    with guarded("bytes of config.json", folder):
        refuses(lambda: experiment.load_config(folder), BadInputError)
        refuses(lambda: read_run(folder, "run", 0, dict), LogError)


# -- logs ------------------------------------------------------------------------------------------------------------------------

ROWS = [
    update_row(1),
    update_row(2, kl_max=0.45, backtracks=1),
    {**update_row(3), "tasks": {"a": {"kl_max": 0.1, "return": None}}},
]
EVALUATIONS = [{"policy_id": 0, "env_steps": 64, "levels": {"a": {"mean": 1.0, "se": 0.1, "n": 3}}, "score": {"capped": 3.0}}]


def look_at_logs(folder: Path, draw_figure: bool) -> None:
    """What every program that shows a run does with its logs."""
    found = refuses(lambda: read_run(folder, "run", 0, dict), LogError)
    if found is not None:
        page = refuses(lambda: make_page(group_runs([found]), "today"), LogError)
        assert page is None or "<html" in page
    plain_line(RunFollower(folder, "run").look(NOBODY))
    if draw_figure:
        refuses(lambda: plot.make_figure([folder], False, "env_steps", 0), LogError)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    config = {"env": ENV, "algo": "FIXPO", "train_for_env_steps": 1000, "fixup": "every_epoch", "eps_kl": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@fuzz(0.14, few=20)
@given(
    rows=damaged_json(ROWS), evaluations=damaged_json(EVALUATIONS), tail=st.sampled_from(["", "{", "[1]\n", "null\n", '"x"\n'])
)
def test_damaged_logs(logs, rows, evaluations, tail):
    for name, lines in (("updates.jsonl", rows), ("evaluations.jsonl", evaluations), ("eval_best.json", [evaluations])):
        lines = lines if isinstance(lines, list) else [lines]
        (logs / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines) + tail)
    with guarded("logs", logs):
        look_at_logs(logs, False)


@fuzz(0.10, few=20)
@given(data=damaged_bytes("".join(f"{json.dumps(row)}\n" for row in ROWS).encode()))
def test_logs_that_are_no_json(logs, data):
    (logs / "updates.jsonl").write_bytes(data)
    with guarded("bytes of logs", logs):
        look_at_logs(logs, False)


@fuzz(0.002, few=4)
@given(rows=damaged_json(ROWS))
def test_damaged_logs_as_a_picture(logs, rows):
    (logs / "updates.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (rows if isinstance(rows, list) else [rows])))
    with guarded("logs as a picture", logs):
        look_at_logs(logs, True)


@fuzz(0.01)
@given(text=texts)
def test_damaged_locks(logs, text):
    lock = logs.with_name(f".{logs.name}.lock")
    lock.write_bytes(text.encode(errors="surrogatepass"))
    with guarded("locks", logs):
        watched = watch.Watch([logs], 0)
        watched.look()
        watched.close()
    lock.unlink()


# -- audit files -----------------------------------------------------------------------------------------------------------------


def audit_record() -> dict[str, Any]:
    weights, flags, whole = {"w": torch.zeros(2)}, torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    return {
        "format": 2, "obs": {"obs": torch.zeros(3, 2)}, "rnn_states": torch.zeros(3, 1), "dones": flags, "valids": flags,
        "action_logits": torch.zeros(3, 2), "policy_version_of": whole, "task_id": None, "previous_state_dict": weights,
        "state_dict": weights, "policy_version": 2, "previous_policy_version": 1, "eps_kl": 0.5, "kl_direction": "pi_ref",
        "kl_stat": "max", "reference": "previous", "action_spec": [["categorical", 2]], "fixup": "every_epoch",
    }  # fmt: skip


@fuzz(0.05)
@given(data=st.data())
def test_audit_files_that_hold_something_else(tmp_path_factory, data):
    contents = audit_record()
    audit_files.parse(dict(contents), "whole")
    for key in data.draw(st.lists(st.sampled_from(sorted(contents)), min_size=1, max_size=3)):
        contents[key] = data.draw(values)
    with guarded("audit files", tmp_path_factory.getbasetemp()):
        refuses(lambda: audit_files.parse(contents, "file"), audit_files.UnreadableError)
