"""What the tests of the Kubernetes backend share: its flags, and how to read a Job."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from sf_fixpo.launcher.backends.kubernetes import KubernetesBackend
from sf_fixpo.launcher.flags import add_job_args

VERSIONS = ["1.30", "1.33", ".".join(kubernetes_validate.latest_version().split(".")[:2])]

NEEDED = ["--k8s_image=registry.example/sf_fixpo:0.2.0", "--k8s_pvc=train-dir"]
ALL = [
    *NEEDED,
    "--k8s_namespace=rl",
    "--k8s_image_pull_policy=Always",
    "--k8s_sub_path=sweeps/a",
    "--k8s_shm_size=16Gi",
    "--k8s_cpus_per_run=7500m",
    "--k8s_memory=64Gi",
    "--k8s_gpu_resource=amd.com/gpu",
    "--k8s_gpus_per_run=2",
    "--k8s_queue=training",
    "--k8s_secret=training-keys",
    "--k8s_priority_class=low",
    "--k8s_node_selector=pool=gpu,topology.kubernetes.io/zone=a",
    "--k8s_tolerations=nvidia.com/gpu:NoSchedule,spot=yes:NoExecute",
    "--k8s_parallelism=3",
    "--k8s_user=2000",
    "--k8s_python=/venv/bin/python",
]


def args_of(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_job_args(parser)
    KubernetesBackend.add_args(parser)
    return parser.parse_args(flags)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(manifest)["containers"]
    return container


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def action(manifest: dict[str, Any], exit_code: int, disrupted: bool = False) -> str:
    """What a Job does with a pod that failed: the first rule that fits; Count where none does."""
    for rule in manifest["spec"]["podFailurePolicy"]["rules"]:
        if "onPodConditions" in rule:
            fits = disrupted and {"type": "DisruptionTarget", "status": "True"} in rule["onPodConditions"]
        else:
            codes = rule["onExitCodes"]
            assert codes["containerName"] == container_of(manifest)["name"]
            fits = (exit_code in codes["values"]) == (codes["operator"] == "In")
        if fits:
            return rule["action"]
    return "Count"
