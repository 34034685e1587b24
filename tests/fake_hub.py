"""The Hub's API as far as polyphi needs it, on a local port: repositories, downloads with ranges, LFS storage, commits.

python tests/fake_hub.py FOLDER --port N [--rate BYTES] [--cut BYTES]

serves the model folders FOLDER/OWNER/NAME, for example to `HF_ENDPOINT=http://127.0.0.1:N polyphi pull OWNER/NAME`.
"""

import argparse
import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

TOKEN = "hf_writes"
READS = "hf_reads"
"""A token without write access, and without access to gated repositories."""
PIECE = 1 << 16
Content = bytes | Path


class Hub(ThreadingHTTPServer):
    """`repositories`: name -> {"private", "files"}, and where needed "gated" and "revisions" (name -> files besides
    those of `main`); `storage`: SHA-256 -> bytes of large files that were pushed; `requests`: the lines of all
    requests; `sent`: bytes of each file that was sent.

    `cuts`: file -> after how many bytes each of its next downloads is cut off; `damaged`: files whose last byte is
    wrong; `rate`: bytes a second of each connection. Of a server that isn't a trusted one: `listed` changes what is
    listed of a model; `etags`: file -> its ETag; `surplus`: file -> how many bytes follow its content; `unsized`: it
    doesn't tell sizes of large files."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.sent: Counter[str] = Counter()
        self.cuts: dict[str, list[int]] = {}
        self.damaged: set[str] = set()
        self.rate: float | None = None
        self.listed: Callable[[dict[str, Any]], None] = lambda answer: None
        self.etags: dict[str, str] = {}
        self.surplus: dict[str, int] = {}
        self.unsized = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, folder: Path, **fields: Any) -> None:
        """A repository with the files of a folder, which are read when they are sent."""
        self.repositories[name] = {"private": False, "files": folder_files(folder), **fields}


def folder_files(folder: Path) -> dict[str, Content]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


_hashes: dict[tuple[Path, int, int, str], str] = {}


def _hash(content: Content, name: str, prefix: bytes = b"") -> str:
    if isinstance(content, bytes):
        return hashlib.new(name, prefix + content).hexdigest()
    status = content.stat()
    key = (content, status.st_mtime_ns, status.st_size, name)
    if key not in _hashes:
        digest = hashlib.new(name, prefix)
        with content.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def is_large(path: str) -> bool:
    """Whether the Hub stores a file in LFS."""
    return path.endswith((".safetensors", "tokenizer.json"))


def etag(path: str, content: Content) -> str:
    """SHA-256 of a large file, and of others the hash that git gives them."""
    if is_large(path):
        return _hash(content, "sha256")
    return _hash(content, "sha1", b"blob %d\0" % size(content))


def commit(files: Mapping[str, Content]) -> str:
    """The commit of a revision: a hash of its files."""
    lines = [f"{path} {etag(path, content)}" for path, content in sorted(files.items())]
    return hashlib.sha1("\n".join(lines).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _refused(self, *, writes: bool) -> bool:
        """Answer 401 without a known token, 403 where one writes that may only read."""
        token = self.token
        status = 401 if token not in (TOKEN, READS) else 403 if writes and token == READS else 200
        if status != 200:
            self._answer({"error": "no access"}, status)
        return status != 200

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was interrupted
            super().handle()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if self.token not in ("", TOKEN, READS):
            message = "Invalid credentials in Authorization header"
            return self._answer({"error": message}, 401, X_Error_Message=message)
        if match := re.fullmatch(r"/lfs/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            return self._send(file, self._revisions(name)[revision][file])
        match = re.fullmatch(
            r"/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<info>.+)|/tree/(?P<tree>.+)|(?P<refs>/refs))?"
            r"|/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
            path,
        )
        if match is None:
            return self._answer({"error": "not part of the fake Hub"}, 404)
        name = match["name"] or match["repository"]
        repository = self.server.repositories.get(name)
        if repository is None or (repository["private"] and not self.token):
            status = 404 if self.token else 401
            return self._answer(
                {"error": "Repository not found"}, status, X_Error_Code="RepoNotFound"
            )
        revisions = self._revisions(name)
        if match["refs"]:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit(files)}
                for name, files in revisions.items()
                if not re.fullmatch("[0-9a-f]{40}", name)
            ]
            return self._answer({"branches": branches, "tags": [], "converts": []})
        revision = match["info"] or match["tree"] or match["revision"] or "main"
        if revision not in revisions:
            return self._answer({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        files = revisions[revision]
        if match["tree"]:
            return self._answer(
                [
                    {
                        "type": "file",
                        "path": path,
                        "oid": etag(path, content),
                        **_facts(path, content),
                    }
                    for path, content in files.items()
                ]
            )
        if match["file"]:
            return self._resolve(name, files, match["file"])
        answer = {
            "id": name,
            "sha": commit(files),
            "private": repository["private"],
            "gated": "auto" if repository.get("gated") else False,
            "siblings": [
                {"rfilename": path, "blobId": etag(path, content), **_facts(path, content)}
                for path, content in files.items()
            ],
            "tags": [],
        }
        self.server.listed(answer)
        self._answer(answer)

    def _revisions(self, name: str) -> dict[str, dict[str, Content]]:
        repository = self.server.repositories[name]
        names = {"main": repository["files"], **repository.get("revisions", {})}
        return {**names, **{commit(files): files for files in names.values()}}

    def _resolve(self, name: str, files: dict[str, Content], file: str) -> None:
        repository = self.server.repositories[name]
        if repository.get("gated") and self.token != TOKEN:
            status = 403 if self.token else 401
            return self._answer({"error": "gated"}, status, X_Error_Code="GatedRepo")
        if file not in files:
            return self._answer({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
        content = files[file]
        facts = {"X-Repo-Commit": commit(files)}
        tag = self.server.etags.get(file, f'"{etag(file, content)}"')
        if not is_large(file):
            return self._send(file, content, {**facts, "ETag": tag})
        self.send_response(302)
        facts["X-Linked-ETag"] = tag
        if not self.server.unsized:
            facts["X-Linked-Size"] = str(size(content))
        # Another host, as that of the Hub's storage is: clients don't send it their token.
        storage = f"http://localhost:{self.server.server_address[1]}"
        facts["Location"] = f"{storage}/lfs/{name}/{commit(files)}/{file}"
        for key, value in {**facts, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, file: str, content: Content, headers: Mapping[str, str] | None = None) -> None:
        """Send a file, or the rest of it from the first byte of a range; cut off, damaged and slowly if so set."""
        length = size(content)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        if start >= length > 0:
            return self._answer({}, 416, Content_Range=f"bytes */{length}")
        self.send_response(206 if match else 200)
        ranges = {"Content-Range": f"bytes {start}-{length - 1}/{length}"} if match else {}
        surplus = self.server.surplus.get(file, 0)
        fields = {"Content-Length": str(length - start + surplus), "Accept-Ranges": "bytes"}
        for key, value in {**fields, **ranges, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.server.cuts.get(file)
        end = min(length, start + cuts.pop(0)) if cuts else length
        for position, piece in _pieces(content, start, end):
            if file in self.server.damaged and position + len(piece) == length:
                piece = piece[:-1] + bytes([piece[-1] ^ 1])
            self.wfile.write(piece)
            self.server.sent[file] += len(piece)
            if self.server.rate:
                time.sleep(len(piece) / self.server.rate)
        for _ in range(0, surplus, PIECE):
            self.wfile.write(bytes(PIECE))
            self.server.sent[file] += PIECE
        self.wfile.flush()

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


def _facts(path: str, content: Content) -> dict[str, Any]:
    values: dict[str, Any] = {"size": size(content)}
    if is_large(path):
        sha256 = etag(path, content)
        values["lfs"] = {
            "oid": sha256,
            "sha256": sha256,
            "size": size(content),
            "pointerSize": 134,
        }
    return values


def _pieces(content: Content, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    if isinstance(content, bytes):
        for position in range(start, end, PIECE):
            yield position, content[position : min(end, position + PIECE)]
        return
    with content.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(PIECE, end - start))):
            yield start, piece
            start += len(piece)


@contextmanager
def hub(port: int = 0) -> Iterator[Hub]:
    """A Hub that runs while the block does."""
    server = Hub(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def clean_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A Hub in place of that of the environment, without a token, with empty caches in a folder."""
    with hub() as server:
        connect(monkeypatch, server.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
        monkeypatch.setenv("POLYPHI_CACHE", str(folder / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def connect(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let huggingface_hub connect to an address."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder with OWNER/NAME/config.json and so on")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--rate", type=float, help="bytes a second of a connection")
    parser.add_argument("--cut", type=int, help="cut the first download of each file after BYTES")
    arguments = parser.parse_args()
    with hub(arguments.port) as server:
        server.rate = arguments.rate
        for folder in sorted(p.parent for p in arguments.folder.glob("*/*/config.json")):
            name = folder.relative_to(arguments.folder).as_posix()
            server.add(name, folder)
            if arguments.cut:
                server.cuts |= {file: [arguments.cut] for file in folder_files(folder)}
            print(f"{name} at {commit(folder_files(folder))}")
        print(f"HF_ENDPOINT={server.address}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"sent {server.sent.total():,} bytes")


if __name__ == "__main__":
    main()
