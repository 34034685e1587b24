"""Tokens in the API's format: text, bytes and log-probabilities."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from polyphi.types.completion import TokenLogprob


class ControlTokens(Protocol):
    """The part of a tokenizer that `RequestTokens` uses."""

    @property
    def controls(self) -> dict[str, int]: ...

    def spelled(self) -> list[bytes | None]: ...


class RequestTokens:
    """The text and bytes of each id of a vocabulary."""

    def __init__(self, vocabulary: ControlTokens) -> None:
        self._vocabulary = vocabulary

    @cached_property
    def _bytes(self) -> list[bytes]:
        words = [word or b"" for word in self._vocabulary.spelled()]
        for name, id in self._vocabulary.controls.items():
            words[id] = name.encode()
        return words

    def bytes(self, id: int) -> bytes:
        """A token's bytes, which may end inside a character; for a control token its name."""
        return self._bytes[id]

    def text(self, id: int) -> str:
        return self._bytes[id].decode(errors="replace")

    def name(self, id: int, *, as_id: bool = False) -> str:
        """A token's text, or its id in vLLM's form, "token_id:5"."""
        return f"token_id:{id}" if as_id else self.text(id)

    def with_alternatives(self, result: TokenLogprob, *, as_ids: bool = False) -> dict[str, Any]:
        """A token's log-probability and its top alternatives, in the format of chat completions."""
        top = [self.entry(token, logprob, as_id=as_ids) for token, logprob in result.top]
        return {**self.entry(result.token, result.logprob, as_id=as_ids), "top_logprobs": top}

    def prompt_logprobs(
        self, ids: Sequence[int], results: Sequence[TokenLogprob], count: int
    ) -> list[dict[str, dict[str, Any]] | None]:
        """The log-probabilities of a prompt's tokens in vLLM's format: null for the first one, then by id the token
        and the `count` likeliest ones. A rank is only known for these."""
        entries: list[dict[str, dict[str, Any]] | None] = [None] * min(1, len(ids))
        for result in results:
            ranked = {id: (logprob, i) for i, (id, logprob) in enumerate(result.top[:count], 1)}
            own = {result.token: (result.logprob, None)}
            entries.append(
                {
                    str(id): {
                        "logprob": finite(logprob),
                        "rank": rank,
                        "decoded_token": self.text(id),
                    }
                    for id, (logprob, rank) in {**own, **ranked}.items()
                }
            )
        return entries

    def entry(self, id: int, logprob: float, *, as_id: bool = False) -> dict[str, Any]:
        """A token's log-probability without alternatives."""
        return {
            "token": self.name(id, as_id=as_id),
            "logprob": finite(logprob),
            "bytes": list(self.bytes(id)),
        }


def finite(logprob: float) -> float:
    """The log-probability, at least -9999, which OpenAI uses for "impossible": JSON has neither infinity nor NaN."""
    return logprob if logprob > -9999.0 else -9999.0
