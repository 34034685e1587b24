"""Where somebody speaks in a recording, and where it may best be cut: by energy and spectral flatness, without a model.

>>> sound = listen(AudioStream("meeting.flac"))
>>> spoken(sound)                                # [(0.31, 12.4), (19.02, 31.77)] seconds
>>> quietest(sound, 25.0, 30.0)                  # the middle of the quietest 0.2 s between them

A frame of 25 ms, one every 10 ms, is voiced where it is

- louder than -80 dB of full scale, than the loudest frames less 50 dB, and, in recordings of 5 s and more, than the
  noise around it (the tenth percentile of 30 s, or of the 30 s beside them if that is less) by 4 dB: hum, hiss and fans
  hold their level, speech never does for long;
- not as flat as hiss: the geometric mean of eleven bands from 300 to 3400 Hz is below 0.75 of their arithmetic mean.

Where 8 of 30 frames are voiced, somebody speaks, and 0.2 s before and behind it too: onsets and ends are quiet. All
these numbers are ours. It is a gate against hours of silence, not a judge: music, babble and clatter pass as speech.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from polyphi.processing.audio import FFT, HOP, RATE, WINDOW, resampled
from polyphi.processing.media import AudioStream

FRAME = HOP / RATE  # s between frames
BAND = (10, 109)  # bins of 31.25 Hz: 312 to 3,400 Hz, where telephones hear too
BANDS = 11
SILENCE, BELOW_LOUDEST, ABOVE_NOISE = -80.0, 50.0, 4.0  # dB
FLAT = 0.75
AROUND = 30.0  # s over which noise holds its level
SHORT = 5.0  # s below which a held sound may be a vowel
NEAR, VOICED, MARGIN = 30, 8, 20  # frames
QUIET = 20  # frames of the stretch that is to be the quietest
CHUNK = 4096  # frames at a time


@dataclass(frozen=True)
class Sound:
    """What `listen` keeps of a recording: 800 bytes a second. `level` in dB of full scale, `flat` from 0 (a tone) to 1
    (white noise), both every 10 ms; `seconds` is its length."""

    level: Float[np.ndarray, " F"]
    flat: Float[np.ndarray, " F"]
    seconds: float

    @cached_property
    def voiced(self) -> Bool[np.ndarray, " F"]:
        """Frames that sound like a voice, one by one."""
        level = np.maximum(self.level, SILENCE - 20)
        least = max(SILENCE, float(np.percentile(level, 99)) - BELOW_LOUDEST)
        threshold = np.full(len(level), least, np.float32)
        if self.seconds >= SHORT:
            wide = round(AROUND / FRAME)
            noise = [
                float(np.percentile(level[i : i + wide], 10)) for i in range(0, len(level), wide)
            ]
            if len(noise) > 1 and len(level) % wide < wide // 2:
                noise[-1] = noise[-2]  # too short a rest to know
            near = [min(noise[max(0, i - 1) : i + 2]) for i in range(len(noise))]
            threshold = np.maximum(threshold, np.repeat(near, wide)[: len(level)] + ABOVE_NOISE)
        return (level > threshold) & (self.flat < FLAT)

    @cached_property
    def pauses(self) -> list[tuple[float, float]]:
        """Stretches in which nobody speaks, however short."""
        return silences(spoken(self), self.seconds, 0.0)


def listen(stream: AudioStream) -> Sound:
    """A recording's levels, read once from its beginning to its end. Raises `ValueError` as the stream does, and below
    8 kHz."""
    blocks, rate = resampled(stream, stream.rate)
    window, hop, fft = (size * rate // RATE for size in (WINDOW, HOP, FFT))
    levels: list[np.ndarray] = []
    flats: list[np.ndarray] = []
    held, samples = np.empty(0, np.float32), 0
    for block in blocks:
        samples += len(block)
        held = np.concatenate([held, block])
        while len(held) >= (CHUNK - 1) * hop + window:
            _measure(held[: (CHUNK - 1) * hop + window], window, hop, fft, levels, flats)
            held = held[CHUNK * hop :]
    if len(held) >= window or not levels:
        _measure(np.pad(held, (0, max(0, window - len(held)))), window, hop, fft, levels, flats)
    return Sound(np.concatenate(levels), np.concatenate(flats), samples / rate)


def _measure(
    wave: np.ndarray,
    window: int,
    hop: int,
    fft: int,
    levels: list[np.ndarray],
    flats: list[np.ndarray],
) -> None:
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    levels.append(10 * np.log10(np.square(frames).mean(axis=1) + 1e-10).astype(np.float32))
    power = np.abs(np.fft.rfft(frames * np.hanning(window), fft)[:, slice(*BAND)]) ** 2
    bands = power.reshape(len(frames), BANDS, -1).mean(axis=2) + 1e-12
    flats.append((np.exp(np.log(bands).mean(axis=1)) / bands.mean(axis=1)).astype(np.float32))


def spoken(sound: Sound, pause: float = 0.0) -> list[tuple[float, float]]:
    """Stretches in which somebody speaks, as (start, end) in seconds; those less than `pause` s apart are one."""
    voiced = sound.voiced
    if len(voiced) < NEAR:
        return [(0.0, sound.seconds)] if voiced.sum() >= min(VOICED, len(voiced)) else []
    dense = _running_sum(voiced, NEAR) >= VOICED
    near = _running_sum(dense, 2 * MARGIN + 1) > 0
    edges = np.flatnonzero(np.diff(near.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    found: list[tuple[float, float]] = []
    for first, last in edges:
        start, end = float(first) * FRAME, min(float(last) * FRAME, sound.seconds)
        if last == len(near):
            end = sound.seconds
        if found and start - found[-1][1] < pause:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def silences(
    spoken: Sequence[tuple[float, float]], seconds: float, longer: float
) -> list[tuple[float, float]]:
    """What lies between, before and behind stretches of speech and lasts `longer` seconds at least."""
    edges = [0.0, *(t for stretch in spoken for t in stretch), seconds]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(start, end) for start, end in gaps if end - start >= longer and end > start]


def quietest(sound: Sound, start: float, end: float) -> float:
    """The middle of the quietest 0.2 s from `start` to `end`, in seconds; of equally quiet ones the latest."""
    first = max(0, round(start / FRAME))
    last = max(first + 1, min(round(end / FRAME), len(sound.level)))
    power = 10 ** (np.asarray(sound.level[first:last], np.float64) / 10)
    around = _running_sum(power, QUIET) if last - first > QUIET else power
    inner = slice(QUIET // 2, -QUIET // 2) if last - first > 2 * QUIET else slice(None)
    candidates = np.round(around[inner], 12)
    at = len(candidates) - 1 - int(candidates[::-1].argmin())
    return (first + (inner.start or 0) + at) * FRAME


def _running_sum(x: np.ndarray, width: int) -> np.ndarray:
    """Of the `width` values around each one, zeros beyond the ends."""
    total = np.concatenate([[0], np.cumsum(np.pad(x.astype(np.float64), (width // 2, width)))])
    return (total[width:] - total[:-width])[: len(x)]


def shares(
    voiced: Iterable[bool] | np.ndarray, start: float, end: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(times, shares): at each frame border from `start` to `end` how much of the voiced time between them is over,
    from 0 to 1; of the whole time where nothing is voiced."""
    mask = np.asarray(voiced)
    first = min(max(0, round(start / FRAME)), len(mask) - 1)
    last = max(first + 1, min(round(end / FRAME), len(mask)))
    part = mask[first:last].astype(np.float64)
    if not part.any():
        part[:] = 1.0
    times = np.linspace(start, end, len(part) + 1)
    return times, np.concatenate([[0.0], np.cumsum(part)]) / part.sum()
