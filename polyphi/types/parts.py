"""The parts of a message: texts, images, audio clips, videos, documents and items of further modalities.

>>> Image("cat.png", detail="low").most_crops
1
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from polyphi.runtime.arguments import checked_fields
from polyphi.types.media_sources import (
    AnyAudio,
    AudioSource,
    ImageSource,
    MediaSource,
    audio_source,
    png,
)


@checked_fields
@dataclass(frozen=True)
class Text:
    """Plain text. The names of control tokens in it are encoded as ordinary characters."""

    text: str


@dataclass(frozen=True)
class Calls(Text):
    """Tool calls of an earlier answer, in the format of `call_text`: its two marks are encoded as control tokens, as in
    the model's output, and no other control tokens can occur inside."""


Detail = Literal["auto", "low", "high"]


@checked_fields
@dataclass(frozen=True, init=False, repr=False)
class Image:
    """An image: a path, the encoded bytes of a file (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC), a PIL image, or an
    array or tensor of pixels (media_sources.py has the shapes). A PIL image or an array becomes the bytes of its PNG
    file here, which lose nothing and don't change with it.

    `detail` is OpenAI's: "low" uses one crop and the global view, which need few tokens; "high" and "auto" use
    as many crops as the image needs, up to the model's maximum. `max_crops` sets another maximum; above the model's it
    has no effect. Shards of training data store neither.
    """

    source: MediaSource
    detail: Detail = "auto"
    max_crops: int | None = None
    modality: ClassVar[str] = "image"

    def __init__(
        self, source: ImageSource, detail: Detail = "auto", max_crops: int | None = None
    ) -> None:
        _check_detail(detail, max_crops)
        if not isinstance(source, str | Path | bytes):
            source = bytes(source) if isinstance(source, bytearray | memoryview) else png(source)
        for name, value in (("source", source), ("detail", detail), ("max_crops", max_crops)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        data = self.source
        source = f"<{len(data):,} bytes>" if isinstance(data, bytes) else repr(data)
        return f"Image({source}, detail={self.detail!r}, max_crops={self.max_crops})"

    @property
    def most_crops(self) -> int | None:
        """The requested maximum number of crops; None for the model's."""
        return self.max_crops or (1 if self.detail == "low" else None)


@checked_fields
@dataclass(frozen=True, init=False)
class Audio:
    """An audio clip: a path, the encoded bytes of a WAV, FLAC, OGG or MP3 file (with PyAV also M4A, MP4, WebM, AAC
    and AMR), or samples with their rate in Hz: `Audio(samples, 16000)`, `Audio((samples, 16000))` or the dict of
    `datasets` with "array" and "sampling_rate". Samples are floats in [-1, 1] or signed integers, [n] or [n channels],
    in an array, a tensor or a list."""

    source: AudioSource
    modality: ClassVar[str] = "audio"

    def __init__(self, source: AnyAudio, sample_rate: float | None = None) -> None:
        object.__setattr__(self, "source", audio_source(source, sample_rate))


@checked_fields
@dataclass(frozen=True)
class Video:
    """A video without its sound: a path, or the bytes of an MP4, WebM, Matroska or AVI file. It is represented by
    `frames` evenly spaced images (16 as in the report's 4.1.1), each with this `detail` and `max_crops`."""

    source: MediaSource
    frames: int = 16
    detail: Detail = "auto"
    max_crops: int | None = None
    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        _check_detail(self.detail, self.max_crops)
        if not _is_positive_int(self.frames):
            raise ValueError(
                f"frames: expected at least one frame of a video, found {self.frames!r}"
            )


@checked_fields
@dataclass(frozen=True)
class Document:
    """A PDF or a text file in UTF-8, by its content: a path, or bytes. The model sees the pages of a PDF as images with
    their text, and a text file as text, both after its `name` (default: that of the path). `detail` is that of the
    pages' images. `media_type` is the MIME type that its sender declares: a file whose name or type says that it is an
    image, audio, a video or an archive is refused."""

    source: MediaSource
    name: str = ""
    detail: Detail = "auto"
    media_type: str = ""
    modality: ClassVar[str] = "document"

    def __post_init__(self) -> None:
        _check_detail(self.detail, None)
        if not self.name:
            path = None if isinstance(self.source, bytes) else Path(self.source)
            object.__setattr__(self, "name", path.name if path else "document")


def file_text(name: str, text: str) -> Text:
    """The text that shows a text file to the model [ours]."""
    return Text(f"File {name}:\n{text}\n")


@checked_fields
@dataclass(frozen=True)
class Item:
    """An input of a further modality (docs/modality.md), by its name: a path or bytes, which its reader reads."""

    modality: str
    source: MediaSource


Media = Image | Audio | Item
PUBLISHED: dict[str, type[Image] | type[Audio]] = {"image": Image, "audio": Audio}
"""The parts of the report's modalities."""


def media_part(modality: str, source: MediaSource) -> Media:
    """The part of a message for a file of a modality."""
    part = PUBLISHED.get(modality)
    return part(source) if part is not None else Item(modality, source)


Part = Text | Image | Audio | Video | Document | Item


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_detail(detail: Any, max_crops: Any) -> None:
    if detail not in get_args(Detail):
        raise ValueError(f"detail: expected auto, low or high, found {detail!r}")
    if max_crops is not None and not _is_positive_int(max_crops):
        raise ValueError(f"max_crops: expected an integer of at least 1, found {max_crops!r}")
