"""Attacks by images that are large and by recordings that are long (hostile.py)."""

import base64
import io
import struct
from functools import cache

from hostile_peers import CHAT, TRANSCRIPTIONS, Attack, Peer, chat

IMAGES, SIDE, LEAVE = 195, 9_459, 2.0
"""Images of a request, their width and height, and seconds after which its client leaves."""
RECORDINGS, RECORDING_SECONDS = 10, 1_200
PROMPTS, PROMPT_TOKENS, TOKENS_PER_SECOND = 60, 18_000, 12.5
"""Chats with audio, at most so many tokens long."""
RATE = 16_000


def webp(width: int, height: int) -> bytes:
    """A black lossless WebP image of 28 bytes: five Huffman codes of one symbol each, so no pixel takes a bit."""
    codes = sum(1 << (3 + 4 * n) for n in range(5))
    data = (
        b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + codes.to_bytes(3, "little")
    )
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


async def pictures(peer: Peer) -> None:
    url = "data:image/webp;base64," + base64.b64encode(webp(SIDE, SIDE)).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    await peer.post(CHAT, chat([part] * IMAGES), leave=LEAVE)


@cache
def recording(seconds: int) -> bytes:
    """A FLAC file of a hum with syllables, which is no silence."""
    import numpy as np
    import soundfile
    from load_pool import voice

    file, period = io.BytesIO(), 20
    wave = np.tile(voice(float(period), 140.0, RATE), seconds // period + 1)[: seconds * RATE]
    soundfile.write(file, wave, RATE, "PCM_16", format="FLAC")
    return file.getvalue()


async def recordings(peer: Peer) -> None:
    body, content_type = form(recording(RECORDING_SECONDS))
    await peer.post(TRANSCRIPTIONS, body, content_type=content_type)


def form(file: bytes) -> tuple[bytes, str]:
    """(the body of a transcription's request, its Content-Type)."""
    boundary = "hostile"
    body = b'--%s\r\ncontent-disposition: form-data; name="file"; filename="clip.flac"\r\n\r\n%s\r\n--%s--\r\n'
    mark = boundary.encode()
    return body % (mark, file, mark), f"multipart/form-data; boundary={boundary}"


async def prompts_memory(peer: Peer) -> None:
    """A chat about as much audio as the context holds: its log-mel frames take 32 kB a second until its answer ends."""
    context = await peer.context()
    answer = min(400, context // 4)
    seconds = int(min(PROMPT_TOKENS, context - answer - 100) / TOKENS_PER_SECOND)
    data = base64.b64encode(recording(max(1, seconds))).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
    await peer.post(CHAT, chat([part], max_tokens=answer, ignore_eos=True))


ATTACKS: dict[str, Attack] = {
    "pictures": Attack({pictures: 1}, probe="image"),
    "recordings": Attack({recordings: RECORDINGS}, probe="transcription"),
    "prompts_memory": Attack({prompts_memory: PROMPTS}, probe="image"),
}
