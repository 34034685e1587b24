"""The Hub's API as far as a push needs it, in memory on a local port: repositories, LFS storage, commits."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_writes"
READS = "hf_reads"
"""A token without write access."""


class Hub(ThreadingHTTPServer):
    """`repositories`: name -> {"private", "files"}, `storage`: SHA-256 -> bytes of large files, `requests`: the
    lines of all requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refused(self, *, writes: bool) -> bool:
        """Answer 401 without a known token, 403 where one writes that may only read."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        status = 401 if token not in (TOKEN, READS) else 403 if writes and token == READS else 200
        if status != 200:
            self._answer({"error": "no access"}, status)
        return status != 200

    def do_GET(self) -> None:
        if self._refused(writes=False):
            return
        name = self.path.removeprefix("/api/models/")
        if (repository := self.server.repositories.get(name)) is None:
            return self._answer({"error": "Repository not found"}, 404)
        self._answer({"id": name, "private": repository["private"], "siblings": [], "tags": []})

    def do_PUT(self) -> None:  # an address that the batch endpoint gave
        content, oid = self._body(), self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self._answer({"error": "another hash"}, 400)
        self.server.storage[oid] = content
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self._refused(writes=True):
            return
        path, server = self.path.partition("?")[0], self.server
        if path == "/api/repos/create":
            fields = json.loads(body)
            name = f"{fields['organization']}/{fields['name']}"
            if name in server.repositories:
                return self._answer({"error": "exists", "url": f"{server.address}/{name}"}, 409)
            private = fields.get("private") or fields.get("visibility") == "private"
            server.repositories[name] = {"private": bool(private), "files": {}}
            return self._answer({"url": f"{server.address}/{name}"})
        if path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for x in objects:
                x["actions"] = {"upload": {"href": f"{server.address}/storage/{x['oid']}"}}
            return self._answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    content = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    content = server.storage[value["oid"]]
                else:
                    continue
                server.repositories[name]["files"][value["path"]] = content
            address = f"{server.address}/{name}/commit/1"
            return self._answer({"commitUrl": address, "commitOid": "1", "pullRequestUrl": None})
        self._answer({"error": "not part of the fake Hub"}, 404)


@contextmanager
def hub() -> Iterator[Hub]:
    """A Hub that runs while the block does."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
