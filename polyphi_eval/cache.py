"""A model's answers from its cache on disk, so that an interrupted evaluation resumes and no request is sent twice.

>>> cache = Cache(model, Path("results"), fingerprint="phi bf16 3f9a...")
>>> [answer.text for answer in cache.answers([CachedRequest(messages)])]

An answer's key is a hash of its request (the conversation with its media, the sampling, the adapter) and of the model's
fingerprint. Answers are in `FOLDER/answers*.jsonl`, one file for each shard of a run on several machines; all are read.
`Recorded` is a model that replays the answers of such a folder.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from polyphi.types.completion import Completion
from polyphi.types.generate import Answers
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services.endpoint import RequestRejected
from polyphi_eval.services.response_cache import ResponseCache, media_settings, media_sha256

GREEDY = SamplingParams()
BATCH = 128
"""Requests per call of the model and per write to disk."""
CONCURRENT = 8
"""Requests in progress at an endpoint."""


class CachedRequest(NamedTuple):
    messages: Sequence[Message]
    sampling: SamplingParams = GREEDY
    adapter: str | None = "auto"


@dataclass(frozen=True)
class CachedAnswer:
    """An answer, or the model's `error` (the prompt is too long, say) with an empty text. `seconds` is its share of the
    time of its batch."""

    text: str
    error: str | None = None
    finish_reason: str = "stop"
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    key: str = ""


class Cache:
    """Cached answers of a model. `fingerprint` identifies what determines answers: weights and arithmetic, or an
    endpoint and its model.

    Errors that concern every request (no endpoint, no key) are raised; an error of one request becomes its answer,
    unless `raise_errors`.
    """

    def __init__(
        self,
        model: Answers,
        folder: Path,
        fingerprint: str,
        *,
        name: str = "answers",
        raise_errors: bool = False,
    ) -> None:
        self.model, self.fingerprint, self.raise_errors = model, fingerprint, raise_errors
        self.responses = ResponseCache(folder, name)
        self.new = 0
        """Number of answers that the model generated."""

    def answers(self, requests: Sequence[CachedRequest]) -> list[CachedAnswer]:
        """Return the answer to each request; the model generates those not in the cache, batched by adapter."""
        keys = [key_of(r.messages, r.adapter, r.sampling, self.fingerprint) for r in requests]
        answers = {key: _cached(self.responses, key) for key in keys}
        missing: dict[str | None, dict[str, CachedRequest]] = defaultdict(dict)
        for key, request in zip(keys, requests, strict=True):
            if answers[key] is None:
                missing[request.adapter][key] = request
        for adapter, group in missing.items():
            for start in range(0, len(group), BATCH):
                batch = dict(list(group.items())[start : start + BATCH])
                began = time.monotonic()
                generated = list(self._generate(list(batch.values()), adapter))
                seconds = (time.monotonic() - began) / len(batch)
                lines = self.responses.store(
                    {
                        key: asdict(replace(answer, seconds=seconds, key=key))
                        for key, answer in zip(batch, generated, strict=True)
                    }
                )
                answers |= {key: _answer(line) for key, line in lines.items()}
                self.new += len(batch)
        return [answer for key in keys if (answer := answers[key])]

    def _generate(
        self, requests: Sequence[CachedRequest], adapter: str | None
    ) -> Iterator[CachedAnswer]:
        generate_many = getattr(self.model, "generate_many", None)
        if generate_many is None:
            with ThreadPoolExecutor(CONCURRENT) as pool:
                yield from pool.map(self._generate_one, requests)
            return
        try:
            completions = generate_many(
                [r.messages for r in requests],
                sampling=[r.sampling for r in requests],
                adapter=adapter,
            )
        except ValueError:  # raised by one of the requests: run each alone
            yield from map(self._generate_one, requests)
        else:
            yield from map(_completed, completions)

    def _generate_one(self, request: CachedRequest) -> CachedAnswer:
        local = hasattr(self.model, "generate_many")
        try:
            return _completed(
                self.model.generate(
                    request.messages, sampling=request.sampling, adapter=request.adapter
                )
            )
        except (ValueError, MemoryError) as error:
            rejected = local or isinstance(error, MemoryError | RequestRejected)
            if self.raise_errors or not rejected:
                raise
            return CachedAnswer("", error=str(error)[:500], finish_reason="error")


def _completed(completion: Completion) -> CachedAnswer:
    return CachedAnswer(
        completion.text,
        None,
        completion.finish_reason,
        len(completion.tokens),
        completion.prompt_tokens,
    )


def _cached(responses: ResponseCache, key: str) -> CachedAnswer | None:
    return _answer(line) if (line := responses.find(key)) else None


def _answer(line: dict[str, Any]) -> CachedAnswer:
    """Return the answer of a cache's line, or of a held-out task's results, whose field for the text is `answer`."""
    names = {field.name for field in fields(CachedAnswer)}
    line = {"text": line.get("answer", ""), **line}
    return CachedAnswer(**{name: value for name, value in line.items() if name in names})


class Recorded:
    """A model that replays the cached answers of a results folder.

    >>> Recorded(Path("results")).generate(messages).text

    `name` and `fingerprint` select the `Cache` of another model than the measured one.
    """

    def __init__(self, folder: Path, name: str = "answers", fingerprint: str | None = None) -> None:
        if not any(folder.glob(f"{name}*.jsonl")):
            raise ValueError(
                f"expected the --out folder of an earlier evaluation, found no {name}*.jsonl in {folder}"
            )
        self.folder, self.responses = folder, ResponseCache(folder, name)
        self.fingerprint = fingerprint or str(
            json.loads((folder / "model.json").read_text())["fingerprint"]
        )

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        key = key_of(messages, adapter, sampling, self.fingerprint)
        answer = _cached(self.responses, key)
        if answer is None:
            prompt = messages[-1].text if messages else ""
            raise ValueError(
                f"{self.folder} has no answer to {prompt[:80]!r}; use the data and settings of that evaluation"
            )
        if answer.error:
            raise RequestRejected(answer.error)
        return Completion(
            answer.text,
            (0,) * answer.tokens,
            answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
        )


# ---------------------------------------------------------------------- keys


def as_text(messages: Sequence[Message]) -> str:
    """Return a conversation as text, with [image] and [audio] for media, and roles if it has several messages."""

    def content(m: Message) -> str:
        body = "".join(
            p.text if isinstance(p, Text) else f"[{type(p).__name__.lower()}]" for p in m.parts
        )
        return f"{body}\n{m.tools}" if m.tools else body

    return "\n".join(
        content(m) if len(messages) == 1 else f"{m.role}: {content(m)}" for m in messages
    )


def media_hashes(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"kind": type(p).__name__.lower(), "sha256": media_sha256(p), **media_settings(p)}
        for m in messages
        for p in m.parts
        if not isinstance(p, Text)
    ]


def key_of(
    messages: Sequence[Message], adapter: str | None, sampling: SamplingParams, fingerprint: str
) -> str:
    """Return the cache key of a request: a hash of weights, sampling, adapter, text and media. `draft` isn't part of
    it, since draft tokens change no answer. Fields of `SamplingParams` that came later leave the keys of requests
    without them as they were."""
    values = asdict(replace(sampling, draft=0))
    values["stop_at_call"] = values.pop("stop_at_calls") or False
    if not values["embed"]:
        del values["embed"]
    content = [as_text(messages), [m.role for m in messages], media_hashes(messages)]
    text = json.dumps([fingerprint, values, adapter, content], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]
