"""The Kubernetes backend's pods as processes, and the launcher's programs with the official client and an API server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import kubernetes_validate
import pytest
from kube_api import serving
from kube_jobs import ALL, NEEDED, VERSIONS, action, args_of, container_of, documents
from launching import make_sweep, starts, states, statuses, steps_logged, wait_until
from programs import started

from sf_fixpo.launcher import resume, stop
from sf_fixpo.launcher.backend import BackendError, JobOptions
from sf_fixpo.launcher.backends.kubernetes import KubernetesBackend
from sf_fixpo.launcher.backends.pod import write_runs
from sf_fixpo.launcher.claims import claim
from sf_fixpo.launcher.sweep import Sweep

# --- pods


def pod_process(sweep: Sweep, name: str, index: int | str, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "sf_fixpo.launcher.backends.pod", str(sweep.folder), name, *flags]
    env = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_the_pods_of_a_job_run_its_runs(tmp_path, capsys):
    sweep = make_sweep(tmp_path / "s", a=[], again=["--fault=preempt"], c=["--fault=raise", "--times=9"], other=[])
    names = ["c", "a", "again"]
    backend = KubernetesBackend(sweep, JobOptions(max_retries=1), args_of(*NEEDED))
    backend.submit([sweep.runs[name] for name in names])
    path = sweep.folder / "job.yaml"
    assert f"kubectl apply -f {path}" in capsys.readouterr().out
    (manifest,) = documents(path)
    # in place of a cluster: a process for each index, again while the policy ignores its end
    ends: dict[str, list[str]] = {name: [] for name in names}
    for index in range(manifest["spec"]["completions"]):
        again = True
        while again:
            command = [sys.executable, *container_of(manifest)["command"][1:]]
            status = subprocess.run(command, env={**os.environ, "JOB_COMPLETION_INDEX": str(index)}, timeout=60).returncode
            end = "Complete" if status == 0 else action(manifest, status)
            ends[names[index]].append(end)
            again = end == "Ignore"
    assert ends == {"c": ["FailIndex"], "a": ["Complete"], "again": ["Ignore", "Complete"]}
    assert statuses(sweep) == {"a": "finished", "again": "finished", "c": "failed", "other": "queued"}
    assert states(sweep)["c"].attempt == 2, "the job has retried by itself"
    assert steps_logged(sweep, "again") == [100, 200, 300]
    assert not starts(sweep, "other")


@pytest.mark.parametrize(("job", "index", "complaint"), [("s-1", 7, "JOB_COMPLETION_INDEX=7"), ("s-2", 0, "no such file")])
def test_a_pod_without_a_run_is_bad_input(tmp_path, job, index, complaint):
    sweep = make_sweep(tmp_path / "s", a=[])
    write_runs(sweep, "s-1", ["a"])
    with pod_process(sweep, job, index) as process:
        assert process.wait(20) == 2
        assert process.stderr is not None
        assert complaint in process.stderr.read()


def test_a_pod_is_preempted_while_it_runs_and_while_it_waits_for_a_dead_job(tmp_path):
    sweep = make_sweep(tmp_path / "s", slow=["--updates=99", "--pace=0.1"], held=[])
    write_runs(sweep, "s-1", list(sweep.runs))
    held = claim(sweep, sweep.runs["held"])
    assert held is not None
    with pod_process(sweep, "s-1", 0) as running, pod_process(sweep, "s-1", 1) as waiting:
        wait_until(lambda: len(steps_logged(sweep, "slow")) > 0)
        for process in (running, waiting):
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert [process.wait(20) for process in (running, waiting)] == [75, 75]
    assert statuses(sweep) == {"slow": "queued", "held": "queued"}
    assert not starts(sweep, "held")


# --- programs


@pytest.fixture
def kube(tmp_path, monkeypatch):
    with serving() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield api


def launch(sweep: Sweep, *flags: str) -> int:
    return resume.main([str(sweep.folder), "--backend=kubernetes", *flags])


def test_without_apply_the_job_is_written_and_nothing_is_asked(tmp_path):
    sweep = make_sweep(tmp_path / "s", a=[], b=[])
    # no cluster and no configuration
    env = {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    command = ["-m", "sf_fixpo.launcher.resume", sweep.folder, "--backend=kubernetes", *NEEDED, "--max_retries=4"]
    with started(tmp_path / "out", *command, env=env) as run:
        assert run.wait(60) == 0, run.report()
    assert f"written, not applied: kubectl apply -f {sweep.folder / 'job.yaml'}" in run.stdout
    (manifest,) = documents(sweep.folder / "job.yaml")
    assert "--max_retries=4" in container_of(manifest)["command"]
    assert kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)
    name = manifest["metadata"]["name"]
    assert json.loads((sweep.folder / ".sweep" / "kubernetes" / f"{name}.json").read_text()) == {"runs": ["a", "b"]}
    assert launch(sweep) == 0, "the flags are those of the last launch"
    assert documents(sweep.folder / "job.yaml") == [manifest], "the same Job: nothing has changed"


def test_apply_creates_one_job_and_stop_deletes_it(tmp_path, kube):
    sweep = make_sweep(tmp_path / "s", a=[], b=[], c=[])
    assert launch(sweep, "--apply", *ALL) == 0
    ((key, job),) = kube.jobs.items()
    assert key == f"rl/{job['metadata']['name']}"
    del job["metadata"]["uid"]
    assert {**job, "status": {}} == {**documents(sweep.folder / "job.yaml")[0], "status": {}}, "sent as it is written"
    assert launch(sweep) == 0, "another launch"
    assert list(kube.jobs) == [key], "makes no second Job while this one has not ended"
    assert stop.main([str(sweep.folder), "--stop_timeout=0"]) == 0
    assert kube.jobs == {}
    assert kube.requests[-1].startswith("DELETE ")
    assert "propagationPolicy=Background" in kube.requests[-1]
    assert set(statuses(sweep).values()) == {"stopped"}
    assert launch(sweep) == 0
    assert len(kube.jobs) == 1, "and on again"


def test_only_what_ended_in_the_cluster_without_an_end_is_submitted_again(tmp_path, kube):
    sweep = make_sweep(tmp_path / "s", **{name: [] for name in "abcdef"})
    assert launch(sweep, "--apply", *NEEDED) == 0
    (first,) = kube.jobs
    kube.jobs[first]["status"] = {"completedIndexes": "0", "failedIndexes": "2-3,5"}
    assert launch(sweep) == 0
    (second,) = set(kube.jobs) - {first}
    assert kube.jobs[second]["spec"]["completions"] == 4, "b and e are still the first Job's"
    kube.jobs[first]["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    kube.jobs[second]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert launch(sweep) == 0
    (third,) = set(kube.jobs) - {first, second}
    assert kube.jobs[third]["spec"]["completions"] == 6


def test_stopping_some_runs_leaves_the_job_to_the_others(tmp_path, kube):
    sweep = make_sweep(tmp_path / "s", a=[], b=[])
    assert launch(sweep, "--apply", *NEEDED) == 0
    assert stop.main([str(sweep.folder), "--only=a", "--stop_timeout=0"]) == 0
    assert len(kube.jobs) == 1
    assert statuses(sweep) == {"a": "stopped", "b": "queued"}
    assert stop.main([str(sweep.folder), "--only=b", "--stop_timeout=0"]) == 0
    assert kube.jobs == {}


def test_what_the_cluster_refuses_is_told(tmp_path, kube, capsys):
    sweep = make_sweep(tmp_path / "s", a=[])
    kube.refusal = (403, "jobs.batch is forbidden: exceeded quota")
    assert launch(sweep, "--apply", *NEEDED) == 2
    assert "403: jobs.batch is forbidden: exceeded quota" in capsys.readouterr().err
    assert sweep.job_of(sweep.runs["a"], "kubernetes") is None
    kube.refusal = None
    assert launch(sweep) == 0
    assert len(kube.jobs) == 1


def test_no_configuration_and_no_server_are_told(tmp_path, monkeypatch, capsys):
    sweep = make_sweep(tmp_path / "s", a=[])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert launch(sweep, "--apply", *NEEDED, "--k8s_memory=1") == 2
    errors = capsys.readouterr().err
    assert "--apply: no configuration of a cluster" in errors
    assert "--k8s_memory=1: must be" in errors
    with serving() as api:
        api.write_kubeconfig(tmp_path / "none")
    assert launch(sweep, "--apply", *NEEDED) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_a_file_of_secrets_that_no_container_has_is_refused(tmp_path):
    sweep = make_sweep(tmp_path / "s" / "t", a=[])
    options = JobOptions(secrets_file=str(tmp_path / "keys.env"))
    with pytest.raises(BackendError, match="use --k8s_secret"):
        KubernetesBackend(sweep, options, args_of(*NEEDED)).submit(list(sweep.runs.values()))
