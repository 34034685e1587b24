"""Corpus cards: rows, sources, licences and step counts of a corpus, with examples of what each step dropped, and the
record of a single sample."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample, Shards
from polyphi.runtime.rendering import environment
from polyphi_recipe.filters.pii import remove
from polyphi_recipe.pipeline import drop_warning, pipeline
from polyphi_recipe.syntheses.synthesis_step import PREFIX, counts_of

SEARCHED_CHARACTERS = 4000
"""Characters of a dropped text, of which a card shows the first, in which personal information is replaced."""


def card(folder: Path) -> str:
    """Return a corpus's card (Markdown): per split its rows, sources and licences, the documents that each step
    forwarded or dropped, by reason, and what teachers wrote. Raises ValueError if nothing is built."""
    splits = []
    for name in _splits(folder):
        manifest = json.loads((folder / name / "manifest.json").read_text())
        examples = dropped_examples(folder / name)
        steps = [
            {
                "name": step["step"],
                "numbers": {
                    k: n
                    for k, n in step.items()
                    if k != "step" and not k.startswith((PREFIX, pipeline.READ))
                },
                "syntheses": counts_of(step),
                "examples": examples.get(step["step"], ()),
            }
            for step in pipeline.counts(folder / name, manifest["pipeline"])
        ]
        splits.append({**manifest, "name": name, "steps": steps, "warning": warning(folder / name)})
    template = environment("polyphi_recipe.corpora").get_template("card.md")
    return template.render(name=folder.name, splits=splits).rstrip("\n")


def dropped_examples(split: Path) -> dict[str, list[str]]:
    """Return the first samples that each step of a split dropped, a line each, without the personal information that
    the filter of it finds: a card may be published."""
    manifest = json.loads((split / "manifest.json").read_text())
    return {
        step: drop_warning.examples(split, manifest, step, excerpt=_public)
        for step in manifest.get("dropped", {})
    }


def warning(split: Path) -> str:
    """Return the warnings about a split (drop_warning.py), without personal information."""
    return drop_warning.warning(split, _public)


def _public(row: Mapping[str, Any]) -> str:
    language = next((n["found"] for n in row["lineage"] if n["step"] == "language"), "en")
    return remove(row["text"][:SEARCHED_CHARACTERS], language)[0]


def explain(folder: Path, id: str) -> str:
    """Return the record of a sample, or of one that a step dropped: text, media, source, licence and lineage. Raises
    ValueError if the corpus has no sample with that id."""
    for split in _splits(folder):
        for sample in Shards(folder / split):
            if sample.id == id:
                return "\n".join([f"{folder.name}/{id}, in {split}", *_sample_lines(sample)])
    for split in _splits(folder):
        manifest = json.loads((folder / split / "manifest.json").read_text())
        for row in pipeline.dropped(folder / split, manifest["pipeline"]):
            if row["id"] == id:
                hidden = ("step", "id", "reason")
                details = (f"  {key}: {value}" for key, value in row.items() if key not in hidden)
                first = f"{folder.name}/{id}, dropped by {row['step']}: {row['reason']}"
                return "\n".join([first, *details])
    raise ValueError(f"{folder.name} has no sample {id!r}, and none that a step dropped")


def _splits(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


def _sample_lines(sample: Sample) -> list[str]:
    meta: dict[str, Any] = dict(sample.meta)
    lineage = meta.pop("lineage", [])
    lines = [f"  source: {sample.source}", f"  licence: {sample.licence}"]
    lines += [f"  {key}: {value}" for key, value in meta.items()]
    lines += [f"  step {step}" for step in lineage]
    for message in sample.messages:
        content = " ".join(
            getattr(part, "text", f"<{type(part).__name__.lower()}>") for part in message.parts
        )
        lines.append(f"  {message.role}: {content}")
    return lines
