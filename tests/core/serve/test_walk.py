"""The server from outside, from its OpenAPI description: every route without a key (S20), and generated requests (S18):
no status 500, no internals in messages, alive afterwards."""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, strategies
from hypothesis.errors import Unsatisfiable
from starlette.routing import BaseRoute

from polyphi.serve.admission.settings import Settings
from polyphi.serve.app import create_app
from polyphi.serve.page.page import PAGE
from tests.core.serve.dialects import CASES, DIALECTS, HI
from tests.fixtures.servers import Running

KEYS = ("the-first-key", "the-second-key")
PUBLIC = {"/", "/live", "/health", "/ready"}
LEAK = re.compile(r"Traceback|0x[0-9a-f]{6}|/usr/|site-packages|\.py\b|polyphi/|the-\w+-key")
"""What no answer holds, unless it was sent."""


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Short requests."""
    return Settings("tiny", keys=KEYS, max_tokens=16, max_answers=2)


@pytest.fixture
def walked(running: Running) -> Iterator[Running]:
    """The server, which must be alive at the end."""
    yield running
    with running.client(KEYS[1]) as client:
        assert client.get("/health").status_code == 200
        body = {"messages": HI, "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def check(answer: Any, sent: str = "") -> None:
    """Checks that hold for each response (httpx's or schemathesis's), whatever was `sent`."""
    status, text = answer.status_code, answer.text
    assert status < 500, f"{status}: {text}"
    leaks = [leak for leak in LEAK.findall(text) if leak not in sent]
    assert not leaks, f"{leaks} in {text}"
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert "x-request-id" in headers and "x-content-type-options" in headers
    assert "server" not in headers
    if status >= 400 and text:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]


def everything(routes: Sequence[BaseRoute]) -> set[tuple[str, str]]:
    """(path, method) of all routes, described or not."""
    endpoints: set[tuple[str, str]] = set()
    for route in routes:
        inner = getattr(route, "original_router", route)  # newer FastAPIs keep routers apart
        if hasattr(inner, "routes"):
            endpoints |= everything(inner.routes)
            continue
        path = re.sub(r"\{[^}]*\}", "x", route.path)  # type: ignore[attr-defined]
        # A WebSocket has no methods; test_realtime.py has its keys and errors.
        endpoints |= {(path, method) for method in getattr(route, "methods", ())}
    return endpoints


def test_s20_every_route_needs_a_key(walked: Running) -> None:
    there = everything(create_app(walked.engine, walked.settings).routes)
    described = create_app(walked.engine, walked.settings).openapi()["paths"]
    assert {re.sub(r"\{[^}]*\}", "x", path) for path in described} < {path for path, _ in there}
    strange = {"/docs", "/redoc", "/nowhere", "//health", "/health/", "/HEALTH", "/v1%2fmodels"}
    there |= {(path, method) for path in strange for method in ("GET", "POST", "OPTIONS", "TRACE")}
    page = PAGE.decode()  # its libraries name files
    with walked.client() as client:
        for path, method in sorted(there):
            for key in ({}, {"authorization": "Bearer the-third-key"}, {"x-api-key": "wrong"}):
                headers = {**key, "content-type": "application/json"}
                answer = client.request(method, walked.url + path, content=b"{}", headers=headers)
                check(answer, page if path == "/" else "")
                if path in PUBLIC and method in ("GET", "HEAD"):
                    assert answer.status_code == 200, (method, path)
                else:
                    assert answer.status_code == 401, (method, path)
    with walked.client(KEYS[0]) as client:
        assert client.get("/v1/models").status_code == 200


def test_what_is_not_there_says_so_in_the_shape_of_all_errors(walked: Running) -> None:
    with walked.client(KEYS[0]) as client:
        for path in ("/nowhere", "/v1", "/docs", "/v1/models/none", "/%2e%2e/etc/passwd", "/%00"):
            answer = client.get(path)
            check(answer)
            assert answer.status_code == 404, path
        for method, path in (("GET", "/v1/chat/completions"), ("DELETE", "/v1/models")):
            answer = client.request(method, path)
            check(answer)
            assert answer.status_code == 405
            assert answer.json()["error"]["code"] == "method_not_allowed"


def test_a_wrong_method_names_all_that_the_address_has(walked: Running) -> None:
    there = everything(create_app(walked.engine, walked.settings).routes)
    there |= {(path, "HEAD") for path, method in there if method == "GET"}
    with walked.client(KEYS[0]) as client:
        for path in {path for path, _ in there}:
            answer = client.request("PUT", path, json={})
            check(answer)
            own = {method for other, method in there if other == path}
            if path == "/v1/responses/input_tokens":  # it could be a response's id
                own |= {"DELETE", "GET", "HEAD"}
            assert answer.status_code == 405
            (allowed,) = answer.headers.get_list("allow")
            assert sorted(allowed.split(", ")) == sorted(own), path


def test_a_model_without_an_id_is_not_found(walked: Running) -> None:
    with walked.client(KEYS[0]) as client:
        for path in ("/v1/models/", "/v1/models/%20", "/v1/models//"):
            answer = client.get(path)
            check(answer)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (404, "model_not_found"), path
        assert client.get("/v1/models/tiny").json()["id"] == "tiny"


def test_head_has_the_status_and_headers_of_get_and_no_body(walked: Running) -> None:
    there = everything(create_app(walked.engine, walked.settings).routes)
    paths = {path for path, method in there if method == "GET"}
    assert {"/", "/live", "/health", "/ready", "/v1/models", "/metrics"} < paths
    own = {"x-request-id", "date", "content-length"}
    with walked.client(KEYS[0]) as client:
        for path in sorted(paths | {"/v1/models/tiny", "/nowhere", "/v1/chat/completions"}):
            head, get = client.head(path), client.get(path)
            assert head.status_code == get.status_code and head.content == b"", path
            assert set(head.headers) == set(get.headers), path
            named = set(get.headers) - own
            assert [head.headers[n] for n in named] == [get.headers[n] for n in named], path
            if path != "/metrics":  # it grows with earlier requests
                assert head.headers["content-length"] == get.headers["content-length"], path
    with walked.client() as client:
        assert client.head("/health").status_code == 200
        assert client.head("/v1/models").status_code == 401


def closed(schema: Any) -> Any:
    """A description in which objects have no more fields than those named: others are refused at once, and nearly every
    request would be one with a made-up field."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    fields = {key: closed(value) for key, value in schema.items()}
    if isinstance(fields.get("properties"), dict) and fields.get("type") == "object":
        fields.setdefault("additionalProperties", False)
    return fields


def bombard(walked: Running, examples: int) -> Counter[int]:
    """Sends generated requests, valid and invalid, to every operation of /openapi.json; returns the counts of the
    statuses. Half of those about a stored response name one that exists."""
    statuses: Counter[int] = Counter()
    key = {"authorization": f"Bearer {KEYS[0]}"}
    with walked.client(KEYS[0]) as client, requests.Session() as session:
        described = closed(client.get("/openapi.json").json())
        body = {"input": "hi", "max_output_tokens": 1}
        stored_id = client.post("/v1/responses", json=body).json()["id"]
        operations = [
            o.ok() for o in schemathesis.openapi.from_dict(described).get_all_operations()
        ]
        methods = {(path, m) for path, of_path in described["paths"].items() for m in of_path}
        assert {(o.path, o.method) for o in operations} == methods and len(methods) > 20
        for operation in operations:
            for mode in schemathesis.GenerationMode:

                @seed(20250301)
                @hypothesis.settings(
                    max_examples=examples,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(
                    case=operation.as_strategy(generation_mode=mode), stored=strategies.booleans()
                )
                def one(case: Any, stored: bool) -> None:
                    reads = case.path.startswith("/v1/responses/{id}") and case.method != "DELETE"
                    if stored and reads:
                        case.path_parameters["id"] = stored_id
                    answer = case.call(
                        base_url=walked.url, session=session, headers=key, timeout=30
                    )
                    statuses[answer.status_code] += 1
                    documented = case.operation.definition.raw["responses"]
                    assert str(answer.status_code) in documented
                    if answer.status_code == 200:
                        content_type = answer.headers["content-type"][0].partition(";")[0]
                        assert content_type in documented["200"]["content"]
                    check(
                        answer, f"{case.path_parameters} {case.body!r} {case.query} {case.method}"
                    )

                with contextlib.suppress(Unsatisfiable):  # nothing about it can be wrong
                    one()
    return statuses


def test_s18_requests_that_nobody_meant_short(walked: Running) -> None:
    statuses = bombard(walked, 1)
    assert statuses[200] > 2 and statuses[400] > 5


@pytest.mark.long
def test_s18_requests_that_nobody_meant(walked: Running) -> None:
    statuses = bombard(walked, 80)
    assert statuses[200] > 20 and statuses[400] > 300


TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"properties": {"a": {}}}},
}
FUNCTION = {"type": "function", "name": "f", "parameters": {"properties": {"a": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"pattern": "a+"}}, "required": ["a"]}
SIMPLE: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "model": "tiny",
            "adapter": "auto",
            "messages": HI,
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "seed": 1,
            "stop": ["z"],
            "n": 1,
            "logit_bias": {"5": 1.0},
            "min_tokens": 1,
            "ignore_eos": True,
            "stop_token_ids": [6],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "add_generation_prompt": True,
            "chat_template_kwargs": {"enable_thinking": False},
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "logprobs": True,
            "top_logprobs": 2,
            "user": "u",
        },
    ),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 1, "logprobs": 1, "echo": True}),
    (
        "/v1/responses",
        {
            "input": HI,
            "instructions": "be brief",
            "max_output_tokens": 1,
            "metadata": {"a": "b"},
            "store": True,
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 1,
            "reasoning": {"effort": "low", "summary": "auto"},
            "tools": [FUNCTION],
            "stream": True,
        },
    ),
    (
        "/v1/messages",
        {
            "messages": HI,
            "system": "be brief",
            "max_tokens": 1,
            "stop_sequences": ["z"],
            "thinking": {"type": "enabled", "budget_tokens": 1},
            "tools": [{"name": "f", "input_schema": {"properties": {"a": {}}}}],
            "stream": True,
        },
    ),
    ("/tokenize", {"prompt": "hi", "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6]}),
]


def rich() -> list[tuple[str, dict[str, Any]]]:
    """Requests that use all other fields."""
    chat, body = "/v1/chat/completions", {"messages": HI, "max_tokens": 2}
    named = {"type": "function", "function": {"name": "f"}}
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    chosen = {"type": "function", "name": "f"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [chosen]}
    open_turns = [*HI, {"role": "assistant", "content": "a", "extra": {"b": [1]}}]
    forms: list[dict[str, Any]] = [
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": {"type": "object"}},
        {"guided_choice": ["a"]},
        {"ebnf": 'root ::= "a"'},
        {"grammar": 'start: "a" | "b"'},
        {"response_format": {"type": "regex", "regex": "a+"}},
        {"tools": [TOOL], "tool_choice": some},
        {"messages": open_turns, "continue_final_message": True},
        {"prompt_logprobs": 1},
    ]
    cases = [
        (DIALECTS[name].path, DIALECTS[name].write({**case.request, "max_tokens": 3}))
        for case in CASES.values()
        for name in case.dialects.split()
    ]
    return [
        *((chat, {**body, **form}) for form in forms),
        *cases,
        ("/v1/completions", {"prompt": "a", "echo": True, "stream": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "stream": True}),
        ("/v1/completions", {"prompt": [[5], [6]], "max_tokens": 0, "logprobs": 1, "echo": True}),
        ("/tokenize", {"messages": open_turns, "continue_final_message": True}),
        ("/tokenize", {"messages": HI, "tools": [TOOL]}),
        ("/v1/responses", {"input": "a", "tools": [FUNCTION], "tool_choice": allowed}),
        ("/v1/responses/input_tokens", {"input": "hi", "tools": [FUNCTION]}),
        ("/v1/messages/count_tokens", {"messages": HI}),
    ]


ODD: list[Any] = [None, -1, 2**70, math.nan, "\ud800", []]
ODDER: list[Any] = [
    True,
    math.inf,
    "",
    "é" * 50,
    {},
    0,
    2**31,
    2**63,
    -(2**70),
    0.5,
    -0.5,
    1e308,
    1e-320,
    -math.inf,
    "x",
    "\x00",
    "auto",
    "<|system|>",
    "<|endoftext10|>",
    "a" * 10_000,
    [[]],
    [None],
    [1],
    ["x"],
    ["", ""],
    ["a"] * 1000,
    {"a": 1},
    {"type": "text"},
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of a value and of all values inside it."""
    yield at
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in inner:
        yield from places(part, (*at, key))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy of the value with another one at a path."""
    if not at:
        return new
    copy = value.copy()
    copy[at[0]] = put(value[at[0]], at[1:], new)
    return copy


def spoil(
    walked: Running, requests: list[tuple[str, dict[str, Any]]], odd: list[Any]
) -> Counter[int]:
    """Sends valid requests with each field replaced by each odd value; returns the counts of the statuses."""
    statuses: Counter[int] = Counter()
    wrong = []
    with walked.client(KEYS[0]) as client:
        for path, body in requests:
            assert (answer := client.post(path, json=body)).status_code == 200, answer.text
            for at in places(body):
                for new in odd:
                    sent = json.dumps(put(body, at, new))
                    answer = client.post(
                        path, content=sent, headers={"content-type": "application/json"}
                    )
                    statuses[answer.status_code] += 1
                    try:
                        check(answer, sent)
                    except AssertionError as error:
                        wrong.append(f"{path} {at} {new!r:.40}: {error}")
    assert not wrong, "\n".join(wrong[:20])
    return statuses


def test_s18_every_field_may_be_odd_short(walked: Running) -> None:
    statuses = spoil(walked, SIMPLE, ODD)
    assert statuses[200] > 20 and statuses[400] > 80


@pytest.mark.long
def test_s18_every_field_may_be_odd(walked: Running) -> None:
    statuses = spoil(walked, [*SIMPLE, *rich()], [*ODD, *ODDER])
    assert statuses[200] > 500 and statuses[400] > 2000
