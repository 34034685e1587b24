"""Requests -> answers. One conversation, or many at once: each gets the answer it gets alone.

>>> engine = Engine(model, processor)
>>> engine.generate([Message.user("2 + 2 =")]).text
'4'
>>> [c.text for c in engine.generate_many(conversations)]        # packed together, finished ones make room
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch, pack
from polyphi.chat import (
    Audio,
    Completion,
    Delta,
    Image,
    Message,
    SamplingParams,
    adapter_for,
    media,
)
from polyphi.engine.cache import BLOCK, SequenceCache
from polyphi.engine.request import Request
from polyphi.engine.runner import Runner, Running, extend
from polyphi.engine.sampling import check
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor

GREEDY = SamplingParams()
TOGETHER = 32
"""Sequences decoded at once."""
PREFILL_TOKENS = 8192
"""New prompt tokens of one forward; a longer prompt goes alone."""

Conversation = Sequence[Message | Mapping[str, Any]]


class Engine:
    """A model (put in eval mode) and the processor of its inputs, behind the `Generate` protocol (chat.py)."""

    def __init__(self, model: PhiModel, processor: Processor) -> None:
        self.model = model.eval()
        self.processor = processor
        self.runner = Runner(model)

    def generate(
        self,
        messages: Conversation,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        """The assistant's next turn. `adapter`: "auto" (image -> vision, audio only -> speech, text -> none), a name,
        or None. Raises ValueError for an unknown adapter, media that the model has no encoder for, and a request that
        doesn't fit the context."""
        return self.generate_many([messages], sampling=sampling, adapter=adapter)[0]

    def generate_many(
        self,
        conversations: Iterable[Conversation],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        adapter: str | None = "auto",
    ) -> list[Completion]:
        """Answers in the order of the conversations, up to 32 decoded at once; media are read when their turn
        comes. `sampling` is one for all, or one for each. Raises ValueError as `generate` does."""
        requests: list[Request] = []

        def admitted() -> Iterator[Request]:
            one = isinstance(sampling, SamplingParams)
            each = repeat(sampling) if isinstance(sampling, SamplingParams) else sampling
            for messages, its in zip(conversations, each, strict=not one):
                requests.append(self._request(messages, its, adapter))
                yield requests[-1]

        done: dict[int, Completion] = {}
        for request, _ in self._run(admitted()):
            if request.finish_reason:
                done[id(request)] = request.completion()
                request.sequence.cache = (
                    SequenceCache()
                )  # its memory is free as soon as it's finished
        return [done[id(r)] for r in requests]

    def stream(
        self,
        messages: Conversation,
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Iterator[Delta]:
        """The answer in pieces that join to `generate`'s text; the last one carries the finish reason."""
        request = self._request(messages, sampling, adapter)  # raises here, not at the first piece
        return self._deltas(request)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        for _, text in self._run([request]):
            if request.finish_reason:
                yield Delta(text, request.finish_reason, request.completion())
            elif text:
                yield Delta(text)

    def score(
        self, messages: Conversation, continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer, without its end."""
        return self.score_many([(messages, continuation)], adapter=adapter)[0]

    def score_many(
        self, pairs: Iterable[tuple[Conversation, str]], *, adapter: str | None = "auto"
    ) -> list[list[float]]:
        """`score` of many (conversation, continuation) pairs, several in one forward."""
        scores: list[list[float]] = []
        group: list[tuple[Batch, list[int]]] = []
        for messages, continuation in pairs:
            prompt = self.row(messages, adapter=adapter)
            answer = self.processor.tokenizer.encode(continuation)
            self._check_room(len(prompt), len(answer))
            if (
                group
                and sum(len(p) + len(a) for p, a in group) + len(prompt) + len(answer)
                > PREFILL_TOKENS
            ):
                scores += self._score_group(group)
                group = []
            group.append((prompt, answer))
        return scores + (self._score_group(group) if group else [])

    def _score_group(self, group: Sequence[tuple[Batch, list[int]]]) -> list[list[float]]:
        batch = pack([extend(prompt, answer) for prompt, answer in group])
        hidden = self.runner.hidden(batch)
        scores = []
        with torch.inference_mode():
            for (_, answer), end in zip(group, batch.bounds[1:], strict=True):
                before = hidden[
                    end - len(answer) - 1 : end - 1
                ]  # the position before a token predicts it
                chosen = torch.tensor(answer, dtype=torch.long, device=hidden.device)
                logs = self.model.logits(before).float().log_softmax(-1)
                scores.append(logs.gather(1, chosen[:, None])[:, 0].tolist())
        return scores

    def logits(self, row: Batch) -> Float[Tensor, "T V"]:
        """Float32 logits at every position of a row, on the CPU."""
        self._check_room(len(row), 0)
        with torch.inference_mode():
            return self.model.logits(self.runner.hidden(row)).float().cpu()

    def row(self, messages: Conversation, *, adapter: str | None = "auto") -> Batch:
        """A conversation as the row that the model answers, generation prompt included."""
        parsed = [Message.parse(m) for m in messages]
        self._check_media(len(media(parsed, Image)), len(media(parsed, Audio)))
        chosen = self._adapter(adapter, adapter_for(parsed))
        return self.processor.row(
            parsed, adapter=chosen, generation_prompt=True, context=self.context
        )

    def ids_row(
        self,
        ids: Sequence[int],
        images: Sequence[Any] = (),
        audios: Sequence[Any] = (),
        *,
        adapter: str | None = "auto",
    ) -> Batch:
        """Given ids, with the pictures and clips of their placeholders, as a row."""
        self._check_media(len(images), len(audios))
        chosen = self._adapter(adapter, "vision" if images else "speech" if audios else None)
        return self.processor.ids_row(ids, images, audios, chosen, context=self.context)

    @property
    def context(self) -> int:
        """Tokens that the model can read, prompt and answer together."""
        return self.model.config.decoder.max_position_embeddings

    def _check_media(self, pictures: int, clips: int) -> None:
        for kind, given, encoder in (
            ("pictures", pictures, self.model.vision),
            ("clips", clips, self.model.audio),
        ):
            if given and encoder is None:
                raise ValueError(
                    f"the request has {given} {kind}, but this model has no encoder for them"
                )

    def _adapter(self, adapter: str | None, called_for: str | None) -> str | None:
        """`adapter`, or for "auto" the one that the content calls for where this model has it: Phi-4-mini has none."""
        have = self.model.config.adapters
        if adapter == "auto":
            return called_for if called_for in have else None
        if adapter is not None and adapter not in have:
            raise ValueError(
                f"unknown adapter {adapter!r}; expected 'auto', None or one of {sorted(have)}"
            )
        return adapter

    def _check_room(self, prompt: int, more: int) -> None:
        if prompt + more > self.context:
            raise ValueError(
                f"{prompt} prompt tokens and {more} more are {prompt + more}, but the model reads at most "
                f"{self.context}; shorten the prompt or lower max_tokens"
            )

    def _request(
        self, messages: Conversation, sampling: SamplingParams, adapter: str | None
    ) -> Request:
        check(sampling)
        prompt = self.row(messages, adapter=adapter)
        self._check_room(len(prompt), sampling.max_tokens)
        reserve = len(prompt) + min(sampling.max_tokens, BLOCK)
        return Request(
            Running(prompt, cache=SequenceCache(reserve)), sampling, self.processor.tokenizer
        )

    def _run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str]]:
        """Advances requests until all are finished; yields each with the text that its newest token lets show."""
        waiting, next_up = iter(requests), None
        running: list[Request] = []
        while True:
            admitted = 0
            while len(running) < TOGETHER:
                next_up = next_up or next(waiting, None)
                if next_up is None or (
                    admitted and admitted + len(next_up.sequence) > PREFILL_TOKENS
                ):
                    break
                admitted += len(next_up.sequence)
                running.append(next_up)
                next_up = None
            if not running:
                return
            logits = self.runner.advance([r.sequence for r in running])
            # One transfer for all greedy choices; a sampler of its own for the others.
            greedy = logits.argmax(-1).tolist()
            for i, request in enumerate(running):
                token = (
                    greedy[i] if request.sampling.temperature == 0 else request.sampler(logits[i])
                )
                yield request, request.accept(token)
            running = [r for r in running if r.finish_reason is None]
