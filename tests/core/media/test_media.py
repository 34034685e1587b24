"""Files are known by their bytes, capped, and refused with one clear line."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageOps

import tests.fixtures.heif  # noqa: F401 (writes HEIC)
from polyphi.media import media
from polyphi.media.file_types import sniff
from polyphi.media.media import (
    LONGEST_AUDIO_SECONDS,
    MAX_AUDIO_SECONDS,
    AudioStream,
    Caps,
    audio_size,
    decode_audio,
    decode_image,
    image_size,
    image_types,
    missing_image_decoder,
)
from tests.fixtures.audio import encoded
from tests.fixtures.images import film
from tests.fixtures.variants import few

Make = Callable[..., bytes]
assert missing_image_decoder("HEIC") is None, "the tests need pi-heif"


def encode(picture: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_pictures_decode_to_their_pixels_whatever_the_name(
    format: str, png: Make, tmp_path: Path
) -> None:
    path = tmp_path / "cat.txt"
    path.write_bytes(png(20, 10, format=format))
    expected = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    for source in (path, str(path), path.read_bytes()):
        picture = decode_image(source)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), expected)
        assert image_size(source) == (20, 10)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "AVIF", "HEIF"])
def test_only_the_first_frame_or_page_is_seen(format: str) -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    picture = decode_image(encode(red, format, save_all=True, append_images=[blue]))
    red_, _, blue_ = picture.getpixel((9, 9))
    assert red_ > 240 and blue_ < 15


def test_heic_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (64, 64)), "HEIF")
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    missing_image_decoder.cache_clear()
    try:
        with pytest.raises(ValueError, match=r'needs pi-heif; pip install "\.\[heic\]"') as error:
            decode_image(data)
        assert "convert it to PNG or JPEG" in str(error.value)
        assert "image/heic" not in image_types() and "image/avif" in image_types()
    finally:
        monkeypatch.undo()
        missing_image_decoder.cache_clear()
    assert decode_image(data).size == (64, 64)


def test_alpha_is_dropped_not_blended() -> None:
    picture = decode_image(encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG"))
    assert picture.getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", 7), ("1", 1), ("P", 3), ("CMYK", (9, 8, 7, 6)), ("LA", (7, 0))]
)
def test_other_modes_become_rgb(mode: str, colour: object) -> None:
    data = encode(Image.new(mode, (4, 4), colour), "JPEG" if mode == "CMYK" else "PNG")
    assert decode_image(data).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("photo.png", b"hello, I am a letter", "text"),
        ("photo.png", b"", "nothing"),
        ("photo.jpg", b"%PDF-1.7 ...", "PDF"),
        ("photo.png", b"RIFF\0\0\0\0WAVEfmt ", "WAV"),
        ("photo.png", bytes(range(256)), "unknown data"),
        ("photo.heic", b"\0\0\0\x18ftypisom", "MP4"),
    ],
)
def test_data_that_is_no_picture_is_named_in_the_error(
    name: str, data: bytes, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: .*PNG, JPEG, .*{kind}"):
        decode_image(path)


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
def test_missing_files_and_folders_are_named(decode: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.png: .*nothing"):
        decode(tmp_path / "none.png")
    with pytest.raises(ValueError, match="folder"):
        decode(tmp_path)
    with pytest.raises(ValueError, match="expected a file"):
        decode("x" * 200)
    with pytest.raises(ValueError, match="readable"):
        decode("x" * 5000)
    with pytest.raises(
        (ValueError, TypeError), match=r"found int|Type-check"
    ):  # the latter where types are checked
        decode(7)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_truncated_pictures_are_refused_in_our_words(format: str, png: Make) -> None:
    data = png(64, 64, format=format)
    for length in (16, len(data) // 2):
        with pytest.raises(ValueError, match="damaged or truncated") as error:
            decode_image(data[:length])
        assert "0x" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("brand", "compatible", "kind"),
    [
        (b"heic", b"mif1", "HEIC"),
        (b"hevc", b"", "HEIC"),
        (b"mif1", b"mif1heic", "HEIC"),
        (b"mif1", b"miafavif", "AVIF"),
        (b"avif", b"mif1heic", "AVIF"),
        (b"avis", b"avifmsf1", "AVIF"),
        (b"M4A ", b"heic", "M4A audio"),
        (b"isom", b"avif", "MP4"),
    ],
)
def test_the_brands_of_a_file_say_what_it_is(brand: bytes, compatible: bytes, kind: str) -> None:
    head = struct.pack(">I", 16 + len(compatible)) + b"ftyp" + brand + bytes(4) + compatible
    assert sniff(head + b"avifheic" * 9) == kind


def with_orientation(value: int, format: str, **options: object) -> bytes:
    """A picture of 20 x 10 pixels whose EXIF says how to turn it."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "the camera", value
    return encode(Image.fromarray(pixels), format, exif=exif.tobytes(), **options)


def with_exif_at_the_end(data: bytes) -> bytes:
    """A PNG file whose EXIF follows the pixels."""
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_photo_is_turned_by_its_orientation(format: str, value: int) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = with_orientation(value, format, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    for source in (data, with_exif_at_the_end(data)) if format == "PNG" else (data,):
        picture = decode_image(source)
        assert image_size(source) == picture.size == ((10, 20) if value > 4 else (20, 10))
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_damaged_exif_turns_nothing() -> None:
    data = with_orientation(6, "JPEG")
    entry = data.index(b"Exif") + 6
    for number in range(entry, entry + 40):
        for value in (0, 255):
            changed = data[:number] + bytes([value]) + data[number + 1 :]
            assert image_size(changed) == decode_image(changed).size


def test_sixteen_bits_of_grey_keep_the_upper_eight() -> None:
    grey = np.arange(0, 65536, 257, np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        picture = decode_image(encode(Image.fromarray(grey), format))
        np.testing.assert_array_equal(np.asarray(picture)[..., 0], grey >> 8)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_of_an_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="8 or 16 bits"):
        decode_image(encode(Image.new(mode, (9, 9)), "TIFF"))


def tiff(tags: dict[int, list[int]], data: bytes) -> bytes:
    """A TIFF file of tags of 32 bits; its data begin at byte 8."""
    entries, extra = b"", b""
    start = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        where = struct.pack("<I", start + len(extra)) if len(values) > 1 else packed
        extra += packed if len(values) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(values)) + where
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(tags)) + entries + bytes(4) + extra


@pytest.mark.parametrize(
    ("side", "message"), [(16, None), (30_000, "tiles"), (2**31, "tiles"), (0, "damaged")]
)
def test_tiles_are_not_larger_than_a_picture_may_be(side: int, message: str | None) -> None:
    body = zlib.compress(bytes(3 * 16 * 16))
    tags = {256: [10], 257: [10], 258: [8, 8, 8], 259: [8], 262: [2], 277: [3]}
    data = tiff({**tags, 322: [side], 323: [side], 324: [8], 325: [len(body)]}, body)
    if message is None:
        assert decode_image(data, max_pixels=100).size == (10, 10)
    else:
        with pytest.raises(ValueError, match=message):
            decode_image(data)


def test_a_header_of_another_size_than_the_picture_is_damage() -> None:
    """Pillow takes the size of a HEIC image from its decoder in the end."""
    data = encode(Image.new("RGB", (64, 64)), "HEIF")
    at = data.index(b"ispe") + 8
    with pytest.raises(ValueError, match="damaged"):
        decode_image(data[:at] + struct.pack(">II", 8, 8) + data[at + 8 :])


def test_damaged_files_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    decode_image(encode(Image.new("RGB", (64, 64)), "TIFF"))
    data = encode(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_lzw")
    for at in range(4, len(data), 3):
        for value in (0, 255):
            with suppress(ValueError):
                decode_image(data[:at] + bytes([value]) + data[at + 1 :])
    assert capfd.readouterr() == ("", "")


def huge_png(side: int) -> bytes:
    """A valid header of side x side pixels, and next to nothing behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_decoding(png: Make) -> None:
    for side in (10_000, 40_000):
        with pytest.raises(ValueError, match="89,478,485 pixels"):
            decode_image(huge_png(side))


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "FLOAT", 1e-6),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", None),
        ("OGG", "OPUS", None),
        ("MP3", "MPEG_LAYER_III", None),
    ],
)
def test_clips_decode_whatever_the_name(
    format: str, subtype: str, tolerance: float | None, clip: Make, tmp_path: Path
) -> None:
    data = clip(16000, format=format, subtype=subtype)
    assert sniff(data) == format
    path = tmp_path / "song.txt"
    path.write_bytes(data)
    wave, rate = decode_audio(path)
    assert (rate, wave.dtype, wave.shape) == (16000, np.float32, (16000,))
    if tolerance:
        expected = 0.1 * np.random.default_rng(0).standard_normal(16000)
        np.testing.assert_allclose(wave, expected, atol=tolerance)


def test_channels_are_averaged(clip: Make) -> None:
    wave, _ = decode_audio(clip(100, channels=3, subtype="FLOAT"))
    expected = (0.1 * np.random.default_rng(0).standard_normal((100, 3))).mean(axis=1)
    np.testing.assert_allclose(wave, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_a_stream_brings_the_same_samples(
    format: str, subtype: str, clip: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block, from the disk or from memory, as often as one likes."""
    monkeypatch.setattr("polyphi.media.media.BLOCK", 4000)
    data = clip(30000, channels=2, format=format, subtype=subtype)
    path = tmp_path / "song"
    path.write_bytes(data)
    wave, rate = decode_audio(data)
    for source in (path, data, (wave, rate)):
        stream = AudioStream(source)
        for _ in range(2):
            blocks = list(stream)
            assert len(blocks) > 5 and max(map(len, blocks)) <= 4000
            np.testing.assert_array_equal(np.concatenate(blocks), wave)
        assert stream.rate == rate and stream.seconds == len(wave) / rate


@pytest.mark.parametrize(
    ("format", "codec"), few([("mp4", "aac"), ("ipod", "aac"), ("webm", "libopus")], 1)
)
def test_soundtracks_are_decoded(format: str, codec: str) -> None:
    """Formats that phones and browsers record, under any file name; the tone keeps its frequency."""
    data, rate = encoded(format, codec, 48000, "stereo"), 48000
    wave, decoded_rate = decode_audio(data)
    assert decoded_rate == rate and abs(len(wave) - rate) < 3000
    spectrum = np.abs(np.fft.rfft(wave[5000:45000]))
    assert abs(spectrum.argmax() * rate / 40000 - 440) < 2
    with pytest.raises(ValueError, match=r"truncated|without"):
        decode_audio(data[: len(data) // 3])
    with pytest.raises(ValueError, match=r"may last 0\.5 s"):
        decode_audio(data, max_seconds=0.5)
    with pytest.raises(ValueError, match=r"sound, .*MP4"):
        decode_audio(film(3))


def test_a_stream_has_no_cap_on_bytes_but_one_on_seconds(clip: Make, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(clip(32000))
    with pytest.raises(ValueError, match=r"may last 1\.5 s"):
        list(AudioStream(path, max_seconds=1.5))
    with pytest.raises(ValueError, match="bytes, found more"):
        AudioStream(path, max_bytes=1000)
    assert AudioStream(path, max_seconds=2.0).announced == 32000


def test_samples_in_memory() -> None:
    wave, rate = decode_audio((np.array([[0.5, 0.0], [-1.0, 0.0]]), 8000))
    assert wave.tolist() == [0.25, -0.5] and rate == 8000 and wave.dtype == np.float32
    assert decode_audio((np.array([-32768, 16384], np.int16), 16000))[0].tolist() == [-1.0, 0.5]
    for samples, message in (
        (np.zeros(0), "empty"),
        (np.zeros((2, 2, 2)), r"\[n\] or \[n, channels\], found \[2, 2, 2\]"),
        (np.array([np.nan]), "finite"),
        (np.array([np.inf]), "finite"),
        (np.array([0.0, -1e12]), r"peak at 100 at most, found a peak of 1e\+12"),
        (np.array([1], np.uint8), "uint8"),
        (np.array(["a"]), "<U1"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_audio((samples, 16000))
    with pytest.raises(ValueError, match="found 0"):
        decode_audio((np.zeros(5), 0))
    loud = np.array([0.0, 31.0, -100.0], np.float32)  # 40 dB above full scale
    assert decode_audio((loud, 16000))[0].tolist() == loud.tolist()


def test_empty_and_truncated_clips_are_refused(clip: Make) -> None:
    with pytest.raises(ValueError, match=r"WAV, FLAC, .*0 bytes"):
        decode_audio(b"")
    with pytest.raises(ValueError, match="empty"):
        decode_audio(clip(0))
    with pytest.raises(ValueError, match="promises 32000 bytes, found 15956"):
        decode_audio(clip(16000)[:16000])
    with pytest.raises(ValueError, match="truncated"):
        decode_audio(clip(16000)[:40])
    for format, subtype in (
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ):
        data = clip(16000, format=format, subtype=subtype)
        for length in (20, len(data) // 2):
            with pytest.raises(ValueError, match=r"truncated|empty") as error:
                decode_audio(data[:length])
            assert "0x" not in str(error.value)


def test_a_header_may_not_promise_more_than_its_bytes_can_hold(clip: Make) -> None:
    """Nor a rate below the encoder's, which the stream refuses when it is opened."""
    data = bytearray(clip(16000, format="FLAC"))
    data[21] |= 8  # the top bit of 36 that count the samples
    for way in (AudioStream, audio_size, decode_audio):
        with pytest.raises(ValueError, match="promises 34359754368 samples"):
            way(bytes(data))
    slow = bytearray(clip(16000))
    slow[24:28] = (7999).to_bytes(4, "little")
    for way in (AudioStream, audio_size, decode_audio):
        with pytest.raises(ValueError, match="at least 8000 Hz, found 7999 Hz"):
            way(bytes(slow))


def test_a_streamed_wav_of_unknown_length_is_read(clip: Make) -> None:
    data = bytearray(clip(1000))
    data[40:44] = b"\xff\xff\xff\xff"
    assert len(decode_audio(bytes(data))[0]) == 1000


def test_forged_headers_and_bad_samples_are_refused(clip: Make) -> None:
    data = bytearray(clip(1000))
    data[24:28] = struct.pack("<I", 2_000_000_000)
    with pytest.raises(ValueError, match=r"not believable|damaged"):
        decode_audio(bytes(data))
    out = io.BytesIO()
    soundfile.write(out, np.array([0.0, np.nan]), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match="finite"):
        decode_audio(out.getvalue())
    with pytest.raises(ValueError, match=r"WAV, FLAC, .*text"):
        decode_audio(b"I am a poem")


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_the_length_of_a_clip_is_read_without_decoding(
    clip: Make, format: str, subtype: str | None, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = 48000 if (subtype, rate) == ("OPUS", 44100) else rate  # Opus knows no 44.1 kHz
    for samples in (1, 399, 20011):
        data = clip(samples, rate, 2, format, subtype)
        wave, decoded_rate = decode_audio(data)
        assert audio_size(data) == (len(wave), decoded_rate) == (samples, rate)
    if format != "MP3":  # and it does so without being decoded
        monkeypatch.setattr(media, "decode_audio", None)
        assert audio_size(data) == (20011, rate)


def test_a_cut_mp3_is_measured_not_believed(clip: Make) -> None:
    whole = clip(160_000, 16000, 1, "MP3")
    cut = whole[: int(len(whole) * 0.97)]
    assert audio_size(cut)[0] == len(decode_audio(cut)[0]) < 160_000


def test_a_clip_that_has_no_length_says_why(clip: Make) -> None:
    whole = clip(1600)
    for source, message in (
        (whole[:1000], "truncated"),
        (clip(0), "empty"),
        (b"Dear Sir", "found text"),
        ((np.zeros(0, np.float32), 16000), "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            audio_size(source)
    long = io.BytesIO()
    soundfile.write(long, np.zeros(8000 * 1801, np.int16), 8000, format="FLAC")
    with pytest.raises(ValueError, match="may last 1800 s"):
        audio_size(long.getvalue())


def test_the_limit_of_seconds_ends_at_the_longest_context() -> None:
    assert Caps.for_audio(MAX_AUDIO_SECONDS) == Caps()
    short, hour = Caps.for_audio(20), Caps.for_audio(3600)
    assert (short.audio_seconds, short.audio_bytes) == (20, Caps().audio_bytes)
    assert (hour.audio_seconds, hour.audio_bytes) == (3600, 2 * Caps().audio_bytes)
    for seconds in (0.5, LONGEST_AUDIO_SECONDS + 1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"between 1 and 10,080, found {seconds:,g}"):
            Caps.for_audio(seconds)


def test_errors_have_a_reason_and_name_the_limit(png: Make, clip: Make) -> None:
    samples = np.zeros(16000), 16000
    for refuse, reason, message in (
        (lambda: decode_image(b"%PDF-1.7"), "kind", "PDF"),
        (lambda: decode_audio(png(4, 4)), "kind", "PNG"),
        (lambda: decode_image(png(20, 20), max_pixels=100), "size", "100 pixels, found 400"),
        (lambda: decode_image(png(20, 20), max_bytes=100), "size", "100 bytes"),
        (lambda: image_size(png(20, 20), max_pixels=100), "size", "100 pixels"),
        (lambda: decode_audio(clip(16000), max_seconds=0.5), "size", r"0\.5 s"),
        (lambda: decode_audio(samples, max_seconds=0.5), "size", r"0\.5 s, found 1\.0 s"),
        (lambda: decode_audio(clip(16000), max_bytes=1000), "size", "1,000 bytes|1000 bytes"),
        (lambda: audio_size(clip(16000), max_bytes=1000), "size", "bytes"),
        (lambda: audio_size(clip(16000, format="MP3"), max_seconds=0.5), "size", r"0\.5 s"),
        (lambda: decode_image(png(20, 20)[:-40]), "content", "truncated"),
        (lambda: decode_audio(clip(0)), "content", "empty"),
    ):
        with pytest.raises(media.MediaError, match=message) as error:
            refuse()
        assert (error.value.reason, error.value.part) == (reason, None)


def test_work_is_capped_whatever_the_rate(clip: Make) -> None:
    """Few seconds at a high rate in many channels are as much work as many."""
    data = clip(400_000, 400_000, 8, "FLAC", "PCM_16")
    assert decode_audio(data, max_seconds=17)[1] == 400_000
    with pytest.raises(ValueError, match="3,072,000 values"):
        decode_audio(data, max_seconds=16)
    assert len(decode_audio(clip(96_000, 96_000, 2), max_seconds=1)[0]) == 96_000


def test_a_jpeg_of_many_scans_is_refused(png: Make) -> None:
    data = encode(Image.open(io.BytesIO(png(64, 64))), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert decode_image(data[:last] + data[last:-2] * 50 + data[-2:]).size == (64, 64)
    with pytest.raises(ValueError, match="100 scans"):
        decode_image(data[:last] + data[last:-2] * 120 + data[-2:])
