"""Sound in the formats of phones and browsers, encoded with PyAV."""

import io

import numpy as np
import pytest


def tone(rate: int, first: float = 440.0, last: float = 440.0) -> np.ndarray:
    """One second of a sine, from `first` to `last` Hz."""
    times = np.arange(rate) / rate
    phase = first * times + (last - first) * times**2 / 2
    return (0.4 * np.sin(2 * np.pi * phase)).astype(np.float32)


def encoded(
    format: str,
    codec: str,
    rate: int = 48_000,
    layout: str = "mono",
    wave: np.ndarray | None = None,
) -> bytes:
    """`wave` (one second of `tone`) on all channels, in FFmpeg's format and codec."""
    av = pytest.importorskip("av")
    wave = tone(rate) if wave is None else wave
    out = io.BytesIO()
    with av.open(out, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        context = stream.codec_context
        context.open()
        channels = {"mono": 1, "stereo": 2}[layout]
        frame = av.AudioFrame.from_ndarray(np.tile(wave, (channels, 1)), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(
            context.format.name, layout, rate, frame_size=context.frame_size or 960
        )
        for block in filter(None, [*resampler.resample(frame), *resampler.resample(None)]):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return out.getvalue()
