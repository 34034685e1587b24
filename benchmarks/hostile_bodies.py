"""Attacks by large bodies, by many small values in them, and by answers that aren't read (hostile.py)."""

import asyncio
import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from hostile_peers import CHAT, COMPLETIONS, RESPONSES, Attack, Peer, chat, head

MB, MIB = 1_000_000, 1 << 20
PADDED = (*[100 * MIB] * 5, 12 * MIB)
"""Bytes of the padded bodies: 512 MiB together."""
LISTS, LARGE_LISTS, KEY, CHOICES, KEYS = 15 * MB, 75 * MB, 100 * MB, 100 * MB, 1_500_000
"""Bytes of prompts of one token each, of a key and of choices; and keys of `metadata`."""
STORED_IMAGES, IMAGE_SIDE = 3, 2_160
"""Images of a stored response: 14 MB each, 56 MB as base64 in all."""
READERS, UNREAD_SECONDS = 120, 30.0


async def padded(peer: Peer) -> None:
    await peer.post(CHAT, padded_body(PADDED[peer.number], await peer.context()))


@cache
def padded_body(size: int, context: int) -> bytes:
    """A request with long answers, and blanks after it."""
    body = chat(max_tokens=min(8000, context // 2), n=8, ignore_eos=True)
    return body + b" " * (size - len(body))


# ---------------------------------------------------------------------- many small values


def prompts(size: int) -> bytes:
    return b'{"max_tokens": 1, "prompt": [' + b"[1]," * (size // 4) + b"[1]]}"


def long_key() -> bytes:
    return chat().replace(b"{", b'{"' + b"k" * KEY + b'": 1, ', 1)


def choices() -> bytes:
    texts = b",".join(b'"%09d"' % n for n in range(CHOICES // 12))
    return chat(guided_choice=["?"]).replace(b'"?"', texts)


def metadata() -> bytes:
    pairs = b",".join(b'"k%07d":"v"' % n for n in range(KEYS))
    return chat(metadata={"?": "v"}).replace(b'"?": "v"', pairs)


@cache
def built(build: Callable[..., bytes], *sizes: int) -> bytes:
    return build(*sizes)


async def lists(peer: Peer) -> None:
    await peer.post(COMPLETIONS, built(prompts, LISTS))


async def large_lists(peer: Peer) -> None:
    await peer.post(COMPLETIONS, built(prompts, LARGE_LISTS))


async def keys(peer: Peer) -> None:
    await peer.post(CHAT, built(long_key))


async def wide_choice(peer: Peer) -> None:
    await peer.post(CHAT, built(choices))


async def many_keys(peer: Peer) -> None:
    await peer.post(CHAT, built(metadata))


# ---------------------------------------------------------------------- answers that aren't read


@cache
def with_images() -> bytes:
    """A request that is stored with its images: bitmaps, whose bytes nothing compresses."""
    from PIL import Image

    content: list[dict[str, str]] = [{"type": "input_text", "text": "hi"}]
    for shade in range(STORED_IMAGES):
        file = io.BytesIO()
        Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), (shade, 0, 0)).save(file, "BMP")
        data = base64.b64encode(file.getvalue()).decode()
        url = f"data:image/bmp;base64,{data}"
        content.append({"type": "input_image", "image_url": url, "detail": "low"})
    request = {"input": [{"role": "user", "content": content}], "max_output_tokens": 2}
    return json.dumps(request).encode()


async def unread_stored(peer: Peer) -> None:
    """Store a response, and request it on many connections that nobody reads."""
    answer = await replace(peer).post(RESPONSES, with_images())  # it starts with the connections
    id = re.search(rb'"id": ?"(resp_\w+)"', answer)
    if id is None or not re.search(rb'"store": ?true', answer):
        peer.seen["not stored"] += 1
        peer.started = True
        return
    writers = []
    for _ in range(READERS):
        _, writer = await peer.connect(limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.write(writer, head("GET", f"{RESPONSES}/{id[1].decode()}/input_items"))
        writers.append(writer)
    peer.seen["unread"] += len(writers)
    await asyncio.sleep(UNREAD_SECONDS)
    for writer in writers:
        writer.transport.abort()


ATTACKS: dict[str, Attack] = {
    "padded_bodies": Attack({padded: len(PADDED)}),
    "small_values": Attack({lists: 1, large_lists: 4, keys: 1, wide_choice: 1, many_keys: 1}),
    "unread_stored": Attack({unread_stored: 1}),
}
