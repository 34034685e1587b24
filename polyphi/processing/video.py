"""Videos -> frames, one for each equal part of their time.

>>> frames = decode_video("walk.mp4", frames=16)      # 16 PIL images, RGB, one for each sixteenth of its time
>>> expand_videos([Message.user(Video("walk.mp4"), "What happens?")])

Limits and errors are as in media.py. The server reads no videos: clients send frames as images.
"""

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL.Image import Image as Picture

from polyphi.messages import Image, MediaSource, Message, Part, Video
from polyphi.processing.media import read_within, sniff

MAX_VIDEO_BYTES = 512 << 20
MAX_VIDEO_SECONDS = 4 * 3600.0  # [ours]
MAX_FRAME_PIXELS = 4096 * 2304  # of one frame [ours]: "4K" and a little more
MAX_FRAMES = 1024  # of one video [ours]; the report trains on up to 64k tokens of them
MAX_VIDEO_PIXELS = 1 << 27  # of all selected frames [ours]: 64 of 1920 x 1080, 400 MB decoded
# our name -> FFmpeg's format
FORMATS = {"MP4": "mov", "WebM or Matroska": "matroska", "AVI video": "avi"}


def expand_videos(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with each `Video` replaced by its frames, in order, as `Image`s. Raises ValueError as
    `decode_video` does, and if the frames have too many pixels in all."""

    def expand(part: Part) -> tuple[Part, ...]:
        if not isinstance(part, Video):
            return (part,)
        frames = decode_video(part.source, frames=part.frames)
        return tuple(Image(_bmp(frame), part.detail, part.max_crops) for frame in frames)

    return [replace(m, parts=tuple(p for part in m.parts for p in expand(part))) for m in messages]


def _bmp(image: Picture) -> bytes:
    """Return BMP bytes, the fastest lossless format to write and read."""
    out = io.BytesIO()
    image.save(out, "BMP")
    return out.getvalue()


def decode_video(
    source: MediaSource,
    *,
    frames: int = 16,
    max_bytes: int = MAX_VIDEO_BYTES,
    max_pixels: int = MAX_FRAME_PIXELS,
    max_seconds: float = MAX_VIDEO_SECONDS,
) -> list[Picture]:
    """Return up to `frames` frames as RGB, in order, one from the middle of each of `frames` equal parts of the time
    (16, uniformly, as in the report for VideoMME; section 4.1.1). A shorter video gives all its frames.

    Times are those of the packets, because headers may be wrong. A rotation in the file is ignored. Needs PyAV (extra
    `video`). Raises `ValueError` for other formats than MP4, WebM, Matroska and AVI, for damaged files, for a video
    without a video stream, and above a limit.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f'reading video needs PyAV ({error}); `pip install "polyphi[video]"` brings it'
        ) from None
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"a video is read as 1 to {MAX_FRAMES} frames, found {frames}")
    data, name = read_within(source, max_bytes, "video")
    if (file_type := sniff(data)) not in FORMATS:
        raise ValueError(f"{name}: expected an MP4, WebM, Matroska or AVI video, found {file_type}")
    try:
        # With a fixed format FFmpeg tries no other: some formats open files and addresses named in the bytes.
        with av.open(io.BytesIO(data), format=FORMATS[file_type]) as container:
            if not container.streams.video:
                raise _Rejected("expected a video with pictures, found only sound")
            images = _frames(container, container.streams.video[0], frames, max_pixels, max_seconds)
    except _Rejected as error:
        raise ValueError(f"{name}: {error}") from None
    except (av.error.FFmpegError, OSError, ValueError, EOFError):
        raise ValueError(
            f"{name}: the {file_type} is damaged or truncated; expected a complete file"
        ) from None
    if not images:
        raise ValueError(f"{name}: the {file_type} is damaged or empty; expected frames, found 0")
    return images


def _frames(
    container: Any, stream: Any, count: int, max_pixels: int, max_seconds: float
) -> list[Picture]:
    """Return the frames of an open video: packets are read once for their times, then selected frames are decoded."""
    if stream.codec_context is None:
        raise _Rejected("it has an encoding that isn't known here; convert it to H.264 first")
    _check_frame(stream.codec_context, max_pixels)
    packets = [
        (p.dts if p.pts is None else p.pts, p.is_keyframe, p.duration or 0)  # AVI may lack the one
        for p in container.demux(stream)
        if (p.pts is not None or p.dts is not None) and not p.is_discard
    ]
    if not packets:
        return []
    times = sorted(pts for pts, _, _ in packets)
    keys = sorted(pts for pts, key, _ in packets if key)
    start, end = times[0], max(pts + duration for pts, _, duration in packets)
    seconds = float((end - start) * stream.time_base)
    if seconds > max_seconds:
        raise _Rejected(f"a video may last {max_seconds:g} s, found {seconds:.1f} s; cut it first")
    middles = [start + (end - start) * (2 * i + 1) / (2 * count) for i in range(count)]
    selected = sorted({times[bisect_right(times, middle) - 1] for middle in middles})
    images: list[Picture] = []
    decoder, last = None, start - 1
    for pts in selected:
        # Decode from the last key frame before it, unless decoding is past that already.
        key_index = bisect_right(keys, pts) - 1
        if decoder is None or (key_index >= 0 and keys[key_index] > last):
            container.seek(keys[key_index] if key_index >= 0 else start, stream=stream)
            decoder = container.decode(stream)
        for frame in decoder:
            _check_frame(frame, max_pixels)
            if (pixels := frame.width * frame.height * len(selected)) > MAX_VIDEO_PIXELS:
                raise _Rejected(
                    f"{len(selected)} frames of {frame.width} x {frame.height} have {pixels:,} pixels, "
                    f"{MAX_VIDEO_PIXELS:,} can be taken; ask for fewer frames or shrink the video"
                )
            last = frame.pts if frame.pts is not None else last
            if frame.pts is not None and frame.pts >= pts:
                images.append(frame.to_image())
                break
    if len(images) < 0.75 * len(selected):  # a few may be missing: some packets are never shown
        raise _Rejected(
            f"the video is damaged or truncated; expected {len(selected)} frames, found {len(images)}"
        )
    return images


def _check_frame(of: Any, max_pixels: int) -> None:
    if of.width * of.height > max_pixels:
        raise _Rejected(
            f"a frame may have {max_pixels:,} pixels, found {of.width * of.height:,}; shrink it"
        )


class _Rejected(Exception):
    """An error of ours inside a decoder's `try`."""
