"""Fixtures of all uses. They run in a client's environment, which has pytest but not polyphi."""

import http.client
import json
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def url() -> str:
    """The server's address, without `/v1`."""
    return os.environ["POLYPHI_URL"]


@pytest.fixture(scope="session")
def model() -> str:
    return os.environ["POLYPHI_MODEL"]


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """The run that is served: `model/` is its checkpoint, with the tokenizer."""
    return Path(os.environ["POLYPHI_RUN"])


@pytest.fixture(scope="session")
def media() -> dict[str, dict[str, str]]:
    """File name -> its path, a question about it and the answer: `picture.png` and `recording.wav`."""
    folder = Path(os.environ["POLYPHI_MEDIA"])
    entries = json.loads((folder / "media.json").read_text(encoding="utf-8"))
    return {name: {**entry, "path": str(folder / name)} for name, entry in entries.items()}


@pytest.fixture(scope="session")
def post(url: str) -> Callable[[str, dict[str, Any]], Any]:
    """Send a JSON body to a route without any client; returns the JSON answer. Clients must show the same."""

    def send(route: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
        request = urllib.request.Request(url + route, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    return send


class RequestLog:
    """A proxy in front of the server, for clients that don't show what they send."""

    def __init__(self, server: str, post: Callable[[str, dict[str, Any]], Any]) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Path and JSON body of each POST request, in order."""
        self.post = post
        requests, host = self.requests, server.removeprefix("http://")

        class Forward(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get_content_type() == "application/json":
                    requests.append((self.path, json.loads(body)))
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                connection = http.client.HTTPConnection(host, timeout=120)
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()  # HTTP/1.0: the body ends where the connection does
                while piece := response.read1(65536):
                    self.wfile.write(piece)
                connection.close()

            do_GET = do_POST

            def log_message(self, format: str, *arguments: Any) -> None: ...

        self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
        self.url = f"http://127.0.0.1:{self.proxy.server_port}"
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.requests]

    def message(self, number: int = -1) -> dict[str, Any]:
        """The message that the server answers to a chat completion of the log without the client and its stream."""
        path, body = self.requests[number]
        body = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
        return self.post(path, body)["choices"][0]["message"]

    def text(self, number: int = -1) -> str:
        return self.message(number)["content"] or ""


@pytest.fixture
def log(url: str, post: Callable[[str, dict[str, Any]], Any]) -> Iterator[RequestLog]:
    """The requests that a client sends to `log.url`."""
    requests = RequestLog(url, post)
    yield requests
    requests.proxy.shutdown()
    requests.proxy.server_close()
