"""The page of a fine-tuning run, `DIR/report.html`: losses, answers to evaluation rows, trained parameters, data.

>>> write(Path("runs/calls"), stage, samples)
PosixPath('runs/calls/report.html')

It has the style and parts of the recipe's report page, and is for its reader alone: it shows rows of the user's data.
"""

import io
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi.media.media import decode_image
from polyphi.runtime.files import write_whole
from polyphi.runtime.progress import read_metrics
from polyphi.runtime.rendering import environment
from polyphi.text.quantity import quantity
from polyphi.train.evaluation import EVALUATIONS, SPLIT
from polyphi.train.report import curves
from polyphi.train.report.page import (
    MAX_MEDIA,
    MAX_SAMPLE_MEDIA,
    MIME,
    count,
    duration,
    inputs,
    medium,
    question,
    render_page,
)
from polyphi.train.report.stage import loss_points, stage_row, training_records
from polyphi.train.stage import Stage
from polyphi.types.parts import Audio, Image

TEMPLATES = environment("polyphi.finetuning", "polyphi.train.report")
TEMPLATES.filters.update(count=count, inputs=inputs)

SECTIONS = {
    "finetune_losses": "Losses",
    "finetune_answers": "Answers",
    "learned": "Trained parameters",
    "finetune_data": "Data",
}
THUMBNAIL = 640
"""Pixels of the longer side of an image that is too large for the page."""


def write(run: Path, stage: Stage, samples: Sequence[tuple[str, Sample]]) -> Path:
    """Write the page of a finished run; returns its path. `samples` are the evaluation rows whose answers it shows,
    with their corpora."""
    manifest = json.loads((run / "manifest.json").read_text())
    evaluations = read_metrics(run / EVALUATIONS)
    media: dict[str, bytes] = {}
    row = stage_row(run, stage)
    points = loss_points(training_records(run / "metrics.jsonl"))
    evaluated = [[e["step"], e["loss"]] for e in evaluations]
    report = {
        "stages": [row],
        "headline": _headline(row, manifest, evaluations),
        "chart": curves.chart(points, evaluated),
        "about_losses": _about_losses(manifest, evaluations),
        "evaluations": evaluations,
        "samples": [
            _sample(number, corpus, sample, evaluations, media)
            for number, (corpus, sample) in enumerate(samples)
        ],
        "data": _data(run, stage, manifest),
        "about_data": _about_data(manifest),
    }
    frozen = f"{row['frozen_tensors']:,} frozen tensors have the same SHA-256 before and after the training."
    page = render_page(
        TEMPLATES, "finetune.html", SECTIONS, report, media, title=stage.name, intro=frozen
    )
    write_whole(run / "report.html", page)
    return run / "report.html"


def _headline(
    row: Mapping[str, Any], manifest: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The key numbers of the run, each with its label."""
    planned, steps = manifest["budget"]["steps"], manifest["steps"]
    trained = sum(entry["parameters"] for entry in row["learned"])
    numbers = [
        (f"{steps:,}" if steps == planned else f"{steps:,} of {planned:,}", "steps"),
        (count(trained), "trained parameters"),
    ]
    if manifest["loss"]["first"] is not None:
        first, last = manifest["loss"]["first"], manifest["loss"]["last"]
        numbers.append((f"{first:.3g} → {last:.3g}", "training loss"))
    if evaluations:
        result = manifest["evaluation"]
        numbers += [
            (f"{evaluations[0]['loss']:.3g} → {result['best']['loss']:.3g}", "evaluation loss"),
            (f"step {result['exported_step']:,}", "exported"),
        ]
    numbers += [
        (duration(manifest["seconds"]), "of training"),
        (manifest["precision"], "precision"),
    ]
    return numbers


def _about_losses(manifest: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    text = "Loss for each supervised token."
    if not evaluations:
        return text + " --eval-data adds the loss on rows that are not trained on."
    best = manifest["evaluation"]["best"]["step"]
    if best == 0:
        text += (
            " On the evaluation rows no step has a lower loss than the weights before the training."
        )
    else:
        text += f" On the evaluation rows it was lowest after {quantity(best, 'step')}."
    if manifest["evaluation"]["stopped_early"]:
        text += " The run stopped early, because later evaluations had no lower loss."
    elif best < manifest["steps"]:
        text += (
            " It rose afterwards: fewer steps, a lower learning rate or more rows may be better."
        )
    return text


def _about_data(manifest: Mapping[str, Any]) -> str:
    counters = manifest["counters"]
    amounts = [f"{counters.get('samples', 0):,} rows with {counters.get('tokens', 0):,} tokens"]
    if counters.get("cut"):
        amounts.append(f"{counters['cut']:,} of them cut to the context")
    return (
        f"The run trained on {', '.join(amounts)}, rows of later epochs counted again. Rows are left out in training "
        "where they are longer than the stage's context."
    )


def _data(run: Path, stage: Stage, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of each corpus and split: read, left out as unusable, left out in training."""
    rows = []
    for corpus in stage.data.weights:
        for split, title in (("train", "training"), (SPLIT, "evaluation")):
            path = run / "data" / corpus / split / "manifest.json"
            if not path.exists():
                continue
            shards = json.loads(path.read_text())
            skipped = manifest["counters"].get(f"skipped {corpus}", 0) if split == "train" else None
            left_out = shards.get("left_out", 0)
            rows.append(
                {
                    "corpus": corpus,
                    "split": title,
                    "rows": shards["rows"],
                    "left_out": left_out,
                    "skipped": skipped,
                }
            )
    return rows


def _sample(
    number: int,
    corpus: str,
    sample: Sample,
    evaluations: Sequence[Mapping[str, Any]],
    media: dict[str, bytes],
) -> dict[str, Any]:
    """An evaluation row with its answers; adds its media to `media`, by SHA-256."""
    answers = [
        (e["step"], e["answers"][number].strip())
        for e in evaluations
        if number < len(e.get("answers", ()))
    ]
    entries = []
    for part in (p for m in sample.prompt for p in m.parts if isinstance(p, Image | Audio)):
        assert isinstance(part.source, bytes)
        content = _page_medium(part, sum(map(len, media.values())))
        if content is None:
            continue
        entries.append(medium(part.modality, content[1], content[0]))
        media[entries[-1]["sha256"]] = content[1]
    reference = sample.answer.strip()
    runs = [list(group) for _, group in groupby(answers, key=lambda pair: pair[1])]
    return {
        "id": f"{corpus}: {sample.id}",
        "question": question(sample.prompt),
        "reference": reference,
        "media": entries,
        "answers": [
            {
                "steps": f"{run[0][0]}" if len(run) == 1 else f"{run[0][0]}–{run[-1][0]}",
                "text": run[0][1],
                "correct": run[0][1].casefold() == reference.casefold(),
            }
            for run in runs
        ],
    }


def _page_medium(part: Image | Audio, used: int) -> tuple[str, bytes] | None:
    """(media type, bytes) of a medium on the page, where `used` bytes are taken; large images are made smaller. None
    for a medium that doesn't fit."""
    content = part.source
    assert isinstance(content, bytes)
    mime = next((mime for magic, mime in MIME.items() if content.startswith(magic)), None)
    if isinstance(part, Image) and (mime is None or len(content) > MAX_SAMPLE_MEDIA):
        image, stream = decode_image(content).convert("RGB"), io.BytesIO()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(stream, "JPEG", quality=85)
        mime, content = "image/jpeg", stream.getvalue()
    if mime is None or used + len(content) > MAX_MEDIA:
        return None
    return mime, content
