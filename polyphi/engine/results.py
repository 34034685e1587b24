"""Logits of a step -> the next tokens of its requests."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.engine.request import Request
from polyphi.engine.runner import PartOutput
from polyphi.engine.scheduler import Part


class NotFinite(RuntimeError):
    """The model's output for a request has NaN or infinity in it: there is no answer."""


def accept(part: Part, output: PartOutput, finite: Sequence[bool], best: Sequence[int]) -> None:
    """The request of a part of a step receives its new tokens and the log-probabilities of its prompt. One that asked
    for no tokens is finished; one whose output isn't finite ends with `NotFinite`. `finite` and `best` are its rows of
    `finite_rows` and `argmax_rows`."""
    part.request.prompt_logprobs += output.scores
    if not all(math.isfinite(score.logprob) for score in output.scores):
        _not_finite(part.request)
    elif output.logits is not None:
        _accept_tokens(part, output.logits, finite, best)
    elif part.whole:  # only its prompt was asked about
        part.request.finish_reason = "length"


def _accept_tokens(
    part: Part, rows: Float[Tensor, "n V"], finite: Sequence[bool], best: Sequence[int]
) -> None:
    """The next token, and those after it as long as they were guessed right: a guess's own logits are only good if
    it is what was drawn."""
    request = part.request
    for number in range(len(rows)):
        if not finite[number]:
            _not_finite(request)
            break
        if request.sampler.plain:
            token = best[number]
            request.sampler.accept(token)
        else:
            try:
                token = request.sampler.draw(rows[number])
            except ValueError as error:  # its own grammar: no one else's end
                request.error, request.finish_reason = error, "error"
                break
        request.accept(token)
        right = number < len(part.guesses) and token == part.guesses[number]
        if request.finish_reason or not right:
            break
        request.table.length += 1
    if request.prefilled:
        request.features.clear()


def _not_finite(request: Request) -> None:
    request.finish_reason = "error"
    request.error = NotFinite(
        "the model's output for this request is NaN or infinite, so there is no answer; weights that are damaged, "
        "or a type too narrow for them (float16), cause it"
    )


def finite_rows(logits: Sequence[Tensor | None]) -> list[list[bool]]:
    """Whether each row of logits is finite: then so is its sum, for logits are far from float32's largest number."""
    given = [rows.sum(-1) for rows in logits if rows is not None]
    found = iter(torch.cat(given).isfinite().tolist() if given else ())
    return [[next(found) for _ in rows] if rows is not None else [] for rows in logits]


def argmax_rows(parts: Sequence[Part], logits: Sequence[Tensor | None]) -> list[list[int]]:
    """The likeliest tokens of those that take nothing else, moved to the host together."""
    plain = [
        rows
        for p, rows in zip(parts, logits, strict=True)
        if rows is not None and p.request.sampler.plain
    ]
    best = iter(torch.cat(plain).argmax(-1).tolist()) if plain else iter(())
    return [
        [next(best) for _ in rows] if rows is not None and p.request.sampler.plain else []
        for p, rows in zip(parts, logits, strict=True)
    ]
