"""Prompt lookup: guesses at the next tokens, from what followed the same few tokens before, in prompt or answer.

>>> lookup = PromptLookup([5, 6, 7, 8, 5, 6])
>>> lookup.propose(3)                            # after 5, 6 there came 7, 8, 5
[7, 8, 5]

It needs no second model, and pays where answers repeat their prompt: text read off a page, a transcript before its
translation, rewritten code. The engine runs all guesses in one forward and keeps those that it would have drawn anyway.
"""

from collections.abc import Collection, Sequence


class PromptLookup:
    """All n-grams of a request so far, by where they came last. A token costs a few dictionary entries, a look-up as
    many look-ups, however long the request is.

    The longest ending n-gram that came before decides, from `longest` tokens down to `shortest`; of its occurrences
    the latest. A guess that reaches the newest token goes on from its own start, as repetitions do. It ends before
    tokens in `never`, which no answer holds (placeholders of pictures and clips, control tokens).

    Raises ValueError if `shortest` is below 1 or above `longest`.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        *,
        longest: int = 3,
        shortest: int = 2,
        never: Collection[int] = (),
    ) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"n-grams have 1 token or more and `shortest` is at most `longest`, "
                f"found {shortest} and {longest}"
            )
        self._sizes = range(longest, shortest - 1, -1)
        self._never = frozenset(never)
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where what followed it stands
        for token in prompt_ids:
            self.add(token)

    def add(self, token: int) -> None:
        """The next token of prompt or answer."""
        here = len(self._tokens)
        for size in self._sizes:
            if size <= here:
                self._after[tuple(self._tokens[here - size :])] = here
        self._tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none if no ending n-gram came before."""
        for size in self._sizes:
            if size > len(self._tokens):
                continue
            at = self._after.get(tuple(self._tokens[-size:]))
            if at is not None:
                guess: list[int] = []
                period = len(self._tokens) - at
                for i in range(most):
                    token = self._tokens[at + i % period]
                    if token in self._never:
                        break
                    guess.append(token)
                return guess
        return []
