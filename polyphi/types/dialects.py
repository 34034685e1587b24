"""The parts of messages in others' formats: OpenAI's, vLLM's and transformers' dicts.

>>> as_part({"type": "image_url", "image_url": {"url": "cat.png"}})
Image(PosixPath('cat.png'), detail='auto', max_crops=None)
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.runtime.arguments import describe
from polyphi.types.media_sources import MediaSource, PilImage, declared_type, is_array, is_pil
from polyphi.types.parts import (
    PUBLISHED,
    Audio,
    Document,
    Image,
    Item,
    Part,
    Text,
    Video,
)


class Attachments:
    """The images and audio beside a conversation: the parts {"type": "image"} and {"type": "audio"} without content
    take the next one. `read` makes a source of a part's content; by default text is a path, a data: URL or base64."""

    def __init__(
        self,
        images: Iterable[Any] = (),
        audios: Iterable[Any] = (),
        read: Callable[[str, Any], Any] | None = None,
    ) -> None:
        self._remaining: dict[str, Iterator[Any]] = {"image": iter(images), "audio": iter(audios)}
        self.read = read

    def next(self, modality: str) -> "Image | Audio":
        """The next image or audio. Raises ValueError if none is left."""
        if (value := next(self._remaining.get(modality, iter(())), None)) is None:
            raise ValueError(
                f'a part {{"type": "{modality}"}} without {modality}, no {modality}s left'
            )
        return as_media(modality, value)

    def check_empty(self) -> None:
        """Raises ValueError for an image or audio that no part took."""
        for modality, remaining in self._remaining.items():
            if next(remaining, None) is not None:
                raise ValueError(f'more {modality}s than parts {{"type": "{modality}"}} for them')


def as_media(modality: str, value: Any) -> Image | Audio:
    """An image or audio from its source, or as it is."""
    part_class = PUBLISHED[modality]
    return value if isinstance(value, Image | Audio) else part_class(value)


PartLike = Part | str | PilImage | Mapping[str, Any]
Parts = str | Part | Sequence[PartLike] | Any
"""The parts of a message; `_as_part` checks them."""


def as_part(value: Any, root: Path | None = None, attachments: Attachments | None = None) -> Part:
    """The part of a message from all that may stand for one."""
    if isinstance(value, Part):
        return value
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, Mapping):
        return _parse_part(value, root, attachments or Attachments())
    if is_pil(value):
        return Image(value)
    wrapped = "; write Image(...) or Audio(...) around it" if is_array(value) else ""
    raise ValueError(
        "parts: expected a text, Text, Image, Audio, Video, Document or Item, a PIL image or a dict with a type, found "
        f"{describe(value)}{wrapped}"
    )


CONTENT_KEYS = ("url", "path", "base64")
"""Keys of a part's content in transformers' chat templates, after the name of the part's type."""


def _parse_part(part: Mapping[str, Any], root: Path | None, attachments: Attachments) -> Part:
    part_type = part.get("type")
    if part_type == "text":
        return Text(part.get("text"))  # type: ignore[arg-type]
    if part_type in ("image_url", "video_url", "audio_url"):
        url = part.get(part_type)
        url = url if isinstance(url, Mapping) else {"url": url}
        source: Any = _parse_source(url.get("url"), root)
        options: dict[str, Any] = {
            "detail": url.get("detail") or "auto",
            "max_crops": url.get("max_crops"),
        }
        if part_type == "audio_url":
            return Audio(source)
        if part_type == "image_url":
            return Image(source, **options)
        return Video(source, url.get("frames", Video.frames), **options)
    if part_type == "file":
        file = part.get("file")
        if not (isinstance(file, Mapping) and isinstance(file.get("file_data"), str)):
            raise ValueError(f"file: expected an object with file_data, found {describe(file)}")
        text = file["file_data"]
        data = _decoded("file_data", text.rpartition(",")[2])
        return Document(data, file.get("filename") or "", media_type=declared_type(text))
    if part_type == "input_audio":
        return Audio(_parse_data(part_type, part.get(part_type), root))
    if part_type in ("image", "audio", "video"):
        keys = (part_type, *CONTENT_KEYS)
        key = next((key for key in keys if part.get(key) is not None), None)
        if key is None:
            return attachments.next(part_type)
        content = part[key]
        if key == "base64":
            source = _decoded(part_type, content)
        elif attachments.read is not None:
            source = attachments.read(part_type, content)
        else:
            source = _parse_source(content, root) if isinstance(content, str) else content
        return Video(source) if part_type == "video" else as_media(part_type, source)
    value = part.get(part_type) if isinstance(part_type, str) else None
    if (
        isinstance(part_type, str)
        and isinstance(value, Mapping)
        and ("data" in value or "path" in value)
    ):
        return Item(part_type, _parse_data(part_type, value, root))
    raise ValueError(
        f"unknown part type {part_type!r}; expected text, image, audio, video, image_url, input_audio, audio_url, "
        "video_url, or the name of a further modality with an object of its data or path"
    )


def _parse_data(name: str, value: Any, root: Path | None) -> MediaSource:
    if not isinstance(value, Mapping) or not ("data" in value or "path" in value):
        raise ValueError(f"{name}: expected an object with data or path, found {describe(value)}")
    return _decoded(name, value["data"]) if "data" in value else _parse_source(value["path"], root)


def _decoded(name: str, data: Any) -> bytes:
    try:
        return base64.b64decode(data)
    except (ValueError, TypeError):
        raise ValueError(f"{name}: expected base64, found {data!r:.40}") from None


def _parse_source(url: Any, root: Path | None) -> MediaSource:
    if isinstance(url, Path):
        url = str(url)
    if not isinstance(url, str):
        raise ValueError(f"url: expected a path or a data: URL, found {describe(url)}")
    if url.startswith("data:"):
        return _decoded("url", url.partition(",")[2])
    if "://" in url and not url.startswith("file://"):
        raise ValueError(
            f"remote media are not fetched here, found {url[:80]!r}; use a path or a data: URL"
        )
    path = Path(url.removeprefix("file://"))
    return path if root is None or path.is_absolute() else root / path
