"""Parts of a user's modality in chat requests."""

import base64
from typing import Any

import pytest

from polyphi.engine.engine import Engine
from polyphi.processing.item_reader import ItemReader
from polyphi.serve.admission.settings import Settings
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.items import add_motion, csv, motion, series
from tests.fixtures.servers import serving


def part(data: bytes = csv(), name: str = "motion", **fields: Any) -> dict[str, Any]:
    return {"type": name, name: {"data": base64.b64encode(data).decode(), **fields}}


def body(*parts: dict[str, Any], text: str = "What is it?") -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8}


def test_a_series_is_answered(engine: Engine) -> None:
    add_motion(engine.model, engine.processor)
    sampling = SamplingParams(max_tokens=8)
    expected = engine.generate([Message.user(series(), "What is it?")], sampling=sampling)
    with serving(engine, Settings("tiny")) as running, running.client() as client:
        answer = client.post("/v1/chat/completions", json=body(part(format="csv"))).json()
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert answer["usage"]["prompt_tokens_details"]["motion_tokens"] == 3
        assert client.get("/props").json()["modalities"]["motion"] is True
        counted = client.post("/tokenize", json={k: body(part())[k] for k in ("model", "messages")})
        assert counted.json()["motion_tokens"] == 3
        assert 'kind="motion"' in client.get("/metrics").text


def test_a_part_that_is_too_large(engine: Engine) -> None:
    add_motion(engine.model, engine.processor, max_bytes=1000)
    with serving(engine, Settings("tiny")) as running, running.client() as client:
        answer = client.post("/v1/chat/completions", json=body(part(b"x" * 2000)))
        assert answer.status_code == 413
        assert answer.json()["error"]["param"] == "messages[0].content[0].motion.data"


def test_an_exception_of_a_reader_is_for_the_log(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Its text may have a path of the server, or what its code knows."""
    add_motion(engine.model, engine.processor)
    with serving(engine, Settings("tiny")) as running, running.client() as client:
        for error in (
            ValueError("/srv/secret"),
            OSError(2, "no", "/srv/secret"),
            KeyError("secret"),
        ):

            def read(_: object, error: Exception = error) -> None:
                raise error

            engine.processor.readers["motion"] = ItemReader(motion(read=read))
            caplog.clear()
            answer = client.post("/v1/chat/completions", json=body(part()))
            assert answer.status_code == 400 and "secret" not in answer.text
            assert "secret" in caplog.text


def test_a_failing_encoder_is_its_own_error(engine: Engine) -> None:
    add_motion(engine.model, engine.processor)
    engine.model.motion.projector = None  # as a mistake in the user's file
    with serving(engine, Settings("tiny")) as running, running.client() as client:
        answer = client.post("/v1/chat/completions", json=body(part()))
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "encoder_failed"
        assert "the encoder of motion failed: TypeError" in answer.json()["error"]["message"]
        assert client.post("/v1/chat/completions", json=body()).status_code == 200
