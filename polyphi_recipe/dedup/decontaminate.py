"""Decontamination: removes training samples that contain evaluation items.

>>> index = Index.of({"gsm8k": Path("gsm8k/test.jsonl"), "charts": Shards("data/charts/test")})
>>> index.save(Path("work/known"))
>>> pipeline = [reader, Decontaminate(Path("work/known"), ledger=Path("work/ledger")), writer]
>>> Corpus("math", build, steps=against("math", "instructions", ways=("quoted",)))     # held-out samples (corpus.py)

An item is identified by its text (`text_index`), its images (`image_index`) and its audio (`audio_index`), also
after small changes. Samples that match are dropped (or, with `drop=False`, marked in their lineage), and each finding
is a line of the ledger:

    {"sample": "web-17", "set": "gsm8k", "item": "17", "modality": "text", "how": "quoted", "score": 1.0, "evidence":
     {"span": "natalia sold clips to ..."}}
"""

import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.data.shards import Sample, Shards
from polyphi.media.media import decode_audio, decode_image
from polyphi.runtime.files import whole_folder
from polyphi.types.messages import Message, media
from polyphi.types.parts import Audio, Image, Item
from polyphi_recipe.dedup.audio_index import AudioFingerprintIndex
from polyphi_recipe.dedup.image_index import ImageHashIndex
from polyphi_recipe.dedup.phash import is_flat, thumbnail
from polyphi_recipe.dedup.text_index import Exchange, TextIndex
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.pipeline.documents import edit, note

ItemSource = Iterable[Sample] | Path | str
"""An evaluation set: samples, the folder of a split of shards, or a JSONL file."""
WAYS = ("quoted", "reworded", "same bytes", "whole picture", "cropped picture", "landmarks")
"""The searches: texts word for word and in other words, media by their bytes, images that are copies of an indexed one
or of a part of it, audio clips. The last two cost a tenth of a second each, all others a millisecond or two. If
templates or drawings repeat by design, "reworded" and "cropped picture" also find their other instances."""


@dataclass(frozen=True)
class Contamination:
    """An evaluation item that a sample contains: the modality, the search that found it, a score (0 to 1), and the
    evidence: the words, or the bits that differ and the region of the image, or the landmarks and the change of the
    clip."""

    set: str
    item: str
    modality: str
    how: str
    score: float
    evidence: dict[str, Any]

    def line(self, sample: str) -> dict[str, Any]:
        """Return the finding as a line of the ledger."""
        return {"sample": sample, **asdict(self)}


def items(source: ItemSource) -> Iterator[Sample]:
    """Yield the samples of an evaluation set. A line of a JSONL file has `messages` (OpenAI's form; paths are relative
    to the file) or `text`, or `question` and `answer`, and optionally an `id`, by default its number. Raises ValueError
    for a line with none of them, and for a path that is neither a folder nor a file."""
    if not isinstance(source, str | Path):
        yield from source
    elif Path(source).is_dir() or "://" in str(source):
        yield from Shards(source)
    elif Path(source).is_file():
        with Path(source).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if line.strip():
                    yield _parse(line, number, Path(source))
    else:
        raise ValueError(
            f"{source}: expected a folder of shards or a JSONL file, found nothing there"
        )


def _parse(line: str, number: int, path: Path) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number + 1}: expected JSON, found: {error}") from None
    if "messages" in row:
        messages = tuple(Message.parse(m, path.parent) for m in row["messages"])
    elif "text" in row:
        messages = (Message.user(str(row["text"])),)
    elif "question" in row:
        prompt = Message.user(str(row["question"]))
        messages = (prompt, Message.assistant(str(row.get("answer", ""))))
    else:
        raise ValueError(
            f"{path}, line {number + 1}: expected `messages`, `text` or `question`, found {sorted(row)}"
        )
    return Sample(str(row.get("id", number)), messages, str(path), "")


def exchanges(messages: Sequence[Message]) -> list[Exchange]:
    """The texts of a conversation, without those of the system: each prompt and its answer."""
    result: list[Exchange] = []
    prompt: list[str] = []
    for message in messages:
        if message.role == "assistant":
            result.append(("\n".join(prompt), message.text))
            prompt = []
        elif message.role != "system":
            prompt.append(message.text)
    return [*result, ("\n".join(prompt), "")] if prompt else result


@dataclass(frozen=True)
class Index:
    """An index of all items of evaluation sets. `names` are (set, item); `picture_items` and `clip_items` are the item
    of each image and audio clip (texts have the numbers of items); `digests` maps SHA-256 of media to items."""

    names: list[tuple[str, str]]
    texts: TextIndex
    pictures: ImageHashIndex
    picture_items: list[int]
    clips: AudioFingerprintIndex
    clip_items: list[int]
    digests: dict[str, int]

    @classmethod
    def of(cls, sets: Mapping[str, ItemSource], ways: Collection[str] = WAYS) -> "Index":
        """Build an index for the searches `ways`, reading every set once. Raises ValueError for a medium that can't be
        decoded, with its item, and for an unknown way."""
        if unknown := set(ways) - set(WAYS):
            raise ValueError(f"expected ways of {', '.join(WAYS)}, found {sorted(unknown)}")
        search_images = {"whole picture", "cropped picture"} & set(ways)
        names: list[tuple[str, str]] = []
        texts: list[tuple[list[Exchange], bool]] = []
        pictures: list[ImageHashIndex] = []
        clips: list[AudioFingerprintIndex] = []
        picture_items: list[int] = []
        clip_items: list[int] = []
        digests: dict[str, int] = {}
        for name, source in sets.items():
            for sample in items(source):
                item = len(names)
                names.append((name, sample.id))
                images = media(sample.messages, Image)
                audios = media(sample.messages, Audio)
                others = media(sample.messages, Item)
                texts.append((exchanges(sample.messages), bool(images or audios or others)))
                try:
                    for part in images:
                        image = decode_image(part.source)
                        if search_images:
                            pictures.append(ImageHashIndex.of([image], "cropped picture" in ways))
                            picture_items.append(item)
                        if not is_flat(thumbnail(image)):
                            _add_digest(digests, part.source, item)
                    for part in others:
                        _add_digest(digests, part.source, item)
                    for part in audios:
                        wave, rate = decode_audio(part.source)
                        if "landmarks" in ways:
                            clips.append(AudioFingerprintIndex.of([(wave, rate)]))
                            clip_items.append(item)
                        if np.abs(wave).max() > SILENT:
                            _add_digest(digests, part.source, item)
                except ValueError as error:
                    raise ValueError(f"{name}, item {sample.id}: {error}") from None
        return cls(
            names,
            TextIndex.of(texts),
            ImageHashIndex.joined(pictures),
            picture_items,
            AudioFingerprintIndex.joined(clips),
            clip_items,
            digests,
        )

    def save(self, folder: Path) -> None:
        """Write the index as numpy arrays and one JSON file, atomically."""
        names = ("names", "picture_items", "clip_items", "digests")
        with whole_folder(folder) as partial:
            for part, type_ in PARTS.items():
                for f in fields(type_):
                    np.save(partial / f"{part}.{f.name}.npy", getattr(getattr(self, part), f.name))
            (partial / "items.json").write_text(json.dumps({n: getattr(self, n) for n in names}))

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """Load a saved index. Arrays are memory-mapped and shared by processes."""
        if not (folder / "items.json").exists():
            raise ValueError(f"{folder}: expected an index (Index.save), found no items.json")
        metadata = json.loads((folder / "items.json").read_text())
        names = [f"{part}.{f.name}.npy" for part, type_ in PARTS.items() for f in fields(type_)]
        if missing := [name for name in names if not (folder / name).exists()]:
            raise ValueError(
                f"{folder}: expected an index of this version, found none of {', '.join(missing)}; build it again"
            )
        arrays = {
            part: type_(
                **{
                    f.name: np.load(folder / f"{part}.{f.name}.npy", "r", allow_pickle=False)
                    for f in fields(type_)
                }
            )
            for part, type_ in PARTS.items()
        }
        return cls(**{**metadata, "names": [(s, i) for s, i in metadata["names"]], **arrays})

    def find(self, document: Document, ways: Collection[str] = WAYS) -> list[Contamination]:
        """Return the evaluation items that a document contains, by the searches `ways`, which the index must support.
        A medium that can't be decoded has no findings."""
        search_text = {"quoted", "reworded"} & set(ways)
        findings = [
            self._finding(m.item, "text", m.how, m.score, span=m.span)
            for m in (self.texts.find(document.text, "reworded" in ways) if search_text else ())
            if m.how in ways
        ]
        for medium in document.media:
            modality, data = medium.metadata["kind"], medium.media_bytes
            item = self.digests.get(medium.id) if "same bytes" in ways else None
            if item is not None:
                findings.append(self._finding(item, modality, "same bytes", 1.0, sha256=medium.id))
                continue
            try:
                if modality == "image" and {"whole picture", "cropped picture"} & set(ways):
                    findings += self._find_images(data)
                elif modality == "audio" and "landmarks" in ways:
                    findings += self._find_audio(data)
            except ValueError as error:
                note(document, "decontaminate", unreadable=str(error))
        return findings

    def _find_images(self, data: bytes) -> list[Contamination]:
        return [
            self._finding(
                self.picture_items[m.item],
                "image",
                "perceptual hash",
                m.score,
                bits=m.distance,
                part=list(m.box),
            )
            for m in self.pictures.find(decode_image(data))
        ]

    def _find_audio(self, data: bytes) -> list[Contamination]:
        return [
            self._finding(self.clip_items[m.item], "audio", "landmarks", m.score, **m.evidence())
            for m in self.clips.find(*decode_audio(data))
        ]

    def _finding(
        self, item: int, modality: str, how: str, score: float, **evidence: Any
    ) -> Contamination:
        return Contamination(*self.names[item], modality, how, score, evidence)


PARTS: dict[str, Any] = {
    "texts": TextIndex,
    "pictures": ImageHashIndex,
    "clips": AudioFingerprintIndex,
}
SILENT = 1e-3
"""Amplitude up to which a clip is silent, so that equal bytes prove nothing."""


def _add_digest(digests: dict[str, int], source: Any, item: int) -> None:
    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    if isinstance(source, bytes):
        digests.setdefault(sha256(source).hexdigest(), item)


class Decontaminate(BaseFilter):  # type: ignore[misc]
    """Drops documents that contain evaluation items. `index` is the folder of a saved `Index`; findings of task `rank`
    go to `ledger/RANK.jsonl`, which is rewritten when the task is repeated; `ways` are the searches. With `drop=False`
    samples are kept, with the findings in their lineage. With `passages`, for texts of many pages, only the passages
    (between empty lines) that contain items are removed; a document of which nothing remains is dropped."""

    name = "Decontamination"

    def __init__(
        self,
        index: Path,
        ledger: Path,
        *,
        ways: Collection[str] = WAYS,
        drop: bool = True,
        passages: bool = False,
        exclusion_writer: Any = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.folder, self.ledger, self.ways, self.drop = index, ledger, ways, drop
        self.passages = passages
        self._index: Index | None = None
        self._lines: io.TextIOBase | None = None

    def run(
        self, data: Iterator[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        self._index = Index.load(self.folder)
        self.ledger.mkdir(parents=True, exist_ok=True)
        with (self.ledger / f"{rank:05d}.jsonl").open("w", encoding="utf-8") as self._lines:
            yield from super().run(data, rank, world_size)
        self._index = self._lines = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if not self.passages:
            return self._search(doc, doc)
        removed = 0

        def without_items(text: str) -> str:
            nonlocal removed
            passages = text.split("\n\n")
            clean = [p for p in passages if self._search(Document(p, doc.id), doc) is True]
            removed += len(passages) - len(clean)
            return "\n\n".join(clean)

        edit(doc, without_items)
        note(doc, "decontaminate", removed=removed)
        return True if doc.text else (False, "known text")

    def _search(self, text: Document, doc: Document) -> bool | tuple[bool, str]:
        """Search a document, or a passage of it; write the findings."""
        assert self._index is not None and self._lines is not None
        findings = self._index.find(text, self.ways)
        for finding in findings:
            self._lines.write(json.dumps(finding.line(doc.id), ensure_ascii=False) + "\n")
            entry = asdict(finding)
            if not self.passages:
                note(doc, "decontaminate", **{k: entry[k] for k in entry if k != "evidence"})
        return True if not findings or not self.drop else (False, f"known {findings[0].modality}")


def against(
    own: str, *others: str, ways: Collection[str] = WAYS
) -> Callable[[Work], list[PipelineStep]]:
    """Return the `Corpus.steps` of a corpus whose only step is `held_out`."""
    return lambda work: [*held_out(work, own, *others, ways=ways)]


def held_out(
    work: Work,
    own: str,
    *others: str,
    ways: Collection[str] = WAYS,
    items: Mapping[str, Path] = MappingProxyType({}),
    passages: bool = False,
) -> list[Decontaminate]:
    """Return the step that drops from the training split of the corpus `own` the items of its held-out split, those of
    `others`, and `items` of files of evaluation sets by name, or, with `passages`, removes the passages with them; no
    step for other splits. Builds the index, once for each content of those splits. Raises ValueError if a split is
    absent."""
    if "train" not in work.rows:
        return []
    folders = {name: work.data / name / "test" for name in (own, *others)}
    for name, folder in folders.items():
        if not (folder / "manifest.json").exists():
            raise ValueError(
                f"{own} is checked against the held-out samples of {name}: expected them in {folder}; "
                f"build {name} with a test split first"
            )
    manifests = [json.loads((f / "manifest.json").read_text()) for f in folders.values()]
    shards = [shard["sha256"] for manifest in manifests for shard in manifest["shards"]]
    shards += [f"{name} {sha256(path.read_bytes()).hexdigest()}" for name, path in items.items()]
    layout = {part: [f.name for f in fields(type_)] for part, type_ in PARTS.items()}
    content = json.dumps([list(folders), shards, list(ways), layout])
    key = sha256(content.encode()).hexdigest()[:16]
    parent = work.data / own / ".made" / f"known-{key}"
    if not (parent / "index" / "items.json").exists():
        Index.of({**folders, **items}, ways).save(parent / "index")
    return [Decontaminate(parent / "index", parent / "ledger", ways=tuple(ways), passages=passages)]
