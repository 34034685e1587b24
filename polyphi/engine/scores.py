"""Log-probabilities of given tokens and logits of prompts, by forwards without a cache.

>>> score_many(engine, [([Message.user("2 + 2 =")], "4")])        # [[-0.1]]

A forward has at most as many tokens as a step of the engine, or one longer row.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.engine.engine import Engine
from polyphi.engine.rows import Prompt
from polyphi.engine.runner import extend, logprobs
from polyphi.types.batch import Batch, pack

T = TypeVar("T")


def score_many(
    engine: Engine, pairs: Iterable[tuple[Prompt, str]], *, adapter: str | None = "auto"
) -> list[list[float]]:
    """Natural log-probability of each token of the continuation in (prompt, continuation) pairs, without its end."""

    def rows() -> Iterator[tuple[Batch, list[int]]]:
        for prompt, continuation in pairs:
            row = engine.rows.row(prompt, adapter=adapter)
            answer = engine.processor.tokenizer.encode(continuation)
            engine.rows.check_length(len(row), len(answer))
            yield row, answer

    scores: list[list[float]] = []
    for group in _groups(rows(), lambda pair: len(pair[0]) + len(pair[1]), engine.prefill):
        batch = pack([extend(row, answer) for row, answer in group])
        hidden = engine.runner.hidden(batch)
        for (_, answer), end in zip(group, batch.cu_seqlens[1:], strict=True):
            # The position before a token predicts it.
            states = hidden[end - len(answer) - 1 : end - 1]
            scores.append([t.logprob for t in logprobs(engine.runner.model, states, answer)])
    return scores


def logits_many(
    engine: Engine, rows: Iterable[Batch], last: int | None = None
) -> list[Float[Tensor, "_ V"]]:
    """Float32 logits of each row, on the CPU: at every position, or at the `last` ones (at all of a shorter row). The
    head is computed row by row, so that only one row's logits are in memory in addition to the results. Raises
    ValueError for `last` below 1 and a row that doesn't fit the context."""
    if last is not None and last < 1:
        raise ValueError(f"last is a number of positions from 1 on, or None, found {last}")

    def checked() -> Iterator[Batch]:
        for row in rows:
            engine.rows.check_length(len(row), 0)
            yield row

    logits: list[Tensor] = []
    for group in _groups(checked(), len, engine.prefill):
        batch = pack(group)
        sizes = [len(row) if last is None else min(last, len(row)) for row in group]
        indices = None
        if last is not None:
            ends = zip(batch.cu_seqlens[1:], sizes, strict=True)
            indices = [index for end, size in ends for index in range(end - size, end)]
        with torch.inference_mode():
            hidden = engine.runner.hidden(batch, indices).split(sizes)
            logits += [engine.runner.model.logits(states).float().cpu() for states in hidden]
    return logits


def _groups(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """The items in order, in groups of at most `most` tokens; a larger item is alone."""
    group: list[T] = []
    tokens = 0
    for item in items:
        if group and tokens + size(item) > most:
            yield group
            group, tokens = [], 0
        group.append(item)
        tokens += size(item)
    if group:
        yield group
