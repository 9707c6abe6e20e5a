"""The Slurm backend on a real cluster of one host: arrays, time limits, preemption, cancelled jobs."""

from __future__ import annotations

import json
import time

import psutil
import pytest
import torch
from launching import make_sweep, starts, states, statuses, steps_logged, wait_until
from programs import LONG, SERIAL, checkpoints_of, json_lines, rows_of, started
from slurm_host import CPUS, slurm_host

from sf_fixpo.algorithm.multiplier import LagrangeMultiplier
from sf_fixpo.launcher.sweep import Run, Sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with slurm_host() as host:
        yield host


ON_CLUSTER = ("--backend=slurm", "--slurm_gpus_per_run=0", "--slurm_cpus_per_run=1", "--slurm_time=60", "--stop_timeout=30")


def resume(tmp_path, cluster, sweep: Sweep, *flags: str):
    folder = tmp_path / f"out_{time.monotonic()}"
    return started(folder, "-m", "sf_fixpo.launcher.resume", str(sweep.folder), *ON_CLUSTER, *flags, env=cluster.env)


def test_an_array_of_six_runs_finishes(tmp_path, cluster):
    sweep = make_sweep(tmp_path / "six", **{f"r{n}": ["--updates=20", "--pace=0.2"] for n in range(6)})
    with resume(tmp_path, cluster, sweep, "--slurm_array_parallelism=3") as launcher:
        launcher.wait_until(lambda: len(cluster.states()) == 6)
        jobs = [sweep.job_of(run, "slurm") or "" for run in sweep.runs.values()]
        most = 0
        while any(state in ("RUNNING", "PENDING") for state in cluster.states().values()):
            most = max(most, list(cluster.states().values()).count("RUNNING"))
            time.sleep(0.2)
        assert launcher.wait(60) == 0, launcher.report()
    assert len({job.partition("_")[0] for job in jobs}) == 1, "one array"
    assert most == 3, "--slurm_array_parallelism"
    assert set(statuses(sweep).values()) == {"finished"}
    assert all(steps_logged(sweep, name) == list(range(100, 2001, 100)) for name in sweep.runs)
    assert {cluster.show(job)["JobState"] for job in jobs} == {"COMPLETED"}


def test_a_training_signalled_before_its_time_limit_goes_on_with_the_same_beta(tmp_path, cluster):
    flags = (*SERIAL, LONG, "--trace_updates=0-9999", "--learning_rate=0.02", "--eps_kl=0.05", "--save_every_sec=10000")
    command = ("python", "-m", "sf_fixpo.train", f"--train_dir={tmp_path}/cartpole", "--experiment=cartpole", *flags)
    sweep = Sweep.create(tmp_path / "cartpole", [Run("cartpole", command, "cartpole")])
    run, experiment = sweep.runs["cartpole"], sweep.folder / "cartpole"
    with resume(tmp_path, cluster, sweep) as launcher:
        launcher.wait_until(lambda: len(rows_of(experiment)) >= 8)
        job = sweep.job_of(run, "slurm") or ""
        cluster.call("scancel", "--signal=USR1", job)  # what Slurm does --slurm_signal_delay seconds before the limit
        launcher.wait_until(lambda: cluster.states()[job] == "PENDING", timeout=60)
        assert (sweep.state(run).status, sweep.state(run).exit_code) == ("queued", 75)
        done = len(rows_of(experiment))
        [checkpoint] = checkpoints_of(experiment)
        saved = torch.load(checkpoint, weights_only=True)
        launcher.wait_until(lambda: len(rows_of(experiment)) > done + 2)
        assert cluster.show(job)["Restarts"] == "1"
        assert sweep.job_of(run, "slurm") == job, "requeued by Slurm, not submitted again"
        with started(tmp_path / "stop", "-m", "sf_fixpo.launcher.stop", str(sweep.folder), env=cluster.env) as stop:
            assert stop.wait(60) == 0, stop.report()
        assert launcher.wait(60) == 1, launcher.report()
    assert sweep.state(run).status == "stopped"
    wait_until(lambda: job not in cluster.states())

    rows = [json.loads(row) for row in rows_of(experiment)]
    beta = saved["fixpo"]["multiplier"]["beta"].item()
    assert rows[done - 1]["env_steps"] == saved["env_steps"]
    assert rows[done - 1]["beta"] == beta != 1.0, "the checkpoint holds all that was learned"
    assert rows[done]["env_steps"] == saved["env_steps"] + 64
    # the first gradient step after the requeue moved beta from exactly where it was saved
    first = next(row for row in json_lines(experiment / "trace.jsonl") if row["policy_version"] == saved["train_step"])
    cfg = json.loads((experiment / "config.json").read_text())
    multiplier = LagrangeMultiplier(cfg["beta_init"], cfg["beta_lr"], cfg["beta_max"])
    multiplier.load_state_dict(saved["fixpo"]["multiplier"])
    multiplier.step(torch.tensor([first["kl_max"]]), torch.tensor([True]), first["eps_kl"], first["c_beta"])
    assert multiplier.beta.item() == pytest.approx(first["beta"], abs=1e-7) != beta


def test_a_run_longer_than_the_time_limit_finishes(tmp_path, cluster):
    sweep = make_sweep(tmp_path / "long", a=["--updates=100", "--pace=1"])
    with resume(tmp_path, cluster, sweep, "--slurm_time=2", "--slurm_signal_delay=45") as launcher:
        assert launcher.wait(280) == 0, launcher.report()
    state = states(sweep)["a"]
    assert (state.status, state.failures) == ("finished", 0)
    assert state.attempt >= 2, "Slurm signals at the latest after 75 seconds"
    assert steps_logged(sweep, "a") == list(range(100, 10001, 100))
    assert cluster.show(sweep.job_of(sweep.runs["a"], "slurm") or "")["Restarts"] == str(state.attempt - 1)


@pytest.mark.parametrize("partition", ["main", "graceful"])
def test_a_preempted_run_goes_on_afterwards(tmp_path, cluster, partition):
    sweep = make_sweep(tmp_path / partition, a=["--updates=60", "--pace=0.2"])
    whole_host = f"--slurm_cpus_per_run={CPUS}"
    with resume(tmp_path, cluster, sweep, f"--slurm_partition={partition}", whole_host) as launcher:
        launcher.wait_until(lambda: len(steps_logged(sweep, "a")) >= 2)
        job = sweep.job_of(sweep.runs["a"], "slurm") or ""
        urgent = ["--parsable", "--partition=urgent", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--wrap=sleep 1"]
        other = cluster.call("sbatch", *urgent).strip()
        launcher.wait_until(lambda: cluster.states().get(job) == "PENDING", timeout=60)
        launcher.wait_until(lambda: cluster.show(other)["JobState"] == "COMPLETED", timeout=60)
        assert launcher.wait(120) == 0, launcher.report()
    state = states(sweep)["a"]
    assert (state.status, state.attempt, state.failures) == ("finished", 2, 0)
    assert steps_logged(sweep, "a") == list(range(100, 6001, 100))
    assert (sweep.job_of(sweep.runs["a"], "slurm"), cluster.show(job)["Restarts"]) == (job, "1")


def test_a_detached_launcher_leaves_and_scancel_is_final(tmp_path, cluster):
    sweep = make_sweep(tmp_path / "detached", a=["--updates=600", "--pace=0.1"], b=["--updates=3"])
    with resume(tmp_path, cluster, sweep, "--slurm_detach", "--slurm_extra", "comment=two words", "export=NONE") as launcher:
        assert launcher.wait(60) == 0, launcher.report()
    wait_until(lambda: statuses(sweep) == {"a": "running", "b": "finished"} and len(steps_logged(sweep, "a")) > 1)
    job = sweep.job_of(sweep.runs["a"], "slurm") or ""
    cluster.call("scancel", job)
    wait_until(lambda: job not in cluster.states())
    assert cluster.show(job)["JobState"] == "CANCELLED"
    assert sweep.state(sweep.runs["a"]).status == "queued", "it saved"
    time.sleep(3)
    assert job not in cluster.states(), "and did not bring itself back"
    with resume(tmp_path, cluster, sweep, "--no-slurm_detach") as launcher:
        launcher.wait_until(lambda: len(starts(sweep, "a")) == 2)
        with started(tmp_path / "stop", "-m", "sf_fixpo.launcher.stop", str(sweep.folder), env=cluster.env) as stop:
            assert stop.wait(60) == 0, stop.report()
        assert launcher.wait(60) == 1, launcher.report()
    assert statuses(sweep) == {"a": "stopped", "b": "finished"}
    assert steps_logged(sweep, "a") == list(range(100, 100 * len(steps_logged(sweep, "a")) + 1, 100))


def test_the_ranks_of_a_run_are_tasks_of_its_job(tmp_path, cluster):
    flags = (*SERIAL, "--train_for_env_steps=7680")
    command = ("python", "-m", "sf_fixpo.train", f"--train_dir={tmp_path}/s", "--experiment=a", *flags)
    sweep = Sweep.create(tmp_path / "s", [Run("a", command, "a")])
    experiment = sweep.folder / "a"
    with resume(tmp_path, cluster, sweep, "--ranks=2", "--max_retries=1") as launcher:
        launcher.wait_until(lambda: len(rows_of(experiment)) >= 15, timeout=180)
        ranks = [process for process in launcher_ranks(cluster) if process.environ()["SLURM_PROCID"] == "1"]
        ranks[0].kill()
        assert launcher.wait(300) == 0, launcher.report()
    state = states(sweep)["a"]
    assert (state.status, state.attempt, state.failures) == ("finished", 2, 1)
    rows = json_lines(experiment / "updates.jsonl")
    assert rows[-1]["env_steps"] >= 7680
    assert all(len(row["ranks"]) == 2 for row in rows)
    assert cluster.show(sweep.job_of(sweep.runs["a"], "slurm") or "")["JobState"] == "COMPLETED"


def launcher_ranks(cluster):
    """The programs of ranks on the cluster, oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("SLURM_CONF") == cluster.env["SLURM_CONF"] and "RANK" in environment:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sorted(found, key=lambda process: process.create_time())


def test_ranks_that_are_signalled_before_the_time_limit_save_and_go_on(tmp_path, cluster):
    sweep = make_sweep(tmp_path / "ranks", a=["--updates=9999", "--pace=0.1"])
    run, log = sweep.runs["a"], sweep.log_path(sweep.runs["a"])
    with resume(tmp_path, cluster, sweep, "--ranks=2") as launcher:
        launcher.wait_until(lambda: len(starts(sweep, "a")) == 2 and len(steps_logged(sweep, "a")) > 4)
        job = sweep.job_of(run, "slurm") or ""
        cluster.call("scancel", "--signal=USR1", job)
        launcher.wait_until(lambda: cluster.states()[job] == "PENDING", timeout=60)
        assert (sweep.state(run).status, sweep.state(run).exit_code) == ("queued", 75)
        launcher.wait_until(lambda: len(starts(sweep, "a")) == 4, timeout=60)
        with started(tmp_path / "stop", "-m", "sf_fixpo.launcher.stop", str(sweep.folder), env=cluster.env) as stop:
            assert stop.wait(60) == 0, stop.report()
        assert launcher.wait(60) == 1, launcher.report()
    assert sweep.state(run).status == "stopped"
    assert log.read_text().count("heard SIGUSR1") >= 2
    wait_until(lambda: job not in cluster.states())
    assert not launcher_ranks(cluster)
