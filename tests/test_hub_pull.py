"""Playing what others have published: fetched by the real client from a small Hub of our own, and never run."""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path

import gymnasium as gym
import huggingface_hub
import pytest
import torch
from small_hub import BEST, LATEST, Hub, row

from benchmarks.synthetic import make_cfg, small_shape, vector_space
from sf_fixpo import enjoy, evaluate, export
from sf_fixpo.learning.networks import make_actor_critic
from sf_fixpo.playing import downloads, experiment
from sf_fixpo.playing.experiment import BadInputError
from sf_fixpo.running.settings import resumed

RUN = Path("hub:me/run")
FOLDER = Path("train_dir/hub/me/run")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A Hub with one run; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in (("HF_TOKEN_PATH", "no_token"), ("HF_HUB_CACHE", "cache"), ("HF_XET_CACHE", "xet")):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / value))
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    address = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    shape = small_shape(vector_space(4), gym.spaces.Discrete(2))
    cfg = make_cfg("FIXPO", shape, train_dir=tmp_path, env="gym_CartPole-v1", experiment="cartpole")
    torch.save({"model": make_actor_critic(cfg, shape.obs_space, shape.action_space).state_dict()}, tmp_path / "saved.pth")
    weights = (tmp_path / "saved.pth").read_bytes()
    server.private = False
    server.files = {
        "README.md": b"# run",
        "config.json": json.dumps(cfg).encode(),
        f"checkpoint_p0/{BEST}": weights,
        f"checkpoint_p0/{LATEST}": weights,
        "updates.jsonl": json.dumps(row(1)).encode() + b"\n",
        "evil.py": b"raise SystemExit('executed')",
    }
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def with_settings(server: Hub, **settings) -> None:
    server.files["config.json"] = json.dumps({**json.loads(server.files["config.json"]), **settings}).encode()


def test_a_published_run_is_played_by_name(remote, tmp_path, capsys):
    assert enjoy.main([str(RUN), "--max_steps=3", "--record=film.mp4"]) == 0
    assert BEST in capsys.readouterr().out
    assert sorted(path.name for path in FOLDER.rglob("*") if path.is_file() and ".cache" not in path.parts) == [
        BEST,
        "config.json",
        "updates.jsonl",
    ], "what is needed and nothing else"
    assert enjoy.main([str(RUN), "--checkpoint=latest", "--max_steps=3", "--record=film.mp4"]) == 0
    assert LATEST in capsys.readouterr().out
    assert Path("film.mp4").stat().st_size > 0


def test_a_revision_is_a_folder_of_its_own(remote):
    assert downloads.local_folder(Path("hub:me/run@v1")) == Path("train_dir/hub/me/run@v1")
    assert downloads.local_folder(Path("somewhere")) == Path("somewhere")


CODE = {
    "a script": {"script": {"module": "pip", "argv": ["install", "something"]}},
    "a script's network": {"script": {"path": "evil.py", "argv": [], "suite": "gym"}},
    "a module": {"env": "gym_evil:Env"},
    "a wrapper": {"env_wrappers": "evil:wrap"},
}


@pytest.mark.parametrize("settings", CODE.values(), ids=CODE)
def test_code_that_a_published_run_names_is_not_run(remote, settings, capsys, monkeypatch):
    with_settings(remote, **settings)
    Path("evil.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend(".")
    for program in (evaluate, enjoy, export):
        assert program.main([str(RUN)]) == 2
        assert "names code of its own" in capsys.readouterr().err
    for load in (experiment.load_config, experiment.load_configs):
        with pytest.raises(BadInputError, match="which is not run"):
            load(FOLDER)
    goes_on = argparse.Namespace(
        train_dir="train_dir/hub", experiment="me/run", restart_behavior="resume", cli_args={}, command_line=""
    )
    with pytest.raises(ValueError, match="which is not run"):
        resumed(goes_on)
    assert not Path("executed").exists()


def test_a_copy_without_the_clients_mark_is_a_run_of_ones_own(remote, monkeypatch):
    with_settings(remote, env_wrappers="evil:wrap")
    Path("evil.py").write_text("def wrap(env):\n    open('executed', 'w').close()\n    return env\n")
    monkeypatch.syspath_prepend(".")
    downloads.local_folder(RUN)
    copy = Path("train_dir/mine")
    (copy / "checkpoint_p0").mkdir(parents=True)
    for name in ("config.json", f"checkpoint_p0/{BEST}"):
        (copy / name).write_bytes((FOLDER / name).read_bytes())
    with pytest.raises(BadInputError, match="env_wrappers"):
        experiment.load_config(FOLDER)
    assert experiment.load_config(copy).env_wrappers == "evil:wrap"


def test_places_of_another_machine_are_not_taken_over(remote):
    with_settings(remote, dmlab_level_cache_path="/etc", train_dir="/etc", experiment="../x")
    cfg = experiment.load_config(downloads.local_folder(RUN))
    assert "/etc" not in json.dumps(cfg)
    assert (cfg.train_dir, cfg.experiment) == ("train_dir/hub/me", "run")


def without_weights(files: dict[str, bytes]) -> None:
    for name in [name for name in files if name.endswith(".pth")]:
        del files[name]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: files.pop("config.json"), "holds no config.json, so it is no run of this package"),
        (lambda files: files.update({"config.json": b"[1"}), "cannot be read, is this an experiment folder?"),
        (lambda files: files.update({"config.json": b"[]"}), "names no environment"),
        (without_weights, "has no such file of policy 0; it has none"),
        (lambda files: files.update({f"checkpoint_p0/{BEST}": b"PK torn"}), "is no checkpoint that can be read"),
    ],
)
def test_what_cannot_be_played_is_said(remote, capsys, spoil, message):
    spoil(remote.files)
    assert enjoy.main([str(RUN), "--record=film.mp4"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("film.mp4").exists()


@pytest.mark.parametrize("name", ["../../evil.pth", "checkpoint_p0/../../x.pth", "checkpoint_p0/best_1_../y.pth", "/etc/x.pth"])
def test_names_that_lead_out_of_the_folder_are_not_fetched(remote, tmp_path, name):
    remote.files = {"config.json": remote.files["config.json"], name: b"x"}
    with pytest.raises(BadInputError, match="no such file"):
        downloads.local_folder(RUN)
    assert not any(path.suffix == ".pth" and path.name != "saved.pth" for path in tmp_path.rglob("*"))


def test_what_is_far_too_large_is_not_fetched(remote):
    remote.siblings = [{"rfilename": "config.json", "size": 9}, {"rfilename": f"checkpoint_p0/{BEST}", "size": 1 << 40}]
    with pytest.raises(BadInputError, match=f"has {1 << 40} bytes; at most"):
        downloads.local_folder(RUN)


def test_the_name_and_the_network(remote, capsys, monkeypatch):
    for name in ("hub:run", "hub:me/run/x", "hub:", "hub:me/r un"):
        assert evaluate.main([name]) == 2
        assert "must be hub:USER/NAME" in capsys.readouterr().err
    assert evaluate.main(["hub:me/another"]) == 1
    assert "the Hub has no such model, or it is private" in capsys.readouterr().err
    FOLDER.mkdir(parents=True)
    (FOLDER / "config.json").write_text("{}")
    assert evaluate.main([str(RUN)]) == 2
    assert "is there already, and not from the Hub" in capsys.readouterr().err
    assert (FOLDER / "config.json").read_text() == "{}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert enjoy.main(["hub:me/other"]) == 1
    assert "cannot be fetched from http://127.0.0.1:9" in capsys.readouterr().err
