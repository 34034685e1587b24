"""Duplicates, exact and near: a document is a set of shingles, and datatrove's MinHash finds the sets that are alike.

>>> deduplicate(TEXTS, reader, writer, Path("work/dedup-text"), tasks=4, workers=2)     # keeps one of each cluster
>>> TEXTS.half                                                                          # 0.69: Jaccard similarity

Texts are sets of runs of words, pictures sets of bits of a hash, clips sets of pairs of spectral peaks. One modality is
compared nearly and the others exactly, so that two questions about one picture stay two samples.

A signature is `buckets` x `rows` minima of hashes; two documents meet if all `rows` of any bucket agree, which for
similarity s happens with the chance 1 - (1 - s^rows)^buckets. More rows make meetings rarer, more buckets make them
surer; `half` is the similarity at which half of the pairs are found. What meets, and what meets that, is one cluster.

Four steps, each of tasks that may run anywhere and are repeated only if they didn't end: signatures (a pass over the
data), buckets (sorted files, merged), clusters (one task, in memory: the pairs found, not the documents), and the pass
that keeps. Kill it when you like; run it again and the result is the same.
"""

import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer
from jaxtyping import UInt64

from polyphi.curate.documents import note
from polyphi.curate.landmarks import keys, landmarks
from polyphi.curate.phash import is_flat, look, signs
from polyphi.processing.media import decode_audio, decode_image
from polyphi.runtime.files import write_json
from polyphi.text.shingles import hashes, mix, ngrams, tokens

WORDS = 5
"""Words (characters, where a script has no spaces) of a text's shingle, as FineWeb took them."""


@dataclass(frozen=True)
class Likeness:
    """What counts as alike: a document's shingles, and how many minima are compared. A document without shingles (no
    text, no picture, an empty sheet) is like no other."""

    name: str
    shingles: Callable[[Document], UInt64[np.ndarray, " n"]]
    buckets: int
    rows: int

    @property
    def half(self) -> float:
        """The Jaccard similarity at which half of the pairs are found."""
        return float((1 - 0.5 ** (1 / self.buckets)) ** (1 / self.rows))

    def chance(self, similarity: float) -> float:
        """The share of pairs of that similarity that are found."""
        return float(1 - (1 - similarity**self.rows) ** self.buckets)


def exact(document: Document) -> UInt64[np.ndarray, " 1"]:
    """One shingle: the text with its spaces and compatibility forms made equal, and the bytes of the media. Of a
    billion documents, two unlike ones are taken for equal with a chance of 3 % (64 bits)."""
    return _digest(_said(document), *(m.id for m in document.media))


def text(document: Document) -> UInt64[np.ndarray, " n"]:
    """Runs of 5 words; a shorter text is one run. With the same media, if it has any."""
    hashed = hashes(tokens(document.text))
    runs = ngrams(hashed, min(WORDS, max(1, len(hashed))))
    return _with(np.unique(runs), *(m.id for m in document.media))


def pictures(document: Document) -> UInt64[np.ndarray, " n"]:
    """The 64 bits of each picture's hash, each with its place. With the same text and clips."""
    found = []
    for number, medium in enumerate(_media(document, "image")):
        seen = look(decode_image(medium))
        if is_flat(seen):
            return np.zeros(0, np.uint64)
        bits = np.unpackbits(np.array([signs(seen)]).view(np.uint8))
        found.append(
            np.arange(64, dtype=np.uint64) + np.uint64(64) * (bits + 2 * np.uint64(number))
        )
    others = [m.id for m in document.media if m.metadata["kind"] != "image"]
    return _with(np.concatenate(found), _said(document), *others) if found else _nothing()


def clips(document: Document) -> UInt64[np.ndarray, " n"]:
    """The landmarks of each clip, counted coarsely. With the same text and pictures."""
    found = [
        np.unique(keys(landmarks(*decode_audio(m)))).astype(np.uint64) + np.uint64(number << 32)
        for number, m in enumerate(_media(document, "audio"))
    ]
    others = [m.id for m in document.media if m.metadata["kind"] != "audio"]
    return _with(np.concatenate(found), _said(document), *others) if found else _nothing()


def _said(document: Document) -> str:
    return " ".join(unicodedata.normalize("NFKC", document.text).split())


def _media(document: Document, kind: str) -> list[bytes]:
    return [m.media_bytes for m in document.media if m.metadata["kind"] == kind]


def _nothing() -> np.ndarray:
    return np.zeros(0, np.uint64)


def _digest(*parts: str) -> np.ndarray:
    said = json.dumps(parts).encode()
    return np.array([int.from_bytes(blake2b(said, digest_size=8).digest())], np.uint64)


def _with(found: np.ndarray, *others: str) -> np.ndarray:
    """The shingles of documents that have `others` in common, unlike those of all other documents."""
    return mix(found + _digest(*others))


EXACT = Likeness("exact", exact, buckets=1, rows=1)
TEXTS = Likeness("texts", text, buckets=14, rows=8)
"""FineWeb's: half of the pairs that share 69 % of their runs, 92 % of those that share 80 %."""
PICTURES = Likeness("pictures", pictures, buckets=64, rows=24)
"""Hashes that differ in d bits of 64 have the similarity (64 - d) / (64 + d): half of the pairs at d = 6."""
CLIPS = Likeness("clips", clips, buckets=100, rows=5)
"""Noise takes landmarks and brings others: half of the pairs that share 37 %. Other clips share 2 to 8 %."""


def deduplicate(
    likeness: Likeness,
    reader: Sequence[PipelineStep],
    writer: Sequence[PipelineStep],
    work: Path,
    *,
    excluded: Any = None,
    tasks: int = 1,
    executor: Callable[..., Any] = LocalPipelineExecutor,
    depends: Any = None,
    **machine: Any,
) -> Any:
    """Keep one document of each cluster: `reader` makes documents (twice the same ones, in the same order, by rank of
    `tasks`), `writer` takes those that stay, and `excluded` (a `DiskWriter`) those that don't. What a cluster's
    documents have in common is in their lineage: {"step": "deduplicated", "by", "cluster", "size"}.

    `work` is a folder of this run's own: signatures, pairs, clusters, logs and what is done already. `executor` is
    datatrove's for this machine, Slurm or Ray, `machine` what it is told (`workers=2`, `time="2:00:00"`); the run waits
    for another one that it `depends` on. Returns the executor of the last step.

    Raises ValueError where `work` was begun with other settings."""
    _claim(work, likeness, tasks)
    config = MinhashConfig(
        num_buckets=likeness.buckets,
        hashes_per_bucket=likeness.rows,
        hash_config=HashConfig(hash_fc="sha1"),  # the name alone: shingles come hashed
    )
    where = {name: str(work / name) for name in ("signatures", "pairs", "clusters")}
    stages = [
        ([*reader, _Signatures(likeness, where["signatures"], config)], tasks),
        (
            [MinhashDedupBuckets(where["signatures"], where["pairs"], config=config)],
            likeness.buckets,
        ),
        (
            [
                _Clusters(
                    where["pairs"],
                    where["clusters"],
                    config=config,
                    save_cluster_id=True,
                    save_cluster_size=True,
                ),
                partial(_complete, work / "clusters"),
            ],
            1,
        ),
        (
            [
                *reader,
                MinhashDedupFilter(
                    where["clusters"],
                    excluded and _Noted(excluded, likeness.name),
                    load_cluster_ids=True,
                    load_cluster_sizes=True,
                ),
                _Kept(likeness.name),
                *writer,
            ],
            tasks,
        ),
    ]
    run = depends
    for number, (pipeline, many) in enumerate(stages):
        logs = str(work / "logs" / str(number))
        run = executor(pipeline=pipeline, tasks=many, logging_dir=logs, depends=run, **machine)
    run.run()
    return run


def _complete(folder: Path, data: None, rank: int, world_size: int) -> None:
    """datatrove reads a task's clusters only where something of it goes; what stays shall know its cluster too."""
    for clusters in folder.glob("*.clusters"):
        clusters.with_suffix(".remove").touch()


def _claim(work: Path, likeness: Likeness, tasks: int) -> None:
    """Signatures of other settings can't be gone on with."""
    mine = {
        "likeness": likeness.name,
        "buckets": likeness.buckets,
        "rows": likeness.rows,
        "tasks": tasks,
    }
    path = work / "settings.json"
    work.mkdir(parents=True, exist_ok=True)
    if path.exists() and (found := json.loads(path.read_text())) != mine:
        raise ValueError(
            f"{work} was begun with {found}, asked for are {mine}; give this run a folder of its own"
        )
    write_json(path, mine)


class _Clusters(MinhashDedupCluster):  # type: ignore[misc]
    """datatrove's, without its progress bar."""

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            super().run(data, rank, world_size)


class _NoWords(WordTokenizer):  # type: ignore[misc]
    """Shingles are made by `Likeness`, so that datatrove needs no tokenizer of any language."""

    def word_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    sent_tokenize = span_tokenize = word_tokenize


class _Signatures(MinhashDedupSignature):  # type: ignore[misc]
    """datatrove's signatures, of shingles of our own."""

    def __init__(self, likeness: Likeness, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, language=_NoWords())
        self.likeness = likeness

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        # datatrove asks for the shingles of `document.text`; here that is the document.
        super().run((SimpleNamespace(text=document) for document in data), rank, world_size)

    def get_shingles(self, text: Document) -> np.ndarray:
        return self.likeness.shingles(text).reshape(-1, 1)


def _tell(document: Document, by: str) -> None:
    """Move what datatrove found from the document's metadata into its lineage."""
    cluster = document.metadata.pop("minhash_cluster_id", -1)
    size = document.metadata.pop("minhash_cluster_size", 1)
    if cluster >= 0:
        note(document, "deduplicated", by=by, cluster=cluster, size=size)


class _Kept(PipelineStep):  # type: ignore[misc]
    """Documents that stay learn how many they stand for."""

    name = "Lineage"
    type = "DEDUP"

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by

    def run(
        self, data: Iterator[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        for document in data:
            _tell(document, self.by)
            yield document


class _Noted:
    """A writer of dropped documents that says in their lineage which cluster they were dropped from."""

    def __init__(self, writer: Any, by: str) -> None:
        self.writer, self.by = writer, by

    def __enter__(self) -> "_Noted":
        self.writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.writer.__exit__(kind, error, at)

    def write(self, document: Document, rank: int = 0) -> None:
        _tell(document, self.by)
        self.writer.write(document, rank)
