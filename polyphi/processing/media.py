"""One way in for media: training, the command line and the server all decode pictures and clips here
(videos: video.py).

>>> picture = decode_image("cat.png")                 # PIL, RGB
>>> wave, rate = decode_audio("hello.flac")           # float32 mono [n] in [-1, 1], Hz

What a file is, its first bytes say; its name is never looked at. Bytes, pixels and seconds are capped before or while
decoding, so that a small file can't fill the memory. Every refusal is a `MediaError` of one line that says what was
expected and what was found, and never what a decoder printed (that may hold addresses).
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
MAX_IMAGE_PIXELS = (
    89_478_485  # Pillow's own warning line, about 9,459 x 9,459: 256 MiB once decoded to RGB
)
MAX_AUDIO_BYTES = 256 << 20  # encoded, and again decoded
MAX_AUDIO_SECONDS = 1800.0  # 30 minutes are 22,500 tokens (report 2.2.1 tests up to that length)
MIN_RATE = 8_000  # Hz; the encoder reads no less (audio.py)
MAX_RATE = 768_000  # Hz; above it a header is forged rather than recorded
MAX_CHANNELS = 16
MAX_VALUES = 192_000  # a second of what a clip may last, all channels counted: stereo at 96 kHz
MAX_PEAK = 100.0  # of full scale, 40 dB above it: float recordings may clip, integers stored as floats are an error
SAMPLES_PER_BYTE = (
    6_000  # of no format more: a FLAC frame of silence has 65,535 samples in 12 bytes
)
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten, and each is a walk over all pixels
BLOCK = 1 << 18  # samples decoded between two looks at the caps
SNIFFED = 512  # bytes that tell what a file is

AudioSource = MediaSource | tuple[np.ndarray, int]


class MediaError(ValueError):
    """A picture or a clip that is refused. `reason`: it is of an unknown "kind", above a cap of "size", or its
    "content" is damaged, empty or unfit. Of a conversation `part` says what it is ("image", "audio") and `number`
    which of these, from 0 (set by processor.py)."""

    def __init__(
        self, message: str, reason: Literal["kind", "size", "content"] = "content"
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.part: str | None = None
        self.number: int | None = None


@dataclass(frozen=True)
class Caps:
    """What a picture or a clip may be at most: bytes as encoded, pixels, seconds."""

    image_bytes: int = MAX_IMAGE_BYTES
    image_pixels: int = MAX_IMAGE_PIXELS
    audio_bytes: int = MAX_AUDIO_BYTES
    audio_seconds: float = MAX_AUDIO_SECONDS


_DECODER_ERRORS = (soundfile.SoundFileError, RuntimeError, OSError)

# what we say -> what Pillow says
PICTURES = {"PNG": "PNG", "JPEG": "JPEG", "WebP": "WEBP", "GIF": "GIF", "BMP": "BMP"}
CLIPS = ("WAV", "FLAC", "OGG", "MP3")
# what we say -> what FFmpeg says: containers whose sound PyAV reads, where it is installed
SOUNDTRACKS = {"M4A audio": "mov", "MP4": "mov", "WebM or Matroska": "matroska"}


def sniff(data: bytes) -> str:
    """What the first bytes say a file is: "PNG", "WAV", ..., "text", "nothing (0 bytes)" or "unknown data"."""
    if not data:
        return "nothing (0 bytes)"
    if data[:4] == b"RIFF" or data[:4] == b"RF64":
        return {b"WAVE": "WAV", b"WEBP": "WebP", b"AVI ": "AVI video"}.get(
            data[8:12], "unknown RIFF data"
        )
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
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
    head = data[:SNIFFED]
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that our own cut split
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
    """A picture as RGB: the first frame, alpha dropped, EXIF orientation left alone, as the published processor does.

    16-bit grey keeps its upper 8 bits (the published processor turns nearly all of it white). Raises `MediaError` for
    a missing file, for bytes that are no PNG, JPEG, WebP, GIF or BMP, for damaged ones, and above either cap.
    """
    file, name = _open_image(source, max_bytes, max_pixels)
    picture: Picture = file
    try:
        picture.load()
        if picture.mode.startswith("I"):
            picture = pil.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
        # Converting RGB to RGB would be a second copy.
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError):
        raise MediaError(
            f"{name}: the picture is damaged or truncated; expected a complete file"
        ) from None


def image_size(
    source: MediaSource, *, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[int, int]:
    """(width, height) in pixels as the header says, without decoding; raises as `decode_image` does."""
    return _open_image(source, max_bytes, max_pixels)[0].size


def decode_audio(
    source: AudioSource,
    *,
    max_bytes: int = MAX_AUDIO_BYTES,
    max_seconds: float = MAX_AUDIO_SECONDS,
) -> tuple[Float[np.ndarray, " n"], int]:
    """A clip as mono float32 samples in [-1, 1] (the mean over its channels) and its rate in Hz.

    `source` is a path, the bytes of a WAV, FLAC, OGG (Vorbis, Opus) or MP3 file (where PyAV is installed also M4A, MP4
    and WebM), or `(samples, rate)` with samples [n] or [n, channels], of floats or of integers (divided by
    their full scale). Raises `MediaError` for a missing file, other formats, damaged, empty or truncated ones, samples
    that are not finite or beyond `MAX_PEAK`, and above a cap.
    """
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
    """A clip block by block, for recordings that shouldn't stand in memory: what `decode_audio` gives, in pieces. Where
    PyAV is installed (extra `video`), the sound of M4A, MP4 and WebM files too.

    >>> stream = AudioStream("lecture.flac", max_seconds=4 * 3600)
    >>> for block in stream: ...                     # float32 mono [n] in [-1, 1], n at most 2^18

    `rate` is known at once, `announced` is the header's number of samples (compressed formats say it only nearly, some
    not at all), and `seconds` counts what has been read. A path is read from the disk as it goes, without a cap on its
    bytes unless `max_bytes` names one. Raises `MediaError` as `decode_audio` does: for what the header tells when it
    is opened, for the rest while it is read; `max_seconds` also bounds the work (`MAX_VALUES`). Each iteration starts
    anew.
    """

    def __init__(
        self,
        source: AudioSource,
        *,
        max_bytes: int | None = None,
        max_seconds: float = MAX_AUDIO_SECONDS,
    ) -> None:
        self.source, self.max_seconds, self.seconds = source, max_seconds, 0.0
        self.name, self.kind = "the given samples", "given"
        if isinstance(source, tuple):
            _check_array(source, max_seconds)
            self.rate, self.announced = int(source[1]), len(source[0])
            return
        with _opened(source, max_bytes, "clip") as (file, self.name):
            self.kind = sniff(file.read(SNIFFED))
            if self.kind not in (*CLIPS, *SOUNDTRACKS):
                raise MediaError(
                    f"{self.name}: expected a WAV, FLAC, OGG or MP3 clip, found {self.kind}", "kind"
                )
            if self.kind == "WAV":
                _check_wav(file, self.name)
            file.seek(0)
            if self.kind in SOUNDTRACKS:
                self._look_into(file)
                return
            with self._decoder(file) as clip:
                self.rate, self.announced = clip.samplerate, clip.frames
            # A header with one wrong bit may promise years, which isn't audio that is too long.
            size = file.seek(0, io.SEEK_END)
            if SAMPLES_PER_BYTE * size < self.announced < 2**60:
                raise MediaError(
                    f"{self.name}: the {self.kind} clip is truncated; its header promises {self.announced} samples, "
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
        with _opened(self.source, None, "clip") as (file, name):
            for block in self._soundtrack(file) if self.kind in SOUNDTRACKS else self._clip(file):
                count += len(block)
                self.seconds = count / self.rate
                if count > self.max_seconds * self.rate:
                    raise MediaError(_too_long(name, self.seconds, self.max_seconds), "size")
                yield _checked(block, name)
        if count == 0:
            raise MediaError(f"{name}: the {self.kind} clip is empty; expected samples, found 0")
        # Compressed formats announce their length only nearly.
        if count < 0.95 * self.announced < 2**60:
            raise MediaError(
                f"{name}: the {self.kind} clip is truncated; expected {self.announced} samples, found {count}"
            )

    def _decoder(self, file: io.BufferedIOBase) -> soundfile.SoundFile:
        try:  # libsndfile looks at the bytes; the name of the file plays no part
            clip = soundfile.SoundFile(file)
        except _DECODER_ERRORS:
            raise MediaError(self._damaged()) from None
        self._check_header(clip.samplerate, clip.channels)
        return clip

    def _check_header(self, rate: int, channels: int) -> None:
        if not (1 <= rate <= MAX_RATE and 1 <= channels <= MAX_CHANNELS):
            raise MediaError(
                f"{self.name}: a header of {rate} Hz and {channels} channels is not believable"
            )
        check_rate(rate)

    def _clip(self, file: io.BufferedIOBase) -> Iterator[np.ndarray]:
        """What libsndfile reads, channels averaged."""
        with self._decoder(file) as clip:
            size, values = max(1, BLOCK // clip.channels), 0
            while True:
                try:
                    block = clip.read(size, dtype="float32", always_2d=True)
                except _DECODER_ERRORS:
                    raise MediaError(self._damaged()) from None
                if not len(block):
                    return
                # An hour may claim 655,350 Hz and eight channels: few bytes, few seconds, and minutes of work.
                values += block.size
                if values > self.max_seconds * MAX_VALUES:
                    raise MediaError(
                        f"{self.name}: a clip may have {self.max_seconds * MAX_VALUES:,.0f} values over all its "
                        "channels, found more; resample it first",
                        "size",
                    )
                yield block[:, 0] if clip.channels == 1 else block.mean(axis=1, dtype=np.float32)

    def _look_into(self, file: io.BufferedIOBase) -> None:
        """Rate and length of a container's first sound."""
        try:
            import av
        except ImportError:
            raise MediaError(
                f"{self.name}: {self.kind} needs PyAV; `pip install av`, or convert it to WAV, FLAC, OGG or MP3",
                "kind",
            ) from None
        try:
            with av.open(file, "r", format=SOUNDTRACKS[self.kind]) as container:
                if not container.streams.audio:
                    raise MediaError(f"{self.name}: expected a sound, found a {self.kind} without")
                track = container.streams.audio[0]
                self.rate = track.codec_context.sample_rate
                channels = track.codec_context.channels
                known = container.duration  # microseconds
        except (*_DECODER_ERRORS, av.error.FFmpegError):
            raise MediaError(self._damaged()) from None
        self.announced = round(known / 1e6 * self.rate) if known else 2**62
        self._check_header(self.rate, channels)

    def _soundtrack(self, file: io.BufferedIOBase) -> Iterator[np.ndarray]:
        """What PyAV reads of a container's first sound, channels averaged. Told its format, FFmpeg tries no other."""
        import av

        try:
            with av.open(file, "r", format=SOUNDTRACKS[self.kind]) as container:
                track = container.streams.audio[0]
                floats = av.AudioResampler("fltp", track.codec_context.layout, self.rate)
                for frame in container.decode(track):
                    for part in floats.resample(frame):
                        yield part.to_ndarray().mean(axis=0, dtype=np.float32)
        except (*_DECODER_ERRORS, av.error.FFmpegError):
            raise MediaError(self._damaged()) from None

    def _damaged(self) -> str:
        return (
            f"{self.name}: the {self.kind} clip is damaged or truncated; expected a complete file"
        )


def audio_size(
    source: AudioSource,
    *,
    max_bytes: int = MAX_AUDIO_BYTES,
    max_seconds: float = MAX_AUDIO_SECONDS,
) -> tuple[int, int]:
    """(samples, rate in Hz) that `decode_audio` gives, from the header where that can be trusted. MP3 is decoded: what
    it says of its length is a guess, and it may have been cut since. Damage inside a clip may go unseen."""
    stream = AudioStream(source, max_bytes=max_bytes, max_seconds=max_seconds)
    known = stream.kind in ("given", "WAV", "FLAC", "OGG")
    if known and 0 < stream.announced <= max_seconds * stream.rate:
        return stream.announced, stream.rate
    return sum(map(len, stream)), stream.rate  # or it says what is wrong


def check_rate(rate: int) -> None:
    """Raises `MediaError` for a rate below `MIN_RATE`, in the same words for a file, a stream and samples in memory."""
    if rate < MIN_RATE:
        raise MediaError(
            f"clips need at least {MIN_RATE} Hz, found {rate} Hz; record or resample at {2 * MIN_RATE} Hz"
        )


def read_within(source: MediaSource, limit: int, what: str) -> tuple[bytes, str]:
    """(bytes, name for messages) of a file; reads no more than the limit and one byte. Raises MediaError beyond it, and
    for a file that isn't there."""
    with _opened(source, limit, what) as (file, name):
        data = file.read(limit + 1)
    if len(data) > limit:
        raise MediaError(_too_many_bytes(name, what, limit), "size")
    return data, name


@contextmanager
def _opened(
    source: MediaSource, limit: int | None, what: str
) -> Iterator[tuple[io.BufferedIOBase, str]]:
    """A path or bytes as (open file, name for messages)."""
    if isinstance(source, bytes | bytearray | memoryview):
        file: io.BufferedIOBase = io.BytesIO(source)
        name, size = f"the given bytes of a {what}", len(source)
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
        raise MediaError(f"expected a {what} as a path or as bytes, found {type(source).__name__}")
    with file:
        if limit is not None and size > limit:
            raise MediaError(_too_many_bytes(name, what, limit), "size")
        yield file, name


def _too_many_bytes(name: str, what: str, limit: int) -> str:
    return f"{name}: a {what} may have {limit:,} bytes, found more"


def _open_image(
    source: MediaSource, max_bytes: int, max_pixels: int
) -> tuple[ImageFile.ImageFile, str]:
    """A picture whose header is read and whose size is within the cap, not decoded yet."""
    data, name = read_within(source, max_bytes, "picture")
    kind = sniff(data)
    if kind not in PICTURES:
        raise MediaError(
            f"{name}: expected a PNG, JPEG, WebP, GIF or BMP picture, found {kind}", "kind"
        )
    if kind == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise MediaError(f"{name}: a JPEG picture may have {MAX_SCANS} scans, found more", "size")
    try:
        picture = pil.open(io.BytesIO(data), formats=[PICTURES[kind]])
    except pil.DecompressionBombError:
        raise MediaError(
            f"{name}: a picture may have {max_pixels:,} pixels, found more than twice that", "size"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError):
        raise MediaError(
            f"{name}: the {kind} picture is damaged or truncated; expected a complete file"
        ) from None
    if picture.width * picture.height > max_pixels:
        found = picture.width * picture.height
        raise MediaError(
            f"{name}: a picture may have {max_pixels:,} pixels, found {found:,}; shrink it first",
            "size",
        )
    return picture, name


def _check_wav(file: io.BufferedIOBase, name: str) -> None:
    """libsndfile reads a cut WAV file to its end without a word, so its `data` chunk is held to what is there.

    Sizes 0 and 0xFFFFFFFF mean "unknown", as written by programs that stream.
    """
    at, end = 12, file.seek(0, io.SEEK_END)
    while at + 8 <= end:
        file.seek(at)
        chunk, size = file.read(4), int.from_bytes(file.read(4), "little")
        at += 8
        if chunk == b"data":
            found = end - at
            if found == 0:
                raise MediaError(f"{name}: the WAV clip is empty; expected samples, found 0")
            if size not in (0, 0xFFFFFFFF) and found < size:
                raise MediaError(
                    f"{name}: the WAV clip is truncated; its header promises {size} bytes, found {found}"
                )
            return
        at += size + size % 2
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
    """The samples, if they are in range. Raises `MediaError` for NaN, infinity and what is far beyond full scale."""
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
