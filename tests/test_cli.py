"""The command line: bad input is refused at once, in words; a resumed experiment keeps its settings and its checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from programs import ENV, REPO, SERIAL, checkpoints_of, train

from benchmarks.synthetic import make_env_info, vector_space
from sf_fixpo import train as program
from sf_fixpo.running.fit import env_faults

CARTPOLE = f"--env={ENV}"
ANEW = "--restart_behavior=overwrite"


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """Runs the program in this process on arguments it must refuse before it starts anything; returns what it says."""

    def start(*args):
        raise AssertionError("the run was started")

    monkeypatch.setattr(program, "run_fixpo", start)
    monkeypatch.setattr(program, "set_console_log_level", lambda level: None)

    def refuse(*argv: str) -> list[str]:
        assert program.main([f"--train_dir={tmp_path / 'runs'}", *argv]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert not (tmp_path / "runs").exists()
        lines = err.splitlines()
        assert all(line.startswith("fixpo-train: ") for line in lines)
        return [line.removeprefix("fixpo-train: ") for line in lines]

    return refuse


# -- what is refused without starting anything --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("gym_CartPol-v1", "gym_CartPole-v1"), ("CartPole", "gym_CartPole-v1"), ("mujoco_HalfChetah", "mujoco_HalfCheetah")],
)
def test_unknown_environment_gets_near_names(refusal, typed, meant):
    [line] = refusal(f"--env={typed}")
    assert line.startswith(f"--env={typed}: ")
    assert meant in line
    assert "--list_envs" in line


def test_no_environment(refusal):
    [line] = refusal("--seed=1")
    assert line == "--env: say which environment to train on; --list_envs shows all"


@pytest.mark.parametrize(
    ("flag", "shown", "allowed"),
    [
        ("--eps_kl=0", "--eps_kl=0.0", "a number > 0"),
        ("--eps_kl=-0.5", "--eps_kl=-0.5", "a number > 0"),
        ("--eps_kl=nan", "--eps_kl=nan", "a number > 0"),
        ("--c_beta=0.5", "--c_beta=0.5", "a number >= 1"),
        ("--beta_lr=inf", "--beta_lr=inf", "a number >= 0"),
        ("--max_fixup_steps=-1", "--max_fixup_steps=-1", "an integer >= 0"),
        ("--learning_rate=nan", "--learning_rate=nan", "a number > 0"),
        ("--num_epochs=0", "--num_epochs=0", "an integer >= 1"),
        ("--trace_updates=5-x", "--trace_updates=5-x", "numbers and ranges, as in 3,10-12"),
        ("--env_start_timeout=0", "--env_start_timeout=0.0", "a number > 0, seconds"),
        ("--kl_stat=median", "--kl_stat=median", "one of max, mean"),
        ("--reference=old", "--reference=old", "one of auto, previous, behaviour"),
        ("--algo=PPO", "--algo=PPO", "one of FIXPO, APPO, TRPO, PPO_KL, KL_PROJECTION"),
        ("--batch_size=100", "--batch_size=100", "a multiple of --rollout=128"),
    ],
)
def test_one_bad_value_names_flag_value_and_what_is_allowed(refusal, flag, shown, allowed):
    assert refusal(CARTPOLE, flag) == [f"{shown}: must be {allowed}"]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--device=tpu", "--device: invalid choice: 'tpu' (choose from 'gpu', 'cpu')"),
        ("--eps_kl=small", "--eps_kl: invalid float value: 'small'"),
        ("--eps_kll=0.3", "unrecognized arguments: --eps_kll=0.3; did you mean --eps_kl?"),
    ],
)
def test_what_the_parser_itself_refuses_is_one_line_too(refusal, flag, said):
    assert refusal(CARTPOLE, flag) == [said]


def test_all_faults_come_in_one_message(refusal):
    said = refusal(CARTPOLE, "--eps_kl=nan", "--c_beta=0.5", "--kl_stat=median", "--algo=PPO")
    assert [line.partition("=")[0] for line in said] == ["--algo", "--eps_kl", "--c_beta", "--kl_stat"]


def test_a_train_dir_that_is_none(refusal, tmp_path):
    (tmp_path / "notes").write_text("")
    [line] = refusal(CARTPOLE, f"--train_dir={tmp_path / 'notes' / 'runs'}")
    assert line == f"--train_dir={tmp_path / 'notes' / 'runs'}: {tmp_path / 'notes'} is not a folder"


def test_the_workers_are_as_nice_as_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "nice", lambda increment: 19)
    assert program.parse_cfg([CARTPOLE, f"--train_dir={tmp_path}"]).default_niceness == 19
    monkeypatch.setattr(os, "nice", lambda increment: 0)
    assert program.parse_cfg([CARTPOLE, f"--train_dir={tmp_path}", "--default_niceness=5"]).default_niceness == 5


def test_gpu_on_a_machine_without_one(refusal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(CARTPOLE, "--device=gpu") == ["--device=gpu: this machine has no CUDA device; use --device=cpu"]


def test_linear_decay_can_be_asked_for_by_flag(tmp_path):
    assert program.parse_cfg([CARTPOLE, f"--train_dir={tmp_path}", "--lr_schedule=linear_decay"]).lr_schedule == "linear_decay"


@pytest.mark.parametrize(
    ("env", "has"), [("gym_CartPole-v1", "paper, laptop"), ("dmlab_30_rooms_collect_good_objects", "paper, laptop")]
)
def test_a_preset_that_a_suite_lacks_is_refused_with_those_it_has(env, has):
    with pytest.raises(program.BadInputError, match=f"^--preset=cluster: for (gym|dmlab) it must be one of {has}"):
        program.parse_cfg([f"--env={env}", "--preset=cluster"])


def test_presets_differ_and_flags_go_over_them(tmp_path):
    base = [CARTPOLE, f"--train_dir={tmp_path}"]
    paper, laptop = (program.parse_cfg([*base, f"--preset={name}"]) for name in ("paper", "laptop"))
    assert (paper.train_for_env_steps, laptop.train_for_env_steps) == (1_000_000, 150_000)
    assert program.parse_cfg([*base, "--preset=laptop", "--train_for_env_steps=7"]).train_for_env_steps == 7


def test_batch_that_the_workers_cannot_fill_in_step(tmp_path):
    cfg = program.parse_cfg([*SERIAL, f"--train_dir={tmp_path}", "--num_workers=3"])
    env_info = make_env_info(vector_space(4), program.find_suite(ENV).make_env(ENV, cfg).action_space)
    [fault] = env_faults(cfg, env_info)
    assert "--batch_size=32 x --num_batches_per_epoch=2 = 64 samples: must be a multiple of" in fault
    assert "192 (--num_workers=3 x --num_envs_per_worker=4 x 1 agents x --rollout=16)" in fault
    cfg.async_rl = True
    assert not env_faults(cfg, env_info)


@pytest.mark.parametrize(
    ("architecture", "side", "fits"),
    [("convnet_simple", 35, False), ("convnet_atari", 35, False), ("convnet_simple", 36, True), ("resnet_impala", 8, True)],
)
def test_images_that_are_too_small_for_their_convolutions(tmp_path, architecture, side, fits):
    """What torch says of it, from a process of its own, is a size of a kernel."""
    cfg = program.parse_cfg([*SERIAL, f"--train_dir={tmp_path}", f"--encoder_conv_architecture={architecture}"])
    images = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, side, 60), np.uint8))
    drawn = torch.get_rng_state()
    faults = env_faults(cfg, make_env_info(images, gym.spaces.Discrete(2)))
    assert torch.equal(torch.get_rng_state(), drawn)
    if fits:
        assert not faults
    else:
        [fault] = faults
        assert f"--encoder_conv_architecture={architecture}: too deep for --env={ENV}, whose images are small" in fault
        assert f"(obs 3 x {side} x 60): make them larger, or take resnet_impala" in fault


# -- the program as it is started ---------------------------------------------------------------------------------------------


def test_list_envs_and_help_print_and_end(capsys):
    assert program.main(["--list_envs"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (ENV, "mujoco_HalfCheetah", "dmlab_30"))
    with pytest.raises(SystemExit, match="0"):
        program.main(["--help"])
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--eps_kl", "--preset", "--batch_size"))


BLOCK_ENVPOOL = """
import importlib.abc, importlib.util, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "envpool":
            raise ModuleNotFoundError(name)
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == "envpool" else found(name, package)
sys.meta_path.insert(0, Block())
from sf_fixpo.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_missing_extra_says_what_to_install(tmp_path):
    argv = [sys.executable, "-c", BLOCK_ENVPOOL, "--env=mujoco_HalfCheetah", f"--train_dir={tmp_path / 'runs'}"]
    run = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith("fixpo-train: --env=mujoco_HalfCheetah: pip install 'envpool>=1.2.5'")
    assert len(run.stderr.splitlines()) == 1
    assert not run.stdout
    assert not (tmp_path / "runs").exists()


def test_the_stand_in_is_announced_once_and_recorded(tmp_path):
    """In a process of its own: sample-factory's log writes to the stderr that it has found at import."""
    code = "import sys; from sf_fixpo import train; train.set_console_log_level('warning'); print(train.parse_cfg(sys.argv[1:]))"
    code += "; assert 'requests' not in sys.modules, 'the Hub takes a quarter of a second, in each process of a run'"
    env = "--env=dmlab_30_rooms_collect_good_objects"
    argv = [sys.executable, "-c", code, env, f"--train_dir={tmp_path}"]
    run = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    stand_in = "'dmlab_engine': 'vizdoom'" in run.stdout
    assert run.stderr.count("takes the ViZDoom stand-in") == stand_in  # not a word where DeepMind Lab is installed
    assert stand_in or "'dmlab_engine': 'deepmind_lab'" in run.stdout


def test_bad_input_that_needs_the_environment_to_be_seen(tmp_path):
    run = train(tmp_path, "run", *SERIAL, "--num_workers=3")
    assert run.popen.returncode == 2
    assert run.stderr.startswith("fixpo-train: --batch_size=32 x --num_batches_per_epoch=2 = 64 samples: must be a multiple of")
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# -- an experiment that has been trained already ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with settings of its own, and its output."""
    folder = tmp_path_factory.mktemp("trained")
    run = train(folder, "run", *SERIAL, "--eps_kl=0.07", "--train_for_env_steps=128", "--save_every_sec=1", "--seed=3", ANEW)
    assert run.popen.returncode == 0, run.report()
    return folder, run


def test_a_run_that_goes_well_says_nothing_on_stderr(trained):
    folder, run = trained
    assert run.stderr == ""
    assert "worst KL max / eps_kl" in run.stdout
    assert json.loads((folder / "run" / "config.json").read_text())["eps_kl"] == 0.07


def test_resuming_keeps_the_saved_settings_and_flags_go_over_them(trained):
    folder, _ = trained
    base = [CARTPOLE, f"--train_dir={folder}", "--experiment=run"]
    saved = program.parse_cfg(base)
    assert (saved.eps_kl, saved.rollout, saved.batch_size, saved.seed, saved.serial_mode) == (0.07, 16, 32, 3, True)
    assert saved.encoder_mlp_layers == [16]
    assert saved.restart_behavior == "resume", "a run that was started over another's remains is not itself to be removed"
    changed = program.parse_cfg([*base, "--eps_kl=0.09"])
    assert (changed.eps_kl, changed.rollout) == (0.09, 16)
    anew = program.parse_cfg([*base, ANEW])
    assert (anew.eps_kl, anew.rollout) == (0.5, 128)
    with pytest.raises(program.BadInputError, match=r"--eps_kl=-1\.0: must be"):
        program.parse_cfg([*base, "--eps_kl=-1"])


def test_checkpoint_of_another_architecture_is_refused(trained):
    folder, _ = trained
    before = {path.name: path.read_bytes() for path in checkpoints_of(folder / "run")}
    run = train(folder, "run", *SERIAL, "--encoder_mlp_layers", "24")
    assert run.popen.returncode == 2, run.report()
    [line] = run.stderr.splitlines()
    assert line.startswith("fixpo-train: --experiment=run: its checkpoint is of another architecture")
    assert "(24, 4) in this run, (16, 4) in the checkpoint" in line
    assert {path.name: path.read_bytes() for path in checkpoints_of(folder / "run")} == before


def test_unreadable_checkpoints_are_passed_over_but_never_all_of_them(trained):
    folder, _ = trained
    good = checkpoints_of(folder / "run")[-1]
    steps = torch.load(good, weights_only=True)["env_steps"]
    torn = good.with_name(f"checkpoint_999999999_{steps + 640}.pth")
    torn.write_bytes(good.read_bytes()[:1000])
    run = train(folder, "run", *SERIAL, f"--train_for_env_steps={steps + 128}")
    assert run.popen.returncode == 0, run.report()
    assert "cannot be read" in run.stderr
    assert torn.name in run.stderr
    newest = torch.load(checkpoints_of(folder / "run")[-1], weights_only=True)
    assert steps + 128 < newest["env_steps"] < steps + 640, "it went on from the one before"

    for path in (folder / "run" / "checkpoint_p0").glob("*.pth"):
        path.write_bytes(b"not a checkpoint")
    damaged = checkpoints_of(folder / "run")
    run = train(folder, "run", *SERIAL)
    assert run.popen.returncode == 2, run.report()
    assert "can be read; not starting from scratch over them" in run.stderr
    assert checkpoints_of(folder / "run") == damaged, "nothing was written"
