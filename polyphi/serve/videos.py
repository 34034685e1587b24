"""The videos of a conversation: their frames as images, and errors about these as errors about the video."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from polyphi.engine.engine import Engine
from polyphi.engine.media import MAX_FRAME_PIXELS, Caps, MediaError
from polyphi.messages import Image, Message, Part, Video, media
from polyphi.serve.settings import Settings
from polyphi.steps import Steps


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


@dataclass(frozen=True)
class Expanded:
    """A conversation whose videos are replaced by their frames. `origins`: of each image the type ("image" or "video")
    and the number that it, or its video, has among the request's."""

    messages: Sequence[Message]
    origins: Sequence[tuple[str, int]]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """A `MediaError` raised inside about a frame becomes one about its video."""
        try:
            yield
        except MediaError as error:
            if error.part == "image" and error.number is not None:
                error.part, error.number = self.origins[error.number]
            raise


def expand(
    engine: Engine,
    messages: Sequence[Message],
    reserve: Callable[[int], None],
    stop: Callable[[], bool],
) -> Steps[Expanded]:
    """Return the conversation with the frames of its videos, with a step for each video. `reserve` is called with the
    bytes of the frames. Raises `MediaError` for a damaged video, above a limit, and soon after `stop` returns True."""
    origins: list[tuple[str, int]] = []
    images = videos = 0
    limits = engine.processor.caps
    expanded: list[Message] = []
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, Video):
                yield
                frames = _frames(engine, part, limits, stop, videos)
                size = sum(len(frame.source) for frame in frames if isinstance(frame.source, bytes))
                reserve(size)
                # BMP has 3 bytes a pixel.
                limits = replace(limits, video_pixels=max(1, limits.video_pixels - size // 3))
                origins += [("video", videos)] * len(frames)
                videos += 1
                parts += frames
                continue
            if isinstance(part, Image):
                origins.append(("image", images))
                images += 1
            parts.append(part)
        expanded.append(replace(message, parts=tuple(parts)))
    return Expanded(expanded, origins)


def _frames(
    engine: Engine, video: Video, limits: Caps, stop: Callable[[], bool], number: int
) -> list[Image]:
    """The frames of the video with this number."""
    try:
        (message,) = engine.processor.expand([Message.user(video)], limits, stop)
    except MediaError as error:
        error.part, error.number = "video", number
        raise
    return media([message], Image)
