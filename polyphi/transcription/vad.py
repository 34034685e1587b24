"""Voice activity detection (VAD) by energy and spectral flatness, without a model, and the quietest points for cuts.

>>> sound = measure(AudioStream("meeting.flac"))
>>> speech_ranges(sound)                         # [(0.31, 12.4), (19.02, 31.77)] seconds
>>> quietest_point(sound, 25.0, 30.0)            # the middle of the quietest 0.2 s in this range

A frame of 25 ms, one every 10 ms, is voiced if it is

- louder than -80 dB of full scale, than the loudest frames less 50 dB, and, in recordings of 5 s and more, than the
  noise around it (the tenth percentile of 30 s, or of an adjacent 30 s if that is less) by 4 dB: hum, hiss and fans
  have a constant level, speech never has for long;
- less flat than noise: the geometric mean of eleven bands from 300 to 3400 Hz is below 0.75 of their arithmetic mean.

Speech is where 8 of 30 frames are voiced, extended by 0.2 s on both sides, since onsets and ends are quiet. All these
numbers are ours. The detector removes hours of silence; music, babble and clatter count as speech.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from polyphi.media.media import AudioStream
from polyphi.processing.audio import FFT, HOP, RATE, WINDOW, resampled

FRAME = HOP / RATE  # s between frames
BAND = (10, 109)  # bins of 31.25 Hz: 312 to 3,400 Hz, the band of telephones
BANDS = 11
SILENCE, BELOW_LOUDEST, ABOVE_NOISE = -80.0, 50.0, 4.0  # dB
MAX_FLATNESS = 0.75
NOISE_WINDOW = 30.0  # s of a window of constant noise
MIN_NOISE_SECONDS = 5.0  # s; in shorter recordings a constant sound may be a vowel
SPEECH_WINDOW, MIN_VOICED, SPEECH_PAD = 30, 8, 20  # frames
QUIET_WINDOW = 20  # frames of the window that is to be the quietest
CHUNK_FRAMES = 4096  # frames at a time


@dataclass(frozen=True)
class VoiceFeatures:
    """Features of a recording, 800 bytes a second: `level` in dB of full scale and `flatness` from 0 (a tone) to 1
    (white noise), both every 10 ms; `seconds` is its length."""

    level: Float[np.ndarray, " F"]
    flatness: Float[np.ndarray, " F"]
    seconds: float
    above_noise: float = ABOVE_NOISE
    """dB by which a voiced frame is louder than the noise around it."""

    @cached_property
    def voiced(self) -> Bool[np.ndarray, " F"]:
        """Whether each frame is voiced."""
        level = np.maximum(self.level, SILENCE - 20)
        least = max(SILENCE, float(np.percentile(level, 99)) - BELOW_LOUDEST)
        threshold = np.full(len(level), least, np.float32)
        if self.seconds >= MIN_NOISE_SECONDS:
            wide = round(NOISE_WINDOW / FRAME)
            noise = [
                float(np.percentile(level[i : i + wide], 10)) for i in range(0, len(level), wide)
            ]
            if len(noise) > 1 and len(level) % wide < wide // 2:
                noise[-1] = noise[-2]  # too short for an estimate
            near = [min(noise[max(0, i - 1) : i + 2]) for i in range(len(noise))]
            threshold = np.maximum(
                threshold, np.repeat(near, wide)[: len(level)] + self.above_noise
            )
        return (level > threshold) & (self.flatness < MAX_FLATNESS)

    @cached_property
    def pauses(self) -> list[tuple[float, float]]:
        """Ranges without speech, however short, as (start, end) in seconds."""
        return silences(speech_ranges(self), self.seconds, 0.0)


def measure(stream: AudioStream) -> VoiceFeatures:
    """The features of a recording, which is read once. Raises `ValueError` as the stream does, and for rates below
    8 kHz."""
    blocks, rate = resampled(stream, stream.rate)
    window, hop, _ = frame_sizes(rate)
    frames: list[tuple[np.ndarray, np.ndarray]] = []
    buffer, samples = np.empty(0, np.float32), 0
    for block in blocks:
        samples += len(block)
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= (CHUNK_FRAMES - 1) * hop + window:
            frames.append(features(buffer[: (CHUNK_FRAMES - 1) * hop + window], rate))
            buffer = buffer[CHUNK_FRAMES * hop :]
    if len(buffer) >= window or not frames:
        frames.append(features(np.pad(buffer, (0, max(0, window - len(buffer)))), rate))
    level, flatness = (np.concatenate(values) for values in zip(*frames, strict=True))
    return VoiceFeatures(level, flatness, samples / rate)


def frame_sizes(rate: int) -> tuple[int, int, int]:
    """(samples of a frame, samples from one frame to the next, size of its Fourier transform)."""
    window, hop, fft = (size * rate // RATE for size in (WINDOW, HOP, FFT))
    return window, hop, fft


def features(
    wave: Float[np.ndarray, " n"], rate: int
) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, " F"]]:
    """(level, flatness) of the whole frames of some samples, as in `VoiceFeatures`."""
    window, hop, fft = frame_sizes(rate)
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * np.hanning(window), fft)[:, slice(*BAND)]) ** 2
    bands = power.reshape(len(frames), BANDS, -1).mean(axis=2) + 1e-12
    flatness = np.exp(np.log(bands).mean(axis=1)) / bands.mean(axis=1)
    return level, flatness.astype(np.float32)


def speech_ranges(sound: VoiceFeatures, pause: float = 0.0) -> list[tuple[float, float]]:
    """Ranges of speech, as (start, end) in seconds; those less than `pause` s apart are joined."""
    voiced = sound.voiced
    if len(voiced) < SPEECH_WINDOW:
        return [(0.0, sound.seconds)] if voiced.sum() >= min(MIN_VOICED, len(voiced)) else []
    dense = _running_sum(voiced, SPEECH_WINDOW) >= MIN_VOICED
    near = _running_sum(dense, 2 * SPEECH_PAD + 1) > 0
    edges = np.flatnonzero(np.diff(near.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    ranges: list[tuple[float, float]] = []
    for first, last in edges:
        start, end = float(first) * FRAME, min(float(last) * FRAME, sound.seconds)
        if last == len(near):
            end = sound.seconds
        if ranges and start - ranges[-1][1] < pause:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def silences(
    speech: Sequence[tuple[float, float]], seconds: float, at_least: float
) -> list[tuple[float, float]]:
    """The ranges between, before and after ranges of speech that last `at_least` seconds."""
    edges = [0.0, *(t for span in speech for t in span), seconds]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(start, end) for start, end in gaps if end - start >= at_least and end > start]


def silent_share(speech: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """The share of the time from `start` to `end` outside ranges of speech, from 0 to 1; of no time, of its point."""
    if end <= start:
        return float(not any(a <= start <= b for a, b in speech))
    voiced = sum(max(0.0, min(b, end) - max(a, start)) for a, b in speech)
    return min(1.0, max(0.0, 1.0 - voiced / (end - start)))


def quietest_point(sound: VoiceFeatures, start: float, end: float) -> float:
    """The middle of the quietest 0.2 s from `start` to `end`, in seconds; of equally quiet ones the latest."""
    first = max(0, round(start / FRAME))
    last = max(first + 1, min(round(end / FRAME), len(sound.level)))
    power = 10 ** (np.asarray(sound.level[first:last], np.float64) / 10)
    around = _running_sum(power, QUIET_WINDOW) if last - first > QUIET_WINDOW else power
    inner = (
        slice(QUIET_WINDOW // 2, -QUIET_WINDOW // 2)
        if last - first > 2 * QUIET_WINDOW
        else slice(None)
    )
    candidates = np.round(around[inner], 12)
    at = len(candidates) - 1 - int(candidates[::-1].argmin())
    return (first + (inner.start or 0) + at) * FRAME


def _running_sum(x: np.ndarray, width: int) -> np.ndarray:
    """The sum of the `width` values around each one, with zeros beyond the ends."""
    total = np.concatenate([[0], np.cumsum(np.pad(x.astype(np.float64), (width // 2, width)))])
    return (total[width:] - total[:-width])[: len(x)]


def voiced_shares(
    voiced: Iterable[bool] | np.ndarray, start: float, end: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(times, shares): for each frame border from `start` to `end` the share, from 0 to 1, of the voiced time before
    it; of the whole time if no frame is voiced."""
    mask = np.asarray(voiced)
    first = min(max(0, round(start / FRAME)), len(mask) - 1)
    last = max(first + 1, min(round(end / FRAME), len(mask)))
    part = mask[first:last].astype(np.float64)
    if not part.any():
        part[:] = 1.0
    times = np.linspace(start, end, len(part) + 1)
    return times, np.concatenate([[0.0], np.cumsum(part)]) / part.sum()
