"""Sources and files of rows at HTTP servers of others: endless answers, and redirects."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PIL

from polyphi.data import sources, user_data
from polyphi.data.addresses import read_bytes

pytest.importorskip("aiohttp")


class Handler(BaseHTTPRequestHandler):
    """Files of `files`; /endless sends without end, also a part of a file, and /away redirects to /a.png."""

    files: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.lstrip("/")
        if name.startswith("away"):
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = self.headers.get("Range")
        if name.startswith("endless"):
            self.send_response(206 if part and name.endswith(".parquet") else 200)
            if name.endswith(".parquet"):
                self.send_header("Accept-Ranges", "bytes")
                if not part:
                    self.send_header("Content-Length", "1000")
                    body = False
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                while body:
                    self.wfile.write(b"a" * (1 << 16))
            except OSError:
                pass
            return
        data = self.files.get(name, b"")
        start, end = 0, len(data)
        if part:
            start, end = (int(n) for n in part.removeprefix("bytes=").split("-"))
            end = min(end + 1, len(data))
        self.send_response(206 if part else 200 if name in self.files else 404)
        self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("http")
    PIL.new("RGB", (8, 8), "red").save(folder / "a.png")
    rows = pa.table({"question": ["1+1?"] * 40, "answer": [f"{n}" for n in range(40)]})
    pq.write_table(rows, folder / "a.parquet", row_group_size=15)
    Handler.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()
    thread.join()


def test_parquet_is_read_in_parts(server: str) -> None:
    assert [row.answer for row in user_data.read(f"{server}/a.parquet")] == [
        f"{n}" for n in range(40)
    ]


@pytest.mark.parametrize("name", ["jsonl", "json", "csv", "txt", "parquet", "folder"])
def test_an_endless_answer_ends(name: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("row_files", "limits"):
        monkeypatch.setattr(f"polyphi.data.{module}.MAX_TEXT", 1 << 21)
    address = f"{server}/endless" if name == "folder" else f"{server}/endless.{name}"
    with pytest.raises((ValueError, OSError)):
        for file in sources.find(address):
            list(sources.rows(file))


def test_rows_at_a_server(server: str, tmp_path: Path) -> None:
    for name in ("a.png", "away.png"):
        (tmp_path / "a.jsonl").write_text(json.dumps({"image": f"{server}/{name}", "answer": "x"}))
        with pytest.raises(ValueError, match="--allowed-media-path"):
            list(user_data.read(tmp_path / "a.jsonl"))
        allowed = list(user_data.read(tmp_path / "a.jsonl", allowed_media_path=[server], bad=print))
        assert len(allowed) == (name == "a.png")  # a redirect may lead anywhere
    assert read_bytes(f"{server}/away.png") == read_bytes(f"{server}/a.png")  # of a source
    with pytest.raises(OSError, match="redirect"):
        read_bytes(f"{server}/away.png", redirects=False)
