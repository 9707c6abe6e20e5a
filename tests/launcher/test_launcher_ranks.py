"""Runs of several ranks through the launcher: what each backend starts for them, what it refuses, and how such a run ends.

test_launcher_rank_runs.py has real trainings.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading

import kube_jobs
import kubernetes_validate
import pytest
from fake_slurm import FakeSlurm, args_of, srun_parser
from kube_api import serving
from kube_jobs import ALL, NEEDED, VERSIONS, container_of, documents, pod_of
from launching import local_args, make_sweep, quick_run, starts, states, statuses, steps_logged, wait_until
from programs import REPO

from sf_fixpo.launcher import resume, run, starting, stop
from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.backends import following, slurm_ranks
from sf_fixpo.launcher.backends.kubernetes import KubernetesBackend
from sf_fixpo.launcher.backends.kubernetes_job import QUEUE_LABEL
from sf_fixpo.launcher.backends.local import slots
from sf_fixpo.launcher.backends.quantity import times
from sf_fixpo.launcher.backends.ray import RayBackend, resources
from sf_fixpo.launcher.backends.slurm import SlurmBackend
from sf_fixpo.launcher.claims import claim
from sf_fixpo.launcher.flags import FlagParser, add_job_args, job_faults
from sf_fixpo.launcher.job import Job
from sf_fixpo.launcher.sweep import FINISHED, QUEUED, RUNNING, Run, RunState, Sweep

# Says which rank it is: a line of JSON in a file of that name.
WHO = (
    "import json, os, sys; names = sys.argv[2].split(','); "
    "open(sys.argv[1] + os.environ['RANK'], 'a').write(json.dumps([os.environ.get(name) for name in names]) + chr(10)); "
    "sys.exit(int(sys.argv[3]) if os.environ['RANK'] == '1' else 0)"
)


def who(folder, names, status=0):
    return Run("a", ("python", "-c", WHO, f"{folder}/rank_", ",".join(names), str(status)), "a")


# --- what is refused


def test_ranks_and_nodes_must_fit_each_other():
    parser = FlagParser("test", "")
    add_job_args(parser)
    assert job_faults(parser.parse(["--ranks=8", "--nodes=2"])) == []
    assert job_faults(parser.parse(["--ranks=0", "--nodes=-1"])) == [
        "--ranks=0: must be an integer >= 1",
        "--nodes=-1: must be an integer >= 1",
    ]
    (fault,) = job_faults(parser.parse(["--ranks=8", "--nodes=3"]))
    assert fault == "--nodes=3: must divide --ranks=8: each machine of a run has equally many ranks"
    (fault,) = job_faults(parser.parse(["--nodes=2"]))
    assert fault.startswith("--nodes=2: must divide --ranks=1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--ranks=2", "--nodes=2"],
            "--nodes=2: must be 1 with --backend=local: its runs are on this machine; slurm and kubernetes",
        ),
        (["--ranks=4"], "--ranks=4: there are 2 GPU(s) for them, and each rank takes one; --num_gpus=0 trains on CPUs"),
        (["--ranks=2", "--num_gpus=1"], "--ranks=2: there are 1 GPU(s) for them"),
        (["--ranks=2", "--cpus_per_run=100000"], "--cpus_per_run=100000: 200000 cores are needed"),
        (["--backend=ray", "--ranks=2", "--nodes=2"], "--nodes=2: must be 1 with --backend=ray: a run is one task, on one node"),
        (["--backend=ray", "--ranks=2", "--ray_gpus_per_run=0.5"], "--ray_gpus_per_run=0.5: must be 0, -1 or 1 with --ranks=2"),
        (["--backend=slurm", "--ranks=2", "--slurm_gpus_per_run=4"], "--slurm_gpus_per_run=4: must be 0 or 1 with --ranks=2"),
        (["--backend=kubernetes", "--ranks=2", "--k8s_gpus_per_run=2"], "--k8s_gpus_per_run=2: must be 0 or 1 with --ranks=2"),
        (
            ["--backend=kubernetes", "--ranks=2", "--nodes=2", "--k8s_parallelism=1"],
            "--k8s_parallelism=1: must be 0 with --nodes=2",
        ),
    ],
)
def test_what_a_backend_cannot_do_is_refused_before_anything_starts(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    sweep = make_sweep(tmp_path, a=[])
    assert resume.main([str(tmp_path), *argv]) == 2
    assert message in capsys.readouterr().err
    assert not starts(sweep, "a")


def test_algorithms_that_train_with_one_learner_are_refused_by_the_names_of_their_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run.main(["--run=sf_fixpo.launcher.sweeps.paper_figures", f"--train_dir={tmp_path}", "--ranks=2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--ranks=2: only --algo=FIXPO trains with several ranks, unlike 00_figure_3_appo" in line
    assert line.endswith(" more")
    assert not list(tmp_path.iterdir())
    made = [Run("a", ("python", "x.py", "--algo", "TRPO"), "a"), Run("b", ("python", "x.py", "--algo=FIXPO", "--seed=1"), "b")]
    assert starting.algorithm_faults(made, 2) == [
        "--ranks=2: only --algo=FIXPO trains with several ranks, unlike a (--algo=TRPO)"
    ]
    assert starting.algorithm_faults(made, 1) == []
    Sweep.create(tmp_path / "s", made)
    assert resume.main([str(tmp_path / "s"), "--ranks=2"]) == 2
    assert "unlike a (--algo=TRPO)" in capsys.readouterr().err


# --- this machine, and Ray


def test_a_run_takes_a_gpu_and_cores_for_each_of_its_ranks(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7,9")
    monkeypatch.setattr("sf_fixpo.launcher.backends.local.cores_in_order", lambda: list(range(9)))
    made = slots(local_args("--ranks=2"))
    assert [env["CUDA_VISIBLE_DEVICES"] for env, _ in made] == ["3,5", "6,7"], "9 is left over"
    assert [cores for _, cores in made] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    packed = slots(local_args("--ranks=2", "--experiments_per_gpu=2", "--cpus_per_run=1"))
    assert [env["CUDA_VISIBLE_DEVICES"] for env, _ in packed] == ["3,5", "6,7"] * 2
    assert [cores for _, cores in packed] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    hidden = slots(local_args("--ranks=3", "--num_gpus=0"))
    assert [(env["CUDA_VISIBLE_DEVICES"], cores) for env, cores in hidden] == [("", [0, 1, 2]), ("", [3, 4, 5]), ("", [6, 7, 8])]


def test_ray_counts_what_all_ranks_of_a_run_take():
    parser = FlagParser("test", "")
    add_job_args(parser)
    RayBackend.add_args(parser)
    args = parser.parse(["--ranks=4", "--ray_cpus_per_run=8", "--ray_memory=16Gi"])
    assert RayBackend.faults(args) == []
    assert resources(args, has_gpus=True) == {"CPU": 32, "GPU": 4, "memory": 64 * 2**30}
    assert resources(args, has_gpus=False)["GPU"] == 0


def test_torchrun_starts_the_ranks_here_and_what_one_ends_with_is_what_the_job_sees(tmp_path):
    names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
    sweep = Sweep.create(tmp_path, [who(tmp_path, names, status=2)])
    job = Job(sweep, sweep.runs["a"], JobOptions(max_retries=3, ranks=2), {"CUDA_VISIBLE_DEVICES": "3,5"})
    assert job.execute() == 2
    assert (states(sweep)["a"].status, states(sweep)["a"].attempt) == ("failed", 1), "bad input is not run again"
    assert [json.loads((tmp_path / f"rank_{rank}").read_text()) for rank in (0, 1)] == [
        ["2", "0", "2", "3,5"],
        ["2", "1", "2", "3,5"],
    ]
    assert "rank 1 ended first, with exit code 2" in sweep.log_path(sweep.runs["a"]).read_text()


@pytest.mark.slow
def test_torchrun_that_is_told_to_end_passes_it_on_and_the_run_is_queued(tmp_path):
    sweep = make_sweep(tmp_path, a=["--updates=9999", "--pace=0.05"])
    command = [sys.executable, "-m", "sf_fixpo.launcher.job", str(tmp_path), "a", "--ranks=2"]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        before = len(starts(sweep, "a"))
        with subprocess.Popen(command, cwd=REPO) as process:
            wait_until(lambda before=before: len(starts(sweep, "a")) == before + 2)
            process.send_signal(number)
            assert process.wait(60) == 75
        log = sweep.log_path(sweep.runs["a"]).read_text()
        assert log.count(f"heard {signal.Signals(number).name}") == 2
        assert (states(sweep)["a"].status, states(sweep)["a"].failures) == ("queued", 0)


# --- Slurm


@pytest.fixture
def fake(tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{slurm.folder}{os.pathsep}{os.environ['PATH']}")
    return slurm


SPREAD = JobOptions(ranks=8, nodes=2, stop_timeout=10)


def test_the_script_of_a_run_on_two_nodes(tmp_path, fake):
    sweep = make_sweep(tmp_path / "s", a=[])
    flags = ["--ranks=8", "--nodes=2", "--slurm_cpus_per_run=14", "--slurm_mem=64G"]
    args = args_of(*flags)
    assert SlurmBackend.faults(args) == []
    SlurmBackend(sweep, SPREAD, args).submit(list(sweep.runs.values()))
    lines = (sweep.state_folder / "slurm" / "12_submission.sh").read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    of_ranks = {name: asked[name] for name in ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem")}
    assert of_ranks == {"nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "14", "mem": "256G"}
    (line,) = [line for line in lines if line.startswith("srun ")]
    step = srun_parser().parse_args(shlex.split(line)[1:])
    assert (step.nodes, step.ntasks, step.ntasks_per_node, step.overlap) == (1, 1, 1, True), "the job process is one task"
    assert "--export=ALL" in line


def test_the_step_of_all_ranks():
    command = slurm_ranks.step_command(8, 2, 14, 1, ["python", "-m", "x", "--flag"])
    assert command[0] == "srun"
    step = srun_parser().parse_args(command[1:])
    assert (step.ntasks, step.nodes, step.ntasks_per_node, step.cpus_per_task) == (8, 2, 4, 14)
    assert (step.gpus_per_node, step.gpu_bind) == (4, "none"), "all of a node's GPUs are seen by its ranks"
    assert (step.kill_on_bad_exit, step.overlap, step.distribution) == (0, True, "block")
    assert step.command[-5:] == ["be", "python", "-m", "x", "--flag"]
    assert srun_parser().parse_args(slurm_ranks.step_command(2, 1, 1, 0, ["x"])[1:]).gpus_per_node is None


def test_ports_differ_from_step_to_step_and_stay_below_those_of_linux():
    def port(job, step):
        slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_STEP_NUM_TASKS": "2"}
        return int(slurm_ranks.rank_environment({**slurm, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, ["n1"])["MASTER_PORT"])

    ports = [port(job, step) for job in (1, 2, 3) for step in range(5)]
    assert len(set(ports)) == len(ports)
    assert all(10_000 <= port(job, 3) < 30_000 for job in (1, 19_999, 2**31))


def slurm_job(fake, sweep):
    """The job process of the run, as srun starts it."""
    of_slurm = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1", "SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    command = [sys.executable, "-m", "submitit.core._submit", str(sweep.state_folder / "slurm")]
    with (fake.folder / "job_log").open("ab") as log:
        return subprocess.Popen(command, cwd=REPO, env={**os.environ, **of_slurm}, stdout=log, stderr=log)


def test_the_tasks_of_a_slurm_job_are_the_ranks_of_its_run(tmp_path, fake):
    names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    sweep = Sweep.create(tmp_path / "s", [who(tmp_path, names, status=1)])
    args = args_of("--ranks=4", "--nodes=2", "--slurm_gpus_per_run=0")
    SlurmBackend(sweep, JobOptions(ranks=4, nodes=2, max_retries=1), args).submit(list(sweep.runs.values()))
    fake.start_tasks()
    fake.answer("scontrol", "n1\nn2\n")
    fake.answer("squeue", "12.1 ranks\n12.0 submitit\n12.batch batch\n")
    with slurm_job(fake, sweep) as job:
        assert job.wait(60) == 1, (fake.folder / "job_log").read_text()
    assert (states(sweep)["a"].status, states(sweep)["a"].attempt) == ("failed", 2), "run again as a run of one rank is"
    lines = {rank: (tmp_path / f"rank_{rank}").read_text().splitlines() for rank in range(4)}
    assert [len(found) for found in lines.values()] == [2] * 4
    assert [json.loads(found[0]) for found in lines.values()] == [
        ["4", local, "2", "n1", str(10_000 + 7 * 12 + 3), "12.3"] for local in "0101"
    ]
    assert fake.calls("scontrol")[0] == "scontrol show hostnames n[1-2]"
    assert fake.calls("squeue")[0] == "squeue --noheader --steps --jobs=12 --format=%i %j"
    assert fake.calls("scancel") == ["scancel --quiet --signal=KILL 12.1"] * 2, "what a killed srun has left"


def test_a_slurm_job_with_ranks_that_is_signalled_is_requeued_when_they_have_saved(tmp_path, fake):
    sweep = Sweep.create(tmp_path / "s", [quick_run(tmp_path / "s", "a", "--updates=9999", "--pace=0.05")])
    args = args_of("--ranks=2", "--slurm_gpus_per_run=0")
    SlurmBackend(sweep, JobOptions(ranks=2, stop_timeout=10), args).submit(list(sweep.runs.values()))
    fake.start_tasks()
    fake.answer("scontrol", "n1\n")
    fake.answer("squeue", "RUNNING\n")
    with slurm_job(fake, sweep) as job:
        wait_until(lambda: len(starts(sweep, "a")) == 2 and len(steps_logged(sweep, "a")) > 2)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(30) == 255, (fake.folder / "job_log").read_text()
    assert "scontrol requeue 12" in fake.calls("scontrol")
    assert (states(sweep)["a"].status, states(sweep)["a"].exit_code) == ("queued", 75)


# --- Kubernetes


def test_amounts_of_several_ranks_keep_their_unit():
    assert [times("64Gi", 4), times("7500m", 2), times("0.25", 3), times("8", 1), times("32G", 2)] == [
        "256Gi", "15000m", "0.75", "8", "64G",
    ]  # fmt: skip


def written(tmp_path, options, *flags, **runs):
    sweep = make_sweep(tmp_path / "s", **runs)
    KubernetesBackend(sweep, options, kube_jobs.args_of(*flags)).submit(list(sweep.runs.values()))
    return sweep, documents(sweep.folder / "job.yaml")


def test_ranks_of_one_node_share_a_pod(tmp_path):
    _, (manifest,) = written(tmp_path, JobOptions(ranks=4), *NEEDED, a=[], b=[])
    limits = container_of(manifest)["resources"]["limits"]
    assert limits == {"memory": "128Gi", "nvidia.com/gpu": "4"}
    assert container_of(manifest)["resources"]["requests"]["cpu"] == "32"
    (shm,) = [volume["emptyDir"]["sizeLimit"] for volume in pod_of(manifest)["volumes"] if "emptyDir" in volume]
    assert shm == "32Gi"
    assert manifest["spec"]["completions"] == 2, "an index is a run"
    assert {"--ranks=4", "--nodes=1"} <= set(container_of(manifest)["command"])
    assert kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_on_several_nodes_is_a_job_with_a_service(version, tmp_path):
    flags = [flag for flag in ALL if not flag.startswith(("--k8s_parallelism", "--k8s_gpus"))]
    assert KubernetesBackend.faults(kube_jobs.args_of(*flags, "--ranks=8", "--nodes=2")) == []
    sweep, made = written(tmp_path, JobOptions(ranks=8, nodes=2), *flags, a=[], b=[])
    assert [manifest["kind"] for manifest in made] == ["Job", "Service"] * 2
    for manifest in made:
        assert kubernetes_validate.validate(manifest, version, strict=True) == version
    for job, service, name in ((*made[:2], "a"), (*made[2:], "b")):
        spec, metadata = job["spec"], job["metadata"]
        assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["maxFailedIndexes"]) == (
            "Indexed",
            2,
            2,
            0,
        )
        assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": metadata["name"]}
        assert pod_of(job)["subdomain"] == service["metadata"]["name"], "the pod's host name is <job>-<index>.<subdomain>"
        env = {entry["name"]: entry.get("value") for entry in container_of(job)["env"]}
        assert env["MASTER_ADDR"] == f"{metadata['name']}-0.{service['metadata']['name']}"
        assert int(env["MASTER_PORT"] or 0) == service["spec"]["ports"][0]["port"]
        assert metadata["labels"][QUEUE_LABEL] == "training"
        assert QUEUE_LABEL not in service["metadata"]["labels"]
        assert "kueue.x-k8s.io/job-min-parallelism" not in metadata["annotations"], "all nodes or none"
        assert container_of(job)["resources"]["limits"]["amd.com/gpu"] == "4"
        runs = json.loads((sweep.state_folder / "kubernetes" / f"{metadata['name']}.json").read_text())
        assert runs == {"runs": [name] * 2}, "an index is a node"


def test_jobs_on_several_nodes_are_created_with_services_that_go_with_them(tmp_path, monkeypatch, capsys):
    with serving() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        sweep = make_sweep(tmp_path / "s", a=[], b=[])
        launch = [str(sweep.folder), "--backend=kubernetes", "--apply", *NEEDED, "--ranks=4", "--nodes=2"]
        api.refusal, api.refused = (403, "services is forbidden"), ("services",)
        assert resume.main(launch) == 2
        assert "refused to create Service" in capsys.readouterr().err
        assert api.jobs == {}, "without its Service a Job is of no use"
        api.refusal = None
        assert resume.main(launch) == 0
        assert len(api.jobs) == 2
        assert api.jobs.keys() == api.services.keys()
        for key, service in api.services.items():
            (owner,) = service["metadata"]["ownerReferences"]
            assert owner["uid"] == api.jobs[key]["metadata"]["uid"]
        assert resume.main(launch) == 0
        assert len(api.jobs) == 2, "they are live"
        assert stop.main([str(sweep.folder), "--only=a", "--stop_timeout=0"]) == 0
        assert len(api.jobs) == len(api.services) == 1
        assert stop.main([str(sweep.folder), "--stop_timeout=0"]) == 0
        assert api.jobs == api.services == {}
        assert set(statuses(sweep).values()) == {"stopped"}


def pod(sweep, index, *flags, **env):
    command = [sys.executable, "-m", "sf_fixpo.launcher.backends.pod", str(sweep.folder), "j", *flags]
    return subprocess.run(
        command, env={**os.environ, "JOB_COMPLETION_INDEX": index, **env}, capture_output=True, text=True, timeout=60
    )


def test_a_pod_that_is_none_of_the_run_is_bad_input(tmp_path):
    sweep = make_sweep(tmp_path / "s", a=[])
    (sweep.state_folder / "kubernetes").mkdir()
    (sweep.state_folder / "kubernetes" / "j.json").write_text('{"runs": ["a", "a"]}')
    for index, env in (("2", {"MASTER_ADDR": "h", "MASTER_PORT": "1"}), ("1", {})):
        done = pod(sweep, index, "--ranks=2", "--nodes=2", **env)
        assert done.returncode == 2
        assert f"JOB_COMPLETION_INDEX={index}: " in done.stderr


# --- the machines that follow


@pytest.fixture
def followed(tmp_path):
    """A run whose state a test writes, as the job on node 0 does."""
    sweep = make_sweep(tmp_path, a=["--updates=9999", "--pace=0.05"])
    assert claim(sweep, sweep.runs["a"]) is not None
    return sweep


def follow(sweep, monkeypatch, began):
    monkeypatch.setattr(following, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(signal, "signal", lambda *_: signal.SIG_DFL)  # only the main thread may, and it is busy here

    def starter(attempt):
        began.append(attempt)
        return ["env", f"FIXPO_ATTEMPT={attempt}"]

    ended = []
    follower = following.Follower(sweep, sweep.runs["a"], JobOptions(stop_timeout=5, ranks=2, nodes=2), starter, 1)
    thread = threading.Thread(target=lambda: ended.append(follower.follow()))
    thread.start()
    return follower, thread, ended


def test_a_machine_that_follows_is_in_each_attempt_once_and_ends_with_the_run(followed, monkeypatch):
    run, began = followed.runs["a"], []
    _, thread, ended = follow(followed, monkeypatch, began)
    followed.write_state(run, RunState(status=RUNNING, attempt=1))
    wait_until(lambda: len(starts(followed, "a")) == 1 and len(steps_logged(followed, "a")) > 1)
    followed.write_state(run, RunState(status=QUEUED, attempt=1))  # node 0 was preempted
    log = followed.log_path(run).with_name("sweep_log_node_1.txt")
    wait_until(lambda: "heard SIGTERM" in log.read_text())
    followed.write_state(run, RunState(status=RUNNING, attempt=2))
    wait_until(lambda: len(starts(followed, "a")) == 2)
    followed.write_state(run, RunState(status=FINISHED, attempt=2, exit_code=0))
    thread.join(20)
    assert (ended, began) == ([0], [1, 2])


def test_a_machine_that_follows_and_is_preempted_saves_and_says_so(followed, monkeypatch):
    run, began = followed.runs["a"], []
    follower, thread, ended = follow(followed, monkeypatch, began)
    followed.write_state(run, RunState(status=RUNNING, attempt=4))
    wait_until(lambda: len(steps_logged(followed, "a")) > 1)
    follower._end()
    thread.join(20)
    assert (ended, began) == ([75], [4])
    assert "heard SIGTERM" in followed.log_path(run).with_name("sweep_log_node_1.txt").read_text()
