"""The scripts of the images and around them: entry point, health check, Slurm job, DeepMind Lab."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
DOCKER = REPO / "docker"
HEALTH = DOCKER / "bin" / "fixpo-health"


def run(*command: object, timeout: float = 60, **options) -> subprocess.CompletedProcess[str]:
    """Runs a command; its output is text."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, **options)


# ---- the entry point


@pytest.fixture
def path_with_python(tmp_path) -> str:
    """PATH on which `python` prints the arguments it is given and two secrets."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"; echo "${WANDB_API_KEY:-}|${HF_TOKEN:-}"\n')
    python.chmod(0o755)
    return f"{tmp_path / 'bin'}:/usr/bin:/bin"


def fixpo(*args: str, path: str = "/usr/bin:/bin", **env: str) -> subprocess.CompletedProcess[str]:
    return run(DOCKER / "bin" / "fixpo", *args, env={"PATH": path, **env})


def test_entry_point_starts_programs(path_with_python):
    done = fixpo("train", "--env=a b", "--x", path=path_with_python)
    assert (done.returncode, done.stdout) == (0, "-m|sf_fixpo.train|--env=a b|--x||\n")


def test_entry_point_knows_every_program():
    """Each name is a module that can be run, each module that can be run has a name."""
    names = re.search(r"^ +(train [a-z |]+)\)$", (DOCKER / "bin" / "fixpo").read_text(), re.MULTILINE)
    assert names is not None
    modules = {path.stem for path in (REPO / "sf_fixpo").glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    assert set(names[1].split(" | ")) == modules
    for name in modules:
        assert f"\n  {name} " in fixpo("--help").stdout


def test_entry_point_runs_any_other_command_and_keeps_its_exit_status():
    assert fixpo("sh", "-c", "exit 75").returncode == 75
    assert fixpo().stdout.startswith("fixpo PROGRAM [flags]")
    done = fixpo("--env=x")
    assert (done.returncode, done.stderr) == (2, "fixpo: --env=x: name a program first, such as: train --env=x\n")


def test_entry_point_reads_secrets_from_files(tmp_path, path_with_python):
    (tmp_path / "key").write_text("first\n")
    done = fixpo("train", path=path_with_python, WANDB_API_KEY_FILE=str(tmp_path / "key"), HF_TOKEN="second")
    assert done.stdout.endswith("|first|second\n")
    done = fixpo("train", path=path_with_python, HF_TOKEN_FILE=str(tmp_path / "none"))
    assert done.returncode == 2
    assert f"HF_TOKEN_FILE={tmp_path / 'none'}: no such file" in done.stderr


# ---- the health check, of processes that stand for the program by their command line


@pytest.fixture
def start(tmp_path):
    """Starts a process in `tmp_path` that only sleeps, with a command line of choice."""
    processes = []

    def make(*argv: str) -> int:
        sleeper = "import sys, time; sys.stdout.write('up\\n'); sys.stdout.flush(); time.sleep(60)"
        processes.append(
            subprocess.Popen([sys.executable, "-c", sleeper, *argv], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        )
        assert processes[-1].stdout.readline() == "up\n"
        return processes[-1].pid

    yield make
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def health(pid: int, minutes: float, **env: str) -> tuple[int, str]:
    flag = [] if env else [f"--minutes={minutes}"]
    done = run(HEALTH, f"--pid={pid}", *flag, env={**os.environ, **env})
    return done.returncode, done.stdout + done.stderr


def write_row(folder: Path, minutes_ago: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "updates.jsonl"
    log.write_text("{}\n")
    when = time.time() - 60 * minutes_ago
    os.utime(log, (when, when))


def test_healthy_while_rows_are_written(tmp_path, start):
    pid = start("-m", "sf_fixpo.train", "--env=x", "--train_dir=runs", "--experiment", "a")
    time.sleep(0.7)  # older than 0.01 minutes, which is all that is allowed below
    write_row(tmp_path / "runs" / "a", minutes_ago=30)
    write_row(tmp_path / "runs" / "b", minutes_ago=0)
    status, said = health(pid, 0.01)
    assert status == 1, said
    assert re.match(r"unhealthy: newest row 30\.\d minutes ago in ", said), said
    assert "0.01 allowed" in said
    write_row(tmp_path / "runs" / "a", minutes_ago=0)
    assert health(pid, 0.5)[0] == 0


def test_a_program_that_has_just_started_is_healthy_without_a_new_row(tmp_path, start):
    pid = start("fixpo-train", "--env=x")
    status, said = health(pid, 5)
    assert status == 0
    assert said.startswith(f"healthy: no row yet in {tmp_path / 'train_dir'}, running for 0.")
    assert said.endswith(" minutes, 5 allowed\n")
    write_row(tmp_path / "train_dir" / "resumed", minutes_ago=1000)
    assert health(pid, 5)[0] == 0, "rows of before the restart say nothing"
    time.sleep(0.3)
    assert health(pid, 0.001)[0] == 1


def test_without_an_experiment_the_newest_log_counts(tmp_path, start):
    pid = start("fixpo-train", "--env=x")
    time.sleep(0.7)
    write_row(tmp_path / "train_dir" / "old", minutes_ago=1000)
    write_row(tmp_path / "train_dir" / "new", minutes_ago=0)
    said = health(pid, 0.01)[1]
    assert re.match(r"(un)?healthy: newest row 0\.", said), said
    assert health(pid, 0, FIXPO_HEALTH_MINUTES="1")[0] == 0


def test_other_programs_are_healthy_while_they_are_there(start):
    pid = start("-m", "sf_fixpo.evaluate", "train_dir/x")
    assert health(pid, 1) == (0, "healthy: nothing is being trained\n")
    assert health(2**22, 1) == (1, f"unhealthy: no process {2**22}\n")
    assert "--minutes=-1.0: must be > 0" in health(pid, -1)[1]


def test_the_trainer_is_found_below_process_one(tmp_path):
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", "-m", "sf_fixpo.train", "--train_dir=deep"]
    parent = f"import subprocess, sys; p = subprocess.Popen({sleeper!r}); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert f"no row yet in {tmp_path / 'deep'}," in health(process.pid, 5)[1]
        finally:
            os.kill(child, signal.SIGKILL)


def test_flag_values():
    loader = SourceFileLoader("fixpo_health", str(HEALTH))
    module = types.ModuleType(loader.name)
    exec(loader.get_code(loader.name), module.__dict__)  # type: ignore[arg-type]
    argv = ["train", "--a=1", "--b", "2", "--a", "3", "--abc=4", "--last"]
    assert [module.flag_value(argv, name) for name in ("--a", "--b", "--ab", "--last")] == ["3", "2", None, ""]


# ---- the Slurm example, with stand-ins for the cluster's two commands


@pytest.fixture
def cluster(tmp_path):
    """A node: `scontrol` and `apptainer` write down how they were called; the latter is then told by a signal to end."""
    (tmp_path / "bin").mkdir()
    apptainer = """#!/usr/bin/env python3
import json, os, signal, sys
json.dump({"argv": sys.argv[1:], "key": os.environ.get("APPTAINERENV_WANDB_API_KEY")}, open(os.environ["SEEN"], "w"))
status = int(os.environ["ENDS_WITH"])
if status == 75:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    open(os.environ["SEEN"] + ".up", "w").close()
    signal.sigwait([signal.SIGUSR1])
sys.exit(status)
"""
    for name, text in (("apptainer", apptainer), ("scontrol", '#!/bin/sh\necho "$@" >>"$SEEN.scontrol"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "sf_fixpo.sif").touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CUDA_"))}
    node = {"SEEN": str(tmp_path / "seen"), "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_GPUS": "0"}
    return {
        **kept,
        **node,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SCRATCH": str(tmp_path),
        "WANDB_API_KEY": "hidden",
    }


def sbatch(folder: Path, env: dict[str, str], *flags: str, **more: str) -> subprocess.Popen[str]:
    command = ["bash", str(DOCKER / "slurm_apptainer.sh"), *flags]
    return subprocess.Popen(command, cwd=folder, env={**env, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_slurm_job_is_saved_and_queued_again_before_the_time_limit(tmp_path, cluster):
    with sbatch(tmp_path, cluster, "--env=x", "--experiment=a b", ENDS_WITH="75") as job:
        deadline = time.monotonic() + 30
        while not (tmp_path / "seen.up").exists():
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        said = job.communicate(timeout=30)[0]
    assert job.returncode == 75, said
    assert (tmp_path / "seen.scontrol").read_text() == "requeue 17\n"
    seen = json.loads((tmp_path / "seen").read_text())
    program = ["sf_fixpo.sif", "fixpo", "train", "--num_workers=16", "--env=x", "--experiment=a b"]
    assert seen["argv"][-len(program) :] == program
    assert "--nv" in seen["argv"]
    assert f"{tmp_path}:/runs" in seen["argv"]
    assert seen["key"] == "hidden"
    assert "hidden" not in " ".join(seen["argv"])


@pytest.mark.parametrize("status", [0, 1])
def test_slurm_job_that_ends_by_itself_is_not_queued_again(tmp_path, cluster, status):
    with sbatch(tmp_path, cluster, "--env=x", ENDS_WITH=str(status)) as job:
        job.communicate(timeout=30)
    assert job.returncode == status
    assert not (tmp_path / "seen.scontrol").exists()


def test_slurm_script_says_what_is_missing(tmp_path, cluster):
    with sbatch(tmp_path, cluster, "--env=x", SIF="other.sif") as job:
        assert "slurm_apptainer.sh: other.sif is not there" in job.communicate(timeout=30)[0]
    assert job.returncode == 2
    assert "#SBATCH --signal=B:USR1@120\n" in (DOCKER / "slurm_apptainer.sh").read_text()


# ---- DeepMind Lab


def test_dmlab_smoke_test_plays_a_level(tmp_path):
    """On the stand-in, which has the same interface."""
    (tmp_path / "deepmind_lab.py").write_text("from sf_fixpo.envs.dmlab.stand_in.engine import Lab\n")
    done = run(sys.executable, DOCKER / "dmlab_smoke.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 steps played" in done.stdout


@pytest.mark.parametrize(
    ("fault", "said"), [("frame[:] = 7", "nothing was drawn"), ("frame = frame[:, :64]", "not uint8 (72, 96, 3)")]
)
def test_dmlab_smoke_test_fails_where_nothing_is_drawn(tmp_path, fault, said):
    broken = f"""
from sf_fixpo.envs.dmlab.stand_in.engine import Lab as StandIn

class Lab(StandIn):
    def observations(self):
        frame = super().observations()["RGB_INTERLEAVED"].copy()
        {fault}
        return {{"RGB_INTERLEAVED": frame}}
"""
    (tmp_path / "deepmind_lab.py").write_text(broken)
    done = run(sys.executable, DOCKER / "dmlab_smoke.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"})
    assert done.returncode == 1
    assert said in done.stderr


def test_installing_dmlab_without_a_wheel_says_what_to_give(tmp_path):
    done = run(DOCKER / "install_dmlab.sh", tmp_path)
    assert done.returncode == 1
    assert "--build-context dmlab_wheel=FOLDER" in done.stderr
