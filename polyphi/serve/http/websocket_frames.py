"""The number of frames of a WebSocket's messages, from the frames' headers alone (RFC 6455, 5.2).

>>> FrameCounter().feed(b"\\x01\\x00\\x00\\x00\\x80\\x00")      # a text message of three empty frames
3
"""

CONTINUATION, TEXT, BINARY, CLOSE = 0, 1, 2, 8
FIN, MASKED = 0x80, 0x80
EXTENDED_LENGTH = {126: 2, 127: 8}
"""Bytes of the length that follow, by the length in the second byte."""


class FrameCounter:
    """Counts the frames of each message in a stream of bytes that arrives in pieces."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._payload = 0  # bytes of the current frame's payload that have not arrived
        self._frames = 0  # of the current message

    def feed(self, data: bytes) -> int:
        """Count the frames in a piece of the stream, and return the largest number that one of its messages has had so
        far. Control frames don't count."""
        at, most = 0, 0
        while at < len(data):
            if self._payload:
                step = min(self._payload, len(data) - at)
                self._payload -= step
            else:
                step = self._missing()
                self._header += data[at : at + step]
                if not self._missing():
                    most = max(most, self._end_header())
            at += step
        return most

    def _missing(self) -> int:
        """Bytes of the current header that have not arrived."""
        if len(self._header) < 2:
            return 2 - len(self._header)
        mask = 4 if self._header[1] & MASKED else 0
        length = EXTENDED_LENGTH.get(self._header[1] & ~MASKED, 0)
        return 2 + length + mask - len(self._header)

    def _end_header(self) -> int:
        header, opcode = self._header, self._header[0] & 0x0F
        length = header[1] & ~MASKED
        if extended := EXTENDED_LENGTH.get(length):
            length = int.from_bytes(header[2 : 2 + extended])
        self._header, self._payload = bytearray(), length
        if opcode == CONTINUATION:
            self._frames += 1
        elif opcode in (TEXT, BINARY):
            self._frames = 1
        return self._frames


def close_frame(code: int) -> bytes:
    """The frame with which a server closes a connection."""
    return bytes([FIN | CLOSE, 2]) + code.to_bytes(2)
