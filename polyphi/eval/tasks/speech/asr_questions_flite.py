"""Spoken questions by an engine that training never hears."""

from polyphi.eval.scorers import wer
from polyphi.eval.task import Task

task = Task(
    name="asr_questions_flite",
    title="Questions, unseen engine",
    modality="speech",
    corpus="asr",
    scorer=wer,
    only={"task": "questions", "voice": "flite_slt"},
    metric="wer",
    max_tokens=40,
    note="flite slt, an engine that training never hears; English",
)
