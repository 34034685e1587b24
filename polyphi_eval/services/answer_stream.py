"""Answers of an endpoint, with a limit of their bytes and a deadline for the whole: a server that sends a byte now and
then never reaches the timeout of a read."""

import time
from collections.abc import Iterator

import httpx2

MAX_ANSWER, MAX_SPEECH = 16 << 20, 64 << 20
"""[ours] Bytes of an answer, and of one that is speech."""


class TooLong(ValueError):
    """An answer has more bytes than its limit."""


class AnswerStream(httpx2.SyncByteStream):
    """The body of an answer. Raises `TooLong` above `limit` bytes, and httpx2.ReadTimeout after `deadline`."""

    def __init__(self, stream: httpx2.SyncByteStream, limit: int, deadline: float | None) -> None:
        self._stream, self._limit, self._deadline = stream, limit, deadline

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for piece in self._stream:
            size += len(piece)
            if size > self._limit:
                raise TooLong(f"expected an answer of at most {self._limit:,} bytes, found more")
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise httpx2.ReadTimeout("the answer isn't whole in time")
            yield piece

    def close(self) -> None:
        """Close the connection's stream."""
        self._stream.close()


def start_clock(request: httpx2.Request) -> None:
    """Note when a request is sent."""
    request.extensions["sent"] = time.monotonic()


def limit_answer(response: httpx2.Response, seconds: float, streamed: bool) -> None:
    """Limit what will be read of a response: its bytes, and, unless its output is streamed, the time since its request
    was sent. Raises `TooLong` for a packed one, whose size isn't known."""
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise TooLong("expected an answer without compression, found a packed one")
    request = response.request
    limit = MAX_SPEECH if request.url.path.endswith("/audio/speech") else MAX_ANSWER
    deadline = None if streamed else request.extensions["sent"] + seconds
    if deadline is not None:
        remaining = max(0.01, deadline - time.monotonic())
        request.extensions["timeout"]["read"] = remaining  # of each read from now on
    stream = response.stream
    assert isinstance(stream, httpx2.SyncByteStream)
    response.stream = AnswerStream(stream, limit, deadline)
