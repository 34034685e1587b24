"""What is wrong in a request is named by its field, in each API's form of an error, before the first event of a stream.
Threats S14 and S18 are in test_hostile.py."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from tests.core.serve.dialects import DIALECTS, HI, TOOLS, Json, messages_request, responses_request
from tests.fixtures.items import add_motion, csv
from tests.fixtures.servers import Running, serving

FUNCTIONS = responses_request({"messages": [], "tools": TOOLS})["tools"]
BLOCK_TOOLS = messages_request({"messages": [], "tools": TOOLS})["tools"]
FILES = base64.b64encode(b"the lazy dog\n").decode()


@pytest.fixture(scope="module")
def shared_engine(shared_engine: Engine) -> Engine:
    add_motion(shared_engine.model, shared_engine.processor)
    return shared_engine


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.client() as client:
        yield client


def nested(depth: int) -> Json:
    value: Json = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def content(*parts: Json) -> Json:
    """The messages of a chat or the Messages API."""
    return {"messages": [{"role": "user", "content": list(parts)}]}


def item(part: Json) -> Json:
    return {"input": [{"role": "user", "content": [part]}]}


def file(**fields: Any) -> Json:
    return content({"type": "file", "file": fields})


def input_file(**fields: Any) -> Json:
    return item({"type": "input_file", **fields})


def document(source: Json, **fields: Any) -> Json:
    return content({"type": "document", "source": source, **fields})


def image(source: Json) -> Json:
    return content({"type": "image", "source": source})


def motion(data: str = base64.b64encode(csv()).decode(), name: str = "motion", **more: Any) -> Json:
    return content({"type": name, name: {"data": data, **more}})


def called(arguments: str) -> Json:
    return {"input": [{"type": "function_call", "name": "f", "arguments": arguments}]}


def calls(arguments: str) -> Json:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}


def tools(*names: str, **fields: Any) -> Json:
    return {"tools": [{"type": "function", "function": {"name": n, **fields}} for n in names]}


def functions(parameters: Any) -> Json:
    return {"tools": [{"type": "function", "name": "f", "parameters": parameters}]}


def form(schema: Any) -> Json:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", **schema}}}


def allowed(name: str) -> Json:
    choice = {"type": "function", "name": name}
    return {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [choice]}}


FIRST, INPUT = "messages[0].content[0]", "input[0].content[0]"
SCHEMA = {"enum": ["yes", "no"]}
CHAT_OR_TEXT = "chat completions"
ERRORS: list[tuple[str, Json, str]] = [
    # Sampling
    ("chat completions responses messages", {"temperature": -1}, "temperature"),
    ("chat completions responses messages", {"temperature": 1000}, "temperature"),
    ("chat", {"temperature": "hot"}, "temperature"),
    ("chat completions", {"n": 1000}, "n"),
    ("responses", {"n": 2}, "n"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("completions", {"max_tokens": 0}, "max_tokens"),
    ("messages", {"max_tokens": None}, "max_tokens"),
    ("responses", {"max_tokens": 5}, "max_tokens"),
    ("chat messages", {"max_tokens": 10**6}, "messages"),
    ("responses", {"max_output_tokens": 10**6}, "input"),
    ("chat", {"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
    ("chat", {"stop": [""]}, "stop"),
    ("messages", {"stop_sequences": [""]}, "stop_sequences"),
    ("chat", {"stop_token_ids": [-1]}, "stop_token_ids"),
    ("chat", {"logit_bias": {"1": 101}}, "logit_bias"),
    ("chat", {"logit_bias": {"one": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {"05": 1}}, "logit_bias"),
    ("chat", {"logit_bias": {str(10**8): 1}}, "logit_bias"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"top_logprobs": 0, "logprobs": False}, "top_logprobs"),
    ("completions", {"logprobs": 100}, "logprobs"),
    ("chat", {"prompt_logprobs": -1}, "prompt_logprobs"),
    ("chat", {"reasoning_effort": "much"}, "reasoning_effort"),
    ("chat", {"repeat_penalty": "much"}, "repetition_penalty"),
    ("chat completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    # Unknown fields, and those of options that the server doesn't have
    ("chat", {"temprature": 1}, "temprature"),
    ("chat", {"chat_template": "x"}, "chat_template"),
    ("chat", {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ("chat", {"use_beam_search": True}, "use_beam_search"),
    ("chat", {"logprob_token_ids": [5]}, "logprob_token_ids"),
    ("chat", {"structural_tag": "{}"}, "structural_tag"),
    ("completions", {"suffix": "x"}, "suffix"),
    ("responses", {"background": True}, "background"),
    ("responses", {"conversation": "conv_1"}, "conversation"),
    ("responses", {"truncation": "auto"}, "truncation"),
    ("responses", {"previous_response_id": "resp_none"}, "previous_response_id"),
    ("responses", {"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ("messages", {"mcp_servers": []}, "mcp_servers"),
    ("messages", {"thread": {"type": "create"}}, "thread"),
    # Messages
    ("chat messages", {"messages": []}, "messages"),
    ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("chat", {"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
    ("messages", {"messages": [{"role": "tool", "content": "I"}]}, "messages[0].role"),
    ("chat", {"continue_final_message": True}, "continue_final_message"),
    ("chat", calls("[" * 5000), "messages[0].tool_calls"),
    ("responses", called("x"), "input[0].arguments"),
    ("responses", called("[" * 5000), "input[0].arguments"),
    ("responses", {"input": []}, "input"),
    ("responses", {"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ("completions", {"prompt": [10**9]}, "prompt"),
    ("completions", {"prompt": [[]] * 1000}, "prompt"),
    ("completions", {"prompt": "a " * 5000}, "prompt"),
    # Parts
    ("chat", content({"type": "image_url", "image_url": {}}), f"{FIRST}.image_url.url"),
    ("chat", content({"type": "video_url"}), f"{FIRST}.video_url"),
    ("responses", item({"type": "input_image", "file_id": "f"}), f"{INPUT}.image_url"),
    ("responses", item({"type": "input_image", "image_url": "x"}), f"{INPUT}.image_url"),
    ("messages", content({"type": "folder"}), FIRST),
    ("messages", content({"type": "tool_use", "id": "a", "name": "f", "input": {}}), FIRST),
    ("messages", image({"type": "file"}), f"{FIRST}.source"),
    ("messages", image({"type": "base64", "data": "?"}), f"{FIRST}.source.data"),
    ("chat", file(file_id="file-1"), f"{FIRST}.file.file_id"),
    ("chat", file(filename="a"), f"{FIRST}.file.file_data"),
    ("chat", file(file_data="http://example.org/a.pdf"), f"{FIRST}.file.file_data"),
    ("chat", file(file_data="data:x"), f"{FIRST}.file.file_data"),
    ("responses", input_file(file_id="file-1"), f"{INPUT}.file_id"),
    ("responses", input_file(), INPUT),
    ("responses", input_file(file_data=FILES, file_url="http://example.org/a"), INPUT),
    ("responses", input_file(file_url="http://example.org/a.pdf"), f"{INPUT}.file_url"),
    ("responses", input_file(file_url="file:///etc/passwd"), f"{INPUT}.file_url"),
    ("messages", document({"type": "file", "file_id": "file_1"}), f"{FIRST}.source"),
    ("messages", document({"type": "url", "url": "http://a.org/a"}), f"{FIRST}.source.url"),
    ("messages", document({"type": "folder"}), f"{FIRST}.source"),
    ("chat", motion("?"), f"{FIRST}.motion.data"),
    ("chat", motion(base64.b64encode(b"hello").decode()), f"{FIRST}.motion.data"),
    ("chat", motion(base64.b64encode(csv(40_000)).decode()), "messages"),
    ("chat", motion(name="moton"), "messages"),
    ("chat", motion(x=1), f"{FIRST}.item.x"),
    ("chat", content({"type": "motion", "motion": {"dat": "a"}}), FIRST),
    ("chat", content({"type": "motion"}), FIRST),
    # Tools
    ("chat", tools("f", "g", "f"), "tools"),
    ("chat", {"tools": [{"type": "function", "function": {}}]}, "tools"),
    ("chat", {**tools("f", parameters=[1]), "tool_choice": "required"}, "tools"),
    ("responses", {"tools": FUNCTIONS * 2}, "tools"),
    ("responses", {"tools": [{"type": "web_search", "filters": {}}]}, "tools[0]"),
    ("responses", {"tools": [{"type": "namespace"}]}, "tools[0]"),
    ("responses", {"tools": [{"type": "mcp"}]}, "tools[0]"),
    ("responses", functions(nested(70)), "tools[0].parameters"),
    ("responses", functions(nested(900)), "tools[0].parameters"),
    ("responses", {"tool_choice": "required"}, "tools"),
    ("responses", {"tool_choice": {"type": "web_search"}}, "tool_choice"),
    (
        "responses",
        {"tools": FUNCTIONS, "tool_choice": {"type": "function", "name": "x"}},
        "tool_choice.name",
    ),
    ("responses", {"tools": FUNCTIONS, **allowed("x")}, "tool_choice.tools"),
    ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ("messages", {"tools": [{"name": "f", "input_schema": nested(900)}]}, "tools[0].input_schema"),
    ("messages", {"tool_choice": {"type": "any"}}, "tools"),
    (
        "messages",
        {"tools": BLOCK_TOOLS, "tool_choice": {"type": "tool", "name": "x"}},
        "tool_choice.name",
    ),
    # Forms of the answer
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ("chat", {**tools("f"), **form({"schema": {"type": "strin"}})}, "response_format"),
    ("chat", form({"schema": {"enum": []}}), "response_format"),
    ("responses", {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    (
        "messages",
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "strin"}}}},
        "output_config.format",
    ),
    (CHAT_OR_TEXT, {"guided_regex": "("}, "guided_regex"),
    (CHAT_OR_TEXT, {"ebnf": 'root ::= "a" other'}, "ebnf"),
    (CHAT_OR_TEXT, {"guided_json": "{"}, "guided_json"),
    (CHAT_OR_TEXT, {"guided_json": SCHEMA, "regex": "a"}, "regex"),
    ("chat", {"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar"),
    (
        "chat",
        {"structured_outputs": {"structural_tag": "{}"}},
        "structured_outputs.structural_tag",
    ),
    ("chat", {"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ("chat", {"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ("chat", {"response_format": {"type": "grammar"}}, "response_format.grammar"),
    (
        "chat",
        {"response_format": {"type": "json_object"}, "guided_json": SCHEMA},
        "guided_json",
    ),
]
"""The dialects in which fields are sent, the fields, and the one that is named."""
NEEDED: dict[str, Json] = {
    "chat": {"messages": HI, "max_tokens": 4},
    "completions": {"prompt": "hi", "max_tokens": 4},
    "responses": {"input": "hi", "max_output_tokens": 4},
    "messages": {"messages": HI, "max_tokens": 4},
}


@pytest.mark.parametrize("name", DIALECTS)
def test_what_is_wrong_is_named_by_its_field(running: Running, http: Any, name: str) -> None:
    path = DIALECTS[name].path
    for dialects, fields, param in ERRORS:
        if name not in dialects.split():
            continue
        body = {**NEEDED[name], **fields}
        for stream in (False, True) if param != "stream_options" else (False,):
            reply = http.post(path, json={**body, "stream": stream})
            error = reply.json()["error"]
            assert (reply.status_code, error["param"]) == (400, param), (fields, error)
            assert error["type"] == "invalid_request_error" and "\n" not in error["message"]
            assert (reply.json().get("type") == "error") == (name == "messages")
    assert running.idle()


CITED = document({"type": "base64", "data": FILES}, citations={"enabled": True})
OTHERS: list[tuple[str, Json, int, str | None]] = [
    ("/v1/embeddings", {"input": []}, 400, "input"),
    ("/v1/embeddings", {"input": "a", "dimensions": 10**6}, 400, "dimensions"),
    ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
    ("/v1/embeddings", {"input": "fox " * 100_000}, 400, "input"),
    ("/v1/embeddings", {"input": [10**9]}, 400, "input"),
    ("/v1/embeddings", {"input": {"text": "a"}}, 400, "input"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
    ("/v1/embeddings", {"messages": []}, 400, "messages"),
    ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 5}, 400, "truncate_prompt_tokens"),
    ("/v1/embeddings", {"input": "a", "model": "mini"}, 404, "model"),
    ("/v1/chat/completions", {}, 400, "messages"),
    ("/v1/chat/completions", {"messages": HI, "model": "mini"}, 404, "model"),
    ("/v1/messages", CITED, 400, f"{FIRST}.citations.enabled"),
    # Text that is called something else
    ("/v1/chat/completions", file(file_data=FILES, filename="bad.png"), 415, None),
    ("/v1/chat/completions", file(file_data=f"data:audio/mpeg;base64,{FILES}"), 415, None),
    ("/v1/responses", input_file(file_data=FILES, filename="x.zip"), 415, None),
    ("/v1/messages", document({"type": "base64", "data": FILES}, title="bad.png"), 415, None),
    ("/v1/responses", input_file(file_data=f"data:image/png;base64,{FILES}"), 415, None),
]


def test_errors_of_other_routes_and_statuses(http: httpx2.Client) -> None:
    for path, body, status, param in OTHERS:
        limit = {"max_tokens": 4} if path == "/v1/messages" else {}
        reply = http.post(path, json={**limit, **body})
        error = reply.json()["error"]
        assert reply.status_code == status, (path, body, error)
        assert param is None or error["param"] == param, (path, body, error)


def test_errors_of_the_messages_api_have_anthropics_types(engine: Engine) -> None:
    path, key = "/v1/messages", "the-only-key"
    with serving(engine, Settings("tiny", keys=(key,))) as server:
        with server.client() as stranger:
            for route in (path, f"{path}/count_tokens"):
                reply = stranger.post(route, json={})
                assert reply.status_code == 401
                assert reply.json()["error"]["type"] == "authentication_error"
        with server.client() as http:
            http.headers |= {"x-api-key": key, "anthropic-version": "2023-06-01"}
            reply = http.post(path, json={"model": "x", "messages": HI, "max_tokens": 4})
            assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")
            reply = http.post(path, content=b"{}", headers={"content-type": "text/plain"})
            assert (reply.status_code, reply.json()["type"]) == (415, "error")
            assert http.get(f"{path}/none").json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("POST", "/v1/audio/speech", "no speech synthesis"),
        ("GET", "/v1/files/file-1/content", "stores no files"),
        ("GET", "/v1/chat/completions", "aren't stored"),
        ("GET", "/v1/chat/completions/chatcmpl-1", "aren't stored"),
        ("POST", "/v1/chat/completions/batch", "no batches"),
        ("POST", "/v1/messages/batches", "no batches"),
        ("POST", "/api/chat", "not Ollama's"),
        ("POST", "/chat/completions", "expected /v1/chat/completions"),
        ("POST", "/v1/v1/messages", "expected /v1/messages"),
        ("GET", "/nothing", "there is no route at this address"),
        ("GET", "/v1/embeddings", "doesn't accept GET"),
    ],
)
def test_a_route_that_is_not_served_says_why(
    http: httpx2.Client, method: str, path: str, reason: str
) -> None:
    reply = http.request(method, path, json={} if method == "POST" else None)
    error = reply.json()["error"]
    assert reply.status_code in (404, 405) and reason in error["message"]
    assert error["code"] in ("not_found", "method_not_allowed")
