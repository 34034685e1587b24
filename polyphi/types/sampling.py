"""How an answer is sampled, and the form that it must have.

>>> SamplingParams(max_tokens=40, temperature=0.7).top_p
1.0
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

from polyphi.runtime.arguments import checked_fields


@checked_fields
@dataclass(frozen=True)
class Grammar:
    """The required form of an answer. `format`: "json" (`text` is a JSON schema), "regex" (the whole answer matches
    it), "ebnf" (a context-free grammar in Lark or GBNF, decoding/grammars.py) or "tools" (a JSON list of tools: the
    answer is calls of them).

    Only for "tools": `max_calls` limits the number of calls in the answer; with an `alternative` of another format the
    model chooses between calls and an answer of that form."""

    format: Literal["json", "regex", "ebnf", "tools"]
    text: str
    max_calls: int | None = None
    alternative: "Grammar | None" = None


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword options, with the types that they are accepted in."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | Sequence[str]
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logprobs: int | None
    n: int
    grammar: Grammar | None
    draft: int | Literal["auto"]
    rope: Literal["dynamic", "bound"]
    prompt_logprobs: int | None
    embed: bool
    stop_at_calls: str | Sequence[str]
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: int | Sequence[int]
    include_stop: bool
    skip_special_tokens: bool
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    reasoning: bool
    reasoning_budget: int | None


@checked_fields(accepts=SamplingOptions)
@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters. Temperature 0 is greedy. `stop` strings and `stop_token_ids` end the answer and are not part
    of it, unless `include_stop` is set; the first complete call of one of the tools `stop_at_calls` ends it too and is
    part of it (decoding/tool_calls.py). `min_tokens`: neither an end token nor a stop string ends the answer before.
    `ignore_eos`: end tokens don't end it. A grammar takes precedence over both: an answer always ends where its grammar
    does.

    `min_p` drops tokens below this fraction of the highest probability. `repetition_penalty` divides (logits above 0)
    or multiplies (below) the logit of every token of prompt and answer; `presence_penalty` (once) and
    `frequency_penalty` (for each occurrence) are subtracted for tokens of the answer. `logit_bias`: pairs of a token id
    and a number from -100 to 100 that is added to its logit. `skip_special_tokens`: whether control tokens that the
    model samples are left out of the text (those of tool calls never are). `logprobs`: return the log-probability of
    each token and of this many most likely ones; `prompt_logprobs`: the same for the prompt's tokens; `embed`: return
    the mean of the prompt's last hidden states; with either, `max_tokens` may be 0. `n` answers are sampled, the i-th
    with seed + i. `draft`: maximum draft tokens per step of speculative decoding from prompt and answer, which
    never changes the answer; "auto": the engine decides. `rope`: "dynamic" recomputes a sequence that grows past the
    LongRoPE switch with the long table, as the published code does; "bound" selects the table for prompt and
    `max_tokens` together from the start.

    `reasoning`: the answer may begin with `<think>...</think>` (decoding/reasoning.py), closed after `reasoning_budget`
    tokens."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    n: int = 1
    grammar: Grammar | None = None
    draft: int | Literal["auto"] = "auto"
    rope: Literal["dynamic", "bound"] = "dynamic"
    prompt_logprobs: int | None = None
    embed: bool = False
    stop_at_calls: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    reasoning: bool = False
    reasoning_budget: int | None = None

    def __post_init__(self) -> None:
        alone = {
            "stop": isinstance(self.stop, str),
            "stop_at_calls": isinstance(self.stop_at_calls, str),
            "stop_token_ids": isinstance(self.stop_token_ids, int),
        }
        for name, is_alone in alone.items():
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if is_alone else tuple(value))
        pairs: Any = self.logit_bias
        pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
        object.__setattr__(self, "logit_bias", tuple(tuple(pair) for pair in pairs))

    @classmethod
    def of(
        cls, sampling: "SamplingParams | Mapping[str, Any]", **options: Unpack[SamplingOptions]
    ) -> "SamplingParams":
        """Sampling parameters, or a dict of them, with `options` instead of their values."""
        if isinstance(sampling, SamplingParams):
            values: dict[str, Any] = dict(options)  # the constructor converts them
            return replace(sampling, **values) if values else sampling
        return cls(**{**sampling, **options})
