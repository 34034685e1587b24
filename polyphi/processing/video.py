"""Videos as what a model sees of them: frames, one for each equal part of their time.

>>> frames = decode_video("walk.mp4", frames=16)      # 16 of PIL, RGB, one for each sixteenth of its time
>>> expand_videos([Message.user(Video("walk.mp4"), "What happens?")])

Caps and refusals are as in media.py. The server reads none: there frames come as pictures.
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
MAX_FRAMES = 1024  # taken from one video [ours]; the report trains on up to 64k tokens of them
MAX_VIDEO_PIXELS = 1 << 27  # of all frames taken [ours]: 64 of 1920 x 1080, 400 MB decoded
# what we say -> what FFmpeg says
VIDEOS = {"MP4": "mov", "WebM or Matroska": "matroska", "AVI video": "avi"}


def expand_videos(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the frames of each `Video` in its place, in order, as `Image`s: all that a model sees of
    one. Raises ValueError as `decode_video` does, and where the frames have too many pixels in all."""

    def shown(part: Part) -> tuple[Part, ...]:
        if not isinstance(part, Video):
            return (part,)
        frames = decode_video(part.source, frames=part.frames)
        return tuple(Image(_bmp(frame), part.detail, part.max_crops) for frame in frames)

    return [replace(m, parts=tuple(p for part in m.parts for p in shown(part))) for m in messages]


def _bmp(picture: Picture) -> bytes:
    """The quickest to write and to read of the formats that keep every pixel."""
    out = io.BytesIO()
    picture.save(out, "BMP")
    return out.getvalue()


def decode_video(
    source: MediaSource,
    *,
    frames: int = 16,
    max_bytes: int = MAX_VIDEO_BYTES,
    max_pixels: int = MAX_FRAME_PIXELS,
    max_seconds: float = MAX_VIDEO_SECONDS,
) -> list[Picture]:
    """Up to `frames` frames as RGB, in order: what is shown in the middle of each of so many equal parts of the time
    (16, uniformly, as the report has it for VideoMME; section 4.1.1). A shorter video gives all that it has.

    When a frame is shown its packet says; headers, which may lie, aren't asked. A turn that the file asks for is not
    made. Needs PyAV (extra `video`). Raises `ValueError` for bytes that are no MP4, WebM, Matroska or AVI, for damaged
    ones, for a video without pictures, and above a cap.
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
    if (kind := sniff(data)) not in VIDEOS:
        raise ValueError(f"{name}: expected an MP4, WebM, Matroska or AVI video, found {kind}")
    try:
        # Told its format, FFmpeg tries no other: some of them open files and addresses that the bytes name.
        with av.open(io.BytesIO(data), format=VIDEOS[kind]) as container:
            if not container.streams.video:
                raise _Refused("expected a video with pictures, found only sound")
            found = _frames(container, container.streams.video[0], frames, max_pixels, max_seconds)
    except _Refused as refused:
        raise ValueError(f"{name}: {refused}") from None
    except (av.error.FFmpegError, OSError, ValueError, EOFError):
        raise ValueError(
            f"{name}: the {kind} is damaged or truncated; expected a complete file"
        ) from None
    if not found:
        raise ValueError(f"{name}: the {kind} is damaged or empty; expected frames, found 0")
    return found


def _frames(
    container: Any, stream: Any, count: int, max_pixels: int, max_seconds: float
) -> list[Picture]:
    """Frames of an open video: packets are read once for their times, then what is wanted is decoded."""
    if stream.codec_context is None:
        raise _Refused("it has an encoding that isn't known here; convert it to H.264 first")
    _check_frame(stream.codec_context, max_pixels)
    packets = [
        (p.dts if p.pts is None else p.pts, p.is_keyframe, p.duration or 0)  # AVI may lack the one
        for p in container.demux(stream)
        if (p.pts is not None or p.dts is not None) and not p.is_discard
    ]
    if not packets:
        return []
    shown = sorted(pts for pts, _, _ in packets)
    keys = sorted(pts for pts, key, _ in packets if key)
    start, end = shown[0], max(pts + duration for pts, _, duration in packets)
    seconds = float((end - start) * stream.time_base)
    if seconds > max_seconds:
        raise _Refused(f"a video may last {max_seconds:g} s, found {seconds:.1f} s; cut it first")
    middles = [start + (end - start) * (2 * i + 1) / (2 * count) for i in range(count)]
    wanted = sorted({shown[bisect_right(shown, middle) - 1] for middle in middles})
    found: list[Picture] = []
    decoder, last = None, start - 1
    for pts in wanted:
        # From the last picture before it that stands on its own, unless decoding is past that already.
        before = bisect_right(keys, pts) - 1
        if decoder is None or (before >= 0 and keys[before] > last):
            container.seek(keys[before] if before >= 0 else start, stream=stream)
            decoder = container.decode(stream)
        for frame in decoder:
            _check_frame(frame, max_pixels)
            if (pixels := frame.width * frame.height * len(wanted)) > MAX_VIDEO_PIXELS:
                raise _Refused(
                    f"{len(wanted)} frames of {frame.width} x {frame.height} have {pixels:,} pixels, "
                    f"{MAX_VIDEO_PIXELS:,} can be taken; ask for fewer frames or shrink the video"
                )
            last = frame.pts if frame.pts is not None else last
            if frame.pts is not None and frame.pts >= pts:
                found.append(frame.to_image())
                break
    if len(found) < 0.75 * len(wanted):  # a few may be missing: some packets are never shown
        raise _Refused(
            f"the video is damaged or truncated; expected {len(wanted)} frames, found {len(found)}"
        )
    return found


def _check_frame(of: Any, max_pixels: int) -> None:
    if of.width * of.height > max_pixels:
        raise _Refused(
            f"a frame may have {max_pixels:,} pixels, found {of.width * of.height:,}; shrink it"
        )


class _Refused(Exception):
    """Our own refusal from inside a decoder's `try`."""
