"""Exported policies are the actor's function: at every step, for every head and core, in every format; or there is no file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from networks import OwnForward, ResidualCore, Tied, registered
from saved_policies import save_policy

from sf_fixpo import export
from sf_fixpo.learning import networks
from sf_fixpo.playing import export_formats, exported
from sf_fixpo.playing.export_formats import FORMATS
from sf_fixpo.records.export_metadata import describe_actions, describe_guarantee

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "play_onnx.py"
RECURRENT = ("--use_rnn=True", "--rnn_size=8", "--recurrence=-1")
needs_onnx = pytest.mark.skipif(bool(FORMATS["onnx"].missing), reason="the extra `onnx` is not installed")
EVERY = [pytest.param("onnx", marks=needs_onnx), "torchscript", "torch_export"]


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("runs") / "cartpole", "gym_CartPole-v1", *RECURRENT)


def run(folder, *flags: str, out=None) -> tuple[int, dict]:
    """Exports; the status, and what stands beside the file."""
    form = next((flag.partition("=")[2] for flag in flags if flag.startswith("--format")), "onnx")
    path = out or folder / "export" / f"checkpoint_000000080_2000{FORMATS[form].suffix}"
    status = export.main([str(folder), *flags, *([f"--out={out}"] if out else [])])
    beside = path.with_name(f"{path.name}.json")
    return status, json.loads(beside.read_text()) if beside.exists() else {}


@pytest.mark.parametrize("form", EVERY)
def test_every_format_is_the_actor_at_a_thousand_steps(cartpole, form, tmp_path, capsys):
    out = tmp_path / "here" / f"policy{FORMATS[form].suffix}"
    status, said = run(cartpole, f"--format={form}", out=out)
    assert status == 0, capsys.readouterr().err
    assert [path.name for path in sorted(out.parent.iterdir())] == [out.name, f"{out.name}.json"], "nothing else is left"
    assert said["check"]["steps"] == 1000
    assert max(said["check"]["largest_differences"].values()) < 1e-5
    assert said["samples_at_once"] == "any"
    assert said["state"]["size"] == 8, "the actor's core alone"
    assert said["guarantee"]["largest_kl_over_eps_kl"] == 0.9, "up to this version"
    assert said["guarantee"]["of_this_version"] == 0.9
    function, inside = FORMATS[form].read(out)
    assert {**inside, "check": said["check"]} == said
    outputs = function([np.ones((3, 4), np.float32), np.zeros((3, 8), np.float32)])
    assert [x.shape for x in outputs] == [(3, 1), (3, 2), (3, 2), (3, 8)]
    np.testing.assert_allclose(outputs[1].sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ("gym_CartPole-v1", ()),
        ("gym_CartPole-v1", ("--actor_critic_share_weights=True", "--use_rnn=True", "--rnn_num_layers=2", "--recurrence=-1")),
        ("gym_Pendulum-v1", (*RECURRENT, "--rnn_type=lstm")),
        ("gym_Pendulum-v1", ("--adaptive_stddev=True", "--obs_scale=2.0", "--obs_subtract_mean=0.3")),
        ("mujoco_HalfCheetah", ()),
    ],
)
def test_heads_cores_and_engines(tmp_path, env, flags, capsys):
    folder = save_policy(tmp_path / "run", env, *flags)
    status, said = run(folder, "--format=torchscript", "--check_steps=200")
    assert status == 0, capsys.readouterr().err
    assert said["engine"] in ("gym", "mujoco")
    assert said["check"]["largest_differences"]["action_parameters"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", EVERY)
def test_pixels_and_instructions(tmp_path, form, capsys):
    folder = save_policy(tmp_path / "run", "dmlab_30_rooms_collect_good_objects", "--dmlab_with_instructions=True", *RECURRENT)
    status, said = run(folder, f"--format={form}")
    assert status == 0, capsys.readouterr().err
    assert said["observations"]["obs"]["dtype"] == "uint8"
    assert said["engine"] == "vizdoom"
    assert "obs.task_id" not in said["inputs"]


@pytest.mark.parametrize("form", ["torchscript", "torch_export"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_users_own_encoder_and_core(tmp_path, form, shared, capsys):
    with registered(Tied, ResidualCore):
        folder = save_policy(tmp_path / "run", "gym_CartPole-v1", f"--actor_critic_share_weights={shared}")
        status, said = run(folder, f"--format={form}", "--check_steps=50")
    assert status == 0, capsys.readouterr().err
    assert said["samples_at_once"] == 1, "this encoder asks how many there are"


def test_a_network_that_acts_by_another_function_is_not_exported(tmp_path, monkeypatch, capsys):
    def make(cfg, obs_space, action_space):
        return OwnForward(networks._model_factory(obs_space), obs_space, action_space, cfg)

    folder = save_policy(tmp_path / "run", "gym_CartPole-v1", make=make)
    for module in (exported, networks):
        monkeypatch.setattr(module, "make_network", make)
    status, _ = run(folder, "--format=torchscript", "--check_steps=50")
    assert status == 1
    assert "action_parameters at step 0: differs from the actor's by" in capsys.readouterr().err
    assert not list((folder / "export").iterdir())


def test_a_file_that_is_not_the_actor_is_not_kept(cartpole, monkeypatch, tmp_path, capsys):
    def damaged(policy, example, any_batch, path, metadata):
        weights = policy.network.actor_core.core.weight_hh_l0
        before = weights.clone()
        weights[0, 0] += 0.5
        export_formats._write_torchscript(policy, example, any_batch, path, metadata)
        weights.copy_(before)

    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], write=damaged))
    status, _ = run(cartpole, "--format=torchscript", out=tmp_path / "x" / "policy.ts")
    assert status == 1
    error = capsys.readouterr().err
    assert "at step 1: differs from the actor's" in error, "the state is zero at first, and these weights say nothing"
    assert not list((tmp_path / "x").iterdir())


def test_a_network_that_takes_one_sample_at_a_time_is_exported_so(cartpole, monkeypatch, tmp_path, capsys):
    def for_one(policy, example, any_batch, path, metadata):
        if any_batch:
            raise RuntimeError("batch size is a constant here")
        export_formats._write_torchscript(policy, example, any_batch, path, metadata)

    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], write=for_one))
    status, said = run(cartpole, "--format=torchscript", "--check_steps=20", out=tmp_path / "policy.ts")
    assert status == 0
    assert said["samples_at_once"] == 1
    assert "one sample at a time" in capsys.readouterr().out


def test_equally_likely_categories_are_no_difference():
    spec = [("categorical", 2), ("gaussian", 1)]
    parameters = np.asarray([[1.0, 1.0 + 1e-6, 0.3, -1.0]])
    for category in (0.0, 1.0):
        exported._check_action(np.asarray([[category, 0.3]]), parameters, spec, "step 0")
    clear = np.asarray([[0.0, 1.0, 0.3, 0.0]])
    for wrong in ([0.0, 0.3], [1.0, 0.4]):
        with pytest.raises(exported.NotEqualError, match="likeliest"):
            exported._check_action(np.asarray([wrong]), clear, spec, "step 0")


@pytest.mark.parametrize(("found", "expected"), [([np.nan], [0.0]), ([0.0], [np.nan]), ([0.0], [3e-4]), ([[0.0]], [0.0])])
def test_what_is_no_number_or_too_far_away_differs(found, expected):
    with pytest.raises(exported.NotEqualError, match="state at step 3"):
        exported._difference("state", np.asarray(found), np.asarray(expected), "step 3")


def test_the_metadata_know_heads_and_promises():
    space = gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(np.asarray([-1, -2.0]), np.asarray([np.inf, 1]))))
    assert describe_actions(space) == [
        {"kind": "categorical", "size": 3},
        {"kind": "gaussian", "size": 2, "low": [-1.0, -2.0], "high": [None, 1.0]},
    ]
    assert describe_guarantee({"algo": "APPO"}, [], 5) is None
    row = {"policy_version": 3, "kl_max": 0.1, "kl_max_stale": 0.4, "eps_kl": 0.5}
    said = describe_guarantee({"algo": "FIXPO", "fixup": "off"}, [row], 5)
    assert (said["enforced"], said["largest_kl_over_eps_kl"], said["of_this_version"]) == (False, 0.8, None)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--check_steps=0"], "--check_steps=0: must be an integer >= 1"),
        (["--format=tflite"], "--format: invalid choice: 'tflite'"),
        (["--format=torchscript", "--out=x.onnx"], "--out=x.onnx: must end in .ts"),
        (["--format=torchscript", "--out={dir}/config.json/x.ts"], "config.json/x.ts: must be a file in a folder that can be"),
        (["--format=torchscript", "--checkpoint=nowhere"], "--checkpoint=nowhere: no such file"),
        (["--format=torchscript", "--checkpoint={dir}/config.json"], "is no checkpoint that can be read"),
        (["--format=torchscript", "--env=gym_Acrobot-v1"], "does not fit --env=gym_Acrobot-v1"),
    ],
)
def test_bad_input(cartpole, capsys, flags, said):
    try:
        status = export.main([str(cartpole), *(flag.format(dir=cartpole) for flag in flags)])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_a_missing_extra_says_what_to_install(cartpole, capsys, monkeypatch):
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], needs=("onnx_of_nobody",)))
    with pytest.raises(SystemExit, match="2"):
        export.main([str(cartpole)])
    assert "needs onnx_of_nobody; pip install 'sf_fixpo[onnx]'" in capsys.readouterr().err


BLOCK = """
import importlib.abc, runpy, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"torch", "sample_factory", "sf_fixpo", "onnx"}:
            raise ModuleNotFoundError(name + " is blocked")
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@needs_onnx
@pytest.mark.parametrize("env", ["gym_CartPole-v1", "gym_Pendulum-v1"])
def test_the_example_plays_with_onnxruntime_and_numpy_alone(tmp_path, env):
    folder = save_policy(tmp_path / "run", env)
    assert run(folder, "--check_steps=50")[0] == 0
    [path] = folder.glob("export/*.onnx")
    argv = [sys.executable, "-c", BLOCK, str(EXAMPLE), str(path), "--episodes=3"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "2 updates, largest KL / eps_kl 0.9000"
    assert lines[1].startswith(f"{env}: mean return ")


def test_compiled_parts_are_compiled_again_afterwards():
    script = torch.jit.script

    def fail_inside():
        with exported.unscripted():
            assert torch.jit.script is not script
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.jit.script is script
