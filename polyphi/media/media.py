"""Decoding of media: training, the command line and the server decode images and audio here (videos: video.py).

>>> image = decode_image("cat.png")                   # PIL, RGB
>>> wave, rate = decode_audio("hello.flac")           # float32 mono [n] in [-1, 1], Hz

The type of a file is determined by its first bytes, never by its name. Images, WAV, FLAC, OGG and MP3 are decoded here
or, with `decoders`, in a separate process (isolated.py), with the same result; other audio always is. Bytes,
pixels and seconds are limited before or while decoding, so that a small file can't fill the memory. Every error is a
`MediaError` of one line with what was expected and what was found, without messages of decoders (they may contain
addresses).
"""

import ctypes
import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from jaxtyping import Float
from PIL import Image as pil
from PIL import ImageFile, features
from PIL.Image import Image as Picture

from polyphi.media import isolated, mpg123
from polyphi.media.file_types import (
    AUDIO_FORMATS,
    CONTAINER_FORMATS,
    IMAGE_FORMATS,
    IMAGES_EXPECTED,
    SNIFF_BYTES,
    sniff,
)
from polyphi.media.isolated import DecoderError
from polyphi.media.orientation import SWAPS_SIDES, turn
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.installation import from_checkout
from polyphi.runtime.steps import Stop
from polyphi.text.quantity import quantity
from polyphi.types.media_sources import AudioSource, MediaSource

MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's limit for warnings, about 9,459 x 9,459: 256 MiB in RGB
MAX_AUDIO_BYTES = 256 << 20  # encoded, and again decoded
MAX_AUDIO_SECONDS = 1800.0  # by default: 22,500 tokens, the longest of training (report 2.2.2)
LONGEST_AUDIO_SECONDS = 10_080.0  # 2.8 hours (report 2.2.2): 126,000 of 131,072 tokens, 80 ms each
MIN_RATE = 8_000  # Hz; the lowest rate of the encoder (audio.py)
MAX_RATE = 768_000  # Hz; a higher rate in a header isn't plausible
MAX_CHANNELS = 16
MAX_VALUES = 192_000  # per second of the maximum duration, over all channels: stereo at 96 kHz
MAX_PEAK = 100.0  # of full scale, +40 dB: float recordings may exceed full scale; integers as floats are an error
SAMPLES_PER_BYTE = 6_000  # maximum of all formats: FLAC silence has 65,535 samples in 12 bytes
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten, and each is a pass over all pixels
# Of a TIFF, where its image has fewer; tiles of 128 to 1,024 pixels a side are usual.
MAX_TILE_PIXELS = 1 << 22
BLOCK = 1 << 18  # samples decoded between two checks of the limits
MAX_VIDEO_BYTES = 512 << 20
MAX_VIDEO_SECONDS = 4 * 3600.0  # [ours]
MAX_FRAME_PIXELS = 4096 * 2304  # of one frame [ours]: "4K" and a little more
MAX_FRAMES = 1024  # of one video [ours]; the report trains on up to 64k tokens of them
MAX_DOCUMENT_BYTES = 64 << 20
MAX_DOCUMENT_PAGES = 1000  # [ours]; at 1,791 tokens a page, a context of 131,072 tokens holds 73
MAX_DOCUMENT_CHARACTERS = 4_000_000  # [ours] of its text; as many as a text of a request may have
MAX_VIDEO_PIXELS = 1 << 27  # of all selected frames [ours]: 64 of 1920 x 1080, 400 MB decoded

Reason = Literal["kind", "size", "content", "decoder"]


class MediaError(ValueError):
    """An image, audio, video or document that can't be used. `reason`: an unknown "kind" of file, a "size" above a
    limit, a damaged, empty or unfit "content", or a process of the "decoder" that crashed or exceeded its limits. In a
    conversation `part` is its type ("image", "audio", "video", "document") and `number` its index among these, from 0
    (set by processor.py and expansion.py). `public` is the text for clients of a server, where the message has that of
    an exception in a user's code."""

    def __init__(self, message: str, reason: Reason = "content", public: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.public = public
        self.part: str | None = None
        self.number: int | None = None


@dataclass(frozen=True)
class Caps:
    """Limits of an image, audio, video or document: encoded bytes, pixels, seconds, frames, pages, characters.
    `video_pixels` are those of all selected frames of a video."""

    image_bytes: int = MAX_IMAGE_BYTES
    image_pixels: int = MAX_IMAGE_PIXELS
    audio_bytes: int = MAX_AUDIO_BYTES
    audio_seconds: float = MAX_AUDIO_SECONDS
    video_bytes: int = MAX_VIDEO_BYTES
    video_seconds: float = MAX_VIDEO_SECONDS
    video_frames: int = MAX_FRAMES
    video_pixels: int = MAX_VIDEO_PIXELS
    frame_pixels: int = MAX_FRAME_PIXELS
    document_bytes: int = MAX_DOCUMENT_BYTES
    document_pages: int = MAX_DOCUMENT_PAGES
    document_characters: int = MAX_DOCUMENT_CHARACTERS

    @classmethod
    def for_audio(cls, seconds: float) -> "Caps":
        """The default limits, but audio may last so many seconds; above 30 minutes it may have more bytes in
        proportion. Raises ValueError as `check_audio_seconds`."""
        check_audio_seconds(seconds)
        longer = max(1.0, seconds / MAX_AUDIO_SECONDS)
        return cls(audio_seconds=seconds, audio_bytes=round(longer * MAX_AUDIO_BYTES))


def check_audio_seconds(seconds: float) -> None:
    """Raise ValueError for a limit that is below a second or above `LONGEST_AUDIO_SECONDS`."""
    if not 1 <= seconds <= LONGEST_AUDIO_SECONDS:
        raise ValueError(
            f"max_audio_seconds lies between 1 and {LONGEST_AUDIO_SECONDS:,.0f}, found {seconds:,g}: audio takes 12.5 "
            f"tokens a second, so that 2.8 hours leave 5,072 of a context of 131,072 tokens for prompt and answer; "
            "transcribe cuts longer recordings into chunks"
        )


CAPS = Caps()


class DecodedBytes(bytes):
    """BMP bytes of a frame or a page, written here: unlike the bytes of an image, they are not a stranger's."""


def bmp(width: int, height: int, rows: bytes | bytearray) -> DecodedBytes:
    """Return the BMP bytes of RGB rows: the fastest lossless format to write and read."""
    out = io.BytesIO()
    pil.frombytes("RGB", (width, height), rows).save(out, "BMP")
    return DecodedBytes(out.getvalue())


_DECODER_ERRORS = (soundfile.SoundFileError, RuntimeError, OSError)
# Of Pillow's decoders about damaged images.
_PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, RuntimeError, struct.error),
)


def decode_image(
    source: MediaSource,
    *,
    max_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_IMAGE_PIXELS,
    decoders: ForkServer | None = None,
) -> Picture:
    """Return an image as RGB: the first frame or page, without alpha, turned by its orientation (orientation.py).

    16-bit grey keeps its upper 8 bits (the published processor makes nearly all of it white). Raises `MediaError` for a
    missing file, other formats than those of `IMAGE_FORMATS`, damaged files, and above either limit.
    """
    if decoders is not None:
        data, name = read_within(source, max_bytes, "picture")
        with _decoder_errors(name, "picture"):
            return isolated.image(data, max_pixels=max_pixels, decoders=decoders)
    file, method, name = _open_image(source, max_bytes, max_pixels)
    image: Picture = file
    size = file.size
    try:
        image.load()
        if image.size != size:
            raise ValueError("the pixels have another size than the header")
        if image.mode.startswith("I"):
            image = pil.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        if image.mode != "RGB":
            image = image.convert("RGB")
        elif file.format == "WEBP" and method is None:
            image = image.copy()  # without the decoder, whose two canvases take twice as much
        return image if method is None else image.transpose(method)
    except _PILLOW_ERRORS:
        raise MediaError(
            f"{name}: the picture is damaged or truncated; expected a complete file"
        ) from None


def image_size(
    source: MediaSource,
    *,
    max_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_IMAGE_PIXELS,
    decoders: ForkServer | None = None,
) -> tuple[int, int]:
    """Return (width, height) in pixels of the result of `decode_image` from the header, without decoding; raises as
    `decode_image` does."""
    if decoders is not None:
        data, name = read_within(source, max_bytes, "picture")
        with _decoder_errors(name, "picture"):
            return isolated.image_size(data, max_pixels=max_pixels, decoders=decoders)
    image, method, _ = _open_image(source, max_bytes, max_pixels)
    return image.size[::-1] if method in SWAPS_SIDES else image.size


def decode_audio(
    source: AudioSource,
    *,
    max_bytes: int = MAX_AUDIO_BYTES,
    max_seconds: float = MAX_AUDIO_SECONDS,
    decoders: ForkServer | None = None,
) -> tuple[Float[np.ndarray, " n"], int]:
    """Return audio as mono float32 samples in [-1, 1] (the mean over its channels) and its rate in Hz.

    `source` is a path, the bytes of a WAV, FLAC, OGG (Vorbis, Opus) or MP3 file (with PyAV also M4A, MP4, WebM, AAC and
    AMR), or `(samples, rate)` with samples [n] or [n, channels], of floats or of integers (divided by their full
    scale). Raises `MediaError` for a missing file, other formats, damaged, empty or truncated ones, samples that are
    not finite or above `MAX_PEAK`, and above a limit."""
    if isinstance(source, tuple):
        return _from_array(source, max_seconds)
    stream = AudioStream(source, max_bytes=max_bytes, max_seconds=max_seconds, decoders=decoders)
    blocks: list[np.ndarray] = []
    for block in stream:
        blocks.append(block)
        if sum(map(len, blocks)) * 4 > max_bytes:
            raise MediaError(_too_long(stream.name, stream.seconds, max_seconds), "size")
    return np.concatenate(blocks), stream.rate


class AudioStream:
    """Audio in blocks, for recordings that don't fit in memory: the result of `decode_audio` in pieces. With PyAV
    (extra `video`) also the audio of M4A, MP4, WebM, AAC and AMR files. With `decoders`, separate processes decode all
    formats. With `stop`, waiting for a block of a process ends as soon as it returns True, with a `MediaError`.

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
        stop: Stop | None = None,
        decoders: ForkServer | None = None,
    ) -> None:
        self.source, self.max_seconds, self.seconds = source, max_seconds, 0.0
        self._stop, self._decoders = stop, decoders
        self.name, self.format = "the given samples", "given"
        if isinstance(source, tuple):
            _check_array(source, max_seconds)
            self.rate, self.announced = int(source[1]), len(source[0])
            return
        with open_media(source, max_bytes, "clip") as (file, self.name):
            self.format = sniff(file.read(SNIFF_BYTES))
            if self.format not in (*AUDIO_FORMATS, *CONTAINER_FORMATS):
                raise MediaError(
                    f"{self.name}: expected a WAV, FLAC, OGG or MP3 clip, found {self.format}",
                    "kind",
                )
            if self.format == "WAV":
                _check_wav(file, self.name)
            file.seek(0)
            if self._is_separate:
                self._read_header(file)
            else:
                with self._opened(file) as audio:
                    self.rate, self.announced = audio.samplerate, audio.frames
            if self.format in CONTAINER_FORMATS:
                return
            # A header with one wrong bit may announce years: that is damage, not audio that is too long.
            size = file.seek(0, io.SEEK_END)
            if SAMPLES_PER_BYTE * size < self.announced < 2**60:
                raise MediaError(
                    f"{self.name}: the {self.format} clip is truncated; its header promises {self.announced} samples, "
                    f"more than {size} bytes can hold"
                )

    def check_announced(self) -> None:
        """Raise `MediaError` if the header announces a clip that is too long, so that none of it is decoded."""
        seconds = self.announced / self.rate
        # Some headers have no length, and others only an approximate one.
        limit = self.max_seconds if self.has_exact_header else 1.05 * self.max_seconds
        if limit < seconds and self.announced < 2**60:
            raise MediaError(
                f"{self.name}: a clip may last {self.max_seconds:g} s, found {seconds:.1f} s in its header; cut it "
                "first",
                "size",
            )

    def __iter__(self) -> Iterator[Float[np.ndarray, " n"]]:
        if isinstance(self.source, tuple):
            wave = np.asarray(self.source[0])
            for start in range(0, len(wave), BLOCK):
                yield _from_array((wave[start : start + BLOCK], self.rate), self.max_seconds)[0]
            self.seconds = len(wave) / self.rate
            return
        count = 0
        with open_media(self.source, None, "clip") as (file, name):
            for block in self._decoded(file):
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

    @property
    def has_exact_header(self) -> bool:
        """Whether `announced` is the number of samples of a file that isn't truncated."""
        return self.format in ("given", "WAV", "FLAC", "OGG")

    @property
    def _is_separate(self) -> bool:
        """Whether a separate process decodes the audio."""
        return self._decoders is not None or self.format in CONTAINER_FORMATS

    def _opened(self, file: io.BufferedIOBase) -> soundfile.SoundFile:
        try:
            with self._quiet():
                audio = soundfile.SoundFile(file)  # libsndfile detects the format from the bytes
        except _DECODER_ERRORS:
            raise MediaError(self._damaged()) from None
        self._check_header(audio.samplerate, audio.channels)
        return audio

    def _check_header(self, rate: int, channels: int) -> None:
        if not (1 <= rate <= MAX_RATE and 1 <= channels <= MAX_CHANNELS):
            raise MediaError(
                f"{self.name}: a header of {rate} Hz and {quantity(channels, 'channel')} is not believable"
            )
        check_rate(rate)

    def _decoded(self, file: io.BufferedIOBase) -> Iterator[np.ndarray]:
        """Yield blocks, channels averaged."""
        values = 0
        for block in self._blocks_of_process(file) if self._is_separate else self._blocks(file):
            # A short file may have 655,350 Hz and eight channels: few bytes and seconds, but minutes of work.
            values += block.size
            if values > self.max_seconds * MAX_VALUES:
                raise MediaError(
                    f"{self.name}: a clip may have {self.max_seconds * MAX_VALUES:,.0f} values over all its "
                    "channels, found more; resample it first",
                    "size",
                )
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)

    def _blocks(self, file: io.BufferedIOBase) -> Iterator[np.ndarray]:
        """Yield blocks [n, channels] from libsndfile."""
        with self._opened(file) as audio:
            blocks = sound_blocks(audio)
            while True:
                try:
                    with self._quiet():
                        block = next(blocks, None)
                except _DECODER_ERRORS:
                    raise MediaError(self._damaged()) from None
                if block is None:
                    return
                yield block

    def _quiet(self) -> AbstractContextManager[None]:
        return mpg123.without_messages() if self.format == "MP3" else nullcontext()

    def _read_header(self, file: io.BufferedIOBase) -> None:
        """Set rate and length, which a separate process reads."""
        with self._process_errors():
            self.rate, channels, samples = isolated.audio_header(
                file,
                CONTAINER_FORMATS.get(self.format),
                max_seconds=self.max_seconds,
                stop=self._stop,
                decoders=self._decoders,
            )
        self.announced = 2**62 if samples is None else samples
        self._check_header(self.rate, channels)

    def _blocks_of_process(self, file: io.BufferedIOBase) -> Iterator[np.ndarray]:
        with self._process_errors():
            yield from isolated.audio_blocks(
                file,
                CONTAINER_FORMATS.get(self.format),
                max_seconds=self.max_seconds,
                stop=self._stop,
                decoders=self._decoders,
            )

    @contextmanager
    def _process_errors(self) -> Iterator[None]:
        is_container = self.format in CONTAINER_FORMATS
        with _decoder_errors(self.name, self.format if is_container else f"{self.format} clip"):
            yield

    def _damaged(self) -> str:
        return (
            f"{self.name}: the {self.format} clip is damaged or truncated; expected a complete file"
        )


def sound_blocks(sound: soundfile.SoundFile) -> Iterator[Float[np.ndarray, "n channels"]]:
    """Yield the samples of a file. Raises one of `_DECODER_ERRORS` for a damaged one."""
    size = max(1, BLOCK // sound.channels)
    while len(block := sound.read(size, dtype="float32", always_2d=True)):
        yield block


@contextmanager
def _decoder_errors(name: str, file_type: str) -> Iterator[None]:
    try:
        yield
    except DecoderError as error:
        raise decoder_media_error(error, name, file_type) from None


def decoder_media_error(error: DecoderError, name: str, file_type: str) -> MediaError:
    """The `MediaError` for an error of the decoder's process."""
    if error.error == "media":
        reasons: dict[str, Reason] = {"kind": "kind", "size": "size"}
        return MediaError(f"{name}: {error.message}", reasons.get(error.reason, "content"))
    if error.error == "missing":
        return MediaError(
            f"{name}: {file_type} needs PyAV; {from_checkout('video')}, or convert it to WAV, FLAC, OGG or MP3",
            "kind",
        )
    if error.error in ("crashed", "time", "memory", "stopped"):
        cause = {
            "crashed": "its decoder failed; expected a file by an ordinary program",
            "time": "it takes too long; expected a file by an ordinary program",
            "memory": "it takes too much memory; expected a file by an ordinary program",
            "stopped": "the request has ended",
        }[error.error]
        return MediaError(f"{name}: the {file_type} can't be decoded: {cause}", "decoder")
    message = {
        "no_audio": f"expected sound, found a {file_type} without",
        "no_video": "expected a video with pictures, found only sound",
        "codec": "it has an encoding that isn't known here; convert it to AAC or Opus (sound) or H.264 first",
        "empty": f"the {file_type} is damaged or empty; expected frames, found 0",
    }.get(error.error, f"the {file_type} is damaged or truncated; expected a complete file")
    return MediaError(f"{name}: {message}")


def audio_size(
    source: AudioSource,
    *,
    max_bytes: int = MAX_AUDIO_BYTES,
    max_seconds: float = MAX_AUDIO_SECONDS,
    decoders: ForkServer | None = None,
) -> tuple[int, int]:
    """Return (samples, rate in Hz) of the result of `decode_audio`, from the header if it is reliable. MP3 is decoded:
    the length in its header is an estimate, and the file may be truncated. Damage inside the audio isn't detected."""
    stream = AudioStream(source, max_bytes=max_bytes, max_seconds=max_seconds, decoders=decoders)
    stream.check_announced()
    if stream.has_exact_header and 0 < stream.announced <= max_seconds * stream.rate:
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
    with open_media(source, limit, media_type) as (file, name):
        data = file.read(limit + 1)
    if len(data) > limit:
        raise MediaError(_too_many_bytes(name, media_type, limit), "size")
    return data, name


@contextmanager
def open_media(
    source: MediaSource, limit: int | None, media_type: str
) -> Iterator[tuple[io.BufferedIOBase, str]]:
    """Yield (open file, name for messages) of a path or bytes. Raises MediaError above `limit` bytes and for a missing
    file."""
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
) -> tuple[ImageFile.ImageFile, pil.Transpose | None, str]:
    """Return an image with its header read and its size checked, not decoded yet, how to turn it, and its name for
    messages."""
    data, name = read_within(source, max_bytes, "picture")
    file_type = sniff(data)
    if file_type not in IMAGE_FORMATS:
        raise MediaError(f"{name}: expected a {IMAGES_EXPECTED} picture, found {file_type}", "kind")
    if (reason := missing_image_decoder(file_type)) is not None:
        raise MediaError(f"{name}: {reason}, or convert it to PNG or JPEG", "kind")
    if file_type == "TIFF":
        _silence_tiff()
    if file_type == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise MediaError(f"{name}: a JPEG picture may have {MAX_SCANS} scans, found more", "size")
    try:
        image = pil.open(io.BytesIO(data), formats=[IMAGE_FORMATS[file_type]])
    except pil.DecompressionBombError:
        raise MediaError(
            f"{name}: a picture may have {max_pixels:,} pixels, found more than twice that", "size"
        ) from None
    except _PILLOW_ERRORS:
        raise MediaError(
            f"{name}: the {file_type} picture is damaged or truncated; expected a complete file"
        ) from None
    if image.width * image.height > max_pixels:
        pixels = image.width * image.height
        raise MediaError(
            f"{name}: a picture may have {max_pixels:,} pixels, found {pixels:,}; shrink it first",
            "size",
        )
    if file_type == "TIFF":
        _check_tiff(image, name, max_pixels)
    return image, turn(image, data), name


@cache
def missing_image_decoder(file_type: str) -> str | None:
    """The reason why images of a type aren't decoded on this machine; otherwise Pillow has its decoder from now on."""
    if file_type == "AVIF" and not features.check("avif"):
        return "an AVIF picture needs a Pillow that was built with libavif, as its wheels are; install one"
    if file_type == "HEIC":
        try:
            import pi_heif
        except ImportError:
            return f"a HEIC picture needs pi-heif; {from_checkout('heic')}"
        pi_heif.register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
        )
    return None


def image_types() -> list[str]:
    """The MIME types of the images that are decoded on this machine."""
    return [f"image/{name.lower()}" for name in IMAGE_FORMATS if not missing_image_decoder(name)]


@cache
def _silence_tiff() -> None:
    """Leave out what Pillow's decoder of TIFF prints about a file: its errors are exceptions, too."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # about tags that aren't used
    with suppress(OSError, AttributeError):  # another build of Pillow
        ctypes.CDLL(pil.core.__file__).TIFFSetErrorHandler(None)


def _check_tiff(image: ImageFile.ImageFile, name: str, max_pixels: int) -> None:
    """Raise `MediaError` for tiles that are far larger than the image, which a decoder allocates, and for pixels whose
    range isn't known: floats, integers of 12 or 32 bits, LAB."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    width, height = (tags.get(tag, 0) for tag in (322, 323))  # of a tile
    if not (isinstance(width, int) and isinstance(height, int)):
        raise MediaError(
            f"{name}: the TIFF picture is damaged or truncated; expected a complete file"
        )
    if width * height > max(max_pixels, MAX_TILE_PIXELS):
        raise MediaError(
            f"{name}: the tiles of a TIFF picture may have {max(max_pixels, MAX_TILE_PIXELS):,} pixels, found "
            f"{width * height:,}",
            "size",
        )
    if image.mode in ("I", "F", "LAB") or 12 in tags.get(258, ()):  # bits of a sample
        raise MediaError(
            f"{name}: expected a TIFF picture of 1, 8 or 16 bits in grey, RGB or CMYK, found another kind of pixels; "
            "convert it to PNG or JPEG first"
        )


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
    """Return `wave` unchanged. Raises `MediaError` for NaN, infinity and peaks above `MAX_PEAK`."""
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
