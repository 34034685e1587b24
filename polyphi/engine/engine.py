"""Requests -> answers: all requests run in one batch, and each gets the answer it would get alone.

>>> engine = Engine(model, processor)
>>> engine.generate([Message.user("2 + 2 =")]).text
'4'
>>> [c.text for c in engine.generate_many(conversations)]        # continuous batching

Internally a request is submitted and steps run until it is finished; a program may do the same::

    request = engine.submit(messages)            # its media are decoded in threads during the steps
    while not request.finish_reason:
        engine.step()
    engine.abort(request)                        # at any time, from any thread; frees its resources

or have one thread run the steps, as a server does::

    sampling = engine.with_grammar(sampling)     # raises ValueError for an invalid grammar
    row = engine.prepare(messages, sampling)     # and for the rest of an invalid request
    (request,) = engine.enter(row, sampling)
    text, reason = engine.output_delta(request)  # after each step of `engine.run`, which runs in another thread

core.py describes a step.
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
from polyphi.engine.cache import BLOCK, check_format, token_bytes
from polyphi.engine.core import Core
from polyphi.engine.encoders import items
from polyphi.engine.memory import free_beside
from polyphi.engine.prompt import Prompt, parse_prompt
from polyphi.engine.request import NOBODY, Caller, Request
from polyphi.engine.rows import RowMaker
from polyphi.engine.sampling import check
from polyphi.engine.scores import Scorer
from polyphi.messages import (
    Audio,
    Completion,
    Delta,
    Image,
    Message,
    SamplingParams,
    Video,
    media,
)
from polyphi.model.config import DecoderConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.placeholders import TokensPrompt
from polyphi.processing.processor import Processor
from polyphi.quantization import quantize

GREEDY = SamplingParams()
MAX_NUM_SEQS = 32
"""Sequences that run at once."""
CHUNK = 512
"""Prompt tokens of a step while a request waits for its next token, and of every step of a large model on a CPU: larger
steps need more fresh memory, and clearing it takes a seventh of the time at 2,048."""
PREFILL = 2048
"""Prompt tokens of a step while no request does, and tokens of one forward when scoring."""
DRAFT = 15
"""Most draft tokens of a step for requests with `draft="auto"`."""
CPU_CACHE = 256 * 2**20
"""Bytes of weights that may fit in a CPU's caches."""
ENCODER_CACHE = 256 * 2**20
"""Bytes of the cache of encoder outputs."""
TYPICAL_LENGTH = 2048
"""Tokens of a typical sequence: the KV cache has capacity for `MAX_NUM_SEQS` of them, or one whole context."""


class Stopped(Exception):
    """The caller of `generate_many` set its `stop` event."""


class Engine:
    """A model (put in eval mode) and the processor of its inputs, behind the `Generate` protocol (chat.py).

    `memory`: bytes for keys and values; by default for 32 sequences of 2,048 tokens or one whole context, whichever is
    more, but at most half of the free memory. `max_num_seqs`: sequences that run at once. `encoder_cache`: bytes for
    encoder outputs. `prefix_cache`: whether sequences share cached prefixes. `kv`: "int8" stores keys and values in
    8 bits, which halves them (on a CPU; None: in the model's dtype). Safe to use from several threads; one thread at a
    time runs a step.
    """

    def __init__(
        self,
        model: PhiModel,
        processor: Processor,
        *,
        memory: int | None = None,
        max_num_seqs: int = MAX_NUM_SEQS,
        chunk: int = CHUNK,
        prefill: int | None = None,
        encoder_cache: int = ENCODER_CACHE,
        prefix_cache: bool = True,
        kv: str | None = None,
    ) -> None:
        check_format(kv, model.decoder.device)
        self.model = model.eval()
        self.processor, self.kv = processor, kv
        large = _is_memory_bound(model)
        prefill = prefill or (CHUNK if large else PREFILL)
        config, dtype = model.config.decoder, model.decoder.dtype
        each = token_bytes(config, dtype, kv)
        if memory is None:
            blocks = default_blocks(config, each, free_beside(model), max_num_seqs)
        else:
            blocks = memory // (each * BLOCK)
        self.core = core = Core(
            model,
            processor.tokenizer,
            blocks=blocks,
            max_num_seqs=max_num_seqs,
            chunk=chunk,
            prefill=prefill,
            draft=DRAFT if large else 0,
            encoder_cache=encoder_cache,
            prefix_cache=prefix_cache,
            kv=kv,
        )
        self.runner, self.scheduler, self.pool = core.runner, core.scheduler, core.pool
        self.encoders, self.counters = core.encoders, core.counters
        self.adapters = core.adapters
        self.output_delta, self.output_pieces = core.output_delta, core.output_pieces
        self.run, self.step, self.abort = core.run, core.step, core.abort
        self.wake = core.wake
        self.rows = rows = RowMaker(model, processor)
        self.row, self.row_steps = rows.row, rows.row_steps
        self.ids_row, self.check_sampling = rows.ids_row, rows.check_sampling
        self.with_grammar = rows.with_grammar
        self.scorer = scorer = Scorer(core.runner, rows, prefill)
        self.score, self.score_many = scorer.score, scorer.score_many
        self.logits, self.logits_many = scorer.logits, scorer.logits_many
        self._decoding = threading.Lock()
        self._decoders: ThreadPoolExecutor | None = None
        self._groups = count(1)  # one number per call

    @property
    def capacity(self) -> int:
        """Tokens whose keys and values fit in memory, over all sequences."""
        return self.pool.size * BLOCK

    @property
    def context(self) -> int:
        """Most tokens of a sequence, prompt and answer, that the model supports."""
        return self.rows.context

    @property
    def longest(self) -> int:
        """Most tokens that a sequence may have: limited by the model's context and the memory for keys and values."""
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
        """Answers in the order of the conversations, which are read as capacity becomes free. `sampling` is one for
        all, or one for each. Raises ValueError as `generate` does, and `Stopped` within a step of `stop` being set."""
        one = isinstance(sampling, SamplingParams)
        each = repeat(sampling) if isinstance(sampling, SamplingParams) else iter(sampling)
        inputs = zip(conversations, each, strict=not one)
        answers: list[list[Completion | None]] = []
        active: dict[Request, tuple[int, int]] = {}
        call = next(self._groups)
        more = True
        try:
            while True:
                while more and len(active) < 2 * self.scheduler.max_num_seqs:
                    if (pair := next(inputs, None)) is None:
                        more = False
                        break
                    group = self._submit_all(*pair, adapter, caller, call)
                    active |= {r: (len(answers), i) for i, r in enumerate(group)}
                    answers.append([None] * len(group))
                if not active:
                    break
                if stop is not None and stop.is_set():
                    raise Stopped
                self.core.advance()
                for request in [r for r in active if r.finish_reason]:
                    number, i = active.pop(request)
                    answers[number][i] = _answer(request)
        finally:
            for request in active:
                self.abort(request)
        return [_joined([c for c in group if c is not None]) for group in answers]

    def stream(
        self,
        messages: Prompt,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer in deltas whose texts join to `generate`'s; the last one has the finish reason. Closing the
        iterator aborts the request. Raises ValueError as `generate` does, before the first delta."""
        if sampling.n != 1:
            raise ValueError(f"a stream has one answer: expected n=1, found n={sampling.n}")
        sampling = self.with_grammar(sampling)
        request = self.submit(messages, sampling=sampling, adapter=adapter)
        try:
            request.row.result()  # an invalid request raises here, not at the first delta
        except BaseException:  # KeyboardInterrupt too
            self.abort(request)
            raise
        return self._deltas(request)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        sent = 0  # tokens
        without_text = not request.tokenizer.has_vocabulary  # no token has text to wait for
        try:
            while True:
                text, reason = self.output_delta(request)
                tokens = tuple(request.tokens[sent:])
                if text or reason or (tokens and without_text):
                    sent += len(tokens)
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
        """A request that the next steps answer. Text is tokenized here; media are decoded in threads during the steps,
        and `request.row` raises their errors; a grammar is compiled meanwhile, and an invalid one ends the request with
        its error. Raises ValueError for the rest as `generate` does."""
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
        """The requests of a conversation's `n` answers, which share the row; all but the first wait for its prefill."""
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
        """The checked row of a conversation, media decoded. Independent of steps; safe in any thread. Raises ValueError
        as `generate` does, but for an invalid grammar, which `with_grammar` compiles."""
        self.check_sampling(sampling)
        row = self.row(messages, adapter=adapter)
        self.check_row(row, sampling)
        return row

    def check_row(self, row: Batch, sampling: SamplingParams) -> None:
        """Raises ValueError if a row and its answer don't fit the context or memory."""
        self.rows.check_length(len(row), sampling.max_tokens)
        if (total := len(row) + sampling.max_tokens) > self.capacity:
            raise ValueError(
                f"{len(row)} prompt tokens and {sampling.max_tokens} more are {total}, but there is memory for "
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
        """`enter` of several rows, which are one call of the caller (scheduler.py). Raises UnknownAdapter, and enters
        none, if the adapter of a row was removed."""
        group = next(self._groups)
        requests: list[list[Request]] = []
        with self.core.turn():
            for row in rows:
                self.adapters.check(row.adapters[0])
            for row in rows:
                future: Future[Batch] = Future()
                future.set_result(row)
                requests.append(self.core.enter(future, sampling, caller, group))
        return requests

    def embed(
        self, part: Image | Audio, projector: Literal["speech", "vision"] = "speech"
    ) -> Float[Tensor, "n D"]:
        """Embeddings that replace the placeholders of an image or an audio clip, float32, on the CPU. `projector`: of
        the two audio projectors. Uses the engine's cache of encoder outputs. Raises ValueError for other parts, media
        that can't be read, and a model without an encoder for them."""
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


def default_blocks(
    config: DecoderConfig, token_bytes: int, free: int, max_num_seqs: int = MAX_NUM_SEQS
) -> int:
    """Blocks of the KV cache by default: for `max_num_seqs` typical sequences or one whole context, whichever is more,
    but at most half of the memory that is `free` beside the weights. `token_bytes`: keys and values of a token."""
    tokens = max(config.max_position_embeddings, max_num_seqs * TYPICAL_LENGTH)
    return min(tokens // BLOCK, free // 2 // (token_bytes * BLOCK))


def _is_memory_bound(model: PhiModel) -> bool:
    """Whether reading the weights dominates the time of a decode step, so that draft tokens are cheap: on a CPU, where
    the weights exceed its caches. On a GPU a decode step is a CUDA graph (graphs.py), and draft tokens weren't
    measured."""
    weights = (*model.decoder.parameters(), *quantize.other_tensors(model.decoder))
    on_cpu = model.decoder.device.type == "cpu"
    return on_cpu and sum(quantize.nbytes(t) for t in weights) > CPU_CACHE


def _has_media(prompt: Sequence[Message] | TokensPrompt) -> bool:
    """Whether images, clips or videos have to be decoded."""
    if isinstance(prompt, TokensPrompt):
        return bool(prompt.images or prompt.audios)
    return any(media(prompt, part_type) for part_type in (Image, Audio, Video))


def _answer(request: Request) -> Completion:
    """A finished request's answer. Raises the error that ended the request."""
    if request.error is not None:
        raise request.error
    return request.completion()


def _joined(answers: Sequence[Completion]) -> Completion:
    """The first answer, with the others of its conversation."""
    return replace(answers[0], others=tuple(answers[1:])) if len(answers) > 1 else answers[0]
