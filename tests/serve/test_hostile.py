"""Peers that mean no good: what they send is refused in the one shape of errors, holds nothing afterwards, and slows
nobody else down. With the threats that have no file of their own (S10 to S18, S23, S25, S27, S28)."""

import ast
import gzip
import io
import json
import logging
import math
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file
from serve.conftest import Running
from serve.saved import save, served
from serve.test_chat import audio_part, image_part

import polyphi
from polyphi.chat import CALL, CALL_END
from polyphi.curate import pages, sources
from polyphi.engine.engine import Engine
from polyphi.engine.tools import ToolParser, parse_calls

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI: list[Any] = [{"role": "user", "content": "hi"}]
PACKAGE = Path(polyphi.__file__).parent
JSON = {"content-type": "application/json"}
MB = 1_000_000


def chat(**more: Any) -> bytes:
    return json.dumps({"messages": HI, "max_tokens": 2, **more}).encode()


def raw(field: str, value: str) -> bytes:
    """A request in which one value is written as it is given, JSON or not."""
    return chat(**{field: "?"}).replace(b'"?"', value.encode())


def part(kind: str, data: str) -> bytes:
    content = {
        "image_url": {"type": "image_url", "image_url": {"url": data}},
        "input_audio": {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    }[kind]
    return chat(messages=[{"role": "user", "content": [content]}])


def schema(value: Any) -> bytes:
    return chat(response_format={"type": "json_schema", "json_schema": {"schema": value}})


def regex(value: str) -> bytes:
    return chat(response_format={"type": "regex", "regex": value})


def nested(inner: str, depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + inner + closing * depth


PNG = image_part()["image_url"]["url"]
WAV = audio_part()["input_audio"]["data"]
DEPTH = 100_000
BODIES: dict[str, tuple[str, bytes]] = {
    # JSON that is deep, large, or none
    "a deep list": (CHAT, nested("", DEPTH).encode()),
    "a deep list that never ends": (CHAT, b"[" * MB),
    "deep objects": (CHAT, nested("1", DEPTH, '{"a":', "}").encode()),
    "deep content": (CHAT, raw("messages", nested("", DEPTH))),
    "a deep part": (CHAT, raw("messages", f'[{{"role":"user","content":{nested("", DEPTH)}}}]')),
    "a deep ignored field": (CHAT, raw("metadata", nested("1", DEPTH, '{"a":', "}"))),
    "a deep unknown field": (CHAT, raw("what", nested("", DEPTH))),
    "a deep schema": (CHAT, raw("response_format", nested("1", DEPTH, '{"json_schema":', "}"))),
    "a deep prompt": (COMPLETIONS, f'{{"prompt": {nested("", DEPTH)}}}'.encode()),
    "a deep tool": (
        CHAT,
        raw("tools", f'[{{"type":"function","function":{nested("1", DEPTH, chr(123) + chr(34) + "p" + chr(34) + ":", "}")}}}]'),
    ),
    "a megabyte of digits": (CHAT, raw("seed", "9" * MB)),
    "a megabyte of an exponent": (CHAT, raw("temperature", "1e" + "9" * MB)),
    "a megabyte of backslashes": (CHAT, raw("model", '"' + "\\" * MB + '"')),
    "a megabyte of escapes": (CHAT, raw("model", '"' + "\\u0000" * (MB // 6) + '"')),
    "a hundred thousand fields": (CHAT, json.dumps({f"f{i}": i for i in range(DEPTH)}).encode()),
    "a field of a megabyte": (CHAT, chat(**{"x" * MB: 1})),
    "the same field again and again": (CHAT, b"{" + b'"model":"x",' * 80_000 + b'"model":"x"}'),
    "no end of messages": (CHAT, chat(messages=HI * 30_000)),
    "no end of parts": (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 30_000}]),
    ),
    "no end of pictures": (
        CHAT,
        chat(messages=[{"role": "user", "content": [image_part()] * 300}]),
    ),
    "no end of tools": (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}] * 9999)),
    "no UTF-8": (CHAT, b'{"messages": "\xff\xfe"}'),
    "half a surrogate pair as a model": (CHAT, raw("model", r'"\ud800"')),
    "half a surrogate pair in words": (
        CHAT,
        raw("messages", r'[{"role":"user","content":"a \ud800 b"}]'),
    ),
    "half a surrogate pair as a stop": (CHAT, raw("stop", r'["\ud800"]')),
    "half a surrogate pair as a field": (CHAT, rb'{"\ud800": 1, "messages": []}'),
    "half a surrogate pair in a prompt": (COMPLETIONS, rb'{"prompt": "\ud800", "max_tokens": 1}'),
    "half a surrogate pair to count": ("/tokenize", rb'{"prompt": "\udfff"}'),
    "half a surrogate pair as a tool": (
        CHAT,
        raw("tools", r'[{"type":"function","function":{"name":"\ud800"}}]'),
    ),
    "half a surrogate pair as a schema": (CHAT, schema("?").replace(b'"?"', rb'{"const":"\ud800"}')),
    "half a surrogate pair as an expression": (CHAT, regex("?").replace(b'"?"', rb'"\ud800"')),
    "half a surrogate pair as an address": (CHAT, part("image_url", "?").replace(b'"?"', rb'"\ud800"')),
    "nothing": (CHAT, b""),
    "null": (CHAT, b"null"),
    "a list": (CHAT, b"[1, 2]"),
    # Media that are none
    "a picture of rubbish": (CHAT, part("image_url", "data:image/png;base64," + "QUJD" * 9999)),
    "a picture cut off": (CHAT, part("image_url", PNG[: len(PNG) // 2 // 4 * 4])),
    "a picture that isn't base64": (CHAT, part("image_url", "data:image/png;base64,!!!")),
    "a picture without bytes": (CHAT, part("image_url", "data:image/png;base64,")),
    "a megabyte of commas": (CHAT, part("image_url", "data:" + "," * MB)),
    "a megabyte of parameters": (CHAT, part("image_url", "data:" + ";a=b" * (MB // 4) + ",")),
    "a picture from inside": (CHAT, part("image_url", "http://127.0.0.1/x.png")),
    "a picture from the disk": (CHAT, part("image_url", "file:///etc/passwd")),
    "a clip of rubbish": (CHAT, part("input_audio", "QUJD" * 9999)),
    "a clip cut off": (CHAT, part("input_audio", WAV[:40])),
    "a clip that is a picture": (CHAT, part("input_audio", PNG.split(",")[1])),
    # Values that are none
    **{
        f"{field}: {value}": (CHAT, raw(field, value))
        for field in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty")
        for value in ("NaN", "1e400", "-Infinity")
    },
    "frequency_penalty: NaN": (CHAT, raw("frequency_penalty", "NaN")),
    **{
        f"{field} of twenty digits": (CHAT, raw(field, "9" * 20))
        for field in ("n", "top_logprobs", "seed")
    },
    "max_tokens of twenty digits": (CHAT, raw("max_tokens", "9" * 20)),
    "logprobs of twenty digits": (COMPLETIONS, b'{"prompt": "x", "logprobs": 99999999999999999999}'),
    "top_k below nothing": (CHAT, raw("top_k", "-9" + "9" * 20)),
    "stops without end": (CHAT, chat(stop=["a"] * 100_000)),
    "a stop of a megabyte": (CHAT, chat(stop="a" * MB)),
    "tokens that are none": ("/detokenize", b'{"tokens": [99999999999999999999]}'),
    "a prompt of tokens that are none": (COMPLETIONS, b'{"prompt": [-1], "max_tokens": 1}'),
    "prompts without end": (COMPLETIONS, json.dumps({"prompt": ["x"] * 50_000}).encode()),
    # S14: templates
    "a template": (CHAT, chat(chat_template="{{ cycler.__init__.__globals__.os.popen('id') }}")),
    "a template's values": (CHAT, chat(chat_template_kwargs={"chat_template": "x"})),
    "a template to count by": ("/tokenize", chat(chat_template="x")),
    # S17: schemas and expressions
    "a schema of itself": (CHAT, schema({"$ref": "#"})),
    "a schema from elsewhere": (CHAT, schema({"$ref": "http://127.0.0.1/x"})),
    "a schema from the disk": (CHAT, schema({"$ref": "file:///etc/passwd"})),
    "a schema without a type": (CHAT, schema({"type": "strin"})),
    "a schema with half an expression": (CHAT, schema({"type": "string", "pattern": "("})),
    "a schema of a megabyte": (CHAT, schema({"enum": [f"{i:9}" for i in range(100_000)]})),
    "half an expression": (CHAT, regex("(" * 5000)),
    "an expression that looks back": (CHAT, regex(r"(a+)\1")),
    "an expression of a megabyte": (CHAT, regex("(a|" * (MB // 3))),
    "an expression of a million letters": (CHAT, regex("a{1000000}")),
}
FOLLOWED_OR_REFUSED: dict[str, bytes] = {
    "powers of powers": regex("((a{1,90}){1,90}){1,90}"),
    "the classic": regex("(a+)+(a+)+(a+)+b"),
    "far back": regex(".*[ab].{18}c|.*b.{19}d"),
    "a wide choice": regex("|".join(f"{i:04}" for i in range(1900))),
    "doubling": schema(
        {
            "$defs": {
                f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)
            }
            | {"d30": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    ),
    "all of many": schema({"allOf": [{"minLength": i} for i in range(2000)]}),
    "many of one": schema({"oneOf": [{"type": "object", "required": [f"k{i}"]} for i in range(900)]}),
    "a billion items": schema({"type": "array", "minItems": 10**9, "items": {"type": "null"}}),
    "a billion letters": schema({"type": "string", "minLength": 10**9}),
    "a thousand properties": schema(
        {"properties": {f"k{i}": {"type": "string"} for i in range(1000)}, "required": ["k999"]}
    ),
    "tiny steps": schema({"type": "number", "multipleOf": 1e-300, "minimum": -1e300}),
    "patterns of names": schema({"patternProperties": {"(a+)+$": {"pattern": "(b+)+$"}}}),
}


def refused(answer: httpx2.Response) -> None:
    """It is an error of the client's, in our shape and our words."""
    assert 400 <= answer.status_code < 500, answer.text[:300]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) < 1000 and "\n" not in error["message"]
    for inside in ("Traceback", "0x", ".py", "pydantic", "Error(", "site-packages", "/etc"):
        assert inside not in answer.text, answer.text[:300]


def well(running: Running, client: httpx2.Client) -> None:
    """It answers, and nothing of what came before is held."""
    assert running.idle()
    assert not running.uvicorn.config.app.state.server.admitted
    assert client.get("/health").status_code == 200
    assert client.post(CHAT, content=chat(), headers=JSON).status_code == 200


def test_s14_s18_s19_nonsense_is_refused(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {}
    with running.client() as client:
        for name, (path, body) in BODIES.items():
            try:
                refused(client.post(path, content=body, headers=JSON))
            except (AssertionError, httpx2.HTTPError) as error:
                wrong[name] = f"{type(error).__name__} {error}"[:300]
        well(running, client)
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_s17_grammars_that_grow_are_followed_or_refused(running: Running) -> None:
    wrong = {}
    with running.client() as client:
        for name, body in FOLLOWED_OR_REFUSED.items():
            answer = client.post(CHAT, content=body, headers=JSON)
            try:
                if answer.status_code != 200:
                    refused(answer)
            except AssertionError as error:
                wrong[name] = str(error)
        well(running, client)
    assert not wrong
