"""Over HTTP, no request stalls others, and no answer is NaN; tests/core/engine/test_scheduler.py tests the engine."""

import base64
import io
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image as pil

from polyphi.engine.engine import Engine
from polyphi.media import media
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer import prepare
from polyphi.serve.answer import server as server_module
from polyphi.serve.audio import transcriptions
from tests.core.serve.answer.test_fetch import Net, net, page  # noqa: F401
from tests.core.serve.dialects import DIALECTS
from tests.fixtures.audio import audio_file
from tests.fixtures.chats import image_part
from tests.fixtures.images import image_file
from tests.fixtures.servers import Running, from_address, posting, request_of, sent, serving, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat(text: object, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 2, **more}


HI = [{"role": "user", "content": "hi"}]
SHORT: dict[str, dict[str, object]] = {
    **{dialect.path: dialect.write(chat("hi")) for dialect in DIALECTS.values()},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/messages/count_tokens": {"messages": HI},
    "/tokenize": {"messages": HI},
}
COUNTS = list(SHORT)[-3:]
"""Routes that don't run the model."""


def test_a_client_leaves_places_to_others(engine: Engine) -> None:
    engine.scheduler.max_num_seqs = 1
    # Long enough that none ends between the answer to the other client and the count below.
    long = chat("hi", max_tokens=700, ignore_eos=True)
    with two_clients(engine, Settings("tiny", max_waiting=3)) as (_, one, two):
        with posting(one, 3, CHAT, json=long) as answers:
            until(lambda: engine.counters().requests == 3)
            for path, body in SHORT.items():
                refused = one.post(path, json=body)
                assert refused.status_code == 429 and "one client" in refused.text, path
                assert refused.json()["error"]["type"] == "rate_limit_error"
                assert ("type" in refused.json()) == path.startswith("/v1/messages")
                assert int(refused.headers["retry-after"]) >= 1
            for path in COUNTS:
                assert two.post(path, json=SHORT[path]).status_code == 200, path
            assert two.post(CHAT, json=chat("hi")).status_code == 200
            assert engine.counters().requests == 3, "it went before all of them"
        assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_a_greeting_passes_long_chats_of_its_client(engine: Engine) -> None:
    """Forty chats of one address without a length, of which 32 run; counted in steps, as a machine may be slow."""
    with serving(engine, Settings("tiny")) as running, running.client() as client:
        long = {"messages": HI, "stream": True, "ignore_eos": True}
        with ExitStack() as streams:
            for _ in range(40):
                streams.enter_context(client.stream("POST", CHAT, json=long))
            until(lambda: engine.counters().running == 32)
            before = engine.counters()
            assert client.post(CHAT, json=chat("hi", max_tokens=8)).status_code == 200
            after = engine.counters()
            assert after.requests >= 40, "the greeting passed them"
            assert after.steps - before.steps < 500, "of about 2,000 until one of them ends"
        until(running.idle)


def test_a_greeting_does_not_wait_for_long_chats_of_other_clients(engine: Engine) -> None:
    """33 chats without a length, each of another address, of which 32 run; counted in steps, as a machine may be
    slow. A chat that was preempted continues."""
    with serving(engine, Settings("tiny")) as running, ExitStack() as streams:
        for number in range(33):
            client = streams.enter_context(from_address(running, f"127.0.1.{number + 1}"))
            long = {**chat("hi"), "max_tokens": 2000, "stream": True, "ignore_eos": True}
            streams.enter_context(client.stream("POST", CHAT, json=long))
        until(lambda: engine.counters().requests == 33 and engine.counters().steps > 40)
        with from_address(running, "127.0.0.2") as other:
            for fields in ({"max_tokens": 2}, {"max_tokens": None}):
                before = engine.counters()
                with other.stream("POST", CHAT, json=chat("hi", **fields, stream=True)) as stream:
                    assert any(line.startswith("data: ") for line in stream.iter_lines())
                after = engine.counters()
                assert after.requests >= 33, "it passed them"
                assert after.steps - before.steps < 500, "of about 2,000 until one of them ends"
        assert engine.counters().preemptions > 0
        waiting = engine.scheduler.waiting[:]
        tokens = [len(request.tokens) for request in waiting]
        until(
            lambda: all(len(r.tokens) > n for r, n in zip(waiting, tokens, strict=True)),
        )
        assert engine.counters().requests >= 33, "they continue before one of them ends"
    until(running.idle)


def test_clients_that_fill_the_queue_together_leave_a_slot_to_another(running: Running) -> None:
    server = running.server
    tickets = [server.admit(request_of(server, bytes([n]))) for n in range(server.capacity)]
    with running.client() as client:
        assert client.post(CHAT, json=chat("hi")).status_code == 200
        own = server.admit(request_of(server, b"127.0.0.1"))
        assert client.post(CHAT, json=chat("hi")).status_code == 429, "one slot"
    for ticket in (*tickets, own):
        ticket.release()
    assert server.quotas.requests.used == 0


def test_a_short_chat_does_not_wait_for_log_probabilities(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their prompts are computed in chunks at the same time, and end within a step after their client disconnects."""
    engine = running.engine
    monkeypatch.setattr(engine.scheduler.budget, "chunk", 64)
    monkeypatch.setattr(engine.scheduler.budget, "prefill", 64)
    ids = [[260 + (7 * i + j) % 60 for j in range(1800)] for i in range(60)]
    body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    with sent(running, COMPLETIONS, body):
        until(lambda: engine.counters().running > 0)
        with running.client() as client:
            assert client.post(CHAT, json=chat("hi")).status_code == 200
        assert engine.counters().requests >= 50, "they are far from through"
        steps = engine.counters().steps
    until(running.idle)
    assert engine.counters().steps - steps < 100, "of 1,700"


@pytest.mark.parametrize("more", [{"logprobs": True, "top_logprobs": 3}, {"temperature": 1}])
def test_output_that_is_not_finite_is_an_error_of_the_server(
    running: Running, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = running.engine.model.decoder.embed
    poison = running.engine.processor.tokenizer.encode("größer")[0]
    monkeypatch.setattr(
        running.engine.model.decoder,
        "embed",
        lambda ids: torch.where((ids == poison)[:, None], torch.nan, embed(ids)),
    )
    with running.client() as client:
        answer = client.post(CHAT, json=chat("größer", **more))
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "not_finite"
        events = client.post(CHAT, json=chat("größer", stream=True, **more)).text
        last = json.loads(events.strip().split("data: ")[-1])
        assert last["error"]["code"] == "not_finite" and "NaN," not in events
        scored = {"prompt": "größer als ein Haus", "echo": True, "logprobs": 1, "max_tokens": 0}
        assert client.post(COMPLETIONS, json=scored).status_code == 500
        assert client.post(CHAT, json=chat("hi", **more)).status_code == 200


def test_samples_far_beyond_full_scale_are_refused(running: Running) -> None:
    wave = np.zeros(8000, np.float32)
    wave[4000] = -101.0
    data = audio_file(wave, subtype="FLOAT")
    audio = {"data": base64.b64encode(data).decode(), "format": "wav"}
    part = {"type": "input_audio", "input_audio": audio}
    with running.client() as client:
        answer = client.post(CHAT, json=chat([part]))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "messages[0].content[0].input_audio.data"
        upload = {"file": ("loud.wav", data, "audio/wav")}
        assert client.post("/v1/audio/transcriptions", files=upload).status_code == 400


@contextmanager
def two_clients(
    engine: Engine, settings: Settings
) -> Iterator[tuple[Any, httpx2.Client, httpx2.Client]]:
    """(server, client of one address, client of another) of a running server."""
    with (
        serving(engine, settings) as running,
        from_address(running, "127.0.0.1") as one,
        from_address(running, "127.0.0.2") as other,
    ):
        yield running.server, one, other


def webp(side: int) -> bytes:
    """A lossless image of one color, of 38 bytes for any size."""
    data = bytearray(image_file(pil.new("RGB", (16, 16), "red"), "WEBP", lossless=True))
    (bits,) = struct.unpack_from("<I", data, 21)  # 14 bits each of width - 1 and height - 1
    struct.pack_into("<I", data, 21, bits & ~0xFFFFFFF | (side - 1) << 14 | (side - 1))
    assert pil.open(io.BytesIO(data)).size == (side, side)
    return bytes(data)


def images(data: bytes, count: int) -> dict[str, object]:
    url = "data:image/webp;base64," + base64.b64encode(data).decode()
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    return chat([image] * count)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("it was decoded")


def test_b4_195_pictures_of_38_bytes_are_refused_by_their_headers(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = webp(9459)
    assert len(data) <= 40
    monkeypatch.setattr(media, "decode_image", refuse)
    with running.client() as client:
        refused = client.post(CHAT, json=images(data, 195))
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (413, "messages")
        assert "512,000,000 pixels" in error["message"]
        assert f"found {195 * 9459 * 9459:,}" in error["message"]
        counted = client.post("/tokenize", json={"messages": images(data, 195)["messages"]})
        assert counted.status_code == 200 and counted.json()["image_tokens"] > 195
        source = {"type": "base64", "media_type": "image/webp"}
        part = {"type": "image", "source": {**source, "data": base64.b64encode(data).decode()}}
        body = {"messages": [{"role": "user", "content": [part] * 195}]}
        assert client.post("/v1/messages/count_tokens", json=body).status_code == 200
        assert client.get("/props").json()["limits"]["max_request_pixels"] == 512_000_000


@pytest.fixture
def one_large_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("polyphi.serve.admission.quotas", server_module.__name__):
        monkeypatch.setattr(f"{module}.LARGE_THREADS", 1, raising=False)


def watch_decoding(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[bytes, int], None]
) -> list[bytes]:
    """The images decoded so far; `before` is called with an image and the number of those before it."""
    decoded: list[bytes] = []
    decode = media.decode_image

    def watched(source: bytes, **limits: Any) -> Any:
        before(source, len(decoded))
        decoded.append(source)
        return decode(source, **limits)

    monkeypatch.setattr(media, "decode_image", watched)
    return decoded


def test_b4_a_picture_waits_for_one_picture_of_another_client(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, one_large_thread: None
) -> None:
    large, small = webp(64), webp(32)
    with two_clients(engine, Settings("tiny")) as (server, one, other):

        def before(source: bytes, count: int) -> None:
            if count == 3:
                begun.set()
                until(lambda: server.admitted == 2)
            if source == large:
                time.sleep(0.1)

        begun = threading.Event()
        decoded = watch_decoding(monkeypatch, before)
        with posting(one, 1, CHAT, json=images(large, 30)) as responses:
            assert begun.wait(30)
            assert other.post(CHAT, json=images(small, 1)).status_code == 200
        assert [r.status_code for r in responses] == [200]
        assert len(decoded) == 31 and decoded.index(small) < 30, "it waited for all of them"


def test_large_pictures_do_not_delay_another_clients(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, one_large_thread: None
) -> None:
    large, small = webp(64), webp(32)
    monkeypatch.setattr(prepare, "LARGE_IMAGE", 33 * 33)
    go, begun = threading.Event(), threading.Event()

    def before(source: bytes, count: int) -> None:
        if source == large:
            begun.set()
            assert go.wait(60)

    watch_decoding(monkeypatch, before)
    with two_clients(engine, Settings("tiny")) as (server, one, other):
        with posting(one, 5, CHAT, json=images(large, 1)) as responses:
            try:
                assert begun.wait(30)
                for client in (one, other):
                    picture = client.post(CHAT, json=images(small, 1), timeout=20)
                    assert picture.status_code == 200
                assert server.large_media_threads.slots.running == 1 and not responses
            finally:
                go.set()
        assert [r.status_code for r in responses] == [200] * 5


def test_b4_nothing_is_decoded_for_a_client_that_has_left(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = running.server
    first, second = webp(64), webp(32)
    begun, left = threading.Event(), threading.Event()

    def before(source: bytes, count: int) -> None:
        if count == 2:
            begun.set()
            assert left.wait(30)

    decoded = watch_decoding(monkeypatch, before)
    with sent(running, CHAT, images(first, 20)):
        assert begun.wait(30)
    until(lambda: server.admitted == 0)
    left.set()
    with running.client() as client:
        assert client.post(CHAT, json=images(second, 1)).status_code == 200
    assert decoded.count(first) == 3


def test_b4_nothing_is_counted_for_a_client_that_has_left(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To count the tokens of MP3 clips, they are decoded."""
    server, counted = running.server, []
    begun, left = threading.Event(), threading.Event()
    audio_size = media.audio_size

    def watched(source: bytes, **limits: Any) -> tuple[int, int]:
        if len(counted) == 2:
            begun.set()
            assert left.wait(30)
        counted.append(source)
        return audio_size(source, **limits)

    monkeypatch.setattr(media, "audio_size", watched)
    data = base64.b64encode(recording()["file"]).decode()
    clip = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    body = {"messages": [{"role": "user", "content": [clip] * 20}]}
    with sent(running, "/tokenize", body):
        assert begun.wait(30)
    until(lambda: server.admitted == 0)
    left.set()
    with running.client() as client:
        content = [{"role": "user", "content": [image_part()]}]
        assert client.post("/tokenize", json={"messages": content}).status_code == 200
    assert len(counted) == 3


def test_b4_a_video_does_not_delay_pictures(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, one_large_thread: None
) -> None:
    go, begun = threading.Event(), threading.Event()
    expanded = engine.processor.expanded

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return expanded(*arguments)

    monkeypatch.setattr(engine.processor, "expanded", slow)
    url = "data:video/mp4;base64," + base64.b64encode(b"\0\0\0\x18ftypisom" + bytes(99)).decode()
    video = chat([{"type": "video_url", "video_url": {"url": url}}])
    with two_clients(engine, Settings("tiny", containers=True)) as (_, one, other):
        with posting(one, 1, CHAT, json=video) as responses:
            try:
                assert begun.wait(30)
                for client in (one, other):
                    picture = client.post(CHAT, json=images(webp(32), 1), timeout=20)
                    assert picture.status_code == 200
                assert not responses
            finally:
                go.set()
        assert [r.status_code for r in responses] == [400]  # it is damaged


def recording() -> dict[str, bytes]:
    return {"file": audio_file(np.zeros(16000, np.float32))}


@pytest.mark.parametrize("stage", ["transcribed", "decoded"])
def test_b7_ten_recordings_of_one_client_do_not_delay_anothers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    transcribe, go = transcriptions.longform.transcribe, threading.Event()

    def slow(*arguments: Any, caller: Any, on_progress: Any, **options: Any) -> Any:
        if caller.client == b"127.0.0.1":
            if stage == "transcribed":
                on_progress(0)  # it is decoded
            assert go.wait(60)
        return transcribe(*arguments, caller=caller, on_progress=on_progress, **options)

    monkeypatch.setattr(transcriptions.longform, "transcribe", slow)
    path = "/v1/audio/transcriptions"
    with two_clients(engine, Settings("tiny")) as (server, one, other):
        with posting(one, 10, path, files=recording()) as responses:
            try:
                until(lambda: server.admitted == 10)
                answer = other.post(path, files=recording(), timeout=20)
                assert answer.status_code == 200 and not responses
            finally:
                go.set()
        assert [r.status_code for r in responses] == [200] * 10


def fetched(name: str, path: str) -> dict[str, object]:
    url = f"http://{name}.example.org/{path}"
    return chat([{"type": "image_url", "image_url": {"url": url}}])


def test_b8_forty_slow_addresses_of_one_client_do_not_fail_anothers_fetch(
    engine: Engine,
    net: Net,  # noqa: F811
) -> None:
    go = threading.Event()
    net.server.pages = {"/slow": lambda _: go.wait(60), "/quick": page()}
    # No slow fetch may end before all forty have come, however busy the machine is: they end with `go`.
    settings = Settings("tiny", remote=("*",), fetch_seconds=60.0)
    with two_clients(engine, settings) as (server, one, other):
        server.media._resolve = net.resolve
        with posting(one, 40, CHAT, json=fetched("media", "slow")) as responses:
            try:
                until(lambda: server.admitted == 40)
                assert other.post(CHAT, json=fetched("media", "quick")).status_code == 200
                assert len(responses) < 40
            finally:
                go.set()
        assert {r.status_code for r in responses} == {400}


def test_b8_names_that_never_resolve_occupy_one_clients_threads_only(
    engine: Engine,
    net: Net,  # noqa: F811
) -> None:
    go, stuck = threading.Event(), []

    def resolve(host: str, port: int) -> list[str]:
        if host == "stuck.example.org":
            stuck.append(host)
            assert go.wait(60)
        return net.resolve(host, port)

    net.server.pages = {"/quick": page()}
    settings = Settings("tiny", remote=("*",), fetch_seconds=1.0)
    with two_clients(engine, settings) as (server, one, other):
        server.media._resolve = resolve
        try:
            with posting(one, 20, CHAT, json=fetched("stuck", "a")) as responses:
                pass
            assert [r.status_code for r in responses] == [400] * 20 and stuck
            assert other.post(CHAT, json=fetched("media", "quick")).status_code == 200
        finally:
            go.set()


def test_b9_prompts_of_one_client_leave_memory_to_others(engine: Engine) -> None:
    seen = chat([image_part()], max_tokens=1500, stream=True, ignore_eos=True)
    settings, lines = Settings("tiny", max_requests_bytes=250_000), []
    with two_clients(engine, settings) as (server, one, other), ExitStack() as streams:
        for _ in range(6):
            stream = streams.enter_context(one.stream("POST", CHAT, json=seen))
            if stream.status_code == 429:
                break
            lines.append(stream.iter_lines())  # closes the stream when freed
            next(lines[-1])
        assert stream.status_code == 429 and int(stream.headers["retry-after"]) >= 1
        answer = other.post(CHAT, json={**seen, "stream": False, "max_tokens": 2})
        assert answer.status_code == 200, "the first client has all memory"
        error = json.loads(stream.read())["error"]
        assert error["code"] == "memory_full" and "of one client" in error["message"]
        assert server.quotas.bytes.used_by(b"127.0.0.1") > 100_000
    until(lambda: server.quotas.bytes.used == 0)


def test_many_small_requests_of_one_client_do_not_delay_anothers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = engine.processor.tokenizer
    decode, go, begun = tokenizer.decode, threading.Event(), []
    special = tokenizer.encode("fox")

    def slow(ids: Any, **options: Any) -> str:
        if list(ids) == special:
            begun.append(ids)
            assert go.wait(60)
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", slow)
    with two_clients(engine, Settings("tiny")) as (_, one, other):
        with posting(one, 20, "/detokenize", json={"tokens": special}) as responses:
            try:
                until(lambda: len(begun) >= 3)
                time.sleep(0.2)
                answer = other.post("/detokenize", json={"tokens": special[:1] * 2}, timeout=20)
                assert answer.status_code == 200
                assert other.post(CHAT, json=chat("hi"), timeout=20).status_code == 200
                assert not responses
            finally:
                go.set()
        assert [r.json() for r in responses] == [{"prompt": "fox"}] * 20
