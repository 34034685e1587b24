"""Spoken questions about pictures and sums, in eight languages."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_questions",
    title="Questions, unseen voices",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "questions", "voice": "espeak_unseen"},
    metric="wer",
    max_tokens=40,
    note="unseen espeak-ng variants; many questions are also asked in training, by others",
)
