"""The wheel in a folder of the user's own, with an `envs` and a `launcher` package in it: ours are found all the same."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from programs import SERIAL

ROOT = Path(__file__).resolve().parents[1]
SWEEP = """
from sample_factory.launcher.run_description import Experiment, ParamGrid, RunDescription
COMMAND = "python -m sf_fixpo.train {flags} --train_for_env_steps=64"
RUN_DESCRIPTION = RunDescription("mine", [Experiment("e", COMMAND, ParamGrid([("seed", [1])]).generate_params())])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as pip builds it, from a copy without what earlier builds have left; setuptools is here already."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("sf_fixpo", "envs", "launcher"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder)]
    subprocess.run(build, check=True, cwd=folder)
    [path] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(folder / "site"), str(path)], check=True)
    return path


def test_the_wheel_has_one_root_and_everything_below_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sf_fixpo"}
    tracked = subprocess.run(
        ["git", "ls-files", "sf_fixpo", "envs", "launcher"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = {
        name if name.startswith("sf_fixpo/") else f"sf_fixpo/{name}" for name in tracked.stdout.split() if name.endswith(".py")
    }
    assert modules | {"sf_fixpo/py.typed"} <= set(names)


@pytest.mark.slow
def test_a_user_with_an_envs_and_a_launcher_package_trains_evaluates_and_launches(wheel, tmp_path):
    for package in ("envs", "launcher"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('the user has not asked for this one')\n")
    flags = " ".join(SERIAL)
    (tmp_path / "my_sweep.py").write_text(SWEEP.format(flags=flags))
    environment = {**os.environ, "PYTHONPATH": f"{wheel.parent / 'site'}", "OMP_NUM_THREADS": "1"}

    def python(*argv):
        done = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert str(wheel.parent) in python("-c", "import sf_fixpo.envs.dmlab, sf_fixpo.launcher; print(sf_fixpo.__file__)")
    python("-m", "sf_fixpo.train", *SERIAL, "--experiment=run", "--train_for_env_steps=64", "--audit_every=1")
    python("-m", "sf_fixpo.audit", "train_dir/run")
    python("-m", "sf_fixpo.evaluate", "train_dir/run", "--episodes=2", "--workers=1")
    python("-m", "sf_fixpo.launcher.run", "--run=my_sweep", "--max_parallel=1")
    assert list((tmp_path / "train_dir" / "mine").glob("**/updates.jsonl"))
