"""`Corpus`: a named recipe from raw material to the splits of a shard folder. One corpus is one file of
`polyphi/corpora`.

>>> corpus = Corpus("digits", build=digits)           # digits(work) yields ("train" | "test", Sample)
>>> build(corpus, Work(rows={"train": 4000, "test": 200}, seed=0, cache=..., data=...))
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyphi.data import shards
from polyphi.data.shards import Sample, Shards


@dataclass(frozen=True)
class Work:
    """What a corpus is built with. `rows` bounds each split; `cache` holds downloaded packages; `data` is the folder
    of corpora (so that one may be made from another); `models` gives what parent stages made: for a recogniser a
    callable from audio bytes to text, for a language model a `Generate`."""

    rows: Mapping[str, int]
    seed: int
    cache: Path
    data: Path
    models: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[str], None] = print


@dataclass(frozen=True)
class Corpus:
    """`build(work)` yields (split, sample). `corpora` and `stages` name what must exist first."""

    name: str
    build: Callable[[Work], Iterator[tuple[str, Sample]]]
    corpora: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


def fingerprint(corpus: Corpus, work: Work) -> str:
    """Hash of the corpus's file, of this room's code, its rows and its seed: a changed recipe is a new corpus."""
    own = inspect.getsourcefile(inspect.unwrap(corpus.build))
    assert own is not None
    code = [path.read_text() for path in (Path(own), *sorted(Path(__file__).parent.glob("*.py")))]
    text = json.dumps([corpus.name, code, dict(work.rows), work.seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_built(corpus: Corpus, work: Work) -> bool:
    """Whether every split is there, made by this very recipe."""
    manifests = [work.data / corpus.name / split / "manifest.json" for split in work.rows]
    pipeline = fingerprint(corpus, work)
    return all(p.exists() and json.loads(p.read_text())["pipeline"] == pipeline for p in manifests)


def build(corpus: Corpus, work: Work) -> dict[str, dict[str, Any]]:
    """Build every split of a corpus under `work.data / corpus.name`; returns the manifests."""
    folder, pipeline = work.data / corpus.name, fingerprint(corpus, work)
    parents = [
        hashlib.sha256((work.data / c / "train" / "manifest.json").read_bytes()).hexdigest()
        for c in corpus.corpora
    ]
    samples: dict[str, list[Sample]] = {split: [] for split in work.rows}
    for split, sample in corpus.build(work):
        if len(samples[split]) < work.rows[split]:
            samples[split].append(sample)
        elif all(len(rows) >= work.rows[name] for name, rows in samples.items()):
            break
    return {
        split: shards.write(folder / split, rows, pipeline=pipeline, parents=parents)
        for split, rows in samples.items()
    }


__all__ = ["Corpus", "Shards", "Work", "build", "fingerprint", "is_built"]
