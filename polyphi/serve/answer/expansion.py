"""The videos and documents of a conversation: the images and texts that show them, and errors about these as errors
about the video or document."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from polyphi.engine.engine import Engine
from polyphi.media.media import MAX_FRAME_PIXELS, Caps, MediaError
from polyphi.processing.reader import number_in_errors
from polyphi.runtime.steps import Steps
from polyphi.serve.admission.settings import Settings
from polyphi.types.messages import Message
from polyphi.types.parts import Document, Image, Part, Text, Video


def caps(settings: Settings) -> Caps:
    """The limits of decoding media by the server's settings. The bytes of an image are limited when it is loaded
    (fetch.py), and a frame of a video is larger: it isn't compressed."""
    frame_pixels = min(MAX_FRAME_PIXELS, settings.max_image_pixels)
    return Caps(
        image_bytes=max(settings.max_image_bytes, 4 * frame_pixels),
        image_pixels=settings.max_image_pixels,
        audio_bytes=settings.max_audio_bytes,
        audio_seconds=settings.max_audio_seconds,
        video_bytes=settings.max_video_bytes,
        video_seconds=settings.max_video_seconds,
        video_frames=settings.max_video_frames,
        video_pixels=settings.max_video_pixels,
        frame_pixels=frame_pixels,
        document_bytes=settings.max_document_bytes,
        document_pages=settings.max_document_pages,
        document_characters=settings.max_document_characters,
    )


@dataclass(frozen=True)
class Expanded:
    """A conversation whose videos and documents are replaced by their frames, pages and texts. `origins`: of each image
    the type ("image", "video" or "document") and the number that it, or what it belongs to, has among the request's."""

    messages: Sequence[Message]
    origins: Sequence[tuple[str, int]]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """A `MediaError` raised inside about a frame or a page becomes one about its video or document."""
        try:
            yield
        except MediaError as error:
            if error.part == "image" and error.number is not None:
                error.part, error.number = self.origins[error.number]
            raise


def expand(
    engine: Engine,
    settings: Settings,
    messages: Sequence[Message],
    reserve: Callable[[int], None],
    stop: Callable[[], bool],
) -> Steps[Expanded]:
    """Return the conversation with the frames of its videos and the pages of its documents, with a step for each of
    these, and further ones of a document that takes long. `reserve` is called with the bytes of each frame and page.
    Raises `MediaError` for a damaged video or document, above a limit, and soon after `stop` returns True."""
    origins: list[tuple[str, int]] = []
    numbers: Counter[str] = Counter()
    limits, count = engine.processor.caps, 0
    expanded: list[Message] = []
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, Text):
                parts.append(part)
                continue
            name = type(part).__name__.lower()
            origin = name, numbers[name]
            numbers[name] += 1
            if not isinstance(part, Video | Document):
                origins += [origin] if isinstance(part, Image) else []
                count += 1
                parts.append(part)
                continue
            yield
            size = 0
            with number_in_errors(*origin):
                for pieces in engine.processor.expanded(part, limits, stop):
                    if not pieces:
                        yield
                        continue
                    count += 1
                    _check_count(count, settings)
                    more = sum(map(_bytes, pieces))
                    reserve(more)
                    size += more
                    origins += [origin for piece in pieces if isinstance(piece, Image)]
                    parts += pieces
            if isinstance(part, Video):  # BMP has 3 bytes a pixel
                limits = replace(limits, video_pixels=max(1, limits.video_pixels - size // 3))
        expanded.append(replace(message, parts=tuple(parts)))
    return Expanded(expanded, origins)


def _bytes(part: Text | Image) -> int:
    content = part.text if isinstance(part, Text) else part.source
    return len(content) if isinstance(content, str | bytes) else 0


def _check_count(count: int, settings: Settings) -> None:
    if count > settings.max_parts:
        raise MediaError(
            f"a request may have {settings.max_parts} images, audio clips, frames of videos and pages of documents, "
            "found more; send fewer",
            "size",
        )
