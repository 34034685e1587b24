"""Tokens without running the model: of texts and conversations, and the text of tokens."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyphi.runtime.steps import Steps
from polyphi.serve.answer.conversation import chat_turns, conversation
from polyphi.serve.answer.prepare import is_large, with_expansion
from polyphi.serve.answer.server import LARGE, AdmittedRequest, Server
from polyphi.serve.http.errors import ApiError, responses
from polyphi.serve.http.events import unless_disconnected
from polyphi.serve.http.fields import MAX_TEXT
from polyphi.serve.http.json_parser import JsonRoute
from polyphi.serve.http.response_json import EncodedJson
from polyphi.serve.openai.schema import (
    DetokenizeRequest,
    TokenizeRequest,
    available_tools,
    prompt_end,
)
from polyphi.types.messages import with_tools

GROUP = 2048
"""Ids that are encoded as JSON at once."""


def routes(server: Server) -> APIRouter:
    router = APIRouter(route_class=JsonRoute)
    processor = server.engine.processor

    @router.post(
        "/tokenize",
        summary="Tokens of a text or a conversation, without running the model",
        responses=responses(429),
    )
    async def tokenize(body: TokenizeRequest, request: HttpRequest) -> Response:
        server.adapter(body.model, "auto")
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(
                400, "expected either prompt or messages, found both or neither", param="prompt"
            )
        strings = bool(body.return_token_strs)
        if (prompt := body.prompt) is not None:
            texts = (("text", ids) for ids in processor.tokenizer.encode_slices(prompt))
            with server.api_errors("prompt"):
                work = server.in_steps(
                    len(prompt) > LARGE,
                    server.caller(request),
                    _collect(server, texts, strings),
                )
                result = await unless_disconnected(request, work)
            return await server.answers.response(result.fields(server))
        turns, end = chat_turns(body.messages or ()), prompt_end(body)

        async def tokenized(admitted: AdmittedRequest) -> Tokenized:
            with server.media.request(admitted.caller.client, admitted.bytes) as media:
                messages = await conversation(media, turns, server.settings, "messages")
                messages = with_tools(messages, available_tools(body.tools or ()))
                # Videos and documents are decoded: their headers don't have the numbers of frames and pages.
                expanded = await with_expansion(server, admitted, messages)
                slices = processor.token_slices(
                    expanded.messages,
                    generation_prompt=end == "generation_prompt",
                    continue_final=end == "final_message",
                )
                with expanded.errors():
                    return await server.in_steps(
                        is_large(messages), admitted.caller, _collect(server, slices, strings)
                    )

        with (
            server.admit(request) as admitted,
            server.api_errors("messages", turns),
        ):
            result = await unless_disconnected(request, tokenized(admitted))
        return await server.answers.response(result.fields(server))

    @router.post("/detokenize", summary="The text of tokens")
    async def detokenize(body: DetokenizeRequest, request: HttpRequest) -> Response:
        server.adapter(body.model, "auto")
        large = len(body.tokens) > LARGE
        caller = server.caller(request)
        text = await server.in_turn(large, caller, _text, server, body.tokens)
        return await server.answers.response({"prompt": text})

    return router


@dataclass(frozen=True)
class Tokenized:
    """The numbers of tokens by modality, their ids, and where requested their texts. Of more than `MAX_TEXT` tokens
    there are only the numbers."""

    counts: Counter[str]
    ids: EncodedJson | list[int] | None
    strings: EncodedJson | list[str] | None

    def fields(self, server: Server) -> dict[str, Any]:
        fields = {
            "count": self.counts.total(),
            "max_model_len": server.engine.longest,
            "tokens": self.ids,
            **{f"{name}_tokens": n for name, n in self.counts.items()},
        }
        return fields if self.strings is None else {**fields, "token_strs": self.strings}


def _collect(
    server: Server, slices: Iterable[tuple[str, Sequence[int]]], with_strings: bool
) -> Steps[Tokenized]:
    """The tokens of slices of a prompt, with a step for each slice."""
    counts = Counter({name: 0 for name in ("text", *server.engine.processor.readers)})
    ids = array("i")
    for modality, some in slices:
        yield
        counts[modality] += len(some)
        if counts.total() <= MAX_TEXT:
            ids.extend(some)
    if counts.total() > MAX_TEXT:
        return Tokenized(counts, None, None)
    text = server.tokens.text

    def strings() -> Iterator[list[str]]:
        return ([text(id) for id in group] for group in _groups(ids))

    if len(ids) <= GROUP:
        return Tokenized(counts, ids.tolist(), next(strings(), []) if with_strings else None)
    encoded = EncodedJson.joined(strings()) if with_strings else None
    return Tokenized(counts, EncodedJson.joined(_groups(ids)), encoded)


def _groups(ids: "array[int]") -> Iterator[list[int]]:
    return (ids[start : start + GROUP].tolist() for start in range(0, len(ids), GROUP))


def _text(server: Server, ids: Sequence[int]) -> str:
    """The text of ids. Raises ApiError for ids outside the vocabulary."""
    tokenizer = server.engine.processor.tokenizer
    size = tokenizer.vocab_size
    if (bad := next((i for i in ids if not 0 <= i < size), None)) is not None:
        raise ApiError(
            400, f"tokens: expected ids between 0 and {size - 1}, found {bad}", param="tokens"
        )
    return tokenizer.decode(ids)
