"""The videos of a conversation: their frames as images, and errors about these as errors about the video."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from polyphi.engine.engine import Engine
from polyphi.engine.media import MAX_FRAME_PIXELS, Caps, MediaError
from polyphi.messages import Image, Message, Part, Video
from polyphi.serve.settings import Settings


def caps(settings: Settings) -> Caps:
    """The limits of decoding. The bytes of an image are limited when it is loaded (fetch.py), and a frame of a video is
    larger: it isn't compressed."""
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
    )


@contextmanager
def frames_of(
    engine: Engine, messages: Sequence[Message], stop: Callable[[], bool] | None = None
) -> Iterator[Sequence[Message]]:
    """Yield the conversation with the frames of its videos. A `MediaError` raised inside about an image gets the type
    and the number that its image or video has in `messages`."""
    origins: list[tuple[str, int]] = []
    counts = {"image": 0, "video": 0}
    limits = engine.processor.caps

    def expand(part: Part) -> Sequence[Part]:
        nonlocal limits
        if not isinstance(part, Image | Video):
            return (part,)
        modality = "image" if isinstance(part, Image) else "video"
        origin = modality, counts[modality]
        counts[modality] += 1
        parts: Sequence[Part] = (part,)
        if isinstance(part, Video):
            try:
                parts = engine.processor.expand([Message.user(part)], limits, stop)[0].parts
            except MediaError as error:
                error.part, error.number = origin
                raise
            frames = [
                p.source for p in parts if isinstance(p, Image) and isinstance(p.source, bytes)
            ]
            pixels = sum(map(len, frames)) // 3  # BMP has 3 bytes a pixel
            limits = replace(limits, video_pixels=max(1, limits.video_pixels - pixels))
        origins.extend([origin] * len(parts))
        return parts

    expanded = [
        replace(m, parts=tuple(p for part in m.parts for p in expand(part))) for m in messages
    ]
    try:
        yield expanded
    except MediaError as error:
        if error.part == "image" and error.number is not None:
            error.part, error.number = origins[error.number]
        raise
