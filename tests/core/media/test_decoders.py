"""Images and audio that a separate process decodes: the same results and errors, and what happens when it fails."""

import gc
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

import tests.fixtures.heif  # noqa: F401 (writes HEIC)
from polyphi.media import isolated, isolated_child
from polyphi.media.media import (
    AudioStream,
    MediaError,
    audio_size,
    decode_audio,
    decode_image,
    image_size,
    missing_image_decoder,
)
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.fork_server import ForkedProcess, ForkServer
from polyphi.runtime.steps import result_of, stopped_by
from polyphi.types.messages import Message
from polyphi.types.parts import Image as MessageImage
from tests.fixtures.audio import encoded
from tests.fixtures.variants import few

COLOURS = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8)
NOISE = 0.3 * np.random.default_rng(0).standard_normal((20_000, 2)).clip(-3, 3).astype(np.float32)


assert missing_image_decoder("HEIC") is None, "the tests need pi-heif"


def picture(format: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 250)
    else:
        image = Image.fromarray(COLOURS, "RGBA").convert("RGB" if mode == "P" else mode)
    (image.quantize() if mode == "P" else image).save(out, format, **options)
    return out.getvalue()


def clip(format: str, subtype: str | None, rate: int = 16_000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, NOISE[:, :channels], rate, format=format, subtype=subtype)
    return out.getvalue()


PICTURES = {
    "JPEG": picture("JPEG"),
    "JPEG of a phone": picture("JPEG", exif=b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6" + bytes(7)),
    "progressive JPEG": picture("JPEG", progressive=True),
    "JPEG of four inks": picture("JPEG", "CMYK"),
    "JPEG of two images": picture("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    "PNG with alpha": picture("PNG", "RGBA"),
    "PNG of 16 bits": picture("PNG", "I;16"),
    "PNG with a palette": picture("PNG", "P"),
    "WebP": picture("WEBP"),
    "WebP without loss": picture("WEBP", "RGBA", lossless=True),
    "GIF": picture("GIF", "P"),
    "BMP": picture("BMP"),
    "TIFF": picture("TIFF"),
    "TIFF of 16 bits": picture("TIFF", "I;16"),
    "TIFF of four inks, LZW": picture("TIFF", "CMYK", compression="tiff_lzw"),
    "TIFF with JPEG": picture("TIFF", compression="jpeg"),
    "TIFF of two pages": picture("TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]),
    "AVIF": picture("AVIF", "RGBA", speed=10),
    "HEIC of tiles": picture("HEIF", tile_size=64),
    "HEIC with alpha": picture("HEIF", "RGBA"),
}
CLIPS = {
    "WAV": clip("WAV", "PCM_16"),
    "WAV of floats": clip("WAV", "FLOAT", 44_100, 2),
    "FLAC": clip("FLAC", "PCM_24", 48_000, 2),
    "OGG Vorbis": clip("OGG", "VORBIS"),
    "OGG Opus": clip("OGG", "OPUS", 48_000, 2),
    "MP3": clip("MP3", None, 44_100, 2),
}


@pytest.fixture(scope="module")
def decoders() -> Iterator[ForkServer]:
    started = isolated.start_decoders()
    yield started
    started.close()


@pytest.mark.parametrize("name", PICTURES)
def test_an_image_is_the_same_to_the_bit(decoders: ForkServer, name: str) -> None:
    data = PICTURES[name]
    expected, image = decode_image(data), decode_image(data, decoders=decoders)
    assert (image.mode, image.size) == ("RGB", expected.size)
    assert image.tobytes() == expected.tobytes()
    assert image_size(data, decoders=decoders) == image_size(data) == expected.size


def test_an_image_of_many_parts_is_the_same(decoders: ForkServer, tmp_path: Path) -> None:
    size = 1200, 1000  # 3.6 MB
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.bmp")
    image = decode_image(tmp_path / "noise.bmp", decoders=decoders)
    np.testing.assert_array_equal(np.asarray(image), noise)


@pytest.mark.parametrize("name", CLIPS)
def test_audio_is_the_same_to_the_bit(decoders: ForkServer, name: str) -> None:
    data = CLIPS[name]
    (expected, rate), (wave, found_rate) = decode_audio(data), decode_audio(data, decoders=decoders)
    assert rate == found_rate and expected.dtype == wave.dtype
    np.testing.assert_array_equal(wave, expected)
    assert audio_size(data, decoders=decoders) == audio_size(data)
    streams = AudioStream(data), AudioStream(data, decoders=decoders)
    assert len({(stream.rate, stream.announced) for stream in streams}) == 1


def test_containers_are_decoded_by_the_same_processes(decoders: ForkServer) -> None:
    data = encoded("adts", "aac", 16_000)
    expected, _ = decode_audio(data)
    np.testing.assert_array_equal(decode_audio(data, decoders=decoders)[0], expected)


def outcome(decode: Callable[..., Any], data: bytes, **options: Any) -> Any:
    """The result of decoding, or the error with its reason."""
    try:
        result = decode(data, **options)
    except MediaError as error:
        return str(error), error.reason
    return result.tobytes() if isinstance(result, Image.Image) else (result[0].tobytes(), result[1])


def damaged(data: bytes, number: int) -> bytes:
    """The bytes with one to nine of them changed, behind those that determine the type, or cut off."""
    random, changed = Random(number), bytearray(data)
    for _ in range(random.choice((1, 3, 9))):
        changed[random.randrange(16, len(changed))] = random.randrange(256)
    return bytes(changed[: len(changed) * random.choice((1, 1, 2)) // 2 + 20])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("count", few([4, 200], 1))
@pytest.mark.parametrize("name", [*PICTURES, *CLIPS])
def test_damage_has_the_same_outcome(decoders: ForkServer, name: str, count: int) -> None:
    decode, data = (decode_image, PICTURES) if name in PICTURES else (decode_audio, CLIPS)
    for number in range(count):
        broken = damaged(data[name], number)
        assert outcome(decode, broken, decoders=decoders) == outcome(decode, broken), number


@pytest.mark.parametrize(
    ("decode", "data", "limits"),
    [
        (decode_image, PICTURES["JPEG"], {"max_pixels": 100}),
        (decode_image, PICTURES["WebP"], {"max_bytes": 100}),
        (image_size, PICTURES["GIF"], {"max_pixels": 100}),
        (decode_image, CLIPS["WAV"], {}),
        (decode_audio, CLIPS["FLAC"], {"max_seconds": 0.1}),
        (decode_audio, CLIPS["MP3"], {"max_bytes": 100}),
        (decode_audio, b"ID3 and nothing", {}),
        (decode_audio, clip("WAV", "PCM_16")[:44], {}),
    ],
)
def test_limits_have_the_same_errors(
    decoders: ForkServer, decode: Callable[..., Any], data: bytes, limits: dict[str, Any]
) -> None:
    expected = outcome(decode, data, **limits)
    assert outcome(decode, data, decoders=decoders, **limits) == expected
    assert isinstance(expected[1], str), "an error"


def test_the_kernel_refuses_what_a_forked_process_does_not_need(decoders: ForkServer) -> None:
    assert isolated.is_isolated(decoders), "the tests need Linux on x86-64 or AArch64"


# A decoder that fails

Broken = Callable[[str], ForkServer]
WAITS = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
"""For ever. (`time.sleep` is refused.)"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    """Starts processes in which other code decodes images and sound."""
    started = []

    def start(code: str) -> ForkServer:
        program = tmp_path / "child.py"
        program.write_text(
            f"import os, sys, threading; sys.path.append({str(Path(isolated_child.__file__).parent)!r})\n"
            f"import isolated_child\nfrom isolated_child import _send\ndef decode(job):\n    {code}\n"
            "isolated_child.image = isolated_child.sound = decode\nisolated_child.main()"
        )
        monkeypatch.setattr(isolated, "CHILD", program)
        started.append(isolated.start_decoders())
        return started[-1]

    yield start
    for decoders in started:
        decoders.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.abort()", "decoder failed"),
        ("os._exit(0)", "decoder failed"),
        ("_send({'width': 4, 'height': 4}); _send({}, bytes(20))", "decoder failed"),
        ("_send({'width': 10 ** 6, 'height': 10 ** 6})", "decoder failed"),
        ("_send({'width': 4, 'height': 4}); _send({}, bytes(60))", "decoder failed"),
        ("_send({'width': 4, 'height': 4}); _send({}, bytes(36))", "decoder failed"),
        ("bytes(8 << 30)", "too much memory"),
        ("while True: pass", "too long"),
        (WAITS, "too long"),
    ],
)
def test_a_failed_process_is_one_error(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(isolated, "CPU_SECONDS", 1)
    monkeypatch.setattr(isolated, "WAIT", 30 if "while" in code else 1)
    decoders = broken(code)
    with pytest.raises(MediaError, match=message) as error:
        decode_image(PICTURES["PNG with alpha"], max_pixels=20_000, decoders=decoders)
    assert error.value.reason == "decoder"
    if "_send" not in code and "while" not in code:
        with pytest.raises(MediaError, match=message):
            decode_audio(CLIPS["WAV"], decoders=decoders, max_seconds=1)


def test_the_text_of_an_error_is_one_printable_line(broken: Broken) -> None:
    fields = "{'error': 'media', 'message': 'a\\n\\x1b[31m' + 'b' * 900, 'reason': ['x']}"
    with pytest.raises(MediaError) as error:
        decode_image(PICTURES["BMP"], decoders=broken(f"_send({fields})"))
    text = str(error.value)
    assert text.isprintable() and len(text) < 400 and error.value.reason == "content"


def test_a_result_that_is_not_needed_ends_the_process(broken: Broken) -> None:
    decoders, stop = broken(WAITS), threading.Event()
    threading.Timer(0.3, stop.set).start()
    with stopped_by(stop.is_set), pytest.raises(MediaError, match="ended"):
        decode_image(PICTURES["BMP"], decoders=decoders)
    first, deadline = psutil.Process(decoders.process.pid), time.monotonic() + 30
    while first.children():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/status").read_text()


def test_the_processes_end_with_the_first_one(broken: Broken) -> None:
    """As when the system ends it for memory: no decoder is left that nothing can end."""
    decoders, errors = broken(WAITS), []

    def decode() -> None:
        with pytest.raises(MediaError) as error:
            decode_image(PICTURES["BMP"], decoders=decoders)
        errors.append(error.value.reason)

    first, deadline = psutil.Process(decoders.process.pid), time.monotonic() + 30
    while first.children():  # the one that tried out the filter of system calls
        assert time.monotonic() < deadline
        time.sleep(0.01)
    thread = threading.Thread(target=decode)
    thread.start()
    while not ((children := first.children()) and "Seccomp:\t2" in status(children[0])):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    thread.join(30)
    psutil.wait_procs(children, 30)
    assert errors == ["decoder"] and not any(child.is_running() for child in children)


def test_the_header_of_an_image_is_read_once(
    decoders: ForkServer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[bytes] = []
    start = decoders.start

    def counted(payload: bytes, descriptors: Sequence[int]) -> ForkedProcess:
        jobs.append(payload)
        return start(payload, descriptors)

    monkeypatch.setattr(decoders, "start", counted)
    processor = Processor(tokenizer)
    processor.decoders = decoders
    messages = [
        Message.user(MessageImage(PICTURES["JPEG"]), MessageImage(PICTURES["PNG of 16 bits"]))
    ]
    result_of(processor.media_size(messages))
    row = processor.row(messages)
    assert len(jobs) == 4 and len(row.inputs["image"].layouts) == 2
    del messages
    gc.collect()
    assert not processor.images._sizes
