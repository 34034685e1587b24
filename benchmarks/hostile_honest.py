"""Honest clients whose answers are compared with those that they got alone (hostile_together.py).

>>> requests = await honest_requests(client)              # answered alone
>>> outcome = await sent(client, requests[0])             # while others attack: "right", "wrong" or "lost"

A refusal is honest: HTTP 429 or 503 with Retry-After and an error of the API's form. It is followed by another try, and
counts as lost only if none succeeds within `PATIENCE`. An answer is right if it is the one that was given alone.
Rounding depends on the batch, so a generated token may also be one that was nearly as likely (`MARGIN`), and after it
the answers may differ. A structured output has to fit its schema.
"""

import asyncio
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import jsonschema
import numpy as np
import soundfile
from hostile_beside import about
from hostile_media import RATE
from hostile_peers import CHAT, TRANSCRIPTIONS
from load_pool import WORDS, voice
from load_requests import SCHEMA
from PIL import Image

PATIENCE, LONGEST_WAIT = 300.0, 10.0
"""Seconds until a request that is refused again and again counts as lost, and between two tries at most."""
MARGIN = 0.3
"""Largest difference of two tokens' log-probabilities that rounding explains (docs/numbers.md, batch invariance)."""
CHATS, STRUCTURED, IMAGES, TRANSCRIPTS = 8, 2, 3, 2

Generated = list[tuple[str, dict[str, float]]]
"""The tokens of an answer, each with the log-probabilities of the likeliest ones."""


@dataclass
class Honest:
    """A request; `fault` says what is wrong with an answer to it, given the one alone ("": nothing)."""

    task: str
    options: dict[str, Any]
    fault: Callable[[Any, Any], str]
    alone: Any = None


@dataclass
class Sent:
    """How a request ended: right, wrong, lost, or stopped (refused by a server that is stopping)."""

    task: str
    end: str
    seconds: float
    refusals: Counter[str] = field(default_factory=Counter)
    """By their error's code."""
    message: str = ""


def with_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    return {"url": CHAT, "json": {**body, "logprobs": True, "top_logprobs": 5}}


def material() -> list[Honest]:
    """Chats, structured outputs, images and recordings, in turn."""
    rng, pixels = random.Random(0), np.random.default_rng(0)
    result = []
    for _ in range(CHATS):
        content = " ".join(rng.choices(WORDS, k=rng.randint(3, 30)))
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "max_tokens": rng.randint(8, 48)}
        result.append(Honest("chat", with_logprobs(body), other_tokens))
    form = {"type": "json_schema", "json_schema": {"name": "boats", "schema": SCHEMA}}
    for _ in range(STRUCTURED):
        messages = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=6))}]
        body = {"messages": messages, "max_tokens": 200, "response_format": form}
        result.append(Honest("structured", {"url": CHAT, "json": body}, other_schema))
    for _ in range(IMAGES):
        file = io.BytesIO()
        small = pixels.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((rng.randint(60, 400), 200)).save(file, "PNG")
        result.append(Honest("image", with_logprobs(about(file.getvalue())), other_tokens))
    for _ in range(TRANSCRIPTS):
        file = io.BytesIO()
        wave = voice(rng.uniform(1, 3), rng.uniform(90, 250), RATE)
        soundfile.write(file, wave, RATE, format="WAV")
        form_data = {"file": ("clip.wav", file.getvalue())}
        options = {"url": TRANSCRIPTIONS, "files": form_data}
        result.append(Honest("transcription", options, other_text))
    rng.shuffle(result)
    return result


async def honest_requests(client: httpx2.AsyncClient) -> list[Honest]:
    """All requests with the answers that they get alone. Raises ValueError where that isn't the same one twice."""
    requests = material()
    for request in requests:
        answers = []
        for _ in range(2):
            answer = await client.post(**request.options)
            if answer.status_code != 200:
                raise ValueError(f"{request.task} alone: {answer.status_code} {answer.text[:300]}")
            answers.append(answer.json())
        request.alone = answers[0]
        if fault := request.fault(*answers):
            raise ValueError(f"{request.task} alone, twice: {fault}")
    return requests


# ---------------------------------------------------------------------- answers


def other_tokens(alone: Any, answer: Any) -> str:
    return difference(generated(alone), generated(answer))


def generated(answer: Any) -> Generated:
    return [
        (token["token"], {top["token"]: top["logprob"] for top in token["top_logprobs"]})
        for token in answer["choices"][0]["logprobs"]["content"]
    ]


def difference(alone: Generated, answer: Generated) -> str:
    """What is wrong with the tokens of an answer."""
    for number, ((token, likely), (other, _)) in enumerate(zip(alone, answer, strict=False)):
        if token != other:
            best = max(likely.values())
            if best - likely.get(other, -np.inf) <= MARGIN:
                return ""
            return f"token {number} is {other!r}, alone {token!r}"
    return "" if len(alone) == len(answer) else f"{len(answer)} tokens, alone {len(alone)}"


def other_schema(alone: Any, answer: Any) -> str:
    choice = answer["choices"][0]
    if choice["finish_reason"] != "stop":
        return f"finish_reason {choice['finish_reason']}"
    try:
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{choice['message']['content']!r}: {error}".splitlines()[0]
    return ""


def other_text(alone: Any, answer: Any) -> str:
    return "" if answer["text"] == alone["text"] else f"{answer['text']!r}, alone {alone['text']!r}"


async def sent(client: httpx2.AsyncClient, request: Honest) -> Sent:
    """Send a request until it is answered."""
    began, refusals = time.monotonic(), Counter[str]()

    def ended(end: str, message: str = "") -> Sent:
        return Sent(request.task, end, time.monotonic() - began, refusals, message[:300])

    while time.monotonic() - began < PATIENCE:
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await client.post(**request.options)
        except (TimeoutError, httpx2.HTTPError) as error:
            return ended("lost", repr(error))
        if answer.status_code == 200:
            fault = request.fault(request.alone, answer.json())
            return ended("wrong", fault) if fault else ended("right")
        if answer.status_code == 503 and '"stopping"' in answer.text:
            return ended("stopped")
        if fault := dishonest(answer):
            return ended("wrong", fault)
        refusals[str(answer.json()["error"]["code"])] += 1
        await asyncio.sleep(min(LONGEST_WAIT, float(answer.headers["retry-after"])))
    return ended("lost", f"refused {refusals.total()} times")


def dishonest(answer: httpx2.Response) -> str:
    """What is wrong with a refusal."""
    text = f"{answer.status_code}: {answer.text[:200]}"
    if answer.status_code not in (429, 503):
        return text
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"not in the API's form, {text}"
    if set(error) != {"message", "type", "param", "code"}:
        return f"not in the API's form, {text}"
    if not answer.headers.get("retry-after", "").isdigit():
        return f"without Retry-After, {text}"
    return ""
