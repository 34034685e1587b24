"""Prompts (messages, token ids, or token ids with their media) -> checked rows that the model continues.

>>> rows = Rows(model, processor, capacity)
>>> rows.row([Message.user("2 + 2 =")])          # a `Batch` of one sequence, with the generation prompt
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from polyphi.decoding.structured import compile_grammar
from polyphi.engine.added_adapters import UnknownAdapter
from polyphi.engine.request import GREEDY
from polyphi.engine.sampling import check
from polyphi.model.multimodal import PhiModel
from polyphi.processing.placeholders import TokensPrompt
from polyphi.processing.processor import Processor, TooLong
from polyphi.processing.tokenizer import NO_TOKENIZER
from polyphi.runtime.arguments import describe
from polyphi.runtime.steps import Steps, run_all
from polyphi.text.quantity import quantity
from polyphi.types.batch import Batch
from polyphi.types.dialects import Attachments, as_media
from polyphi.types.messages import Message
from polyphi.types.parts import Media
from polyphi.types.routing import Routes, modalities_of, normalize_adapter, route
from polyphi.types.sampling import SamplingParams

PromptEnd = Literal["generation_prompt", "final_message", "end_of_text"]
"""The end of a conversation that the model continues: `<|assistant|>`, so that it answers; the text of the final
message, which it continues; or `<|endoftext|>`, the end of the document."""
Conversation = Annotated[
    Sequence[Message | Mapping[str, Any]] | Message | Mapping[str, Any] | str,
    "a text or a list of messages",
    "conversations",
]
"""`Message`s or OpenAI-style dicts; one of them, or a text, is the user's only message."""
TokenIds = Sequence[int] | Int[Tensor, "_"] | Int[np.ndarray, "_"]
Prompt = Annotated[Conversation | TokenIds | TokensPrompt, "a prompt", "prompts"]
"""The input that the model continues."""


def parse_prompt(
    prompt: Prompt, images: Sequence[Any] = (), audios: Sequence[Any] = ()
) -> tuple[Message, ...] | TokensPrompt:
    """A prompt as messages, or as token ids with the `images` and `audios` of their placeholders.

    `images` and `audios` beside a text come before it in the user's message; beside messages they fill the parts
    {"type": "image"} and {"type": "audio"} without content, in order. Raises ValueError for an empty prompt, for ids
    that are no whole numbers or have more than one dimension, for several prompts, for media that have no part, and for
    `images` or `audios` in addition to a `TokensPrompt`, which has its own.
    """
    if isinstance(prompt, TokensPrompt):
        if images or audios:
            raise ValueError("images= and audios= go with ids; a TokensPrompt has its own")
        return replace(prompt, ids=token_ids(prompt.ids))
    if isinstance(prompt, str):
        beside = [as_media("image", value) for value in images]
        beside += [as_media("audio", value) for value in audios]
        return (Message.user(*beside, prompt),)
    if isinstance(prompt, Message | Mapping):
        prompt = [prompt]
    if isinstance(prompt, bytes) or not isinstance(prompt, Iterable):
        raise ValueError(
            f"messages: expected a text, a list of messages or token ids, found {describe(prompt)}"
        )
    items: Any = prompt if isinstance(prompt, Tensor) else list(prompt)
    if not len(items):
        raise ValueError("expected messages or token ids, found an empty list")
    first = items[0]
    if isinstance(first, str | list | tuple | TokensPrompt):
        raise ValueError(
            f"messages: expected one prompt, found a list that begins with {describe(first)}; several go to "
            "generate_many, score_many and logits_many, and the parts of one message into Message.user(...)"
        )
    if not isinstance(first, Message | Mapping):
        return TokensPrompt(token_ids(items), tuple(images), tuple(audios))
    if not (images or audios) and all(isinstance(item, Message) for item in items):
        return tuple(items)
    attachments = Attachments(images, audios)
    messages = tuple(Message.parse(message, attachments=attachments) for message in items)
    try:
        attachments.check_empty()
    except ValueError as error:
        raise ValueError(
            f"{error}; write such a part where each belongs, or Image(...) and Audio(...) into Message.user(...)"
        ) from None
    return messages


def token_ids(ids: Any) -> tuple[int, ...]:
    """Token ids from a sequence of whole numbers or a tensor or array of one dimension. Raises ValueError for anything
    else."""
    if (dimensions := getattr(ids, "ndim", 1)) != 1:
        raise ValueError(f"token ids have 1 dimension, found {dimensions}: {list(ids.shape)}")
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        if not isinstance(values, Iterable) or isinstance(values, str):
            raise ValueError(f"ids: expected a list of token ids, found {describe(ids)}") from None
        wrong = next(v for v in values if not hasattr(v, "__index__"))
        raise ValueError(
            f"token ids are whole numbers, found {wrong!r:.80}; a prompt of messages has messages only"
        ) from None


PromptTooLong = TooLong
"""A prompt that exceeds the context."""


class AnswerTooLong(ValueError):
    """A prompt and its answer together exceed the context."""


class Rows:
    """Makes and checks rows for a model, with its processor. Independent of the engine's steps; safe to use from any
    thread. `capacity`: tokens whose keys and values fit in memory."""

    def __init__(self, model: PhiModel, processor: Processor, capacity: int) -> None:
        self._model, self._processor, self._capacity = model, processor, capacity
        self.context = model.config.decoder.max_position_embeddings
        """Most tokens of a sequence, prompt and answer, that the model supports."""

    def prepare(
        self,
        messages: Prompt,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Batch:
        """The row of a request, checked with its sampling. Raises ValueError for an invalid one, but for an invalid
        grammar, which `with_grammar` compiles."""
        self.check_sampling(sampling)
        row = self.row(messages, adapter=adapter)
        self.check_row(row, sampling)
        return row

    def row_steps(
        self,
        messages: Prompt,
        *,
        adapter: str | None = "auto",
        context: int | None = None,
        end: PromptEnd = "generation_prompt",
    ) -> Steps[Batch]:
        """The row of a prompt: messages with this `end`, ids as they are; a step for each image and audio. Raises
        ValueError above `context` tokens (default: the model's context); a prompt that is certainly too long is neither
        tokenized nor decoded."""
        parsed = parse_prompt(messages)
        if isinstance(parsed, TokensPrompt):
            return self.ids_row(
                token_ids(parsed.ids), parsed.parts, adapter=adapter, context=context
            )
        parsed = tuple(self._processor.expand(parsed))  # a document may be text or images
        chosen = self._adapter(adapter, modalities_of(parsed))
        row = yield from self._processor.row_steps(
            parsed,
            adapter=chosen,
            generation_prompt=end == "generation_prompt",
            continue_final=end == "final_message",
            context=self.context if context is None else context,
        )
        return row

    row = run_all(row_steps)

    def ids_row(
        self,
        ids: Sequence[int],
        parts: Sequence[Media] = (),
        *,
        adapter: str | None = "auto",
        context: int | None = None,
    ) -> Batch:
        """The row of token ids with the parts of their placeholders. `context` as for `row`."""
        chosen = self._adapter(adapter, [part.modality for part in parts])
        context = self.context if context is None else context
        return self._processor.ids_row(ids, parts, chosen, context=context)

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raises ValueError for invalid values, for ids outside the vocabulary, and for stop strings or
        `stop_at_calls` without a tokenizer."""
        check(sampling)
        biased = [token for token, _ in sampling.logit_bias]
        for name, ids in (("stop_token_ids", sampling.stop_token_ids), ("logit_bias", biased)):
            if ids and max(ids) >= (size := self._processor.tokenizer.vocab_size):
                raise ValueError(f"{name} has ids from 0 to {size - 1}, found {max(ids)}")
        needs_text = sampling.stop or sampling.stop_at_calls
        if needs_text and not self._processor.tokenizer.has_vocabulary:
            raise ValueError(NO_TOKENIZER)

    def with_grammar(
        self, sampling: SamplingParams, stop: Callable[[], bool] = lambda: False
    ) -> SamplingParams:
        """The sampling with its grammar compiled, which waits for another process. Raises ValueError for a grammar
        that is invalid or too complex, that no answer fits, or that needs a tokenizer; also soon after `stop` returns
        True."""
        if sampling.grammar is None:
            return sampling
        grammar = compile_grammar(sampling.grammar, self._processor.tokenizer, stop)
        return replace(sampling, grammar=grammar)

    def check_row(self, row: Batch, sampling: SamplingParams) -> None:
        """Raises ValueError if a row and its answer don't fit the context or memory."""
        self.check_length(len(row), sampling.max_tokens)
        if (total := len(row) + sampling.max_tokens) > self._capacity:
            raise ValueError(
                f"{quantity(len(row), 'prompt token')} and {sampling.max_tokens} more are {total}, but "
                f"there is memory for "
                f"the keys and values of {self._capacity}; lower max_tokens, or give the engine more memory"
            )

    def check_length(self, prompt: int, more: int) -> None:
        """Raises `AnswerTooLong` if `prompt` tokens and `more` exceed the context."""
        if prompt + more > self.context:
            raise AnswerTooLong(
                f"{quantity(prompt, 'prompt token')} and {more} more are {prompt + more}, but the model reads at most "
                f"{self.context}; shorten the prompt or lower max_tokens"
            )

    def _adapter(self, adapter: str | None, modalities: Sequence[str]) -> str | None:
        """The adapter of a request; raises as `choose_adapter`."""
        return choose_adapter(
            adapter,
            modalities,
            self._processor.routes,
            encoders=list(self._model.towers) if modalities else (),
            adapters=self._model.config.adapters,
        )


def choose_adapter(
    adapter: str | None,
    modalities: Sequence[str],
    routes: Routes,
    *,
    encoders: Sequence[str],
    adapters: Collection[str],
) -> str | None:
    """`adapter`, or for "auto" that of the content's modalities by `routes`, if it is among the model's `adapters`
    (Phi-4-mini has none). Raises ValueError for a modality that isn't among the `encoders`, and `UnknownAdapter`."""
    for modality in modalities:
        if modality not in encoders:
            able = ", ".join(["text", *encoders])
            raise ValueError(
                f"the request has {modality} inputs, but this model has no encoder for them; it reads {able} "
                "(further modalities are loaded by --modality FILE)"
            )
    adapter = normalize_adapter(adapter)
    if adapter == "auto":
        default = route(modalities, routes)
        return default if default in adapters else None
    if adapter is not None and adapter not in adapters:
        raise UnknownAdapter(adapter, adapters)
    return adapter
