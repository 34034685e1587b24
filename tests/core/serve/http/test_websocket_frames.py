"""The frames of a WebSocket's messages are counted, wherever the pieces are cut."""

import random

import pytest
from websockets.frames import Frame, Opcode

from polyphi.serve.http.websocket_frames import FrameCounter, close_frame


def frames(*lengths_and_kinds: tuple[Opcode, int, bool]) -> bytes:
    """Masked frames as a client's library writes them."""
    return b"".join(
        Frame(opcode, b"x" * length, fin=fin).serialize(mask=True)
        for opcode, length, fin in lengths_and_kinds
    )


STREAM = frames(
    (Opcode.TEXT, 0, True),
    (Opcode.TEXT, 125, False),
    (Opcode.CONT, 126, False),
    (Opcode.PING, 5, True),
    (Opcode.CONT, 70_000, True),
    (Opcode.BINARY, 3, False),
    (Opcode.PONG, 0, True),
    (Opcode.CONT, 0, True),
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000, len(STREAM)])
def test_pieces_of_any_size_give_the_same_count(size: int) -> None:
    counter = FrameCounter()
    counts = [counter.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size)]
    assert max(counts) == 3


def test_random_cuts_find_a_long_message() -> None:
    stream = STREAM + frames((Opcode.TEXT, 0, False), *[(Opcode.CONT, 0, False)] * 999)
    for seed in range(20):
        cuts = sorted(random.Random(seed).sample(range(len(stream)), 40))
        counter = FrameCounter()
        counts = [
            counter.feed(stream[a:b]) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        ]
        assert max(counts) == counts[-1] == 1000


def test_the_payload_of_an_endless_frame_is_no_header() -> None:
    counter = FrameCounter()
    counter.feed(b"\x01\xff" + (2**62).to_bytes(8) + bytes(4))
    assert counter.feed(b"\x00\x80" * 10_000) == 0


def test_the_close_frame_is_that_of_the_library() -> None:
    frame = Frame(Opcode.CLOSE, (1009).to_bytes(2))
    assert close_frame(1009) == frame.serialize(mask=False)
