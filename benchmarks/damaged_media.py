"""Send damaged M4A, MP4, WebM, AAC and AVI files to a server, and count what becomes of them.

    python benchmarks/damaged_media.py runs/nano/model [--files 1000] [--seed 0] [--clients 2] [--json damaged.json]

Starts `polyphi serve` on a free port. The files are short recordings and videos, encoded by FFmpeg and changed in one
to thirty places, half of the time in their headers: flipped bits, extreme sizes, bytes removed, inserted, repeated, cut
off. Recordings go to /v1/audio/transcriptions and into chats, videos into chats. After every fifty files an undamaged
one must get the same answer as at the beginning.

Prints how many files were decoded (200), refused (by status), and not decoded because FFmpeg's process died, by signal.
The exit code is 1 if the server returned another status, ended, answered the undamaged file otherwise, or kept a
process, a request or memory.
"""

import argparse
import base64
import io
import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import av
import httpx2
import numpy as np
import psutil

RATE = 16_000
EXTREMES = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1")
HEADER = 400  # bytes at either end of a file in which most headers stand
EXPECTED = {200, 400, 413, 415}
EVERY = 50  # files between two undamaged ones
GROWTH = (
    150 << 20
)  # bytes that the server may grow: pools of the decoders in its process, cached prefixes


def recording(format: str, codec: str, rate: int = RATE, wave: np.ndarray | None = None) -> bytes:
    """A mono recording of samples from -1 to 1; by default half a second of a tone."""
    if wave is None:
        wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    out = io.BytesIO()
    with av.open(out, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = rate, 0
        context = stream.codec_context
        resampler = av.AudioResampler(
            context.format.name, "mono", rate, frame_size=context.frame_size or 960
        )
        for block in filter(None, [*resampler.resample(frame), *resampler.resample(None)]):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return out.getvalue()


def video(format: str, codec: str) -> bytes:
    """Twelve frames of noise that fades, 96 x 64."""
    out, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (64, 96, 3))
    with av.open(out, "w", format=format) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", 5
        for i in range(12):
            frame = av.VideoFrame.from_ndarray((noise * i // 12).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def originals() -> dict[str, bytes]:
    """The undamaged files by name; names of videos begin with "video"."""
    return {
        "m4a aac": recording("ipod", "aac"),
        "m4a alac": recording("ipod", "alac"),
        "mp4 aac": recording("mp4", "aac", 48_000),
        "webm opus": recording("webm", "libopus", 48_000),
        "adts aac": recording("adts", "aac"),
        "video mp4 h264": video("mp4", "libx264"),
        "video mp4 mpeg4": video("mp4", "mpeg4"),
        "video webm vp8": video("webm", "libvpx"),
        "video webm vp9": video("webm", "libvpx-vp9"),
        "video avi mpeg4": video("avi", "mpeg4"),
    }


def damaged(original: bytes, random: Random) -> bytes:
    """The bytes, changed in one to thirty places. The first twelve stay: they determine the type of the file."""
    data = bytearray(original)
    for _ in range(random.choice((1, 1, 1, 2, 5, 30))):
        if len(data) < 64:
            break
        start = random.choice((12, 12, max(12, len(data) - HEADER)))
        end = min(len(data), start + random.choice((HEADER, len(data))))
        at = random.randrange(start, max(start + 1, end))
        match random.randrange(7):
            case 0 | 1:
                data[at % len(data)] ^= 1 << random.randrange(8)
            case 2:
                data[at : at + 4] = random.choice(EXTREMES)
            case 3:
                del data[at : at + random.randrange(1, 40)]
            case 4:
                data[at:at] = random.randbytes(random.randrange(1, 40))
            case 5:
                data[at:at] = data[at : at + random.randrange(1, 400)]
            case 6:
                if random.random() < 0.2:
                    del data[at:]
    return bytes(data)


def corpus(count: int, seed: int) -> list[tuple[str, bytes]]:
    """(name of the original, damaged bytes) of `count` files."""
    files = originals()
    return [
        (name, damaged(files[name], Random(f"{seed} {i}")))
        for i in range(count)
        for name in [list(files)[i % len(files)]]
    ]


def send(client: httpx2.Client, name: str, data: bytes, number: int) -> httpx2.Response:
    """The response to a file: a video or every second recording in a chat, the others as an upload."""
    is_video = name.startswith("video")
    if not is_video and number // 10 % 2:
        files = {"file": ("file", data)}
        return client.post("/v1/audio/transcriptions", files=files, data={"stream": "false"})
    url = "data:;base64," + base64.b64encode(data).decode()
    part: dict[str, Any] = {"type": "audio_url", "audio_url": {"url": url}}
    if is_video:
        part = {"type": "video_url", "video_url": {"url": url, "frames": 4, "detail": "low"}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    return client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})


def outcome(response: httpx2.Response) -> str:
    if response.status_code == 200:
        return "decoded"
    code = response.json()["error"]["code"]
    return f"{response.status_code}{f' {code}' if code else ''}"


def answer(response: httpx2.Response) -> Any:
    """The part of a response that doesn't change."""
    body = response.json()
    return body["choices"][0]["message"] if "choices" in body else body


def main() -> None:
    from server_process import server

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    files, whole = corpus(args.files, args.seed), originals()
    counts: dict[str, Counter[str]] = {name: Counter() for name in whole}
    faults: list[str] = []
    with server(args.model, []) as (process, url, log):
        client = httpx2.Client(base_url=url, timeout=600, trust_env=False)
        first = {
            (name, i): answer(send(client, name, data, i))
            for name, data in whole.items()
            for i in (0, 10)
        }
        memory = psutil.Process(process.pid).memory_info().rss

        def one(number: int) -> None:
            name, data = files[number]
            response = send(client, name, data, number)
            counts[name][outcome(response)] += 1
            if response.status_code not in EXPECTED:
                faults.append(f"file {number} ({name}): {response.status_code} {response.text}")
            if number % EVERY == EVERY - 1:
                key = (name, number // 10 % 2 * 10)
                if answer(send(client, name, whole[name], key[1])) != first[key]:
                    faults.append(f"after file {number}, the undamaged {name} got another answer")

        with ThreadPoolExecutor(args.clients) as threads:
            list(threads.map(one, range(len(files))))
        time.sleep(1)
        if process.poll() is not None:
            faults.append(f"the server ended with {process.returncode}")
        children = psutil.Process(process.pid).children(recursive=True)
        growth = psutil.Process(process.pid).memory_info().rss - memory
        running = re.search(
            r"^polyphi:num_requests_running\S* (\S+)", client.get("/metrics").text, re.M
        )
        if children:
            faults.append(f"{len(children)} processes are left")
        if running is None or float(running[1]):
            faults.append("requests are left")
        if growth > GROWTH:
            faults.append(f"the server grew by {growth >> 20} MiB")
        deaths = Counter(re.findall(r"the decoder (.+)", log.read_text()))
    total = sum(counts.values(), Counter[str]())
    for name, counter in [*counts.items(), ("all", total)]:
        print(f"{name:16}", ", ".join(f"{n} {what}" for what, n in sorted(counter.items())))
    print("deaths of the decoder:", dict(deaths) or "none", f"  growth {growth >> 20} MiB")
    print("\n".join(faults) or "the server: as before")
    if args.json:
        report = {"counts": counts, "deaths": deaths, "growth": growth, "faults": faults}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
