"""Exact and near deduplication: a document is a set of shingles, and datatrove's MinHash finds similar sets.

>>> deduplicate(TEXTS, reader, writer, Path("work/dedup-text"), tasks=4, workers=2)     # keeps one per cluster
>>> TEXTS.half                                                                          # 0.69: Jaccard similarity

Texts are sets of word n-grams, images sets of bits of a hash, audio clips sets of pairs of spectral peaks. One modality
is compared approximately and the others exactly, so that two questions about one image stay two samples.

A signature is `buckets` x `rows` minima of hashes; two documents match if all `rows` of any bucket agree, which for
similarity s has the probability 1 - (1 - s^rows)^buckets. More rows make matches rarer, more buckets more frequent;
`half` is the similarity at which half of the pairs are found. Connected matches form a cluster.

Four steps, each of tasks that run on any machine and are repeated only if they didn't complete: signatures (a pass over
the data), buckets (sorted files, merged), clusters (one task, in memory: the pairs, not the documents), and the pass
that filters. A run that was killed can be repeated and gives the same result.
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

from polyphi.media.media import decode_audio, decode_image
from polyphi.runtime.files import remove, write_json
from polyphi_recipe.dedup.landmarks import keys, landmarks
from polyphi_recipe.dedup.phash import image_hash, is_flat, thumbnail
from polyphi_recipe.dedup.shingles import hashes, mix, ngrams, tokens
from polyphi_recipe.pipeline.documents import note

INDEX, SETTINGS = "index", "settings.json"
SHINGLE_WORDS = 5
"""Words (characters, where a script has no spaces) of a text's shingle, as in FineWeb."""


@dataclass(frozen=True)
class Similarity:
    """The similarity of a deduplication: a document's shingles, and how many minima are compared. A document without
    shingles (no text, no image, an empty sheet) matches no other."""

    name: str
    shingles: Callable[[Document], UInt64[np.ndarray, " n"]]
    buckets: int
    rows: int

    @property
    def half(self) -> float:
        """Return the Jaccard similarity at which half of the pairs are found."""
        return float((1 - 0.5 ** (1 / self.buckets)) ** (1 / self.rows))

    def chance(self, similarity: float) -> float:
        """Return the share of pairs of this similarity that are found."""
        return float(1 - (1 - similarity**self.rows) ** self.buckets)


def exact_shingle(document: Document) -> UInt64[np.ndarray, " 1"]:
    """Return one shingle: a hash of the text with normalized spaces and compatibility forms, and of the media's bytes.
    Among a billion documents, two different ones have equal hashes with a probability of 3 % (64 bits)."""
    return _digest(_normalized_text(document), *(m.id for m in document.media))


def text_shingles(document: Document) -> UInt64[np.ndarray, " n"]:
    """Return the runs of 5 words; a shorter text is one run. Only documents with the same media match."""
    hashed = hashes(tokens(document.text))
    runs = ngrams(hashed, min(SHINGLE_WORDS, max(1, len(hashed))))
    return _salted(np.unique(runs), *(m.id for m in document.media))


def image_shingles(document: Document) -> UInt64[np.ndarray, " n"]:
    """Return the 64 bits of each image's hash with their positions. Only documents with the same text and audio
    match."""
    shingles = []
    for number, medium in enumerate(_media(document, "image")):
        thumb = thumbnail(decode_image(medium))
        if is_flat(thumb):
            return np.zeros(0, np.uint64)
        bits = np.unpackbits(np.array([image_hash(thumb)]).view(np.uint8))
        shingles.append(
            np.arange(64, dtype=np.uint64) + np.uint64(64) * (bits + 2 * np.uint64(number))
        )
    others = [m.id for m in document.media if m.metadata["kind"] != "image"]
    return (
        _salted(np.concatenate(shingles), _normalized_text(document), *others)
        if shingles
        else _no_shingles()
    )


def audio_shingles(document: Document) -> UInt64[np.ndarray, " n"]:
    """Return the quantized landmarks of each audio clip. Only documents with the same text and images match."""
    shingles = [
        np.unique(keys(landmarks(*decode_audio(m)))).astype(np.uint64) + np.uint64(number << 32)
        for number, m in enumerate(_media(document, "audio"))
    ]
    others = [m.id for m in document.media if m.metadata["kind"] != "audio"]
    return (
        _salted(np.concatenate(shingles), _normalized_text(document), *others)
        if shingles
        else _no_shingles()
    )


def _normalized_text(document: Document) -> str:
    return " ".join(unicodedata.normalize("NFKC", document.text).split())


def _media(document: Document, modality: str) -> list[bytes]:
    return [m.media_bytes for m in document.media if m.metadata["kind"] == modality]


def _no_shingles() -> np.ndarray:
    return np.zeros(0, np.uint64)


def _digest(*parts: str) -> np.ndarray:
    data = json.dumps(parts).encode()
    return np.array([int.from_bytes(blake2b(data, digest_size=8).digest())], np.uint64)


def _salted(shingles: np.ndarray, *others: str) -> np.ndarray:
    """Return the shingles mixed with a hash of `others`: they match only between documents with equal `others`."""
    return mix(shingles + _digest(*others))


EXACT = Similarity("exact", exact_shingle, buckets=1, rows=1)
TEXTS = Similarity("texts", text_shingles, buckets=14, rows=8)
"""FineWeb's settings find half of the pairs that share 69 % of their runs, 92 % of those that share 80 %."""
IMAGES = Similarity("pictures", image_shingles, buckets=64, rows=24)
"""Hashes that differ in d bits of 64 have the similarity (64 - d) / (64 + d): half of the pairs are found at d = 6."""
AUDIO = Similarity("clips", audio_shingles, buckets=100, rows=5)
"""Noise removes landmarks and adds others: half of the pairs that share 37 % are found. Other clips share 2 to 8 %."""


def deduplicate(
    similarity: Similarity,
    reader: Sequence[PipelineStep],
    writer: Sequence[PipelineStep],
    work: Path,
    *,
    excluded: Any = None,
    tasks: int = 1,
    executor: Callable[..., Any] = LocalPipelineExecutor,
    depends: Any = None,
    index: str = "",
    earlier: Sequence[Path] = (),
    **machine: Any,
) -> Any:
    """Keep one document of each cluster: `reader` yields documents (in two passes the same ones, in the same order, by
    rank of `tasks`), `writer` writes those that are kept, and `excluded` (a `DiskWriter`) the others. The lineage of a
    document names its cluster: {"step": "deduplicated", "by", "cluster", "size"}.

    `work` is a folder for this run alone: signatures, pairs, clusters, logs and completed tasks. `executor` is
    datatrove's for this machine, Slurm or Ray, `machine` its options (`workers=2`, `time="2:00:00"`); the run starts
    after the executor in `depends`. Returns the executor of the last step.

    `index` is a name under which the signatures are saved, for deduplications of other data that drop what this one
    has: `earlier` are the folders `work` of those before this one.

    Raises ValueError if `work` was begun with other settings."""
    _check_settings(work, similarity, tasks)
    config = MinhashConfig(
        num_buckets=similarity.buckets,
        hashes_per_bucket=similarity.rows,
        hash_config=HashConfig(
            hash_fc="sha1"
        ),  # only the name is used: shingles are already hashed
    )
    folders = {name: str(work / name) for name in ("signatures", "pairs", "clusters")}
    for other in earlier:
        _link_index(other, work)
    stages = [
        ([*reader, _Signatures(similarity, folders["signatures"], config)], tasks),
        (
            [
                MinhashDedupBuckets(
                    folders["signatures"],
                    folders["pairs"],
                    str(work / INDEX) if index else None,
                    config,
                    only_dedup_in_index=False,
                    create_index_name=index or None,
                )
            ],
            similarity.buckets,
        ),
        (
            [
                _Clusters(
                    folders["pairs"],
                    folders["clusters"],
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
                    folders["clusters"],
                    excluded and _LineageWriter(excluded, similarity.name),
                    load_cluster_ids=True,
                    load_cluster_sizes=True,
                ),
                _Lineage(similarity.name),
                *writer,
            ],
            tasks,
        ),
    ]
    run = depends
    for number, (pipeline, count) in enumerate(stages):
        logs = str(work / "logs" / str(number))
        run = executor(pipeline=pipeline, tasks=count, logging_dir=logs, depends=run, **machine)
    run.run()
    return run


def _link_index(other: Path, work: Path) -> None:
    """Link the saved signatures of another deduplication, and those that it has links to, if they are of the same
    similarity."""
    if _similarity(other) != _similarity(work):
        return
    for file in other.glob(f"{INDEX}/*/*.index"):
        link = work / file.relative_to(other)
        link.parent.mkdir(parents=True, exist_ok=True)
        remove(link)
        os.link(file, link)


def _similarity(work: Path) -> Any:
    path = work / SETTINGS
    return json.loads(path.read_text())["likeness"] if path.exists() else None


def _complete(folder: Path, data: None, rank: int, world_size: int) -> None:
    """Create the missing files of removals: without one datatrove doesn't read a task's clusters, and kept documents
    would lack theirs."""
    for clusters in folder.glob("*.clusters"):
        clusters.with_suffix(".remove").touch()


def _check_settings(work: Path, similarity: Similarity, tasks: int) -> None:
    """Check that `work` has the same settings, because signatures of other settings can't be resumed."""
    settings = {
        "likeness": similarity.name,  # the name on disk
        "buckets": similarity.buckets,
        "rows": similarity.rows,
        "tasks": tasks,
    }
    path = work / SETTINGS
    work.mkdir(parents=True, exist_ok=True)
    if path.exists() and (previous := json.loads(path.read_text())) != settings:
        raise ValueError(
            f"{work} was begun with {previous}, expected {settings}; give this run another folder"
        )
    write_json(path, settings)


class _Clusters(MinhashDedupCluster):  # type: ignore[misc]
    """datatrove's clustering without its progress bar."""

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            super().run(data, rank, world_size)


class _NoTokenizer(WordTokenizer):  # type: ignore[misc]
    """A placeholder: `Similarity` makes the shingles, so that datatrove needs no tokenizer of a language."""

    def word_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    sent_tokenize = span_tokenize = word_tokenize


class _Signatures(MinhashDedupSignature):  # type: ignore[misc]
    """datatrove's signatures, of the shingles of a `Similarity`."""

    def __init__(self, similarity: Similarity, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, language=_NoTokenizer())
        self.similarity = similarity

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> None:
        # datatrove calls `get_shingles(document.text)`; here `text` is the document.
        super().run((SimpleNamespace(text=document) for document in data), rank, world_size)

    def get_shingles(self, text: Document) -> np.ndarray:
        return self.similarity.shingles(text).reshape(-1, 1)


def _move_to_lineage(document: Document, by: str) -> None:
    """Move datatrove's cluster id and size from the document's metadata into its lineage."""
    cluster = document.metadata.pop("minhash_cluster_id", -1)
    size = document.metadata.pop("minhash_cluster_size", 1)
    if cluster >= 0:
        note(document, "deduplicated", by=by, cluster=cluster, size=size)


class _Lineage(PipelineStep):  # type: ignore[misc]
    """Writes the cluster and its size into the lineage of kept documents."""

    name = "Lineage"
    type = "DEDUP"

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by

    def run(
        self, data: Iterator[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        for document in data:
            _move_to_lineage(document, self.by)
            yield document


class _LineageWriter:
    """A writer of dropped documents that adds their cluster to their lineage."""

    def __init__(self, writer: Any, by: str) -> None:
        self.writer, self.by = writer, by

    def __enter__(self) -> "_LineageWriter":
        self.writer.__enter__()
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.writer.__exit__(type_, error, at)

    def write(self, document: Document, rank: int = 0) -> None:
        _move_to_lineage(document, self.by)
        self.writer.write(document, rank)
