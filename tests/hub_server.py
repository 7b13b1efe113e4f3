"""A Hub in this process, on 127.0.0.1: the endpoints that the real huggingface_hub client needs to push and load.

Written from what the client sends and expects (huggingface_hub 2.4, the path without xet); the real Hub
may differ where the client does not look.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from huggingface_hub.utils import validate_repo_id

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds, and what it is told to do wrong.

    Args:
        users: who has which token.
        repositories: the files of each repository by path.
        read_only: repositories that exist and that nobody may write to.
        cut_uploads: how many uploads of weights are cut off in the middle.
        refuse_commit: whether to answer a commit with an error, by its message.
    """

    users: dict[str, str] = field(default_factory=dict)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    read_only: set[str] = field(default_factory=set)
    cut_uploads: int = 0
    refuse_commit: Callable[[str], bool] = lambda message: False
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    weights: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)/auth-check/write", "write_check"),
        ("POST", r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)/preupload/[^/]+", "preupload"),
        ("POST", r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)/commit/[^/]+", "commit"),
        ("GET", r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)(/revision/[^/]+)?", "info"),
        ("GET", r"/api/datasets/(?P<repo>[^/]+/[^/]+)/tree/[^/]+", "tree"),
        ("POST", r"/(datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "put"),
        ("GET", r"/(datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)", "resolve"),
    )

    def answer(self) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        self.user = self.hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                getattr(self, name)(**match.groupdict())
                return
        self.body()  # an unread body would be taken for the next request
        self.send(404, {"error": "no such endpoint"})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *arguments: Any) -> None: ...

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.received += data
        return data

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def may_write(self, repo: str) -> bool:
        allowed = self.user == repo.split("/")[0] and repo not in self.hub.read_only
        if not allowed:
            self.send(403 if self.user else 401, {"error": "You may not write to this repository."})
        return allowed

    def create(self) -> None:
        request = json.loads(self.body())
        repo = f"{request.get('organization') or self.user}/{request['name']}"
        exists = repo in self.hub.repositories
        if self.user is None or repo.split("/")[0] != self.user:
            self.send(403 if self.user else 401, {"error": "You may not create this repository."})
        else:
            self.hub.repositories.setdefault(repo, {})
            self.send(409 if exists else 200, {"url": f"{self.hub.url}/{repo}"})

    def whoami(self) -> None:
        self.send(200, {"name": self.user}) if self.user else self.send(401, {"error": "Invalid token"})

    def validate_yaml(self) -> None:
        metadata = yaml.safe_load(json.loads(self.body())["content"].split("---\n")[1])
        try:
            validate_repo_id(metadata.get("base_model"))
            self.send(200, {"warnings": [], "errors": []})
        except ValueError as error:
            self.send(400, {"warnings": [], "errors": [{"message": str(error)}]})

    def write_check(self, repo: str) -> None:
        if self.may_write(repo):
            self.send(200, {})

    def preupload(self, repo: str) -> None:
        files = json.loads(self.body())["files"]
        large = (".safetensors", ".bin", ".pt", ".pth", ".arrow")
        modes = [("lfs" if file["path"].endswith(large) else "regular", file["path"]) for file in files]
        if self.may_write(repo):
            answer = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for mode, path in modes]
            self.send(200, {"files": answer})

    def batch(self, repo: str) -> None:
        objects = json.loads(self.body())["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
        if self.may_write(repo):
            self.send(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if self.hub.cut_uploads > 0:
            self.hub.cut_uploads -= 1
            self.rfile.read(64)
            self.connection.close()
            self.close_connection = True
            return
        data = self.body()
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.weights[oid] = data
        self.send(200, {})

    def commit(self, repo: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        message = lines[0]["value"]["summary"]
        if self.hub.refuse_commit(message):
            self.send(500, {"error": "The Hub is on fire."})
        elif self.may_write(repo):
            for line in lines[1:]:
                value = line["value"]
                regular = line["key"] == "file"
                data = base64.b64decode(value["content"]) if regular else self.hub.weights[value["oid"]]
                self.hub.repositories[repo][value["path"]] = data
            self.hub.commits.append(message)
            self.send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{SHA}", "commitOid": SHA})

    def info(self, repo: str) -> None:
        if repo not in self.hub.repositories:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        else:
            siblings = [{"rfilename": path} for path in self.hub.repositories[repo]]
            self.send(200, {"id": repo, "sha": SHA, "siblings": siblings, "tags": [], "private": False})

    def tree(self, repo: str) -> None:
        files = self.hub.repositories[repo].items()
        self.send(
            200, [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files]
        )

    def resolve(self, repo: str, path: str) -> None:
        data = self.hub.repositories.get(repo, {}).get(path)
        if data is None:
            self.send(
                404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA}
            )
        else:
            etag = hashlib.sha256(data).hexdigest()
            self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA})
