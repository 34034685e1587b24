"""Logits of a step -> the next tokens of its requests."""

import math
import time
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.decoding.structured import GrammarProcessEnded, wait_for
from polyphi.engine.request import Request, Unsampled
from polyphi.engine.runner import PartOutput
from polyphi.engine.scheduler import StepPart

DRAFT_WAIT = 0.005
"""Seconds to wait for the mask after an accepted draft token: another step would take longer. A process that takes more
isn't waited for again, since others wait meanwhile."""


class NotFinite(RuntimeError):
    """The model's output for a request has NaN or infinity, so there is no answer."""


def accept(part: StepPart, output: PartOutput, finite: Sequence[bool], best: Sequence[int]) -> None:
    """Give a request its new tokens and the log-probabilities of its prompt. A request with `max_tokens=0` is then
    finished; one whose output isn't finite ends with `NotFinite`. `finite` and `best` are its rows of `finite_rows` and
    `argmax_rows`."""
    part.request.prompt_logprobs += output.prompt_logprobs
    if output.hidden_sum is not None:
        part.request.add_hidden(output.hidden_sum, output.pooled)
    scores = [entry.logprob for entry in output.prompt_logprobs]
    if output.hidden_sum is not None:
        scores.append(float(output.hidden_sum.sum()))
    if not all(map(math.isfinite, scores)):
        _not_finite(part.request)
    elif output.logits is not None:
        _accept_tokens(part.request, output.logits, finite, best, part.draft_tokens)
    elif part.is_last:  # max_tokens is 0
        part.request.finish_reason = "length"


def resume(request: Request) -> None:
    """Sample what waited for the mask of the grammar, if it is there now."""
    request.settle()
    if request.unsampled is not None and not request.finish_reason:
        unsampled, request.unsampled = request.unsampled, None
        _accept_tokens(request, unsampled.rows, unsampled.finite, (), unsampled.draft_tokens)


def settle(requests: Sequence[Request], seconds: float) -> None:
    """End the answers that are complete according to the processes of their grammars, within `seconds`. What a process
    says later is read after the next step, which then runs for nothing."""
    end = time.monotonic() + seconds
    while unsettled := [
        r.matcher.process
        for r in requests
        if r.matcher is not None and not r.finish_reason and not r.matcher.settled
    ]:
        if (seconds := end - time.monotonic()) <= 0:
            break
        wait_for(unsettled, seconds)
    for request in requests:
        request.settle()


def _accept_tokens(
    request: Request,
    rows: Float[Tensor, "n V"],
    finite: Sequence[bool],
    best: Sequence[int],
    drafts: tuple[int, ...],
) -> None:
    """The next token, and further ones as long as the draft tokens are accepted: the logits after a draft token are
    valid only if that token is the sampled one."""
    for number in range(len(rows)):
        if (matcher := request.matcher) is not None:
            if number and not matcher.ready and not matcher.process.is_slow:
                wait_for([matcher.process], DRAFT_WAIT)
                matcher.process.is_slow = not matcher.ready
            request.settle()
            if request.finish_reason:
                break
            if not matcher.ready:
                # Recorded graphs reuse the memory of their logits.
                request.unsampled = Unsampled(
                    rows[number:].clone(), finite[number:], drafts[number:]
                )
                break
        if not finite[number]:
            _not_finite(request)
            break
        if request.sampler.plain:
            token = best[number]
            request.sampler.accept(token)
        else:
            try:
                token = request.sampler.draw(rows[number])
            except (ValueError, GrammarProcessEnded) as error:  # other requests continue
                request.error, request.finish_reason = error, "error"
                break
        request.accept(token)
        accepted = number < len(drafts) and token == drafts[number]
        if request.finish_reason or not accepted:
            break
        request.table.length += 1
    if request.prefilled:
        request.features.clear()


def _not_finite(request: Request) -> None:
    request.finish_reason = "error"
    request.error = NotFinite(
        "the model's output for this request is NaN or infinite, so there is no answer; possible causes are "
        "damaged weights, or a dtype with too small a range for them (float16)"
    )


def finite_rows(logits: Sequence[Tensor | None]) -> list[list[bool]]:
    """Whether each row of logits is finite, by its sum: finite logits are far below float32's largest number."""
    sums = [rows.sum(-1) for rows in logits if rows is not None]
    flags = iter(torch.cat(sums).isfinite().tolist() if sums else ())
    return [[next(flags) for _ in rows] if rows is not None else [] for rows in logits]


def argmax_rows(parts: Sequence[StepPart], logits: Sequence[Tensor | None]) -> list[list[int]]:
    """The argmax of each row of plain samplers (`Sampler.plain`), moved to the host in one copy; [] for the others."""
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
