"""The attacks of soak.py, in a process of their own, from addresses of this machine (127.0.0.2 ...).

    python tests/soak/attacks.py PORT

Each line of standard input is a JSON list of attacks: they run until the next line, again and again. Then a line of
JSON counts for each attack what its clients received: HTTP statuses, "left" where a client disconnected itself,
"closed" where the server did. The sizes are those for a context of 8,192 tokens.
"""

import asyncio
import base64
import io
import json
import random
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import soundfile
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fixtures.audio import encoded
from tests.fixtures.images import film
from tests.fixtures.pdfs import nested_forms_pdf

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, TRANSCRIPTIONS = "/v1/messages", "/v1/audio/transcriptions"
LIVE = "/v1/realtime?intent=transcription"
THREE = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
CROWD = tuple(f"127.0.1.{number}" for number in range(1, 34))
RATE, MB, MIB = 16_000, 1_000_000, 1 << 20


def client_at(address: str, port: int) -> httpx2.AsyncClient:
    """A client with a new connection for each request: a server may close an idle one at the moment at which the client
    sends on it."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    transport = httpx2.AsyncHTTPTransport(local_address=address, verify=False, limits=limits)
    return httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=600, trust_env=False
    )


@dataclass
class Peer:
    """Client `number` of an attack."""

    port: int
    address: str
    number: int
    seen: Counter[str]

    async def post(self, path: str, content: bytes | None = None, **options: Any) -> Any:
        """The response to a request."""
        if content is not None:
            options |= {"content": content, "headers": {"content-type": "application/json"}}
        async with client_at(self.address, self.port) as client:
            response = await client.post(path, **options)
        self.seen[str(response.status_code)] += 1
        return response

    async def send(self, headers: str, body: bytes = b"") -> asyncio.StreamWriter:
        """A connection on which headers and body were sent, and nothing is read."""
        _, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.address, 0), limit=1
        )
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"{headers}\r\nhost: localhost\r\n".encode() + body)
        await writer.drain()
        return writer


Run = Callable[[Peer], Awaitable[object]]


def chat(content: Any = "hi", **more: Any) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, "max_tokens": 2, **more}).encode()


def schema(value: dict[str, Any], **more: Any) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}
    return chat(response_format=form, **more)


def media(part_type: str, data: bytes, count: int = 1, **more: Any) -> bytes:
    url = "data:;base64," + base64.b64encode(data).decode()
    return chat([{"type": part_type, part_type: {"url": url}}] * count, **more)


def sends(path: str, *builds: Callable[[], bytes], leave: float = 600.0) -> Run:
    """Sends one body of several, those of one client in turn; it leaves after some seconds."""
    built = [cache(build) for build in builds]

    async def run(peer: Peer) -> None:
        body = built[(peer.number + peer.seen.total()) % len(built)]()
        async with asyncio.timeout(leave):
            await peer.post(path, body)

    return run


# ---------------------------------------------------------------------- connections


async def slow_headers(peer: Peer) -> None:
    writer = await peer.send("GET /v1/models HTTP/1.1")
    while True:
        writer.write(b"x-a: b\r\n")
        await writer.drain()
        await asyncio.sleep(0.5)


async def missing_body(peer: Peer) -> None:
    headers = f"POST {CHAT} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 1000000"
    writer = await peer.send(headers, b'\r\n{"messages": ')
    await asyncio.sleep(30)
    writer.transport.abort()


async def unread_stream(peer: Peer) -> None:
    """The system's buffers fill, then the server's."""
    body = chat(str(peer.number), stream=True, max_tokens=1500, ignore_eos=True)
    headers = f"POST {CHAT} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: "
    writer = await peer.send(f"{headers}{len(body)}", b"\r\n" + body)
    await asyncio.sleep(30)
    writer.transport.abort()


@cache
def with_images() -> bytes:
    """A request of 56 MB that is stored with its images: bitmaps, whose bytes nothing compresses."""
    content = []
    for shade in range(3):
        file = io.BytesIO()
        Image.new("RGB", (2_160, 2_160), (shade, 0, 0)).save(file, "BMP")
        url = "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()
        content.append({"type": "input_image", "image_url": url, "detail": "low"})
    return json.dumps(
        {"input": [{"role": "user", "content": content}], "max_output_tokens": 16}
    ).encode()


async def unread_stored(peer: Peer) -> None:
    response = await peer.post(RESPONSES, with_images())
    if response.status_code == 200:
        path = f"{RESPONSES}/{response.json()['id']}/input_items"
        writers = [await peer.send(f"GET {path} HTTP/1.1", b"\r\n") for _ in range(120)]
        await asyncio.sleep(30)
        for writer in writers:
            writer.transport.abort()


async def disconnects(peer: Peer) -> None:
    """Requests of all APIs, each left at a random moment."""
    text = f"Tell me story {random.random()}"
    messages = [{"role": "user", "content": text}]
    path, body = random.choice(
        [
            (CHAT, {"messages": messages, "max_tokens": 400, "stream": True, "n": 2}),
            (COMPLETIONS, {"prompt": text, "max_tokens": 400, "logprobs": 1}),
            (RESPONSES, {"input": text, "max_output_tokens": 400, "stream": True}),
            (MESSAGES, {"messages": messages, "max_tokens": 400, "stream": True}),
            ("/v1/embeddings", {"input": [text] * 4}),
        ]
    )
    async with asyncio.timeout(random.choice((0.01, 0.1, 1.0)) * random.random()):
        await peer.post(path, json=body)


async def broken_sessions(peer: Peer) -> None:
    """Live sessions with broken events, ended without a word while audio is transcribed."""
    noise = base64.b64encode(random.randbytes(48_000)).decode()
    append = {"type": "input_audio_buffer.append", "audio": noise}
    url = f"ws://127.0.0.1:{peer.port}{LIVE}"
    async with connect(url, local_addr=(peer.address, 0), compression=None, proxy=None) as socket:
        peer.seen["101"] += 1
        for event in (
            '{"type": "input_audio_buffer.append", "audio": ',
            '{"type": "input_audio_buffer.append", "audio": "*"}',
            '{"type": "input_audio_buffer.append", "audio": "", "rate": 3}',
            '{"type": "session.update", "session": {"type": "realtime"}}',
            "[1, 2]",
            *[json.dumps(append)] * 3,
            '{"type": "input_audio_buffer.commit"}',
        ):
            await socket.send(event)
        await asyncio.sleep(random.random())
        socket.transport.abort()


# ---------------------------------------------------------------------- bodies


def waiting_body() -> bytes:
    """289 kB, which are parsed in the thread for large bodies."""
    messages = [{"role": "user", "content": "x" * 109}] * 2_040
    return json.dumps({"messages": messages, "max_tokens": 2}).encode()


def padded(size: int) -> bytes:
    """A request with long answers, and blanks after it."""
    return chat(max_tokens=4_000, n=8, ignore_eos=True).ljust(size)


def lists(count: int) -> bytes:
    return b'{"max_tokens": 1, "prompt": [' + b"[1]," * count + b"[1]]}"


ODD = (
    lambda: b"[" * 100_000 + b"]" * 100_000,
    lambda: chat(logit_bias=[{"a": number} for number in range(15_000)]),
    lambda: chat([{"type": "image_url", "image_url": {"url": "data:" + "," * MB}}]),
    lambda: b'{"messages": "\xff\xfe"}',
    lambda: media("image_url", b"ABC" * 9_999),
    lambda: media("audio_url", b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0"),
    lambda: schema({"enum": [f"k{number}" for number in range(90_000)]}),
    lambda: chat(temperature=1).replace(b"1}", b"NaN}"),
    lambda: chat(response_format={"type": "regex", "regex": ".*[ab].{18}c|.*b.{19}d"}),
    lambda: chat()[:-9],
    lambda: chat(temprature=1),
)


# ---------------------------------------------------------------------- grammars


def multiples(**fields: Any) -> bytes:
    return schema({"type": "integer", "multipleOf": 9_973}, **fields)


def many_optional() -> bytes:
    """A context-free grammar with very many parses of each prefix, so each mask takes long."""
    lark = f'start: {"a? " * 1_900}\na: "a"\n'
    return chat(response_format={"type": "grammar", "grammar": lark}, n=8, max_tokens=8)


def long_list() -> bytes:
    integers = {"type": "array", "items": {"type": "integer"}, "minItems": 2_000}
    return schema(integers, max_tokens=4_000)


# ---------------------------------------------------------------------- texts and media


def scores(seed: int) -> bytes:
    """16 prompts of 8,000 token ids that have nothing in common."""
    dice = random.Random(seed)
    prompts = [[dice.randrange(100, 300) for _ in range(8_000)] for _ in range(16)]
    return json.dumps({"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 0}).encode()


def webp(side: int) -> bytes:
    """A black lossless WebP image of 38 bytes: five Huffman codes of one symbol each, so no pixel takes a bit."""
    codes = sum(1 << (3 + 4 * number) for number in range(5)).to_bytes(3, "little")
    data = b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + codes
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def voice(seconds: int) -> bytes:
    """A FLAC file of a hum with syllables, which is no silence."""
    at = np.arange(20 * RATE) / RATE
    hum = sum(np.sin(2 * np.pi * 140 * k * at) / k for k in range(1, 12))
    wave = (0.15 * hum * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * at))).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, np.resize(wave, seconds * RATE), RATE, "PCM_16", format="FLAC")
    return file.getvalue()


async def recording(peer: Peer) -> None:
    await peer.post(TRANSCRIPTIONS, files={"file": ("clip.flac", cache(voice)(1_200))})


def noise(number: int) -> bytes:
    """An image of 36 crops or ten minutes of audio, another one each time."""
    file, dice = io.BytesIO(), np.random.default_rng()
    if number % 2:
        shade = Image.fromarray(dice.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        shade.resize((2_688, 2_688)).save(file, "JPEG")
        return media("image_url", file.getvalue())
    wave = dice.normal(0, 0.1, 600 * RATE).astype(np.float32)
    soundfile.write(file, wave, RATE, "PCM_16", format="FLAC")
    return media("audio_url", file.getvalue())


async def new_media(peer: Peer) -> None:
    await peer.post(CHAT, await asyncio.to_thread(noise, peer.number))


@cache
def undamaged() -> list[tuple[str, bytes]]:
    """(type of the part, file)."""
    return [
        ("audio_url", encoded("ipod", "aac")),
        ("audio_url", encoded("ipod", "alac")),
        ("audio_url", encoded("webm", "libopus")),
        ("audio_url", encoded("adts", "aac", RATE)),
        ("video_url", film(12, "mp4", "libx264")),
        ("video_url", film(12, "mp4", "mpeg4")),
        ("video_url", film(12, "webm", "libvpx-vp9")),
        ("video_url", film(12, "avi", "mpeg4")),
    ]


def damaged(file: bytes, dice: random.Random) -> bytes:
    """A file with one to thirty changes, most of them near its ends, where headers are. The first twelve bytes stay:
    they determine its type."""
    data = bytearray(file)
    for _ in range(dice.choice((1, 1, 1, 2, 5, 30))):
        size = min(400, len(data) // 2)
        at = dice.choice((dice.randrange(12, size), dice.randrange(len(data) - size, len(data))))
        extremes = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1")
        data[at : at + dice.choice((0, 1, 4, 40))] = dice.choice(
            (*extremes, b"", dice.randbytes(40), data[at : at + 400])
        )
    return bytes(data)


async def damaged_media(peer: Peer) -> None:
    dice = random.Random()
    part_type, file = dice.choice(undamaged())
    await peer.post(CHAT, media(part_type, damaged(file, dice)))


def slow_document(depth: int, width: int, pages: int) -> bytes:
    """A PDF of 1 kB and more, each of whose pages has very many drawings."""
    data = base64.b64encode(nested_forms_pdf(depth, width, count=pages)).decode()
    file = {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}
    return chat([{"type": "file", "file": file}])


# ---------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Attack:
    """Clients of some addresses, each of which runs again and again."""

    run: Run
    clients: int = 1
    addresses: Sequence[str] = THREE


STORY = partial(chat, "Tell me a story", max_tokens=900, ignore_eos=True)
LONG = partial(chat, max_tokens=8_000, ignore_eos=True)
ATTACKS = {
    "slow headers": Attack(slow_headers, 50),
    "missing bodies": Attack(missing_body, 20),
    "waiting bodies": Attack(sends(CHAT, waiting_body), 600, ("127.0.0.5", "127.0.0.6")),
    "odd bodies": Attack(sends(CHAT, *ODD), 3),
    "padded bodies": Attack(sends(CHAT, partial(padded, 10 * MB), partial(padded, 100 * MIB)), 5),
    "lists": Attack(sends(COMPLETIONS, partial(lists, 19_000), partial(lists, 18 * MB)), 5),
    "a long key": Attack(sends(CHAT, lambda: chat(**{"k" * 100 * MB: 1}))),
    "choices": Attack(sends(CHAT, lambda: chat(guided_choice=[f"{n:09}" for n in range(MB)]))),
    "many keys": Attack(
        sends(CHAT, lambda: chat(metadata={f"k{n}": "v" for n in range(95_000)})),
    ),
    "unread streams": Attack(unread_stream, 2),
    "unread stored": Attack(unread_stored),
    "disconnects": Attack(disconnects, 8),
    "broken sessions": Attack(broken_sessions, 4),
    "long chats": Attack(sends(CHAT, LONG), 33, CROWD),
    "queue": Attack(sends(CHAT, STORY), 60, THREE[:1]),
    "tiny": Attack(sends(CHAT, partial(chat, max_tokens=1)), 8),
    "texts": Attack(sends(CHAT, lambda: chat("?").replace(b"?", "😀".encode() * 3_900_000)), 4),
    "scores": Attack(sends(COMPLETIONS, partial(scores, 0), partial(scores, 1)), 6),
    "tokens": Attack(sends("/tokenize", lambda: json.dumps({"prompt": "fox " * MB}).encode()), 2),
    "schemas": Attack(sends(CHAT, long_list), 60, THREE[:2]),
    "grammars": Attack(sends(CHAT, multiples, leave=1), 6),
    "masks": Attack(sends(CHAT, partial(multiples, n=8, max_tokens=8), many_optional), 2),
    "images": Attack(sends(CHAT, lambda: media("image_url", webp(9_459), 5), leave=2)),
    "new media": Attack(new_media, 4),
    "audio": Attack(sends(CHAT, lambda: media("audio_url", voice(600), max_tokens=400)), 60),
    "recordings": Attack(recording, 10),
    "damaged media": Attack(damaged_media, 2),
    "documents": Attack(
        sends(CHAT, partial(slow_document, 7, 8, 1), partial(slow_document, 6, 10, 20)), 2
    ),
}


async def rounds(run: Run, peer: Peer) -> None:
    while True:
        try:
            await run(peer)
        except TimeoutError:
            peer.seen["left"] += 1
        except (httpx2.HTTPError, OSError, WebSocketException):
            peer.seen["closed"] += 1
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.02)


async def run_all(port: int, names: list[str], seen: dict[str, Counter[str]]) -> None:
    async with asyncio.TaskGroup() as group:
        for name in names:
            attack = ATTACKS[name]
            for number in range(attack.clients):
                address = attack.addresses[number % len(attack.addresses)]
                peer = Peer(port, address, number, seen[name])
                group.create_task(rounds(attack.run, peer))


async def main(port: int) -> None:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    running = asyncio.create_task(run_all(port, [], seen))
    while line := await asyncio.to_thread(sys.stdin.readline):
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()  # raises the error of an attack
        print(json.dumps(seen), flush=True)
        seen.clear()
        running = asyncio.create_task(run_all(port, json.loads(line), seen))
    running.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
