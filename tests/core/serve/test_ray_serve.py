"""The example on a local Ray cluster: clients get the same answers as from a server without Ray."""

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from polyphi.engine.engine import Engine
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.chats import image_part
from tests.fixtures.engines import picture, save
from tests.fixtures.processes import free_port
from tests.fixtures.servers import until

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[3] / "examples" / "ray_serve.py"
ROOM = 3 << 30
"""Bytes that Ray's own processes and a tiny replica take, and some more."""


@pytest.fixture
def url(engine: Engine, tmp_path: Path) -> Iterator[str]:
    ray = pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')
    serve = pytest.importorskip("ray.serve", reason='Ray is not installed: pip install ".[ray]"')
    import psutil

    if psutil.virtual_memory().available < ROOM:
        pytest.skip(f"a Ray cluster needs {ROOM >> 30} GiB of free memory")
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    port = free_port()
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(example.app({"model": str(save(engine, tmp_path / "tiny"))}))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_a_replica_answers_as_a_server_does(engine: Engine, url: str) -> None:
    sampling = SamplingParams(max_tokens=12)
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    contents = {
        "text": ("the quick fox", [Message.user("the quick fox")]),
        "image": (
            [{"type": "text", "text": "what is this?"}, image_part()],
            [Message.user("what is this?", picture())],
        ),
    }
    for kind, (content, ours) in contents.items():
        expected = engine.generate(ours, sampling=sampling)
        params = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        whole = client.chat.completions.create(**params, max_tokens=12)
        assert whole.choices[0].message.content == expected.text, kind
        assert whole.model_extra["adapter"] == expected.adapter
        pieces = list(client.chat.completions.create(**params, max_tokens=12, stream=True))
        assert len(pieces) > 5
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == expected.text

    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
        # Words arrive as they are generated, not at the end.
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1500, "stream": True}
        began = time.monotonic()
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            first = time.monotonic() - began
            assert sum(1 for _ in lines) > 100
        assert first < 0.5 * (time.monotonic() - began)

        # A client that disconnects, in a stream or before an answer, frees its resources.
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
        until(lambda: aborted(http) == 1)
        with pytest.raises(httpx2.TimeoutException):
            http.post("/v1/chat/completions", json={**body, "stream": False}, timeout=0.5)
        until(lambda: aborted(http) == 2)
        assert 'num_requests_running{model_name="tiny"} 0.0' in http.get("/metrics").text

        # The guard stands in front here too.
        refused = http.get("/v1/models", headers={"host": "rebound.example.org"})
        assert refused.status_code == 403 and set(refused.json()["error"]) == {
            "message",
            "type",
            "param",
            "code",
        }
        wrong = http.post(
            "/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
        )
        assert (
            wrong.status_code == 400 and json.loads(wrong.text)["error"]["code"] == "invalid_json"
        )


def aborted(http: httpx2.Client) -> float:
    mark = 'polyphi:request_success_total{finished_reason="abort",model_name="tiny"} '
    return sum(
        float(line.removeprefix(mark))
        for line in http.get("/metrics").text.splitlines()
        if line.startswith(mark)
    )
