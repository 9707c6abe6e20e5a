"""The manifest of a sweep: one Indexed Job (Kubernetes 1.29 or later), an index for each run. Nothing here talks to a cluster.

A run whose ranks are spread over nodes is a Job of its own, an index for each node, with a headless Service for the pods' names.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf_fixpo.launcher.backend import JobOptions
from sf_fixpo.launcher.backends.quantity import memory_fault, parse_quantity, times
from sf_fixpo.launcher.flags import gpu_of_rank_fault
from sf_fixpo.launcher.job import HELD, PREEMPTED
from sf_fixpo.launcher.secret_values import SECRET_VARIABLES

CONTAINER = "training"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Without it, Kueue admits a Job only when there is room for all of its runs at a time.
LEAST_PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"

# Where the ranks of a run that is spread over nodes meet, in the pod of node 0.
PORT = 29400

# The least time between SIGTERM and SIGKILL, and what the job gets beyond the time it gives its training.
_LEAST_GRACE_SECONDS = 45
_GRACE_MARGIN_SECONDS = 15
# A pod that ends without a word (killed for its memory) is started again this often beyond --max_retries, as by the driver.
_VANISHED_PODS = 3
_KILLED = 137
_KEPT_SECONDS = 7 * 24 * 3600
_AUTO = -1
_USER = 1000
# Of 63 letters of a host's name: a dash, eight of a hash, a dash and an index.
_LONGEST_STEM = 45

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True)
class SweepOnVolume:
    """What of a sweep is in the manifest.

    Attributes:
        folder: of the sweep, an absolute path, the same in the containers.
        job_name: of the Job.
        runs: how many it has; 1 where a run is spread over nodes.
    """

    folder: Path
    job_name: str
    runs: int


def add_manifest_args(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what is in the manifest."""
    group = parser.add_argument_group("kubernetes")
    text = {
        "k8s_image": ("", "Image with this package"),
        "k8s_image_pull_policy": ("IfNotPresent", f"{{{','.join(_PULL_POLICIES)}}}"),
        "k8s_namespace": ("default", "Namespace of the Job"),
        "k8s_pvc": (
            "",
            "Claim of the volume that holds train_dir, mounted at the same path; ReadWriteMany",
        ),
        "k8s_sub_path": ("", "Where in the volume train_dir is; default: the volume's root"),
        "k8s_shm_size": ("8Gi", "Shared memory (/dev/shm) of a run; it counts as memory of the run"),
        "k8s_cpus_per_run": ("8", "Cores that a run is given, such as 8 or 500m"),
        "k8s_memory": ("32Gi", "Memory of a run, shared memory included"),
        "k8s_gpu_resource": ("nvidia.com/gpu", "What the cluster calls a GPU"),
        "k8s_queue": ("", "Kueue's local queue: the Job starts suspended and Kueue admits it"),
        "k8s_secret": ("", f"Secret whose keys {', '.join(SECRET_VARIABLES)}, those that it has, become environment variables"),
        "k8s_priority_class": ("", "Priority class of the pods"),
        "k8s_node_selector": ("", "Labels that a node must have: KEY=VALUE,KEY=VALUE"),
        "k8s_tolerations": ("", "Taints that do not matter: KEY=VALUE:EFFECT or KEY:EFFECT, with commas between them"),
        "k8s_python": ("python3", "Interpreter in the image"),
    }
    for name, (default, meaning) in text.items():
        group.add_argument(f"--{name}", default=default, help=meaning)
    group.add_argument("--k8s_gpus_per_run", default=1, type=int, help="GPUs of a run, or rank; 0: none")
    group.add_argument("--k8s_parallelism", default=0, type=int, help="Runs at a time; 0: all that the cluster has room for")
    group.add_argument(
        "--k8s_user",
        default=_AUTO,
        type=int,
        help=f"User and group id of the runs; -1: the launcher's, {_USER} for root",
    )


def manifest_faults(args: argparse.Namespace) -> list[str]:
    """Checks the flags of `add_manifest_args`."""
    found = [f"--{name}: must be given" for name in ("k8s_image", "k8s_pvc") if not getattr(args, name)]
    if re.search(r"\s", args.k8s_image):
        found.append(f"--k8s_image={args.k8s_image}: must be the name of an image")
    found += _name_faults(args)
    if args.k8s_image_pull_policy not in _PULL_POLICIES:
        found.append(f"--k8s_image_pull_policy={args.k8s_image_pull_policy}: must be one of {', '.join(_PULL_POLICIES)}")
    for name in ("k8s_gpus_per_run", "k8s_parallelism"):
        if getattr(args, name) < 0:
            found.append(f"--{name}={getattr(args, name)}: must be an integer >= 0")
    if args.k8s_user < 1 and args.k8s_user != _AUTO:
        found.append(f"--k8s_user={args.k8s_user}: must be an integer >= 1 (never root), or -1")
    if args.k8s_sub_path.startswith("/") or ".." in args.k8s_sub_path.split("/"):
        found.append(f"--k8s_sub_path={args.k8s_sub_path}: must be relative to the volume's root, without ..")
    found += gpu_of_rank_fault(args, "k8s_gpus_per_run")
    if args.nodes > 1 and args.k8s_parallelism > 0:
        found.append(
            f"--k8s_parallelism={args.k8s_parallelism}: must be 0 with --nodes={args.nodes}: each run is a Job; use --k8s_queue"
        )
    found += _amount_faults(args)
    for name, read in (("k8s_node_selector", node_selector), ("k8s_tolerations", tolerations)):
        try:
            read(getattr(args, name))
        except ValueError as exc:
            found.append(f"--{name}={getattr(args, name)}: {exc}")
    return found


def _name_faults(args: argparse.Namespace) -> list[str]:
    patterns = {
        "k8s_namespace": (_DNS_LABEL, "lower-case letters, digits and -, at most 63"),
        "k8s_pvc": (_DNS_SUBDOMAIN, "lower-case letters, digits, - and ."),
        "k8s_secret": (_DNS_SUBDOMAIN, "lower-case letters, digits, - and ."),
        "k8s_priority_class": (_DNS_SUBDOMAIN, "lower-case letters, digits, - and ."),
        "k8s_queue": (_DNS_LABEL, "lower-case letters, digits and -, at most 63"),
        "k8s_gpu_resource": (_LABEL_KEY, "the name of a resource, such as nvidia.com/gpu"),
    }
    found = []
    for name, (pattern, allowed) in patterns.items():
        value = getattr(args, name)
        if (value or name == "k8s_namespace") and not pattern.fullmatch(value):
            found.append(f"--{name}={value}: must be {allowed}")
    return found


def _amount_faults(args: argparse.Namespace) -> list[str]:
    faults = [memory_fault(name, getattr(args, name)) for name in ("k8s_shm_size", "k8s_memory")]
    found = [fault for fault in faults if fault is not None]
    if not found and parse_quantity(args.k8s_shm_size) >= parse_quantity(args.k8s_memory):
        found.append(f"--k8s_shm_size={args.k8s_shm_size}: must be less than --k8s_memory={args.k8s_memory}, being a part of it")
    try:
        cpus = parse_quantity(args.k8s_cpus_per_run)
    except ValueError:
        cpus = 0.0
    if not 0.001 <= cpus <= 10_000:
        found.append(f"--k8s_cpus_per_run={args.k8s_cpus_per_run}: must be a number of cores, such as 8 or 500m")
    return found


def node_selector(text: str) -> dict[str, str]:
    """Reads KEY=VALUE,KEY=VALUE.

    Raises:
        ValueError: it is not that.
    """
    found = {}
    for part in filter(None, text.split(",")):
        key, has_value, value = part.partition("=")
        if not has_value or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"must be KEY=VALUE of a label, not {part}")
        found[key] = value
    return found


def tolerations(text: str) -> list[dict[str, str]]:
    """Reads KEY=VALUE:EFFECT,KEY:EFFECT, as `kubectl taint` takes them.

    Raises:
        ValueError: it is not that.
    """
    found = []
    for part in filter(None, text.split(",")):
        taint, _, effect = part.rpartition(":")
        key, has_value, value = taint.partition("=")
        if effect not in _EFFECTS or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"must be KEY=VALUE:EFFECT or KEY:EFFECT, not {part}, where EFFECT is one of {', '.join(_EFFECTS)}")
        match = {"operator": "Equal", "value": value} if has_value else {"operator": "Exists"}
        found.append({"key": key, **match, "effect": effect})
    return found


def job_name(folder: Path, *what: object) -> str:
    """A name for a Job that says which sweep it is, the same for the same sweep, runs and history.

    Args:
        folder: of the sweep.
        what: whatever makes this Job another one.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:_LONGEST_STEM].rstrip("-") or "sweep"
    # a host's name must not begin with a digit everywhere
    stem = stem if stem[0].isalpha() else f"s-{stem}"[:_LONGEST_STEM].rstrip("-")
    return f"{stem}-{hashlib.sha256(repr((str(folder), *what)).encode()).hexdigest()[:8]}"


def job_manifest(sweep: SweepOnVolume, options: JobOptions, args: argparse.Namespace) -> dict[str, Any]:
    """The Job.

    Args:
        sweep: which.
        options: of its runs.
        args: checked flags.

    Returns:
        What is to be written as YAML or sent to the cluster. It holds no secret, only the name of one.
    """
    labels = {"app.kubernetes.io/name": "sf-fixpo", "app.kubernetes.io/component": "training"}
    queue = {QUEUE_LABEL: args.k8s_queue} if args.k8s_queue else {}
    is_spread = options.nodes > 1
    partial = {LEAST_PARALLELISM: "1"} if args.k8s_queue and not is_spread else {}
    pods = options.nodes if is_spread else sweep.runs
    spec: dict[str, Any] = {
        **({"suspend": True} if args.k8s_queue else {}),
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": min(pods, args.k8s_parallelism or pods),
        "backoffLimitPerIndex": options.max_retries + _VANISHED_PODS,
        # without one of its nodes a run is over
        **({"maxFailedIndexes": 0} if is_spread else {}),
        # only when a pod is gone for good may another one take its place
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        "ttlSecondsAfterFinished": _KEPT_SECONDS,
        "template": {"metadata": {"labels": labels}, "spec": _pod(sweep, options, args)},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": sweep.job_name,
            "namespace": args.k8s_namespace,
            "labels": {**labels, **queue},
            "annotations": {"sf-fixpo/sweep": str(sweep.folder), **partial},
        },
        "spec": spec,
    }


def service_manifest(job: dict[str, Any]) -> dict[str, Any]:
    """What gives the pods of a run that is spread over nodes their names: `<name>-<index>.<name>`.

    Args:
        job: of `job_manifest`; the Service has its name.
    """
    name, namespace, labels = (job["metadata"][key] for key in ("name", "namespace", "labels"))
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {k: v for k, v in labels.items() if k != QUEUE_LABEL}},
        "spec": {
            "clusterIP": "None",
            "selector": {"batch.kubernetes.io/job-name": name},
            # pods that start look for each other
            "publishNotReadyAddresses": True,
            "ports": [{"name": "ranks", "port": PORT}],
        },
    }


def _failure_rules() -> list[dict[str, Any]]:
    """The first that fits is applied; what fits none, being killed, counts against backoffLimitPerIndex."""

    def exits(operator: str, *values: int) -> dict[str, Any]:
        return {"onExitCodes": {"containerName": CONTAINER, "operator": operator, "values": sorted(values)}}

    return [
        # preemption, eviction, a drained or lost node
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", **exits("In", HELD, PREEMPTED)},
        # the job has retried itself as often as it may
        {"action": "FailIndex", **exits("NotIn", _KILLED)},
    ]


def _pod(sweep: SweepOnVolume, options: JobOptions, args: argparse.Namespace) -> dict[str, Any]:
    user = args.k8s_user if args.k8s_user != _AUTO else os.getuid() or _USER
    pod: dict[str, Any] = {
        # required by podFailurePolicy: a container that ends is judged, not restarted in its pod
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": max(_LEAST_GRACE_SECONDS, int(options.stop_timeout) + _GRACE_MARGIN_SECONDS),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            # else every file of a large volume is looked at whenever a pod starts
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if options.nodes > 1:
        pod["subdomain"] = sweep.job_name
    if args.k8s_priority_class:
        pod["priorityClassName"] = args.k8s_priority_class
    if args.k8s_node_selector:
        pod["nodeSelector"] = node_selector(args.k8s_node_selector)
    if args.k8s_tolerations:
        pod["tolerations"] = tolerations(args.k8s_tolerations)
    pod["containers"] = [_container(sweep, options, args)]
    pod["volumes"] = [
        {"name": "train-dir", "persistentVolumeClaim": {"claimName": args.k8s_pvc}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": times(args.k8s_shm_size, options.ranks_per_node)}},
    ]
    return pod


def _container(sweep: SweepOnVolume, options: JobOptions, args: argparse.Namespace) -> dict[str, Any]:
    each = options.ranks_per_node
    gpus = {args.k8s_gpu_resource: str(args.k8s_gpus_per_run * each)} if args.k8s_gpus_per_run else {}
    memory, cpu = {"memory": times(args.k8s_memory, each)}, {"cpu": times(args.k8s_cpus_per_run, each)}
    train_dir: dict[str, Any] = {"name": "train-dir", "mountPath": str(sweep.folder.parent)}
    if args.k8s_sub_path:
        train_dir["subPath"] = args.k8s_sub_path
    command = ["-m", "sf_fixpo.launcher.backends.pod", str(sweep.folder), sweep.job_name, *options.to_flags()]
    # a user without an entry in the image's list of users has / as its home
    env: list[dict[str, Any]] = [{"name": "HOME", "value": "/tmp"}, {"name": "OMP_NUM_THREADS", "value": "1"}]
    if options.nodes > 1:
        env += [
            {"name": "MASTER_ADDR", "value": f"{sweep.job_name}-0.{sweep.job_name}"},
            {"name": "MASTER_PORT", "value": str(PORT)},
        ]
    if args.k8s_secret:
        env += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": args.k8s_secret, "key": name, "optional": True}}}
            for name in SECRET_VARIABLES
        ]
    return {
        "name": CONTAINER,
        "image": args.k8s_image,
        "imagePullPolicy": args.k8s_image_pull_policy,
        "command": [args.k8s_python, *command],
        "env": env,
        # no limit of cores: idle ones may be used, and a throttled learner delays everything
        "resources": {"requests": {**cpu, **memory, **gpus}, "limits": {**memory, **gpus}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [train_dir, {"name": "shm", "mountPath": "/dev/shm"}],
    }
