"""What a run does to folders: names that lead elsewhere, what is removed, two runs in one, resuming, and a run that is over."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from programs import SERIAL, Run, started
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo import train as program
from sf_fixpo.running.folders import FolderInUseError, experiment_faults, name_faults, sole_run


def settings(folder, experiment, how="resume"):
    return AttrDict(train_dir=str(folder), experiment=experiment, restart_behavior=how)


def contents(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*")}


def train(folder, *flags, status=0) -> Run:
    """A run of a few updates in `folder`/td, which is over."""
    output = folder / f"output_{len(list(folder.iterdir()))}"
    output.mkdir()
    argv = ["-m", "sf_fixpo.train", *SERIAL, f"--train_dir={folder / 'td'}", "--seed=1", *flags]
    with started(output, *argv) as run:
        assert run.wait(100) == status, run.report()
    return run


def newest(folder) -> dict:
    path = max(Path(folder).glob("checkpoint_p0/checkpoint_*.pth"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../other", "a/..", "a//b", "/absolute", "a/", "./a", "a\0b"])
@pytest.mark.parametrize("how", ["resume", "restart", "overwrite"])
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_happens(tmp_path, name, how):
    (tmp_path / "td" / "precious").mkdir(parents=True)
    (tmp_path / "thesis.tex").touch()
    before = contents(tmp_path)
    argv = [*SERIAL, f"--train_dir={tmp_path / 'td'}", f"--experiment={name}", f"--restart_behavior={how}"]
    with pytest.raises(program.BadInputError, match=r"--experiment=.*: must be the name of a folder inside --train_dir"):
        program.parse_cfg(argv)
    assert contents(tmp_path) == before


@given(st.lists(st.sampled_from(["a", "b.c", "..", ".", "", "x y", "[1]", "*"]), min_size=1, max_size=4))
def test_a_name_is_allowed_exactly_where_it_is_a_folder_inside(parts):
    name, root = "/".join(parts), "/root/of/all"
    inside = os.path.normpath(f"{root}/{name}") == f"{root}/{name}" and name != ""
    assert bool(name_faults(name)) != inside


@pytest.mark.parametrize("how", ["restart", "overwrite"])
def test_only_a_runs_folder_is_removed_or_moved(tmp_path, how):
    (tmp_path / "precious").mkdir()
    assert experiment_faults(settings(tmp_path, "precious", how)) == [], "empty: nothing is lost"
    (tmp_path / "precious" / "data").touch()
    [fault] = experiment_faults(settings(tmp_path, "precious", how))
    assert fault.startswith(f"--restart_behavior={how}: {tmp_path / 'precious'} holds no config.json")
    assert experiment_faults(settings(tmp_path, "precious")) == []
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        assert "is not a folder but a link or a file" in experiment_faults(settings(tmp_path, name, how))[0]
    (tmp_path / "precious" / "config.json").touch()
    assert experiment_faults(settings(tmp_path, "precious", how)) == []
    assert experiment_faults(settings(tmp_path, "new", how)) == []


def test_a_lock_is_held_once_and_left_behind_by_nobody(tmp_path):
    cfg = settings(tmp_path, "run")
    with sole_run(cfg):
        lock = tmp_path / ".run.lock"
        assert f"process {os.getpid()} on " in lock.read_text()
        refusal = f"another run works in {tmp_path}/run \\(process {os.getpid()} on "
        with pytest.raises(FolderInUseError, match=refusal), sole_run(cfg):
            pass
        with sole_run(settings(tmp_path, "other")):
            pass
    assert not lock.exists()
    lock.write_text("process 1 on a machine that was switched off\n")  # of a run that was killed: its file stays, not its lock
    with sole_run(cfg):
        pass
    assert not lock.exists()


def test_the_second_of_two_runs_is_refused_and_a_killed_one_leaves_the_folder_free(tmp_path):
    argv = ["-m", "sf_fixpo.train", *SERIAL, f"--train_dir={tmp_path / 'td'}", "--experiment=run", "--save_every_sec=1"]
    log = tmp_path / "td" / "run" / "updates.jsonl"
    with started(tmp_path, *argv, "--train_for_env_steps=1000000000") as first:
        first.wait_until(lambda: log.is_file() and any((tmp_path / "td" / "run" / "checkpoint_p0").glob("*[1-9]*_*[1-9]*.pth")))
        first.popen.send_signal(signal.SIGSTOP)  # it holds the folder all the same, and leaves the core to the second
        second = train(tmp_path, "--experiment=run", status=2)
        [line] = second.stderr.splitlines()
        assert line.startswith(
            f"fixpo-train: --experiment=run: another run works in {tmp_path}/td/run (process {first.popen.pid}"
        )
        first.popen.kill()
        first.popen.wait()
    third = train(tmp_path, "--experiment=run", "--train_for_env_steps=1")
    assert "is finished" in third.stdout


@pytest.mark.slow
def test_a_finished_run_says_so_and_goes_on_with_more_steps(tmp_path):
    flags = ("--experiment=run", "--train_for_env_steps=128")
    train(tmp_path, *flags)
    steps, rows = newest(tmp_path / "td/run")["env_steps"], (tmp_path / "td/run/updates.jsonl").read_text()
    assert steps >= 128
    again = train(tmp_path, *flags)
    assert f"td/run is finished: {steps:,} steps of --train_for_env_steps=128" in again.stdout
    assert (tmp_path / "td/run/updates.jsonl").read_text() == rows
    # its settings are looked at all the same
    refused = train(tmp_path, *flags, "--encoder_mlp_layers", "24", status=2)
    assert "another architecture" in refused.stderr
    train(tmp_path, "--experiment=run", "--train_for_env_steps=320")
    assert newest(tmp_path / "td/run")["env_steps"] >= 320
    assert (tmp_path / "td/run/updates.jsonl").read_text().startswith(rows)


@pytest.mark.slow
def test_a_copy_goes_on_where_it_is(tmp_path):
    (tmp_path / "a").mkdir()
    train(tmp_path / "a", "--experiment=run", "--train_for_env_steps=128", "--restart_behavior=overwrite")
    shutil.copytree(tmp_path / "a" / "td" / "run", tmp_path / "b" / "td" / "renamed [1]*")
    before = contents(tmp_path / "a" / "td")
    shutil.move(tmp_path / "a" / "td", tmp_path / "elsewhere")
    train(tmp_path / "b", "--experiment=renamed [1]*", "--train_for_env_steps=320")
    copy = tmp_path / "b" / "td" / "renamed [1]*"
    assert newest(copy)["env_steps"] >= 320
    steps = [json.loads(line)["env_steps"] for line in (copy / "updates.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "one run after the other"
    assert contents(tmp_path / "elsewhere") == before
    assert not (tmp_path / "a" / "td").exists()


@pytest.mark.parametrize("algo", ["FIXPO", pytest.param("APPO", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_flags_of_the_optimizer_hold_when_a_run_goes_on(tmp_path, algo):
    flags = (f"--algo={algo}", "--experiment=run", "--save_every_sec=1000")
    train(tmp_path, *flags, "--lr_schedule=linear_decay", "--learning_rate=1e-2", "--train_for_env_steps=128")
    first = newest(tmp_path / "td/run")
    assert first["curr_lr"] < 1e-2
    changed = ("--lr_schedule=constant", "--learning_rate=1e-5", "--adam_beta1=0.5", "--adam_beta2=0.9", "--adam_eps=1e-3")
    train(tmp_path, *flags, *changed, "--train_for_env_steps=320")
    second = newest(tmp_path / "td/run")
    group = second["optimizer"]["param_groups"][0]
    assert (float(group["lr"]), *group["betas"], group["eps"]) == pytest.approx((1e-5, 0.5, 0.9, 1e-3))
    assert second["curr_lr"] == 1e-5
    moved = max(float((second["model"][k] - v).abs().max()) for k, v in first["model"].items() if k.endswith("weight"))
    assert 0.0 < moved < 1e-3
    # and what is not given stays as it was
    train(tmp_path, *flags, "--train_for_env_steps=450")
    assert newest(tmp_path / "td/run")["curr_lr"] == 1e-5


@pytest.mark.slow
def test_what_only_a_start_heeds_is_refused_on_a_run_that_goes_on(tmp_path):
    train(tmp_path, "--experiment=run", "--train_for_env_steps=64", "--policy_head_init_scale=0.5")
    refused = train(tmp_path, "--experiment=run", "--policy_head_init_scale=0.25", "--policy_init_gain=2", status=2)
    assert sorted(line.partition(" was started")[0] for line in refused.stderr.splitlines()) == [
        f"fixpo-train: --{flag}: {tmp_path}/td/run" for flag in ("policy_head_init_scale=0.25", "policy_init_gain=2.0")
    ]
    train(tmp_path, "--experiment=run", "--policy_head_init_scale=0.5")
    (tmp_path / "td/run/config.json").write_text("{")
    broken = train(tmp_path, "--experiment=run", status=2)
    assert broken.stderr.startswith("fixpo-train: --experiment=run: its config.json cannot be read: ")


@pytest.mark.slow
def test_a_new_run_starts_from_another_ones_weights(tmp_path):
    train(tmp_path, "--experiment=run", "--train_for_env_steps=128", "--normalize_input=True")
    flags = ("--experiment=heir", "--normalize_input=True", "--learning_rate=1e-9", "--train_for_env_steps=64")
    train(tmp_path, *flags, f"--init_from={tmp_path / 'td/run'}")
    source, heir = newest(tmp_path / "td/run"), newest(tmp_path / "td/heir")
    weights = [name for name in source["model"] if "normalizer" not in name]
    assert all(torch.allclose(source["model"][name], heir["model"][name], atol=1e-6) for name in weights)
    count = "obs_normalizer.running_mean_std.running_mean_std.obs.count"
    assert heir["model"][count] > source["model"][count], "the statistics go on from there"
    assert heir["env_steps"] < source["env_steps"] + 64
    for value, fault in {
        str(tmp_path / "nowhere"): "must be a checkpoint, or an experiment's folder that holds one",
        str(tmp_path / "td/run/config.json"): "",
    }.items():
        refused = train(tmp_path, "--experiment=new", "--normalize_input=True", f"--init_from={value}", status=2)
        assert refused.stderr.startswith(f"fixpo-train: --init_from={value}: ")
        assert fault in refused.stderr
    other = train(tmp_path, "--experiment=new", "--encoder_mlp_layers", "24", f"--init_from={tmp_path / 'td/run'}", status=2)
    assert "td/run: of another architecture (model." in other.stderr
