"""JSON bodies: hard ones are refused without delaying others, honest ones are parsed, and none is kept."""

import asyncio
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http import json_parser
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.json_parser import LARGE, MAX_CHARACTERS, MAX_NAME, PAUSE_FACTOR, Parser
from polyphi.serve.openai.schema import ChatRequest, CompletionRequest
from tests.fixtures.servers import Running, from_address, serving, until
from tests.fixtures.variants import few

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}
MB = 1_000_000
OTHER = "127.0.0.2"
HI = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":2}'


def with_field(name: str, value: bytes) -> bytes:
    return HI[:-1] + b',"' + name.encode() + b'":' + value + b"}"


def numbered(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":1' % i for i in range(count)) + b"}"


# B6: bodies that are hard to parse

CALL = b'"","role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"?"}}]'
HARD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "4 MB of lists": (COMPLETIONS, lambda: b'{"prompt":[' + b"[1]," * MB + b"[1]]}"),
    "a key of 5 million letters": (CHAT, lambda: with_field("a" * 5 * MB, b"1")),
    "a key with an escape": (CHAT, lambda: with_field("\\n" + "a" * MB, b"1")),
    "a choice of dots": (CHAT, lambda: with_field("guided_choice", b'["' + b"." * 4 * MB + b'"]')),
    "300,000 keys": (CHAT, lambda: with_field("metadata", numbered(300_000))),
    "lists in arguments": (
        CHAT,
        lambda: HI.replace(b'"hi"', CALL.replace(b"?", b"[" + b"[1]," * 900_000 + b"1]")),
    ),
    "escapes": (CHAT, lambda: with_field("user", b'"' + b"\\n" * 15 * MB + b'"')),
    "floats": (CHAT, lambda: with_field("logit_bias", b"[" + b"0.12345678901234567," * MB + b"1]")),
}


@contextmanager
def watched(client: httpx2.Client) -> Iterator[list[float]]:
    """The seconds of each request of /health during the context."""
    seconds: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            start = time.monotonic()
            assert client.get("/health").status_code == 200
            seconds.append(time.monotonic() - start)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("name", few(HARD, 3))
def test_b6_a_hard_body_is_refused_without_delaying_others(running: Running, name: str) -> None:
    path, build = HARD[name]
    with (
        running.client() as client,
        from_address(running, OTHER) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        with watched(other) as alone:
            until(lambda: len(alone) > 20)
        with watched(other) as beside:
            answer = pool.submit(client.post, path, content=build(), headers=JSON).result()
        assert answer.status_code in (400, 413, 429), answer.text[:300]
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.text) < 1000
        assert max(beside) < max(2, 20 * max(alone)), "the event loop was blocked"
        until(lambda: running.server.quotas.bytes.used == 0)
        assert client.post(CHAT, content=HI, headers=JSON).status_code == 200


# B3: bodies in memory


@pytest.mark.parametrize("padding", few(["blanks", "a text"], 1))
def test_b3_padded_bodies_leave_memory_to_others_while_they_are_answered(
    engine: Engine, padding: str
) -> None:
    """Six of one client together take nearly all memory for bodies, until they are parsed."""
    size = MB * 95 // 100
    long = {**json.loads(HI), "max_tokens": 900, "ignore_eos": True, "stream": False}
    if padding == "blanks":
        padded = json.dumps(long).encode() + b" " * size
    else:
        padded = json.dumps({**long, "user": "a b\n" * (size // 5)}).encode()
    settings = Settings("tiny", max_body_bytes=MB, max_requests_bytes=8 * MB)
    with serving(engine, settings) as running, from_address(running, OTHER) as other:
        statuses: list[int] = []

        def post() -> None:
            with running.client() as client:
                statuses.append(client.post(CHAT, content=padded, headers=JSON).status_code)

        threads = [threading.Thread(target=post) for _ in range(6)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda n=number: engine.counters().requests > n or bool(statuses))  # type: ignore[misc]
        assert not statuses
        large = HI + b" " * (MB // 2)
        assert other.post(CHAT, content=large, headers=JSON).status_code == 200
        assert running.server.quotas.bytes.used < 10_000
        for dictionary in [one for one in gc.get_objects() if type(one) is dict]:
            of_request = dictionary.get("max_tokens") == 900 and dictionary is not long
            assert not (of_request and dictionary.get("messages")), "FastAPI keeps the body"
        for thread in threads:
            thread.join()
        assert statuses == [200] * 6
        assert running.server.quotas.bytes.used == 0


# What honest clients send


def test_large_bodies_of_honest_clients_are_parsed(running: Running) -> None:
    ids = [[260 + (7 * i + j) % 60 for j in range(8000)] for i in range(16)]
    prompts = {"prompt": ids, "max_tokens": 1}
    schema = json.dumps({"enum": ["é" * 32] * 7000}, ensure_ascii=False).encode()
    with running.client() as client:
        for path, body, status, param in (
            (COMPLETIONS, json.dumps(prompts, indent=2).encode(), 400, "prompt"),
            (COMPLETIONS, json.dumps({"prompt": "😀é" * 400_000}).encode(), 400, "prompt"),
            (CHAT, with_field("guided_json", schema), 400, "guided_json"),
            ("/detokenize", json.dumps({"tokens": [300] * MB}).encode(), 200, None),
        ):
            answer = client.post(path, content=body, headers=JSON)
            error = {} if answer.status_code == 200 else answer.json()["error"]
            assert (answer.status_code, error.get("param")) == (status, param), answer.text[:300]


@pytest.mark.long
def test_a_hundred_megabytes_of_media_are_parsed(running: Running) -> None:
    url = "data:image/png;base64," + "QUI/" * (5 << 20)
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}] * 4}
        ]
    }
    encoded = json.dumps(body).encode()
    assert len(encoded) > 80 << 20
    with running.client() as client:
        for content in (encoded, encoded.replace(b"/", b"\\/", 15 << 20)):  # as PHP writes it
            answer = client.post(CHAT, content=content, headers=JSON)
            assert answer.status_code == 415, "this is no image"
            assert answer.json()["error"]["param"] == "messages[0].content[0].image_url.url"


def load(model: Any, body: Any) -> Any:
    return json_parser.parse(bytearray(json.dumps(body).encode()), model)


def test_texts_are_bounded_together_and_media_are_not() -> None:
    url = "data:image/png;base64," + "A" * (MAX_CHARACTERS + MB)
    part = {"type": "image_url", "image_url": {"url": url}}
    value, size = load(ChatRequest, {"messages": [{"role": "user", "content": [part]}]})
    assert value.messages[0].content[0].image_url.url == url
    assert len(url) < size < 1.01 * len(url)
    with pytest.raises(ApiError, match="16,000,000 characters") as caught:
        load(ChatRequest, {**json.loads(HI), "metadata": {"url": url}})
    assert caught.value.status == 413


def test_names_are_short() -> None:
    body = json.loads(HI)
    load(ChatRequest, {**body, "metadata": {"a" * MAX_NAME: 1}})
    for length in (MAX_NAME + 1, 100_000):
        with pytest.raises(ApiError, match="at most 1000 characters"):
            load(ChatRequest, {**body, "metadata": {"a" * length: 1}})


def test_objects_have_few_unknown_fields() -> None:
    turn = {"role": "assistant", "content": "a", **{f"f{i}": 1 for i in range(1001)}}
    with pytest.raises(ApiError, match="at most 1000 fields"):
        load(ChatRequest, {"messages": [turn]})


def test_the_size_of_a_body_is_that_of_its_values() -> None:
    _, size = load(CompletionRequest, {"prompt": [[300] * 8000] * 16})
    assert 16 * 8000 * 30 < size < 16 * 8000 * 50
    _, padded = load(CompletionRequest, {"prompt": "hi", "user": "é" * MB})
    assert MB < padded < 1.1 * MB


@pytest.mark.parametrize("block", [1 << 18, 5, 4, 3, 2])
def test_escapes_are_read_as_they_are_written(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Wherever the text is cut."""
    monkeypatch.setattr(json_parser, "BLOCK", block)
    for prompt in ("a/b", "\\/", "\\\\/", '"/', "\n/", '\\"{[,:', '\\\\"["'):
        written = json.dumps({"prompt": prompt})
        for text in (written, written.replace("/", "\\/"), written.replace("[", "\\u005b")):
            value, _ = json_parser.parse(bytearray(text.encode()), CompletionRequest)
            assert value.prompt == prompt


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'["' + b'","' * 1_200_000 + b'"]', "values"),
        (b"[" + b"1," * 1_100_000 + b"1]", "values"),
        (b"[" + b"[]," * 20_000 + b"[]]", "lists"),
        (b"[" + b"{}," * 20_001 + b"[]]", "objects"),
        (b"[" + b" " * (12 << 20) + b"]", "bytes outside"),
        (b'["' + b"\\n" * 6_000_001 + b'"]', "escapes"),
        (b'["' + b"\xc3\xa9" * (12 << 20) + b'"]', "bytes in addition"),
    ],
    ids=["strings", "numbers", "lists", "objects", "blanks", "escapes", "text"],
)
def test_what_takes_the_parser_long_is_refused(body: bytes, what: str) -> None:
    with pytest.raises(ApiError, match=f"at most [0-9,]+ {what}"):
        json_parser.checked(body)


def test_what_is_in_strings_is_no_value() -> None:
    for text in (b"[{,:" * 30_000, b'\\"[' * 30_000, b"\\\\", b"a" * (30 << 20)):
        json_parser.checked(b'["' + text + b'"]')


@pytest.mark.parametrize(
    "body", [b"", b"null", b"{}\\", b"\xff{}", b'{"a":1', "{}".encode("utf-16")]
)
def test_what_is_no_json_is_refused(running: Running, body: bytes) -> None:
    with running.client() as client:
        answer = client.post(CHAT, content=body, headers=JSON)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
        form = {"content-type": "multipart/form-data; boundary=a"}
        assert client.post(CHAT, content=body, headers=form).status_code == 415


def test_large_bodies_are_parsed_in_turns_that_leave_time_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[tuple[float, float]] = []

    def work(*_: Any) -> None:
        start = time.monotonic()
        time.sleep(0.02)
        times.append((start, time.monotonic()))

    monkeypatch.setattr(json_parser, "parse", work)

    async def several() -> None:
        parser = Parser()
        first, cancelled, *others = [
            asyncio.create_task(
                parser._threads.run(client, parser._parse_large, bytearray(), ChatRequest)
            )
            for client in (b"a", b"a", b"b", b"c")
        ]
        await first
        cancelled.cancel()  # a request that leaves the queue delays no other
        await asyncio.gather(*others)
        parser.close()

    asyncio.run(several())
    assert len(times) == 3
    pauses = [start - end for (_, end), (start, _) in pairwise(times)]
    assert min(pauses) > 0.9 * PAUSE_FACTOR * 0.02


def test_only_large_bodies_are_parsed_in_the_thread(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    parse = json_parser.parse

    def recorded(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return parse(*args)

    monkeypatch.setattr(json_parser, "parse", recorded)
    with running.client() as client:
        for size in (LARGE, LARGE + 1):
            body = HI + b" " * (size - len(HI))
            assert client.post(CHAT, content=body, headers=JSON).status_code == 200
    assert "parse" not in threads[0] and threads[1].startswith("parse")


@pytest.mark.parametrize("size", [200_000, 3_000_000])
def test_a_client_that_is_still_sending_receives_the_refusal(running: Running, size: int) -> None:
    """A connection that is closed while bytes arrive is reset, and the response is lost."""

    async def post() -> bytes:
        port = int(running.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}connection: close\r\ncontent-length: {size}\r\n\r\n".encode())
        writer.write(b"[" * size)
        try:
            return await reader.read()
        finally:
            writer.close()

    assert asyncio.run(post()).startswith(b"HTTP/1.1 413 ")
