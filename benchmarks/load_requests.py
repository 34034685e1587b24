"""The requests of load.py: what each sends, and which answers to it are right.

>>> request = plan("messages stream", pool)
>>> end, message = judge(request, status, body)            # "whole", ""

`TASKS` lists them with their shares. One in ten is broken: media that are cut off or of another type, invalid JSON, an
unknown field, an unknown response.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from load_pool import BROKEN, Pool, broken_bytes

CONVERSATIONS, TURNS = 20, 3
"""Most conversations that a client stores, and most responses of one."""
FAILED = ("stopping", "out_of_memory", "not enough memory")
"""What the last event of a stream may name as its error."""
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 8},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}
FUNCTION = {"name": "paint", "description": "Paint the boats.", "parameters": SCHEMA}

Examine = Callable[[dict[str, Any]], str]
"""Says what is wrong with a whole answer; "" if nothing is."""


@dataclass
class Planned:
    """A request: its method and path, the client's options, whether its answer is streamed, and whether it must be
    refused (`broken`). `examine` receives the JSON of a whole answer; of a stream of events, that of the last one."""

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    broken: bool = False
    method: str = "POST"
    examine: Examine = lambda answer: ""


def posted(pool: Pool, path: str, body: dict[str, Any], examine: Examine) -> Planned:
    """A request with a JSON body, one in ten of which is broken."""
    rng, stream = pool.rng, bool(body.get("stream"))
    if rng.random() >= BROKEN:
        return Planned(path, {"json": body}, stream, examine=examine)
    text = json.dumps(body)
    at = rng.randrange(1, len(text))
    wrong = rng.choice([text[:at], text + "}", json.dumps(body | {"temprature": 1}), "[" * at])
    headers = {"content-type": "application/json"}
    return Planned(path, {"content": wrong.encode(), "headers": headers}, stream, True)


def one_media(pool: Pool, files: Sequence[bytes]) -> tuple[str, bool]:
    """(a file as base64, whether it is broken)."""
    data, broken = pool.rng.choice(files), pool.rng.random() < BROKEN
    data = broken_bytes(data, pool.rng) if broken else data
    return base64.b64encode(data).decode(), broken


def with_media(
    pool: Pool, path: str, body: dict[str, Any], broken: bool, check: Examine
) -> Planned:
    return Planned(path, {"json": body}, bool(body.get("stream")), broken, examine=check)


def parses(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- OpenAI's routes


def chat(pool: Pool, media: Sequence[str] = (), stream: bool = False, **fields: Any) -> Planned:
    """`media`: types of parts before and after the text, of which one may be broken."""
    content: list[dict[str, Any]] = [{"type": "text", "text": pool.text()}]
    broken = False
    for media_type in media:
        files = {"image_url": pool.images, "input_audio": pool.audio}
        files |= {"audio_url": pool.recordings, "video_url": pool.videos}
        data, bad = one_media(pool, files[media_type])
        broken |= bad
        url: dict[str, Any] = {"url": f"data:application/octet-stream;base64,{data}"}
        if media_type == "input_audio":
            url = {"data": data, "format": "wav"}
        elif media_type == "video_url":
            url |= {"frames": pool.rng.randint(1, 4), "detail": "low"}
        content.insert(pool.rng.randint(0, 1), {"type": media_type, media_type: url})
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": pool.tokens(),
        "temperature": pool.rng.choice([0.0, 0.8]),
        "stream": stream,
        **fields,
    }

    def examine(answer: dict[str, Any]) -> str:
        if stream:
            return ""
        choices = answer["choices"]
        if len(choices) != body.get("n", 1):
            return f"{len(choices)} choices"
        for choice in choices:
            message, reason = choice["message"], choice["finish_reason"]
            if reason in ("tool_calls", "function_call"):
                calls = [call["function"] for call in message.get("tool_calls", ())]
                calls = calls or [message["function_call"]]
                if not all(parses(call["arguments"]) for call in calls):
                    return f"calls that are no JSON: {calls}"
            elif "response_format" in body and reason == "stop" and not parses(message["content"]):
                return f"an answer that is no JSON: {message['content']}"
        return ""

    path = "/v1/chat/completions"
    if media:
        return with_media(pool, path, body, broken, examine)
    return posted(pool, path, body, examine)


def chat_with_tools(pool: Pool) -> Planned:
    named = {"type": "function", "function": {"name": FUNCTION["name"]}}
    tools = [{"type": "function", "function": FUNCTION}]
    stream = pool.rng.random() < 0.5
    if pool.rng.random() < 0.25:
        choice = pool.rng.choice(["auto", named["function"]])
        return chat(pool, functions=[FUNCTION], function_call=choice, stream=stream)
    choice = pool.rng.choice(["auto", "required", named])
    return chat(pool, tools=tools, tool_choice=choice, stream=stream)


def chat_with_format(pool: Pool) -> Planned:
    schema = {"type": "json_schema", "json_schema": {"name": "boats", "schema": SCHEMA}}
    return chat(pool, response_format=pool.rng.choice([schema, {"type": "json_object"}]))


def chat_with_budget(pool: Pool) -> Planned:
    options = ({"thinking_token_budget": pool.rng.randint(0, 20)}, {"reasoning_effort": "none"})
    return chat(pool, stream=pool.rng.random() < 0.5, **pool.rng.choice(options))


def completion(pool: Pool, echo: bool = False) -> Planned:
    body = {"prompt": pool.text(), "max_tokens": pool.rng.randint(4, 48), "logprobs": 1}
    body |= {"echo": True, "max_tokens": 0} if echo else {}
    return posted(pool, "/v1/completions", body, lambda answer: "")


def embedding(pool: Pool) -> Planned:
    texts = [pool.text() for _ in range(pool.rng.randint(1, 4))]
    encoding = pool.rng.choice(["float", "base64"])

    def examine(answer: dict[str, Any]) -> str:
        entries = answer["data"]
        numbers = [entry["index"] for entry in entries]
        if numbers != list(range(len(texts))):
            return f"vectors {numbers}"
        if encoding == "float":
            lengths = [sum(value**2 for value in entry["embedding"]) for entry in entries]
            return "" if all(0.999 < length < 1.001 for length in lengths) else f"lengths {lengths}"
        return ""

    body = {"input": texts, "encoding_format": encoding}
    return posted(pool, "/v1/embeddings", body, examine)


def tokenize(pool: Pool) -> Planned:
    return posted(pool, "/tokenize", {"prompt": pool.text()}, lambda answer: "")


def transcription(pool: Pool, stream: bool = False, containers: bool = False) -> Planned:
    file = pool.rng.choice(pool.recordings if containers else pool.audio)
    broken = pool.rng.random() < BROKEN
    file = broken_bytes(file, pool.rng) if broken else file
    data = {"response_format": "json" if stream else pool.rng.choice(["json", "text", "srt"])}
    data |= {"stream": "true"} if stream else {}
    options = {"files": {"file": ("clip", file)}, "data": data}
    return Planned("/v1/audio/transcriptions", options, stream, broken)


def container(pool: Pool) -> Planned:
    if pool.rng.random() < 0.5:
        return chat(pool, ["audio_url"])
    return transcription(pool, containers=True)


# ---------------------------------------------------------------- the Responses API

RESPONSES = "/v1/responses"


def respond(pool: Pool, media: bool = False, stream: bool = False, **fields: Any) -> Planned:
    content: list[dict[str, Any]] = [
        {"type": "input_text", "text": pool.text(short="store" in fields)}
    ]
    broken = False
    if media:
        data, broken = one_media(pool, pool.images)
        content.append({"type": "input_image", "image_url": f"data:;base64,{data}"})
    body = {
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": pool.tokens(),
        "store": False,
        "stream": stream,
        **pool.rng.choice([{}, {"reasoning": {"effort": "none"}}, {"thinking_token_budget": 9}]),
        **fields,
    }

    def examine(answer: dict[str, Any]) -> str:
        response = answer["response"] if stream else answer
        if response["status"] not in ("completed", "incomplete"):
            return f"status {response['status']}"
        for item in response["output"]:
            if item["type"] == "function_call" and item["status"] == "completed":
                if not parses(item["arguments"]):
                    return f"a call that is no JSON: {item['arguments']}"
            elif "text" in body and response["status"] == "completed":
                text = item["content"][0]["text"]
                return "" if parses(text) else f"an answer that is no JSON: {text}"
        return ""

    if media:
        return with_media(pool, RESPONSES, body, broken, examine)
    return posted(pool, RESPONSES, body, examine)


def respond_with_options(pool: Pool) -> Planned:
    """With a function to call, or as JSON."""
    if pool.rng.random() < 0.5:
        text = {"format": {"type": "json_schema", "name": "boats", "schema": SCHEMA}}
        return respond(pool, text=text)
    choice = pool.rng.choice(["auto", "required"])
    return respond(pool, tools=[{"type": "function", **FUNCTION}], tool_choice=choice)


def respond_stored(pool: Pool, resumed: bool = False) -> Planned:
    """Begins a conversation, or with `resumed` continues one."""
    open_ = [ids for ids in pool.conversations if len(ids) < TURNS]
    if not resumed and len(pool.conversations) >= CONVERSATIONS:
        return delete(pool)
    conversation = pool.rng.choice(open_) if resumed and open_ else []
    fields: dict[str, Any] = {"store": True, "stream": pool.rng.random() < 0.5}
    if conversation:
        fields["previous_response_id"] = conversation[-1]
    request = respond(pool, media=not conversation and pool.rng.random() < 0.3, **fields)
    check = request.examine

    def examine(answer: dict[str, Any]) -> str:
        response = answer["response"] if request.stream else answer
        if not response["store"]:
            return "the response wasn't stored"
        if not conversation:
            pool.conversations.append(conversation)
        conversation.append(response["id"])
        return check(answer)

    request.examine = examine
    return request


def read(pool: Pool) -> Planned:
    """Reads a stored response, also as a stream, or its items; or one that doesn't exist."""
    ending = pool.rng.choice(["", "/input_items", "?stream=true"])
    if not pool.conversations or pool.rng.random() < BROKEN:
        return Planned(f"{RESPONSES}/resp_none{ending}", method="GET", broken=True)
    id = pool.rng.choice(pool.rng.choice(pool.conversations))
    return Planned(f"{RESPONSES}/{id}{ending}", stream="stream" in ending, method="GET")


def delete(pool: Pool) -> Planned:
    """Deletes the last response of the oldest conversation, so that no other one misses it."""
    if not pool.conversations:
        return Planned(f"{RESPONSES}/resp_none", method="DELETE", broken=True)
    id = pool.conversations[0].pop()
    if not pool.conversations[0]:
        del pool.conversations[0]

    def examine(answer: dict[str, Any]) -> str:
        return "" if answer["deleted"] is True and answer["id"] == id else str(answer)

    return Planned(f"{RESPONSES}/{id}", method="DELETE", examine=examine)


# ---------------------------------------------------------------- Anthropic's Messages API


def message(pool: Pool, media: bool = False, stream: bool = False, **fields: Any) -> Planned:
    content: list[dict[str, Any]] = [{"type": "text", "text": pool.text()}]
    broken = False
    if media:
        data, broken = one_media(pool, pool.images)
        content.insert(0, {"type": "image", "source": {"type": "base64", "data": data}})
    body = {
        "system": "Be brief.",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": pool.tokens(),
        "stream": stream,
        **fields,
    }

    def examine(answer: dict[str, Any]) -> str:
        if stream:
            return ""
        if answer["stop_reason"] not in ("end_turn", "max_tokens", "tool_use"):
            return f"stop_reason {answer['stop_reason']}"
        if "output_config" in body and answer["stop_reason"] == "end_turn":
            text = answer["content"][0]["text"]
            return "" if parses(text) else f"an answer that is no JSON: {text}"
        return ""

    if media:
        return with_media(pool, "/v1/messages", body, broken, examine)
    return posted(pool, "/v1/messages", body, examine)


def message_with_options(pool: Pool) -> Planned:
    """With a tool to use, as JSON, or with a budget for reasoning."""
    tool = {"name": FUNCTION["name"], "input_schema": SCHEMA}
    choice = pool.rng.choice([{"type": "any"}, {"type": "auto"}])
    forms: list[dict[str, Any]] = [
        {"tools": [tool], "tool_choice": choice, "stream": pool.rng.random() < 0.5},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"thinking": {"type": "enabled", "budget_tokens": pool.rng.randint(0, 20)}},
        {"thinking": {"type": "disabled"}},
    ]
    return message(pool, **pool.rng.choice(forms))


def count(pool: Pool) -> Planned:
    body = {"messages": [{"role": "user", "content": pool.text()}]}
    path = "/v1/messages/count_tokens"
    if pool.rng.random() < 0.5:
        body, path = {"input": pool.text()}, f"{RESPONSES}/input_tokens"

    def examine(answer: dict[str, Any]) -> str:
        return "" if answer["input_tokens"] > 0 else str(answer)

    return posted(pool, path, body, examine)


# ---------------------------------------------------------------- all of them

LIVE = ("live", "live turns")
"""Sessions over a WebSocket (load_live.py)."""
STORING = ("responses stored", "responses resumed", "responses delete")
"""Tasks after which a response may be stored without its client knowing, if it disconnects."""
CONTAINERS = ("container", "video")
TASKS: dict[str, tuple[int, Callable[[Pool], Planned]]] = {
    "chat": (5, chat),
    "chat stream": (5, partial(chat, stream=True)),
    "image": (3, partial(chat, media=["image_url"])),
    "audio": (3, partial(chat, media=["input_audio"])),
    "image and audio": (2, partial(chat, media=["image_url", "input_audio"])),
    "image stream": (2, partial(chat, media=["image_url"], stream=True)),
    "audio stream": (2, partial(chat, media=["input_audio"], stream=True)),
    "tools": (2, chat_with_tools),
    "structured": (2, chat_with_format),
    "reasoning budget": (1, chat_with_budget),
    "several answers": (1, lambda pool: chat(pool, n=pool.rng.randint(2, 4), temperature=0.8)),
    "completion": (2, completion),
    "embedding": (2, embedding),
    "echo": (2, partial(completion, echo=True)),
    "transcription": (2, transcription),
    "transcription stream": (1, partial(transcription, stream=True)),
    "tokenize": (2, tokenize),
    "container": (2, container),
    "video": (1, partial(chat, media=["video_url"])),
    "responses": (1, respond),
    "responses stream": (2, partial(respond, stream=True)),
    "responses image": (1, partial(respond, media=True)),
    "responses options": (1, respond_with_options),
    "responses stored": (3, respond_stored),
    "responses resumed": (3, partial(respond_stored, resumed=True)),
    "responses read": (1, read),
    "responses delete": (3, delete),
    "messages": (2, message),
    "messages stream": (2, partial(message, stream=True)),
    "messages image": (1, partial(message, media=True)),
    "messages options": (1, message_with_options),
    "count": (1, count),
}
SHARES = {name: share for name, (share, _) in TASKS.items()} | {"live": 2, "live turns": 1}


def plan(task: str, pool: Pool) -> Planned:
    return TASKS[task][1](pool)


# ---------------------------------------------------------------- answers


def judge(request: Planned, status: int, body: bytes) -> tuple[str, str]:
    """How a request ended, and a message if that is wrong."""
    text = body.decode(errors="replace")
    if status != 200:
        return _refused(request, status, text)
    if request.broken:
        return "wrong", f"a broken request was answered: {text[:200]}"
    if request.stream:
        return _judge_stream(request, text)
    if not text.strip() and not request.path.startswith("/v1/audio"):
        return "lost", "empty"
    fault = request.examine(json.loads(text)) if text.startswith("{") else ""
    return ("wrong", fault[:200]) if fault else ("whole", "")


def _refused(request: Planned, status: int, text: str) -> tuple[str, str]:
    answer = json.loads(text) if text.startswith("{") else {}
    outer = {"type", "error"} if request.path.startswith("/v1/messages") else {"error"}
    error = answer.get("error", {})
    if set(answer) != outer or set(error) != {"message", "type", "param", "code"}:
        return "wrong", f"{status} without our shape: {text[:200]}"
    expected = 400 <= status < 500 if request.broken else status in (429, 503)
    return ("refused", "") if expected else ("wrong", f"{status}: {error['message'][:200]}")


def _judge_stream(request: Planned, text: str) -> tuple[str, str]:
    *_, last = [event for event in text.split("\n\n") if event]
    data = last.rpartition("data: ")[2]
    if data == "[DONE]":
        return "whole", ""
    answer = json.loads(data) if parses(data) else {}
    if answer.get("type") in ("transcript.text.done", "message_stop"):
        return "whole", ""
    if answer.get("type") in ("response.completed", "response.incomplete"):
        fault = request.examine(answer)
        return ("wrong", fault[:200]) if fault else ("whole", "")
    if "error" in answer or answer.get("type") == "response.failed":
        expected = any(phrase in data for phrase in FAILED)
        return ("refused", "") if expected else ("wrong", data[:200])
    return "lost", f"a stream that ends with {last[:100]}"
