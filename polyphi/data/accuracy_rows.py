"""Rows to measure the accuracy of a model on where no others are named: held-out ones of a run, or texts of ours.

>>> rows = own_texts(processor)
>>> shards = held_out(Path("runs/nano/model"))
"""

import json
from pathlib import Path
from typing import Any

from polyphi.data.calibration import CONTEXT
from polyphi.data.shards import Shards
from polyphi.processing.processor import Processor
from polyphi.runtime.files import read_object
from polyphi.types.batch import Batch
from polyphi.types.messages import Message

TEXTS = Path(__file__).with_name("accuracy_texts.json")
"""[ours] 16 documents (English, the seven other languages of the report's table of languages, code, arithmetic) and
four conversations, written for this purpose: about 2,000 tokens of Phi-4."""


def own_texts(processor: Processor, context: int = CONTEXT) -> list[Batch]:
    """The texts that polyphi has for this purpose as rows with labels: all tokens of documents, and the answers of
    conversations."""
    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    conversations: list[list[dict[str, Any]]] = [
        *([{"role": "document", "content": text}] for text in texts["documents"]),
        *texts["conversations"],
    ]
    return [
        processor.row(
            [Message.parse(turn) for turn in turns],
            supervise="answers",
            context=context,
            truncate=True,
        )
        for turns in conversations
    ]


def held_out(folder: Path) -> list[Shards]:
    """The held-out rows of the corpora that a run of the recipe has trained the checkpoint in `folder` on; empty where
    the checkpoint is of no run, or the run has no such rows."""
    run = folder.resolve().parent
    if not (run / "run.json").is_file():
        return []
    manifests = (read_object(path) for path in sorted(run.glob("stages/*/manifest.json")))
    corpora = dict.fromkeys(corpus for one in manifests for corpus in one.get("mix", ()))
    splits = [run / "data" / corpus / "test" for corpus in corpora]
    return [Shards(split) for split in splits if (split / "manifest.json").is_file()]
