"""The Responses API through the official client: the answers are chat's, streamed or not; stored ones can be continued,
read and deleted by their owner only."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, RateLimitError
from pydantic import BaseModel

from polyphi.engine.engine import Engine
from polyphi.serve.admission.settings import Settings
from tests.core.serve.dialects import TOOLS, items_of, responses_request, typed_events, without_ids
from tests.fixtures.chats import BOTH_CALLS, CALLS, Model, image_part
from tests.fixtures.servers import Running, serving, until

KEYS = ("the-first-key", "the-second-key")
FUNCTIONS = responses_request({"messages": [], "tools": TOOLS})["tools"]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings("tiny", keys=KEYS, reasoning=True)


@pytest.fixture
def client(running: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key=KEYS[0], max_retries=0) as client:
        yield client


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with running.client(KEYS[0]) as client:
        yield client


class Town(BaseModel):
    city: str


def test_the_clients_helpers(model: Model, client: OpenAI) -> None:
    model.text = "<think>one</think>two"
    created = client.responses.create(model="tiny", input="hi", temperature=0.1)
    assert created.output_text == "two" and created.status == "completed"
    assert created.output[0].type == "reasoning" and created.output[0].content[0].text == "one"
    with client.responses.stream(model="tiny", input="hi", temperature=0.1) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == "two"
    model.text = CALLS
    tools = [{**function, "strict": True} for function in FUNCTIONS]
    with client.responses.stream(model="tiny", input="hi", tools=tools, temperature=0.1) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
        assert [json.loads(e.arguments) for e in done] == [{"city": "Rome"}, {}]
        assert [call.name for call in stream.get_final_response().output] == ["weather", "now"]
    model.text = '{"city": "Oslo"}'
    parsed = client.responses.parse(model="tiny", input="hi", text_format=Town, temperature=0.1)
    assert parsed.output_parsed == Town(city="Oslo")


def test_a_conversation_by_ids(model: Model, client: OpenAI) -> None:
    """It has the prompt of the whole conversation as input; the official client sends items back too."""
    options: dict[str, Any] = {"model": "tiny", "temperature": 0.1, "tools": FUNCTIONS}
    model.text = f"<think>one</think>So: {CALLS}"
    first = client.responses.create(input="hi", **options)
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "noon"}
        for item in first.output
        if item.type == "function_call"
    ]
    assert len(outputs) == 2
    model.text = "Done."
    second = client.responses.create(input=outputs, previous_response_id=first.id, **options)
    third = client.responses.create(input="and?", previous_response_id=second.id, **options)
    whole: Any = [
        {"role": "user", "content": "hi"},
        *[item.model_dump() for item in first.output],
        *outputs,
        *second.output,
        {"role": "user", "content": "and?"},
    ]
    same = client.responses.create(input=whole, store=False, **options)
    assert same.usage.input_tokens == third.usage.input_tokens > second.usage.input_tokens
    assert third.previous_response_id == second.id and same.store is False
    client.responses.delete(second.id)
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(input="x", previous_response_id=third.id, **options)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_stored_responses(running: Running, client: OpenAI) -> None:
    url = image_part()["image_url"]["url"]
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "hm"}]
    image = {"role": "user", "content": content}
    turns: Any = [{"role": "developer", "content": "be brief"}, image]
    created = client.responses.create(
        model="tiny", input=turns, max_output_tokens=4, metadata={"a": "b"}
    )
    assert created.status == "incomplete"
    assert created.incomplete_details.reason == "max_output_tokens"
    assert client.responses.retrieve(created.id) == created
    assert created.metadata == {"a": "b"}
    listed = client.responses.input_items.list(created.id, order="asc")
    assert [item.role for item in listed] == ["developer", "user"]
    assert listed.data[1].content[0].image_url == url
    page = client.responses.input_items.list(created.id, limit=1)
    assert page.has_more and [item.role for item in page.data] == ["user"]
    assert [item.role for item in page] == ["user", "developer"]  # pages follow by themselves
    for unknown in ("resp_none", created.id + "x"):
        with pytest.raises(NotFoundError):
            client.responses.retrieve(unknown)
    with pytest.raises(BadRequestError):
        client.responses.cancel(created.id)
    with pytest.raises(BadRequestError):
        client.responses.input_items.list(created.id, after="msg_none").data  # noqa: B018
    other = OpenAI(base_url=f"{running.url}/v1", api_key=KEYS[1], max_retries=0)
    for refused in (
        other.responses.retrieve,
        other.responses.delete,
        other.responses.cancel,
        other.responses.input_items.list,
    ):
        with pytest.raises(NotFoundError):
            refused(created.id)
    with pytest.raises(BadRequestError):
        other.responses.create(model="tiny", input="x", previous_response_id=created.id)
    client.responses.delete(created.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(created.id)


def test_log_probabilities_belong_to_the_text(model: Model, http: httpx2.Client) -> None:
    model.text = f"<think>one</think>größer {CALLS} als"
    body = {
        "input": "hi",
        "temperature": 0.1,
        "tools": FUNCTIONS,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    response = http.post("/v1/responses", json=body).json()
    messages = [item for item in response["output"] if item["type"] == "message"]
    assert len(messages) == 2
    for item in messages:
        (part,) = item["content"]
        assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
        written = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode()
        assert part["text"].strip() in written and "one" not in written
    events = typed_events(http.post("/v1/responses", json={**body, "stream": True}).text)
    assert items_of(events) == [without_ids(item) for item in response["output"]]


def test_allowed_tools(model: Model, http: httpx2.Client) -> None:
    model.text = CALLS
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    body = {"input": "hi", "tools": FUNCTIONS, "tool_choice": choice, "temperature": 0.1}
    response = http.post("/v1/responses", json=body).json()
    calls = [
        (i["name"], i["arguments"]) for i in response["output"] if i["type"] == "function_call"
    ]
    assert calls[0] == BOTH_CALLS[0]
    assert {name for name, _ in calls} == {"weather"}
    assert response["tool_choice"] == choice


def test_a_server_without_a_store(engine: Engine) -> None:
    with serving(engine, Settings("tiny", max_stored_bytes=0)) as running, running.client() as http:
        body = {"input": "hi", "max_output_tokens": 2}
        response = http.post("/v1/responses", json=body).json()
        assert response["store"] is False
        assert http.get(f"/v1/responses/{response['id']}").status_code == 404


@pytest.mark.parametrize("text", [f"<think>one</think>So: {CALLS} and", "", "two"])
def test_a_stored_response_is_read_as_a_stream(
    model: Model,
    client: OpenAI,
    text: str,
) -> None:
    model.text = text
    options: dict[str, Any] = {"model": "tiny", "input": "hi", "tools": FUNCTIONS}
    response = client.responses.create(temperature=0.1, **options)
    events = list(client.responses.retrieve(response.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[0].response.output == []
    assert events[-1].type == "response.completed" and events[-1].response == response
    dumped = [event.model_dump(exclude_unset=True) for event in events[2:-1]]
    assert items_of(dumped) == [
        without_ids(item.model_dump(exclude_unset=True)) for item in response.output
    ]
    with pytest.raises(BadRequestError, match="starting_after"):
        client.responses.retrieve(response.id, stream=True, starting_after=3)


def test_what_a_stored_response_takes_as_a_stream_counts(
    fresh: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a response that its client hasn't read: beside others that fill its share, it is refused."""
    client = OpenAI(base_url=f"{fresh.url}/v1", api_key=KEYS[0], max_retries=0)
    pool = fresh.server.quotas.bytes
    owners, take = set(), pool.take
    monkeypatch.setattr(pool, "take", lambda owner, n: owners.add(owner) or take(owner, n))
    response = client.responses.create(model="tiny", input="hi", max_output_tokens=4)
    assert list(client.responses.retrieve(response.id, stream=True))
    until(lambda: not pool.used)
    (owner,) = owners
    pool.always = 0
    others = take(owner, pool.total * 3 // 4)
    with pytest.raises(RateLimitError) as caught:
        client.responses.retrieve(response.id, stream=True)
    assert caught.value.code == "unread_responses"
    others.release()
    assert list(client.responses.retrieve(response.id, stream=True))
