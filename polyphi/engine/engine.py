"""Requests -> answers: whoever asks is answered in one batch with everybody else, and gets the answer it gets alone.

>>> engine = Engine(model, processor)
>>> engine.generate([Message.user("2 + 2 =")]).text
'4'
>>> [c.text for c in engine.generate_many(conversations)]        # packed together, finished ones make room

Inside, a request is submitted and the engine is stepped until it is finished; a program may do the same by hand::

    request = engine.submit(messages)            # its media are decoded beside the steps
    while not request.finish_reason:
        engine.step()
    engine.abort(request)                        # at any time, from any thread: all that it held is free

or let one thread step for everybody, as a server does::

    row = engine.prepare(messages, sampling)     # what is wrong with a request is told here
    (request,) = engine.enter(row, sampling)
    text, reason = engine.news(request)          # after each step of `engine.run`, which another thread is in

What a step does stands in core.py.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count, repeat
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch
from polyphi.engine.cache import BLOCK, check_kind, token_bytes
from polyphi.engine.core import Core
from polyphi.engine.encoders import items
from polyphi.engine.memory import beside
from polyphi.engine.prompt import Prompt, parse_prompt
from polyphi.engine.request import NOBODY, Caller, Request
from polyphi.engine.rows import Rows
from polyphi.engine.sampling import check
from polyphi.engine.scores import Scorer
from polyphi.messages import (
    Audio,
    Completion,
    Delta,
    Image,
    Message,
    SamplingParams,
    TokensPrompt,
    Video,
    media,
)
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.quantization import quantize

GREEDY = SamplingParams()
TOGETHER = 32
"""Sequences that run at once."""
CHUNK = 512
"""Prompt tokens of a step while somebody waits for the next token, and of a large model's on a CPU: more only ask for
memory that has to be cleared first, which takes a seventh of the time at 2,048."""
PREFILL = 2048
"""Prompt tokens of a step while nobody does, and of one forward of scores."""
DRAFT = 15
"""Tokens that are guessed in a step, at most, where a request leaves it to the engine."""
CACHED = 256 * 2**20
"""Bytes of weights that a CPU may hold in its caches."""
ENCODED = 256 * 2**20
"""Bytes of encoder outputs to remember."""
ORDINARY = 2048
"""Tokens of an ordinary sequence: memory for keys and values is made for `TOGETHER` of them, or one whole context."""


class Stopped(Exception):
    """Whoever asked doesn't want to know any more."""


class Engine:
    """A model (put in eval mode) and the processor of its inputs, behind the `Generate` protocol (chat.py).

    `memory`: bytes for keys and values; by default for 32 ordinary sequences or one whole context, whichever is more,
    but at most half of what is free. `remember`: whether beginnings of sequences are shared. `kv`: "int8" keeps keys
    and values in 8 bits, which halves them (on a CPU; None: in the model's type). Safe to use from several
    threads; a step is one thread's work at a time.
    """

    def __init__(
        self,
        model: PhiModel,
        processor: Processor,
        *,
        memory: int | None = None,
        together: int = TOGETHER,
        chunk: int = CHUNK,
        prefill: int | None = None,
        encoded: int = ENCODED,
        remember: bool = True,
        kv: str | None = None,
    ) -> None:
        check_kind(kv, model.decoder.device)
        self.model = model.eval()
        self.processor, self.kv = processor, kv
        large = _reads_weights(model)
        prefill = prefill or (CHUNK if large else PREFILL)
        config, dtype = model.config.decoder, model.decoder.dtype
        size = token_bytes(config, dtype, kv) * BLOCK
        ordinary = max(config.max_position_embeddings, together * ORDINARY) // BLOCK
        blocks = min(ordinary, beside(model) // 2 // size) if memory is None else memory // size
        self.core = core = Core(
            model,
            processor.tokenizer,
            blocks=blocks,
            sequences=together,
            chunk=chunk,
            prefill=prefill,
            draft=DRAFT if large else 0,
            encoded=encoded,
            remember=remember,
            kv=kv,
        )
        self.runner, self.scheduler, self.pool = core.runner, core.scheduler, core.pool
        self.encoders, self.counters, self.news = core.encoders, core.counters, core.news
        self.run, self.step, self.abort = core.run, core.step, core.abort
        self.rows = rows = Rows(model, processor)
        self.row, self.ids_row, self.check_sampling = rows.row, rows.ids_row, rows.check_sampling
        self.scorer = scorer = Scorer(core.runner, rows, prefill)
        self.score, self.score_many = scorer.score, scorer.score_many
        self.logits, self.logits_many = scorer.logits, scorer.logits_many
        self._decoding = threading.Lock()
        self._decoders: ThreadPoolExecutor | None = None
        self._groups = count(1)  # numbers of calls

    @property
    def capacity(self) -> int:
        """Tokens of keys and values that memory holds, all sequences together."""
        return self.pool.size * BLOCK

    @property
    def context(self) -> int:
        """Tokens that the model can read, prompt and answer together."""
        return self.rows.context

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have: those that the model reads, or there is memory for."""
        return min(self.context, self.capacity)

    def generate(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        """The assistant's next turn after messages, or the continuation of token ids (prompt.py). `adapter`: "auto"
        (image -> vision, audio only -> speech, text -> none), a name, or "none" or None. Raises ValueError for an
        unknown adapter, media that the model has no encoder for, and a request that doesn't fit the context."""
        return self.generate_many([messages], sampling=sampling, adapter=adapter)[0]

    def generate_many(
        self,
        conversations: Iterable[Prompt],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        adapter: str | None = "auto",
        stop: threading.Event | None = None,
        caller: Caller = NOBODY,
    ) -> list[Completion]:
        """Answers in the order of the conversations; media are read when their turn comes. `sampling` is one for all,
        or one for each. Raises ValueError as `generate` does, and `Stopped` within a step of `stop` being set."""
        one = isinstance(sampling, SamplingParams)
        each = repeat(sampling) if isinstance(sampling, SamplingParams) else iter(sampling)
        coming = zip(conversations, each, strict=not one)
        done: list[list[Completion | None]] = []
        under_way: dict[Request, tuple[int, int]] = {}
        call = next(self._groups)
        more = True
        try:
            while True:
                while more and len(under_way) < 2 * self.scheduler.together:
                    if (pair := next(coming, None)) is None:
                        more = False
                        break
                    group = self._submit_all(*pair, adapter, caller, call)
                    under_way |= {r: (len(done), i) for i, r in enumerate(group)}
                    done.append([None] * len(group))
                if not under_way:
                    break
                if stop is not None and stop.is_set():
                    raise Stopped
                self.core.advance()
                for request in [r for r in under_way if r.finish_reason]:
                    number, i = under_way.pop(request)
                    done[number][i] = _answer(request)
        finally:
            for request in under_way:
                self.abort(request)
        return [_together([c for c in group if c is not None]) for group in done]

    def stream(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer in pieces that join to `generate`'s text; the last one carries the finish reason. Closing the
        iterator aborts the request. Raises ValueError as `generate` does, before the first piece."""
        if sampling.n != 1:
            raise ValueError(f"one answer is streamed at a time, found n={sampling.n}")
        request = self.submit(messages, sampling=sampling, adapter=adapter)
        try:
            request.row.result()  # a request that can't be answered is told here, not at the first piece
        except BaseException:  # also of who doesn't want to wait any longer
            self.abort(request)
            raise
        return self._deltas(request)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        shown = 0  # tokens
        always = not request.tokenizer.has_vocabulary  # then no token has text to wait for
        try:
            while True:
                text, reason = self.news(request)
                tokens = tuple(request.tokens[shown:])
                if text or reason or (tokens and always):
                    shown += len(tokens)
                    yield Delta(text, reason, request.completion() if reason else None, tokens)
                if reason:
                    return
                self.core.advance()
        finally:
            self.abort(request)

    def submit(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Request:
        """A request that the next steps will answer. Text is read here; media are decoded beside the steps, and what is
        wrong with them comes out of `request.row`. Raises ValueError as `generate` does."""
        (request,) = self._submit_all(
            messages, replace(sampling, n=1), adapter, NOBODY, next(self._groups)
        )
        return request

    def _submit_all(
        self,
        messages: Prompt,
        sampling: SamplingParams,
        adapter: str | None,
        caller: Caller,
        group: int,
    ) -> list[Request]:
        """The requests of a conversation's `n` answers; they share the row, and all but the first wait for its keys."""
        check(sampling)
        parsed = parse_prompt(messages)
        future: Future[Batch]
        if _has_media(parsed):
            with self._decoding:
                self._decoders = self._decoders or ThreadPoolExecutor(2, "decode media")
            future = self._decoders.submit(self.prepare, parsed, sampling, adapter)
        else:
            future = Future()
            future.set_result(self.prepare(parsed, sampling, adapter))
        return self.core.enter(future, sampling, caller, group)

    def prepare(
        self,
        messages: Prompt,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Batch:
        """The row of a conversation, media decoded, after everything that can be wrong with it and with what is asked
        was looked at. Takes no part in steps and waits for none. Raises ValueError as `generate` does."""
        self.check_sampling(sampling)
        made = self.row(messages, adapter=adapter)
        self.check_row(made, sampling)
        return made

    def check_row(self, row: Batch, sampling: SamplingParams) -> None:
        """Raises ValueError if a row and its answer don't fit the context or memory."""
        self.rows.check_length(len(row), sampling.max_tokens)
        if (bound := len(row) + sampling.max_tokens) > self.capacity:
            raise ValueError(
                f"{len(row)} prompt tokens and {sampling.max_tokens} more are {bound}, but there is memory for "
                f"the keys and values of {self.capacity}; lower max_tokens, or give the engine more memory"
            )

    def enter(
        self, row: Batch, sampling: SamplingParams = GREEDY, *, caller: Caller = NOBODY
    ) -> list[Request]:
        """The requests of the `n` answers to a prepared row."""
        return self.enter_all([row], sampling, caller=caller)[0]

    def enter_all(
        self,
        rows: Sequence[Batch],
        sampling: SamplingParams = GREEDY,
        *,
        caller: Caller = NOBODY,
    ) -> list[list[Request]]:
        """`enter` of several rows, which are one call of the caller (scheduler.py)."""
        group = next(self._groups)
        entered: list[list[Request]] = []
        with self.core.turn():
            for row in rows:
                made: Future[Batch] = Future()
                made.set_result(row)
                entered.append(self.core.enter(made, sampling, caller, group))
        return entered

    def embed(
        self, part: Image | Audio, projector: Literal["speech", "vision"] = "speech"
    ) -> Float[Tensor, "n D"]:
        """What the decoder receives in the place of an image or an audio clip, float32, on the CPU. A clip goes through
        that audio `projector`. Encoder outputs are looked up in and added to the engine's cache. Raises ValueError for
        other parts, media that can't be read, and where the model has no encoder for them."""
        if projector not in ("speech", "vision"):
            raise ValueError(f"the audio projector is speech or vision, found {projector!r}")
        tokenizer = self.processor.tokenizer
        if isinstance(part, Image):
            prompt = self.ids_row([tokenizer.image_id or 0], [part])
        elif isinstance(part, Audio):
            prompt = self.ids_row([tokenizer.audio_id or 0], (), [part])
            clips = tuple(replace(clip, branch=projector) for clip in prompt.clips)
            prompt = replace(prompt, clips=clips)
        else:
            raise ValueError(f"expected an Image or an Audio, found {type(part).__name__}")
        (item,) = items(prompt)
        with self.core.turn():
            if not self.core.busy:
                self.core.forget_old_weights()
            vectors = self.encoders.encode([item])[item.key]
        return vectors.to("cpu", torch.float32, copy=True)


def _reads_weights(model: PhiModel) -> bool:
    """Whether a step takes as long as its weights are read, so that guesses are cheap: on a CPU, where they don't stay
    in its caches. On a GPU a step of single tokens is a recorded graph (graphs.py), and guesses weren't measured."""
    weights = (*model.decoder.parameters(), *quantize.held(model.decoder))
    on_cpu = model.decoder.device.type == "cpu"
    return on_cpu and sum(quantize.nbytes(t) for t in weights) > CACHED


def _has_media(prompt: Sequence[Message] | TokensPrompt) -> bool:
    """Whether images, clips or videos have to be decoded."""
    if isinstance(prompt, TokensPrompt):
        return bool(prompt.images or prompt.audios)
    return any(media(prompt, kind) for kind in (Image, Audio, Video))


def _answer(request: Request) -> Completion:
    """A finished request's answer; raises what ended it instead."""
    if request.error is not None:
        raise request.error
    return request.completion()


def _together(answers: Sequence[Completion]) -> Completion:
    """The first answer, with the others of its conversation."""
    return replace(answers[0], others=tuple(answers[1:])) if len(answers) > 1 else answers[0]
