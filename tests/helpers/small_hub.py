"""As much of the Hugging Face Hub as the real client needs, and what a run leaves to be published; for tests."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sf_fixpo.records.update_log import UpdateRecord

TOKEN = "hf_" + "x" * 34
COMMIT = "a" * 40
BEST, LATEST = "best_000000002_128_reward_9.500.pth", "checkpoint_000000003_192.pth"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg==")


def row(version: int, **changes) -> dict:
    values = {
        "policy_id": 0, "policy_version": version, "env_steps": 64 * version, "eps_kl": 0.5, "kl_max": 0.4, "kl_mean": 0.1,
        "kl_max_primary": 0.6, "beta": 1.25, "primary_steps": 4, "fixup_steps": 1, "check_passes": 2, "backtracks": 0,
        "backtrack_scale": 1.0, "rolled_back": False, "statistics_scale": 1.0, "lr_halvings": 0, "stale_fraction": 0.0,
        "valid_fraction": 1.0, "skipped_minibatches": 0, "lag_mean": 0.0, "host_reads": 4,
        "seconds": {"primary": 3.0, "check": 0.5, "fixup": 0.5},
    }  # fmt: skip
    return UpdateRecord(**{**values, **changes}).to_row()


def evaluation(agent: str = "policy", checkpoint: str | None = BEST, **changes) -> dict:
    """As `sf_fixpo.evaluate --json` writes it."""
    record = {"returns": [8.0, 10.0, 12.0], "lengths": [8, 10, 12], "mean": 10.0, "se": 1.1547, "engine": "gym"}
    record |= {"env": "gym_CartPole-v1", "checkpoint": checkpoint, "agent": agent, "deterministic": False, "seed": 0}
    record |= changes
    return {**record, "levels": {record["env"]: dict(record)}, "score": None}


class Hub(ThreadingHTTPServer):
    """As much of the Hub's HTTP interface as the real client needs to publish a folder; keeps what it is given.

    Attributes:
        files: of the one repository, by path.
        objects: large files by SHA-256, as uploaded.
        refuse: HTTP status for requests to make a repository, or None.
        private: whether the repository is; None where there is none yet.
        siblings: what it says of its files, where that is not the truth.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.refuse: int | None = None
        self.private: bool | None = None
        self.siblings: list | None = None
        self.commits = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Requests(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args):
        pass

    def _answer(self, content: dict | None = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/me/run/resolve/"):
            return self._file(path)
        if path not in ("/api/models/me/run", "/api/models/me/run/revision/v1"):
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": name, "size": len(data)} for name, data in self.server.files.items()]
        known = {"id": "me/run", "private": self.server.private, "tags": [], "downloads": 0, "likes": 0, "sha": COMMIT}
        return self._answer({**known, "siblings": self.server.siblings or files})

    def do_HEAD(self):
        self._file(self.path.partition("?")[0])

    def _file(self, path: str) -> None:
        """A file as the Hub serves one: its version and hash are in the header."""
        data = self.server.files.get(path.split("/", 5)[5])
        if data is None:
            return self._answer({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    def do_PUT(self):
        body = self._body()
        assert self.path == f"/object/{hashlib.sha256(body).hexdigest()}"
        self.server.objects[self.path.rpartition("/")[2]] = body
        self._answer()

    def do_POST(self):
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials"}, 401)
        answers = {
            "/api/repos/create": self._create,
            "/api/validate-yaml": lambda body: self._answer({"errors": [], "warnings": []}),
            "/api/models/me/run/preupload/main": self._preupload,
            "/me/run.git/info/lfs/objects/batch": self._lfs,
            "/api/models/me/run/commit/main": self._commit,
        }
        return answers[self.path.partition("?")[0]](body)

    def _create(self, body):
        if self.server.refuse:
            return self._answer({"error": "refused"}, self.server.refuse)
        asked = json.loads(body)
        assert (asked["organization"], asked["name"]) == ("me", "run")
        if self.server.private is None:
            self.server.private = asked.get("private", False)
            return self._answer({"url": f"{self.server.address}/me/run"})
        return self._answer({"error": "exists", "url": f"{self.server.address}/me/run"}, 409)

    def _preupload(self, body):
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".pth") else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._answer({"files": files})

    def _lfs(self, body):
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.address}/object/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, body):
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]
        self.server.commits += 1
        self._answer({"commitUrl": f"{self.server.address}/me/run/commit/{COMMIT}", "commitOid": COMMIT})
