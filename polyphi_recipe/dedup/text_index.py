"""An index of texts that finds what another text took from them: word for word, or in other words.

>>> known = TextIndex.of([([("Natalia sold clips to 48 of her friends in April, and then she ...", "72")], False)])
>>> known.find("... and then ...")
[Match(item=0, how="quoted", score=1.0, span="natalia sold clips to 48 of her friends in april and then she")]

"quoted": a run of 13 words in common (GPT-3, appendix C; Phi-3 and others since). Items of 8 to 12 words must occur
whole; those of fewer words must be the whole text, because "What is this?" inside a text proves nothing. Chinese and
Japanese count characters, two per word: 26, and 16. Rows of one corpus share greetings and questions, so of a
conversation only the exchange with the most words is searched for word for word, and of an item with media its answer.

"reworded": at least half of the item's content (its longer words and numbers, each alone and with the next two, in
either order) lies within a stretch twice as long as the item. Each shingle counts as one, and again weighted by how few
items have it: both shares must reach a half, so that neither a template's words nor two rare ones are enough. Applies
to items of at least 13 words with seven different content words: short questions about different things may have half
of their words in common.

A run or shingle that occurs in more than ten items belongs to a template and is ignored. Up to ten items of a template
can't be distinguished from it: its other instances, with other numbers, are found as reworded (95 % of them in
experiments/curation/leaked_items.py; `drop=False` marks them instead). Copies with synonyms for 45 % of the words are
rarely found (6 %), for 30 % mostly (70 %), for 15 % nearly always (95 %).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polyphi_recipe.dedup.shingles import (
    all_ngrams,
    content,
    hashes,
    ngrams,
    pairs,
    tokens,
    unspaced,
)

NGRAM_WORDS, MIN_WORDS = 13, 8
"""Words of a run that identifies an item, and of the shortest item that a run can identify."""
MIN_WORDS_WITH_MEDIA = 25
"""Words from which the text of an item with media identifies it: a shorter text is a common question."""
MIN_CONTENT_WORDS = 7
"""Different content words from which an item is searched for in other words."""
MAX_SHARING_ITEMS = 10
"""Items that may share a run or a shingle."""
MIN_OVERLAP = 0.5
"""Share of an item's content from which a text is a rewording of it."""


Exchange = tuple[str, str]
"""A user's text and the answer, either of which may be empty."""


class Match(NamedTuple):
    """The item (its number), how it matches ("quoted" or "reworded"), a score (0 to 1), and the words that match."""

    item: int
    how: str
    score: float
    span: str


@dataclass(frozen=True)
class TextIndex:
    """An index of texts, as arrays. `runs`, sorted, are hashes of `run_words` words each, from item `run_items`; runs
    of 0 words are whole texts. Shingle `i` is `shingles[i]` (sorted), found in `common[i]` items; the shingles
    of item k are `parts[starts[k] : starts[k + 1]]`, and `lengths[k]` is its number of content words."""

    runs: np.ndarray
    run_words: np.ndarray
    run_items: np.ndarray
    shingles: np.ndarray
    common: np.ndarray
    starts: np.ndarray
    parts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, items: Iterable[tuple[Sequence[Exchange], bool]]) -> "TextIndex":
        """Build an index from (exchanges, whether media belong to them); an item's number is its position."""
        runs: list[np.ndarray] = []
        words: list[int] = []
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        for exchanges, media in items:
            item_words = tokens("\n".join(text for exchange in exchanges for text in exchange))
            unit = 2 if unspaced(item_words) else 1
            if media and len(item_words) < MIN_WORDS_WITH_MEDIA * unit:
                item_words = []
            own = max((_own_words(one, media) for one in exchanges), key=len, default=[])
            n = min(NGRAM_WORDS * unit, len(own))
            if not item_words or (media and n < NGRAM_WORDS * unit):
                n, own = 0, []
            elif n < MIN_WORDS * unit:
                n, own = 0, item_words
            runs.append(np.unique(ngrams(hashes(own), n or len(own)))[: len(own)])
            words.append(n)
            stems = content(item_words)[0] if len(item_words) >= NGRAM_WORDS * unit else []
            if len(set(stems)) < MIN_CONTENT_WORDS:
                stems = []
            parts.append(np.setdiff1d(pairs(hashes(stems)), [0]))
            lengths.append(len(stems))
        run_items = np.repeat(np.arange(len(runs)), [len(r) for r in runs])
        run_words = np.repeat(words, [len(r) for r in runs])
        flat = _joined(runs)
        order = np.lexsort((run_items, run_words, flat))
        flat, run_words, run_items = flat[order], run_words[order], run_items[order]
        _, back, count = np.unique(flat, return_inverse=True, return_counts=True)
        rare = count[back] <= MAX_SHARING_ITEMS if len(flat) else np.zeros(0, bool)
        shingles, ids, common = np.unique(_joined(parts), return_inverse=True, return_counts=True)
        return cls(
            flat[rare],
            run_words[rare].astype(np.int32),
            run_items[rare].astype(np.int32),
            shingles,
            common.astype(np.int32),
            np.cumsum([0, *(len(p) for p in parts)]).astype(np.int64),
            ids.astype(np.int32),
            np.array(lengths, np.int32),
        )

    @cached_property
    def _sizes(self) -> list[int]:
        return np.unique(self.run_words).tolist()

    def find(self, text: str, reworded: bool = True) -> list[Match]:
        """Return every item of which the text has a part, the best evidence of each; rewordings only if `reworded`."""
        words = tokens(text)
        if not words:
            return []
        quoted = self._quoted(words)
        quoted_items = {m.item for m in quoted}
        others = self._reworded(words) if reworded else []
        return quoted + [m for m in others if m.item not in quoted_items]

    def _quoted(self, words: Sequence[str]) -> list[Match]:
        spans: dict[int, tuple[int, int]] = {}
        lengths = [n for n in self._sizes if n <= len(words)]
        runs = all_ngrams(hashes(words), {n or len(words) for n in lengths})
        for n in lengths:
            size = n or len(words)
            own = runs[size]
            at = np.searchsorted(self.runs, own)
            for position in np.flatnonzero(self.runs[np.minimum(at, len(self.runs) - 1)] == own):
                run = at[position]
                while run < len(self.runs) and self.runs[run] == own[position]:
                    if self.run_words[run] == n:
                        item = int(self.run_items[run])
                        first, last = spans.get(item, (int(position), int(position) + size))
                        if position <= last:  # a longer run continues; one further down is left out
                            last = max(last, int(position) + size)
                        spans[item] = (first, last)
                    run += 1
        return [
            Match(item, "quoted", 1.0, " ".join(words[first : min(last, first + 60)]))
            for item, (first, last) in sorted(spans.items())
        ]

    def _reworded(self, words: Sequence[str]) -> list[Match]:
        if not len(self.shingles):
            return []
        stems, positions = content(words)
        own = pairs(hashes(stems))  # [stems, 3]
        at = np.minimum(np.searchsorted(self.shingles, own), len(self.shingles) - 1)
        ids = np.where(self.shingles[at] == own, at, -1)  # [stems, 3]
        matches = []
        for item in self._candidates(np.unique(ids[ids >= 0])):
            score, start, end = self._stretch(item, ids)
            if score >= MIN_OVERLAP:
                first, last = positions[start], positions[min(end, len(positions)) - 1] + 1
                span = " ".join(words[first : min(last, first + 60)])
                matches.append(Match(item, "reworded", round(score, 3), span))
        return matches

    @cached_property
    def _owners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(items of each shingle, one shingle after another; the start of each; the total weight of each item)."""
        items = np.repeat(np.arange(len(self.lengths), dtype=np.int32), np.diff(self.starts))
        weights = np.bincount(items, 1 / self.common[self.parts], len(self.lengths))
        first = np.cumsum(self.common) - self.common
        return items[np.argsort(self.parts, kind="stable")], first, weights

    def _candidates(self, present: np.ndarray) -> list[int]:
        """Return the items of which enough occurs in a text with the shingles `present`."""
        owners, first, total = self._owners
        count = self.common[present]
        ends = np.cumsum(count)
        item = owners[np.arange(count.sum()) + np.repeat(first[present] - ends + count, count)]
        shared = np.repeat(count, count)
        weight, number, rare = (
            np.bincount(item, weights, len(total))
            for weights in (1 / shared, None, shared <= MAX_SHARING_ITEMS)
        )
        enough = (
            (weight >= MIN_OVERLAP * total)
            & (number >= MIN_OVERLAP * np.diff(self.starts))
            & (rare > 0)
        )
        return np.flatnonzero(enough).tolist()

    def _stretch(self, item: int, ids: np.ndarray) -> tuple[float, int, int]:
        """Return (the best score of an item, first and last content word of that stretch of the text)."""
        own = self.parts[self.starts[item] : self.starts[item + 1]]
        weight = 1 / self.common[own]
        size = 2 * int(self.lengths[item]) + 4
        hit = np.isin(ids, own)
        sums = np.concatenate([[0], np.cumsum(hit.sum(1))])
        starts = np.arange(0, max(1, len(ids) - size // 2), max(1, size // 8))
        ends = np.minimum(starts + size, len(ids))
        best = (0.0, 0, 1)
        for i in np.flatnonzero(sums[ends] - sums[starts] >= MIN_OVERLAP * len(own)):
            present = np.isin(own, ids[starts[i] : ends[i]])
            score = min(float(weight[present].sum() / weight.sum()), float(present.mean()))
            if score > best[0]:
                best = (score, int(starts[i]), int(ends[i]))
        return best


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.uint64)


def _own_words(exchange: Exchange, media: bool) -> list[str]:
    """The words of an exchange that identify it: with media those of its answer, if it has one."""
    question, answer = exchange
    return tokens(answer if media and answer else f"{question}\n{answer}")
