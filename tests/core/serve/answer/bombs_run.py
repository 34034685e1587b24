"""Memory use of decompression bombs: python bombs_run.py

Prints one JSON object with, for each bomb, the result of a request with it and the peak growth of the process in bytes.
"""

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image as pil

from polyphi.media.media import Caps, MediaError
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.answer.fetch import media_api_error
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Part, Text


def chunk(kind: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def zeros(count: int) -> bytes:
    """A zlib stream of zeros, made from one repeated compressed MiB."""
    packer, step = zlib.compressobj(9, zlib.DEFLATED, -15), 1 << 20
    block = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = last.compress(bytes(count % step)) + last.flush()
    checksum = (count % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + block * (count // step) + rest + struct.pack(">I", checksum)


def png(width: int, height: int) -> bytes:
    """A complete black PNG of any size, made without allocating its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zeros((1 + 3 * width) * height)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def still(form: str, side: int, **options: object) -> bytes:
    out = io.BytesIO()
    pil.new("RGB", (side, side)).save(out, form, **options)
    return out.getvalue()


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of one color."""
    data = bytearray(still("WEBP", 16, lossless=True))
    (bits,) = struct.unpack_from("<I", data, 21)  # 14 bits each of width - 1 and height - 1
    struct.pack_into("<I", data, 21, bits & ~0xFFFFFFF | (height - 1) << 14 | (width - 1))
    return bytes(data)


def silence(seconds: int, rate: int, channels: int = 1, **form: str) -> bytes:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, channels, **form) as file:
        for _ in range(seconds):
            file.write(np.zeros((rate, channels), np.int16))
    return out.getvalue()


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = still("JPEG", 2000, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


SHORT = Caps(audio_seconds=10)
OGG = {"format": "OGG", "subtype": "OPUS"}
BOMBS = {
    "a small picture": (lambda: [Image(png(64, 64))], Caps()),
    "40000 x 40000 pixels": (lambda: [Image(png(40_000, 40_000))], Caps()),
    "4 pictures, one at a time": (lambda: [Image(png(4000, 4000), max_crops=1)] * 4, Caps()),
    "3 pictures of 38 bytes": (lambda: [Image(webp(4000, 4000), max_crops=1)] * 3, Caps()),
    "more pictures than fit": (lambda: [Image(png(4000, 4000))] * 256, Caps()),
    "scans": (lambda: [Image(scans(3000))], Caps()),
    "a long FLAC": (lambda: [Audio(silence(400, 44_100, format="FLAC"))], SHORT),
    "a long Opus": (lambda: [Audio(silence(200, 48_000, **OGG))], SHORT),
    "a high FLAC": (lambda: [Audio(silence(5, 655_350, 8, format="FLAC"))], SHORT),
    "more clips than fit": (lambda: [Audio(silence(10, 16_000, format="FLAC"))] * 256, SHORT),
}


def grown() -> dict[str, int]:
    """Resident bytes: current and peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: 1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM")}


def ask(processor: Processor, parts: list[Part]) -> str:
    try:
        row = processor.row([Message.user(*parts, Text("?"))], context=8000)
    except MediaError as error:
        return f"{media_api_error(error, 'x').status} {error.part} {error.number}: {error}"
    except ValueError as error:
        return f"400: {error}"
    return f"200: {len(row)} tokens"


def main() -> None:
    tokenizer = Tokenizer.train(["a black picture and a silent clip"], 300)
    processor = Processor(tokenizer)
    # What decoders and kernels take once and for all.
    warm = [Image(still(form, 500)) for form in ("PNG", "JPEG")]
    ask(processor, [*warm, Audio(silence(1, 44_100, format="FLAC"))])
    results = {}
    for name, (make, processor.caps) in BOMBS.items():
        parts = make()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = grown()["VmRSS"]
        result = ask(processor, parts)
        size = max(len(part.source) for part in parts)
        results[name] = {"result": result, "grown": grown()["VmHWM"] - before, "bytes": size}
    results["libraries"] = sorted({"av", "torchvision", "cv2"} & set(sys.modules))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
