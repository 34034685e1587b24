"""/v1/embeddings: the mean of the last hidden states, whatever else runs."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
from openai import OpenAI

from polyphi.engine.engine import Engine
from polyphi.serve.answer.server import Server
from tests.fixtures.servers import Running

TEXTS = ["the quick brown fox", "jumps over the lazy dog " * 30, "", "42"]


def by_hand(engine: Engine, text: str) -> np.ndarray:
    """The embedding by one forward without a cache."""
    tokenizer = engine.processor.tokenizer
    ids = tokenizer.encode(text) or [tokenizer.eos_ids[-1]]
    mean = engine.runner.hidden(engine.rows.ids_row(ids, adapter=None)).float().mean(0)
    return torch.nn.functional.normalize(mean, dim=0).numpy()


@pytest.fixture
def client(running: Running) -> Any:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_texts_and_ids(running: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks for base64 by itself. Chunks of prompts, cached prefixes and other rows change nothing."""
    engine = running.engine
    monkeypatch.setattr(engine.scheduler.budget, "chunk", 32)
    monkeypatch.setattr(engine.scheduler.budget, "prefill", 32)
    expected = [by_hand(engine, text) for text in TEXTS]
    for _ in range(2):
        response = client.embeddings.create(model="tiny", input=TEXTS)
        assert [entry.index for entry in response.data] == [0, 1, 2, 3]
        for entry, vector in zip(response.data, expected, strict=True):
            np.testing.assert_allclose(entry.embedding, vector, atol=2e-5)
    encode = engine.processor.tokenizer.encode
    assert response.usage.prompt_tokens == sum(len(encode(text)) or 1 for text in TEXTS)
    assert response.model == "tiny" and "not trained" in response.model_extra["pooling"]
    one = client.embeddings.create(model="tiny", input=encode(TEXTS[0]), encoding_format="float")
    np.testing.assert_allclose(one.data[0].embedding, expected[0], atol=2e-5)
    several = client.embeddings.create(model="tiny", input=[encode(t) for t in TEXTS[:2]])
    np.testing.assert_allclose(several.data[1].embedding, expected[1], atol=2e-5)


def test_many_texts_enter_the_engine_in_groups(
    running: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, submitted, submit = running.engine, list[int](), Server.submit

    async def counted(self: Server, ticket: Any, rows: Any, sampling: Any) -> Any:
        submitted.append(len(rows))
        return await submit(self, ticket, rows, sampling)

    monkeypatch.setattr(Server, "submit", counted)
    texts = [str(i) for i in range(300)]
    data = client.embeddings.create(model="tiny", input=texts).data
    assert submitted == [128, 128, 44] and [entry.index for entry in data] == list(range(300))
    for number in (0, 127, 128, 299):
        expected = by_hand(engine, texts[number])
        np.testing.assert_allclose(data[number].embedding, expected, atol=2e-5)
    assert not engine.counters().requests


def test_dimensions_and_encoding(running: Running) -> None:
    with running.client() as client:
        body = {"input": "the fox", "dimensions": 4, "encoding_format": "base64"}
        (entry,) = client.post("/v1/embeddings", json=body).json()["data"]
    vector = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
    first = by_hand(running.engine, "the fox")[:4]
    np.testing.assert_allclose(vector, first / np.linalg.norm(first), atol=2e-5)


def test_beside_chats(running: Running) -> None:
    with running.client() as client:
        stream = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json={**stream, "ignore_eos": True}):
            entry = client.post("/v1/embeddings", json={"input": TEXTS[1]}).json()["data"][0]
    np.testing.assert_allclose(entry["embedding"], by_hand(running.engine, TEXTS[1]), atol=2e-5)


def test_what_is_not_finite_is_an_error(fresh: Running) -> None:
    with torch.no_grad():
        fresh.engine.runner.model.decoder.norm.weight.fill_(torch.nan)
    with fresh.client() as client:
        response = client.post("/v1/embeddings", json={"input": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "not_finite")
