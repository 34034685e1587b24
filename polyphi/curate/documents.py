"""A `Sample` as datatrove's `Document`, and back: what curation steps take and give.

    sample  user "What is this?" + picture, assistant "A dog."      ->
    text    "What is this?\\nA dog."           all that is said, for filters that read
    media   [Media(id=SHA-256, media_bytes=...)]
    metadata["sample"]     the row (polyphi/data/shards.py) without the bytes
    metadata["lineage"]    what each step found: [{"step": "language", "found": "en", "score": 0.98}]
    metadata["split"]      where it goes: "train", "test"

The lineage ends in the sample's `meta["lineage"]`, so that a shard can explain each of its rows.
"""

import json
from collections.abc import Callable
from typing import Any

from datatrove.data import Document, Media

from polyphi.data.shards import Sample, Shards, to_row

KINDS = {"image": 0, "audio": 1}
"""`Media.type`: datatrove keeps a number there, and gives it no meaning."""


def document(sample: Sample, split: str = "train") -> Document:
    """A sample as steps see it."""
    row = to_row(sample)
    media = [
        Media(
            id=m["sha256"],
            type=KINDS[m["kind"]],
            url="",
            media_bytes=m["bytes"],
            metadata={"kind": m["kind"], "mime": m["mime"]},
        )
        for m in row["media"]
    ]
    meta = dict(sample.meta)
    lineage = meta.pop("lineage", [])
    kept = {key: row[key] for key in ("messages", "source", "licence")} | {"meta": meta}
    known = {"sample": kept, "lineage": list(lineage), "split": split}
    return Document(_said(kept), sample.id, media, known)


def sample(document: Document) -> Sample:
    """The sample that a document stands for, with its lineage."""
    kept = document.metadata["sample"]
    meta = dict(kept["meta"])
    if document.metadata["lineage"]:
        meta["lineage"] = document.metadata["lineage"]
    media = [
        {"kind": m.metadata["kind"], "bytes": m.media_bytes, "mime": m.metadata["mime"]}
        for m in document.media
    ]
    return Shards.parse(
        {**kept, "id": document.id, "media": media, "meta": json.dumps(meta, ensure_ascii=False)}
    )


def become(old: Document, made: Sample) -> None:
    """Let a document stand for another sample, in place; its lineage goes on."""
    new = document(made, old.metadata.get("split", "train"))
    old.text, old.media, old.metadata["sample"] = new.text, new.media, new.metadata["sample"]


def note(document: Document, step: str, **found: Any) -> None:
    """What a step found, kept with the document: JSON values."""
    document.metadata["lineage"].append({"step": step, **found})


def edit(document: Document, change: Callable[[str], str]) -> bool:
    """Change every text of a document, in place; whether anything is different now."""
    kept = document.metadata["sample"]
    before = document.text
    for message in kept["messages"]:
        for part in message["parts"]:
            if part["text"] is not None:
                part["text"] = change(part["text"])
    document.text = _said(kept)
    return document.text != before


def _said(kept: dict[str, Any]) -> str:
    parts = [part["text"] for message in kept["messages"] for part in message["parts"]]
    return "\n".join(text for text in parts if text)
