"""Recorded captions of stamps: real speech, open vocabulary. Out of a small model's reach, and reported as it is."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_open",
    title="Open vocabulary, real people",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "open"},
    metric="wer",
    max_tokens=40,
    note="unseen captions in French, Spanish and English; perhaps the same volunteers as in training",
)
