"""Texts that are known, and what of a text was taken from them: word for word, or in other words.

>>> known = Texts.of([("Natalia sold clips to 48 of her friends in April, and then she ...", False)])
>>> known.find("... and then ...")
[Match(item=0, how="quoted", score=1.0, span="natalia sold clips to 48 of her friends in april and then she")]

Word for word: a run of 13 words in common (GPT-3, appendix C; Phi-3 and others since). Items of 8 to 12 words must be
there whole; those of fewer words must be the whole text, because "What is this?" in the middle of one means nothing.
Chinese and Japanese count characters, two for a word: 26, and 16.

In other words: of the item's content (its longer words and numbers, each alone and with the next two, in either order)
at least half lies within a stretch twice as long as the item. Each shingle counts as one, and again by how few items
have it: both shares must reach a half, so that neither a template's words nor two rare ones are enough. Only items of
13 words, seven different ones of content among them: short questions about different things may have half of their
words in common.

A run or shingle found in more than ten items is a template and speaks for none of them.
Up to ten items of a template can't be told from it: its other instances, with other numbers, are found reworded too
(95 % of them in benchmarks/leaks.py; `drop=False` marks them instead). Synonyms for 45 % of the words are not seen
through (6 % found), for 30 % mostly (70 %), for 15 % nearly always (95 %).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polyphi.text.shingles import all_ngrams, content, hashes, ngrams, pairs, tokens, unspaced

WORDS, FEWEST = 13, 8
"""Words of a run that gives an item away, and of the shortest item that a run can give away."""
WITH_MEDIA = 25
"""Words from which the text of an item with pictures or clips speaks for it: below, it is a question like any other."""
CONTENT = 7
"""Different content words from which an item can be known again in other words."""
COMMON = 10
"""Items that may share a run or a shingle."""
HALF = 0.5
"""Share of an item's content from which a text says the same in other words."""


class Match(NamedTuple):
    """Which item (by number), how ("quoted" or "reworded"), how surely (0 to 1), and the words that show it."""

    item: int
    how: str
    score: float
    span: str


@dataclass(frozen=True)
class Texts:
    """An index of texts, as arrays. `runs`, sorted, are hashes of `run_words` words each, from item `run_items`; runs
    of 0 words stand for whole texts. Shingle `i` is `shingles[i]` (sorted), found in `common[i]` items; the shingles
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
    def of(cls, texts: Iterable[tuple[str, bool]]) -> "Texts":
        """From (text, whether media belong to it); an item's number is its place in the row."""
        runs: list[np.ndarray] = []
        words: list[int] = []
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        for text, media in texts:
            said = tokens(text)
            unit = 2 if unspaced(said) else 1
            n = min(WORDS * unit, len(said))
            if not said or (media and len(said) < WITH_MEDIA * unit):
                n, said = 0, []
            elif n < FEWEST * unit:
                n = 0
            hashed = hashes(said)
            runs.append(np.unique(ngrams(hashed, n or len(said)))[: len(said)])
            words.append(n)
            stems = content(said)[0] if n == WORDS * unit else []
            if len(set(stems)) < CONTENT:
                stems = []
            parts.append(np.setdiff1d(pairs(hashes(stems)), [0]))
            lengths.append(len(stems))
        run_items = np.repeat(np.arange(len(runs)), [len(r) for r in runs])
        run_words = np.repeat(words, [len(r) for r in runs])
        flat = _joined(runs)
        order = np.lexsort((run_items, run_words, flat))
        flat, run_words, run_items = flat[order], run_words[order], run_items[order]
        _, back, count = np.unique(flat, return_inverse=True, return_counts=True)
        rare = count[back] <= COMMON if len(flat) else np.zeros(0, bool)
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
        """Every item of which the text has a part, the surest evidence of each; word for word alone, if it shall."""
        said = tokens(text)
        if not said:
            return []
        quoted = self._quoted(said)
        found = {m.item for m in quoted}
        others = self._reworded(said) if reworded else []
        return quoted + [m for m in others if m.item not in found]

    def _quoted(self, said: Sequence[str]) -> list[Match]:
        seen: dict[int, tuple[int, int]] = {}
        lengths = [n for n in self._sizes if n <= len(said)]
        runs = all_ngrams(hashes(said), {n or len(said) for n in lengths})
        for n in lengths:
            size = n or len(said)
            mine = runs[size]
            at = np.searchsorted(self.runs, mine)
            for place in np.flatnonzero(self.runs[np.minimum(at, len(self.runs) - 1)] == mine):
                run = at[place]
                while run < len(self.runs) and self.runs[run] == mine[place]:
                    if self.run_words[run] == n:
                        item = int(self.run_items[run])
                        first, last = seen.get(item, (int(place), int(place) + size))
                        if place <= last:  # a longer run goes on; one further down is left out
                            last = max(last, int(place) + size)
                        seen[item] = (first, last)
                    run += 1
        return [
            Match(item, "quoted", 1.0, " ".join(said[first : min(last, first + 60)]))
            for item, (first, last) in sorted(seen.items())
        ]

    def _reworded(self, said: Sequence[str]) -> list[Match]:
        if not len(self.shingles):
            return []
        stems, where = content(said)
        mine = pairs(hashes(stems))  # [stems, 3]
        at = np.minimum(np.searchsorted(self.shingles, mine), len(self.shingles) - 1)
        ids = np.where(self.shingles[at] == mine, at, -1)  # [stems, 3]
        found = []
        for item in self._candidates(np.unique(ids[ids >= 0])):
            score, start, end = self._stretch(item, ids)
            if score >= HALF:
                first, last = where[start], where[min(end, len(where)) - 1] + 1
                span = " ".join(said[first : min(last, first + 60)])
                found.append(Match(item, "reworded", round(score, 3), span))
        return found

    @cached_property
    def _owners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(items of each shingle, one shingle after another; where each begins; the weight of all of each item)."""
        items = np.repeat(np.arange(len(self.lengths), dtype=np.int32), np.diff(self.starts))
        weights = np.bincount(items, 1 / self.common[self.parts], len(self.lengths))
        first = np.cumsum(self.common) - self.common
        return items[np.argsort(self.parts, kind="stable")], first, weights

    def _candidates(self, there: np.ndarray) -> list[int]:
        """Items of which enough is somewhere in a text that has the shingles `there`."""
        owners, first, total = self._owners
        count = self.common[there]
        ends = np.cumsum(count)
        item = owners[np.arange(count.sum()) + np.repeat(first[there] - ends + count, count)]
        shared = np.repeat(count, count)
        have, many, rare = (
            np.bincount(item, weights, len(total))
            for weights in (1 / shared, None, shared <= COMMON)
        )
        enough = (have >= HALF * total) & (many >= HALF * np.diff(self.starts)) & (rare > 0)
        return np.flatnonzero(enough).tolist()

    def _stretch(self, item: int, ids: np.ndarray) -> tuple[float, int, int]:
        """(the score of an item, first and last content word) where a text says most of it."""
        own = self.parts[self.starts[item] : self.starts[item + 1]]
        weight = 1 / self.common[own]
        size = 2 * int(self.lengths[item]) + 4
        hit = np.isin(ids, own)
        sums = np.concatenate([[0], np.cumsum(hit.sum(1))])
        starts = np.arange(0, max(1, len(ids) - size // 2), max(1, size // 8))
        ends = np.minimum(starts + size, len(ids))
        best = (0.0, 0, 1)
        for i in np.flatnonzero(sums[ends] - sums[starts] >= HALF * len(own)):
            there = np.isin(own, ids[starts[i] : ends[i]])
            score = min(float(weight[there].sum() / weight.sum()), float(there.mean()))
            if score > best[0]:
                best = (score, int(starts[i]), int(ends[i]))
        return best


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.uint64)
