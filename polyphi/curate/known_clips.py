"""Clips that are known, and copies of them: louder, noisier, cut out of or pasted into others, higher or faster.

>>> known = Clips.of([(wave, 16000)])
>>> known.find(louder_and_two_semitones_higher, 16000)
[Match(item=0, score=0.31, landmarks=210, semitones=2.0, tempo=1.0, seconds=1.5, cover=1.0)]

Landmarks of a clip are looked up as they are and as they would be up to 2.5 semitones higher or lower, played faster or
slower by up to 15 %; those that are found in the same item, with the same distance in time, vote for it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polyphi.curate.landmarks import HOP, keys, landmarks
from polyphi.processing.audio import RATE

SHIFTS = [s / 2 for s in range(-5, 6)]  # semitones
VARIANTS = sorted(
    {(s, 1.0) for s in SHIFTS}  # pitch alone
    | {(s, 2 ** (s / 12)) for s in SHIFTS}  # played faster: pitch and tempo
    | {(0.0, t) for t in (0.86, 0.9, 0.95, 1.05, 1.1, 1.15)},  # tempo alone
    key=lambda v: (v != (0.0, 1.0), v),
)
"""(semitones, tempo) by which a clip may have been raised and hastened; as it is, first."""
NEAR = 4.0
"""Frames (64 ms) within which votes agree."""
FEWEST = 36
"""Landmarks that must agree."""
SHARE = 0.10
"""Share of the landmarks, of the item or of the clip, whichever has fewer, that must agree."""
COVER = 0.6
"""Share of the time, of the item or of the clip, whichever is shorter, in which they must lie."""


class Match(NamedTuple):
    """Which item (by number), the share of landmarks that agree and their number, how the clip was changed, and where
    in the item it begins, in seconds."""

    item: int
    score: float
    landmarks: int
    semitones: float
    tempo: float
    seconds: float
    cover: float

    def evidence(self) -> dict[str, float]:
        """All but who and how much."""
        return {k: v for k, v in self._asdict().items() if k not in ("item", "score")}


@dataclass(frozen=True)
class Clips:
    """An index of clips: landmarks by key (sorted), the item each belongs to, and its frame there; `counts` are the
    landmarks of each item, `frames` its length."""

    keys: np.ndarray
    items: np.ndarray
    times: np.ndarray
    counts: np.ndarray
    frames: np.ndarray

    @classmethod
    def of(cls, clips: Iterable[tuple[Float[np.ndarray, " n"], int]]) -> "Clips":
        """From (samples, rate in Hz); an item's number is its place in the row."""
        return cls._of([landmarks(*clip) for clip in clips])

    @classmethod
    def joined(cls, parts: Sequence["Clips"]) -> "Clips":
        """Several indices as one, their items one after another."""
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
    def _of(cls, found: list[np.ndarray]) -> "Clips":
        counts = np.array([len(f) for f in found], np.int32)
        both = np.concatenate(found) if found else np.zeros((0, 4), np.float32)
        own = keys(both)
        order = np.argsort(own, kind="stable")
        items = np.repeat(np.arange(len(found)), counts).astype(np.int32)
        ends = np.array([f[:, 0].max(initial=0) - f[:, 0].min(initial=1e9) for f in found])
        return cls(
            own[order], items[order], both[order, 0], counts, np.maximum(ends, 1).astype(np.float32)
        )

    def find(self, wave: Float[np.ndarray, " n"], rate: int) -> list[Match]:
        """Every known clip of which this one has a copy, the best variant of each."""
        mine = landmarks(wave, rate)
        if len(mine) < FEWEST or not len(self.keys):
            return []
        best: dict[int, Match] = {}
        for semitones, tempo in VARIANTS:
            for match in self._votes(mine, semitones, tempo):
                if match.item not in best or match.score > best[match.item].score:
                    best[match.item] = match
            if best and tempo == 1.0 and semitones == 0.0:
                break  # a copy as it is needs no other variant
        return sorted(best.values())

    def _votes(self, mine: np.ndarray, semitones: float, tempo: float) -> list[Match]:
        asked = keys(mine, -semitones, 1 / tempo)
        first = np.searchsorted(self.keys, asked, "left")
        count = np.searchsorted(self.keys, asked, "right") - first
        who = np.repeat(np.arange(len(mine)), count)  # number of our landmark
        place = np.arange(len(who)) - np.repeat(np.cumsum(count) - count, count) + first[who]
        item, time = self.items[place], self.times[place]
        lag = np.floor((time - mine[who, 0] * tempo) / NEAR).astype(np.int64)
        vote = item.astype(np.int64) * (1 << 32) + lag + (1 << 31)
        unique, votes = np.unique(vote, return_counts=True)
        beside = np.flatnonzero(np.diff(unique) == 1)
        both = votes.copy()  # votes on the boundary between two lags count for the lower one
        both[beside] += votes[beside + 1]
        found = []
        for i in np.flatnonzero(both >= FEWEST):
            number, start = divmod(int(unique[i]), 1 << 32)
            agree = np.flatnonzero((vote == unique[i]) | (vote == unique[i] + 1))
            ours, theirs = np.unique(who[agree]), np.unique(place[agree])
            many = min(len(ours), len(theirs))
            length = min(float(self.frames[number]), float(np.ptp(mine[:, 0]) * tempo))
            parts = np.unique(self.times[theirs] // 16)  # quarters of a second
            cover = min(1.0, len(parts) * 16 / max(length, 16))
            share = many / min(len(mine), int(self.counts[number]))
            if many >= FEWEST and share >= SHARE and cover >= COVER:
                seconds = max(0.0, (start - (1 << 31)) * NEAR * HOP / RATE)
                found.append(
                    Match(
                        number,
                        round(share, 3),
                        many,
                        semitones,
                        round(tempo, 3),
                        round(seconds, 2),
                        round(cover, 2),
                    )
                )
        return found
