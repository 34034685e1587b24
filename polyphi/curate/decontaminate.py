"""Decontamination: no sample may teach what an evaluation asks.

>>> index = Index.of({"gsm8k": Path("gsm8k/test.jsonl"), "charts": Shards("data/charts/test")})
>>> index.save(Path("work/known"))
>>> pipeline = [reader, Decontaminate(Path("work/known"), ledger=Path("work/ledger")), writer]
>>> Corpus("math", build, steps=against("math", "instructions", ways=("quoted",)))     # held-out samples (corpus.py)

An item is known by its text (`known_texts`), its pictures (`known_pictures`) and its clips (`known_clips`), each of
which is found again where it was changed a little. What matches is dropped (or, with `drop=False`, marked in its
lineage), and each finding is a line of the ledger:

    {"sample": "web-17", "set": "gsm8k", "item": "17", "modality": "text", "how": "quoted", "score": 1.0, "evidence":
     {"span": "natalia sold clips to ..."}}
"""

import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from polyphi.curate.corpus import Work
from polyphi.curate.documents import note
from polyphi.curate.known_clips import Clips
from polyphi.curate.known_pictures import Pictures
from polyphi.curate.known_texts import Texts
from polyphi.curate.phash import is_flat, look
from polyphi.data.shards import Sample, Shards
from polyphi.messages import Audio, Image, Message, media
from polyphi.processing.media import decode_audio, decode_image
from polyphi.runtime.files import whole_folder

Source = Iterable[Sample] | Path | str
"""An evaluation set: samples, the folder of a split of shards, or a JSONL file."""
WAYS = ("quoted", "reworded", "same bytes", "whole picture", "cropped picture", "landmarks")
"""What may be looked for: texts word for word and in other words, media by their bytes, pictures that are copies of a
known one or of a part of it, clips. The last two cost a tenth of a second each, all others a millisecond or two. Where
templates or drawings repeat by design, "reworded" and "cropped picture" find their other instances, too."""


@dataclass(frozen=True)
class Finding:
    """What of an evaluation item a sample has: by which modality, how it was found, how surely (0 to 1), and the
    evidence: the words, the bits that differ and the part of the picture, or the landmarks and how the clip was
    changed."""

    set: str
    item: str
    modality: str
    how: str
    score: float
    evidence: dict[str, Any]

    def line(self, sample: str) -> dict[str, Any]:
        """The finding as a line of the ledger."""
        return {"sample": sample, **asdict(self)}


def items(source: Source) -> Iterator[Sample]:
    """Samples of an evaluation set. A line of a JSONL file has `messages` (OpenAI's form; paths are relative to the
    file) or `text`, or `question` and `answer`, and may have an `id`, else its number is one. Raises ValueError for
    a line that has neither, and for what is neither a folder nor a file."""
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
        asked = Message.user(str(row["question"]))
        messages = (asked, Message.assistant(str(row.get("answer", ""))))
    else:
        raise ValueError(
            f"{path}, line {number + 1}: expected `messages`, `text` or `question`, found {sorted(row)}"
        )
    return Sample(str(row.get("id", number)), messages, str(path), "")


@dataclass(frozen=True)
class Index:
    """What is known of all evaluation sets. `names` are (set, item); `picture_items` and `clip_items` say which item
    each picture and clip belongs to (texts are numbered as items are); `digests` maps SHA-256 of media to items."""

    names: list[tuple[str, str]]
    texts: Texts
    pictures: Pictures
    picture_items: list[int]
    clips: Clips
    clip_items: list[int]
    digests: dict[str, int]

    @classmethod
    def of(cls, sets: Mapping[str, Source], ways: Collection[str] = WAYS) -> "Index":
        """Read every set once, for all that `ways` names. A medium that can't be decoded is a ValueError that names
        its item, an unknown way another."""
        if unknown := set(ways) - set(WAYS):
            raise ValueError(f"expected ways of {', '.join(WAYS)}, found {sorted(unknown)}")
        looked = {"whole picture", "cropped picture"} & set(ways)
        names: list[tuple[str, str]] = []
        texts: list[tuple[str, bool]] = []
        pictures: list[Pictures] = []
        clips: list[Clips] = []
        picture_items: list[int] = []
        clip_items: list[int] = []
        known: dict[str, int] = {}
        for name, source in sets.items():
            for sample in items(source):
                item = len(names)
                names.append((name, sample.id))
                said = [m.text for m in sample.messages if m.role != "system"]
                seen = media(sample.messages, Image)
                heard = media(sample.messages, Audio)
                texts.append(("\n".join(said), bool(seen or heard)))
                try:
                    for part in seen:
                        picture = decode_image(part.source)
                        if looked:
                            pictures.append(Pictures.of([picture], "cropped picture" in ways))
                            picture_items.append(item)
                        if not is_flat(look(picture)):
                            _remember(known, part.source, item)
                    for part in heard:
                        wave, rate = decode_audio(part.source)
                        if "landmarks" in ways:
                            clips.append(Clips.of([(wave, rate)]))
                            clip_items.append(item)
                        if np.abs(wave).max() > SILENT:
                            _remember(known, part.source, item)
                except ValueError as error:
                    raise ValueError(f"{name}, item {sample.id}: {error}") from None
        return cls(
            names,
            Texts.of(texts),
            Pictures.joined(pictures),
            picture_items,
            Clips.joined(clips),
            clip_items,
            known,
        )

    def save(self, folder: Path) -> None:
        """Write the index as numpy arrays and one JSON file, whole or not at all."""
        names = ("names", "picture_items", "clip_items", "digests")
        with whole_folder(folder) as partial:
            for part, kind in PARTS.items():
                for f in fields(kind):
                    np.save(partial / f"{part}.{f.name}.npy", getattr(getattr(self, part), f.name))
            (partial / "items.json").write_text(json.dumps({n: getattr(self, n) for n in names}))

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """An index as saved. Arrays stay on disk until they are looked at, and processes share them."""
        if not (folder / "items.json").exists():
            raise ValueError(f"{folder}: expected an index (Index.save), found no items.json")
        told = json.loads((folder / "items.json").read_text())
        arrays = {
            part: kind(
                **{
                    f.name: np.load(folder / f"{part}.{f.name}.npy", "r", allow_pickle=False)
                    for f in fields(kind)
                }
            )
            for part, kind in PARTS.items()
        }
        return cls(**{**told, "names": [(s, i) for s, i in told["names"]], **arrays})

    def find(self, document: Document, ways: Collection[str] = WAYS) -> list[Finding]:
        """All that a document has of evaluation items, by the `ways` given, for which the index must have been made.
        A medium that can't be decoded has nothing."""
        read = {"quoted", "reworded"} & set(ways)
        found = [
            self._finding(m.item, "text", m.how, m.score, span=m.span)
            for m in (self.texts.find(document.text, "reworded" in ways) if read else ())
            if m.how in ways
        ]
        for medium in document.media:
            kind, data = medium.metadata["kind"], medium.media_bytes
            same = self.digests.get(medium.id) if "same bytes" in ways else None
            if same is not None:
                found.append(self._finding(same, kind, "same bytes", 1.0, sha256=medium.id))
                continue
            try:
                if kind == "image" and {"whole picture", "cropped picture"} & set(ways):
                    found += self._seen(data)
                elif kind == "audio" and "landmarks" in ways:
                    found += self._heard(data)
            except ValueError as error:
                note(document, "decontaminate", unreadable=str(error))
        return found

    def _seen(self, data: bytes) -> list[Finding]:
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

    def _heard(self, data: bytes) -> list[Finding]:
        return [
            self._finding(self.clip_items[m.item], "audio", "landmarks", m.score, **m.evidence())
            for m in self.clips.find(*decode_audio(data))
        ]

    def _finding(
        self, item: int, modality: str, how: str, score: float, **evidence: Any
    ) -> Finding:
        return Finding(*self.names[item], modality, how, score, evidence)


PARTS: dict[str, Any] = {"texts": Texts, "pictures": Pictures, "clips": Clips}
SILENT = 1e-3
"""Amplitude up to which a clip says nothing, so that its bytes say nothing either."""


def _remember(known: dict[str, int], source: Any, item: int) -> None:
    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    if isinstance(source, bytes):
        known.setdefault(sha256(source).hexdigest(), item)


class Decontaminate(BaseFilter):  # type: ignore[misc]
    """The filter. `index` is the folder of a saved `Index`; findings of task `rank` go to `ledger/RANK.jsonl`, which is
    written anew when the task is repeated; `ways` says what is looked for. With `drop=False` samples stay, and their
    lineage tells what was found."""

    name = "Decontamination"

    def __init__(
        self,
        index: Path,
        ledger: Path,
        *,
        ways: Collection[str] = WAYS,
        drop: bool = True,
        exclusion_writer: Any = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.folder, self.ledger, self.ways, self.drop = index, ledger, ways, drop
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
        assert self._index is not None and self._lines is not None
        found = self._index.find(doc, self.ways)
        for finding in found:
            self._lines.write(json.dumps(finding.line(doc.id), ensure_ascii=False) + "\n")
            told = asdict(finding)
            note(doc, "decontaminate", **{k: told[k] for k in told if k != "evidence"})
        return True if not found or not self.drop else (False, f"known {found[0].modality}")


def against(
    own: str, *others: str, ways: Collection[str] = WAYS
) -> Callable[[Work], list[PipelineStep]]:
    """`Corpus.steps` of a corpus that goes through no other step than `held_out`."""
    return lambda work: [*held_out(work, own, *others, ways=ways)]


def held_out(
    work: Work, own: str, *others: str, ways: Collection[str] = WAYS
) -> list[Decontaminate]:
    """The step that keeps out of the training split of the corpus `own` what its held-out split has, or that of
    `others`; none for other splits. The index is made here, once for each content of those splits. Raises ValueError
    where one isn't there."""
    if "train" not in work.rows:
        return []
    folders = {name: work.data / name / "test" for name in (own, *others)}
    for name, folder in folders.items():
        if not (folder / "manifest.json").exists():
            raise ValueError(
                f"{own} is held against the held-out samples of {name}: expected them in {folder}; "
                f"build {name} with a test split first"
            )
    manifests = [json.loads((f / "manifest.json").read_text()) for f in folders.values()]
    shards = [shard["sha256"] for manifest in manifests for shard in manifest["shards"]]
    key = sha256(json.dumps([list(folders), shards, list(ways)]).encode()).hexdigest()[:16]
    known = work.data / own / ".made" / f"known-{key}"
    if not (known / "index" / "items.json").exists():
        Index.of(folders, ways).save(known / "index")
    return [Decontaminate(known / "index", known / "ledger", ways=tuple(ways))]
