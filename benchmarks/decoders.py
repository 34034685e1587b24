"""Seconds and memory of decoding in this process and in separate ones (`polyphi serve --isolate-decoding`).

python benchmarks/decoders.py                   # images of 0.9 and 12 megapixels, 30 s of audio
python benchmarks/decoders.py --repeats 31 --json

A file is decoded as for a request of the server, which reads its header (of audio twice) and then all of it: each is a
call here, and a process there. Both ways take turns, so that other work on the machine slows both. Seconds are medians,
CPU seconds means, which other work changes less; those of separate processes include both sides. `first`: of the first
file after the process that forks the others was started, beside `start`, the seconds of that. The samples and pixels of
both ways are compared. `process MiB`: the largest memory that one process had of its own, sampled (needs root).
"""

import argparse
import io
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import numpy as np
import psutil
import soundfile
from PIL import Image

from polyphi.media.isolated import start_decoders
from polyphi.media.media import AudioStream, decode_audio, decode_image, image_size
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.rendering import table

RATE = 16_000
SIZES = ((1280, 720), (4000, 3000))
FORMATS = (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None))
MIB = 1 << 20
Decode = Callable[[ForkServer | None], np.ndarray | Image.Image]


@dataclass(frozen=True)
class Row:
    """A file; `ratio` is that of the seconds, separate processes over this one."""

    file: str
    here: float
    separate: float
    ratio: float
    cpu_here: float
    cpu_separate: float
    start: float
    first: float
    process_mib: float
    first_process_mib: float


def photo(width: int, height: int) -> bytes:
    """A JPEG of soft blotches, which compress about as photographs do."""
    rough = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    out = io.BytesIO()
    image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def clip(seconds: float, format: str, subtype: str | None) -> bytes:
    """A tone with noise."""
    times = np.arange(round(seconds * RATE)) / RATE
    wave = 0.4 * np.sin(2 * np.pi * 220 * times)
    wave += 0.02 * np.random.default_rng(0).standard_normal(len(wave))
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format=format, subtype=subtype)
    return out.getvalue()


def decode_photo(data: bytes) -> Decode:
    def decode(decoders: ForkServer | None) -> Image.Image:
        width, height = image_size(data, decoders=decoders)
        return decode_image(data, max_pixels=width * height, decoders=decoders)

    return decode


def decode_clip(data: bytes) -> Decode:
    def decode(decoders: ForkServer | None) -> np.ndarray:
        AudioStream(data, decoders=decoders)
        return decode_audio(data, decoders=decoders)[0]

    return decode


def files(sizes: list[tuple[int, int]], seconds: float) -> dict[str, Decode]:
    """What decodes each file, by its name."""
    named: dict[str, Decode] = {}
    for width, height in sizes:
        named[f"JPEG, {width} x {height}"] = decode_photo(photo(width, height))
    for format, subtype in FORMATS:
        name = f"{format}{', Opus' if subtype == 'OPUS' else ''}, {seconds:g} s"
        named[name] = decode_clip(clip(seconds, format, subtype))
    return named


def measure(name: str, decode: Decode, repeats: int) -> Row:
    """Raises ValueError if the ways differ."""
    expected, began = decode(None), time.perf_counter()
    decoders = start_decoders()
    start = time.perf_counter() - began
    server = psutil.Process(decoders.process.pid)
    began = time.perf_counter()
    if not np.array_equal(decode(decoders), expected):
        raise ValueError(f"{name}: separate processes decode it otherwise")
    first, seconds, cpu = time.perf_counter() - began, ([], []), [0.0, 0.0]
    memory = server.memory_info().rss / MIB
    with sampled(server) as largest:
        decode(decoders)
    before = cpu_seconds(server)
    for _ in range(repeats):
        for way, used in enumerate((None, decoders)):
            own, began = time.process_time(), time.perf_counter()
            decode(used)
            seconds[way].append(time.perf_counter() - began)
            cpu[way] += time.process_time() - own
    cpu[1] += cpu_seconds(server) - before
    decoders.close()
    here, separate = map(statistics.median, seconds)
    cpu_here, cpu_separate = (total / repeats for total in cpu)
    return Row(
        name,
        here,
        separate,
        separate / here,
        cpu_here,
        cpu_separate,
        start,
        first,
        largest[0] / MIB,
        memory,
    )


def cpu_seconds(server: psutil.Process) -> float:
    """Those of the process that forks, and of those that it has forked, when they have ended."""
    while server.children():
        time.sleep(0.001)
    return sum(server.cpu_times()[:4])


@contextmanager
def sampled(server: psutil.Process) -> Iterator[list[int]]:
    """The largest number of bytes that a child had of its own."""
    largest, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.is_set():
            with suppress(psutil.Error):
                for child in server.children():
                    largest[0] = max(largest[0], child.memory_full_info().uss)

    thread = threading.Thread(target=sample)
    thread.start()
    yield largest
    ended.set()
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args()
    rows = [
        measure(name, decode, options.repeats) for name, decode in files([*SIZES], 30.0).items()
    ]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    seconds = ("here", "separate", "cpu_here", "cpu_separate", "start", "first")
    cells = [
        (
            row.file,
            f"{row.ratio:.1f}",
            *(f"{1000 * getattr(row, name):.1f}" for name in seconds),
            f"{row.process_mib:.0f}",
            f"{row.first_process_mib:.0f}",
        )
        for row in rows
    ]
    titles = (*(f"{name.replace('_', ' ')}, ms" for name in seconds), "process, MiB")
    print(table(("file", "ratio", *titles, "first process, MiB"), cells, "l" + "r" * 9))


if __name__ == "__main__":
    main()
