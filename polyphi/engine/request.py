"""The state of one request: its sequence so far, and the text that can be sent.

Text is sent only when it is final: whole characters, and nothing that may be the start of a stop string. So the
deltas of a stream always join to the text of the same request without streaming.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from polyphi.decoding.reasoning import ReasoningCounter, ReasoningParser
from polyphi.decoding.structured import Matcher
from polyphi.decoding.tool_calls import CallDelta, ToolParser
from polyphi.engine.cache import BLOCK, BlockTable, block_hash
from polyphi.engine.encoders import MediaItem, items
from polyphi.engine.prompt_lookup import PromptLookup
from polyphi.engine.sampling import Sampler
from polyphi.processing.reasoning import CLOSING
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.batch import Batch
from polyphi.types.completion import Completion, TokenLogprob
from polyphi.types.sampling import SamplingParams

GREEDY = SamplingParams()
UNFINISHED = "\ufffd"
"""The decoder's output for a character whose last bytes are missing."""


class AnswerText:
    """Tokens -> text that is final; always "" without a tokenizer's vocabulary.

    >>> text = AnswerText(tokenizer, SamplingParams(stop=("END",)))
    >>> text.add(token)                          # the text that is final now, often ""
    >>> text.finish()                            # the rest, where no stop string came
    >>> text.stop_string                         # the stop string that came, or None
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams = GREEDY) -> None:
        self.stop_string: str | None = None
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._length = 0  # tokens
        self._undecoded: list[int] = []  # tokens whose text ends inside a character
        self._pending = ""  # text that may be the start of a stop string

    def add(self, token: int) -> str:
        if not self._tokenizer.has_vocabulary:
            return ""
        self._length += 1
        self._undecoded.append(token)
        text = self._decode()
        if text.endswith(UNFINISHED):
            return ""
        self._undecoded = []
        return self._release(text, last=False)

    def finish(self) -> str:
        """The remaining text; an incomplete character becomes U+FFFD."""
        text = self._decode() if self._undecoded else ""
        self._undecoded = []
        return self._release(text, last=True)

    def _decode(self) -> str:
        skip_special = self._sampling.skip_special_tokens
        return self._tokenizer.decode(self._undecoded, skip_special=skip_special)

    def _release(self, text: str, last: bool) -> str:
        if self.stop_string is not None:
            return ""
        stops = self._sampling.stop
        # Before the minimum length no stop string may begin.
        if not stops or self._length <= self._sampling.min_tokens:
            return text
        text = self._pending + text
        matches = [(at + len(s), at, s) for s in stops if (at := text.find(s)) >= 0]
        if matches:  # the one that ends first, and of those that end there the longest
            end, start, self.stop_string = min(matches)
            self._pending = ""
            return text[: end if self._sampling.include_stop else start]
        keep = 0 if last else self._possible_start(text)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        stops = self._sampling.stop
        longest = max(len(s) for s in stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in stops):
                return length
        return 0


ADAPTER_KEY_SEPARATOR = "@"
"""Separator of the name and the number in the key of an adapter that was added to a running engine (adapters.py)."""


def adapter_name(key: str) -> str:
    """The name of the adapter with a key; adapters of the checkpoint have their names as keys."""
    return key.partition(ADAPTER_KEY_SEPARATOR)[0]


class Client(NamedTuple):
    """The sender of a request: clients are scheduled fairly (scheduler.py), and only requests of the same `salt` share
    cached prefixes and encoder outputs."""

    client: bytes = b""
    salt: bytes = b""


NOBODY = Client()
"""The client of requests that the program itself submits."""
Phase = Literal["decoding media", "waiting", "running", "finished"]


@dataclass(frozen=True)
class Unsampled:
    """Logits from which no token was sampled yet, because the grammar's mask isn't there: rows after the last token and
    after draft tokens, whether each is finite, and the draft tokens."""

    rows: Float[Tensor, "n V"]
    finite: Sequence[bool]
    draft_tokens: tuple[int, ...]


@dataclass(eq=False)
class Request:
    """One answer to a conversation, from submission to its end.

    `row` is the future of its `prompt`, which another thread may still prepare. Its tokens are the prompt's and the
    sampled ones; the first `table.length` of them are in the KV cache.
    """

    row: Future[Batch]
    sampling: SamplingParams
    tokenizer: Tokenizer
    table: BlockTable
    leader: "Request | None" = None
    """Another request with the same prompt, which runs first."""
    draft: int = 0
    """Most draft tokens of a step."""
    caller: Client = NOBODY
    group: int = 0
    """The number of the call that submitted the request; requests of one call share it."""
    matcher: Matcher | None = None
    """The answer's state in its grammar."""
    unsampled: Unsampled | None = None
    phase: Phase = "decoding media"
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string or the id of `stop_token_ids` that ended the answer."""
    error: Exception | None = None
    tokens: list[int] = field(default_factory=list)
    ropes: list[str] = field(default_factory=list)
    """LongRoPE tables used so far, in order: "short", "long"."""
    features: dict[bytes, Tensor] = field(default_factory=dict)
    """Embeddings of the prompt's images and audio by key, until the prompt has run."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities, if requested, of the prompt's tokens from the second on, as far as they have run."""
    hidden_sum: Tensor | None = None
    """The sum of the last hidden states of the first `pooled` tokens, for an embedding: float32 [D]."""
    pooled: int = 0
    times_passed_over: int = 0
    """Number of later requests that were admitted before this one because memory was short."""
    turn_start: int = 0
    """Tokens of the answer when the request was last admitted."""
    turn_step: int = 0
    """The step in which it was last admitted (fairness.py)."""
    computed: int = 0
    """Its tokens that had run when it was last preempted; of these, `recomputed` weren't cached any more when it was
    admitted again, and run again."""
    recomputed: int = 0
    has_yielded: bool = False
    """Whether it has lost its slot or memory to another request."""
    keeps_slot: bool = False
    """Whether no short request of the same client takes its slot before its turn is over (scheduler.py)."""
    cached_tokens: int | None = None
    """Prompt tokens that were in the prefix cache; None before it was admitted."""
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    """Time when the prompt began to run; `first`: time when the answer's first token was sampled. Values of
    `time.monotonic`."""
    first: float | None = None
    pieces: list[str] = field(default_factory=list)
    """Deltas of the answer's text, one per token."""
    delivered: int = 0
    """Number of `pieces` that a stream has returned."""

    def start(self) -> None:
        """Prepare for scheduling, once the row is ready. Raises the error of its preparation."""
        self.prompt = self.row.result()
        (self.adapter,) = self.prompt.adapters
        """The key of its adapter."""
        self.ids: list[int] = self.prompt.ids.tolist()
        """Tokens of the prompt and the answer so far."""
        self.lookup = None
        if self.draft:
            tokenizer = self.tokenizer
            never = {*tokenizer.controls.values(), *tokenizer.placeholders.values()}
            self.lookup = PromptLookup(self.ids, never=never)
        self._text = AnswerText(self.tokenizer, self.sampling)
        names = self.sampling.stop_at_calls
        self._calls = ToolParser(names) if names else None
        self._reasoning: ReasoningParser | None = None
        self._counter: ReasoningCounter | None = None
        if self.sampling.reasoning:
            self._reasoning = ReasoningParser()
            decode = AnswerText(self.tokenizer).add
            self._counter = ReasoningCounter(decode, self.sampling.reasoning_budget)
        self._hashes: dict[str, list[bytes]] = {}
        self.items = items(self.prompt, self.caller.salt)
        self.sampler = Sampler(self.sampling, self.tokenizer, self.ids, self.matcher)
        self.phase = "waiting"

    @property
    def pending(self) -> int:
        """Tokens that have not run."""
        return len(self.ids) - self.table.length

    @property
    def new_tokens(self) -> int:
        """Tokens that have run for the first time since it was last admitted."""
        return max(0, self.table.length - self.computed)

    @property
    def max_length(self) -> int:
        """Maximum tokens of the request, prompt and answer."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def prefilled(self) -> bool:
        """Whether the first token of the answer has been sampled."""
        return bool(self.tokens) or self.phase == "finished"

    @property
    def undecided(self) -> bool:
        """Whether the answer has all tokens that it may have, and the grammar's process hasn't reported whether it is
        complete."""
        at_limit = len(self.tokens) == self.sampling.max_tokens > 0
        return self.matcher is not None and at_limit and not self.finish_reason

    @property
    def waits_for_grammar(self) -> bool:
        return self.unsampled is not None or self.undecided

    @property
    def missing_media(self) -> list[MediaItem]:
        """Images and audio that must be encoded before it can run."""
        return [
            item
            for item in self.items
            if item.end > self.table.length and item.key not in self.features
        ]

    @property
    def unscored(self) -> range:
        """Indices of the prompt tokens whose log-probabilities are requested and not computed yet."""
        if self.sampling.prompt_logprobs is None:
            return range(0)
        return range(1 + len(self.prompt_logprobs), len(self.prompt))

    @property
    def unpooled(self) -> range:
        """Indices of the prompt tokens whose hidden states an embedding still lacks."""
        return range(self.pooled, len(self.prompt)) if self.sampling.embed else range(0)

    def add_hidden(self, hidden_sum: Float[Tensor, " D"], count: int) -> None:
        """Adds the last hidden states of the next `count` tokens to its embedding."""
        self.hidden_sum = hidden_sum if self.hidden_sum is None else self.hidden_sum + hidden_sum
        self.pooled += count

    def reusable_hashes(self, root: bytes) -> list[bytes]:
        """Hashes of the blocks that it may reuse. The last token always runs, since its logits are needed; so do the
        tokens that are still to be pooled, and those before the ones that are still to be scored."""
        first = [*(n - 1 for n in self.unscored[:1]), *self.unpooled[:1]]
        most = min([len(self.ids) - 1, *first])
        return self.block_hashes(root)[: most // BLOCK]

    def block_hashes(self, root: bytes) -> list[bytes]:
        """Hashes of all full blocks (cache.py) of its tokens, chained to `root`."""
        hashes = self._hashes.setdefault(root.hex(), [])
        for number in range(len(hashes), len(self.ids) // BLOCK):
            first, end = number * BLOCK, (number + 1) * BLOCK
            media = [
                item.key + (item.start - first).to_bytes(8, "little", signed=True)
                for item in self.items
                if item.start < end and item.end > first
            ]
            before = hashes[-1] if hashes else root
            hashes.append(block_hash(before, self.ids[first:end], media))
        return hashes

    def drop_media(self) -> None:
        """Drop pixels and log-mel frames when it ends. Until then they may be needed again: a request that is preempted
        or changes its LongRoPE table runs its prompt again."""
        if self.phase == "decoding media" or not self.prompt.inputs:
            return
        self.prompt, self.items = self.prompt.without_values(), []
        self.row = Future()
        self.row.set_result(self.prompt)

    def accept(self, token: int) -> None:
        """Append a sampled token, and the text that becomes final with it to `pieces`."""
        self.first = self.first or time.monotonic()
        delta = ""
        early = len(self.tokens) < self.sampling.min_tokens
        is_stop = token in self.sampling.stop_token_ids and not early
        if is_stop:
            self.stop_reason = token
        is_end = is_stop or (token in self.tokenizer.eos_ids and self._ends_at_eos)
        if not is_end or (is_stop and self.sampling.include_stop):
            self.tokens.append(token)
            self.ids.append(token)
            if self.lookup:
                self.lookup.add(token)
            if self._counter and self._counter.add(token):
                self.sampler.force(self.tokenizer.encode(CLOSING))
            delta = self._text.add(token)
        at_limit = len(self.tokens) == self.sampling.max_tokens and self.matcher is None
        self._finish(delta, complete=is_end, at_limit=at_limit)

    def settle(self) -> None:
        """End the answer if its grammar's process has said that it is complete, or that it isn't where it may have no
        more tokens."""
        if (
            self.matcher is None
            or self.finish_reason
            or not self.tokens
            or not self.matcher.settled
        ):
            return
        complete, at_limit = self.matcher.finished, len(self.tokens) == self.sampling.max_tokens
        if complete or at_limit:
            self._finish("", complete=complete, at_limit=at_limit)

    def _finish(self, delta: str, *, complete: bool, at_limit: bool) -> None:
        """Append a text delta, and end the answer where it is complete, at its limit, or has a stop string or call."""
        if self._text.stop_string is None and (complete or at_limit):
            delta += self._text.finish()
            self.finish_reason = "stop" if complete else "length"
        has_call = self._calls is not None and self._has_call(self._calls, delta)
        if self._text.stop_string is not None:
            self.stop_reason, self.finish_reason = self._text.stop_string, "stop"
        elif has_call:
            self.finish_reason = "stop"
        self.pieces.append(delta)

    @property
    def _ends_at_eos(self) -> bool:
        return not self.sampling.ignore_eos or self.sampling.grammar is not None

    def _has_call(self, parser: ToolParser, delta: str) -> bool:
        """Whether a call is complete with a text delta; text in the reasoning is no call."""
        parts = self._reasoning.add(delta) if self._reasoning else [delta]
        content = "".join(part for part in parts if isinstance(part, str))
        return any(isinstance(part, CallDelta) and part.complete for part in parser.add(content))

    @property
    def end_logprobs(self) -> tuple[TokenLogprob, ...]:
        """The log-probability of the end token, which isn't one of `tokens`; empty if none was sampled."""
        return tuple(self.sampler.logprobs[len(self.tokens) :])

    def completion(self) -> Completion:
        """The answer of a finished request."""
        assert self.finish_reason, "the request is still running"
        prompt = self.prompt
        tokens = {name: len(i.slots) for name, i in prompt.inputs.items() if i.slots is not None}
        embedding: tuple[float, ...] | None = None
        if self.hidden_sum is not None:
            embedding = tuple((self.hidden_sum / self.pooled).tolist())
        return Completion(
            text="".join(self.pieces),
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason,
            adapter=None if self.adapter is None else adapter_name(self.adapter),
            prompt_tokens=len(prompt),
            input_tokens=tokens,
            rope="+".join(self.ropes) + (" (bound)" if self.sampling.rope == "bound" else ""),
            cached=self.cached_tokens or 0,
            logprobs=tuple(self.sampler.logprobs[: len(self.tokens)]),
            prompt_logprobs=tuple(self.prompt_logprobs),
            embedding=embedding,
            reasoning_tokens=self._counter.tokens if self._counter else 0,
            stop_reason=self.stop_reason,
        )
