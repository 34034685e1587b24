"""Time-aligned comparison of two audio clips, which tells a copy from another sentence of the same template.

>>> tempo, offset = align(query_frames, item_frames, tempo=1.0)      # from landmarks that both clips have
>>> agreement(bands(item, 16000), bands(query, 16000), tempo, offset, semitones=0.0)
0.97

A copy agrees with its original from the first to the last frame that both have. Two sentences of one voice and template
("room 14", "room 40") agree in all but a fraction of a second, so the windows of a quarter of a second are compared one
by one, and the worst decides. Quiet frames and frequencies that a codec or a line removed are no evidence.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from polyphi_recipe.dedup.landmarks import HIGHEST, LOWEST, spectrogram

BANDS_PER_SEMITONE = 2
BANDS = int(12 * np.log2(HIGHEST / LOWEST) * BANDS_PER_SEMITONE)
STEP = 0.5
"""dB of a unit of `bands`."""
WINDOW = 16
"""Frames of a window: 256 ms, less than most syllables with their neighbours."""
DYNAMIC_RANGE = 45.0
"""dB below the loudest band of an item below which it counts as silence."""
AUDIBLE = 6.0
"""dB above silence, and above its noise, that make a frame evidence."""
MISSING_BAND = 50.0
"""dB below the loudest band at which a clip lacks a band altogether (telephone lines, low bit rates)."""
MAX_OFFSET = 16.0
"""Frames from the line of votes at most at which landmarks decide about the alignment."""


def bands(wave: Float[np.ndarray, " n"], rate: int) -> UInt8[np.ndarray, "f b"]:
    """Return the strength of a mono clip in bands of half a semitone from 180 to 5500 Hz, in steps of 0.5 dB; the
    loudest is 255."""
    strength, hertz, _ = spectrogram(wave, rate)
    power = np.power(np.float32(10), strength / 10) @ _weights(len(hertz), float(hertz[0]))
    decibels = 10 * np.log10(np.maximum(power, 1e-9))
    return np.clip(np.round((decibels - decibels.max()) / STEP) + 255, 0, 255).astype(np.uint8)


@cache
def _weights(count: int, lowest: float) -> Float[np.ndarray, "c b"]:
    """Return the share of each frequency of a spectrogram in each band: triangles as wide as a semitone, at low
    frequencies as two steps of the spectrogram."""
    step = 1000 / 64  # Hz, of windows of 64 ms
    hertz = lowest + step * np.arange(count)
    centres = LOWEST * 2 ** (np.arange(BANDS) / (12 * BANDS_PER_SEMITONE))
    width = np.maximum(step, centres * (2 ** (1 / 12) - 1))
    weights = np.maximum(0, 1 - np.abs(hertz[:, None] - centres) / width)
    return (weights / np.maximum(weights.sum(0), 1e-9)).astype(np.float32)


def align(
    query: Float[np.ndarray, " l"], item: Float[np.ndarray, " l"], tempo: float
) -> tuple[float, float]:
    """Return (tempo, offset) of the line item = tempo * query + offset that most landmarks lie on. Given are their
    frames in the two clips, also of some that agree by chance, and the tempo within 8 %."""
    lines = []
    for slope in tempo * np.arange(0.92, 1.085, 0.01):
        frames = np.round(item - slope * query).astype(int)
        votes = np.convolve(np.bincount(frames - frames.min()), [1, 1, 1], "same")
        lines.append(_fit(query, item, float(slope), float(votes.argmax() + frames.min())))
    return max(lines)[1:]


def _fit(
    query: np.ndarray, item: np.ndarray, tempo: float, offset: float
) -> tuple[int, float, float]:
    """Return the number of landmarks within half a frame of a line, and the line after least squares over those that
    are near it."""
    for tolerance in (2.0, 1.5, 1.0, 0.7, 0.7):
        near = np.abs(item - tempo * query - offset) <= tolerance
        if near.sum() < 12 or np.ptp(query[near]) < 40:
            break
        slope, start = np.polyfit(query[near], item[near], 1)
        if abs(slope - tempo) < 0.01:
            tempo, offset = float(slope), float(start)
    return int((np.abs(item - tempo * query - offset) <= 0.5).sum()), tempo, offset


def agreement(
    item: UInt8[np.ndarray, "f b"],
    query: UInt8[np.ndarray, "g b"],
    tempo: float,
    offset: float,
    semitones: float,
) -> float:
    """Return the correlation of two clips' bands in their worst window, -1 to 1, where frame x of `query` lies at
    `tempo` * x + `offset` of `item` and is higher by about `semitones`. 0 if they have no window in common."""
    at = (np.arange(len(item)) - offset) / tempo
    inside = (at >= 0) & (at < len(query) - 1)
    if inside.sum() < WINDOW:
        return 0.0
    first, share = np.divmod(at[inside], 1)
    low = first.astype(int)
    ours = STEP * item[inside].astype(np.float32)
    theirs = STEP * _between(query[low], query[low + 1], share[:, None].astype(np.float32))
    # The trial shifts of the landmarks are half a semitone apart.
    shifts = BANDS_PER_SEMITONE * (semitones + np.arange(-0.75, 0.8, 0.25))
    return _worst_window(*max((_shifted(ours, theirs, s) for s in shifts), key=_similarity))


def _between(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    return (1 - share) * one.astype(np.float32) + share * other.astype(np.float32)


def _shifted(ours: np.ndarray, theirs: np.ndarray, by: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the bands that both have when `theirs` is moved down by `by` bands."""
    at = np.arange(BANDS) + by
    inside = (at >= 0) & (at < BANDS - 1)
    first, share = np.divmod(at[inside], 1)
    low = first.astype(int)
    return ours[:, inside], _between(theirs[:, low], theirs[:, low + 1], share.astype(np.float32))


def _similarity(pair: tuple[np.ndarray, np.ndarray]) -> float:
    ours, theirs = (np.maximum(x, x.max() - DYNAMIC_RANGE).ravel() for x in pair)
    spread = ours.std() * theirs.std()
    return float(np.mean((ours - ours.mean()) * (theirs - theirs.mean())) / max(spread, 1e-6))


def _worst_window(ours: np.ndarray, theirs: np.ndarray) -> float:
    present = np.logical_and(*(x.max(0) > x.max() - MISSING_BAND for x in (ours, theirs)))
    ours, theirs = ours[:, present], theirs[:, present]
    loud = np.logical_and(*(x > x.max() - 25 for x in (ours, theirs)))
    gain = np.median((ours - theirs)[loud]) if loud.any() else ours.max() - theirs.max()
    theirs = theirs + gain
    noise = np.maximum(*(np.percentile(x, 10, axis=0) for x in (ours, theirs))) + 3
    silence = np.minimum(np.maximum(ours.max() - DYNAMIC_RANGE, noise), ours.max() - 12)
    ours, theirs = ours - silence, theirs - silence
    audible = np.logical_and(*(x.max(1) > AUDIBLE for x in (ours, theirs)))

    def windows(values: np.ndarray) -> np.ndarray:
        """Return the sum of each window's audible frames."""
        totals = np.concatenate([[0.0], np.cumsum(values * audible, dtype=np.float64)])
        return totals[WINDOW:] - totals[:-WINDOW]

    ours, theirs = np.maximum(ours, 0), np.maximum(theirs, 0)
    frames = windows(np.ones(len(ours)))
    count = np.maximum(frames * ours.shape[1], 1)
    a, b = windows(ours.sum(1)), windows(theirs.sum(1))
    both = windows((ours * theirs).sum(1)) - a * b / count
    own = (windows((x * x).sum(1)) - t * t / count for x, t in ((ours, a), (theirs, b)))
    correlation = both / np.sqrt(np.maximum(np.prod(list(own), axis=0), 1e-6))
    enough = frames >= 0.6 * WINDOW
    return float(correlation[enough].min()) if enough.any() else 0.0
