"""An API server with as much of Kubernetes as Jobs and their Services need, over HTTP, for tests: it validates and stores them.

No cluster is needed for what a client sends and how it takes the answers; what a cluster does with a Job is not here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

PREFIXES = {"/apis/batch/v1/namespaces/": "jobs", "/api/v1/namespaces/": "services"}
TOKEN = "t0ken-of-the-kubeconfig"
VERSION = "1.33"


class KubeApi(ThreadingHTTPServer):
    """Listens on a port of its own.

    Attributes:
        jobs: "namespace/name" -> the Job.
        services: the same of Services; they are gone when the Job is that owns them.
        requests: "METHOD path" of everything that was asked.
        refusal: (status, message) with which every creation is answered; None: none.
        refused: what is not refused is created.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.refused = ("jobs", "services")

    def write_kubeconfig(self, path: Path) -> None:
        named = {
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "test", **named}))


class _Handler(BaseHTTPRequestHandler):
    server: KubeApi

    def do_POST(self) -> None:
        kind, namespace = self._place()
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = getattr(self.server, kind)
        key = f"{namespace}/{made['metadata']['name']}"
        if self.server.refusal is not None and kind in self.server.refused:
            self._refuse(*self.server.refusal)
        elif key in known:
            self._refuse(409, f'{kind} "{made["metadata"]["name"]}" already exists')
        else:
            try:
                kubernetes_validate.validate(made, VERSION, strict=True)
            except kubernetes_validate.ValidationError as exc:
                self._refuse(422, exc.message)
                return
            known[key] = {**made, "metadata": {**made["metadata"], "uid": f"uid-of-{key}"}, "status": {}}
            self._answer(201, known[key])

    def do_GET(self) -> None:
        kind, *key = self._place()
        if found := getattr(self.server, kind).get("/".join(key)):
            self._answer(200, found)
        else:
            self._refuse(404, "not found")

    def do_DELETE(self) -> None:
        kind, *key = self._place()
        gone = getattr(self.server, kind).pop("/".join(key), None)
        if gone is None:
            self._refuse(404, "not found")
        else:
            owners = {name: made["metadata"].get("ownerReferences", []) for name, made in self.server.services.items()}
            for name in [name for name, of in owners.items() if any(o["uid"] == gone["metadata"]["uid"] for o in of)]:
                del self.server.services[name]
            self._answer(200, {"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def _place(self) -> tuple[str, ...]:
        """Kind, namespace and, but for a creation, name."""
        self.server.requests.append(f"{self.command} {self.path}")
        prefix = next(prefix for prefix in PREFIXES if self.path.startswith(prefix))
        namespace, kind, *name = self.path.partition("?")[0].removeprefix(prefix).split("/")
        assert kind == PREFIXES[prefix]
        return (kind, namespace, *name)

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, content = 401, {"message": "Unauthorized"}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message, "code": status})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class gives it
        pass


@contextmanager
def serving() -> Iterator[KubeApi]:
    api = KubeApi()
    thread = threading.Thread(target=api.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.shutdown()
        api.server_close()
        thread.join()
