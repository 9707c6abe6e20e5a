"""The Ray backend on real Ray: what becomes of runs whose node, worker or launcher goes away."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from launching import make_sweep, quick_run, starts, states, statuses, steps_logged, wait_until
from programs import REPO, started

from sf_fixpo.launcher.backend import JobOptions, job_command
from sf_fixpo.launcher.backends.ray import RayBackend, address, resources, run_in_task
from sf_fixpo.launcher.backends.tied import tied
from sf_fixpo.launcher.claims import RUN_MARK, claim, holder
from sf_fixpo.launcher.flags import add_job_args
from sf_fixpo.launcher.job import PREEMPTED
from sf_fixpo.launcher.sweep import Run, Sweep

SLEEPER = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('up', flush=True); time.sleep(60)"
)
# Without one, Ray writes a new one to the home folder.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}


def args_of(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_job_args(parser)
    RayBackend.add_args(parser)
    return parser.parse_args(flags)


def trainings_of(sweep: Sweep, name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK) == f"{sweep.folder}:{name}" and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


# --- without a cluster


def test_every_fault_is_told(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert RayBackend.faults(args_of()) == []
    assert RayBackend.faults(args_of("--ray_gpus_per_run=0.25", "--ray_memory=1.5Gi", "--ray_address=10.0.0.1:6379")) == []
    bad = ["--ray_address=ray://head:10001", "--ray_gpus_per_run=1.5", "--ray_cpus_per_run=-1", "--ray_memory=16"]
    found = RayBackend.faults(args_of(*bad))
    assert [line.split(":", 1)[0] for line in found] == ["--ray_address=ray", *bad[1:]]
    assert len(RayBackend.faults(args_of("--ray_gpus_per_run=nan", "--ray_cpus_per_run=inf"))) == 2
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert RayBackend.faults(args_of())[0].startswith("RAY_ADDRESS=http://head:8265: must be auto, local or HOST:PORT")


def test_the_address_is_the_flag_or_ray_address_or_here(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address(args_of()) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert address(args_of()) == "head:6379"
    assert address(args_of("--ray_address=auto")) == "auto"


def test_what_ray_counts_for_a_run():
    assert resources(args_of(), has_gpus=False) == {"CPU": 1, "GPU": 0}
    assert resources(args_of(), has_gpus=True) == {"CPU": 1, "GPU": 1}
    flags = ["--ray_gpus_per_run=0.25", "--ray_cpus_per_run=4", "--ray_memory=16Gi"]
    assert resources(args_of(*flags), has_gpus=True) == {"CPU": 4, "GPU": 0.25, "memory": 16 * 2**30}


@pytest.mark.parametrize("victim", ["starter", "tie"])
def test_a_tied_command_gets_sigterm_when_a_process_above_it_is_killed(tmp_path, victim):
    command = [sys.executable, "-c", f"open('out', 'w').write('x')\n{SLEEPER}"]
    # the starter's own pid is known only to itself
    code = (
        f"from sf_fixpo.launcher.backends.tied import tied\nimport subprocess, sys\nsys.exit(subprocess.call(tied({command!r})))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "up\n"
        (tie,) = psutil.Process(starter.pid).children()
        (process,) = tie.children()
        (starter if victim == "starter" else tie).kill()
        gone, alive = psutil.wait_procs([process], timeout=10)
        assert not alive
        assert [found.returncode for found in gone] in ([75], [None])  # None: no child of this process


def test_a_tied_command_passes_signals_and_its_exit_status_on():
    process = subprocess.Popen(tied([sys.executable, "-c", SLEEPER]), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.wait(10) == 75
    process.stdout.close()
    assert subprocess.run(tied(["sh", "-c", "kill -9 $$"]), timeout=20).returncode == 128 + signal.SIGKILL


def test_the_task_waits_for_a_run_that_a_dead_job_still_holds(tmp_path):
    sweep = make_sweep(tmp_path / "s", a=[])
    run = sweep.runs["a"]
    held = claim(sweep, run)
    assert held is not None
    threading.Timer(1.5, held.release).start()
    began = time.monotonic()
    assert run_in_task(job_command(sweep, run, JobOptions()), {}, str(tmp_path)) == (0, "")
    assert time.monotonic() - began > 1.5
    assert statuses(sweep) == {"a": "finished"}


def test_the_task_tells_what_its_job_complains_about(tmp_path):
    sweep = make_sweep(tmp_path / "s", a=[])
    command = job_command(sweep, Run("other", ("true",), "other"), JobOptions())
    assert run_in_task(command, {}, "/no/such/folder") == (2, f"sf_fixpo.launcher.job: other: no run of {sweep.folder}")


# --- with one


def ray_resume(tmp_path, sweep, *flags: str, env=None):
    """`launcher.resume` on Ray; all processes of a cluster that it starts carry its mark."""
    command = ["-m", "sf_fixpo.launcher.resume", sweep.folder, "--backend=ray", *flags]
    return started(tmp_path / f"out_{time.monotonic()}", *command, env={"RAY_ADDRESS": "", **TOKEN, **(env or {})})


def test_a_sweep_on_a_cluster_of_its_own(tmp_path):
    # `preempt` asks to be run again, after an update; `keyed` sees the key and its share of the machine
    show = "import os; print(len(os.environ['WANDB_API_KEY']), os.getcwd())"
    runs = [quick_run(tmp_path / "s", "fine"), quick_run(tmp_path / "s", "preempt", "--fault=preempt")]
    sweep = Sweep.create(tmp_path / "s", [*runs, Run("keyed", ("python", "-c", show), "keyed")])
    key = "0123456789abcdef" * 2
    flags = ["--ray_cpus_per_run=0.5", "--ray_memory=1Mi"]
    # a short path: Ray's sockets lie below it
    with tempfile.TemporaryDirectory() as ray_folder:
        with ray_resume(tmp_path, sweep, *flags, env={"WANDB_API_KEY": key, "RAY_TMPDIR": ray_folder}) as run:
            assert run.wait(120) == 0, run.report()
            run.assert_nothing_left()
        written = {path: path.read_bytes() for root in (tmp_path, Path(ray_folder)) for path in root.rglob("*") if path.is_file()}
    assert statuses(sweep) == {"fine": "finished", "preempt": "finished", "keyed": "finished"}
    found = states(sweep)
    assert [found[name].attempt for name in sweep.runs] == [1, 2, 1]
    assert [found[name].failures for name in sweep.runs] == [0, 0, 0]
    assert steps_logged(sweep, "preempt") == [100, 200, 300]
    assert sweep.log_path(sweep.runs["keyed"]).read_text().strip() == f"{len(key)} {REPO}"
    assert any("raylet" in path.name for path in written), "Ray's own files are among them"
    assert not [path for path, content in written.items() if key.encode() in content], "the key is in no file"


class TwoNodes:
    """A cluster: a head without cores and two nodes, on each of which two runs fit.

    Attributes:
        address: of its head.
        raylets: pid of each node's raylet.
    """

    def __init__(self, folder: Path, ray_folder: str):
        with (folder / "stderr").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(REPO / "tests" / "helpers" / "ray_cluster.py"), "2"],
                env={**os.environ, **TOKEN, "RAY_TMPDIR": ray_folder},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        line = self._stdout.readline()
        assert line, (folder / "stderr").read_text()
        self.address, self.raylets = (json.loads(line)[name] for name in ("address", "raylets"))

    def node_of(self, process: psutil.Process) -> int:
        """The node that a training runs on: its raylet started the worker that started the job."""
        above = {parent.pid for parent in process.parents()}
        (found,) = [node for node, raylet in enumerate(self.raylets) if raylet in above]
        return found

    def remove(self, node: int) -> None:
        self._stdin.write(f"{node}\n")
        self._stdin.flush()
        assert json.loads(self._stdout.readline()) == {"removed": node}

    def close(self) -> None:
        self._stdin.close()
        self._stdout.read()
        self._process.wait(60)
        self._stdout.close()


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    with tempfile.TemporaryDirectory() as ray_folder:
        cluster = TwoNodes(tmp_path_factory.mktemp("cluster"), ray_folder)
        yield cluster
        cluster.close()


def on_cluster(tmp_path, sweep, cluster: TwoNodes, *flags: str, env=None):
    return ray_resume(tmp_path, sweep, f"--ray_address={cluster.address}", "--stop_timeout=10", *flags, env=env)


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_node_lose_no_run(tmp_path, two_nodes):
    names = [f"r{n}" for n in range(4)]
    updates = 45  # of a second each: more than it takes to notice the first loss and go on, on a busy machine too
    sweep = make_sweep(tmp_path / "s", **{name: [f"--updates={updates}", "--pace=1"] for name in names})
    with on_cluster(tmp_path, sweep, two_nodes) as run:
        run.wait_until(lambda: all(steps_logged(sweep, name) for name in names))
        # the worker of one run, of which nothing remains but its job
        (training,) = trainings_of(sweep, names[0])
        next(parent for parent in training.parents() if "ray::" in " ".join(parent.cmdline())).kill()
        run.wait_until(lambda: len(starts(sweep, names[0])) == 2)
        # a node with all that runs on it
        where = {name: two_nodes.node_of(*trainings_of(sweep, name)) for name in names[1:]}
        node = where[names[1]]
        two_nodes.remove(node)
        lost = [name for name in where if where[name] == node]
        assert run.wait(200) == 0, run.report()
    found = states(sweep)
    assert statuses(sweep) == dict.fromkeys(names, "finished")
    assert [found[name].failures for name in names] == [0] * len(names), "none of it counts as a crash"
    for name in names:
        assert steps_logged(sweep, name) == [100 * n for n in range(1, updates + 1)], f"{name} went on where it was, alone"
        assert not trainings_of(sweep, name)
    assert [len(starts(sweep, name)) for name in names[1:]] == [1 + (name in lost) for name in names[1:]]
    assert len(starts(sweep, names[0])) in (2, 3), "the first loss, and the second where it was on that node"


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_runs_save_and_end_with_their_launcher(tmp_path, two_nodes, signum, status):
    sweep = make_sweep(tmp_path / "s", a=["--updates=60", "--pace=1"], b=["--updates=60", "--pace=1"])
    with on_cluster(tmp_path, sweep, two_nodes, "--ray_cpus_per_run=2") as run:
        run.wait_until(lambda: any(steps_logged(sweep, name) for name in sweep.runs))
        os.kill(run.popen.pid, signum)
        assert run.wait(60) == status, run.report()
        wait_until(lambda: not any(trainings_of(sweep, name) or holder(sweep, sweep.runs[name]) for name in sweep.runs), 30)
    started_ones = [name for name in sweep.runs if steps_logged(sweep, name)]
    found = states(sweep)
    for name in started_ones:
        assert (found[name].status, found[name].exit_code) == ("queued" if signum == signal.SIGKILL else "stopped", PREEMPTED)
    if signum == signal.SIGINT:
        assert {found[name].reason for name in started_ones} == {"the launcher was stopped"}


@pytest.mark.slow
def test_stop_from_another_process_reaches_running_and_waiting_runs(tmp_path, two_nodes):
    sweep = make_sweep(tmp_path / "s", **{f"r{n}": ["--updates=60", "--pace=1"] for n in range(6)})
    with on_cluster(tmp_path, sweep, two_nodes, "--ray_cpus_per_run=2") as run:
        run.wait_until(lambda: any(steps_logged(sweep, name) for name in sweep.runs))
        with started(tmp_path / "stop", "-m", "sf_fixpo.launcher.stop", sweep.folder, "--stop_timeout=10") as stopper:
            assert stopper.wait(60) == 0, stopper.report()
        assert run.wait(60) == 1, run.report()
    assert set(statuses(sweep).values()) == {"stopped"}
    assert sum(len(starts(sweep, name)) for name in sweep.runs) <= 2, "those that waited were never started"


@pytest.mark.slow
def test_keys_reach_the_nodes(tmp_path, two_nodes):
    show = "import os; print(os.environ['HF_TOKEN'][::-1])"
    sweep = Sweep.create(tmp_path / "s", [Run("keyed", ("python", "-c", show), "keyed")])
    with on_cluster(tmp_path, sweep, two_nodes, env={"HF_TOKEN": "of the launcher alone"}) as run:
        assert run.wait(60) == 0, run.report()
    assert sweep.log_path(sweep.runs["keyed"]).read_text().strip() == "enola rehcnual eht fo"


@pytest.mark.slow
def test_what_no_node_has_is_told_at_once(tmp_path):
    sweep = make_sweep(tmp_path / "s", a=[])
    with (
        tempfile.TemporaryDirectory() as folder,
        ray_resume(tmp_path, sweep, "--ray_gpus_per_run=64", env={"RAY_TMPDIR": folder}) as run,
    ):
        assert run.wait(120) == 2, run.report()
        run.assert_nothing_left()
    assert "no node has what a run needs (CPU 1, GPU 64)" in run.stderr
