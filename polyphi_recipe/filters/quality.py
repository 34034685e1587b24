"""A quality classifier per language and aspect, trained on labelled positives and negatives (report 3.1.1).

>>> quality = train(lambda: labelled(paths))           # rows {"text", "language", "aspect", "label"}, read as a stream
>>> quality.scores("Ein Dreieck hat drei Seiten.", "de")
{'educational': ..., 'scientific': ..., 'toxicity': ...}       # probabilities
>>> save(quality, folder); load(folder)                # weights.safetensors + quality.json, no pickle

An aspect is a name: the report gives "toxic, obscure, scientific, etc.". Each pair of a language and an aspect has its
logistic regression on hashed n-grams of the text: words and their pairs, in Chinese and Japanese characters, their
pairs and triples. It classifies style and subject, not truth.

    python -m polyphi_recipe.filters.quality train OUT shards/*.parquet       # or *.jsonl
    python -m polyphi_recipe.filters.quality measure OUT held_out/*.parquet --threshold 0.5
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from polyphi.runtime.rendering import environment
from polyphi.text.scripts import UNSPACED
from polyphi_recipe.filters.language import language_of
from polyphi_recipe.pipeline.documents import note
from polyphi_recipe.text.lexicon import LANGUAGES

BUCKETS = 2**16
"""Hashed n-grams: 256 KB of weights per language and aspect."""
READ = 10_000
"""Characters of a text that are read."""
BATCH, BUFFER = 256, 8192
"""Rows per training step; rows in the shuffle buffer, so that shards may be sorted by label."""
COLUMNS = ("text", "language", "aspect", "label")


@dataclass(frozen=True)
class Labelled:
    """A text and whether it has the aspect."""

    text: str
    language: str
    aspect: str
    label: bool


def labelled(paths: Iterable[Path | str]) -> Iterator[Labelled]:
    """Yield the rows of JSONL and parquet files in order, as a stream. Raises ValueError with file and row for a row
    that lacks a column or has a label other than true, false, 1 or 0."""
    for path in map(Path, paths):
        if path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"{path}: expected labelled rows in .jsonl or .parquet")
        for number, row in enumerate(_rows(path)):
            if missing := [c for c in COLUMNS if row.get(c) is None]:
                raise ValueError(f"{path}, row {number}: expected {COLUMNS}, lacks {missing}")
            if row["label"] not in (0, 1):
                raise ValueError(
                    f"{path}, row {number}: a label is true or false, found {row['label']!r}"
                )
            yield Labelled(row["text"], row["language"], row["aspect"], bool(row["label"]))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = [c for c in COLUMNS if c in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH, columns=columns):
            yield from batch.to_pylist()


@cache
def _vectorizer(dense: bool) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    if dense:
        return HashingVectorizer(n_features=BUCKETS, analyzer="char", ngram_range=(1, 3))
    return HashingVectorizer(
        n_features=BUCKETS, token_pattern=r"[^\W\d_]+|\d|[^\w\s]", ngram_range=(1, 2)
    )


def features(texts: Sequence[str], language: str) -> Any:
    """Return a sparse row of norm one for each text (scipy CSR, len(texts) x BUCKETS)."""
    if language not in LANGUAGES:
        raise ValueError(f"expected one of {', '.join(LANGUAGES)}, found language {language!r}")
    return _vectorizer(language in UNSPACED).transform([text[:READ] for text in texts])


class Classifier:
    """The quality classifier. `heads`: (language, aspect) -> weights, float32, BUCKETS + 1, the last one the bias.

    Not a dataclass: datatrove would write all weights into its JSON of the pipeline.
    """

    def __init__(self, heads: Mapping[tuple[str, str], np.ndarray]) -> None:
        self.heads = heads

    def __repr__(self) -> str:
        return f"Classifier({', '.join('.'.join(key) for key in self.heads)})"

    @property
    def aspects(self) -> tuple[str, ...]:
        """Return the aspects of all languages."""
        return tuple(sorted({aspect for _, aspect in self.heads}))

    def scores(self, text: str, language: str) -> dict[str, float]:
        """Return the probability of each aspect with a head for the language; empty without one."""
        heads = {a: w for (spoken, a), w in self.heads.items() if spoken == language}
        if not heads:
            return {}
        row = features([text], language)
        return {
            aspect: float(1 / (1 + np.exp(-(row.data @ w[row.indices] + w[-1]))))
            for aspect, w in sorted(heads.items())
        }


def train(rows: Callable[[], Iterable[Labelled]], *, epochs: int = 10, seed: int = 0) -> Classifier:
    """Train a head for every language and aspect in the rows. `rows` is called once per epoch; memory is constant.

    Deterministic: the same rows and seed give the same weights. Raises ValueError if a head has only one label.
    """
    from sklearn.linear_model import SGDClassifier

    heads: dict[tuple[str, str], Any] = {}
    labels_by_head: dict[tuple[str, str], set[bool]] = {}
    for epoch in range(epochs):
        pending: dict[tuple[str, str], list[Labelled]] = {}
        for row in _shuffled(rows(), Random(f"{seed}:{epoch}")):
            key = (row.language, row.aspect)
            labels_by_head.setdefault(key, set()).add(row.label)
            batch = pending.setdefault(key, [])
            batch.append(row)
            if len(batch) == BATCH:
                _step(heads, SGDClassifier, key, pending.pop(key), seed)
        for key in sorted(pending):
            _step(heads, SGDClassifier, key, pending[key], seed)
    if one_sided := sorted(key for key, labels in labels_by_head.items() if len(labels) < 2):
        raise ValueError(
            f"expected positives and negatives for every language and aspect; only one of them for {one_sided}"
        )
    return Classifier(
        {
            key: np.append(heads[key].coef_[0], heads[key].intercept_).astype(np.float32)
            for key in sorted(heads)
        }
    )


def _step(
    heads: dict[tuple[str, str], Any],
    make: Any,
    key: tuple[str, str],
    batch: list[Labelled],
    seed: int,
) -> None:
    if key not in heads:
        heads[key] = make(loss="log_loss", alpha=1e-5, random_state=seed)
    x = features([row.text for row in batch], key[0])
    heads[key].partial_fit(x, [row.label for row in batch], classes=[False, True])


def _shuffled(rows: Iterable[Labelled], rng: Random) -> Iterator[Labelled]:
    """Yield the rows in random order, with a buffer of BUFFER rows."""
    stream = iter(rows)
    buffer = list(islice(stream, BUFFER))
    for row in stream:
        chosen = rng.randrange(len(buffer))
        yield buffer[chosen]
        buffer[chosen] = row
    rng.shuffle(buffer)
    yield from buffer


def save(classifier: Classifier, folder: Path) -> None:
    """Write `weights.safetensors` and `quality.json`."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{language}.{aspect}": w for (language, aspect), w in classifier.heads.items()},
        folder / "weights.safetensors",
    )
    config = {
        "buckets": BUCKETS,
        "heads": [f"{language}.{aspect}" for language, aspect in classifier.heads],
    }
    (folder / "quality.json").write_text(json.dumps(config, indent=1))


def load(folder: Path) -> Classifier:
    """Load a classifier written by `save`. Raises ValueError for anything else."""
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / "quality.json").read_text())
        weights = load_file(folder / "weights.safetensors")
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder}: expected quality.json and weights.safetensors, which training writes: {error}"
        ) from None
    if config["buckets"] != BUCKETS or sorted(config["heads"]) != sorted(weights):
        raise ValueError(
            f"{folder}: expected {BUCKETS} buckets and the heads {config['heads']}, "
            f"found {config['buckets']} and {sorted(weights)}; train it again"
        )
    heads = {(name.split(".", 1)[0], name.split(".", 1)[1]): weights[name] for name in weights}
    return Classifier(dict(sorted(heads.items())))


# ---------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Measured:
    """A head's precision and recall at a threshold, each with its 95 % interval (Wilson's)."""

    language: str
    aspect: str
    positives: int
    negatives: int
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]


def measure(
    classifier: Classifier, rows: Iterable[Labelled], threshold: float = 0.5
) -> list[Measured]:
    """Return precision and recall of each head on rows that it should not have been trained on."""
    counts: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        score = classifier.scores(row.text, row.language).get(row.aspect)
        if score is None:
            raise ValueError(f"expected a head for {row.aspect} in {row.language}, found none")
        count = counts.setdefault((row.language, row.aspect), [0, 0, 0, 0])
        count[2 * row.label + (score >= threshold)] += 1
    return [
        Measured(
            *key, hit + missed, right + wrong, *_share(hit, hit + wrong), *_share(hit, hit + missed)
        )
        for key, (right, wrong, missed, hit) in sorted(counts.items())
    ]


def _share(k: int, n: int) -> tuple[float, tuple[float, float]]:
    from scipy.stats import binomtest

    if n == 0:
        return float("nan"), (0.0, 1.0)
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return k / n, (float(interval.low), float(interval.high))


def table(measured: Iterable[Measured]) -> str:
    """Return a Markdown table with a row per head."""
    heads = sorted(measured, key=lambda m: (m.aspect, m.language))
    template = environment("polyphi_recipe.filters").get_template("quality.md")
    return template.render(heads=heads).rstrip("\n")


# --------------------------------------------------------------------------------------------------------------- step


class QualityClassifierFilter(BaseFilter):
    """Notes each document's scores, and drops documents with less than `least` or more than `most` of an aspect.

    >>> QualityClassifierFilter(folder, least={"educational": 0.3}, most={"toxicity": 0.5, "obscurity": 0.7})

    A language without a head for a bounded aspect isn't judged by it; its note names the aspect (`unjudged`). Raises
    ValueError for an aspect that no language has.
    """

    name, type = "Quality", "FILTER"

    def __init__(
        self,
        classifier: Classifier | Path,
        least: Mapping[str, float] | None = None,
        most: Mapping[str, float] | None = None,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self._classifier = load(classifier) if isinstance(classifier, Path) else classifier
        self._least, self._most = dict(least or {}), dict(most or {})
        if unknown := sorted({*self._least, *self._most} - set(self._classifier.aspects)):
            raise ValueError(
                f"the classifier has the aspects {', '.join(self._classifier.aspects)}; found bounds for {unknown}"
            )

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True, or False with the aspect and the side of its bound."""
        scores = self._classifier.scores(doc.text, language_of(doc))
        unjudged = sorted({*self._least, *self._most} - set(scores))
        rounded: dict[str, Any] = {aspect: round(score, 3) for aspect, score in scores.items()}
        note(doc, "quality", **rounded, **({"unjudged": unjudged} if unjudged else {}))
        for aspect, score in scores.items():
            if score < self._least.get(aspect, 0.0):
                return False, f"quality_low_{aspect}"
            if score > self._most.get(aspect, 1.0):
                return False, f"quality_high_{aspect}"
        return True


def main(arguments: Sequence[str]) -> None:
    """`train OUT FILES...` or `measure FOLDER FILES... [--threshold T]`."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m polyphi_recipe.filters.quality")
    parser.add_argument("verb", choices=["train", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.verb == "train":
        save(train(lambda: labelled(options.files), seed=options.seed), options.folder)
    else:
        print(table(measure(load(options.folder), labelled(options.files), options.threshold)))


if __name__ == "__main__":
    main(sys.argv[1:])
