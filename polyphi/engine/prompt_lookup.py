"""Draft tokens by prompt lookup: those that followed the same tokens earlier in the sequence.

>>> lookup = PromptLookup([5, 6, 7, 8, 5, 6])
>>> [token for token, chance in lookup.propose(3)]       # after 5, 6 there came 7, 8, 5
[7, 8, 5]

It needs no second model, and pays off where answers repeat their prompt or themselves: rewritten text and code, names
in a summary, steps of reasoning. Each request tracks how often the lookup predicts the next token, whether drafts were
run or not; speculate.py chooses how many are run.
"""

from collections.abc import Collection, Sequence

MAX_MATCH = 8
"""Most tokens that are compared; a match of this length counts as a copy."""
CANDIDATES = 16
"""Earlier occurrences of the newest token that are compared, the latest first."""
ACCEPTANCE = (0.3, 0.6, 0.8, 0.95)
"""Initial acceptance rates of a draft token after matches of 1, 2 to 3, 4 to 7 and 8 tokens
(benchmarks/speculation.py)."""
UPDATE = 0.1
"""Weight of the newest token in a request's moving averages of acceptance."""

DraftToken = tuple[int, float]
"""A token, and the probability that it and those before it are accepted."""


class PromptLookup:
    """A request's tokens so far, each linked to the previous occurrence of the same token. A token costs a few
    comparisons, however long the request is.

    Of the latest occurrences of the newest token, the one with the longest match decides, the latest of equal ones. A
    draft that reaches the newest token continues from its own start, as repetitions do. It ends before tokens in
    `never`, which no answer has (placeholders of images and audio, control tokens).
    """

    def __init__(self, prompt_ids: Sequence[int], *, never: Collection[int] = ()) -> None:
        self._never = frozenset(never)
        self._tokens: list[int] = []
        self._before: list[int] = []  # position of the previous occurrence, or -1
        self._latest: dict[int, int] = {}
        self._acceptance = list(ACCEPTANCE)
        self._match: tuple[int, int] | None = None  # its length, and the position of its last token
        for token in prompt_ids:
            self._append(token)
        self._find(None)

    def add(self, token: int) -> None:
        """Append the next token of the answer."""
        follows = None
        if self._match is not None:
            length, at = self._match
            correct, follows = self._tokens[at + 1] == token, at + 1
            index = _length_class(length)
            self._acceptance[index] += UPDATE * (correct - self._acceptance[index])
        self._append(token)
        self._find(follows)

    def propose(self, most: int) -> list[DraftToken]:
        """Up to `most` draft tokens, with falling probabilities; none if the newest token is new."""
        drafts: list[DraftToken] = []
        if self._match is None:
            return drafts
        length, at = self._match
        period, chance = len(self._tokens) - at - 1, 1.0
        for i in range(most):
            token = self._tokens[at + 1 + i % period]
            if token in self._never:
                break
            chance *= self._acceptance[_length_class(length + i)]
            drafts.append((token, chance))
        return drafts

    def _append(self, token: int) -> None:
        self._before.append(self._latest.get(token, -1))
        self._latest[token] = len(self._tokens)
        self._tokens.append(token)

    def _find(self, follows: int | None) -> None:
        """Find the longest match among the latest occurrences and the position that `follows` the last match."""
        tokens, self._match = self._tokens, None
        if not tokens:
            return
        newest = len(tokens) - 1
        candidates = [] if follows is None or tokens[follows] != tokens[newest] else [follows]
        at = self._before[newest]
        while at >= 0 and len(candidates) < CANDIDATES:
            candidates.append(at)
            at = self._before[at]
        best = 0
        for at in candidates:
            length = 1
            while (
                length < min(MAX_MATCH, at + 1) and tokens[at - length] == tokens[newest - length]
            ):
                length += 1
            if length > best:
                best, self._match = length, (length, at)
            if length == MAX_MATCH:
                break
        if self._match is not None and tokens[self._match[1] + 1] in self._never:
            self._match = None


def _length_class(length: int) -> int:
    """The index in `ACCEPTANCE` of a match of this length."""
    return min(length, MAX_MATCH).bit_length() - 1
