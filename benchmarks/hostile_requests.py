"""Attacks by many connections, long texts, long queues and many requests (hostile.py)."""

import asyncio
import base64
import io
import json
import random
from functools import cache
from typing import Any

from hostile_peers import CHAT, COMPLETIONS, TOKENIZE, Attack, Peer, chat, head

DRIPPING, HALF, UNREAD, SENDING = 50, 20, 2, 3
EMOJI, SENTENCES = 3_900_000, 195_000
IMAGE_SIDE, CLIP_SECONDS = 2_688, 600
"""Pixels of a picture of 36 crops, and seconds of a clip."""
LONG_ANSWER = 900
TINY_CLIENTS, TINY = 8, 10_000
"""Clients with tiny requests, and the requests of all of them."""


# ---------------------------------------------------------------------- connections


async def drips(peer: Peer) -> None:
    _, writer = await peer.connect()
    await peer.write(writer, b"GET /v1/models HTTP/1.1\r\n")
    while True:
        writer.write(b"x-a: b\r\n")
        await writer.drain()
        await asyncio.sleep(0.5)


async def half(peer: Peer) -> None:
    reader, writer = await peer.connect()
    await peer.write(writer, head("POST", CHAT, length=1_000_000), b'{"messages": ')
    await reader.read()


async def unread(peer: Peer) -> None:
    """A client that doesn't read its stream: the system's buffers fill, then the server's."""
    _, writer = await peer.connect(limit=1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    body = chat(str(peer.number), stream=True, max_tokens=1500)
    await peer.write(writer, head("POST", CHAT, length=len(body)), body)
    await asyncio.sleep(60)


def image(url: str) -> bytes:
    return chat([{"type": "image_url", "image_url": {"url": url}}])


@cache
def odd_bodies() -> list[bytes]:
    clip = {"data": "UklGRiQAAABXQVZFZm10IBAAAAABAAEA", "format": "wav"}
    properties = {f"k{i:06}": {"type": "integer", "minimum": i} for i in range(22_000)}
    return [
        b"[" * 100_000 + b"]" * 100_000,
        json.dumps({f"f{i}": i for i in range(100_000)}).encode(),
        image("data:" + "," * 1_000_000),
        b'{"messages": "\xff\xfe"}',
        image("data:image/png;base64," + "QUJD" * 9999),
        chat([{"type": "input_audio", "input_audio": clip}]),
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"schema": {"properties": properties}},
            }
        ),
        chat(temperature=1).replace(b"1}", b"NaN}"),
        chat(response_format={"type": "regex", "regex": ".*[ab].{18}c|.*b.{19}d"}),
    ]


async def sends(peer: Peer) -> None:
    bodies = odd_bodies()
    for body in bodies[peer.number % len(bodies) :]:
        await peer.post(CHAT, body)
        await asyncio.sleep(0.1)


# ---------------------------------------------------------------------- texts, scores, tokens, media


async def texts(peer: Peer) -> None:
    await peer.post(CHAT, emoji())


@cache
def emoji() -> bytes:
    return chat("\N{GRINNING FACE}" * EMOJI)


def long_prompts(seed: int, context: int) -> list[list[int]]:
    """16 prompts of token ids that have nothing in common."""
    dice = random.Random(seed)
    return [[dice.randrange(100, 300) for _ in range(min(8000, context - 1))] for _ in range(16)]


async def scores(peer: Peer) -> None:
    ids = long_prompts(peer.number, await peer.context())
    request = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    await peer.post(COMPLETIONS, json.dumps(request).encode())


async def tokens(peer: Peer) -> None:
    body = json.dumps({"prompt": "the quick brown fox " * SENTENCES}).encode()
    await peer.post(TOKENIZE, body)


async def media(peer: Peer) -> None:
    import numpy as np
    import soundfile
    from PIL import Image

    dice = np.random.default_rng()
    file = io.BytesIO()
    part: dict[str, Any]
    if peer.number % 2:
        shade = dice.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(shade).resize((IMAGE_SIDE, IMAGE_SIDE)).save(file, "JPEG")
        data = base64.b64encode(file.getvalue()).decode()
        part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    else:
        wave = dice.normal(0, 0.1, CLIP_SECONDS * 16_000).astype(np.float32)
        soundfile.write(file, wave, 16_000, "PCM_16", format="FLAC")
        data = base64.b64encode(file.getvalue()).decode()
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
    await peer.post(CHAT, chat([part]))


# ---------------------------------------------------------------------- queues


async def queue(peer: Peer) -> None:
    await peer.post(CHAT, chat(f"Tell me story {peer.number}", max_tokens=LONG_ANSWER))


async def tiny(peer: Peer) -> None:
    for number in range(peer.number, TINY, TINY_CLIENTS):
        await peer.post(CHAT, chat(f"{number}", max_tokens=1))


ATTACKS: dict[str, Attack] = {
    "connections": Attack({drips: DRIPPING, half: HALF, unread: UNREAD, sends: SENDING}),
    "texts": Attack({texts: 4}),
    "scores": Attack({scores: 6}),
    "tokens": Attack({tokens: 2}),
    "media": Attack({media: 4}, probe="image"),
    "queue": Attack({queue: 60}),
    "own_queue": Attack({queue: 40}, own=True),
    "tiny": Attack({tiny: TINY_CLIENTS}, once=True),
}
