"""The life of requests: queueing, disconnects, shutdown; nothing is left afterwards."""

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer import server as server_module
from polyphi.serve.answer.server import AdmittedRequest
from polyphi.serve.run import FORCE_SECONDS, bind
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.core.serve.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from tests.fixtures.engines import save
from tests.fixtures.servers import Running, request_of, serving, until

LONG = {"messages": [{"role": "user", "content": "the quick fox"}], "max_tokens": 300}
SHORT = {"messages": [{"role": "user", "content": "1 + 2"}], "max_tokens": 4}
PATH = "/v1/chat/completions"


def test_r12_out_of_memory_fails_one_request(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request with the largest step fails; another one gets the same answer as alone."""
    engine = running.engine
    alone = engine.generate([Message.user("1 + 2")], sampling=SamplingParams(max_tokens=30)).text
    run = type(engine.runner).run

    def short(runner, parts, memory):
        if any(len(part.request.prompt) > 100 for part in parts):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return run(runner, parts, memory)

    monkeypatch.setattr(type(engine.runner), "run", short)
    responses: dict[str, httpx2.Response] = {}

    def ask(name: str, text: str) -> None:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 30}
        with running.client() as client:
            responses[name] = client.post(PATH, json=body)

    threads = [
        threading.Thread(target=ask, args=pair)
        for pair in (("small", "1 + 2"), ("large", "the quick brown fox " * 60))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert responses["large"].status_code == 503
    assert responses["large"].json()["error"]["code"] == "out_of_memory"
    assert responses["small"].json()["choices"][0]["message"]["content"] == alone
    assert running.idle()


def test_it_finishes_what_is_under_way(engine: Engine) -> None:
    with serving(engine, Settings("tiny")) as running, running.client() as client:
        responses: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: responses.append(client.post(PATH, json=LONG)))
        thread.start()
        until(lambda: engine.counters().blocks_in_use > 0)
        running.uvicorn.should_exit = True
        thread.join(30)
        assert responses[0].json()["usage"]["completion_tokens"] > 100


def test_what_does_not_finish_in_time_gets_503_or_ends(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `drain_seconds`, in the shape of all errors. A stream ends without its end."""
    go_on = threading.Event()
    run = type(engine.runner).run

    def stuck(*args: object) -> object:
        if engine.counters().tokens > 20:
            go_on.wait(60)
        return run(*args)

    responses: list[httpx2.Response] = []
    with (
        serving(engine, Settings("tiny", drain_seconds=1.0)) as running,
        running.client() as client,
    ):
        body = {**LONG, "max_tokens": 1500, "ignore_eos": True}
        with client.stream("POST", PATH, json={**body, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            monkeypatch.setattr(type(engine.runner), "run", stuck)
            thread = threading.Thread(target=lambda: responses.append(client.post(PATH, json=body)))
            thread.start()
            until(lambda: running.server.admitted == 2)
            running.uvicorn.should_exit = True
            thread.join(30)
            go_on.set()
            with pytest.raises(httpx2.TransportError):
                list(lines)
    assert responses[0].status_code == 503, responses[0].text
    assert responses[0].json()["error"]["code"] == "stopping"


def test_what_is_said_is_logged_only_where_that_was_asked_for(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """For whole and streamed answers, and for completions of plain text."""
    caplog.set_level("INFO", logger="polyphi.serve")
    for log_prompts in (False, True):
        with serving(engine, Settings("tiny", log_prompts=log_prompts)) as running:
            for path, body in (
                (PATH, SHORT),
                (PATH, {**SHORT, "stream": True}),
                ("/v1/completions", {"prompt": "1 + 2", "max_tokens": 4}),
                ("/v1/completions", {"prompt": "1 + 2", "max_tokens": 4, "stream": True}),
            ):
                caplog.clear()
                with running.client() as client:
                    assert client.post(path, json=body).status_code == 200
                lines = [r.getMessage() for r in caplog.records if r.name == "polyphi.serve"]
                assert len(lines) == (2 if log_prompts else 0)
                assert not log_prompts or "1 + 2" in lines[0]


def test_who_hangs_up_while_it_enters_leaves_nothing(fresh: Running) -> None:
    """The ticket is released before its jobs start: they end at once."""
    server, engine = fresh.server, fresh.engine
    row = engine.rows.prepare([Message.user("hi")], SamplingParams(500))
    ticket = AdmittedRequest(server, request_of(server, b""), live=False)
    ticket.release()
    asyncio.run(server.submit(ticket, [row], SamplingParams(500)))
    until(fresh.idle)
    assert server.admitted == 0 and engine.counters().tokens < 500


def test_free_memory_goes_back_when_nobody_is_answered(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once after the last answer, not while the server is idle."""
    calls: list[int] = []
    monkeypatch.setattr(server_module, "TRIM_IDLE", 0.0)
    monkeypatch.setattr(server_module, "give_back", lambda: calls.append(running.server.admitted))
    with running.client() as client:
        assert client.post(PATH, json=SHORT).status_code == 200
        until(lambda: len(calls) == 1)
        time.sleep(1.2)
        assert calls == [0]


def statuses(client: httpx2.Client) -> list[int]:
    return [client.get(path).status_code for path in ("/live", "/health", "/ready")]


def test_a_long_step_is_no_failure_until_the_limit_of_the_engine(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/live` goes on."""
    with running.client() as client:
        with running.engine._lock:
            time.sleep(1)
            assert statuses(client) == [200, 200, 200]
            monkeypatch.setattr(server_module, "STEP_SECONDS", 0.5)
            until(lambda: statuses(client) == [200, 503, 503])
        until(lambda: statuses(client) == [200, 200, 200])


STUCK = """
import subprocess, sys, threading, time
from pathlib import Path
import polyphi
from polyphi.serve import run
from polyphi.serve.app import create_app
from polyphi.serve.admission.settings import Settings

settings = Settings("tiny", port=0, max_waiting=64, drain_seconds=1.0)
listening = run.bind(settings)
print(listening.getsockname()[1], flush=True)

def load(progress):
    engine = polyphi.load(sys.argv[1], max_num_seqs=2).engine
    app = create_app(engine, settings)
    app.state.server._small.pool.submit(time.sleep, 1000)
    step = type(engine.runner).run

    def stuck(*args):
        if Path(sys.argv[2]).exists():
            time.sleep(1000)
        return step(*args)

    type(engine.runner).run = stuck
    print(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid, flush=True)
    return app

run.serve(load, settings, listening, lambda: print("ready", flush=True))
"""


def test_a_stop_ends_the_process_in_seconds_whatever_runs(engine: Engine, tmp_path: Path) -> None:
    """With a step of the engine and a thread of the small pool that never end, open streams, requests that wait, a
    body that is being received, and a process that was started."""
    assert Settings("tiny").drain_seconds + FORCE_SECONDS < 10
    folder, hang = save(engine, tmp_path / "tiny"), tmp_path / "hang"
    command = [sys.executable, "-c", STUCK, str(folder), str(hang)]
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout
        port, child = int(process.stdout.readline()), int(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        body = json.dumps({**LONG, "max_tokens": 1500, "ignore_eos": True, "stream": True})
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"

        def dial(data: str) -> socket.socket:
            peer = socket.create_connection(("127.0.0.1", port), timeout=60)
            stack.enter_context(peer).sendall(data.encode())
            return peer

        streams = [dial(f"{head}content-length: {len(body)}\r\n\r\n{body}") for _ in range(2)]
        for stream in streams:
            assert stream.recv(1000).startswith(b"HTTP/1.1 200")
        hang.touch()
        for _ in range(30):
            dial(f"{head}content-length: {len(body)}\r\n\r\n{body}")
        dial(f"{head}content-length: 1000000\r\n\r\n{{")
        time.sleep(1)
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        print(f"{time.monotonic() - stopped:.1f} s")
        until(lambda: not psutil.pid_exists(child))


@pytest.mark.long
def test_a_second_signal_ends_the_process_at_once() -> None:
    """Also while a request is answered that has a long time to finish."""
    code = """
import asyncio
from types import SimpleNamespace
from fastapi import FastAPI
from polyphi.serve import run
from polyphi.serve.admission.settings import Settings

settings = Settings("tiny", port=0, drain_seconds=1000.0)
listening = run.bind(settings)
app = FastAPI()
app.state.server = SimpleNamespace(draining=False)

@app.get("/slow")
async def slow():
    print("called", flush=True)
    await asyncio.sleep(1000)

print(listening.getsockname()[1], flush=True)
run.serve(lambda progress: app, settings, listening, lambda: print("ready", flush=True))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            assert process.stdout.readline() == "ready\n"
            with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
                peer.sendall(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert process.stdout.readline() == "called\n"
                process.send_signal(signal.SIGTERM)
                time.sleep(1)
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
        finally:
            process.kill()


def test_answers_are_not_held_back_to_fill_packets() -> None:
    """Without the protocol number asyncio leaves Nagle's algorithm on: 40 ms for every response."""
    with bind(Settings("phi", port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_no_request_leaves_anything_in_memory(running: Running) -> None:
    """48 more short requests, of each API and with other texts, leave much less than one of them takes."""

    def send(client: httpx2.Client, first: int, count: int) -> None:
        for number in range(first, first + count):
            text = f"{number} hi"
            chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
            not_stored = {**RESPONSES.write(chat), "store": False}
            path, body, status = [
                *(
                    (dialect.path, dialect.write(chat), 200)
                    for dialect in (CHAT, COMPLETIONS, MESSAGES)
                ),
                (RESPONSES.path, not_stored, 200),
                (PATH, {**chat, "stream": True}, 200),
                ("/tokenize", {"prompt": text}, 200),
                (PATH, {**chat, "max_tokens": -number}, 400),
                (f"/{text}", chat, 404),
            ][number % 8]
            assert client.post(path, json=body).status_code == status

    def allocated() -> int:
        until(running.idle)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    with running.client() as client:
        send(client, 1, 120)  # fills what keeps some results
        tracemalloc.start()
        try:
            send(client, 121, 16)
            before = allocated()
            send(client, 137, 48)
            assert allocated() - before < 48 * 1000
        finally:
            tracemalloc.stop()
