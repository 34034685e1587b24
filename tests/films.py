"""A video of which a test can tell the frames: each is a little brighter than the one before."""

import io

import numpy as np
import pytest


def film(
    count: int,
    format: str = "mp4",
    codec: str = "mpeg4",
    gop: int = 12,
    sound: bool = False,
    size: tuple[int, int] = (64, 48),
) -> bytes:
    """`count` frames of `size` (width, height), from grey 20 to 220; eight a second; with `sound` only that."""
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format=format) as container:
        if sound:
            track = container.add_stream("aac", rate=16000)
            clip = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            clip.sample_rate = 16000
            container.mux([*track.encode(clip), *track.encode(None)])
        else:
            stream = container.add_stream(codec, rate=8)
            (stream.width, stream.height), stream.pix_fmt, stream.gop_size = size, "yuv420p", gop
            for i in range(count):
                grey = np.full((size[1], size[0], 3), 20 + 200 * i // max(1, count - 1), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode(None))
    return out.getvalue()
