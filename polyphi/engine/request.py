"""One request on its way: what is known of its sequence, and the text that may already be shown.

Text is shown only when it can't be taken back: whole characters, and nothing that may be the start of a stop string.
So the pieces of a stream always join to the very text that comes without streaming.
"""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from polyphi.batch import Batch
from polyphi.engine.cache import BLOCK, Table, chained
from polyphi.engine.encoders import Item, items
from polyphi.engine.sampling import Sampler
from polyphi.engine.speculate import PromptLookup
from polyphi.engine.tools import ToolCall, ToolParser
from polyphi.messages import Completion, SamplingParams, TokenLogprob
from polyphi.processing.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""How a byte-level decoder shows a character whose last bytes are still to come."""


class AnswerText:
    """Tokens -> text that is safe to show; always "" without a tokenizer's vocabulary.

    >>> text = AnswerText(tokenizer, stop=("END",))
    >>> text.add(token)                          # what can be shown now, often ""
    >>> text.finish()                            # the rest, where no stop string came
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._undecoded: list[int] = []  # tokens whose text ends inside a character
        self._held = ""  # text that may be the start of a stop string

    def add(self, token: int) -> str:
        if not self._tokenizer.has_vocabulary:
            return ""
        self._undecoded.append(token)
        text = self._tokenizer.decode(self._undecoded, skip_special=True)
        if text.endswith(UNFINISHED):
            return ""
        self._undecoded = []
        return self._show(text, last=False)

    def finish(self) -> str:
        """All that is left; a character that never became whole shows as U+FFFD."""
        text = self._tokenizer.decode(self._undecoded, skip_special=True) if self._undecoded else ""
        self._undecoded = []
        return self._show(text, last=True)

    def _show(self, text: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:  # the one that is complete first, and of those that end there the longest
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = 0 if last else self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that some stop string begins with."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0


class Caller(NamedTuple):
    """Who asks: clients take turns (scheduler.py), and only requests of the same `salt` share what is remembered."""

    client: bytes = b""
    salt: bytes = b""


NOBODY = Caller()
"""The program itself."""
Phase = Literal["decoding media", "waiting", "running", "finished"]


@dataclass(eq=False)
class Request:
    """A conversation being answered, from its coming to its end.

    Its row (`prompt`) may still be made elsewhere; then `row` is there to be waited for. All tokens known are the
    prompt's and those drawn; the first `table.length` of them have run.
    """

    row: Future[Batch]
    sampling: SamplingParams
    tokenizer: Tokenizer
    table: Table
    leader: "Request | None" = None
    """Another request with the same prompt, which runs first."""
    draft: int = 0
    """Tokens that are guessed in a step, at most."""
    caller: Caller = NOBODY
    group: int = 0
    """A number that requests have in common which entered together, as the answers to one call."""
    phase: Phase = "decoding media"
    finish_reason: str | None = None
    error: Exception | None = None
    tokens: list[int] = field(default_factory=list)
    ropes: list[str] = field(default_factory=list)
    """LongRoPE tables used so far, in order: "short", "long"."""
    features: dict[bytes, Tensor] = field(default_factory=dict)
    """What stands for its pictures and clips, while the prompt runs."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as they have run, where asked for."""
    overtaken: int = 0
    """Requests that came later and went first because memory was short."""
    cached: int | None = None
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    """When its prompt began to run; `first`: when the answer's first token was drawn. Moments of `time.monotonic`."""
    first: float | None = None
    pieces: list[str] = field(default_factory=list)
    shown: int = 0
    """Pieces that whoever streams has taken."""

    def start(self) -> None:
        """The row is made: it waits for its turn. Raises what went wrong while it was made."""
        self.prompt = self.row.result()
        self.items = items(self.prompt, self.caller.salt)
        self.ids: list[int] = self.prompt.ids.tolist()
        self.sampler = Sampler(self.sampling, self.tokenizer, self.ids)
        self.lookup = None
        if self.draft:
            self.lookup = PromptLookup(self.ids, never=self.tokenizer.controls.values())
        self._text = AnswerText(self.tokenizer, self.sampling.stop)
        self._calls = ToolParser() if self.sampling.stop_at_call else None
        self._names: dict[str, list[bytes]] = {}
        self.phase = "waiting"

    def __len__(self) -> int:
        """Tokens known: prompt and answer so far."""
        return len(self.ids)

    @property
    def adapter(self) -> str | None:
        return self.prompt.adapters[0]

    @property
    def bound(self) -> int:
        """Most tokens that it can grow to."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def prefilled(self) -> bool:
        """Whether the first token of the answer has been drawn."""
        return bool(self.tokens) or self.phase == "finished"

    @property
    def missing(self) -> list[Item]:
        """Pictures and clips whose embeddings must be made before it can go on."""
        return [
            item
            for item in self.items
            if item.end > self.table.length and item.key not in self.features
        ]

    @property
    def unscored(self) -> range:
        """Numbers of the prompt tokens whose log-probabilities are still to be told."""
        if self.sampling.prompt_logprobs is None:
            return range(0)
        return range(1 + len(self.prompt_logprobs), len(self.prompt))

    def shared(self, root: bytes) -> list[bytes]:
        """Names of the blocks that it may adopt. The last token always runs, for what follows it must be known; so do
        those before tokens that are still to be scored."""
        most = min([len(self) - 1, *(n - 1 for n in self.unscored[:1])])
        return self.names(root)[: most // BLOCK]

    def names(self, root: bytes) -> list[bytes]:
        """Names of all full blocks (cache.py) of the tokens known, after that of their beginning."""
        names = self._names.setdefault(root.hex(), [])
        for number in range(len(names), len(self.ids) // BLOCK):
            first, end = number * BLOCK, (number + 1) * BLOCK
            shown = [
                item.key + (item.start - first).to_bytes(8, "little", signed=True)
                for item in self.items
                if item.start < end and item.end > first
            ]
            before = names[-1] if names else root
            names.append(chained(before, self.ids[first:end], shown))
        return names

    def drop_media(self) -> None:
        """Lets go of pixels and log-mel frames, once it has ended. Until then they may be needed again: a request that
        gives its blocks to another, or changes its LongRoPE table, runs its prompt once more."""
        if self.phase == "decoding media":
            return
        self.prompt, self.items = self.prompt.without_media(), []
        self.row = Future()
        self.row.set_result(self.prompt)

    def accept(self, token: int) -> None:
        """Adds a drawn token, and the text that can be shown because of it to `pieces`."""
        self.first = self.first or time.monotonic()
        if token in self.tokenizer.eos_ids:
            self.finish_reason = "stop"
            shown = self._text.finish()
        else:
            self.tokens.append(token)
            self.ids.append(token)
            if self.lookup:
                self.lookup.add(token)
            shown = self._text.add(token)
            whole = self.sampler.finished
            if not self._text.stopped and (whole or len(self.tokens) == self.sampling.max_tokens):
                shown += self._text.finish()
                self.finish_reason = "stop" if whole else "length"
        calls = self._calls.add(shown) if self._calls else []
        if self._text.stopped or any(isinstance(part, ToolCall) for part in calls):
            self.finish_reason = "stop"
        self.pieces.append(shown)

    def completion(self) -> Completion:
        assert self.finish_reason, "the request is still running"
        prompt = self.prompt
        return Completion(
            text="".join(self.pieces),
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason,
            adapter=self.adapter,
            prompt_tokens=len(prompt),
            image_tokens=0 if prompt.image_slots is None else len(prompt.image_slots),
            audio_tokens=0 if prompt.audio_slots is None else len(prompt.audio_slots),
            rope="+".join(self.ropes) + (" (bound)" if self.sampling.rope == "bound" else ""),
            cached=self.cached or 0,
            logprobs=tuple(self.sampler.logprobs[: len(self.tokens)]),
            prompt_logprobs=tuple(self.prompt_logprobs),
        )
