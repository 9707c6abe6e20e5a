"""The Kubernetes backend: manifests that the official schemas accept, what a Job does with every exit status, the real client.

No cluster is here. The schemas come from the API servers' own OpenAPI descriptions, in the package kubernetes-validate;
in their strict form a field that Kubernetes does not know is a fault. Kueue's objects are not in them: of the example kueue.yaml
only what refers to what is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kube_jobs import ALL, NEEDED, VERSIONS, action, args_of, container_of, documents, pod_of
from programs import REPO

from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.backends.kubernetes import KubernetesBackend, to_yaml
from sf_fixpo.launcher.backends.kubernetes_job import QUEUE_LABEL, SweepOnVolume, job_manifest, job_name
from sf_fixpo.launcher.backends.quantity import parse_quantity
from sf_fixpo.train import parse_cfg

EXAMPLES = REPO / "docker" / "kubernetes"
EXAMPLE = [*NEEDED, "--k8s_secret=training-keys", "--k8s_queue=training", "--k8s_user=1000"]


def manifest_of(*flags: str, options: JobOptions | None = None, runs: int = 10) -> dict[str, Any]:
    on_volume = SweepOnVolume(Path("/data/train_dir/figures"), "figures-0123abcd", runs)
    return job_manifest(on_volume, options or JobOptions(max_retries=2), args_of(*flags))


def example_manifest() -> str:
    """docker/kubernetes/sweep-job.yaml, below its comment."""
    return to_yaml(manifest_of(*EXAMPLE, runs=30))


# --- flags


def test_every_fault_is_told():
    assert KubernetesBackend.faults(args_of(*ALL)) == []
    assert KubernetesBackend.faults(args_of(*NEEDED)) == []
    assert KubernetesBackend.faults(args_of()) == ["--k8s_image: must be given", "--k8s_pvc: must be given"]
    bad = [
        "--k8s_pvc=Train_Dir",
        "--k8s_image=two words",
        "--k8s_namespace=a.b",
        "--k8s_secret=no/slash",
        "--k8s_queue=-a",
        "--k8s_image_pull_policy=Sometimes",
        "--k8s_gpus_per_run=-1",
        "--k8s_parallelism=-2",
        "--k8s_user=0",
        "--k8s_sub_path=../elsewhere",
        "--k8s_memory=64",
        "--k8s_shm_size=8GB",
        "--k8s_cpus_per_run=0",
        "--k8s_node_selector=pool",
        "--k8s_tolerations=spot:Never",
    ]
    found = KubernetesBackend.faults(args_of(*bad))
    assert {line.partition(": ")[0] for line in found} == set(bad)
    assert len(found) == len(bad)


def test_shared_memory_is_a_part_of_memory():
    (fault,) = KubernetesBackend.faults(args_of(*NEEDED, "--k8s_memory=8Gi"))
    assert fault == "--k8s_shm_size=8Gi: must be less than --k8s_memory=8Gi, being a part of it"


@pytest.mark.parametrize(
    ("text", "amount"),
    [("4", 4), ("500m", 0.5), ("0.25", 0.25), ("16Gi", 16 * 2**30), ("2G", 2e9), ("100k", 1e5), ("1Ei", 2**60)],
)
def test_quantities(text, amount):
    assert parse_quantity(text) == pytest.approx(amount)


@pytest.mark.parametrize("text", ["", "16GB", "-1", "1e3", "16 Gi", "Gi", "nan", "1K", "1_0"])
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="is not an amount"):
        parse_quantity(text)


@pytest.mark.parametrize("folder", ["figures", "Figures_v1.2", "1st", "___", "a" * 200, "x=1,y=2"])
def test_names_of_jobs_are_names_of_hosts(folder):
    name = job_name(Path("/data") / folder, ["a"], 1)
    assert len(f"{name}-9999") <= 63
    assert not KubernetesBackend.faults(args_of(*NEEDED, f"--k8s_namespace={name}")), "as strict as a name of a namespace"
    assert name == job_name(Path("/data") / folder, ["a"], 1)
    assert name != job_name(Path("/data") / folder, ["a"], 2)


# --- manifests


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("flags", [NEEDED, ALL], ids=["least", "all"])
def test_manifests_fit_the_official_schema(version, flags):
    manifest = manifest_of(*flags)
    assert yaml.safe_load(to_yaml(manifest)) == manifest
    assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_the_schema_refuses_what_kubernetes_does_not_know():
    manifest = manifest_of(*NEEDED)
    manifest["spec"]["backoffLimitPerindex"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="backoffLimitPerindex"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@pytest.mark.parametrize(
    ("exit_code", "disrupted", "expected"),
    [
        (75, False, "Ignore"),  # preempted
        (4, False, "Ignore"),  # still held by the job of a lost node
        (137, True, "Ignore"),  # evicted and killed
        (1, True, "Ignore"),
        (1, False, "FailIndex"),  # failed, its retries used up
        (2, False, "FailIndex"),  # bad input
        (3, False, "FailIndex"),  # stopped
        (139, False, "FailIndex"),  # its training crashed for the last time
        (137, False, "Count"),  # killed for its memory
    ],
)
def test_what_a_job_does_with_a_pod_that_failed(exit_code, disrupted, expected):
    manifest = manifest_of(*NEEDED)
    assert action(manifest, exit_code, disrupted) == expected
    # what the API demands of a policy beyond its schema
    spec = manifest["spec"]
    assert (spec["completionMode"], spec["podReplacementPolicy"], pod_of(manifest)["restartPolicy"]) == (
        "Indexed",
        "Failed",
        "Never",
    )
    for rule in spec["podFailurePolicy"]["rules"]:
        values = rule.get("onExitCodes", {}).get("values", [1])
        assert 0 not in values
        assert values == sorted(set(values))


def test_what_a_run_gets():
    manifest = manifest_of(*ALL)
    container = container_of(manifest)
    assert manifest["spec"]["completions"] == 10
    assert manifest["spec"]["parallelism"] == 3
    assert manifest["spec"]["suspend"] is True
    assert manifest["metadata"]["labels"][QUEUE_LABEL] == "training"
    assert manifest["spec"]["backoffLimitPerIndex"] == 5, "as often as the driver submits a job that vanished"
    assert container["resources"] == {
        "requests": {"cpu": "7500m", "memory": "64Gi", "amd.com/gpu": "2"},
        "limits": {"memory": "64Gi", "amd.com/gpu": "2"},
    }
    volumes = {volume["name"]: volume for volume in pod_of(manifest)["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert volumes[mounts["/data/train_dir"]["name"]]["persistentVolumeClaim"] == {"claimName": "train-dir"}
    assert mounts["/data/train_dir"]["subPath"] == "sweeps/a"
    assert pod_of(manifest)["nodeSelector"] == {"pool": "gpu", "topology.kubernetes.io/zone": "a"}
    assert pod_of(manifest)["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute"},
    ]
    assert pod_of(manifest)["securityContext"]["runAsUser"] == 2000
    assert pod_of(manifest)["securityContext"]["runAsNonRoot"] is True


def test_nothing_is_asked_for_that_was_not_wanted():
    manifest = manifest_of(*NEEDED, "--k8s_gpus_per_run=0")
    assert container_of(manifest)["resources"]["limits"] == {"memory": "32Gi"}
    assert "suspend" not in manifest["spec"]
    assert manifest["spec"]["parallelism"] == 10
    assert not {"priorityClassName", "nodeSelector", "tolerations"} & set(pod_of(manifest))
    assert not [entry for entry in container_of(manifest)["env"] if "valueFrom" in entry]


@pytest.mark.parametrize(("stop_timeout", "grace"), [(1.0, 45), (45.0, 60), (120.0, 135)])
def test_a_pod_gets_longer_to_end_than_its_run_to_save(stop_timeout, grace):
    manifest = manifest_of(*NEEDED, options=JobOptions(stop_timeout=stop_timeout))
    assert pod_of(manifest)["terminationGracePeriodSeconds"] == grace


def test_keys_come_from_the_secret_and_are_in_no_manifest(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "t" * 34)
    manifest = manifest_of(*ALL)
    text = to_yaml(manifest)
    assert "kkkk" not in text
    assert "hf_" not in text
    references = [entry["valueFrom"]["secretKeyRef"] for entry in container_of(manifest)["env"] if "valueFrom" in entry]
    assert {(found["name"], found["key"], found["optional"]) for found in references} >= {
        ("training-keys", "WANDB_API_KEY", True),
        ("training-keys", "HF_TOKEN", True),
    }


# --- examples


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["volume.yaml", "secret.yaml", "training-job.yaml", "sweep-job.yaml"])
def test_examples_fit_the_official_schema(name, version):
    for document in documents(EXAMPLES / name):
        kubernetes_validate.validate(document, version, strict=True)


def test_every_example_is_known_here():
    known = {"volume.yaml", "secret.yaml", "training-job.yaml", "sweep-job.yaml", "kueue.yaml"}
    assert {path.name for path in EXAMPLES.glob("*")} == known


def test_the_example_of_a_sweep_is_what_the_launcher_writes():
    """`python tests/test_launcher_kubernetes.py` prints it."""
    text = (EXAMPLES / "sweep-job.yaml").read_text()
    assert "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")) == example_manifest()


def test_the_examples_fit_each_other():
    (volume,), (secret,), (training,), (sweep,) = (
        documents(EXAMPLES / f"{name}.yaml") for name in ("volume", "secret", "training-job", "sweep-job")
    )
    assert not {"data", "stringData"} & set(secret), "a template has no values"
    for job in (training, sweep):
        claims = [
            found["persistentVolumeClaim"]["claimName"] for found in pod_of(job)["volumes"] if "persistentVolumeClaim" in found
        ]
        assert claims == [volume["metadata"]["name"]]
        secrets = {entry["valueFrom"]["secretKeyRef"]["name"] for entry in container_of(job)["env"] if "valueFrom" in entry}
        assert secrets == {secret["metadata"]["name"]}
        assert pod_of(job)["securityContext"] == pod_of(sweep)["securityContext"]
        assert container_of(job)["resources"] == container_of(sweep)["resources"]
        assert pod_of(job)["terminationGracePeriodSeconds"] == 60
    assert (action(training, 75), action(training, 2), action(training, 1)) == ("Ignore", "FailJob", "Count")
    found = {document["kind"]: document for document in documents(EXAMPLES / "kueue.yaml")}
    flavor, cluster_queue, local_queue = (found[kind] for kind in ("ResourceFlavor", "ClusterQueue", "LocalQueue"))
    (group,) = cluster_queue["spec"]["resourceGroups"]
    assert local_queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    assert local_queue["metadata"]["name"] == sweep["metadata"]["labels"][QUEUE_LABEL]
    assert local_queue["metadata"]["namespace"] == sweep["metadata"]["namespace"]
    assert [entry["name"] for entry in group["flavors"]] == [flavor["metadata"]["name"]]
    quota = {entry["name"]: parse_quantity(entry["nominalQuota"]) for entry in group["flavors"][0]["resources"]}
    assert list(quota) == group["coveredResources"]
    for name, amount in container_of(sweep)["resources"]["requests"].items():
        assert parse_quantity(amount) <= quota[name], "one run fits at least"


def test_the_example_of_a_training_is_a_command_that_runs_here():
    (job,) = documents(EXAMPLES / "training-job.yaml")
    command = container_of(job)["command"]
    assert command[:3] == ["python3", "-m", "sf_fixpo.train"]
    assert parse_cfg(command[3:]).train_dir == "/data/train_dir"


if __name__ == "__main__":
    print(example_manifest(), end="")
