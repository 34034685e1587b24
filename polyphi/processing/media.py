"""Decoding of media: training, the command line and the server decode images and audio here (videos: video.py).

>>> image = decode_image("cat.png")                   # PIL, RGB
>>> wave, rate = decode_audio("hello.flac")           # float32 mono [n] in [-1, 1], Hz

The type of a file is determined by its first bytes, never by its name. Bytes, pixels and seconds are limited before or
while decoding, so that a small file can't fill the memory. Every error is a `MediaError` of one line with what was
expected and what was found, without messages of decoders (they may contain addresses).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from jaxtyping import Float
from PIL import Image as pil
from PIL import ImageFile
from PIL.Image import Image as Picture

from polyphi.messages import MediaSource

MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's limit for warnings, about 9,459 x 9,459: 256 MiB in RGB
MAX_AUDIO_BYTES = 256 << 20  # encoded, and again decoded
MAX_AUDIO_SECONDS = 1800.0  # 30 minutes are 22,500 tokens (report 2.2.1 tests up to that length)
MIN_RATE = 8_000  # Hz; the lowest rate of the encoder (audio.py)
MAX_RATE = 768_000  # Hz; a higher rate in a header isn't plausible
MAX_CHANNELS = 16
MAX_VALUES = 192_000  # per second of the maximum duration, over all channels: stereo at 96 kHz
MAX_PEAK = 100.0  # of full scale, +40 dB: float recordings may exceed full scale; integers as floats are an error
SAMPLES_PER_BYTE = 6_000  # maximum of all formats: FLAC silence has 65,535 samples in 12 bytes
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten, and each is a pass over all pixels
BLOCK = 1 << 18  # samples decoded between two checks of the limits
SNIFF_BYTES = 512  # bytes that determine the type of a file

AudioSource = MediaSource | tuple[np.ndarray, int]


class MediaError(ValueError):
    """An image or audio that can't be used. `reason`: an unknown "kind" of file, a "size" above a limit, or a damaged,
    empty or unfit "content". In a conversation `part` is its type ("image", "audio") and `number` its index among
    these, from 0 (set by processor.py)."""

    def __init__(
        self, message: str, reason: Literal["kind", "size", "content"] = "content"
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.part: str | None = None
        self.number: int | None = None


@dataclass(frozen=True)
class Caps:
    """Limits of an image or audio: encoded bytes, pixels, seconds."""

    image_bytes: int = MAX_IMAGE_BYTES
    image_pixels: int = MAX_IMAGE_PIXELS
    audio_bytes: int = MAX_AUDIO_BYTES
    audio_seconds: float = MAX_AUDIO_SECONDS


_DECODER_ERRORS = (soundfile.SoundFileError, RuntimeError, OSError)

# our name -> Pillow's format
IMAGE_FORMATS = {"PNG": "PNG", "JPEG": "JPEG", "WebP": "WEBP", "GIF": "GIF", "BMP": "BMP"}
AUDIO_FORMATS = ("WAV", "FLAC", "OGG", "MP3")
# our name -> FFmpeg's format: containers whose audio is read with PyAV, if installed
CONTAINER_FORMATS = {"M4A audio": "mov", "MP4": "mov", "WebM or Matroska": "matroska"}


def sniff(data: bytes) -> str:
    """Return the type of a file by its first bytes: "PNG", "WAV", ..., "text", "nothing (0 bytes)" or "unknown
    data"."""
    if not data:
        return "nothing (0 bytes)"
    if data[:4] == b"RIFF" or data[:4] == b"RF64":
        return {b"WAVE": "WAV", b"WEBP": "WebP", b"AVI ": "AVI video"}.get(
            data[8:12], "unknown RIFF data"
        )
    for magic, file_type in _MAGIC:
        if data.startswith(magic):
            return file_type
    if data[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"heic": "HEIC", b"mif1": "HEIC", b"M4A ": "M4A audio"}.get(
            data[8:12], "MP4"
        )
    # An MPEG audio frame: eleven set bits, then a version and a layer that are not the reserved ones.
    if (
        len(data) > 2
        and data[0] == 0xFF
        and data[1] & 0xE0 == 0xE0
        and data[1] & 0x18 != 0x08
        and data[1] & 0x06
    ):
        return "MP3"
    head = data[:SNIFF_BYTES]
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise a character split at the end of `head`
            return "unknown data"
    return "unknown data" if b"\0" in head else "text"


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"ID3", "MP3"),
    (b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"FORM", "AIFF"),
    (b"\x1f\x8b", "gzip"),
)


def decode_image(
    source: MediaSource, *, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS
) -> Picture:
    """Return an image as RGB: the first frame, without alpha, EXIF orientation ignored, as in the published processor.

    16-bit grey keeps its upper 8 bits (the published processor makes nearly all of it white). Raises `MediaError` for a
    missing file, other formats than PNG, JPEG, WebP, GIF and BMP, damaged files, and above either limit.
    """
    file, name = _open_image(source, max_bytes, max_pixels)
    image: Picture = file
    try:
        image.load()
        if image.mode.startswith("I"):
            image = pil.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        # Converting RGB to RGB would be a second copy.
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError):
        raise MediaError(
            f"{name}: the picture is damaged or truncated; expected a complete file"
        ) from None


def image_size(
    source: MediaSource, *, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[int, int]:
    """Return (width, height) in pixels from the header, without decoding; raises as `decode_image` does."""
    return _open_image(source, max_bytes, max_pixels)[0].size


def decode_audio(
    source: AudioSource,
    *,
    max_bytes: int = MAX_AUDIO_BYTES,
    max_seconds: float = MAX_AUDIO_SECONDS,
) -> tuple[Float[np.ndarray, " n"], int]:
    """Return audio as mono float32 samples in [-1, 1] (the mean over its channels) and its rate in Hz.

    `source` is a path, the bytes of a WAV, FLAC, OGG (Vorbis, Opus) or MP3 file (with PyAV also M4A, MP4 and WebM), or
    `(samples, rate)` with samples [n] or [n, channels], of floats or of integers (divided by their full scale). Raises
    `MediaError` for a missing file, other formats, damaged, empty or truncated ones, samples that are not finite or
    above `MAX_PEAK`, and above a limit."""
    if isinstance(source, tuple):
        return _from_array(source, max_seconds)
    stream = AudioStream(source, max_bytes=max_bytes, max_seconds=max_seconds)
    blocks: list[np.ndarray] = []
    for block in stream:
        blocks.append(block)
        if sum(map(len, blocks)) * 4 > max_bytes:
            raise MediaError(_too_long(stream.name, stream.seconds, max_seconds), "size")
    return np.concatenate(blocks), stream.rate


class AudioStream:
    """Audio in blocks, for recordings that don't fit in memory: the result of `decode_audio` in pieces. With PyAV
    (extra `video`) also the audio of M4A, MP4 and WebM files.

    >>> stream = AudioStream("lecture.flac", max_seconds=4 * 3600)
    >>> for block in stream: ...                     # float32 mono [n] in [-1, 1], n at most 2^18

    `rate` is known at once, `announced` is the number of samples in the header (approximate for compressed formats,
    2^60 or more if unknown), and `seconds` is the duration read so far. A path is read incrementally, without a limit
    on its bytes unless `max_bytes` is given. Raises `MediaError` as `decode_audio` does: for errors in the header when
    it is opened, for others while it is read; `max_seconds` also limits the work (`MAX_VALUES`). Each iteration starts
    from the beginning.
    """

    def __init__(
        self,
        source: AudioSource,
        *,
        max_bytes: int | None = None,
        max_seconds: float = MAX_AUDIO_SECONDS,
    ) -> None:
        self.source, self.max_seconds, self.seconds = source, max_seconds, 0.0
        self.name, self.format = "the given samples", "given"
        if isinstance(source, tuple):
            _check_array(source, max_seconds)
            self.rate, self.announced = int(source[1]), len(source[0])
            return
        with _open(source, max_bytes, "clip") as (file, self.name):
            self.format = sniff(file.read(SNIFF_BYTES))
            if self.format not in (*AUDIO_FORMATS, *CONTAINER_FORMATS):
                raise MediaError(
                    f"{self.name}: expected a WAV, FLAC, OGG or MP3 clip, found {self.format}",
                    "kind",
                )
            if self.format == "WAV":
                _check_wav(file, self.name)
            file.seek(0)
            if self.format in CONTAINER_FORMATS:
                self._read_container_header(file)
                return
            with self._decoder(file) as audio:
                self.rate, self.announced = audio.samplerate, audio.frames
            # A header with one wrong bit may announce years: that is damage, not audio that is too long.
            size = file.seek(0, io.SEEK_END)
            if SAMPLES_PER_BYTE * size < self.announced < 2**60:
                raise MediaError(
                    f"{self.name}: the {self.format} clip is truncated; its header promises {self.announced} samples, "
                    f"more than {size} bytes can hold"
                )

    def __iter__(self) -> Iterator[Float[np.ndarray, " n"]]:
        if isinstance(self.source, tuple):
            wave = np.asarray(self.source[0])
            for start in range(0, len(wave), BLOCK):
                yield _from_array((wave[start : start + BLOCK], self.rate), self.max_seconds)[0]
            self.seconds = len(wave) / self.rate
            return
        count = 0
        with _open(self.source, None, "clip") as (file, name):
            for block in (
                self._soundtrack(file) if self.format in CONTAINER_FORMATS else self._decoded(file)
            ):
                count += len(block)
                self.seconds = count / self.rate
                if count > self.max_seconds * self.rate:
                    raise MediaError(_too_long(name, self.seconds, self.max_seconds), "size")
                yield _checked(block, name)
        if count == 0:
            raise MediaError(f"{name}: the {self.format} clip is empty; expected samples, found 0")
        # The announced length of compressed formats is approximate.
        if count < 0.95 * self.announced < 2**60:
            raise MediaError(
                f"{name}: the {self.format} clip is truncated; expected {self.announced} samples, found {count}"
            )

    def _decoder(self, file: io.BufferedIOBase) -> soundfile.SoundFile:
        try:  # libsndfile detects the format from the bytes
            audio = soundfile.SoundFile(file)
        except _DECODER_ERRORS:
            raise MediaError(self._damaged()) from None
        self._check_header(audio.samplerate, audio.channels)
        return audio

    def _check_header(self, rate: int, channels: int) -> None:
        if not (1 <= rate <= MAX_RATE and 1 <= channels <= MAX_CHANNELS):
            raise MediaError(
                f"{self.name}: a header of {rate} Hz and {channels} channels is not believable"
            )
        check_rate(rate)

    def _decoded(self, file: io.BufferedIOBase) -> Iterator[np.ndarray]:
        """Yield blocks from libsndfile, channels averaged."""
        with self._decoder(file) as audio:
            size, values = max(1, BLOCK // audio.channels), 0
            while True:
                try:
                    block = audio.read(size, dtype="float32", always_2d=True)
                except _DECODER_ERRORS:
                    raise MediaError(self._damaged()) from None
                if not len(block):
                    return
                # A short file may have 655,350 Hz and eight channels: few bytes and seconds, but minutes of work.
                values += block.size
                if values > self.max_seconds * MAX_VALUES:
                    raise MediaError(
                        f"{self.name}: a clip may have {self.max_seconds * MAX_VALUES:,.0f} values over all its "
                        "channels, found more; resample it first",
                        "size",
                    )
                yield block[:, 0] if audio.channels == 1 else block.mean(axis=1, dtype=np.float32)

    def _read_container_header(self, file: io.BufferedIOBase) -> None:
        """Set rate and length of a container's first audio stream."""
        try:
            import av
        except ImportError:
            raise MediaError(
                f"{self.name}: {self.format} needs PyAV; `pip install av`, or convert it to WAV, FLAC, OGG or MP3",
                "kind",
            ) from None
        try:
            with av.open(file, "r", format=CONTAINER_FORMATS[self.format]) as container:
                if not container.streams.audio:
                    raise MediaError(f"{self.name}: expected sound, found a {self.format} without")
                track = container.streams.audio[0]
                self.rate = track.codec_context.sample_rate
                channels = track.codec_context.channels
                duration = container.duration  # microseconds
        except (*_DECODER_ERRORS, av.error.FFmpegError):
            raise MediaError(self._damaged()) from None
        self.announced = round(duration / 1e6 * self.rate) if duration else 2**62
        self._check_header(self.rate, channels)

    def _soundtrack(self, file: io.BufferedIOBase) -> Iterator[np.ndarray]:
        """Yield blocks of a container's first audio stream from PyAV, channels averaged. With a fixed format FFmpeg
        tries no other."""
        import av

        try:
            with av.open(file, "r", format=CONTAINER_FORMATS[self.format]) as container:
                track = container.streams.audio[0]
                resampler = av.AudioResampler("fltp", track.codec_context.layout, self.rate)
                for frame in container.decode(track):
                    for part in resampler.resample(frame):
                        yield part.to_ndarray().mean(axis=0, dtype=np.float32)
        except (*_DECODER_ERRORS, av.error.FFmpegError):
            raise MediaError(self._damaged()) from None

    def _damaged(self) -> str:
        return (
            f"{self.name}: the {self.format} clip is damaged or truncated; expected a complete file"
        )


def audio_size(
    source: AudioSource,
    *,
    max_bytes: int = MAX_AUDIO_BYTES,
    max_seconds: float = MAX_AUDIO_SECONDS,
) -> tuple[int, int]:
    """Return (samples, rate in Hz) of the result of `decode_audio`, from the header if it is reliable. MP3 is decoded:
    the length in its header is an estimate, and the file may be truncated. Damage inside the audio isn't detected."""
    stream = AudioStream(source, max_bytes=max_bytes, max_seconds=max_seconds)
    has_exact_header = stream.format in ("given", "WAV", "FLAC", "OGG")
    if has_exact_header and 0 < stream.announced <= max_seconds * stream.rate:
        return stream.announced, stream.rate
    return sum(map(len, stream)), stream.rate  # raises MediaError for damaged audio


def check_rate(rate: int) -> None:
    """Raise `MediaError` for a rate below `MIN_RATE`, with the same message for files, streams and arrays."""
    if rate < MIN_RATE:
        raise MediaError(
            f"clips need at least {MIN_RATE} Hz, found {rate} Hz; record or resample at {2 * MIN_RATE} Hz"
        )


def read_within(source: MediaSource, limit: int, media_type: str) -> tuple[bytes, str]:
    """Return (bytes, name for messages) of a file; reads at most `limit` + 1 bytes. Raises MediaError above the limit
    and for a missing file."""
    with _open(source, limit, media_type) as (file, name):
        data = file.read(limit + 1)
    if len(data) > limit:
        raise MediaError(_too_many_bytes(name, media_type, limit), "size")
    return data, name


@contextmanager
def _open(
    source: MediaSource, limit: int | None, media_type: str
) -> Iterator[tuple[io.BufferedIOBase, str]]:
    """Yield (open file, name for messages) of a path or bytes."""
    if isinstance(source, bytes | bytearray | memoryview):
        file: io.BufferedIOBase = io.BytesIO(source)
        name, size = f"the given bytes of a {media_type}", len(source)
    elif isinstance(source, str | Path):
        path, name = Path(source), str(source)[:200]
        try:
            if not path.is_file():
                raise MediaError(
                    f"{name}: expected a file, found {'a folder' if path.is_dir() else 'nothing there'}"
                )
            file, size = path.open("rb"), path.stat().st_size
        except OSError as error:
            raise MediaError(f"{name}: expected a readable file, found: {error.strerror}") from None
    else:
        raise MediaError(
            f"expected a {media_type} as a path or as bytes, found {type(source).__name__}"
        )
    with file:
        if limit is not None and size > limit:
            raise MediaError(_too_many_bytes(name, media_type, limit), "size")
        yield file, name


def _too_many_bytes(name: str, media_type: str, limit: int) -> str:
    return f"{name}: a {media_type} may have {limit:,} bytes, found more"


def _open_image(
    source: MediaSource, max_bytes: int, max_pixels: int
) -> tuple[ImageFile.ImageFile, str]:
    """Return an image with its header read and its size checked, not decoded yet, and its name for messages."""
    data, name = read_within(source, max_bytes, "picture")
    file_type = sniff(data)
    if file_type not in IMAGE_FORMATS:
        raise MediaError(
            f"{name}: expected a PNG, JPEG, WebP, GIF or BMP picture, found {file_type}", "kind"
        )
    if file_type == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise MediaError(f"{name}: a JPEG picture may have {MAX_SCANS} scans, found more", "size")
    try:
        image = pil.open(io.BytesIO(data), formats=[IMAGE_FORMATS[file_type]])
    except pil.DecompressionBombError:
        raise MediaError(
            f"{name}: a picture may have {max_pixels:,} pixels, found more than twice that", "size"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError):
        raise MediaError(
            f"{name}: the {file_type} picture is damaged or truncated; expected a complete file"
        ) from None
    if image.width * image.height > max_pixels:
        pixels = image.width * image.height
        raise MediaError(
            f"{name}: a picture may have {max_pixels:,} pixels, found {pixels:,}; shrink it first",
            "size",
        )
    return image, name


def _check_wav(file: io.BufferedIOBase, name: str) -> None:
    """Raise MediaError if the `data` chunk of a WAV file is truncated: libsndfile reads such files without an error.

    Sizes 0 and 0xFFFFFFFF mean "unknown" and are written by streaming programs.
    """
    offset, end = 12, file.seek(0, io.SEEK_END)
    while offset + 8 <= end:
        file.seek(offset)
        chunk, size = file.read(4), int.from_bytes(file.read(4), "little")
        offset += 8
        if chunk == b"data":
            available = end - offset
            if available == 0:
                raise MediaError(f"{name}: the WAV clip is empty; expected samples, found 0")
            if size not in (0, 0xFFFFFFFF) and available < size:
                raise MediaError(
                    f"{name}: the WAV clip is truncated; its header promises {size} bytes, found {available}"
                )
            return
        offset += size + size % 2
    raise MediaError(f"{name}: the WAV clip is truncated; its header ends before the samples")


def _check_array(source: tuple[np.ndarray, int], max_seconds: float) -> None:
    if len(source) != 2:
        raise MediaError(f"a clip in memory is (samples, rate), found a tuple of {len(source)}")
    wave, rate = np.asarray(source[0]), int(source[1])
    if wave.ndim not in (1, 2) or (wave.ndim == 2 and not 1 <= wave.shape[1] <= MAX_CHANNELS):
        raise MediaError(f"samples must have shape [n] or [n, channels], found {list(wave.shape)}")
    if wave.size == 0:
        raise MediaError("the given samples are empty; expected at least one")
    if not 1 <= rate <= MAX_RATE:
        raise MediaError(f"a rate lies between 1 and {MAX_RATE} Hz, found {rate}")
    if len(wave) > max_seconds * rate:
        raise MediaError(_too_long("the given samples", len(wave) / rate, max_seconds), "size")
    if not (np.issubdtype(wave.dtype, np.signedinteger) or np.issubdtype(wave.dtype, np.floating)):
        raise MediaError(
            f"samples must be floats in [-1, 1] or signed integers, found {wave.dtype}"
        )


def _from_array(
    source: tuple[np.ndarray, int], max_seconds: float
) -> tuple[Float[np.ndarray, " n"], int]:
    _check_array(source, max_seconds)
    wave, rate = np.asarray(source[0]), int(source[1])
    if np.issubdtype(wave.dtype, np.signedinteger):
        wave = wave.astype(np.float32) / np.float32(-float(np.iinfo(wave.dtype).min))
    wave = wave.astype(np.float32)
    mono = wave if wave.ndim == 1 else wave.mean(axis=1, dtype=np.float32)
    return _checked(mono, "the given samples"), rate


def _checked(wave: Float[np.ndarray, " n"], name: str) -> Float[np.ndarray, " n"]:
    """Return the samples. Raises `MediaError` for NaN, infinity and peaks above `MAX_PEAK`."""
    peak = float(np.abs(wave).max(initial=0.0))  # NaN if any sample is
    if not np.isfinite(peak):
        raise MediaError(f"{name}: samples must be finite, found NaN or infinity")
    if peak > MAX_PEAK:
        raise MediaError(
            f"{name}: samples must lie in [-1, 1] and may peak at {MAX_PEAK:g} at most, found a peak of {peak:g}; "
            "divide them by their full scale (32768 for 16-bit samples)"
        )
    return wave


def _too_long(name: str, seconds: float, limit: float) -> str:
    return f"{name}: a clip may last {limit:g} s, found {seconds:.1f} s or more; cut it first"
