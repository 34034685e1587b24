"""An index of audio clips that finds copies: louder, noisier, cut out of or pasted into others, higher or faster.

>>> known = AudioFingerprintIndex.of([(wave, 16000)])
>>> known.find(louder_and_two_semitones_higher, 16000)
[Match(item=0, score=0.31, landmarks=210, semitones=2.0, tempo=1.0, seconds=1.5, cover=1.0, agreement=0.88)]

The landmarks of a clip are looked up unchanged and as they would be up to 2.5 semitones higher or lower, or up to 15 %
faster or slower; landmarks found in the same item at the same distance in time vote for it. A synthetic voice says the
same words with the same sound, so that sentences of one template share most landmarks: a candidate is a match only if
the two clips agree in every quarter of a second that they share (alignment.py). A part of an item that is pasted into
other speech, rather than into silence, is therefore not found. Rates of false and missed matches:
experiments/curation/audio_fingerprint.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polyphi.processing.audio import RATE
from polyphi_recipe.dedup.alignment import BANDS, MAX_OFFSET, agreement, align, bands
from polyphi_recipe.dedup.landmarks import HOP, keys, landmarks

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
"""Share of the time, of the item or of the clip, whichever is shorter, in which the landmarks that agree must lie."""
MIN_AGREEMENT = 0.84
"""Correlation with the item, in the window where it is lowest, that a copy must have: the largest limit that misses at
most a tenth of the copies at another pitch or speed on the first half of experiments/curation/audio_fingerprint.py."""
MAX_CANDIDATES = 20
"""Items with the highest scores that are compared with a clip: a template may have thousands."""


class Match(NamedTuple):
    """The item (its number), the share of landmarks that agree and their number, how the clip was changed, where it
    begins in the item, in seconds, the share of the time in which landmarks agree, and the agreement (`alignment`)."""

    item: int
    score: float
    landmarks: int
    semitones: float
    tempo: float
    seconds: float
    cover: float
    agreement: float = 0.0

    def evidence(self) -> dict[str, float]:
        """Return all fields except `item` and `score`."""
        return {k: v for k, v in self._asdict().items() if k not in ("item", "score")}


@dataclass(frozen=True)
class AudioFingerprintIndex:
    """An index of audio clips: landmarks by key (sorted), the item of each and its frame there; `counts` are the
    landmarks of each item, `frames` the time from its first to its last one. `bands` has the frames of all items, one
    after the other, and `lengths` their number in each."""

    keys: np.ndarray
    items: np.ndarray
    times: np.ndarray
    counts: np.ndarray
    frames: np.ndarray
    bands: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, clips: Iterable[tuple[Float[np.ndarray, " n"], int]]) -> "AudioFingerprintIndex":
        """Build an index from (samples, rate in Hz); an item's number is its position."""
        parts = [cls._of(*clip) for clip in clips]
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: Sequence["AudioFingerprintIndex"]) -> "AudioFingerprintIndex":
        """Concatenate several indices and their items."""
        parts = [cls._empty(), *parts]
        first = np.cumsum([0, *(len(p.counts) for p in parts)])
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        items = columns["items"] + np.repeat(first[:-1], [len(p.items) for p in parts])
        order = np.argsort(columns["keys"], kind="stable")
        sorted_columns = {
            "keys": columns["keys"][order],
            "items": items[order].astype(np.int32),
            "times": columns["times"][order],
        }
        return cls(**columns | sorted_columns)

    @classmethod
    def _empty(cls) -> "AudioFingerprintIndex":
        none = np.zeros(0, np.int32)
        times = np.zeros(0, np.float32)
        return cls(
            none.astype(np.uint32), none, times, none, times, np.zeros((0, BANDS), np.uint8), none
        )

    @classmethod
    def _of(cls, wave: Float[np.ndarray, " n"], rate: int) -> "AudioFingerprintIndex":
        """Build the index of one audio clip."""
        own, spectrum = landmarks(wave, rate), bands(wave, rate)
        return cls(
            keys(own),
            np.zeros(len(own), np.int32),
            own[:, 0],
            np.array([len(own)], np.int32),
            np.array([max(np.ptp(own[:, 0]), 1) if len(own) else 1], np.float32),
            spectrum,
            np.array([len(spectrum)], np.int32),
        )

    def find(
        self, wave: Float[np.ndarray, " n"], rate: int, min_agreement: float = MIN_AGREEMENT
    ) -> list[Match]:
        """Return every indexed clip of which the clip `wave` has a copy, the best variant of each. A `min_agreement` of
        -1 decides by landmarks alone."""
        own = landmarks(wave, rate)
        if len(own) < MIN_MATCHES or not len(self.keys):
            return []
        query: np.ndarray | None = None
        for variants in (VARIANTS[:1], VARIANTS[1:]):  # an unchanged copy needs no other variant
            best: dict[int, _Candidate] = {}
            for variant in variants:
                for candidate in self._candidates(own, *variant):
                    number = candidate.match.item
                    if number not in best or candidate.match.score > best[number].match.score:
                        best[number] = candidate
            ranked = sorted(best.values(), key=lambda c: (-c.match.score, c.match.item))
            matches = []
            for candidate in ranked[:MAX_CANDIDATES]:
                query = bands(wave, rate) if query is None else query
                match = self._compared(candidate, query)
                if match.agreement >= min_agreement:
                    matches.append(match)
            if matches:
                return sorted(matches)
        return []

    def _compared(self, candidate: "_Candidate", query: np.ndarray) -> Match:
        """Return the candidate's match with its agreement."""
        match = candidate.match
        start = int(self.lengths[: match.item].sum())
        item = self.bands[start : start + int(self.lengths[match.item])]
        tempo, offset = align(candidate.query_frames, candidate.item_frames, candidate.tempo)
        worst = agreement(item, query, tempo, offset, match.semitones)
        return match._replace(agreement=round(worst, 3))

    def _candidates(
        self, own: np.ndarray, semitones: float, tempo: float
    ) -> Iterator["_Candidate"]:
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
        distance = time - own[own_index, 0] * tempo
        lag = np.floor(distance / LAG_TOLERANCE).astype(np.int64)
        vote = item.astype(np.int64) * (1 << 32) + lag + (1 << 31)
        unique, votes = np.unique(vote, return_counts=True)
        adjacent = np.flatnonzero(np.diff(unique) == 1)
        both = votes.copy()  # votes on the boundary between two lags count for the lower one
        both[adjacent] += votes[adjacent + 1]
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
                middle = (start - (1 << 31) + 1) * LAG_TOLERANCE
                match = Match(
                    number,
                    round(share, 3),
                    agreeing,
                    semitones,
                    round(tempo, 3),
                    round(max(0.0, (middle - LAG_TOLERANCE) * HOP / RATE), 2),
                    round(cover, 2),
                )
                near = np.flatnonzero((item == number) & (np.abs(distance - middle) <= MAX_OFFSET))
                yield _Candidate(match, tempo, own[own_index[near], 0], time[near])


class _Candidate(NamedTuple):
    """A match by landmarks alone: the exact trial tempo, and the frames of the landmarks near its lag in both clips."""

    match: Match
    tempo: float
    query_frames: np.ndarray
    item_frames: np.ndarray
