"""Speculative decoding: how many draft tokens each request runs in a step.

The engine verifies all draft tokens in one forward and accepts those that it would have sampled anyway (results.py).
A forward reads all weights however many tokens it runs, so a draft token is cheap, but not free: as many are run as
save more than they cost. Where an answer repeats nothing, none are run.
"""

from collections.abc import Sequence

from polyphi.engine.longrope import LongRope
from polyphi.engine.prompt_lookup import DraftToken
from polyphi.engine.request import Request

TOKEN_COST = 0.08
"""Time that another token adds to a decode step, relative to a step of one token. (Measured: 0.05 in 8 bits, 0.15 to
0.45 in 4 bits, where the first ones cost most; benchmarks/speculation.py.)"""


def draft_tokens(running: Sequence[Request], rope: LongRope) -> dict[int, tuple[int, ...]]:
    """Draft tokens of the decoding requests, by `id`, as many as pay off in one step of all of them. They end with the
    answer and before the switch of LongRoPE tables."""
    decoding = [r for r in running if r.pending == 1 and not r.undecided]
    proposals = [
        [] if r.lookup is None else r.lookup.propose(min(r.draft, rope.tokens_left(r)))
        for r in decoding
    ]
    if not any(proposals):
        return {}
    lengths = draft_lengths(proposals, TOKEN_COST)
    return {
        id(request): tuple(token for token, _ in proposal[:length])
        for request, proposal, length in zip(decoding, proposals, lengths, strict=True)
        if length
    }


def draft_lengths(proposals: Sequence[Sequence[DraftToken]], cost: float) -> list[int]:
    """The number of draft tokens of each sequence in a step; `proposals` has an entry for every decoding sequence.

    `cost` is the time that another token adds to a step, relative to a step of one token. The likeliest draft tokens
    are added first, as long as each raises the expected tokens per time: p / cost > expected tokens / time.
    """
    lengths = [0] * len(proposals)
    run = expected = float(len(proposals))
    chances = sorted(
        ((chance, i) for i, drafts in enumerate(proposals) for _, chance in drafts), reverse=True
    )
    for chance, i in chances:
        if chance * (1 + cost * (run - 1)) <= cost * expected:
            break
        lengths[i] += 1
        run += 1
        expected += chance
    return lengths
