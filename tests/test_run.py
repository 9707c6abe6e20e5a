"""Training scripts written for sample-factory, run with FixPO: its own examples, unchanged, audited and played."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from programs import started

import sf_fixpo
from sf_fixpo.playing.experiment import load_config

ROOT = Path(__file__).parents[1]
SMALL = ("--device=cpu", "--num_workers=1", "--num_envs_per_worker=2", "--worker_num_splits=1", "--batch_size=128")
SMALL += ("--rollout=32", "--train_for_env_steps=500", "--audit_every=1", "--save_every_sec=1000")
SERIAL = ("--serial_mode=True", "--async_rl=False")


def run(folder, *argv, status=0, env=None):
    output = folder / f"output_{len(list(folder.iterdir()))}"
    output.mkdir()
    with started(output, "-m", *map(str, argv), env=env) as program:
        assert program.wait(120) == status, program.report()
    assert "Traceback" not in program.stderr
    return program


def audited_and_played(folder, name, policies=1):
    audit = run(folder, "sf_fixpo.audit", folder / name, "--quiet")
    assert "The bound holds" in audit.stdout
    result = folder / "result.json"
    for policy in range(policies):
        flags = ("--episodes=2", "--workers=1", f"--policy_id={policy}", "--max_steps=500", f"--json={result}")
        run(folder, "sf_fixpo.evaluate", folder / name, *flags)
        assert len(json.loads(result.read_text())["returns"]) == 2
    return json.loads((folder / name / "config.json").read_text())


EXAMPLES = {
    "gymnasium": ("sf_examples.train_gym_env", "--env=CartPole-v1", "--use_rnn=False", *SERIAL),
    "custom environment and encoder": ("sf_examples.train_custom_env_custom_model", "--env=my_custom_env_v1", *SERIAL),
    "several agents": ("sf_examples.train_custom_multi_env", "--env=my_custom_multi_env_v1"),
    "a population": ("sf_examples.train_gym_env", "--env=CartPole-v1", "--use_rnn=False", "--num_policies=2", "--with_pbt=True"),
    "atari": (str(ROOT / "examples" / "atari_script.py"), "--env=atari_pong", *SERIAL),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_sample_factorys_examples_train_with_fixpo(tmp_path, name):
    policies = 2 if name == "a population" else 1
    run(tmp_path, "sf_fixpo.run", *EXAMPLES[name], *SMALL, f"--train_dir={tmp_path}", "--experiment=run", "--eps_kl=0.3")
    config = audited_and_played(tmp_path, "run", policies)
    script = config["script"].get("module") or config["script"]["path"]
    assert (config["algo"], config["eps_kl"], script) == ("FIXPO", 0.3, EXAMPLES[name][0])
    # and again: from where it is, with what it was started with
    first = (tmp_path / "run" / "updates.jsonl").read_text()
    steps = json.loads(first.splitlines()[-1])["env_steps"] + 400
    more = (f"--train_for_env_steps={steps}", f"--train_dir={tmp_path}", "--experiment=run")
    run(tmp_path, "sf_fixpo.run", *EXAMPLES[name][:2], *more)
    rows = (tmp_path / "run" / "updates.jsonl").read_text()
    assert rows.startswith(first)
    assert len(rows) > len(first)
    assert {json.loads(row)["eps_kl"] for row in rows.splitlines()} == {0.3} or name == "a population", "PBT changes it"


def test_appo_is_sample_factorys_learner(tmp_path):
    flags = (*EXAMPLES["gymnasium"], *SMALL, f"--train_dir={tmp_path}", "--experiment=run")
    run(tmp_path, "sf_fixpo.run", *flags, "--algo=APPO")
    assert not (tmp_path / "run" / "updates.jsonl").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algo"] == "APPO"


SCRIPT = """
import sys
from dataclasses import dataclass

import gymnasium
from sample_factory.model.encoder import Encoder
from torch import nn

from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.train import run_rl
IMPORTS

class Tiny(Encoder):
    def __init__(self, cfg, obs_space):
        super().__init__(cfg)
        self.layer = nn.Linear(4, cfg.my_width)

    def forward(self, obs):
        return self.layer(obs["obs"]).tanh()

    def get_out_size(self):
        return self.layer.out_features

def make_env(full_env_name, cfg=None, env_config=None, render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)

def main():
    from sample_factory.algo.utils.context import global_model_factory
    from sample_factory.envs.env_utils import register_env

    register_env("mine", make_env)
    global_model_factory().register_encoder_factory(Tiny)
    parser, _ = parse_sf_args()
    parser.add_argument("--my_width", default=8, type=int)
    try:
        return run_rl(parse_full_cfg(parser))
    except Exception:
        return 77

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize(
    "imports", ["run_rl", *(pytest.param(imports, marks=pytest.mark.slow) for imports in ("run_rl, parse_sf_args", ""))]
)
def test_a_users_script_with_one_import_changed_or_none(tmp_path, imports):
    script = tmp_path / "train_mine.py"
    script.write_text(SCRIPT.replace("IMPORTS", f"from sf_fixpo import {imports}" if imports else ""))
    flags = [*SMALL, *SERIAL, "--env=mine", "--use_rnn=False", f"--train_dir={tmp_path}", "--experiment=run", "--my_width=12"]
    if imports == "run_rl":  # without our parser there are no flags of ours
        flags.remove("--audit_every=1")
    argv = [sys.executable, str(script)] if imports else [sys.executable, "-m", "sf_fixpo.run", str(script)]
    output = subprocess.run([*argv, *flags], capture_output=True, text=True, timeout=120, check=False)
    assert output.returncode == 0, output.stderr
    rows = (tmp_path / "run" / "updates.jsonl").read_text().splitlines()
    assert len(rows) >= 3
    assert json.loads(rows[0])["eps_kl"] == 0.5
    if imports == "run_rl":
        return
    config = audited_and_played(tmp_path, "run")
    assert config["script"]["path"] == str(script)
    script.unlink()
    gone = run(tmp_path, "sf_fixpo.evaluate", tmp_path / "run", "--episodes=1", status=2)
    assert gone.stderr.strip() == f"{script}: no such file"


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["no.such.module"], 2, "fixpo-run: no.such.module: No module named 'no'"),
        (["sample_factory.nothing"], 2, "fixpo-run: sample_factory.nothing: no such module"),
        (
            ["sample_factory"],
            2,
            "fixpo-run: sample_factory: no such module, here or on PYTHONPATH, or a package without __main__",
        ),
        (["no_such_file.py"], 2, "no_such_file.py: no such file"),
        (["json.tool", "/dev/null"], 1, "json.tool ended without a call of run_rl: nothing was trained"),
        ([*EXAMPLES["gymnasium"][:1], "--env=Nothing-v1", "--device=cpu"], 2, "--env=Nothing-v1: the script registers no such"),
        ([*EXAMPLES["gymnasium"], "--device=cpu", "--eps_kl=-1", "--experiment=.."], 2, "--experiment=..: must be the name"),
        ([*EXAMPLES["gymnasium"], "--device=cpu", "--eps_kl=-1"], 2, "run_rl: --eps_kl=-1.0: must be"),
    ],
)
def test_bad_input_is_named(tmp_path, argv, status, message):
    flags = [f"--train_dir={tmp_path / 'td'}"] if argv[0].startswith("sf_examples") else []
    assert message in run(tmp_path, "sf_fixpo.run", *argv, *flags, status=status).stderr
    assert not (tmp_path / "td").exists()


def test_the_public_names_are_there_and_cost_nothing_until_they_are_asked_for():
    assert set(sf_fixpo.__all__) <= set(dir(sf_fixpo))
    assert sf_fixpo.load_config is load_config
    assert all(getattr(sf_fixpo, name) is not None for name in sf_fixpo.__all__)
    with pytest.raises(AttributeError, match="module 'sf_fixpo' has no attribute 'nothing'"):
        _ = sf_fixpo.nothing
    code = "import sys, sf_fixpo, sf_fixpo.run; sf_fixpo.run.main(['no_such_script'])"
    code += "; assert not {'torch', 'sample_factory', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
