"""Tokens as clients see them: text, bytes and log-probabilities."""

from functools import cached_property
from typing import Any, Protocol

from polyphi.messages import TokenLogprob


class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

    @property
    def controls(self) -> dict[str, int]: ...

    def spelled(self) -> list[bytes | None]: ...


class Tokens:
    """What each id of a vocabulary is written as."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @cached_property
    def _bytes(self) -> list[bytes]:
        words = [word or b"" for word in self._vocabulary.spelled()]
        for name, id in self._vocabulary.controls.items():
            words[id] = name.encode()
        return words

    def bytes(self, id: int) -> bytes:
        """A token's bytes, which may end inside a letter; a control token's name."""
        return self._bytes[id]

    def text(self, id: int) -> str:
        return self._bytes[id].decode(errors="replace")

    def told(self, said: TokenLogprob) -> dict[str, Any]:
        """A token of an answer in the shape of chat completions."""
        top = [self.one(token, logprob) for token, logprob in said.top]
        return {**self.one(said.token, said.logprob), "top_logprobs": top}

    def one(self, id: int, logprob: float) -> dict[str, Any]:
        """A token without those that could have stood in its place."""
        return {
            "token": self.text(id),
            "logprob": finite(logprob),
            "bytes": list(self.bytes(id)),
        }


def finite(logprob: float) -> float:
    """JSON has neither infinity nor NaN; -9999 is what clients know for "impossible"."""
    return logprob if logprob > -9999.0 else -9999.0
