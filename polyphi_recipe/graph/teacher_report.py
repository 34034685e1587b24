"""The report of what the teachers of a recipe file wrote for a corpus: `DIR/teachers/CORPUS/report.md`, and a line of
it.

requests, accepted rows and refused answers of each synthesis, ten rows of each, and refused answers by reason
"""

import json
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from polyphi.runtime.files import write_whole
from polyphi.runtime.rendering import environment
from polyphi.text.quantity import quantity
from polyphi_eval.services.response_cache import whole_lines
from polyphi_recipe.graph.teacher_rows import FOLDER, STEP
from polyphi_recipe.pipeline import pipeline
from polyphi_recipe.syntheses.synthesis_step import SHOWN, Count, counts_of, reason_class

LONGEST = 1500
"""Characters of a text on the page, at most."""


def write(out: Path, corpus: str) -> str:
    """Write the page of a built corpus in the run `out`; returns a line of its numbers ("" without training rows)."""
    manifest = json.loads((out / "data" / corpus / "train" / "manifest.json").read_text())
    step = _step(out, corpus, manifest["pipeline"])
    if step is None:
        return ""
    by_synthesis, work = counts_of(step), out / FOLDER / corpus
    present = {
        name: sum(n for source, n in manifest["sources"].items() if f", {name} by " in source)
        for name in by_synthesis
    }
    text = (
        environment("polyphi_recipe.graph")
        .get_template("teachers.md")
        .render(
            corpus=corpus,
            step=step,
            rows=manifest["rows"],
            counts=by_synthesis,
            present=present,
            accepted={name: list(_accepted(work, name)) for name in by_synthesis},
            refused={name: list(_refused(work, name)) for name in by_synthesis},
        )
    )
    write_whole(work / "report.md", text)
    return f"{corpus}: {step['step']}: {_line(by_synthesis, sum(present.values()))}; {work / 'report.md'}"


def counts(out: Path, corpus: str) -> dict[str, Count]:
    """Return the numbers of each synthesis of a built corpus in the run `out`."""
    manifest = json.loads((out / "data" / corpus / "train" / "manifest.json").read_text())
    return counts_of(_step(out, corpus, manifest["pipeline"]) or {})


def _step(out: Path, corpus: str, pipeline_hash: str) -> dict[str, Any] | None:
    steps = pipeline.counts(out / "data" / corpus / "train", pipeline_hash)
    return next((step for step in steps if step["step"].startswith(STEP)), None)


def _line(counts: Mapping[str, Count], present: int) -> str:
    refused = sum(sum(count.refused.values()) for count in counts.values())
    requests, sent = (
        sum(getattr(c, name) for c in counts.values()) for name in ("requests", "sent")
    )
    accepted, unsent = (
        sum(getattr(c, name) for c in counts.values()) for name in ("accepted", "unsent")
    )
    text = (
        f"{quantity(requests, 'request')}, {requests - sent:,} of them answered by an earlier run; "
        f"{quantity(accepted, 'row')} accepted "
        f"({present:,} are in the corpus), {quantity(refused, 'answer')} refused"
    )
    if unsent:
        text += f"; the budget is spent, left out: {quantity(unsent, 'sample')}"
    if given_up := [name for name, count in counts.items() if count.given_up]:
        text += f"; given up, since nothing was accepted: {', '.join(given_up)}"
    return text


def _accepted(work: Path, synthesis: str) -> Iterator[dict[str, Any]]:
    """Yield the first rows of a synthesis: {"id", "turns": [(role, text)]}."""
    for line in chain.from_iterable(map(whole_lines, sorted(work.glob("accepted.*.jsonl")))):
        if line["synthesis"] == synthesis:
            turns = [(message["role"], _cut(message["text"])) for message in line["messages"]]
            turns += [("dispreferred", _cut(line["rejected"]))] if "rejected" in line else []
            yield {"id": line["id"], "turns": turns}


def _refused(work: Path, synthesis: str) -> Iterator[dict[str, str]]:
    """Yield refused answers of a synthesis: the first one for each reason, then the second ones ..."""
    by_reason: dict[str, list[dict[str, str]]] = {}
    for line in chain.from_iterable(map(whole_lines, sorted(work.glob("refused.*.jsonl")))):
        same = by_reason.setdefault(reason_class(line["reason"]), [])
        if line["synthesis"] == synthesis and len(same) < SHOWN:
            answer = line["answer"]
            text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
            same.append(
                {"id": line["sample"], "reason": _cut(line["reason"]), "answer": _cut(text)}
            )
    turns = chain.from_iterable(zip_longest(*by_reason.values()))
    yield from [line for line in turns if line is not None][:SHOWN]


def _cut(text: str) -> str:
    """Return the beginning of a text, quoted for Markdown."""
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return text.replace("\n", "\n    ")
