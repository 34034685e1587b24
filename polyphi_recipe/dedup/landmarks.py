"""Landmarks of audio clips: pairs of spectral peaks, which noise, gain and compression leave unchanged.

>>> pairs = landmarks(wave, 16000)
>>> keys(pairs)                                            # uint32: one per pair of peaks
>>> keys(pairs, semitones=1.0, tempo=1.06)                 # of the clip played faster

Peaks of a spectrogram, in pairs: (pitch of the first, step to the second, time between them), after Wang, "An
Industrial-Strength Audio Search Algorithm" (2003). Pitch is counted in semitones rather than in Hz, as in Panako (Six
and Leman, 2014): a shifted copy has the same steps, and all its first pitches differ by the same amount, so that a few
trial shifts find it.
"""

import numpy as np
from jaxtyping import Float, UInt32

from polyphi.processing.audio import RATE, resample

WINDOW, HOP = 1024, 256  # 64 ms and 16 ms at 16 kHz
LOWEST, HIGHEST = 180.0, 5500.0  # Hz
PEAKS_PER_SECOND = 45
FAN_OUT = 6
"""Pairs per peak."""
TARGET_ZONE = (2, 56)
"""Frames from a peak to its partner: 32 ms to 0.9 s."""
MAX_SEMITONES = 19.0
"""Semitones from a peak to its partner at most."""
PITCH, STEP, GAP = 1.0, 0.75, 2.0
"""Resolution of a key: pitch and step in semitones, time in frames."""
DYNAMIC_RANGE = 50.0
"""dB below a clip's loudest peak at which a peak is noise."""


def peaks(wave: Float[np.ndarray, " n"], rate: int) -> Float[np.ndarray, "p 2"]:
    """Return (frame, semitones above 180 Hz) of the strongest spectral peaks of a mono clip, at most 45 per second, in
    order of time. Both are interpolated between frames and bins."""
    from scipy.ndimage import maximum_filter

    strength, hertz, seconds = spectrogram(wave, rate)
    top = maximum_filter(strength, (9, 7), mode="constant", cval=-1e9)
    frame, bin = np.nonzero((strength == top) & (strength > strength.max() - DYNAMIC_RANGE))
    last_frame, last_bin = strength.shape[0] - 1, strength.shape[1] - 1
    inside = (frame > 0) & (frame < last_frame) & (bin > 0) & (bin < last_bin)
    frame, bin = frame[inside], bin[inside]
    keep = _strongest(frame, strength[frame, bin], seconds)
    frame, bin = frame[keep], bin[keep]
    around = [strength[frame, bin + d] for d in (-1, 0, 1)]
    pitch = 12 * np.log2((hertz[0] + (bin + _summit(*around)) * (hertz[1] - hertz[0])) / LOWEST)
    neighbours = [strength[frame + d, bin] for d in (-1, 0, 1)]
    return np.stack([frame + _summit(*neighbours), pitch], 1).astype(np.float32)


def spectrogram(
    wave: Float[np.ndarray, " n"], rate: int
) -> tuple[Float[np.ndarray, "f b"], Float[np.ndarray, " b"], float]:
    """Return the strength (dB) of a mono clip's frequencies from 180 to 5500 Hz, frame by frame, these frequencies (Hz)
    and the seconds between frames. A clip at less than 16 kHz ends at 4 kHz."""
    wave, rate = resample(np.ascontiguousarray(wave, np.float32), rate)
    window, hop = WINDOW * rate // RATE, HOP * rate // RATE
    wave = np.pad(wave, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wave, window)[::hop]
    taper = np.hanning(window).astype(np.float32)
    step = rate / window
    low, high = int(LOWEST / step), min(int(HIGHEST / step), window // 2 - 1)
    strength = np.empty((len(frames), high - low), np.float32)
    for start in range(0, len(frames), 1024):  # half an hour's windows would fill 400 MB
        power = np.abs(np.fft.rfft(frames[start : start + 1024] * taper)[:, low:high])
        strength[start : start + 1024] = 20 * np.log10(np.maximum(power, 1e-6))
    return strength, np.arange(low, high) * step, hop / rate


def _strongest(frame: np.ndarray, strength: np.ndarray, seconds: float) -> np.ndarray:
    """Return the indices of the strongest peaks of each half second, in order."""
    part = (frame * seconds * 2).astype(int)
    order = np.lexsort((-strength, part))
    rank = np.arange(len(order)) - np.searchsorted(part[order], part[order])
    return np.sort(order[rank < PEAKS_PER_SECOND // 2])


def _summit(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the position, between -0.5 and 0.5, of the vertex of a parabola through three points."""
    return np.clip((left - right) / (2 * np.minimum(left - 2 * middle + right, -1e-6)), -0.5, 0.5)


def landmarks(wave: Float[np.ndarray, " n"], rate: int) -> Float[np.ndarray, "l 4"]:
    """Return (frame, pitch, step, gap) of each pair of neighbouring peaks: time and pitch of the first, semitones up
    and frames later to the second."""
    all_peaks = peaks(wave, rate)
    pairs: list[np.ndarray] = []
    for i, (frame, pitch) in enumerate(all_peaks):
        later = all_peaks[i + 1 : i + 1 + 4 * PEAKS_PER_SECOND]
        gap, step = later[:, 0] - frame, later[:, 1] - pitch
        partners = np.flatnonzero(
            (gap >= TARGET_ZONE[0]) & (gap <= TARGET_ZONE[1]) & (np.abs(step) <= MAX_SEMITONES)
        )
        partners = partners[
            np.argsort(gap[partners] + 2 * np.abs(step[partners]), kind="stable")[:FAN_OUT]
        ]
        pair = np.empty((len(partners), 4), np.float32)
        pair[:, :2], pair[:, 2], pair[:, 3] = (frame, pitch), step[partners], gap[partners]
        pairs.append(pair)
    return np.concatenate(pairs) if pairs else np.empty((0, 4), np.float32)


def keys(
    pairs: Float[np.ndarray, "l 4"], semitones: float = 0.0, tempo: float = 1.0
) -> UInt32[np.ndarray, " l"]:
    """Return a number for each landmark, equal for landmarks of the same sound, after raising it by `semitones` and
    playing it `tempo` times as fast."""
    pitch = np.clip(np.round((pairs[:, 1] + semitones) / PITCH), 0, 127)
    step = np.round(pairs[:, 2] / STEP) + 32
    gap = np.round(pairs[:, 3] / tempo / GAP)
    return ((pitch * 64 + step) * 64 + gap).astype(np.uint32)
