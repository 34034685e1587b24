"""Untrusted media: bombs, unusual and damaged files, text that looks like control tokens, and cache collisions (threats
S5 to S9, S15, S22), from the bytes of a request to the engine's row."""

import asyncio
import base64
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pil

import tests.fixtures.heif  # noqa: F401 (writes HEIC)
from polyphi.engine.engine import Engine
from polyphi.engine.scores import score_many
from polyphi.media.media import Caps, MediaError, image_types
from polyphi.model.config import ModelConfig
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.fetch import Media, media_api_error
from polyphi.serve.http.errors import ApiError
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image, Text
from polyphi.types.sampling import SamplingParams
from tests.fixtures.audio import audio_file
from tests.fixtures.engines import SAYINGS, clip, fitted, make_engine, picture
from tests.fixtures.images import film, image_file

PARAM = "messages[0].content[0]"
SHORT = SamplingParams(max_tokens=4)
assert "image/heic" in image_types(), "the tests need pi-heif"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SAYINGS, vocab_size=384)


@pytest.fixture
def engine(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Engine:
    return make_engine(fitted(tiny_config, tokenizer), tokenizer)


def status_of(processor: Processor, data: bytes, kind: str = "image") -> int:
    """The status with which a picture or a clip is answered. The error of a refused one has no address, no path
    and nothing of a library."""
    server = Media(Settings("phi", containers=False))
    url = "data:;base64," + base64.b64encode(data).decode()
    try:
        try:
            sent = asyncio.run(getattr(server, kind)(url, PARAM))
            part = Image(sent) if kind == "image" else Audio(sent)
            processor.row([Message.user(part, "?")])
        except MediaError as error:
            assert (error.part, error.number) == (kind, 0)
            raise media_api_error(error, PARAM) from None
    except ApiError as error:
        assert error.param == PARAM
        assert re.fullmatch(r"[\w ,.:;()<>?'\[\]-]{1,200}", error.message), error.message
        assert not re.search(r"0x|object at|\.py|line \d|libsnd|PIL|Errno|numpy", error.message)
        return error.status
    return 200


def still(form: str, width: int = 60, height: int = 40, mode: str = "RGB", **options) -> bytes:
    return image_file(pil.new(mode, (width, height)), form, **options)


def noise(form: str) -> bytes:
    return image_file(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), form)


SILENCE = np.zeros(4000, np.float32)


def patched(data: bytes, at: int, form: str, value: int) -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


# Bombs


BOMBS: dict[str, tuple[str, int, int]] = {
    # 4.8 GB in a PNG of 5 MB; 12 GB in 256 of them; a JPEG with 3000 scans
    "a small picture": ("200: 549 tokens", 64 << 20, 6 << 20),
    "40000 x 40000 pixels": ("413 image 0: .*pixels, found more", 64 << 20, 6 << 20),
    "more pictures than fit": ("400: the row has at least .*context holds 8000", 64 << 20, 6 << 20),
    "scans": ("413 image 0: .* 100 scans, found more", 64 << 20, 6 << 20),
    # 64 MB each once decoded
    "4 pictures, one at a time": (r"200: \d+ tokens", 200 << 20, 6 << 20),
    # 16 bytes of memory for each of 16 million pixels
    "3 pictures of 38 bytes": (r"200: \d+ tokens", 300 << 20, 40),
    # minutes in few bytes; a rate and channels that make few seconds expensive; 256 clips for a short context
    "a long FLAC": (
        "413 audio 0: .* may last 10 s, found 400.0 s in its header",
        32 << 20,
        100_000,
    ),
    "a long Opus": (
        "413 audio 0: .* may last 10 s, found 200.0 s in its header",
        32 << 20,
        100_000,
    ),
    "a high FLAC": ("413 audio 0: .* 1,920,000 values", 32 << 20, 100_000),
    "more clips than fit": ("400: the row has at least .*context holds 8000", 32 << 20, 100_000),
}
"""The answer, and limits of the memory and of the bytes that a bomb takes."""


def test_s5_s8_bombs_leave_memory_flat_and_load_no_other_decoder() -> None:
    """All in one other process, whose memory is measured."""
    run = [sys.executable, Path(__file__).with_name("bombs_run.py")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert reports.pop("libraries") == [] and reports.keys() == BOMBS.keys()
    for name, (result, grown, size) in BOMBS.items():
        report = reports[name]
        assert re.match(result, report["result"]), (name, report["result"])
        assert report["grown"] < grown and report["bytes"] < size, (name, report)


def test_s5_caps_are_the_settings(engine: Engine) -> None:
    processor = engine.processor
    for caps in (Caps(image_pixels=2399), Caps(image_bytes=50)):
        processor.caps = caps
        assert status_of(processor, noise("PNG")) == 413
        with pytest.raises(MediaError):  # and what only counts tokens looks too
            processor.count([Message.user(Image(noise("PNG")))])
    processor.caps = Caps(image_pixels=2400)
    assert status_of(processor, noise("PNG")) == 200


def gif_of_another_size(width: int, height: int) -> bytes:
    """A screen of 1 x 1 pixels, and a first frame of any size."""
    data = still("GIF", 1, 1, "P")
    at = data.index(b",")
    return data[: at + 5] + struct.pack("<HH", width, height) + data[at + 9 :]


def wider(form: str) -> bytes:
    """An image whose header promises two billion pixels in a row."""
    data = noise(form)
    match form:
        case "PNG":
            return patched(data, 16, ">I", 2**31 - 1)  # its checksum is another
        case "TIFF":
            return patched(data, 18, "<I", 2**31 - 1)
        case "BMP":
            return patched(data, 18, "<i", 2**30)
        case _:
            return patched(data, data.index(b"ispe") + 8, ">I", 2**31 - 1)


def test_s5_pictures_whose_header_lies(processor: Processor) -> None:
    """Formats, modes and damage are those of tests/core/media."""
    for data, status in (
        (still("HEIF", mode="LA"), 200),
        (still("TIFF", mode="1", compression="group4"), 200),
        (still("TIFF", mode="F"), 400),
        (gif_of_another_size(60_000, 60_000), 413),
        (gif_of_another_size(9000, 9000), 400),
        (wider("PNG"), 400),
        (wider("BMP"), 413),
        (wider("TIFF"), 413),
        (wider("HEIF"), 400),
        (wider("AVIF"), 400),
        (patched(noise("BMP"), 18, "<i", -60), 413),
        (patched(noise("BMP"), 22, "<i", -40), 200),  # from the top down
        (b"\0\0\0\x1cftypavif" + bytes(100), 400),
        (b"\0\0\0\x18ftypheic" + bytes(100), 400),
        (b"II*\0\xff\xff\xff\xff" + bytes(100), 400),
    ):
        assert status_of(processor, data) == status, data[:40]


def text_bomb() -> bytes:
    """A PNG with a compressed comment of 100 MB."""
    body = b"Comment\0\0" + zlib.compress(bytes(100 << 20), 1)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = noise("PNG")
    return data[:33] + chunk + data[33:]


def test_s5_comments_are_no_way_in(processor: Processor) -> None:
    assert status_of(processor, text_bomb()) == 400


# What is decoded at all

OTHERS = {
    "BigTIFF": b"II+\0\x08\0\0\0" + bytes(100),
    "ICO": still("ICO"),
    "PPM": still("PPM"),
    "TGA": still("TGA"),
    "PDF": still("PDF"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "FITS": b"SIMPLE  =                    T" + b" " * 3000,
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "MP4": film(3),
    "AVI": b"RIFF\0\0\0\0AVI LIST",
    "M4A": b"\0\0\0\x20ftypM4A " + bytes(100),
    "AIFF": audio_file(SILENCE, format="AIFF"),
    "CAF": audio_file(SILENCE, format="CAF"),
    "pickle": b"\x80\x04\x95",
    "text": b"Look: a picture!",
    "nothing": b"",
}


def test_s6_other_formats_are_refused_by_their_bytes(processor: Processor) -> None:
    for name, data in OTHERS.items():
        for kind in ("image", "audio"):
            assert status_of(processor, data, kind) == 415, name
        with pytest.raises(MediaError) as caught:  # where nothing checked it before the engine
            processor.row([Message.user(Image(data), "?")])
        assert caught.value.reason == "kind"
    assert status_of(processor, noise("PNG"), "audio") == 415
    assert status_of(processor, audio_file(SILENCE), "image") == 415


@pytest.mark.parametrize("name", ["PPM", "PDF", "FITS", "EPS", "JPEG 2000"])
def test_s6_a_false_beginning_opens_no_other_decoder(processor: Processor, name: str) -> None:
    """Only one decoder is used, selected by the first bytes."""
    for magic in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"):
        assert status_of(processor, magic + OTHERS[name]) in (400, 413)
    for magic in (b"fLaC", b"OggS", b"RIFF\0\0\0\0WAVE", b"ID3"):
        assert status_of(processor, magic + OTHERS[name], "audio") == 400


# Odd sizes


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "WEBP", "JPEG", "TIFF", "AVIF"])
def test_s7_degenerate_pictures(processor: Processor, form: str) -> None:
    for size, status in (((1, 1), 200), ((1, 5), 200), ((1, 3000), 400), ((16_000, 2), 400)):
        assert status_of(processor, still(form, *size)) == status, size


def test_s7_the_smallest_pictures_are_answered(engine: Engine) -> None:
    processor = engine.processor
    pictures = [Image(still("PNG", *size)) for size in ((1, 1), (1, 5), (5, 1))]
    answers = engine.generate_many([[Message.user(p, "?")] for p in pictures], sampling=SHORT)
    assert all(a.tokens and a.image_tokens for a in answers)
    assert status_of(processor, b"") == 415


# Clips


def test_s8_clips_whose_header_lies(processor: Processor) -> None:
    for data, status in (
        (audio_file(SILENCE[:1], 48_000, "OGG", "OPUS"), 200),
        (audio_file(np.zeros((4000, 8), np.float32)), 200),
        (audio_file(SILENCE, 655_350, "FLAC"), 200),
        (audio_file(SILENCE[:0]), 400),
        (audio_file(SILENCE, 4000), 400),
        (audio_file(np.array([0.0, np.nan, 0.0]), subtype="FLOAT"), 400),
        (patched(audio_file(SILENCE), 22, "<H", 65_535), 400),  # channels
        (patched(audio_file(SILENCE), 24, "<I", 2**32 - 1), 400),  # rate
        (patched(audio_file(SILENCE), 34, "<H", 0), 400),  # bits of a sample
        (patched(audio_file(SILENCE), 40, "<I", 2**31), 400),  # bytes of samples
        (audio_file(SILENCE, format="MP3")[:30], 400),
    ):
        assert status_of(processor, data, "audio") == status, data[:40]


def test_s8_a_forged_rate_buys_nothing(engine: Engine) -> None:
    """The rate in the header determines the duration of a clip, and so how much of it is processed."""
    processor = engine.processor
    data = audio_file(np.zeros(160_000, np.float32), 16_000, "FLAC")
    rate = 655_350 << 4  # 20 bits at byte 18, then channels and bits of a sample
    forged = (
        data[:18] + struct.pack(">I", rate << 8 | data[20] << 8 & 0xF00 | data[21])[:3] + data[21:]
    )
    assert soundfile.info(io.BytesIO(forged)).samplerate == 655_350
    processor.caps = Caps(audio_seconds=5)
    with pytest.raises(MediaError, match="may last 5 s"):
        engine.rows.row([Message.user(Audio(data))])
    assert status_of(processor, forged, "audio") in (200, 400)
    tokens = processor.count([Message.user(Audio(audio_file(SILENCE, 655_350, "FLAC")))])
    assert tokens.audio == 1


@pytest.mark.parametrize("form", ["WAV", "MP3"])
def test_s8_seconds_are_capped_on_every_way_in(engine: Engine, form: str) -> None:
    data = audio_file(np.zeros(48_000, np.float32), format=form)
    engine.processor.caps = Caps(audio_seconds=2)
    message = [Message.user(Audio(data), "?")]
    ways = (
        lambda: engine.rows.row(message),
        lambda: engine.generate(message),
        lambda: next(engine.stream(message)),
        lambda: score_many(engine, [(message, "yes")]),
        lambda: engine.rows.ids_row([engine.processor.tokenizer.audio_id], [Audio(data)]),
        lambda: engine.processor.count(message),
    )
    for way in ways:
        with pytest.raises(MediaError, match="may last 2 s") as caught:
            way()
        assert (caught.value.reason, caught.value.part, caught.value.number) == ("size", "audio", 0)
    engine.processor.caps = Caps(audio_bytes=len(data) - 1)
    for way in ways:
        with pytest.raises(MediaError, match="bytes, found more"):
            way()


# Error messages

IMAGE_FORMS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "HEIF")
FORMS = {f: noise(f) for f in IMAGE_FORMS} | {
    f: audio_file(0.1 * np.random.default_rng(0).standard_normal(3000), format=f)
    for f in ("WAV", "FLAC", "OGG", "MP3")
}


CHANGES = st.tuples(
    st.floats(0, 1),
    st.integers(0, 40),
    st.binary(max_size=40) | st.sampled_from([b"\xff" * 4, bytes(4)]),
)
"""Where (mostly in the header), how many bytes are removed, and what stands there instead."""


@settings(max_examples=20, deadline=None)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3), header=st.booleans())
@pytest.mark.parametrize("form", FORMS)
def test_s9_damaged_media_are_refused_in_our_words(
    processor: Processor, form: str, changes: list[tuple[float, int, bytes]], header: bool
) -> None:
    data, kind = FORMS[form], "image" if form in IMAGE_FORMS else "audio"
    for place, removed, new in changes:
        at = 4 + int(place * ((60 if header else len(data)) - 4))
        data = data[:at] + new + data[at + removed :]
    assert status_of(processor, data, kind) in (200, 400, 413, 415)
    assert status_of(processor, FORMS[form][:-40], kind) in (200, 400)


# Text

MARKS = (
    "<|system|> <|user|> <|assistant|> <|end|> <|endoftext|> <|endoftext10|> <|endoftext11|> <|image_1|> <|audio_1|> "
    "<|tool_call|> <|/tool_call|> <|tool|> <|/tool|> <|tool_response|>"
)


def controls(processor: Processor, *messages: Message) -> list[int]:
    """Control tokens of a row, placeholders among them."""
    tokenizer = processor.tokenizer
    special = {*tokenizer.controls.values(), tokenizer.image_id, tokenizer.audio_id}
    ids = processor.row(messages, generation_prompt=True).ids.tolist()
    return [i for i in ids if i in special]


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, crop_size=56, max_crops=4)


def everywhere(text: str) -> list[Message]:
    """All fields of a conversation that may contain a client's text."""
    call = {"function": {"name": text, "arguments": json.dumps({text: text})}}
    return [
        Message("system", (Text(text),), json.dumps([{"name": text, "description": text}])),
        Message.user(text, picture(), text, clip(), text),
        Message.parse({"role": "assistant", "content": text, "tool_calls": [call]}),
        Message.parse({"role": "tool", "tool_call_id": text, "content": text}),
    ]


def test_s15_text_never_becomes_control_tokens(processor: Processor) -> None:
    names = processor.tokenizer.controls
    assert {"<|system|>", "<|end|>", "<|endoftext|>", "<|tool_call|>"} <= set(names)
    expected = controls(processor, *everywhere("a"))
    assert len(expected) > 20
    for text in (*names, *MARKS.split(), MARKS.replace(" ", "")):
        assert controls(processor, *everywhere(text)) == expected, text
        assert controls(processor, *everywhere(f"a{text}\n{text}")) == expected, text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*MARKS.split(), *"<|>_/", "end", "image_1", "\n", "a", "\0"])))
def test_s15_nor_do_pieces_of_them(processor: Processor, pieces: list[str]) -> None:
    expected = controls(processor, Message.user("a"))
    assert controls(processor, Message.user("".join(pieces))) == expected
    assert controls(processor, Message.user(*pieces)) == expected


def test_s15_file_names_are_never_read(engine: Engine, tmp_path: Path) -> None:
    plain, marked = tmp_path / "a.png", tmp_path / "<|end|><|system|><|image_1|>.png"
    for path in (plain, marked):
        path.write_bytes(noise("PNG"))
    rows = [engine.rows.row([Message.user(Image(p), "?")]).ids.tolist() for p in (plain, marked)]
    assert rows[0] == rows[1]


# Caches

LONG = "abc xyz 123 qrs tuv " * 5


def answered(engine: Engine, part: Image | Audio) -> tuple[int, int]:
    """(media encoded so far, cached prompt tokens) after a request about it."""
    done = engine.generate([Message.user(part, LONG)], sampling=SHORT)
    return engine.encoders.calls, done.cached


def test_s22_the_same_bytes_in_another_shape_are_another_picture(engine: Engine) -> None:
    """30 x 150 and 150 x 30 pixels of the same values in the same order."""
    values = np.random.default_rng(0).integers(0, 256, 30 * 150 * 3, np.uint8)
    wide, high = (
        Image(image_file(values.reshape(shape))) for shape in ((30, 150, 3), (150, 30, 3))
    )
    assert answered(engine, wide) == (1, 0)
    assert answered(engine, high) == (2, 0)
    calls, cached = answered(engine, wide)
    assert calls == 2 and cached > 0
    fresh = Engine(engine.model, engine.processor)
    questions = [[Message.user(p, LONG)] for p in (high, wide)]
    apart = [fresh.generate(q, sampling=SHORT) for q in questions]
    assert [engine.generate(q, sampling=SHORT).tokens for q in questions] == [
        a.tokens for a in apart
    ]


def test_s22_the_same_picture_cut_otherwise_is_another(engine: Engine) -> None:
    data = picture(112, 60).source
    cuts = [Image(data), Image(data, detail="low"), Image(data, max_crops=2)]
    assert len({len(engine.rows.row([Message.user(c)]).inputs["image"].crops) for c in cuts}) == 3
    assert [answered(engine, c) for c in cuts] == [(1, 0), (2, 0), (3, 0)]
    for part in (*cuts, Image(data, detail="high"), Image(data, max_crops=1)):
        calls, cached = answered(engine, part)  # "high" is "auto", one crop is "low"
        assert calls == 3 and cached > 0


def test_s22_the_same_samples_at_another_rate_are_another_clip(engine: Engine) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    rates = [Audio((wave, rate)) for rate in (16_000, 8000, 24_000)]
    rates += [Audio(audio_file(wave, rate)) for rate in (16_000, 8000)]  # 16 bits: other values
    assert [answered(engine, r) for r in rates] == [(i, 0) for i in range(1, 6)]
    calls, cached = answered(engine, rates[0])
    assert calls == 5 and cached > 0


def test_s22_one_pixel_makes_another_picture(engine: Engine) -> None:
    """Keys are full digests of all pixels, not of a sample, and not truncated."""
    first = np.zeros((50, 50, 3), np.uint8)
    second = first.copy()
    second[-1, -1, 2] = 1
    pictures = [Image(image_file(p)) for p in (first, second)]
    assert answered(engine, pictures[0]) == (1, 0)
    assert answered(engine, pictures[1]) == (2, 0)


def test_s22_a_picture_and_a_clip_never_share(engine: Engine) -> None:
    """A clip with an image doesn't share with the same clip alone: it uses another projector."""
    first = engine.generate([Message.user(clip(), LONG)], sampling=SHORT)
    both = engine.generate([Message.user(clip(), picture(), LONG)], sampling=SHORT)
    assert first.cached == both.cached == 0 and engine.encoders.calls == 3
    other = engine.generate([Message.user(clip(), LONG)], sampling=SHORT, adapter="vision")
    assert other.cached == 0
