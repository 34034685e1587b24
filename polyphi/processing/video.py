"""Videos -> frames, one for each equal part of their time.

>>> frames = decode_video("walk.mp4", frames=16)      # 16 PIL images, RGB, one for each sixteenth of its time
>>> images = list(frame_images(Video("walk.mp4"), CAPS))     # the same as parts of a message

Limits and errors are as in media.py. A separate process decodes them (isolated.py).
"""

from collections.abc import Iterator

from PIL import Image as pil
from PIL.Image import Image as Picture

from polyphi.media.file_types import SNIFF_BYTES, VIDEO_FORMATS, sniff
from polyphi.media.isolated import DecoderError, video_frames
from polyphi.media.media import CAPS, Caps, MediaError, bmp, decoder_media_error, open_media
from polyphi.runtime.fork_server import ForkServer
from polyphi.runtime.steps import Stop
from polyphi.types.media_sources import MediaSource
from polyphi.types.parts import Image, Video


def frame_images(
    video: Video, caps: Caps, stop: Stop | None = None, decoders: ForkServer | None = None
) -> Iterator[tuple[Image]]:
    """Yield the parts that show a video to the model: each frame. Raises `MediaError` as `decode_video` does."""
    for frame in _decoded(video.source, video.frames, caps, stop, decoders):
        yield (Image(bmp(*frame), video.detail, video.max_crops),)


def decode_video(
    source: MediaSource, *, frames: int = 16, caps: Caps = CAPS, stop: Stop | None = None
) -> list[Picture]:
    """Return up to `frames` frames as RGB, in order, one from the middle of each of `frames` equal parts of the time
    (16 by default, the number of the report for VideoMME; section 4.1.1. The evaluation on VideoMME takes others, from
    the first to the last). A shorter video gives all its frames.

    Times are those of the packets, because headers may be wrong. A rotation in the file is ignored. Needs PyAV (extra
    `video`). Raises `MediaError` (a ValueError) for other formats than MP4, WebM, Matroska and AVI, for damaged files,
    for a video without a video stream, and above a limit of `caps`; also soon after `stop` returns True.
    """
    decoded = _decoded(source, frames, caps, stop)
    return [pil.frombytes("RGB", (width, height), rows) for width, height, rows in decoded]


def _decoded(
    source: MediaSource,
    frames: int,
    caps: Caps,
    stop: Stop | None,
    decoders: ForkServer | None = None,
) -> Iterator[tuple[int, int, bytearray]]:
    """Yield (width, height, RGB rows) of each frame."""
    if not 1 <= frames <= caps.video_frames:
        raise MediaError(
            f"a video is read as 1 to {caps.video_frames} frames, found {frames}", "size"
        )
    with open_media(source, caps.video_bytes, "video") as (file, name):
        file_type = sniff(file.read(SNIFF_BYTES))
        if file_type not in VIDEO_FORMATS:
            raise MediaError(
                f"{name}: expected an MP4, WebM, Matroska or AVI video, found {file_type}", "kind"
            )
        decoded = video_frames(
            file,
            VIDEO_FORMATS[file_type],
            frames=frames,
            max_pixels=caps.frame_pixels,
            max_video_pixels=caps.video_pixels,
            max_seconds=caps.video_seconds,
            stop=stop,
            decoders=decoders,
        )
        try:
            yield from decoded
        except DecoderError as error:
            if (message := _above_limit(error, caps)) is not None:
                raise MediaError(f"{name}: {message}", "size") from None
            raise decoder_media_error(error, name, file_type) from None


def _above_limit(error: DecoderError, caps: Caps) -> str | None:
    value = error.value or 0
    return {
        "pixels": f"a frame may have {caps.frame_pixels:,} pixels, found {value:,.0f}; shrink it",
        "video_pixels": f"the frames of a video may have {caps.video_pixels:,} pixels in all, found {value:,.0f}; ask "
        "for fewer frames or shrink the video",
        "seconds": f"a video may last {caps.video_seconds:g} s, found {value:.1f} s; cut it first",
    }.get(error.error)
