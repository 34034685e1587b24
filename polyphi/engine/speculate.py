"""Prompt lookup: guesses at the next tokens, from what followed the same tokens before, in prompt or answer.

>>> lookup = PromptLookup([5, 6, 7, 8, 5, 6])
>>> [token for token, chance in lookup.propose(3)]       # after 5, 6 there came 7, 8, 5
[7, 8, 5]

It needs no second model, and pays where answers repeat their prompt or themselves: rewritten text and code, a summary's
names, steps of reasoning. The engine runs all guesses in one forward and keeps those that it would have drawn anyway.

A forward reads all weights whatever it runs, so a guess is cheap, but not free. Each request keeps book of how often
the lookup knew the next token, whether it was asked or not; `worth` then says how many guesses of a step spare more
than they cost. Where an answer repeats nothing, none are run.
"""

from collections.abc import Collection, Sequence

LONGEST = 8
"""Tokens that are compared: whoever agrees in as many is taken for a copy."""
PLACES = 16
"""Earlier places of the newest token that are compared, the latest first."""
RIGHT = (0.3, 0.6, 0.8, 0.95)
"""How often a guess is right after 1, 2 to 3, 4 to 7 and 8 tokens that agreed, where nothing is known of an answer yet
(benchmarks/speculation.py)."""
LEARNED = 0.1
"""Weight of the newest token in a request's own book."""

Guess = tuple[int, float]
"""A token, and the chance that it and those before it are right."""


class PromptLookup:
    """A request's tokens so far, each with the place where the same one came before. A token costs a few comparisons,
    however long the request is.

    Of the latest places that end in the same token, the one where most tokens agree decides, the latest of equal ones.
    A guess that reaches the newest token goes on from its own start, as repetitions do. It ends before tokens in
    `never`, which no answer holds (placeholders of pictures and clips, control tokens).
    """

    def __init__(self, prompt_ids: Sequence[int], *, never: Collection[int] = ()) -> None:
        self._never = frozenset(never)
        self._tokens: list[int] = []
        self._before: list[int] = []  # where the same token came before, -1 where it didn't
        self._latest: dict[int, int] = {}
        self._right = list(RIGHT)
        self._match: tuple[int, int] | None = None  # tokens that agree, and where the last one is
        for token in prompt_ids:
            self._append(token)
        self._find(None)

    def add(self, token: int) -> None:
        """The next token of the answer."""
        follows = None
        if self._match is not None:
            agreed, at = self._match
            known, follows = self._tokens[at + 1] == token, at + 1
            right = _kind(agreed)
            self._right[right] += LEARNED * (known - self._right[right])
        self._append(token)
        self._find(follows)

    def propose(self, most: int) -> list[Guess]:
        """Up to `most` tokens that may come next, their chances falling; none if the newest token is new."""
        guesses: list[Guess] = []
        if self._match is None:
            return guesses
        agreed, at = self._match
        period, chance = len(self._tokens) - at - 1, 1.0
        for i in range(most):
            token = self._tokens[at + 1 + i % period]
            if token in self._never:
                break
            chance *= self._right[_kind(agreed + i)]
            guesses.append((token, chance))
        return guesses

    def _append(self, token: int) -> None:
        self._before.append(self._latest.get(token, -1))
        self._latest[token] = len(self._tokens)
        self._tokens.append(token)

    def _find(self, follows: int | None) -> None:
        """The place that agrees best, of the latest ones and the one that `follows` the last match."""
        tokens, self._match = self._tokens, None
        if not tokens:
            return
        newest = len(tokens) - 1
        places = [] if follows is None or tokens[follows] != tokens[newest] else [follows]
        at = self._before[newest]
        while at >= 0 and len(places) < PLACES:
            places.append(at)
            at = self._before[at]
        best = 0
        for at in places:
            agreed = 1
            while agreed < min(LONGEST, at + 1) and tokens[at - agreed] == tokens[newest - agreed]:
                agreed += 1
            if agreed > best:
                best, self._match = agreed, (agreed, at)
            if agreed == LONGEST:
                break
        if self._match is not None and tokens[self._match[1] + 1] in self._never:
            self._match = None


def _kind(agreed: int) -> int:
    """The entry of the book for so many tokens that agreed."""
    return min(agreed, LONGEST).bit_length() - 1


def worth(proposed: Sequence[Sequence[Guess]], price: float) -> list[int]:
    """How many guesses of each sequence a step should run; `proposed` has an entry for every sequence that draws.

    `price` is what another token adds to the time of a step of one, as a share of it. The likeliest guesses come first,
    as long as each gives more tokens for its time than the step gives without it: p / price > tokens drawn / time.
    """
    counts = [0] * len(proposed)
    run = drawn = float(len(proposed))
    chances = sorted(
        ((chance, i) for i, guesses in enumerate(proposed) for _, chance in guesses), reverse=True
    )
    for chance, i in chances:
        if chance * (1 + price * (run - 1)) <= price * drawn:
            break
        counts[i] += 1
        run += 1
        drawn += chance
    return counts
