"""An index of audio clips that finds copies: louder, noisier, cut out of or pasted into others, higher or faster.

>>> known = AudioFingerprintIndex.of([(wave, 16000)])
>>> known.find(louder_and_two_semitones_higher, 16000)
[Match(item=0, score=0.31, landmarks=210, semitones=2.0, tempo=1.0, seconds=1.5, cover=1.0)]

The landmarks of a clip are looked up unchanged and as they would be up to 2.5 semitones higher or lower, or up to 15 %
faster or slower; landmarks found in the same item at the same distance in time vote for it.

A synthetic voice says the same words with the same sound: a quarter of the sentences that share a third of their words
with an item match it falsely, and so does a fifth of an item's sentences spoken by a similar voice of the same engine
(benchmarks/leaks.py). Other sentences of the same voices did not match, all 180.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polyphi.processing.audio import RATE
from polyphi_recipe.curate.landmarks import HOP, keys, landmarks

SHIFTS = [s / 2 for s in range(-5, 6)]  # semitones
VARIANTS = sorted(
    {(s, 1.0) for s in SHIFTS}  # pitch alone
    | {(s, 2 ** (s / 12)) for s in SHIFTS}  # played faster: pitch and tempo
    | {(0.0, t) for t in (0.86, 0.9, 0.95, 1.05, 1.1, 1.15)},  # tempo alone
    key=lambda v: (v != (0.0, 1.0), v),
)
"""(semitones, tempo) changes that are tried; the unchanged clip first."""
LAG_TOLERANCE = 4.0
"""Frames (64 ms) within which votes agree."""
MIN_MATCHES = 36
"""Landmarks that must agree."""
MIN_MATCH_RATIO = 0.10
"""Share of the landmarks, of the item or of the clip, whichever has fewer, that must agree."""
MIN_COVERAGE = 0.6
"""Share of the time, of the item or of the clip, whichever is shorter, in which they must lie."""


class Match(NamedTuple):
    """The item (its number), the share of landmarks that agree and their number, how the clip was changed, and where it
    begins in the item, in seconds."""

    item: int
    score: float
    landmarks: int
    semitones: float
    tempo: float
    seconds: float
    cover: float

    def evidence(self) -> dict[str, float]:
        """Return all fields except `item` and `score`."""
        return {k: v for k, v in self._asdict().items() if k not in ("item", "score")}


@dataclass(frozen=True)
class AudioFingerprintIndex:
    """An index of audio clips: landmarks by key (sorted), the item of each and its frame there; `counts` are the
    landmarks of each item, `frames` its length."""

    keys: np.ndarray
    items: np.ndarray
    times: np.ndarray
    counts: np.ndarray
    frames: np.ndarray

    @classmethod
    def of(cls, clips: Iterable[tuple[Float[np.ndarray, " n"], int]]) -> "AudioFingerprintIndex":
        """Build an index from (samples, rate in Hz); an item's number is its position."""
        return cls._of([landmarks(*clip) for clip in clips])

    @classmethod
    def joined(cls, parts: Sequence["AudioFingerprintIndex"]) -> "AudioFingerprintIndex":
        """Concatenate several indices and their items."""
        first = np.cumsum([0, *(len(p.counts) for p in parts)])
        own, items, times, counts, frames = (
            np.concatenate(
                [np.asarray(getattr(p, f.name)) for p in parts] or [np.zeros(0, np.int32)]
            )
            for f in fields(cls)
        )
        items = items + np.repeat(first[:-1], [len(p.items) for p in parts])
        order = np.argsort(own, kind="stable")
        return cls(own[order], items[order].astype(np.int32), times[order], counts, frames)

    @classmethod
    def _of(cls, per_clip: list[np.ndarray]) -> "AudioFingerprintIndex":
        counts = np.array([len(f) for f in per_clip], np.int32)
        both = np.concatenate(per_clip) if per_clip else np.zeros((0, 4), np.float32)
        own = keys(both)
        order = np.argsort(own, kind="stable")
        items = np.repeat(np.arange(len(per_clip)), counts).astype(np.int32)
        ends = np.array([f[:, 0].max(initial=0) - f[:, 0].min(initial=1e9) for f in per_clip])
        return cls(
            own[order], items[order], both[order, 0], counts, np.maximum(ends, 1).astype(np.float32)
        )

    def find(self, wave: Float[np.ndarray, " n"], rate: int) -> list[Match]:
        """Return every indexed clip of which this one has a copy, the best variant of each."""
        own = landmarks(wave, rate)
        if len(own) < MIN_MATCHES or not len(self.keys):
            return []
        best: dict[int, Match] = {}
        for semitones, tempo in VARIANTS:
            for match in self._votes(own, semitones, tempo):
                if match.item not in best or match.score > best[match.item].score:
                    best[match.item] = match
            if best and tempo == 1.0 and semitones == 0.0:
                break  # an unchanged copy needs no other variant
        return sorted(best.values())

    def _votes(self, own: np.ndarray, semitones: float, tempo: float) -> list[Match]:
        query = keys(own, -semitones, 1 / tempo)
        first = np.searchsorted(self.keys, query, "left")
        count = np.searchsorted(self.keys, query, "right") - first
        own_index = np.repeat(np.arange(len(own)), count)  # number of the query's landmark
        index = (
            np.arange(len(own_index))
            - np.repeat(np.cumsum(count) - count, count)
            + first[own_index]
        )
        item, time = self.items[index], self.times[index]
        lag = np.floor((time - own[own_index, 0] * tempo) / LAG_TOLERANCE).astype(np.int64)
        vote = item.astype(np.int64) * (1 << 32) + lag + (1 << 31)
        unique, votes = np.unique(vote, return_counts=True)
        adjacent = np.flatnonzero(np.diff(unique) == 1)
        both = votes.copy()  # votes on the boundary between two lags count for the lower one
        both[adjacent] += votes[adjacent + 1]
        matches = []
        for i in np.flatnonzero(both >= MIN_MATCHES):
            number, start = divmod(int(unique[i]), 1 << 32)
            agree = np.flatnonzero((vote == unique[i]) | (vote == unique[i] + 1))
            own_agreeing, item_agreeing = np.unique(own_index[agree]), np.unique(index[agree])
            agreeing = min(len(own_agreeing), len(item_agreeing))
            length = min(float(self.frames[number]), float(np.ptp(own[:, 0]) * tempo))
            parts = np.unique(self.times[item_agreeing] // 16)  # quarters of a second
            cover = min(1.0, len(parts) * 16 / max(length, 16))
            share = agreeing / min(len(own), int(self.counts[number]))
            if agreeing >= MIN_MATCHES and share >= MIN_MATCH_RATIO and cover >= MIN_COVERAGE:
                seconds = max(0.0, (start - (1 << 31)) * LAG_TOLERANCE * HOP / RATE)
                matches.append(
                    Match(
                        number,
                        round(share, 3),
                        agreeing,
                        semitones,
                        round(tempo, 3),
                        round(seconds, 2),
                        round(cover, 2),
                    )
                )
        return matches
