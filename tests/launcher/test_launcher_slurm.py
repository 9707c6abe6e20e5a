"""The Slurm backend: what it asks of Slurm, and what a job of it does (tests/test_launcher_slurm_cluster.py: on a real one)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from fake_slurm import FakeSlurm, args_of
from launching import make_sweep, quick_run, starts, statuses, steps_logged, wait_until
from programs import REPO

from sf_fixpo.launcher.backend import BackendError, JobOptions
from sf_fixpo.launcher.backends.slurm import PROGRAMS, SlurmBackend, to_minutes
from sf_fixpo.launcher.claims import claim
from sf_fixpo.launcher.sweep import Run, Sweep

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the form of a W&B key


@pytest.fixture
def fake(tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{slurm.folder}{os.pathsep}{os.environ['PATH']}")
    return slurm


# --- what it asks of Slurm

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-1%1
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=14
#SBATCH --exclude='n[1-3]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=2
#SBATCH --job-name=s
#SBATCH --mail-user=me@example.org
#SBATCH --mem=64G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --signal=USR1@180
#SBATCH --time=2880

# setup
module load cuda
export SUBMITIT_PREEMPT_SIGNAL=USR1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/%A_%a_%t_log.out --cpus-per-task=14 --export=ALL PYTHON -u -m submitit.core._submit FOLDER
"""


def test_the_script_of_an_array(tmp_path, fake):
    sweep = make_sweep(tmp_path / "s", a=[], b=[])
    flags = ["--slurm_partition=gpu", "--slurm_account=lab", "--slurm_qos=high", "--slurm_gpus_per_run=2", "--slurm_mem=64G"]
    flags += ["--slurm_cpus_per_run=14", "--slurm_time=2-00:00:00", "--slurm_constraint=a100|h100", "--slurm_exclude=n[1-3]"]
    flags += ["--slurm_array_parallelism=1", "--slurm_signal_delay=180", "--slurm_setup", "module load cuda"]
    flags += ["--slurm_extra", "mail-user=me@example.org", "exclusive"]
    args = args_of(*flags)
    assert SlurmBackend.faults(args) == []
    SlurmBackend(sweep, JobOptions(), args).submit(list(sweep.runs.values()))
    [script] = (sweep.state_folder / "slurm").glob("*_submission.sh")
    golden = GOLDEN.replace("FOLDER", str(script.parent)).replace("PYTHON", sys.executable)
    assert script.read_text().rstrip() == golden.rstrip()
    assert len(fake.calls("sbatch")) == 1
    assert [sweep.job_of(run, "slurm") for run in sweep.runs.values()] == ["12_0", "12_1"]


def test_only_what_was_asked_for_is_in_the_script(tmp_path, fake):
    sweep = make_sweep(tmp_path / "s", alone=[])
    SlurmBackend(sweep, JobOptions(), args_of("--slurm_gpus_per_run=0")).submit(list(sweep.runs.values()))
    script = (sweep.state_folder / "slurm" / "12_submission.sh").read_text()
    options = {line.removeprefix("#SBATCH --").partition("=")[0] for line in script.splitlines() if line.startswith("#SBATCH")}
    asked = {"cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time"}
    assert options == asked, "one run is no array; partition, account and so on are left to the cluster"
    assert sweep.job_of(sweep.runs["alone"], "slurm") == "12"


def test_large_sweeps_become_several_arrays(tmp_path, fake, monkeypatch):
    monkeypatch.setattr("sf_fixpo.launcher.backends.slurm._LARGEST_ARRAY", 2)
    sweep = make_sweep(tmp_path / "s", a=[], b=[], c=[])
    SlurmBackend(sweep, JobOptions(), args_of()).submit(list(sweep.runs.values()))
    assert len(fake.calls("sbatch")) == 2


def test_sbatch_refuses(tmp_path, fake):
    fake.refuse("sbatch", "sbatch: error: invalid partition specified: gpuu\n")
    sweep = make_sweep(tmp_path / "s", a=[], b=[])
    with pytest.raises(BackendError, match="invalid partition specified: gpuu"):
        SlurmBackend(sweep, JobOptions(), args_of("--slurm_partition=gpuu")).submit(list(sweep.runs.values()))
    assert sweep.job_of(sweep.runs["a"], "slurm") is None


def test_a_launcher_inside_a_job_hides_that_job(tmp_path, fake, monkeypatch):
    hidden = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "100", "SUBMITIT_EXECUTOR": "slurm"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "lab", "WANDB_API_KEY": KEY}
    for name, value in {**hidden, **kept}.items():
        monkeypatch.setenv(name, value)
    sweep = make_sweep(tmp_path / "s", a=[], b=[])
    SlurmBackend(sweep, JobOptions(), args_of()).submit(list(sweep.runs.values()))
    env = fake.env("sbatch")
    assert not set(hidden) & set(env)
    assert kept.items() <= env.items(), "the key travels in the environment"
    assert os.environ["SLURM_JOB_ID"] == "7"
    files = [path for path in sweep.state_folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pkl" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()], "and lies in no script, pickle or record"


def test_live_is_what_squeue_lists(tmp_path, fake, capsys):
    sweep = make_sweep(tmp_path / "s", a=[], b=[], c=[])
    backend = SlurmBackend(sweep, JobOptions(), args_of())
    assert backend.live() == set()
    assert fake.calls("squeue") == [], "without a job there is nothing to ask"
    backend.submit(list(sweep.runs.values()))
    fake.answer("squeue", "12_0 s\n12_2 s\n12_1 another\n99 s\n")
    assert backend.live() == {"a", "c"}, "12_1 is of another sweep: ids begin again in a new cluster"
    assert fake.calls("squeue") == [f"squeue --noheader --array --user={os.getuid()} --format=%i %j"]
    fake.refuse("squeue", "slurm_load_jobs error: Unable to contact slurm controller\n")
    assert backend.live() == backend.live() == {"a", "b", "c"}, "nothing is submitted again while Slurm does not answer"
    assert capsys.readouterr().err.count("Unable to contact slurm controller") == 1
    fake.recover("squeue")
    fake.answer("squeue", "")
    assert backend.live() == set()


def test_cancel_by_recorded_ids(tmp_path, fake):
    sweep = make_sweep(tmp_path / "s", a=[], b=[], c=[])
    SlurmBackend(sweep, JobOptions(), args_of()).submit([sweep.runs["a"], sweep.runs["b"]])
    fake.answer("squeue", "12_0 s\n")
    another_process = SlurmBackend(Sweep.load(sweep.folder), JobOptions(), args_of())
    another_process.cancel(list(sweep.runs.values()))
    assert fake.calls("scancel") == ["scancel --quiet 12_0"], "b has ended, c has no job"
    fake.refuse("squeue", "Unable to contact slurm controller\n")
    with pytest.raises(BackendError, match="squeue: Unable to contact"):
        another_process.cancel(list(sweep.runs.values()))


# --- flags


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("90:30", 91), ("1:30:00", 90), ("1-0", 1440), ("1-2:30", 1590), ("2-00:00:01", 2881)]
)
def test_time_limits(text, minutes):
    assert to_minutes(text) == minutes


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--slurm_gpus_per_run=-1"], "--slurm_gpus_per_run=-1: must be an integer >= 0"),
        (["--slurm_cpus_per_run=0"], "--slurm_cpus_per_run=0: must be an integer >= 1"),
        (["--slurm_array_parallelism=0"], "--slurm_array_parallelism=0: must be an integer >= 1"),
        (["--slurm_partition=a b"], "--slurm_partition='a b': must have no white space"),
        (["--slurm_account=x\nrm -rf y"], "--slurm_account='x\\nrm -rf y': must have no white space"),
        (["--slurm_mem=lots"], "--slurm_mem=lots: must be a number with K, M, G or T"),
        (["--slurm_time=tomorrow"], "--slurm_time=tomorrow: must be minutes, H:MM:SS or D-HH:MM:SS"),
        (["--slurm_time=3"], "--slurm_time=3: must be more than --slurm_signal_delay + 60 = 180 seconds"),
        (["--slurm_signal_delay=59"], "--slurm_signal_delay=59: must be an integer >= --stop_timeout + 15 = 60, seconds"),
        (["--slurm_extra", "=x"], "--slurm_extra '=x': must be KEY=VALUE or KEY"),
        (["--slurm_extra", "mem=1G"], "--slurm_extra mem: use --slurm_mem"),
        (["--slurm_extra", "output=x"], "--slurm_extra output: set by the launcher"),
        (["--slurm_extra", "comment=a\nb"], "--slurm_extra comment: its value must be one line"),
        (["--slurm_extra", f"export=ALL,WANDB_API_KEY={KEY}"], "--slurm_extra export: seems to hold a secret"),
        (["--slurm_setup", f"export HF_TOKEN='{KEY}'"], "--slurm_setup: seems to hold a secret"),
        (["--slurm_setup", f"wandb login {KEY}"], "--slurm_setup: seems to hold a secret"),
        (["--slurm_setup", "source ~/secrets.sh", "export OMP_NUM_THREADS=1"], ""),
        (["--slurm_extra", "export=ALL,WANDB_MODE=offline", "comment=two words", "exclusive"], ""),
    ],
)
def test_faults(fake, flags, fault):
    found = SlurmBackend.faults(args_of(*flags))
    assert len(found) == bool(fault)
    assert "".join(found).startswith(fault)
    assert KEY not in "".join(found)


def test_all_faults_are_told_at_once_also_that_slurm_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = SlurmBackend.faults(args_of("--slurm_mem=lots", "--slurm_time=x"))
    assert [fault for fault in found if "is not in PATH" in fault] == [
        f"--backend=slurm: {name} is not in PATH: is this a host of a Slurm cluster?" for name in PROGRAMS
    ]
    assert len(found) == len(PROGRAMS) + 2


# --- what a job does, without a cluster


def job_of(fake, sweep: Sweep, **env: str) -> subprocess.Popen:
    """The step of the first array task, as srun starts it."""
    of_slurm = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0", "SLURM_NTASKS": "1"}
    of_script = {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    command = [sys.executable, "-m", "submitit.core._submit", str(sweep.state_folder / "slurm")]
    with (fake.folder / "job_log").open("ab") as log:
        return subprocess.Popen(command, cwd=REPO, env={**os.environ, **of_slurm, **of_script, **env}, stdout=log, stderr=log)


def submitted(tmp_path, *flags: str, command: tuple[str, ...] = ()) -> Sweep:
    run = Run("a", command, "a") if command else quick_run(tmp_path / "s", "a", *flags)
    sweep = Sweep.create(tmp_path / "s", [run, quick_run(tmp_path / "s", "b")])
    SlurmBackend(sweep, JobOptions(stop_timeout=10), args_of()).submit(list(sweep.runs.values()))
    return sweep


def test_a_signalled_job_is_requeued_when_its_training_has_saved(tmp_path, fake):
    sweep = submitted(tmp_path, "--updates=30", "--pace=0.1")
    fake.answer("squeue", "RUNNING\n")
    with job_of(fake, sweep) as job:
        wait_until(lambda: len(steps_logged(sweep, "a")) >= 2)
        for process in (psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)):
            process.send_signal(signal.SIGUSR1)  # Slurm sends it to every process of a step
        assert job.wait(20) == 255, (fake.folder / "job_log").read_text()
    assert fake.calls("scontrol") == ["scontrol requeue 12_0"]
    state = sweep.state(sweep.runs["a"])
    assert (state.status, state.attempt, state.exit_code) == ("queued", 1, 75)
    with job_of(fake, sweep, SLURM_RESTART_COUNT="1") as job:
        assert job.wait(20) == 0, (fake.folder / "job_log").read_text()
    assert statuses(sweep)["a"] == "finished"
    assert steps_logged(sweep, "a") == list(range(100, 3001, 100)), "nothing was lost or done twice"


def test_a_cancelled_job_saves_and_is_not_requeued(tmp_path, fake):
    sweep = submitted(tmp_path, "--updates=1000", "--pace=0.1")
    fake.answer("squeue", "COMPLETING\n")
    with job_of(fake, sweep) as job:
        wait_until(lambda: len(steps_logged(sweep, "a")) >= 2)
        job.terminate()
        assert job.wait(20) == 75
    assert fake.calls("squeue") == ["squeue --noheader --jobs=12_0 --format=%T"]
    assert fake.calls("scontrol") == []
    assert statuses(sweep)["a"] == "queued"


def test_a_training_that_a_signal_kills_before_its_job_has_heard_of_it(tmp_path, fake):
    sweep = submitted(tmp_path, command=("sleep", "100"))
    fake.answer("squeue", "RUNNING\n")
    with job_of(fake, sweep) as job:
        wait_until(lambda: sweep.state(sweep.runs["a"]).pid is not None)
        os.kill(sweep.state(sweep.runs["a"]).pid or 0, signal.SIGUSR1)
        time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(20) == 255
    state = sweep.state(sweep.runs["a"])
    assert (state.status, state.failures, state.exit_code) == ("queued", 0, -signal.SIGUSR1)


def test_the_exit_status_of_a_job_is_that_of_its_run(tmp_path, fake):
    sweep = submitted(tmp_path, "--fault=bad_input")
    with job_of(fake, sweep) as job:
        assert job.wait(20) == 2
    assert statuses(sweep)["a"] == "failed"


@pytest.mark.parametrize("requeued_before", [True, False])
def test_a_run_that_another_job_holds(tmp_path, fake, requeued_before):
    sweep = submitted(tmp_path)
    assert claim(sweep, sweep.runs["a"]) is not None
    with job_of(fake, sweep, SLURM_RESTART_COUNT=str(int(requeued_before))) as job:
        assert job.wait(20) == (255 if requeued_before else 4)
    assert bool(fake.calls("scontrol")) == requeued_before, "the claim may be its own, of a host that went away"
    assert starts(sweep, "a") == []
