"""Conversion between `Sample` and datatrove's `Document`, the input and output of curation steps.

    sample  user "What is this?" + image, assistant "A dog."      ->
    text    "What is this?\\nA dog."           all text, for text filters
    media   [Media(id=SHA-256, media_bytes=...)]
    metadata["sample"]     the row (polyphi/data/shards.py) without the bytes
    metadata["lineage"]    the findings of each step: [{"step": "language", "found": "en", "score": 0.98}]
    metadata["split"]      "train" or "test"

The lineage is stored in the sample's `meta["lineage"]`, so that a shard documents each of its rows.
"""

import json
from collections.abc import Callable
from typing import Any

from datatrove.data import Document, Media

from polyphi.data.shards import Sample, Shards, to_row

MEDIA_TYPES = {"image": 0, "audio": 1}
"""Values of `Media.type`, a number without a meaning in datatrove."""


def document(sample: Sample, split: str = "train") -> Document:
    """Return a sample as a document."""
    row = to_row(sample)
    media = [
        Media(
            id=m["sha256"],
            type=MEDIA_TYPES.get(m["kind"], len(MEDIA_TYPES)),
            url="",
            media_bytes=m["bytes"],
            metadata={"kind": m["kind"], "mime": m["mime"]},
        )
        for m in row["media"]
    ]
    meta = dict(sample.meta)
    lineage = meta.pop("lineage", [])
    fields = {key: row[key] for key in ("messages", "source", "licence")} | {"meta": meta}
    metadata = {"sample": fields, "lineage": list(lineage), "split": split}
    return Document(_joined_text(fields), sample.id, media, metadata)


def sample(document: Document) -> Sample:
    """Return the sample of a document, with its lineage."""
    fields = document.metadata["sample"]
    meta = dict(fields["meta"])
    if document.metadata["lineage"]:
        meta["lineage"] = document.metadata["lineage"]
    media = [
        {"kind": m.metadata["kind"], "bytes": m.media_bytes, "mime": m.metadata["mime"]}
        for m in document.media
    ]
    return Shards.parse(
        {**fields, "id": document.id, "media": media, "meta": json.dumps(meta, ensure_ascii=False)}
    )


def replace_sample(old: Document, replacement: Sample) -> None:
    """Replace a document's sample in place; the document keeps its lineage."""
    new = document(replacement, old.metadata.get("split", "train"))
    old.text, old.media, old.metadata["sample"] = new.text, new.media, new.metadata["sample"]


def note(document: Document, step: str, **fields: Any) -> None:
    """Append a step's findings (JSON values) to the document's lineage."""
    document.metadata["lineage"].append({"step": step, **fields})


def edit(document: Document, change: Callable[[str], str]) -> bool:
    """Apply `change` to every text of a document in place; returns whether any text changed."""
    fields = document.metadata["sample"]
    before = document.text
    for message in fields["messages"]:
        for part in message["parts"]:
            if part["text"] is not None:
                part["text"] = change(part["text"])
    document.text = _joined_text(fields)
    return document.text != before


def _joined_text(fields: dict[str, Any]) -> str:
    parts = [part["text"] for message in fields["messages"] for part in message["parts"]]
    return "\n".join(text for text in parts if text)
