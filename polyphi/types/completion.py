"""The answers of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from polyphi.runtime.arguments import checked_fields
from polyphi.types.tools import FunctionCall


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer or a prompt, its natural log-probability before temperature and truncation, and the most
    likely (id, log-probability) pairs at its position, in descending order."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """An output delta of a streamed answer. The last one has `finish_reason` ("stop", "length" or "abort") and, if
    available, the whole `completion`. `tokens`: the ids sampled since the previous delta; joined they equal
    `Completion.tokens`. An endpoint reports none."""

    text: str
    finish_reason: str | None = None
    completion: "Completion | None" = None
    tokens: tuple[int, ...] = ()


@checked_fields
@dataclass(frozen=True, repr=False)
class Completion:
    """An answer with its token counts and adapter. `tokens`: the generated ids without the end token; `text` is ""
    if the model has no tokenizer. `input_tokens`: those of `prompt_tokens` that images, audio and further
    modalities have, by modality. `rope`: the LongRoPE tables that were used; `cached`: prompt tokens from the
    prefix cache; `others`: answers 2 to n. `prompt_logprobs`, if requested, has an entry for each prompt token but
    the first; `embedding` is the mean of its last hidden states [D], if requested. `reasoning_tokens`: those of a
    `<think>` block, with `SamplingParams.reasoning`. `stop_reason`: the stop string or the id of `stop_token_ids`
    that ended the answer, otherwise None. `tool_calls`: the calls in `text` that are complete, of an answer to a
    conversation with tools (`Phi`). Printed, an answer is its text."""

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str = "stop"
    adapter: str | None = None
    prompt_tokens: int = 0
    input_tokens: Mapping[str, int] = field(default_factory=dict, hash=False)
    rope: str = "short"
    cached: int = field(default=0, compare=False)
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    embedding: tuple[float, ...] | None = None
    others: tuple["Completion", ...] = ()
    reasoning_tokens: int = 0
    stop_reason: str | int | None = None
    tool_calls: tuple[FunctionCall, ...] = ()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        is_long = len(self.text) > 200
        values = {
            "text": f"{self.text[:199]}\N{HORIZONTAL ELLIPSIS}" if is_long else self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "tool_calls": self.tool_calls,
            "others": len(self.others),
            "adapter": self.adapter,
        }
        parts = ", ".join(f"{name}={value!r}" for name, value in values.items() if value)
        tokens = f"{len(self.tokens)} token{'s' * (len(self.tokens) != 1)}"
        return f"Completion({parts}, {tokens})"

    @property
    def image_tokens(self) -> int:
        return self.input_tokens.get("image", 0)

    @property
    def audio_tokens(self) -> int:
        return self.input_tokens.get("audio", 0)
