"""Two API keys: neither learns from the caches what the other one sent."""

import base64
from typing import Any

import httpx2

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from tests.fixtures.engines import picture
from tests.fixtures.servers import serving

TEXT = "the quick brown fox jumps over the lazy dog " * 9
IMAGE = "data:image/png;base64," + base64.b64encode(picture().source).decode()
PARTS = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": TEXT}]


def chat(client: httpx2.Client) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": PARTS}], "max_tokens": 1}
    return client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens_details"]


def completion(client: httpx2.Client) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 1})
    return response.json()["usage"]["prompt_tokens_details"]


def response(client: httpx2.Client) -> dict[str, Any]:
    answer = client.post("/v1/responses", json={"input": TEXT, "max_output_tokens": 1})
    return answer.json()["usage"]["input_tokens_details"]


def test_cached_tokens_are_those_of_the_same_key(engine: Engine) -> None:
    with (
        serving(engine, Settings("tiny", keys=("a", "b"))) as server,
        server.client("a") as first,
        server.client("b") as second,
    ):
        for send in (chat, completion, response):
            assert send(first)["cached_tokens"] == 0
            hits = _hits(second)
            assert send(second)["cached_tokens"] == 0
            assert _hits(second) == hits
            assert send(first)["cached_tokens"] == send(second)["cached_tokens"] > 0


def test_keys_share_prefixes_on_request(engine: Engine) -> None:
    settings = Settings("tiny", keys=("a", "b"), share_prefixes=True)
    with (
        serving(engine, settings) as server,
        server.client("a") as first,
        server.client("b") as second,
    ):
        assert chat(first)["cached_tokens"] == 0 < chat(second)["cached_tokens"]


def test_clients_without_keys_share_prefixes(engine: Engine) -> None:
    with serving(engine, Settings("tiny")) as server, server.client() as client:
        assert chat(client)["cached_tokens"] == 0 < chat(client)["cached_tokens"]


def _hits(client: httpx2.Client) -> list[str]:
    """The metrics of hits in the caches."""
    return [line for line in client.get("/metrics").text.splitlines() if "cache_hits" in line]
