"""A stamp's caption in one of eight languages, as volunteers wrote it."""

from polyphi.eval.scorers import bleu
from polyphi.eval.task import Task

task = Task(
    name="caption_stamp",
    title="Caption of a stamp",
    modality="vision",
    corpus="captions",
    scorer=bleu,
    only={"task": "caption_stamp"},
    metric="bleu",
    max_tokens=24,
    note="unseen stamps: an open-ended task, beyond a small model",
)
