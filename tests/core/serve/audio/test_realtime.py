"""Live transcription over a WebSocket: by the official client, and event by event."""

import asyncio
import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import soundfile
from openai import OpenAI
from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.guard import AccessGuard
from polyphi.serve.page.loading import Loading
from polyphi.transcription.live import Live
from tests.fixtures.audio import audio_file, say
from tests.fixtures.servers import Running, serving, until
from tests.fixtures.variants import few

PATH = "/v1/realtime?intent=transcription"
RATE = 24000
TALK = np.round(32767 * say(range(7), [0.8, 0.1, 0.1, 1.2, 0.1, 1.4, 0.1, 1.0], RATE)).astype("<i2")
"""Three pieces of speech: 3, 2 and 2 words."""
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
MANUAL = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}


def append(samples: np.ndarray | bytes) -> dict[str, str]:
    audio = base64.b64encode(bytes(samples)).decode()
    return {"type": "input_audio_buffer.append", "audio": audio}


def at_once(running: Running, samples: np.ndarray, rate: int = RATE, key: str = "none") -> str:
    """The text of the route for recordings."""
    client = OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
    file = ("a.wav", audio_file(samples, rate, subtype="PCM_16"))
    return client.audio.transcriptions.create(model="tiny", file=file).text


class Peer:
    """A session event by event."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, *events: Any) -> None:
        for event in events:
            self.connection.send(event if isinstance(event, str) else json.dumps(event))

    def next(self) -> dict[str, Any]:
        return json.loads(self.connection.recv(60))

    def until(self, type: str, count: int = 1) -> list[dict[str, Any]]:
        """All events up to the last one of a number of this type."""
        events = []
        while count:
            events.append(self.next())
            count -= events[-1]["type"] == type
        return events

    def error(self) -> dict[str, Any]:
        event = self.next()
        assert event["type"] == "error", event
        assert set(event["error"]) == {"type", "code", "message", "param", "event_id"}
        return event["error"]

    def closed(self) -> int:
        """The close code; no event may come before."""
        with pytest.raises(ConnectionClosed) as caught:
            self.next()
        return caught.value.rcvd.code  # type: ignore[union-attr]


@contextmanager
def opened(running: Running, path: str = PATH, key: str = "", **options: Any) -> Iterator[Peer]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = running.url.replace("http:", "ws:") + path
    with connect(url, additional_headers=headers, max_size=None, **options) as connection:
        yield Peer(connection)


@contextmanager
def dialed(running: Running, key: str = "") -> Iterator[Peer]:
    with opened(running, key=key) as peer:
        assert peer.next()["type"] == "session.created"
        yield peer


def ended(running: Running) -> None:
    """Wait until nothing of a session is left."""
    server = running.server
    until(lambda: not server.admitted and not server.live_sessions and running.idle())
    until(lambda: not [t for t in threading.enumerate() if t.name == "live"])


@contextmanager
def limited(engine: Engine, **settings: Any) -> Iterator[Running]:
    """A server with other settings."""
    with serving(engine, Settings("tiny", **settings)) as running:
        yield running
        ended(running)


@contextmanager
def session(engine: Engine, **settings: Any) -> Iterator[Peer]:
    with limited(engine, **settings) as running, dialed(running) as peer:
        yield peer


@pytest.fixture
def peer(running: Running) -> Iterator[Peer]:
    """A session of the module's server."""
    with dialed(running) as peer:
        yield peer
    ended(running)


# ---------------------------------------------------------------- transcripts


def test_the_official_client_gets_the_transcript_of_each_piece(running: Running) -> None:
    client = OpenAI(base_url=f"{running.url}/v1", api_key="none")
    audio = {
        "format": {"type": "audio/pcm", "rate": RATE},
        "transcription": {"model": "tiny", "language": "en"},
        "turn_detection": {"type": "server_vad", "silence_duration_ms": 500},
    }
    events: list[Any] = []
    with client.realtime.connect(
        model="tiny", extra_query={"intent": "transcription"}
    ) as connection:
        created = connection.recv()
        assert created.type == "session.created" and created.session.type == "transcription"
        connection.session.update(session={"type": "transcription", "audio": {"input": audio}})
        updated = connection.recv()
        assert updated.type == "session.updated"
        assert updated.session.audio.input.turn_detection.silence_duration_ms == 500
        for at in range(0, len(TALK), 2400):
            connection.input_audio_buffer.append(
                audio=base64.b64encode(TALK[at : at + 2400].tobytes()).decode()
            )
        while sum(event.type == COMPLETED for event in events) < 3:
            events.append(connection.recv())
    starts = [e for e in events if e.type == "input_audio_buffer.speech_started"]
    stops = [e for e in events if e.type == "input_audio_buffer.speech_stopped"]
    completed = [e for e in events if e.type == COMPLETED]
    assert len(starts) == len(stops) == 3
    for start, stop, done in zip(starts, stops, completed, strict=True):
        assert start.item_id == stop.item_id == done.item_id
        piece = TALK[24 * start.audio_start_ms : 24 * stop.audio_end_ms]
        assert done.transcript == at_once(running, piece) != ""
        assert done.usage.type == "tokens" and done.usage.input_token_details.audio_tokens
        deltas = [e.delta for e in events if e.type == DELTA and e.item_id == done.item_id]
        if done.transcript.startswith(deltas[0]):
            assert "".join(deltas) == done.transcript


def test_the_events_of_an_item_in_their_order(peer: Peer) -> None:
    peer.send(append(TALK))
    events = peer.until(COMPLETED, 3)
    items = [e["item_id"] for e in events if e["type"] == "input_audio_buffer.committed"]
    assert len(set(items)) == 3
    for previous, item in zip([None, *items], items, strict=False):
        its = [e for e in events if item in (e.get("item_id"), e.get("item", {}).get("id"))]
        assert [e["type"] for e in its if e["type"] != DELTA] == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            COMPLETED,
        ]
        assert all(e["previous_item_id"] == previous for e in its if "previous_item_id" in e)
        assert its[-1]["transcript"] and its[-1]["content_index"] == 0
    assert len({e["event_id"] for e in events}) == len(events)


@pytest.mark.parametrize("size", few([7777, 1, 48001], 1))
def test_audio_may_be_cut_anywhere(running: Running, size: int) -> None:
    data = TALK.tobytes()
    if size == 1:
        head = [data[i : i + 1] for i in range(9)]
        parts = [*head, data[9:70_001], data[70_001:]]
    else:
        parts = [data[i : i + size] for i in range(0, len(data), size)]
    results = []
    for sent in (parts, [data]):
        with dialed(running) as peer:
            peer.send(*map(append, sent))
            events = peer.until(COMPLETED, 3)
        keys = ("audio_start_ms", "audio_end_ms", "transcript")
        results.append([[e[key] for e in events if key in e] for key in keys])
    assert results[0] == results[1] and len(results[0][2]) == 3


def test_without_detection_the_client_commits(running: Running) -> None:
    with dialed(running) as peer:
        peer.send({"type": "session.update", "session": MANUAL})
        (updated,) = peer.until("session.updated")
        assert updated["session"]["audio"]["input"]["turn_detection"] is None
        peer.send(append(TALK), {"type": "input_audio_buffer.commit"}, append(TALK[:RATE]))
        first = peer.until(COMPLETED)
        peer.send({"type": "input_audio_buffer.clear"})
        events = peer.until("input_audio_buffer.cleared")
        assert not any(e["type"] == COMPLETED for e in events)
        peer.send(append(TALK[2 * RATE :]), {"type": "input_audio_buffer.commit"})
        second = peer.until(COMPLETED)
    assert not any("speech" in e["type"] for e in first + second)
    assert first[-1]["transcript"] == at_once(running, TALK)
    assert second[-1]["transcript"] == at_once(running, TALK[2 * RATE :])
    assert first[-1]["item_id"] != second[-1]["item_id"]


@pytest.mark.parametrize(("name", "law"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711(running: Running, name: str, law: str) -> None:
    file = io.BytesIO()
    narrow = say(range(4), [0.3] * 5, 8000)
    soundfile.write(file, narrow, 8000, format="RAW", subtype=law)
    audio = {"input": {"format": {"type": name}, "turn_detection": None}}
    with dialed(running) as peer:
        peer.send(
            {"type": "session.update", "session": {"type": "transcription", "audio": audio}},
            append(file.getvalue()),
            append(b""),
            {"type": "input_audio_buffer.commit"},
        )
        transcript = peer.until(COMPLETED)[-1]["transcript"]
    file.seek(0)
    samples, _ = soundfile.read(
        file, dtype="int16", format="RAW", subtype=law, samplerate=8000, channels=1
    )
    assert transcript == at_once(running, samples, 8000) != ""


def test_silence_has_an_empty_transcript_and_speech_log_probabilities(
    peer: Peer,
) -> None:
    include = {"include": ["item.input_audio_transcription.logprobs"]}
    peer.send(
        {"type": "session.update", "session": {**MANUAL, **include}},
        append(np.zeros(RATE, "<i2")),
        {"type": "input_audio_buffer.commit"},
        append(TALK),
        {"type": "input_audio_buffer.commit"},
    )
    silent, spoken = [e for e in peer.until(COMPLETED, 2) if e["type"] == COMPLETED]
    assert silent["transcript"] == "" and silent["logprobs"] == [] and silent["warnings"]
    assert spoken["logprobs"] and set(spoken["logprobs"][0]) == {"token", "bytes", "logprob"}


def test_turns_by_meaning_become_turns_by_silence(peer: Peer) -> None:
    silences = {None: 500, "auto": 500, "low": 1000, "medium": 500, "high": 300}
    for eagerness, silence in silences.items():
        peer.send(audio_input(turn_detection={"type": "semantic_vad", "eagerness": eagerness}))
        detection = peer.next()["session"]["audio"]["input"]["turn_detection"]
        assert (detection["type"], detection["silence_duration_ms"]) == ("server_vad", silence)


def test_a_failed_item_is_reported_and_the_session_goes_on(
    peer: Peer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, failures = Live._answer, [RuntimeError("a secret at 0x7f")]

    def answer(self: Live, samples: Any, task: Any, stop: Any) -> Any:
        if failures and task.sampling is None:
            raise failures.pop()
        return original(self, samples, task, stop)

    monkeypatch.setattr(Live, "_answer", answer)
    commit = {"type": "input_audio_buffer.commit"}
    peer.send({"type": "session.update", "session": MANUAL}, append(TALK), commit)
    failed = peer.until("conversation.item.input_audio_transcription.failed")[-1]
    assert failed["error"]["type"] == "server_error" and "secret" not in json.dumps(failed)
    peer.send(append(TALK), commit)
    assert peer.until(COMPLETED)[-1]["transcript"]


def test_an_adapter_can_be_the_model(running: Running) -> None:
    with opened(running, f"{PATH}&model=speech") as peer:
        model = peer.next()["session"]["audio"]["input"]["transcription"]["model"]
        assert model == "speech"
    with opened(running, f"{PATH}&model=other") as peer:
        assert peer.error()["code"] == "model_not_found" and peer.closed() == 1008
    with opened(running, "/v1/realtime?intent=chat") as peer:
        assert peer.error()["param"] == "intent" and peer.closed() == 1008


# ---------------------------------------------------------------- settings and errors


def audio_input(**fields: Any) -> dict[str, Any]:
    session = {"type": "transcription", "audio": {"input": fields}}
    return {"type": "session.update", "session": session}


INVALID: list[tuple[Any, str | None]] = [
    ("{", None),
    ("[" * 100_000, None),
    ("[]", "type"),
    ({}, "type"),
    ({"type": ["x"]}, "type"),
    ({"type": "response.create"}, "type"),
    ({"type": "input_audio_buffer.append"}, "audio"),
    ({"type": "input_audio_buffer.append", "audio": "*"}, "audio"),
    ({"type": "input_audio_buffer.append", "audio": "ä"}, "audio"),
    ({"type": "input_audio_buffer.append", "audio": 3}, "audio"),
    ({"type": "input_audio_buffer.append", "audio": "", "rate": 3}, "rate"),
    ({"type": "input_audio_buffer.commit"}, None),
    ({"type": "input_audio_buffer.commit", "event_id": 3}, "event_id"),
    ({"type": "session.update"}, "session"),
    ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
    ({"type": "session.update", "session": {"audio": None}}, "session.audio"),
    ({"type": "session.update", "session": {"audio": {"output": {}}}}, "session.audio.output"),
    ({"type": "session.update", "session": {"include": ["x"]}}, "session.include[0]"),
    (audio_input(format={"type": "audio/opus"}), "session.audio.input.format.type"),
    (
        audio_input(format={"type": "audio/pcm", "rate": 16000}),
        "session.audio.input.format.rate",
    ),
    (audio_input(transcription=None), "session.audio.input.transcription"),
    (audio_input(transcription={"model": "other"}), "model"),
    (
        audio_input(transcription={"language": "xx"}),
        "session.audio.input.transcription.language",
    ),
    (audio_input(transcription={"prompt": "hi"}), "session.audio.input.transcription.prompt"),
    (
        audio_input(transcription={"keywords": ["a"]}),
        "session.audio.input.transcription.keywords",
    ),
    (
        audio_input(turn_detection={"type": "semantic_vad", "eagerness": "eager"}),
        "session.audio.input.turn_detection.eagerness",
    ),
    (
        audio_input(turn_detection={"type": "server_vad", "threshold": 2}),
        "session.audio.input.turn_detection.threshold",
    ),
    (
        audio_input(turn_detection={"type": "server_vad", "idle_timeout_ms": 5000}),
        "session.audio.input.turn_detection.idle_timeout_ms",
    ),
    (audio_input(turn_detektion=None), "session.audio.input.turn_detektion"),
]
"""Events, and the `param` of their errors."""


def test_an_invalid_event_is_an_error_and_the_session_goes_on(peer: Peer) -> None:
    for event, param in INVALID:
        own_id = isinstance(event, dict) and "event_id" not in event
        peer.send({**event, "event_id": "mine"} if own_id else event)
        error = peer.error()
        assert error["param"] == param and error["type"] == "invalid_request_error", event
        assert error["event_id"] == ("mine" if own_id else None)
    peer.send({"type": "session.update", "session": {}})
    assert peer.next()["type"] == "session.updated"


def test_b6_a_message_of_many_values_is_not_parsed(peer: Peer) -> None:
    for many in ([[1]] * 30_000, [{}] * 30_000):
        peer.send({"type": "session.update", "session": many})
        assert "at most 20,000" in peer.error()["message"]


def test_fields_that_change_nothing_are_accepted_and_settings_stay_as_they_were(
    peer: Peer,
) -> None:
    vad = {"type": "server_vad", "create_response": True, "silence_duration_ms": 700}
    noise = {"type": "near_field"}
    peer.send(audio_input(noise_reduction=noise, turn_detection=vad))
    first = peer.next()["session"]
    assert first["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 700
    assert first["audio"]["input"]["noise_reduction"] is None
    peer.send(audio_input(transcription={"model": "tiny", "language": "de", "delay": "low"}))
    second = peer.next()["session"]
    assert second["audio"]["input"]["turn_detection"] == first["audio"]["input"]["turn_detection"]
    assert second["audio"]["input"]["transcription"]["language"] == "de"
    assert second["expires_at"] > time.time() and second["id"] == first["id"]


def test_settings_change_only_while_nothing_waits(peer: Peer) -> None:
    peer.send({"type": "session.update", "session": MANUAL}, append(TALK[:RATE]))
    peer.send(audio_input(turn_detection={"type": "server_vad"}))
    error = peer.until("error")[-1]["error"]
    assert error["code"] == "session_busy"
    peer.send(audio_input(format={"type": "audio/pcmu"}))
    error = peer.until("error")[-1]["error"]
    assert error["param"] == "session.audio.input.format"
    peer.send({"type": "input_audio_buffer.clear"})
    peer.send(audio_input(turn_detection={"type": "server_vad"}), append(TALK))
    events = peer.until(COMPLETED, 3)
    assert sum(e["type"] == "input_audio_buffer.speech_started" for e in events) == 3


# ---------------------------------------------------------------- access


def denied(running: Running, path: str = PATH, **options: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught, opened(running, path, **options):
        pass
    response = caught.value.response
    assert response.headers["x-request-id"] and response.headers["x-content-type-options"]
    return response.status_code, json.loads(response.body or b"")["error"]


def test_a_key_is_needed_and_pages_send_it_as_a_subprotocol(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a line for each, and no key."""
    caplog.set_level(logging.INFO, "polyphi.serve")
    with limited(engine, keys=("sesame", "other")) as running:
        status, error = denied(running)
        assert (status, error["code"]) == (401, "invalid_api_key")
        wrong = ["realtime", "openai-insecure-api-key.guess"]
        assert denied(running, subprotocols=wrong)[0] == 401
        assert denied(running, key="guess")[0] == 401
        with opened(running, key="sesame") as peer:
            assert peer.next()["type"] == "session.created"
            assert peer.connection.subprotocol is None
        offered = ["realtime", "openai-insecure-api-key.sesame"]
        with opened(running, subprotocols=offered) as peer:
            assert peer.next()["type"] == "session.created"
            assert peer.connection.subprotocol == "realtime"
        # Only a WebSocket takes its key from there.
        sent = {"sec-websocket-protocol": "openai-insecure-api-key.sesame"}
        with running.client() as client:
            assert client.get("/v1/models", headers=sent).status_code == 401
    lines = [r.getMessage() for r in caplog.records if r.name == "polyphi.serve.access"]
    assert sum(line.startswith("WS /v1/realtime 101 ") for line in lines) == 2
    assert len(lines) == 6 and "sesame" not in caplog.text


def test_pages_of_other_origins_are_refused(engine: Engine) -> None:
    with limited(engine, origins=("https://good.example",)) as running:
        code = denied(running, origin="https://evil.example")[1]["code"]
        assert code == "origin_not_allowed"
        for origin in (running.url, "https://good.example"):
            with opened(running, origin=origin) as peer:
                assert peer.next()["type"] == "session.created"


def test_while_the_model_loads_and_stops_no_session_is_opened(running: Running) -> None:
    loading = Loading(lambda progress: None, Settings("tiny"))  # type: ignore[arg-type, return-value]
    client = TestClient(loading, base_url="http://localhost")
    with (
        pytest.raises(WebSocketDenialResponse) as caught,
        client.websocket_connect("ws://localhost" + PATH),
    ):
        pass
    assert caught.value.status_code == 503
    server = running.server
    server.draining = True
    with opened(running) as peer:
        assert peer.error()["code"] == "stopping" and peer.closed() == 1013
    server.draining = False


# ---------------------------------------------------------------- limits


def test_a_session_ends_when_it_is_idle_or_old(engine: Engine) -> None:
    with session(engine, live_idle_seconds=0.2) as peer:
        assert peer.error()["code"] == "session_idle" and peer.closed() == 1008
    with session(engine, live_seconds=0.5) as peer:
        for _ in range(3):
            peer.send(append(b""))
            time.sleep(0.05)
        assert peer.error()["code"] == "session_expired" and peer.closed() == 1008


def test_audio_that_waits_is_limited(engine: Engine) -> None:
    with session(engine, max_live_buffer_seconds=3.0) as peer:
        peer.send({"type": "session.update", "session": MANUAL})
        assert peer.next()["type"] == "session.updated"
        peer.send(append(bytes(4 * 2 * RATE)))
        error = peer.error()
        assert error["code"] == "input_audio_buffer_full" and error["type"] == "rate_limit_error"
        peer.send(append(TALK[: 2 * RATE]), {"type": "input_audio_buffer.commit"})
        assert peer.until(COMPLETED)


def test_sessions_are_limited_in_all_and_by_client(engine: Engine) -> None:
    with (
        limited(engine, keys=("a", "b"), max_live_sessions=4) as running,
        running.client("a") as client,
    ):
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(dialed(running, "a"))
            with opened(running, key="a") as peer:
                assert peer.error()["code"] == "too_many_sessions" and peer.closed() == 1013
            metrics = client.get("/metrics").text
            assert 'polyphi:live_sessions{model_name="tiny"} 3.0' in metrics
            with dialed(running, "b"):
                pass  # a place for others
        until(lambda: 'live_sessions{model_name="tiny"} 0.0' in client.get("/metrics").text)
        with dialed(running, "a"):
            pass


def test_requests_and_sessions_share_the_limit_of_a_client(engine: Engine) -> None:
    engine.scheduler.max_num_seqs = 1
    count = {"messages": [{"role": "user", "content": "hi"}]}
    with (
        limited(engine, keys=("a", "b"), max_waiting=3) as running,
        running.client("a") as one,
        running.client("b") as other,
        dialed(running, "a"),
        dialed(running, "a"),
    ):
        assert one.post("/tokenize", json=count).status_code == 200
        with dialed(running, "a"):
            refused = one.post("/tokenize", json=count)
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
            with opened(running, key="a") as peer:
                assert peer.error()["code"] == "queue_full" and peer.closed() == 1013
            assert other.post("/tokenize", json=count).status_code == 200


def test_a_client_that_leaves_frees_everything(fresh: Running) -> None:
    """In the middle of a transcript, of partial text, and of an event that is processed."""
    engine = fresh.engine
    for name in engine.processor.tokenizer.eos_ids:
        engine.model.decoder.embed_tokens.weight.data[name] *= 0  # answers are as long as allowed
    commit = {"type": "input_audio_buffer.commit"}
    long = np.tile(TALK, 4)
    for events in ([append(long), commit], [append(TALK)], [append(long)] * 3):
        with dialed(fresh) as peer:
            peer.send({"type": "session.update", "session": MANUAL}, *events)
            if events[-1] is commit or len(events) == 1:
                until(lambda: engine.counters().requests)
        ended(fresh)


# ---------------------------------------------------------------- on sockets


def headers(*lines: str, path: str = PATH) -> bytes:
    fixed = (
        f"GET {path} HTTP/1.1",
        "host: localhost",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def raw(running: Running, data: bytes) -> socket.socket:
    port = int(running.url.rpartition(":")[2])
    peer = socket.create_connection(("127.0.0.1", port), timeout=20)
    peer.sendall(data)
    return peer


def frame(data: bytes, opcode: int = 1, fin: bool = True) -> bytes:
    """A masked frame of up to 125 bytes, or of up to 64 KiB."""
    head = bytes([0x80 * fin | opcode])
    size = len(data)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return head + length + bytes(4) + data


def rest(peer: socket.socket) -> bytes:
    data = b""
    try:
        while part := peer.recv(65536):
            data += part
    except ConnectionError:
        pass
    return data


TOO_LARGE = (400, 431)  # as the version of uvicorn has it
OPENING = [
    (headers(), (101,)),
    (headers("x-long: " + "a" * 20_000), TOO_LARGE),
    (headers(*(f"x-{n}: 1" for n in range(300))), TOO_LARGE),
    (headers() + b"early", (400,)),
    (headers().replace(b"13", b"12"), (400,)),
    (headers().replace(b"host: localhost", b"host: evil.example"), (403,)),
    (headers(path="http://evil.example/v1/realtime"), (403,)),
    (headers("x-long: " + "a" * 40_000), TOO_LARGE),
    (headers(path="/v1/models"), (200,)),
]


def test_the_opening_request(running: Running) -> None:
    for sent, statuses in OPENING:
        with raw(running, sent) as connection:
            assert int(connection.recv(65536).split()[1]) in statuses, sent[:200]
    with running.client() as client:
        for path in ("/", "/v1/chat/completions", "/v1/realtime/x"):
            with pytest.raises(WebSocketException), opened(running, path):
                pass
        assert client.get("/v1/realtime").status_code == 404
    until(lambda: len(running.uvicorn.server_state.connections) <= 1)


def test_a_message_above_the_limit_ends_the_session(engine: Engine) -> None:
    with serving(engine, Settings("tiny", max_live_event_bytes=100_000)) as running:
        with dialed(running) as peer:
            peer.send(append(bytes(100_000)))
            assert peer.closed() == 1009
        with raw(running, headers()) as plain:
            plain.recv(65536)
            try:
                for _ in range(5000):
                    plain.sendall(frame(b"", 0 if _ else 1, fin=False))
                plain.sendall(frame(b"", 0))
            except ConnectionError:
                pass
            assert (1009).to_bytes(2, "big") in rest(plain)
        until(running.idle)


def test_replies_that_nobody_reads_end_the_session(engine: Engine) -> None:
    with serving(engine, Settings("tiny", max_live_event_bytes=200_000)) as running:
        for data in (frame(b"x" * 125, 9) * 2000, frame(b"{}") * 200):
            with raw(running, headers()) as peer:
                peer.recv(200)
                peer.settimeout(1)
                sent = 0
                try:
                    while sent < 50_000_000:
                        sent += peer.send(data)
                except (ConnectionError, TimeoutError):
                    pass
                assert sent < 50_000_000, "the server buffers no replies without end"
        until(running.idle)


def test_a_session_has_the_limits_of_reading(engine: Engine) -> None:
    """A client that reads nothing is disconnected after `body_seconds`."""
    settings = Settings("tiny", body_seconds=0.5, live_idle_seconds=60.0)
    with serving(engine, settings) as running, raw(running, headers()) as peer:
        peer.recv(200)
        connections = running.uvicorn.server_state.connections
        (opened,) = connections
        # Small buffers for replies alone: with small ones events take minutes to arrive. The kernel tells the
        # client of the end as late, when it next tries to send into a full buffer: only the server is watched.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own = opened.transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        peer.settimeout(0.05)
        event = frame(b'{"type": "x", "event_id": "' + b"x" * 500 + b'"}')
        unsent, end = memoryview(event), time.monotonic() + 60
        while connections:
            assert time.monotonic() < end, "the server keeps a client that reads nothing"
            with suppress(TimeoutError, ConnectionError):
                unsent = unsent[peer.send(unsent) :] or memoryview(event)


def test_an_app_that_fails_closes_the_socket() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        raise ApiError(400, "late")

    sent: list[Any] = []

    async def dial() -> None:
        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")]}
        await AccessGuard(fails, Settings("tiny"))(scope, receive, send)

    asyncio.run(dial())
    assert [message["type"] for message in sent] == ["websocket.accept"]
