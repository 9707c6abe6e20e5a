"""A sweep of a user's own programs: a module of a package, and a file, found from the folder of the first launch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import QUICK, states
from programs import REPO, rows_of

from sf_fixpo.launcher.sweep import Sweep

# As a user writes it: something of one's own, then our program with the flags of the command line.
PACKAGE = """
import sys
import my_package
from sf_fixpo.train import main

my_package.OWN.append(1)
if __name__ == "__main__":
    sys.exit(main())
"""
SWEEP = """
from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription
FLAGS = "{flags}"
RUN_DESCRIPTION = RunDescription("mine", [
    Experiment("module", f"python -m my_package.train_mine {{FLAGS}}", ParamGrid([("seed", [1])]).generate_params()),
    Experiment("file", "python train_mine.py --updates=3"),
])
"""
FLAGS = (
    "--env=gym_CartPole-v1 --rollout=16 --batch_size=32 --num_batches_per_epoch=2 --num_epochs=1 --device=cpu --serial_mode=True "
    "--async_rl=False --num_workers=1 --num_envs_per_worker=4 --train_for_env_steps=64"
)


@pytest.fixture
def project(tmp_path):
    """A folder with a package, a program and a sweep in it."""
    folder = tmp_path / "project"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "__init__.py").write_text("OWN = []\n")
    (folder / "my_package" / "train_mine.py").write_text(PACKAGE)
    (folder / "train_mine.py").write_text(QUICK.read_text())
    (folder / "my_sweep.py").write_text(SWEEP.format(flags=FLAGS))
    return folder


def launcher(program: str, cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"sf_fixpo.launcher.{program}", *argv]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_users_own_module_is_swept_as_ours_is(project):
    done = launcher("run", project, "--run=my_sweep", "--max_parallel=2")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = Sweep.load(project / "train_dir" / "mine")
    assert {state.status for state in states(sweep).values()} == {"finished"}
    assert len(sweep.runs) == 2
    assert all(rows_of(sweep.run_folder(run)) for run in sweep.runs.values())
    assert all(state.steps >= 64 for state in states(sweep).values())
    assert '"status": "finished"' in launcher("status", project, "train_dir/mine", "--json").stdout


def test_it_goes_on_from_any_folder(project, tmp_path):
    """Preempted before its end, resumed by somebody who stands elsewhere."""
    (project / "my_sweep.py").write_text(
        "from sample_factory.launcher.run_description import Experiment, RunDescription\n"
        "COMMAND = 'python train_mine.py --updates=4 --fault=kill'\n"
        "RUN_DESCRIPTION = RunDescription('mine', [Experiment('file', COMMAND)])\n"
    )
    done = launcher("run", project, "--run=my_sweep")
    assert done.returncode == 1
    sweep = Sweep.load(project / "train_dir" / "mine")
    (state,) = states(sweep).values()
    assert (state.status, state.exit_code) == ("failed", -signal.SIGKILL)
    done = launcher("resume", tmp_path, str(sweep.folder))
    assert done.returncode == 0, done.stdout + done.stderr
    (state,) = states(sweep).values()
    assert (state.status, state.attempt, state.steps) == ("finished", 2, 400)
    (run,) = sweep.runs.values()
    assert "from update 1" in sweep.log_path(run).read_text()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python nowhere.py", "command `python nowhere.py ...`: there is no file "),
        (
            "python -m no_package.train --seed=1",
            "command `python -m no_package.train ...`: Python finds no no_package",
        ),
    ],
)
def test_a_program_that_is_not_there_is_bad_input(project, command, said):
    (project / "my_sweep.py").write_text(
        "from sample_factory.launcher.run_description import Experiment, RunDescription\n"
        f"RUN_DESCRIPTION = RunDescription('mine', [Experiment('a', '{command}'), Experiment('b', '{command}')])\n"
    )
    done = launcher("run", project, "--run=my_sweep")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sf_fixpo.launcher.run: {said}")
    assert not (project / "train_dir").exists()
