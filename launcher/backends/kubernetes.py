"""Kubernetes: a sweep as one Indexed Job, written as YAML, or with --apply handed to the cluster. The launcher then leaves.

Runs whose ranks are spread over nodes are Jobs of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sf_fixpo.launcher.backend import Backend, BackendError
from sf_fixpo.launcher.backends.kubernetes_job import (
    SweepOnVolume,
    add_manifest_args,
    job_manifest,
    job_name,
    manifest_faults,
    service_manifest,
)
from sf_fixpo.launcher.backends.pod import read_runs, write_runs
from sf_fixpo.launcher.driver import say
from sf_fixpo.launcher.sweep import Run

NAME = "kubernetes"
MANIFEST = "job.yaml"

_REQUEST_SECONDS = 30.0


class KubernetesBackend(Backend):
    """One Job for each launch, or for each run of several nodes. What it needs later is in the cluster and on the volume."""

    attached = False

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the manifest and of how it is handed over."""
        add_manifest_args(parser)
        group = parser.add_argument_group("kubernetes, the cluster")
        group.add_argument(
            "--apply",
            default=False,
            action=argparse.BooleanOptionalAction,
            help=f"Create the Job; else it is only written, to <sweep>/{MANIFEST}",
        )
        group.add_argument("--k8s_context", default="", help="Context of the kubeconfig; default: the current one")

    @staticmethod
    def faults(args: argparse.Namespace) -> list[str]:
        """Checks the flags, and with --apply that there is a configuration."""
        found = manifest_faults(args)
        if args.apply:
            try:
                _Jobs(args.k8s_context)
            except BackendError as exc:
                found.append(f"--apply: {exc}")
        return found

    def submit(self, runs: Sequence[Run]) -> None:
        """Writes the Job's manifest and list of runs, and creates it where the launch says --apply."""
        folder = self.sweep.folder
        if ":" in str(folder):
            raise BackendError(f"--backend=kubernetes: {folder}: a path with a colon cannot be mounted")
        secrets_file = self.options.secrets_file
        if secrets_file and not Path(secrets_file).is_relative_to(folder.parent):
            raise BackendError(f"--secrets_file={secrets_file}: no container has this file; use --k8s_secret")
        groups = [[run] for run in runs] if self.options.nodes > 1 else [runs]
        manifests = [self._manifests(group) for group in groups]
        path = folder / MANIFEST
        path.write_text(to_yaml(*(manifest for group in manifests for manifest in group)), encoding="utf-8")
        if not self.args.apply:
            say(f"written, not applied: kubectl apply -f {path}")
            return
        jobs = _Jobs(self.args.k8s_context)
        for group, (job, *services) in zip(groups, manifests, strict=True):
            jobs.create(job, services)
            name = job["metadata"]["name"]
            for index, run in enumerate(group):
                self.sweep.record_job(run, NAME, f"{self.args.k8s_namespace}/{name}/{index}")
            say(f"created: kubectl --namespace={self.args.k8s_namespace} get job {name}")

    def _manifests(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """A Job, and the Service that it needs; writes the list of its runs."""
        folder, names = self.sweep.folder, [run.name for run in runs]
        # a launch that changed nothing makes the same Job, not another one
        history = [(self.sweep.state(run).attempt, self.sweep.job_of(run, NAME)) for run in runs]
        on_volume = SweepOnVolume(folder, job_name(folder, names, history), len(names))
        manifest = job_manifest(on_volume, self.options, self.args)
        write_runs(self.sweep, on_volume.job_name, names * self.options.nodes)
        return [manifest, service_manifest(manifest)] if self.options.nodes > 1 else [manifest]

    def live(self) -> Collection[str]:
        """The runs whose index of a Job that exists has not ended. Of a Job that somebody applied by hand nothing is known."""
        found: set[str] = set()
        if not self.args.apply:
            return found
        jobs = _Jobs(self.args.k8s_context)
        for (namespace, name), indexes in self._created(self.sweep.runs.values()).items():
            job = jobs.read(namespace, name)
            if job is not None and not _is_over(job):
                found |= {run for index, run in indexes.items() if index not in _ended_indexes(job)}
        return found

    def _created(self, runs: Iterable[Run]) -> dict[tuple[str, str], dict[int, str]]:
        """The Jobs that were created for these runs: (namespace, name) -> index -> run."""
        found: dict[tuple[str, str], dict[int, str]] = {}
        for run in runs:
            job_id = self.sweep.job_of(run, NAME)
            if job_id is not None:
                namespace, name, index = job_id.split("/")
                found.setdefault((namespace, name), {})[int(index)] = run.name
        return found

    def wait(self, seconds: float) -> None:
        """Nobody waits for what the cluster does by itself."""
        time.sleep(seconds)

    def cancel(self, runs: Sequence[Run]) -> None:
        """Deletes the Jobs of these runs. A Job with a run that is not to stop stays: its other runs read their stop files."""
        for namespace, name in self._created(runs):
            others = [self.sweep.runs[other] for other in read_runs(self.sweep.folder, name) if other in self.sweep.runs]
            if all(self.sweep.stop_reason(run) is not None or self.sweep.state(run).has_ended for run in others):
                _Jobs(self.args.k8s_context).delete(namespace, name)


def to_yaml(*manifests: Mapping[str, Any]) -> str:
    """Manifests as `kubectl` reads them."""
    return yaml.safe_dump_all(manifests, sort_keys=False, width=120)


def _is_over(job: Mapping[str, Any]) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    over = any(found["type"] in ("Complete", "Failed") and found["status"] == "True" for found in conditions)
    return over or job["metadata"].get("deletionTimestamp") is not None


def _ended_indexes(job: Mapping[str, Any]) -> set[int]:
    """The status has them as text: 1,3-5."""
    status = job.get("status") or {}
    found: set[int] = set()
    for text in (status.get("completedIndexes"), status.get("failedIndexes")):
        for part in filter(None, (text or "").split(",")):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _told(exc: Any) -> str:
    """What an API server says of a request that it refuses."""
    try:
        message = json.loads(exc.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = exc.reason
    return f"{exc.status}: {message}"


class _Jobs:
    """The Jobs of a cluster, by the official client."""

    def __init__(self, context: str):
        """Reads the configuration: the kubeconfig, or in a pod that of its service account."""
        # takes a second, which who only writes a manifest need not wait
        from kubernetes import client, config

        try:
            config.load_kube_config(os.environ.get("KUBECONFIG"), context or None)
        except config.ConfigException as exc:
            try:
                if context:
                    raise exc
                config.load_incluster_config()
            except config.ConfigException:
                raise BackendError(f"no configuration of a cluster: KUBECONFIG, --k8s_context={context}: {exc}") from exc
        self._api, self._core = client.BatchV1Api(), client.CoreV1Api()
        self._client: Any = client

    def create(self, job: Mapping[str, Any], services: Sequence[Mapping[str, Any]] = ()) -> None:
        """Creates a Job and Services that go when it goes.

        Raises:
            BackendError: the cluster refuses; nothing was created.
        """
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        created = self._call("create", f"Job {name}", self._api.create_namespaced_job, namespace, job)
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name}
        for service in services:
            metadata = {**service["metadata"], "ownerReferences": [{**owner, "uid": created.metadata.uid}]}
            owned = {**service, "metadata": metadata}
            try:
                self._call("create", f"Service {name}", self._core.create_namespaced_service, namespace, owned)
            except BackendError:
                self.delete(namespace, name)
                raise

    def read(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The Job as the API has it; None where there is none."""
        found = self._call("read", f"Job {name}", self._api.read_namespaced_job, name, namespace)
        return None if found is None else self._client.ApiClient().sanitize_for_serialization(found)

    def delete(self, namespace: str, name: str) -> None:
        """Deletes a Job and its pods, which get SIGTERM; one that is gone already is no fault."""
        self._call("delete", f"Job {name}", self._api.delete_namespaced_job, name, namespace, propagation_policy="Background")

    def _call(self, verb: str, what: str, method: Any, *values: Any, **options: Any) -> Any:
        from urllib3.exceptions import HTTPError

        try:
            return method(*values, **options, _request_timeout=_REQUEST_SECONDS)
        except self._client.ApiException as exc:
            if exc.status == 404 and verb != "create":
                return None
            raise BackendError(f"Kubernetes refused to {verb} {what}: {_told(exc)}") from exc
        except HTTPError as exc:
            raise BackendError(f"Kubernetes cannot be reached to {verb} {what}: {exc}") from exc
