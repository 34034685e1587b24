"""Over HTTP, no request stalls others, and no answer is NaN; tests/engine/test_scheduler.py tests the engine."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx2
import numpy as np
import pytest
import soundfile
import torch
from serve.conftest import Running, serving

from polyphi.engine.engine import Engine
from polyphi.serve.settings import Settings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat(text: object, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 2, **more}


HI = [{"role": "user", "content": "hi"}]
SHORT: dict[str, dict[str, object]] = {
    CHAT: chat("hi"),
    COMPLETIONS: {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": HI, "max_tokens": 2},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/messages/count_tokens": {"messages": HI},
    "/tokenize": {"messages": HI},
}
COUNTS = list(SHORT)[-3:]
"""Routes that don't run the model."""


def from_address(running: Running, address: str) -> httpx2.Client:
    """A client of another address of this machine."""
    transport = httpx2.HTTPTransport(local_address=address)
    return httpx2.Client(base_url=running.url, transport=transport, timeout=60)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_client_leaves_places_to_others(engine: Engine) -> None:
    engine.scheduler.max_num_seqs = 1
    settings = Settings("tiny", max_waiting=3)
    with (
        serving(engine, settings) as running,
        from_address(running, "127.0.0.1") as one,
        from_address(running, "127.0.0.2") as two,
    ):
        long = chat("hi", max_tokens=400)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(one.post(CHAT, json=long).status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
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
        assert engine.counters().requests == 2, "it went before those that wait"
        for thread in threads:
            thread.join()
        assert answers == [200, 200, 200]
        assert running.idle()


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


def test_a_short_chat_does_not_wait_for_log_probabilities(running: Running) -> None:
    """Their prompts are computed in chunks at the same time, and end within a step after their client disconnects."""
    engine = running.engine
    engine.scheduler._chunk = engine.scheduler._prefill = 64
    ids = [[260 + (7 * i + j) % 60 for j in range(1800)] for i in range(60)]
    body = json.dumps({"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    with socket.create_connection(address) as other:
        other.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: engine.counters().running > 0)
        with running.client() as client:
            assert client.post(CHAT, json=chat("hi")).status_code == 200
        assert engine.counters().requests >= 50, "they are far from through"
        steps = engine.counters().steps
    until(running.idle)
    assert engine.counters().steps - steps < 100, "of 1,700"


@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 3}, {"temperature": 1}])
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


@pytest.mark.parametrize("peak", [1e18, 32768.0, -101.0])
def test_samples_far_beyond_full_scale_are_refused(running: Running, peak: float) -> None:
    wave = np.zeros(8000, np.float32)
    wave[4000] = peak
    file = io.BytesIO()
    soundfile.write(file, wave, 16000, "FLOAT", format="WAV")
    part = {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"},
    }
    with running.client() as client:
        answer = client.post(CHAT, json=chat([part]))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "messages[0].content[0].input_audio.data"
        assert "divide them by their full scale" in error["message"]
        upload = {"file": ("loud.wav", file.getvalue(), "audio/wav")}
        assert client.post("/v1/audio/transcriptions", files=upload).status_code == 400
