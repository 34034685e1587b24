"""The prompt tokens of a step: as many as run in the time that other requests may wait for their next token."""

SECONDS, SECONDS_ALONE = 0.03, 0.15
"""Seconds for the prompt tokens of a step while other requests wait for tokens, and while none does."""
MIN_TOKENS = 64
"""Fewest prompt tokens of a step: fewer would still read all weights."""


class PrefillBudget:
    """The budget of a step's prompt tokens: at most `chunk` while other requests wait for a token and `prefill` while
    none does; fewer where steps are slow."""

    def __init__(self, chunk: int, prefill: int) -> None:
        self.chunk, self.prefill = chunk, prefill
        self._token_seconds = 0.0  # moving average of a prompt token's time

    def tokens(self, *, alone: bool) -> int:
        """Most prompt tokens of the next step; `alone`: no other request waits for its next token."""
        least, most = (self.chunk, self.prefill) if alone else (MIN_TOKENS, self.chunk)
        if not self._token_seconds:
            return most
        seconds = SECONDS_ALONE if alone else SECONDS
        return min(most, max(least, int(seconds / self._token_seconds)))

    def record(self, tokens: int, seconds: float) -> None:
        """Record the duration of a step."""
        if tokens >= MIN_TOKENS:
            new, average = seconds / tokens, self._token_seconds
            self._token_seconds = new if not average else 0.7 * average + 0.3 * new
