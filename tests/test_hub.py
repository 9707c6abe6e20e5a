"""Publishing: what leaves the machine and what does not, and the real client against a small Hub of our own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium as gym
import huggingface_hub
import pytest
import torch
from programs import REPO
from sample_factory.utils.attr_dict import AttrDict
from small_hub import BEST, LATEST, PNG, TOKEN, Hub, Requests, evaluation, row

from benchmarks.synthetic import make_cfg, small_shape, vector_space
from sf_fixpo import evaluate, hub, train
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.records.update_log import append_row

PUBLISHED = [
    "README.md",
    f"checkpoint_p0/{BEST}",
    "config.json",
    "eval_best.json",
    "eval_random.json",
    "plot.png",
    "updates.jsonl",
]


@pytest.fixture
def experiment(tmp_path):
    """A folder as training leaves it, with what must not be published beside it."""
    folder = tmp_path / "train_dir" / "cartpole"
    for name in ("checkpoint_p0", ".summary/0", "audit"):
        (folder / name).mkdir(parents=True)
    shape = small_shape(vector_space(4), gym.spaces.Discrete(2))
    cfg = make_cfg("FIXPO", shape, train_dir=tmp_path / "train_dir", env="gym_CartPole-v1", experiment="cartpole")
    network = make_actor_critic(cfg, shape.obs_space, shape.action_space)
    for name in (BEST, LATEST):
        torch.save({"model": network.state_dict()}, folder / "checkpoint_p0" / name)
    cfg.update(
        with_wandb=True, wandb_user="somebody", wandb_project="theirs", wandb_group="group", wandb_tags=["mine"],
        wandb_api_key="0123456789abcdef", my_token="t0ps3cret", dataset=f"{tmp_path}/data/images",
        note=f"--cache={tmp_path}/cache of https://example.org/a/b", git_repo_name=str(tmp_path / "code"), git_hash="ab12",
        command_line=f"--train_dir={tmp_path} --my_token=t0ps3cret", home="/home/someone",
        cli_args={"env": "gym_CartPole-v1", "train_dir": str(tmp_path), "my_token": "t0ps3cret", "wandb_user": "somebody",
                  "encoder_mlp_layers": [16, 16]},
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(cfg))
    append_row(folder / "updates.jsonl", row(1))
    append_row(folder / "updates.jsonl", row(2, kl_max=0.45, backtracks=1, backtrack_scale=0.5))
    append_row(folder / "updates.jsonl", row(3, rolled_back=True, beta=2.5))
    (folder / "eval_best.json").write_text(json.dumps(evaluation(checkpoint=str(folder / "checkpoint_p0" / BEST))))
    (folder / "eval_random.json").write_text(json.dumps(evaluation("random", None, mean=2.0, se=None, returns=[2.0])))
    (folder / "plot.png").write_bytes(PNG)
    for name in ("sf_log.txt", "git.diff", ".summary/0/events.out.tfevents.1.host", "audit/1.pt", "trace.jsonl"):
        (folder / name).write_text(f"{tmp_path} {TOKEN}")
    return folder


@pytest.fixture(autouse=True)
def logged_out(tmp_path, monkeypatch):
    """No token of whoever runs the tests; and an address where nobody answers."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- what is published ---------------------------------------------------------------------------------------------------------


def test_dry_run_writes_what_is_named_and_nothing_else(experiment, tmp_path, capsys):
    out = tmp_path / "out"
    assert hub.main([str(experiment), "--repo=me/run", f"--dry_run={out}"]) == 0
    files = files_of(out)
    assert list(files) == PUBLISHED
    assert capsys.readouterr().out.split()[-len(PUBLISHED) :] == PUBLISHED
    assert files[f"checkpoint_p0/{BEST}"] == (experiment / "checkpoint_p0" / BEST).read_bytes()
    assert files["updates.jsonl"] == (experiment / "updates.jsonl").read_bytes()
    assert files["plot.png"] == PNG
    everything = b"\n".join(files.values())
    for forbidden in (tmp_path, "t0ps3cret", "0123456789abcdef", "somebody", "theirs", "/home/someone", TOKEN):
        assert str(forbidden).encode() not in everything, forbidden


def test_config_loses_secrets_and_places_and_keeps_the_settings(experiment, tmp_path):
    original = json.loads((experiment / "config.json").read_text())
    public = hub.public_config(original, "run")
    assert not {"my_token", "wandb_api_key", "git_repo_name"} & public.keys()
    assert (public["with_wandb"], public["wandb_user"], public["wandb_tags"]) == (False, None, [])
    assert (public["train_dir"], public["experiment"]) == ("train_dir", "run")
    assert (public["dataset"], public["home"]) == ("images", "someone")
    assert public["note"] == "--cache=cache of https://example.org/a/b"
    assert public["command_line"] == "--env=gym_CartPole-v1 --train_dir=train_dir --encoder_mlp_layers 16 16"
    touched = {"my_token", "wandb_api_key", "git_repo_name", "train_dir", "experiment", "dataset", "home", "note", "command_line",
               "cli_args", "with_wandb", "wandb_user", "wandb_project", "wandb_group", "wandb_tags"}  # fmt: skip
    assert {key: public[key] for key in public if key not in touched} == {k: v for k, v in original.items() if k not in touched}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/a/b/c", "c"),
        (r"C:\Users\me\data", "data"),
        ("~/datasets/x", "~/datasets/x"),
        (".dmlab_cache", ".dmlab_cache"),
        ("metaworld_reach-v2", "metaworld_reach-v2"),
        (TOKEN, ""),
        ("https://me:pass@example.org/x", ""),
        ("https://example.org/x/y", "https://example.org/x/y"),
        (["/a/b", {"api_key": 1, "keep": "/c/d"}], ["b", {"keep": "d"}]),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_public_value(value, expected):
    assert hub.public_value(value) == expected


@pytest.mark.parametrize("flags", [["--checkpoint=latest"], ["--checkpoint=best", "--checkpoint=latest"]])
def test_checkpoints_that_are_asked_for(experiment, tmp_path, flags):
    assert hub.main([str(experiment), "--repo=me/run", f"--dry_run={tmp_path / 'out'}", *flags]) == 0
    found = sorted(path.name for path in (tmp_path / "out" / "checkpoint_p0").iterdir())
    assert found == ([LATEST] if len(flags) == 1 else [BEST, LATEST])


def test_what_is_published_can_be_evaluated(experiment, tmp_path):
    out = tmp_path / "train_dir" / "run"
    hub.stage(experiment, out, "me/run")
    result = tmp_path / "result.json"
    assert evaluate.main([str(out), "--episodes=2", "--workers=1", f"--json={result}"]) == 0
    assert len(json.loads(result.read_text())["returns"]) == 2


def test_a_secret_that_got_through_stops_it(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "gym_CartPole")  # stands in the config, as a key would that no rule knows
    assert hub.main([str(experiment), "--repo=me/run", f"--dry_run={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert "would publish WANDB_API_KEY" in error
    assert "gym_CartPole" not in error
    assert not (tmp_path / "out").exists()


# -- bad input -----------------------------------------------------------------------------------------------------------------


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_checkpoint(folder: Path) -> None:
    for path in (folder / "checkpoint_p0").iterdir():
        path.unlink()


def torn_checkpoint(folder: Path) -> None:
    (folder / "checkpoint_p0" / BEST).write_bytes(b"PK\x03\x04 torn")


def foreign_evaluation(folder: Path) -> None:
    (folder / "eval_other.json").write_text('{"accuracy": 1}')


def foreign_log(folder: Path) -> None:
    (folder / "updates.jsonl").write_text('{"loss": 1}\n{"loss": 2}\n')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_config, "is this an experiment folder?"),
        (no_checkpoint, "no best or latest checkpoint"),
        (torn_checkpoint, "is not a checkpoint that can be read"),
        (foreign_evaluation, "eval_other.json: is this a result of sf_fixpo.evaluate?"),
        (foreign_log, "is not an update log"),
    ],
)
def test_runs_that_cannot_be_published(experiment, tmp_path, capsys, spoil, message):
    spoil(experiment)
    assert hub.main([str(experiment), "--repo=me/run", f"--dry_run={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repo=run"], "--repo=run: it must be USER/NAME"),
        (["--repo=me/run/x"], "--repo=me/run/x: "),
        (["--repo=me/ru n"], "--repo=me/ru n: "),
        (["--repo="], "--repo=: "),
        (["--repo=me/run", "--policy_id=-1"], "--policy_id=-1: must be an integer >= 0"),
        (["--repo=me/run", "--dry_run=."], "must be a new or an empty folder"),
        ([], "--repo"),
    ],
)
def test_bad_flags(experiment, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        hub.main([str(experiment), *flags])
    assert message in capsys.readouterr().err


def test_without_a_token(experiment, capsys):
    assert hub.main([str(experiment), "--repo=me/run"]) == 1
    assert "no token for the Hugging Face Hub: set HF_TOKEN" in capsys.readouterr().err


def test_without_a_network(experiment, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.main([str(experiment), "--repo=me/run"]) == 1
    error = capsys.readouterr().err
    assert "the Hub cannot be reached: ConnectionError" in error
    assert TOKEN not in error


# -- the client against a small Hub of our own ---------------------------------------------------------------------------------


@pytest.fixture
def remote(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_program_publishes_what_a_dry_run_shows(experiment, tmp_path, remote):
    environment = {**os.environ, "HF_ENDPOINT": remote.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "sf_fixpo.hub", str(experiment), "--repo=me/run", "--private"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPO, timeout=120)
    assert run.returncode == 0, run.stderr
    assert f"published at {remote.address}/me/run" in run.stdout
    assert TOKEN not in run.stdout + run.stderr
    assert remote.private
    assert remote.commits == 1
    hub.stage(experiment, tmp_path / "out", "me/run")
    assert remote.files == files_of(tmp_path / "out")


def test_publishing_again_writes_over_it(experiment, remote, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.push_to_hub(experiment, "me/run")
    (experiment / "plot.png").write_bytes(PNG + b"2")
    assert hub.push_to_hub(experiment, "me/run", which=["latest"]) == f"{remote.address}/me/run"
    assert remote.files["plot.png"] == PNG + b"2"
    assert sorted(name for name in remote.files if name.endswith(".pth")) == [f"checkpoint_p0/{BEST}", f"checkpoint_p0/{LATEST}"]


def test_a_public_repository_is_not_taken_for_a_private_one(experiment, remote, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    remote.private = False
    assert hub.main([str(experiment), "--repo=me/run", "--private"]) == 1
    assert "--private: me/run exists and is public; nothing was published" in capsys.readouterr().err
    assert remote.files == {}


@pytest.mark.parametrize(("token", "status"), [("hf_" + "y" * 34, None), (TOKEN, 403), (TOKEN, 500)])
def test_what_the_hub_refuses_is_said(experiment, remote, monkeypatch, capsys, token, status):
    monkeypatch.setenv("HF_TOKEN", token)
    remote.refuse, remote.private = status, True
    if status == 403:
        monkeypatch.setattr(Requests, "do_GET", lambda self: self._answer({"error": "no"}, 404))
    assert hub.main([str(experiment), "--repo=me/run"]) == 1
    error = capsys.readouterr().err
    assert "the Hub refused me/run" in error
    assert ("does the token allow to write there?" in error) == (status != 500)
    assert token not in error


# -- the end of a training run -------------------------------------------------------------------------------------------------


def training_cfg(experiment: Path, *flags: str) -> AttrDict:
    parser = argparse.ArgumentParser()
    train._add_hub_args(parser)
    return AttrDict(vars(parser.parse_args(flags)), train_dir=str(experiment.parent), experiment=experiment.name)


def test_flags_are_checked_before_the_run(experiment, monkeypatch):
    assert train._hub_faults(training_cfg(experiment)) == []
    found = train._hub_faults(training_cfg(experiment, "--push_to_hub"))
    assert [line.partition(":")[0] for line in found] == ["--hf_repository=None", "--push_to_hub"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.hub_faults(training_cfg(experiment, "--push_to_hub", "--hf_repository=me/run")) == []


def test_a_finished_run_is_published_or_says_how_to_try_again(experiment, remote, monkeypatch, capsys):
    cfg = training_cfg(experiment, "--push_to_hub", "--hf_repository=me/run")
    assert hub.push_finished_run(cfg) == 1
    assert f"Try again: python -m sf_fixpo.hub {experiment} --repo=me/run" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.push_finished_run(cfg) == 0
    assert capsys.readouterr().out == f"published at {remote.address}/me/run\n"
    assert sorted(remote.files) == PUBLISHED
