"""While the model loads: the port responds, returns the progress, and checks requests as afterwards."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from polyphi.serve.app import create_app
from polyphi.serve.page import page
from polyphi.serve.page.loading import Loading, Progress
from polyphi.serve.run import DrainingServer, bind
from tests.fixtures.engines import save
from tests.fixtures.variants import few

CHAT = "/v1/chat/completions"
SHORT = {"messages": [{"role": "user", "content": "1 + 2"}], "max_tokens": 2}


@dataclass
class Load:
    """A load that ends on the test's request, with an application or an exception."""

    result: FastAPI | Exception
    end: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)

    def __call__(self, progress: Progress) -> FastAPI:
        progress.update("weights", 0.25)
        self.began.set()
        assert self.end.wait(30)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@dataclass
class Port:
    """The port of a server whose model is being loaded."""

    number: int
    load: Load
    loading: Loading
    thread: threading.Thread
    reports: list[str]

    def client(self, host: str = "127.0.0.1", **headers: str) -> httpx2.Client:
        url = f"http://127.0.0.1:{self.number}"
        named = {"host": host, **headers}
        return httpx2.Client(base_url=url, headers=named, timeout=20, trust_env=False)

    def loaded(self) -> None:
        self.load.end.set()
        until = time.monotonic() + 20
        while self.loading.app is None and time.monotonic() < until:
            time.sleep(0.01)
        assert self.loading.app is not None


@contextmanager
def loading(result: FastAPI | Exception, settings: Settings) -> Iterator[Port]:
    listening = bind(replace(settings, port=0))
    reports: list[str] = []
    load = Load(result)
    front = Loading(load, settings, lambda: reports.append("ready"))
    server = DrainingServer(front, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    number = listening.getsockname()[1]
    thread.start()
    try:
        assert load.began.wait(20)
        yield Port(number, load, front, thread, reports)
    finally:
        server.should_exit = True
        load.end.set()
        thread.join(20)
        assert not thread.is_alive()


def test_health_and_ready_return_the_progress_until_the_model_is_loaded(engine: Engine) -> None:
    settings = Settings("tiny")
    with loading(create_app(engine, settings), settings) as port, port.client() as client:
        for path in ("/health", "/ready"):
            answer = client.get(path)
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            progress = answer.json()
            assert progress.pop("seconds") >= 0
            assert progress == {"status": "loading", "stage": "weights", "share": 0.25}
            assert client.head(path).status_code == 503 and client.head(path).content == b""
        assert port.reports == []
        port.loaded()
        for path in ("/health", "/ready"):
            assert client.get(path).json() == {"status": "ok"}
        assert client.post(CHAT, json=SHORT).status_code == 200
        assert port.reports == ["ready"]


def test_the_page_shows_the_progress_and_becomes_the_chat_page(engine: Engine) -> None:
    settings = Settings("tiny", keys=("key",))
    with loading(create_app(engine, settings), settings) as port, port.client() as client:
        answer = client.get("/")
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        assert answer.content == page.LOADING
        assert client.head("/").headers["content-type"].startswith("text/html")
        assert client.head("/").content == b""
        port.loaded()
        chat = client.get("/")
        assert (chat.status_code, chat.content) == (200, page.PAGE)
        for name in ("content-type", "x-content-type-options", "cache-control"):
            assert answer.headers[name] == chat.headers[name]


def test_live_is_200_from_the_first_moment(engine: Engine) -> None:
    settings = Settings("tiny", keys=("key",))
    with loading(create_app(engine, settings), settings) as port, port.client() as client:
        for _ in range(2):
            answer = client.get("/live")
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
            assert client.head("/live").status_code == 200
            port.loaded()


def test_everything_else_is_503_with_retry_after_in_the_shape_of_all_errors(engine: Engine) -> None:
    settings = Settings("tiny")
    with loading(create_app(engine, settings), settings) as port, port.client() as client:
        for answer in (
            client.get("/v1/models"),
            client.get("/nowhere"),
            client.post(CHAT, json=SHORT),
            client.post("/health", json={}),
            client.post("/v1/audio/transcriptions", files={"file": b"RIFF"}),
        ):
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("loading", "server_error")
            assert "x-request-id" in answer.headers and "server" not in answer.headers


def test_requests_are_checked_during_the_load_as_afterwards(engine: Engine) -> None:
    settings = Settings("tiny", keys=("key",), max_header_bytes=2000, max_body_bytes=1000)
    key = {"authorization": "Bearer key"}
    with loading(create_app(engine, settings), settings) as port:

        def statuses() -> list[int]:
            with port.client() as plain, port.client("evil.example") as rebound:
                return [
                    rebound.get("/health").status_code,
                    plain.get("/health", headers={"origin": "http://evil.example"}).status_code,
                    plain.get("/v1/models").status_code,
                    plain.get("/v1/models", headers={"authorization": "Bearer x"}).status_code,
                    plain.get("/live", headers={"x-a": "a" * 3000}).status_code,
                    plain.post(CHAT, json="a" * 1001, headers=key).status_code,
                    plain.post(CHAT, content=b"a=b", headers=key).status_code,
                ]

        expected = [403, 403, 401, 401, 431, 413, 415]
        assert statuses() == expected
        with port.client(**key) as client:
            assert client.get("/v1/models").status_code == 503
            port.loaded()
            assert client.get("/v1/models").status_code == 200
        assert statuses() == expected


def test_a_load_that_fails_stops_the_server(engine: Engine) -> None:
    """Also where a client is still sending a body."""
    with loading(ValueError("no config.json"), Settings("tiny")) as port:
        head = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port.number), timeout=10) as peer:
            peer.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
            port.load.end.set()
            port.thread.join(60)
            assert not port.thread.is_alive()
        assert str(port.loading.error) == "no config.json" and port.reports == []


def test_an_application_that_does_not_start_stops_the_server() -> None:
    @asynccontextmanager
    async def broken(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no thread")
        yield

    with loading(FastAPI(lifespan=broken), Settings("tiny")) as port:
        port.load.end.set()
        port.thread.join(60)
        assert not port.thread.is_alive() and str(port.loading.error) == "no thread"


SLOW_LOAD = """
import socket, sys, time
from polyphi.serve import run
from polyphi.serve.admission.settings import Settings

settings = Settings("tiny", port=0)
listening = run.bind(settings)
print(listening.getsockname()[1], flush=True)

def load(progress):
    time.sleep(100)

run.serve(load, settings, listening, lambda: None)
"""


@pytest.mark.parametrize("sign", few([signal.SIGTERM, signal.SIGINT], 1))
def test_a_stop_during_the_load_ends_the_process_at_once(sign: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW_LOAD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            number = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", number), timeout=20) as peer:
                peer.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert peer.recv(1000).startswith(b"HTTP/1.1 200")
                peer.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n")
                peer.sendall(b"content-type: application/json\r\n\r\n")
                process.send_signal(sign)
                assert process.wait(60) == 0  # the load would take 100 s
        finally:
            process.kill()


@pytest.mark.long
def test_a_failing_load_is_reported_as_before(engine: Engine, tmp_path: Path) -> None:
    folder = save(engine, tmp_path / "tiny")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    command = [sys.executable, "-m", "polyphi.cli", "serve", str(folder), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("polyphi: ") and "bert" in last
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_terminal_says_that_the_model_loads_then_that_it_is_ready(
    engine: Engine, tmp_path: Path
) -> None:
    folder = save(engine, tmp_path / "tiny")
    command = [sys.executable, "-m", "polyphi.cli", "serve", str(folder), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        try:
            first = process.stderr.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+", first)
            assert url and "loading tiny" in first
            with httpx2.Client(base_url=url[0], timeout=60, trust_env=False) as client:
                assert client.get("/live").status_code == 200
                stages = set()
                while (answer := client.get("/ready")).status_code != 200:
                    assert answer.status_code == 503 and answer.json()["status"] == "loading"
                    stages.add(answer.json()["stage"])
                    time.sleep(0.02)
                assert "starting" in stages
                assert process.stdout.readline().startswith(f"tiny at {url[0]} (page)")
                assert client.post(CHAT, json=SHORT).status_code == 200
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
