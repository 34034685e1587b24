"""Log-probabilities of given tokens and logits of prompts, by forwards without a cache.

>>> scorer = Scorer(runner, rows, most=2048)
>>> scorer.score([Message.user("2 + 2 =")], "4")                  # [-0.1]
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch, pack
from polyphi.engine.prompt import Prompt
from polyphi.engine.rows import RowMaker
from polyphi.engine.runner import Runner, extend, logprobs


class Scorer:
    """Scores prompts with a runner; a forward has at most `most` tokens, or one longer prompt."""

    def __init__(self, runner: Runner, rows: RowMaker, most: int) -> None:
        self._runner, self._rows, self.most = runner, rows, most

    def score(
        self, messages: Prompt, continuation: str, *, adapter: str | None = "auto"
    ) -> list[float]:
        """Natural log-probability of each token of `continuation` as the assistant's answer, without its end."""
        return self.score_many([(messages, continuation)], adapter=adapter)[0]

    def score_many(
        self, pairs: Iterable[tuple[Prompt, str]], *, adapter: str | None = "auto"
    ) -> list[list[float]]:
        """`score` of many (conversation, continuation) pairs, several in one forward."""

        def rows() -> Iterator[tuple[Batch, list[int]]]:
            for messages, continuation in pairs:
                prompt = self._rows.row(messages, adapter=adapter)
                answer = self._rows.processor.tokenizer.encode(continuation)
                self._rows.check_length(len(prompt), len(answer))
                yield prompt, answer

        return score_rows(self._runner, rows(), self.most)

    def logits(self, row: Batch, last: int | None = None) -> Float[Tensor, "n V"]:
        """`logits_many` of one row."""
        (logits,) = self.logits_many([row], last)
        return logits

    def logits_many(
        self, rows: Iterable[Batch], last: int | None = None
    ) -> Iterator[Float[Tensor, "n V"]]:
        """Float32 logits of each row, on the CPU: at every position, or at the `last` ones (at all of a shorter row).
        Several rows run in one forward. Raises ValueError for `last` below 1 and a row that doesn't fit the context."""
        if last is not None and last < 1:
            raise ValueError(f"last is a number of positions from 1 on, or None, found {last}")

        def checked() -> Iterator[Batch]:
            for row in rows:
                self._rows.check_length(len(row), 0)
                yield row

        return logits_rows(self._runner, checked(), self.most, last)


def score_rows(
    runner: Runner, rows: Iterable[tuple[Batch, Sequence[int]]], most: int
) -> list[list[float]]:
    """Natural log-probability of each answer's tokens; a forward has at most `most` tokens, or one pair."""
    scores: list[list[float]] = []
    group: list[tuple[Batch, Sequence[int]]] = []
    size = 0
    for prompt, answer in rows:
        new = len(prompt) + len(answer)
        if group and size + new > most:
            scores += _score_group(runner, group)
            group, size = [], 0
        group.append((prompt, answer))
        size += new
    return scores + (_score_group(runner, group) if group else [])


def _score_group(runner: Runner, group: Sequence[tuple[Batch, Sequence[int]]]) -> list[list[float]]:
    batch = pack([extend(prompt, answer) for prompt, answer in group])
    hidden = runner.hidden(batch)
    return [
        # The position before a token predicts it.
        [t.logprob for t in logprobs(runner.model, hidden[end - len(a) - 1 : end - 1], a)]
        for (_, a), end in zip(group, batch.cu_seqlens[1:], strict=True)
    ]


def logits_rows(
    runner: Runner, rows: Iterable[Batch], most: int, last: int | None = None
) -> Iterator[Float[Tensor, "n V"]]:
    """Float32 logits of each row, on the CPU: at every position, or at the `last` ones. A forward has at most
    `most` tokens, or one longer row; the head is computed row by row, so that only one row's logits are in memory in
    addition to the results."""
    group: list[Batch] = []
    for new in rows:
        if group and sum(map(len, group)) + len(new) > most:
            yield from _logits_group(runner, group, last)
            group = []
        group.append(new)
    if group:
        yield from _logits_group(runner, group, last)


def _logits_group(
    runner: Runner, group: Sequence[Batch], last: int | None
) -> list[Float[Tensor, "_ V"]]:
    batch = pack(group)
    sizes = [len(one) if last is None else min(last, len(one)) for one in group]
    indices = None
    if last is not None:
        ends = zip(batch.cu_seqlens[1:], sizes, strict=True)
        indices = [index for end, size in ends for index in range(end - size, end)]
    with torch.inference_mode():
        hidden = runner.hidden(batch, indices).split(sizes)
        return [runner.model.logits(states).float().cpu() for states in hidden]
