"""Prompts -> checked rows that the model continues.

>>> rows = Rows(model, processor)
>>> rows.row([Message.user("2 + 2 =")])          # a `Batch` of one sequence, with the generation prompt
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from polyphi.batch import Batch
from polyphi.engine.adapters import UnknownAdapter
from polyphi.engine.prompt import Prompt, PromptEnd, parse_prompt
from polyphi.engine.sampling import check
from polyphi.engine.structured import compile_grammar
from polyphi.messages import (
    Audio,
    Image,
    SamplingParams,
    Video,
    adapter_for,
    media,
    normalize_adapter,
)
from polyphi.model.multimodal import PhiModel
from polyphi.processing.placeholders import TokensPrompt
from polyphi.processing.processor import Processor, TooLong
from polyphi.processing.tokenizer import NO_TOKENIZER
from polyphi.steps import Steps, at_once

PromptTooLong = TooLong
"""A prompt that exceeds the context."""


class AnswerTooLong(ValueError):
    """A prompt and its answer together exceed the context."""


class RowMaker:
    """Makes rows with a model's processor. Independent of the engine's steps; safe to use from any thread."""

    def __init__(self, model: PhiModel, processor: Processor) -> None:
        self.model, self.processor = model, processor

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
        context = self.context if context is None else context
        if isinstance(parsed, TokensPrompt):
            ids, images, audios = parsed.ids, parsed.images, parsed.audios
            return self.ids_row(ids, images, audios, adapter=adapter, context=context)
        visual = (*media(parsed, Image), *media(parsed, Video))
        self._check_media(len(visual), len(media(parsed, Audio)))
        chosen = self._adapter(adapter, adapter_for(parsed))
        row = yield from self.processor.row_steps(
            parsed,
            adapter=chosen,
            generation_prompt=end == "generation_prompt",
            continue_final=end == "final_message",
            context=context,
        )
        return row

    row = at_once(row_steps)

    def ids_row(
        self,
        ids: Sequence[int],
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        *,
        adapter: str | None = "auto",
        context: int | None = None,
    ) -> Batch:
        """The row of token ids with the images and audio of their placeholders. `context` as for `row`."""
        self._check_media(len(images), len(audios))
        chosen = self._adapter(adapter, "vision" if images else "speech" if audios else None)
        context = self.context if context is None else context
        return self.processor.ids_row(ids, images, audios, chosen, context=context)

    @property
    def context(self) -> int:
        """Most tokens of a sequence, prompt and answer, that the model supports."""
        return self.model.config.decoder.max_position_embeddings

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raises ValueError for invalid values, for ids outside the vocabulary, and for stop strings or `stop_at_call`
        without a tokenizer."""
        check(sampling)
        size = self.processor.tokenizer.vocab_size
        biased = [token for token, _ in sampling.logit_bias]
        for name, ids in (("stop_token_ids", sampling.stop_token_ids), ("logit_bias", biased)):
            if (highest := max(ids, default=0)) >= size:
                raise ValueError(f"{name} has ids from 0 to {size - 1}, found {highest}")
        if (sampling.stop or sampling.stop_at_call) and not self.processor.tokenizer.has_vocabulary:
            raise ValueError(NO_TOKENIZER)

    def with_grammar(
        self, sampling: SamplingParams, stop: Callable[[], bool] = lambda: False
    ) -> SamplingParams:
        """The sampling with its grammar compiled, which waits for another process. Raises ValueError for a grammar
        that is invalid or too complex, that no answer fits, or that needs a tokenizer; also soon after `stop` returns
        True."""
        if sampling.grammar is None:
            return sampling
        grammar = compile_grammar(sampling.grammar, self.processor.tokenizer, stop)
        return replace(sampling, grammar=grammar)

    def check_length(self, prompt: int, more: int) -> None:
        """Raises `AnswerTooLong` if `prompt` tokens and `more` exceed the context."""
        if prompt + more > self.context:
            raise AnswerTooLong(
                f"{prompt} prompt tokens and {more} more are {prompt + more}, but the model reads at most "
                f"{self.context}; shorten the prompt or lower max_tokens"
            )

    def _check_media(self, images: int, audios: int) -> None:
        for name, count, encoder in (
            ("pictures", images, self.model.vision),
            ("clips", audios, self.model.audio),
        ):
            if count and encoder is None:
                raise ValueError(
                    f"the request has {count} {name}, but this model has no encoder for them"
                )

    def _adapter(self, adapter: str | None, default: str | None) -> str | None:
        """`adapter`, or for "auto" the content's `default` if the model has it (Phi-4-mini has no adapters)."""
        available = self.model.config.adapters
        adapter = normalize_adapter(adapter)
        if adapter == "auto":
            return default if default in available else None
        if adapter is not None and adapter not in available:
            raise UnknownAdapter(adapter, available)
        return adapter
