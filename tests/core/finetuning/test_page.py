"""The page of a fine-tuning run: its numbers, its answers with their media, and nothing that a row's text could add."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from polyphi.data.shards import Sample
from polyphi.finetuning import page as finetune
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from tests.core.train.small import EVERYTHING

STEPS = 8


def encoded(size: int, name: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    Picture.fromarray(noise).save(stream, name)
    return stream.getvalue()


def row(id: str, *media: Any, answer: str = "red") -> Sample:
    question = Message.user(*media, "which <b>colour</b> is it")
    return Sample(id, (question, Message.assistant(answer)), "rows.jsonl", "")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a run that stopped early."""
    manifest = {
        "stage": "everything",
        "budget": {"steps": 20},
        "steps": STEPS,
        "seconds": 30.0,
        "precision": "fp32",
        "counters": {"tokens": 900, "samples": 40, "skipped pictures": 3},
        "loss": {"first": 5.0, "last": 1.5},
        "evaluation": {
            "rows": 2,
            "left_out": 0,
            "best": {"step": 4, "loss": 1.25},
            "stopped_early": True,
            "exported_step": 4,
        },
        "trainable": [
            {"module": glob, "parameters": 1500, "lr": rate, "from": ["hf:owner/base"]}
            for glob, rate in EVERYTHING.trainable.items()
        ],
        "frozen": {"decoder.norm.weight": ["a", "a"]},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    metrics = [{"step": s, "loss": 5.0 - 0.4 * s, "padding": 0.1} for s in range(STEPS)]
    answers = {0: ["x <i>", "blue"], 4: ["Red ", "blue"], 8: ["red", "blue"]}
    evaluations = [
        {"step": step, "loss": loss, "answers": answers[step]}
        for step, loss in ((0, 5.0), (4, 1.25), (8, 1.75))
    ]
    for name, records in (("metrics", metrics), ("evaluations", evaluations)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for split, rows in (("train", 40), ("eval", 2)):
        folder = tmp_path / "data" / "pictures" / split
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"rows": rows, "left_out": 1}))
    return tmp_path


def test_the_page(run: Path) -> None:
    small, large = encoded(20, "PNG"), encoded(700, "PNG")
    samples = [("pictures", row("1", Image(small))), ("pictures", row("2", Image(large)))]
    page = finetune.write(run, EVERYTHING, samples).read_text()
    for text in ("8 of 20", "7.5k", "5 → 1.5", "5 → 1.25", "step 4", "0–8", "hf:owner/base"):
        assert text in page, text
    assert "<b>colour" not in page and "x <i>" not in page, "rows are text"
    assert page.count("✓") == 3, "two answers that only differ in case and spaces, and the legend"
    assert page.count("data:image/") == 2 and len(page) < 400_000, "a large image is made smaller"
    assert "<script" not in page and 'href="http' not in page and 'src="http' not in page


def test_media_that_do_not_fit_are_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "MAX_MEDIA", 2000)
    sounds = [b"RIFF" + bytes(1500), b"RIFF" + bytes(1501), b"what"]
    samples = [("pictures", row(str(i), Audio(sound))) for i, sound in enumerate(sounds)]
    page = finetune.write(run, EVERYTHING, samples).read_text()
    assert page.count("<audio") == 1


def test_a_run_without_evaluations(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "evaluations.jsonl").unlink()
    (run / "manifest.json").write_text(json.dumps({**manifest, "evaluation": None}))
    page = finetune.write(run, EVERYTHING, []).read_text()
    assert "Answers during" not in page and "<circle" not in page and "5 → 1.5" in page
