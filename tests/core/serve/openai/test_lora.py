"""Adapters that are loaded and unloaded by requests: as models of every API, without harm to requests under way, and
only from the folder that is allowed."""

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from polyphi.engine.engine import Engine
from polyphi.model.adapters import put_adapter
from polyphi.serve.admission.settings import Settings
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.fixtures.adapter_folders import random_factors, write_folder
from tests.fixtures.servers import Running, serving, until

PROMPT = "the quick fox"
LENGTH = 16
"""Tokens of an answer: the fewest that the Responses API accepts."""
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def folder(engine: Engine, tmp_path: Path) -> Path:
    """Two adapters, and a third one outside the folder."""
    for number, name in enumerate(("a", "b")):
        write_folder(tmp_path / "adapters" / name, random_factors(engine.model, number))
    write_folder(tmp_path / "outside", random_factors(engine.model, 2))
    return tmp_path / "adapters"


@pytest.fixture
def hot(engine: Engine, folder: Path) -> Iterator[Running]:
    with serving(engine, Settings("tiny", aliases=("other",), adapter_folder=folder)) as server:
        yield server
        assert not engine.counters().requests


def load(client: httpx2.Client, name: str, path: str, **fields: Any) -> httpx2.Response:
    return client.post(LOAD, json={"lora_name": name, "lora_path": path, **fields})


def chat(client: httpx2.Client, model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": LENGTH, "temperature": 0, **fields}
    response = client.post("/v1/chat/completions", json=body)
    return {"status": response.status_code, **response.json()}


def text(client: httpx2.Client, model: str) -> str:
    return str(chat(client, model)["choices"][0]["message"]["content"])


def models(client: httpx2.Client) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def alone(engine: Engine, folder: Path) -> str:
    """The answer that the adapter in a folder gives alone."""
    key = engine.adapters.load("alone", folder)
    answer = engine.generate(
        [Message.user(PROMPT)], sampling=SamplingParams(max_tokens=LENGTH), adapter=key
    )
    engine.adapters.remove(key).result(10)
    return answer.text


def test_a_loaded_adapter_is_a_model_of_all_apis(
    hot: Running, engine: Engine, folder: Path
) -> None:
    right = {name: alone(engine, folder / name) for name in ("a", "b")}
    with hot.client() as client:
        base = text(client, "tiny")
        before = models(client)
        response = load(client, "mine", "a")
        assert response.status_code == 200 and response.text.startswith("Success: LoRA adapter")
        assert models(client) == [*before, "mine"] and client.get("/v1/models/mine").is_success
        assert "mine" in client.get("/props").json()["adapters"]
        answer = chat(client, "mine")
        assert answer["choices"][0]["message"]["content"] == right["a"] != base
        assert answer["adapter"] == "mine"
        assert chat(client, "tiny", adapter="mine")["choices"] == answer["choices"]
        length = {"model": "mine", "temperature": 0}
        body = {**length, "input": PROMPT, "max_output_tokens": LENGTH}
        responses = client.post("/v1/responses", json=body).json()
        assert responses["output"][0]["content"][0]["text"] == right["a"]
        body = {**length, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": LENGTH}
        messages = client.post("/v1/messages", json=body).json()
        assert messages["content"][0]["text"] == right["a"]
        completions = [
            client.post("/v1/completions", json={"model": model, "prompt": PROMPT}).json()
            for model in ("mine", "tiny")
        ]
        assert completions[0]["choices"][0]["text"] != completions[1]["choices"][0]["text"]
        # Another one under its name, for new requests.
        assert load(client, "mine", "b", load_inplace=True).is_success
        assert text(client, "mine") == right["b"] and models(client) == [*before, "mine"]
        assert load(client, "more", str(folder / "a")).is_success
        assert text(client, "more") == right["a"]
        for name in ("mine", "more"):
            response = client.post(UNLOAD, json={"lora_name": name, "lora_int_id": 1})
            assert response.status_code == 200 and response.text.startswith("Success")
            assert chat(client, name)["error"]["code"] == "model_not_found"
        assert models(client) == before and text(client, "tiny") == base
        assert 'adapter="mine"' not in client.get("/metrics").text
    until(lambda: sorted(engine.model.config.adapters) == ["speech", "vision"])


def test_unloading_waits_for_requests_under_way(hot: Running, engine: Engine, folder: Path) -> None:
    right = alone(engine, folder / "b")
    unloaded = threading.Event()

    def unload() -> None:
        with hot.client() as other:
            assert other.post(UNLOAD, json={"lora_name": "mine"}).status_code == 200
        unloaded.set()

    with hot.client() as client:
        load(client, "mine", "a")
        whole = chat(client, "mine", max_tokens=200)["choices"][0]["message"]["content"]
        body = {"model": "mine", "messages": [{"role": "user", "content": PROMPT}]}
        body |= {"max_tokens": 200, "temperature": 0, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            thread = threading.Thread(target=unload)
            thread.start()
            with hot.client() as other:
                while "mine" in models(other):
                    pass
                assert chat(other, "mine")["status"] == 404
                assert load(other, "mine", "b").status_code == 200
                assert text(other, "mine") == right
            events = [line[6:] for line in lines if line.startswith("data: {")]
        deltas = [choice["delta"] for e in events for choice in json.loads(e)["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == whole
        thread.join(60)
        assert unloaded.is_set()
        names = [key.partition("@")[0] for key in engine.model.config.adapters]
        assert sorted(names) == ["mine", "speech", "vision"]


def test_no_request_is_answered_by_the_wrong_adapter(
    hot: Running, engine: Engine, folder: Path
) -> None:
    """Two clients send chats while a third loads, replaces and unloads adapters under the name that they request. Each
    answer is that of an adapter which the name had between the request and its answer."""
    right = {name: alone(engine, folder / name) for name in ("a", "b")}
    periods: list[tuple[str | None, float]] = [(None, 0.0)]
    """What the name stands for, from the call that began it; the one before ends with that call's answer."""
    ends: list[float] = []
    answers: list[tuple[float, float, dict[str, Any]]] = []

    def send() -> None:
        with hot.client() as client:
            while len(ends) < 30:
                began = time.monotonic()
                answer = chat(client, "mine")
                answers.append((began, time.monotonic(), answer))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    with hot.client() as client:
        for number in range(30):
            adapter = ("a", "b", None)[number % 3]
            periods.append((adapter, time.monotonic()))
            if adapter is None:
                response = client.post(UNLOAD, json={"lora_name": "mine"})
            else:
                response = load(client, "mine", adapter, load_inplace=True)
            assert response.is_success, response.text
            ends.append(time.monotonic())
            count = len(answers)
            while len(answers) == count:
                time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    statuses = set()
    for began, ended, answer in answers:
        possible = {
            adapter
            for (adapter, begin), end in zip(periods, [*ends, math.inf], strict=True)
            if begin <= ended and end >= began
        }
        statuses.add(answer["status"])
        if answer["status"] == 404:
            assert None in possible
        else:
            content = answer["choices"][0]["message"]["content"]
            assert content in {right[adapter] for adapter in possible if adapter}
    assert statuses == {200, 404}
    # An adapter that was replaced is removed in the background.
    until(lambda: sorted(engine.model.config.adapters) == ["speech", "vision"])


REFUSED = [
    ("mine", "c", 404, "adapter_not_found"),
    ("mine", "a\0", 404, "adapter_not_found"),
    ("mine", "x" * 3000, 404, "adapter_not_found"),
    ("mine", "../outside", 403, "path_not_allowed"),
    ("mine", "/etc", 403, "path_not_allowed"),
    ("mine", "link", 403, "path_not_allowed"),
    ("mine", "linked", 403, "path_not_allowed"),
    ("mine", "circle", 404, "adapter_not_found"),
    ("mine", "empty", 400, None),
    ("mine", "damaged", 400, None),
    ("mine", "dora", 400, None),
    ("mine", "slow", 400, None),
    ("mine", "types", 400, None),
    ("mine", "patterns", 400, None),
    ("mine", "infinite", 400, None),
    ("mine", "integers", 400, None),
    ("tiny", "a", 400, None),
    ("other", "a", 400, None),
    ("vision", "a", 400, None),
    ("auto", "a", 400, None),
    ("a.b", "a", 400, None),
    ("", "a", 400, None),
    ("mine", "", 400, None),
]
"""Name, path, status and code."""


def test_what_can_not_be_loaded(hot: Running, engine: Engine, folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "linked").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "linked" / file).symlink_to(folder.parent / "outside" / file)
    (folder / "empty").mkdir()
    factors = random_factors(engine.model, 0)
    (write_folder(folder / "damaged", factors) / "adapter_model.safetensors").write_bytes(b"no")
    write_folder(folder / "dora", factors, use_dora=True)
    write_folder(folder / "slow", factors, alpha_pattern={r"(\w+\w+)+x": 1})
    write_folder(folder / "types", factors, r="x", target_modules=5, lora_alpha=None)
    write_folder(folder / "patterns", factors, alpha_pattern=5)
    write_folder(folder / "infinite", factors, lora_alpha=10**400)
    whole = {path: replace(one, a=one.a.long()) for path, one in factors.items()}
    write_folder(folder / "integers", whole)
    with hot.client() as client:
        for name, path, status, code in REFUSED:
            response = load(client, name, path)
            assert response.status_code == status, response.text
            error = response.json()["error"]
            assert error["param"] in ("lora_name", "lora_path"), path
            assert code is None or error["code"] == code, path
            assert str(folder.parent) not in response.text
        assert "mine" not in models(client)
    assert sorted(engine.model.config.adapters) == ["speech", "vision"]


def test_names_that_are_in_use_and_unknown_ones(hot: Running) -> None:
    with hot.client() as client:
        assert load(client, "mine", "a").status_code == 200
        again = load(client, "mine", "b")
        assert (again.status_code, again.json()["error"]["code"]) == (400, "adapter_loaded")
        for name, status in (("vision", 400), ("missing", 404), ("tiny", 404)):
            response = client.post(UNLOAD, json={"lora_name": name})
            assert response.status_code == status
            assert response.json()["error"]["param"] == "lora_name"
        assert text(client, "mine")


def test_without_the_switch_nothing_is_loaded(running: Running, folder: Path) -> None:
    with running.client() as client:
        assert load(client, "mine", str(folder / "a")).status_code == 404
        assert client.post(UNLOAD, json={"lora_name": "vision"}).status_code == 404


def test_the_number_and_size_of_adapters_are_limited(engine: Engine, folder: Path) -> None:
    size = os.path.getsize(folder / "a/adapter_model.safetensors")
    for limits in ({"max_adapters": 1}, {"max_adapter_bytes": 2 * size - 1}):
        settings = Settings("tiny", adapter_folder=folder, **limits)
        with serving(engine, settings) as server, server.client() as client:
            assert load(client, "first", "a").is_success
            assert load(client, "second", "b").json()["error"]["code"] == "too_many_adapters"
            assert client.post(UNLOAD, json={"lora_name": "first"}).is_success
            assert load(client, "second", "b").is_success
            assert client.post(UNLOAD, json={"lora_name": "second"}).is_success


def test_adapters_of_the_command_line_can_be_unloaded(engine: Engine, folder: Path) -> None:
    from polyphi.checkpoints.peft import read_peft

    adapter = read_peft(folder / "a", engine.model.config)
    put_adapter(engine.model, "own", adapter.config, adapter.factors)
    settings = Settings("tiny", adapter_folder=folder, adapters=("own",))
    with serving(engine, settings) as server, server.client() as client:
        assert text(client, "own") != text(client, "tiny")
        assert client.post(UNLOAD, json={"lora_name": "own"}).is_success
        assert "own" not in models(client) and "own" not in engine.model.config.adapters
